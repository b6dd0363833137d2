//! HTTP on the WebSocket port: the upgrade of `/distrilock` (RFC 6455, section 4.2), and a response
//! to everything else. Other pages of the daemon belong here.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, ORIGIN, UPGRADE};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::limits::{HTTP_HEAD_BYTES_MAX, HTTP_HEAD_SECONDS_MAX};
use crate::sync::locked;

/// The path that speaks WebSocket.
const PATH: &str = "/distrilock";

type TextResponse = Response<Full<Bytes>>;

/// Serves one HTTP request. Returns the connection, and what the client has sent after the request,
/// if it is an upgrade; otherwise the request has been answered.
pub(super) async fn upgrade<S>(stream: S, allowed: &[String]) -> io::Result<Option<(S, Bytes)>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let upgrading: Arc<Mutex<Option<OnUpgrade>>> = Arc::default();
    let service = service_fn(|mut request: Request<Incoming>| {
        let response = respond(&request, allowed);
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            *locked(&upgrading) = Some(hyper::upgrade::on(&mut request));
        }
        async { Ok::<_, std::convert::Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .max_buf_size(HTTP_HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    match tokio::time::timeout(Duration::from_secs(HTTP_HEAD_SECONDS_MAX), connection).await {
        Ok(served) => served.map_err(io::Error::other)?,
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    }
    let Some(upgrading) = locked(&upgrading).take() else { return Ok(None) };
    let upgraded = upgrading.await.map_err(io::Error::other)?;
    let parts = upgraded.downcast::<TokioIo<S>>().map_err(|_| io::Error::other("not the stream that was given"))?;
    Ok(Some((parts.io.into_inner(), parts.read_buf)))
}

fn respond(request: &Request<Incoming>, allowed: &[String]) -> TextResponse {
    if request.uri().path() != PATH {
        return text(StatusCode::NOT_FOUND, format!("Not found: this port speaks WebSocket at {PATH}\n"));
    }
    if !request.headers().contains_key(UPGRADE) {
        return text(StatusCode::BAD_REQUEST, format!("{PATH} speaks WebSocket (RFC 6455); this is a plain request\n"));
    }
    if !origin_allowed(request, allowed) {
        return text(StatusCode::FORBIDDEN, "Forbidden: to admit pages of this origin, use --allow-origin\n".into());
    }
    match tungstenite::handshake::server::create_response_with_body(request, Full::default) {
        Ok(response) => response,
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

/// Pages of other sites must not reach locks through a visitor's browser (RFC 6455, section 10.2).
/// Programs send no Origin.
fn origin_allowed(request: &Request<Incoming>, allowed: &[String]) -> bool {
    let Some(origin) = request.headers().get(ORIGIN) else { return true };
    let Ok(origin) = origin.to_str() else { return false };
    if allowed.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin)) {
        return true;
    }
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let origin = origin.split_once("://").map(|(_, authority)| authority);
    matches!((host, origin), (Some(host), Some(origin)) if host.eq_ignore_ascii_case(origin))
}

/// Answers a connection that may not become a session.
pub(super) async fn refuse<S>(stream: S, why: &str) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|_: Request<Incoming>| async {
        Ok::<_, std::convert::Infallible>(text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")))
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .max_buf_size(HTTP_HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(Duration::from_secs(HTTP_HEAD_SECONDS_MAX), connection).await {
        Ok(served) => served.map_err(io::Error::other),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn text(status: StatusCode, body: String) -> TextResponse {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
