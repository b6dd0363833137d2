//! The command line of the daemon, and its defaults.

use distrilock_engine::limits::SHARDS;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::limits;

/// Named, distributed locks for every host that can mount a directory
///
/// Each connection is a session, and a lock lasts exactly as long as its session. Each lock is an
/// fcntl lock on one file in the lock directory, so that daemons that use the same directory
/// exclude each other.
#[derive(Clone, Debug, Parser)]
#[command(
    version,
    name = "distrilockd",
    after_help = "See docs/distrilockd.md for the manual and docs/protocol.md for the protocol."
)]
pub struct Settings {
    /// Directory of the lock files. Default: $STATE_DIRECTORY, or distrilock in the user's state
    /// folder, which is created
    #[arg(short, long, value_name = "DIR")]
    pub directory: Option<PathBuf>,

    /// Listen for TCP at IP:PORT (port 0: any), or at unix:PATH; repeatable. Default, if systemd
    /// passes no sockets: 127.0.0.1:40800
    #[arg(short = 'a', long, alias = "address", value_name = "ADDR")]
    pub tcp: Vec<Address>,

    /// Listen for WebSocket, path /distrilock, at this address; repeatable. Default, if systemd
    /// passes no sockets: 127.0.0.1:40801
    #[arg(long, value_name = "ADDR")]
    pub ws: Vec<Address>,

    /// How long to keep a released lock file open for the next acquire before deleting it, in
    /// seconds; 0: not at all. Default: 2, or 60 on a network file system
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub linger: Option<Duration>,

    /// How long a peer may leave keep-alive probes and data unacknowledged before its session ends,
    /// in seconds
    #[arg(long, value_name = "SECONDS", default_value = "45", value_parser = dead_after)]
    pub dead_after: Duration,

    /// How long a call on a network file system may take before the requests that wait for it are
    /// refused, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = storage_timeout)]
    pub storage_timeout: Duration,

    /// How long an NFS server may be silent before locks count as lost, in seconds. Default: two
    /// thirds of its lease time
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub storage_silence: Option<Duration>,

    /// What happens to held locks then: with fence, they are lost, and their sessions are told;
    /// with ride-through, they are kept, although the server may give them away
    #[arg(long, value_name = "POLICY", value_enum, default_value = "fence")]
    pub on_storage_silence: OnSilence,

    /// How long a holder may take to stop its work when its lock is lost, in seconds. Default: a
    /// sixth of the lease time, at most 10
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub stop_time: Option<Duration>,

    /// Examine the lock directory, report what is right and wrong with it, and exit: 0 if all is
    /// well, 1 with warnings, 2 if unsafe
    #[arg(long)]
    pub check: bool,

    /// Maximum number of sessions
    #[arg(long, value_name = "N", default_value_t = limits::SESSIONS_MAX)]
    pub sessions: usize,

    /// Maximum number of locks that all sessions together hold or are acquiring, beyond 16 that
    /// each may always have
    #[arg(long, value_name = "N", default_value_t = limits::LOCKS_MAX)]
    pub locks: usize,

    /// Maximum number of waiting requests of all sessions together, beyond 16 that each may always
    /// have
    #[arg(long, value_name = "N", default_value_t = limits::WAITS_MAX)]
    pub waits: usize,

    /// Maximum number of locks that a session holds or is acquiring
    #[arg(long, value_name = "N", default_value_t = limits::LOCKS_PER_SESSION_MAX)]
    pub locks_per_session: usize,

    /// Maximum number of waiting requests of a session
    #[arg(long, value_name = "N", default_value_t = limits::WAITS_PER_SESSION_MAX)]
    pub waits_per_session: usize,

    /// How many unread bytes a client may leave before its session is closed
    #[arg(long, value_name = "BYTES", default_value_t = limits::OUTBOX_BYTES_MAX)]
    pub outbox_bytes: usize,

    /// How many bytes of incomplete messages and unread output the daemon keeps for all sessions
    /// together, beyond 4,096 that each may always have
    #[arg(long, value_name = "BYTES", default_value_t = limits::BUFFER_BYTES_MAX)]
    pub buffer_bytes: usize,

    /// Answer WebSocket requests for this host name, as a proxy or a name server calls this host;
    /// repeatable. IP addresses, localhost and the host's own names need none
    #[arg(long, value_name = "HOST", value_parser = host)]
    pub allow_host: Vec<String>,

