//! Which HTTP requests may become sessions: who is asked, and for whose page.
//!
//! A page of another site must not reach locks through a visitor's browser (RFC 6455, section
//! 10.2). It comes with its own Origin; or, after DNS rebinding, with the name of its site in both
//! Origin and Host. So the Host must be a name of this daemon, and the Origin the Host's.

use std::net::{Ipv4Addr, Ipv6Addr};

use hyper::header::{HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::http::uri::Authority;
use hyper::{Request, StatusCode};

use crate::host::own_names;
use crate::settings::Settings;

/// The hosts that the daemon answers for, and the origins that it admits.
#[derive(Debug)]
pub(super) struct Admission {
    hosts: Vec<String>,
    origins: Vec<String>,
}

/// The status and the text of a refusal.
pub(super) type Refusal = (StatusCode, String);

impl Admission {
    pub(super) fn new(settings: &Settings) -> Self {
        let mut hosts = own_names();
        hosts.push("localhost".into());
        hosts.extend_from_slice(&settings.allow_host);
        Self { hosts, origins: settings.allow_origin.clone() }
    }

    /// Checks whom a request is meant for, and the origin of its page.
    pub(super) fn check<B>(&self, request: &Request<B>) -> Result<(), Refusal> {
        let host = host_of(request.headers())?;
        self.check_host(&host)?;
        // A target with a host of its own overrules the header (RFC 9112, section 3.2.2).
        if let Some(target) = request.uri().authority() {
            self.check_host(target)?;
        }
        self.check_origin(request.headers(), &host)
    }

    fn check_host(&self, host: &Authority) -> Result<(), Refusal> {
        let name = host.host();
        // One dot at the end says that the name is complete (RFC 1034, section 3.1).
        let plain = name.strip_suffix('.').unwrap_or(name);
        if is_address(plain) || self.hosts.iter().any(|own| own.eq_ignore_ascii_case(plain)) {
            return Ok(());
        }
        let text = format!(
            "Forbidden: this daemon does not answer for the host {name}; if it should, use --allow-host {plain}"
        );
        Err((StatusCode::FORBIDDEN, text))
    }

    /// Programs send no Origin.
    fn check_origin(&self, headers: &HeaderMap, host: &Authority) -> Result<(), Refusal> {
        let origin = match single(headers, &ORIGIN) {
            Ok(None) => return Ok(()),
            Ok(Some(origin)) => origin,
            Err(_) => return Err((StatusCode::FORBIDDEN, "Forbidden: the Origin is no origin".into())),
        };
        if self.origins.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin)) {
            return Ok(());
        }
        match origin.split_once("://") {
            Some((_, authority)) if host.as_str().eq_ignore_ascii_case(authority) => Ok(()),
            _ => {
                let text = format!("Forbidden: to admit pages of this origin, use --allow-origin {origin}");
                Err((StatusCode::FORBIDDEN, text))
            }
        }
    }
}

/// The one Host of a request (RFC 9112, section 3.2).
fn host_of(headers: &HeaderMap) -> Result<Authority, Refusal> {
    let bad = |text: String| (StatusCode::BAD_REQUEST, text);
    let host = single(headers, &HOST).map_err(bad)?.ok_or_else(|| bad("the request has no Host".into()))?;
    // Without a user: a URI may have one, a Host may not.
    let has_form = |authority: &Authority| {
        let port = authority.as_str().strip_prefix(authority.host()).map(|port| port.strip_prefix(':').unwrap_or(port));
        !authority.host().is_empty() && port.is_some_and(|port| port.bytes().all(|digit| digit.is_ascii_digit()))
    };
    let authority: Option<Authority> = host.parse().ok().filter(has_form);
    authority.ok_or_else(|| bad("the Host must be NAME or NAME:PORT, where NAME may be an IP address".into()))
}

/// A literal address: no name server has a say in what it means.
fn is_address(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(six) => six.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<Ipv4Addr>().is_ok(),
    }
}

/// The value of a header that a request may have once. Returns what is wrong if there are several,
/// or one that is not visible ASCII.
pub(super) fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, String> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| format!("the header {name} is not ASCII text")),
        (Some(_), Some(_)) => Err(format!("the request has several headers {name}; it may have one")),
    }
}

/// Whether a list header, in one line or several, has a word (RFC 9110, section 5.3).
pub(super) fn lists(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|listed| listed.trim().eq_ignore_ascii_case(word))
}
