//! HTTP on the WebSocket port: the upgrade of `/distrilock` (RFC 6455, section 4.2), and a response
//! to everything else. Other pages of the daemon belong here.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tungstenite::handshake::derive_accept_key;

use super::admission::{Admission, Refusal, lists, single};
use crate::limits::{HTTP_HEAD_BYTES_MAX, HTTP_HEAD_SECONDS_MAX};
use crate::sync::locked;

/// The path that speaks WebSocket.
const PATH: &str = "/distrilock";

/// The version of WebSocket (RFC 6455, section 4.1).
const VERSION: &str = "13";

type TextResponse = Response<Full<Bytes>>;

/// Serves one HTTP request. Returns the connection, and what the client has sent after the request,
/// if it is an upgrade; otherwise the request has been answered.
pub(super) async fn upgrade<S>(stream: S, admission: &Admission) -> io::Result<Option<(S, Bytes)>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let upgrading: Arc<Mutex<Option<OnUpgrade>>> = Arc::default();
    let service = service_fn(|mut request: Request<Incoming>| {
        let response = respond(&request, admission);
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

fn respond(request: &Request<Incoming>, admission: &Admission) -> TextResponse {
    negotiate(request, admission).unwrap_or_else(|(status, why)| {
        let mut response = text(status, format!("{why}\n"));
        let headers = response.headers_mut();
        match status {
            StatusCode::METHOD_NOT_ALLOWED => drop(headers.insert(ALLOW, HeaderValue::from_static("GET"))),
            // RFC 6455, section 4.4; RFC 9110, section 15.5.22.
            StatusCode::UPGRADE_REQUIRED => {
                headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(CONNECTION, HeaderValue::from_static("close, upgrade"));
            }
            _ => {}
        }
        response
    })
}

/// Accepts the upgrade (RFC 6455, section 4.2.2), or says why not.
fn negotiate(request: &Request<Incoming>, admission: &Admission) -> Result<TextResponse, Refusal> {
    let bad = |why: String| (StatusCode::BAD_REQUEST, why);
    let headers = request.headers();
    admission.check(request)?;
    if request.uri().path() != PATH {
        return Err((StatusCode::NOT_FOUND, format!("Not found: this port speaks WebSocket at {PATH}")));
    }
    if request.method() != Method::GET {
        return Err((StatusCode::METHOD_NOT_ALLOWED, format!("{PATH} speaks WebSocket (RFC 6455): use GET")));
    }
    if !lists(headers, &UPGRADE, "websocket") {
        return Err(bad(format!("{PATH} speaks WebSocket (RFC 6455); this is a plain request")));
    }
    if !lists(headers, &CONNECTION, "upgrade") {
        return Err(bad("the request has \"Upgrade: websocket\", but not \"Connection: Upgrade\"".into()));
    }
    if request.version() != Version::HTTP_11 {
        return Err(bad("WebSocket needs HTTP/1.1".into()));
    }
    let key = single(headers, &SEC_WEBSOCKET_KEY).map_err(bad)?;
    let key = key.ok_or_else(|| bad("the request has no Sec-WebSocket-Key".into()))?;
    if !is_key(key) {
        return Err(bad("the Sec-WebSocket-Key is not the base64 form of 16 bytes".into()));
    }
    if single(headers, &SEC_WEBSOCKET_VERSION).map_err(bad)? != Some(VERSION) {
        let why = format!("this daemon speaks version {VERSION} of WebSocket");
        return Err((StatusCode::UPGRADE_REQUIRED, why));
    }
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accepted = HeaderValue::try_from(derive_accept_key(key.as_bytes())).map_err(|error| bad(error.to_string()))?;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accepted);
    Ok(response)
}

/// Whether it is base64 of 16 bytes (RFC 4648): 22 digits and two signs of padding.
fn is_key(key: &str) -> bool {
    let digit = |digit: u8| digit.is_ascii_alphanumeric() || matches!(digit, b'+' | b'/');
    key.len() == 24 && key.strip_suffix("==").is_some_and(|digits| digits.bytes().all(digit))
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