    /// Accept WebSocket connections from pages of this origin, SCHEME://HOST, or * for any;
    /// repeatable. Default: only pages whose Origin is the Host of their request
    #[arg(long, value_name = "ORIGIN")]
    pub allow_origin: Vec<String>,

    /// Do not show other daemons of the lock directory who holds the locks of this one
    #[arg(long)]
    pub no_board: bool,

    /// Number of threads that serve sessions. Default: one for every two processors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,

    /// What the log keeps for distrilock history, whatever the log level: with locks, what was held
    /// or waited for at least a second, and losses; with all, every grant, release and session;
    /// with off, nothing
    #[arg(long, value_name = "WHAT", value_enum, default_value = "locks")]
    pub audit: Audit,

    /// Log level: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log: tracing::Level,
}

/// What happens to held locks when an NFS server is silent for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnSilence {
    /// They are lost.
    Fence,
    /// They are kept, whatever happens.
    RideThrough,
}

/// What the log keeps of who held which lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Audit {
    /// Nothing.
    Off,
    /// Locks that were held or waited for at least
    /// [`HISTORY_FROM_MS`](limits::HISTORY_FROM_MS), and losses.
    Locks,
    /// Every grant and every release, and the ends of sessions.
    All,
}

impl Audit {
    /// How long a lock has to be held or waited for, in milliseconds.
    #[must_use]
    pub fn from_ms(self) -> u64 {
        match self {
            Self::Off => u64::MAX,
            Self::Locks => limits::HISTORY_FROM_MS,
            Self::All => 0,
        }
    }
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// At this IP address and port.
    Tcp(SocketAddr),
    /// At this path.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err("the path after unix: is missing".into())
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        // Like the original: ":40800" means every address of this host.
        let all = text.starts_with(':').then(|| format!("[::]{text}"));
        let address = all.as_deref().unwrap_or(text).replace("localhost:", "127.0.0.1:");
        let remedy = "it must be IP:PORT, as in 127.0.0.1:40800 or [::1]:40800, or :PORT, or unix:PATH";
        address.parse().map(Self::Tcp).map_err(|_| remedy.into())
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Settings {
    /// The defaults, with this lock directory.
    #[must_use]
    pub fn for_directory(directory: Option<PathBuf>) -> Self {
        Self { directory, ..Self::parse_from(["distrilockd"]) }
    }

    /// How many threads serve sessions. By default half as many as processors: one thread is enough
    /// for most hosts, and a host has other work to do.
    #[must_use]
    pub fn threads(&self) -> usize {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.threads.map_or((processors / 2).clamp(1, SHARDS), usize::from)
    }
}

fn host(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if !name.is_empty() && name.chars().all(fits) {
        Ok(name.to_owned())
    } else {
        Err("it must be a host name, without scheme, port and path, as in locks.example.com".into())
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    const SECONDS_MAX: f64 = 86_400.0;
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=SECONDS_MAX).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("it must be a number of seconds from 0 to {SECONDS_MAX}")),
    }
}

fn storage_timeout(text: &str) -> Result<Duration, String> {
    seconds(text).and_then(|time| if time.is_zero() { Err("it must be more than 0".into()) } else { Ok(time) })
}

fn dead_after(text: &str) -> Result<Duration, String> {
    // Keep-alive times are whole seconds (tcp(7)), and finding out takes an idle time and probes.
    seconds(text).and_then(|time| {
        let enough = time >= Duration::from_secs(3);
        if enough { Ok(time) } else { Err("it must be at least 3 seconds".into()) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The command line of the original is understood.
    #[test]
    fn the_originals_flags() {
        let settings = Settings::try_parse_from(["distrilockd", "-a", ":40800", "-d", "/locks"]).unwrap();
        assert_eq!(settings.tcp, [Address::Tcp("[::]:40800".parse().unwrap())]);
        assert_eq!(settings.directory, Some("/locks".into()));
    }

    /// A number out of range is refused, and the message gives the range.
    #[test]
    fn numbers_out_of_range() {
        for (flag, part) in [
            ("--linger=-1", "from 0 to"),
            ("--linger=x", "from 0 to"),
            ("--dead-after=1", "at least 3"),
            ("--tcp=nowhere", "IP:PORT"),
            ("--log=loud", "loud"),
            ("--allow-host=http://locks.example", "without scheme"),
            ("--allow-host=locks.example:80", "without scheme"),
        ] {
            let error = Settings::try_parse_from(["distrilockd", flag]).unwrap_err().to_string();
            assert!(error.contains(part), "{flag}: {error}");
        }
    }
}
