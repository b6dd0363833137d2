//! What the daemon is told on its command line, and where that comes from if it is not told.

use distrilock_engine::limits::SHARDS;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::limits;

/// Gives named, distributed locks to every host that can mount a directory.
///
/// Each connection is a session, and a lock lives exactly as long as its session. Each lock is an fcntl lock on one file in the
/// lock directory, so that daemons which use the same directory exclude each other.
#[derive(Clone, Debug, Parser)]
#[command(
    version,
    name = "distrilockd",
    after_help = "The manual is docs/distrilockd.md, and docs/protocol.md describes the protocol."
)]
pub struct Settings {
    /// Where the lock files are. Default: $STATE_DIRECTORY, else distrilock in the user's state folder, which is created
    #[arg(short, long, value_name = "DIR")]
    pub directory: Option<PathBuf>,

    /// Listen here for TCP (IP:PORT, port 0 for any) or at unix:PATH; repeatable. Default without sockets passed by systemd:
    /// 127.0.0.1:40800
    #[arg(short = 'a', long, alias = "address", value_name = "ADDR")]
    pub tcp: Vec<Address>,

    /// Listen here for WebSocket, path /distrilock; repeatable. Default without sockets passed by systemd: 127.0.0.1:40801
    #[arg(long, value_name = "ADDR")]
    pub ws: Vec<Address>,

    /// How long a released lock file is kept open for the next acquire, in seconds, before it is deleted; 0: not at all.
    /// Default: 2, on a network file system 60
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub linger: Option<Duration>,

    /// How long a peer may be silent to keep-alive probes and to data, in seconds, before its session ends
    #[arg(long, value_name = "SECONDS", default_value = "45", value_parser = dead_after)]
    pub dead_after: Duration,

    /// How long a call on a network file system may take, in seconds, before the requests that wait for it are refused
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = storage_timeout)]
    pub storage_timeout: Duration,

    /// After how much silence of an NFS server, in seconds, locks count as lost. Default: two thirds of its lease time
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub storage_silence: Option<Duration>,

    /// What becomes of held locks then: fence, they are lost, and their sessions are told; or ride-through, they stay, although
    /// the server may give them away
    #[arg(long, value_name = "POLICY", value_enum, default_value = "fence")]
    pub on_storage_silence: OnSilence,

    /// How long a holder may take to stop its work when its lock is lost, in seconds. Default: a sixth of the lease time, at
    /// most 10
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub stop_time: Option<Duration>,

    /// Examine the lock directory, say what is right and wrong with it, and exit: 0 all is well, 1 with warnings, 2 unsafe
    #[arg(long)]
    pub check: bool,

    /// How many sessions there may be at once
    #[arg(long, value_name = "N", default_value_t = limits::SESSIONS_MAX)]
    pub sessions: usize,

    /// How many locks a session may hold or be acquiring at once
    #[arg(long, value_name = "N", default_value_t = limits::LOCKS_PER_SESSION_MAX)]
    pub locks_per_session: usize,

    /// How many requests of a session may wait at once
    #[arg(long, value_name = "N", default_value_t = limits::WAITS_PER_SESSION_MAX)]
    pub waits_per_session: usize,

    /// How many bytes may wait for a client to read them before its session is closed
    #[arg(long, value_name = "BYTES", default_value_t = limits::OUTBOX_BYTES_MAX)]
    pub outbox_bytes: usize,

    /// Accept WebSocket connections from pages of this origin, SCHEME://HOST, repeatable; * for any. Default: only
    /// those whose Origin is the Host that they asked for
    #[arg(long, value_name = "ORIGIN")]
    pub allow_origin: Vec<String>,

    /// How many threads serve sessions. Default: one for every two processors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,

    /// What is logged: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log: tracing::Level,
}

/// What becomes of held locks when an NFS server is silent for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnSilence {
    /// They are lost.
    Fence,
    /// They stay, come what may.
    RideThrough,
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
        // The original takes ":40800" for "every address of this host".
        let all = text.starts_with(':').then(|| format!("[::]{text}"));
        let address = all.as_deref().unwrap_or(text).replace("localhost:", "127.0.0.1:");
        let remedy = "it has to be IP:PORT, as in 127.0.0.1:40800 or [::1]:40800, or :PORT, or unix:PATH";
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

    /// How many threads serve sessions: half of the processors unless told otherwise, since one thread serves what most
    /// hosts ask for, and the rest of a host has work to do, too.
    #[must_use]
    pub fn threads(&self) -> usize {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.threads.map_or((processors / 2).clamp(1, SHARDS), usize::from)
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    const SECONDS_MAX: f64 = 86_400.0;
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=SECONDS_MAX).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("it has to be a number of seconds from 0 to {SECONDS_MAX}")),
    }
}

fn storage_timeout(text: &str) -> Result<Duration, String> {
    seconds(text).and_then(|time| if time.is_zero() { Err("it has to be more than 0".into()) } else { Ok(time) })
}

fn dead_after(text: &str) -> Result<Duration, String> {
    // Keep-alive times are whole seconds (tcp(7)), and it takes an idle time and a probe to find out.
    seconds(text).and_then(|time| {
        let enough = time >= Duration::from_secs(3);
        if enough { Ok(time) } else { Err("it has to be at least 3 seconds".into()) }
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

    /// What is out of range is refused with the range.
    #[test]
    fn numbers_out_of_range() {
        for (flag, part) in [
            ("--linger=-1", "from 0 to"),
            ("--linger=x", "from 0 to"),
            ("--dead-after=1", "at least 3"),
            ("--tcp=nowhere", "IP:PORT"),
            ("--log=loud", "loud"),
        ] {
            let error = Settings::try_parse_from(["distrilockd", flag]).unwrap_err().to_string();
            assert!(error.contains(part), "{flag}: {error}");
        }
    }
}
