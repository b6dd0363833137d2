//! The addresses of daemons.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// Where the package's socket unit listens.
const LOCAL_SOCKET: &str = "/run/distrilock/distrilock.sock";

/// Where a daemon listens by default.
const LOCAL_PORT: &str = "127.0.0.1:40800";

/// The path of the WebSocket front.
const WEBSOCKET_PATH: &str = "/distrilock";

/// The variable that names the servers.
const VARIABLE: &str = "DISTRILOCK_SERVER";

/// Where a daemon listens, and over which transport.
///
/// ```
/// use distrilock_client::Server;
///
/// let server: Server = "db1:40800".parse()?;
/// assert_eq!(server.to_string(), "tcp://db1:40800");
/// assert_eq!("ws://db1:40801".parse::<Server>()?.to_string(), "ws://db1:40801/distrilock");
/// let socket = "unix:/run/distrilock/distrilock.sock";
/// assert_eq!(socket.parse::<Server>()?, Server::Unix("/run/distrilock/distrilock.sock".into()));
/// # Ok::<(), distrilock_client::ParseServerError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Server {
    /// TCP at `HOST:PORT`.
    Tcp(String),
    /// WebSocket.
    WebSocket {
        /// `HOST:PORT`.
        host: String,
        /// The path of the request, `/distrilock` by default.
        path: String,
    },
    /// A Unix stream socket.
    Unix(PathBuf),
}

/// Why a text is not the address of a daemon.
///
/// ```
/// use distrilock_client::Server;
///
/// let error = "http://db1".parse::<Server>().unwrap_err();
/// assert!(error.to_string().contains("tcp://HOST:PORT"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a server address: {what}; write tcp://HOST:PORT, ws://HOST:PORT, unix:PATH, or HOST:PORT")]
pub struct ParseServerError {
    text: String,
    what: &'static str,
}

impl Server {
    /// The servers to use when none is named: those in `$DISTRILOCK_SERVER`, separated by commas;
    /// otherwise the local socket `/run/distrilock/distrilock.sock` if this process can connect to
    /// it; otherwise TCP at 127.0.0.1:40800.
    ///
    /// # Errors
    /// If the variable holds something that is not a server address.
    ///
    /// ```
    /// use distrilock_client::Server;
    ///
    /// assert!(!Server::defaults()?.is_empty());
    /// # Ok::<(), distrilock_client::ParseServerError>(())
    /// ```
    pub fn defaults() -> Result<Vec<Self>, ParseServerError> {
        match std::env::var(VARIABLE) {
            Ok(text) if !text.trim().is_empty() => Self::parse_list(&text),
            _ if is_usable(Path::new(LOCAL_SOCKET)) => Ok(vec![Self::Unix(LOCAL_SOCKET.into())]),
            _ => Ok(vec![Self::Tcp(LOCAL_PORT.into())]),
        }
    }

    /// Several servers, separated by commas.
    ///
    /// # Errors
    /// If one of them is not a server address.
    ///
    /// ```
    /// use distrilock_client::Server;
    ///
    /// assert_eq!(Server::parse_list("db1:40800, unix:/run/lock.sock")?.len(), 2);
    /// # Ok::<(), distrilock_client::ParseServerError>(())
    /// ```
    pub fn parse_list(text: &str) -> Result<Vec<Self>, ParseServerError> {
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::parse).collect()
    }
}

impl FromStr for Server {
    type Err = ParseServerError;

    fn from_str(text: &str) -> Result<Self, ParseServerError> {
        let bad = |what| ParseServerError { text: text.escape_debug().take(200).collect(), what };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(bad("the path is missing")) } else { Ok(Self::Unix(path.into())) };
        }
        if let Some(rest) = text.strip_prefix("ws://") {
            let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
            let path = if path.is_empty() { WEBSOCKET_PATH } else { path };
            return Ok(Self::WebSocket { host: host_and_port(host).map_err(bad)?, path: path.into() });
        }
        let rest = text.strip_prefix("tcp://").unwrap_or(text);
        Ok(Self::Tcp(host_and_port(rest).map_err(bad)?))
    }
}

/// Whether a process listens on a Unix socket, and lets this one connect. A file that a daemon left
/// behind, or one for a group that the user is not in, says nothing about a daemon's TCP port. But
/// a daemon that listens and does not answer is the one to talk to: another one might use another
/// lock directory.
fn is_usable(path: &Path) -> bool {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let connected = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .and_then(|socket| connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &UnixAddr::new(path)?));
    use Errno::{EACCES, ECONNREFUSED, ELOOP, ENOENT, ENOTDIR, EPERM, EPROTOTYPE};
    !matches!(connected, Err(EACCES | ECONNREFUSED | ELOOP | ENOENT | ENOTDIR | EPERM | EPROTOTYPE))
}

/// Takes `HOST:PORT` apart, as it was checked. The brackets of an IPv6 address go; its zone stays,
/// which getaddrinfo(3) understands only without them.
pub(crate) fn host_and_port_of(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    Some((inner.unwrap_or(host), port.parse().ok()?))
}

/// Checks `HOST:PORT`; an IPv6 address needs brackets.
fn host_and_port(text: &str) -> Result<String, &'static str> {
    let (host, port) = text.rsplit_once(':').ok_or("the port is missing")?;
    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err("the port is not a number from 1 to 65535");
    }
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match inner.unwrap_or(host) {
        "" => Err("the host is missing"),
        name if name.contains(['/', '@', '[', ']', ' ']) || name.contains(char::is_control) => {
            Err("the host has a character that host names cannot have")
        }
        name if name.contains(':') && inner.is_none() => Err("an IPv6 address needs brackets"),
        _ => Ok(text.to_owned()),
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host) => write!(f, "tcp://{host}"),
            Self::WebSocket { host, path } => write!(f, "ws://{host}{path}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host is looked up without its brackets, and with its zone.
    #[test]
    fn hosts_and_ports() {
        assert_eq!(host_and_port_of("db1:40800"), Some(("db1", 40800)));
        assert_eq!(host_and_port_of("[fe80::1%eth0]:1"), Some(("fe80::1%eth0", 1)));
    }

    /// A socket is usable while a process listens on it, even one that does not accept; a file that
    /// was left behind, no socket, and none at all are not.
    #[test]
    fn usable_sockets() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        assert!(!is_usable(&path));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        for _ in 0..2000 {
            assert!(is_usable(&path), "however long its queue is");
        }
        drop(listener);
        assert!(path.exists() && !is_usable(&path), "nobody listens any more");
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(!is_usable(&folder.path().join("file")));
    }

    /// What is written can be read again, and errors name what is wrong.
    #[test]
    fn servers_are_read() {
        for (text, shown) in [
            ("db1:40800", "tcp://db1:40800"),
            ("tcp://[::1]:1", "tcp://[::1]:1"),
            ("ws://a.b:40801", "ws://a.b:40801/distrilock"),
            ("ws://a.b:40801/x/y", "ws://a.b:40801/x/y"),
            ("unix:/run/a", "unix:/run/a"),
            ("unix:///run/a", "unix:/run/a"),
            ("unix:a b", "unix:a b"),
        ] {
            let server: Server = text.parse().unwrap();
            assert_eq!(server.to_string(), shown);
            assert_eq!(shown.parse(), Ok(server));
        }
        for (text, part) in [
            ("db1", "port is missing"),
            ("db1:0", "1 to 65535"),
            ("http://db1:80", "host names cannot have"),
            ("wss://db1:80", "host names cannot have"),
            (":1", "host is missing"),
            ("::1:80", "brackets"),
            ("unix:", "path is missing"),
            ("a\nb:1", "host names cannot have"),
            ("", "port is missing"),
        ] {
            let error = text.parse::<Server>().unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{text:?}: {error}");
        }
    }
}
