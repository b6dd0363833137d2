//! The values of options: times, leases, signals, and names as people write them. Each type can
//! only be built valid.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::paths::resolve;
use distrilock_protocol::limits::{LOCKS_PER_REQUEST_MAX, SLOTS_MAX};
use distrilock_protocol::name::{LockName, NAME_BYTES_MAX, NameError};

/// The longest time that an option accepts: a year.
const SECONDS_MAX: f64 = 365.0 * 86_400.0;

/// Why the value of an option is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ValueError {
    #[error(
        "expected a time from 0 to a year: seconds, as in 90 or 0.5, or a number with a unit, as in 500ms, 10s, 5m, 2h, 1d"
    )]
    Time,
    #[error("expected RES=COUNT:TOTAL, with COUNT from 1 to TOTAL and TOTAL at most {SLOTS_MAX}, as in licence=1:4")]
    Lease,
    #[error("{0}")]
    Name(#[from] NameError),
    #[error("the path \"{}\" makes a lock name of {bytes} bytes, but {NAME_BYTES_MAX} is the maximum: use a shorter path", .shown.escape_debug())]
    LongPath { shown: String, bytes: usize },
    #[error("the path \"{}\" stands for no file: {}; create the folder, or use a lock name without a slash", .shown.escape_debug(), .why.escape_debug())]
    Path { shown: String, why: String },
    #[error("the name {0} is given twice")]
    Twice(LockName),
    #[error("{0} names are given, but at most {LOCKS_PER_REQUEST_MAX} can be taken at once")]
    TooMany(usize),
    #[error("expected the name of a signal, as in TERM, or its number from 1 to 31")]
    Signal,
    #[error("expected kill, signal:SIG or warn")]
    OnLost,
}

/// Parses a time: seconds, or a number with a unit.
pub(super) fn time(text: &str) -> Result<Duration, ValueError> {
    const UNITS: [(&str, f64); 5] = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86_400.0)];
    let unit = UNITS.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, *seconds)));
    let (number, seconds) = unit.unwrap_or((text, 1.0));
    // parse() accepts words such as "inf" as well.
    let plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds = number.parse::<f64>().ok().filter(|_| plain).map(|number| number * seconds);
    match seconds {
        Some(seconds) if (0.0..=SECONDS_MAX).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(ValueError::Time),
    }
}

/// Some of the slots of a name, as `--lease` asks for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SlotLease {
    pub(super) name: LockName,
    pub(super) take: u16,
    pub(super) slots: u16,
}

impl FromStr for SlotLease {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (name, numbers) = text.split_once('=').ok_or(ValueError::Lease)?;
        let (take, slots) = numbers.split_once(':').ok_or(ValueError::Lease)?;
        let number = |text: &str| text.parse::<u16>().ok().filter(|number| (1..=SLOTS_MAX).contains(number));
        let (take, slots) = (number(take).ok_or(ValueError::Lease)?, number(slots).ok_or(ValueError::Lease)?);
        if take > slots {
            return Err(ValueError::Lease);
        }
        Ok(Self { name: LockName::parse(name.as_bytes())?, take, slots })
    }
}

/// Parses a signal: its name, with or without SIG, or its number.
pub(super) fn signal(text: &str) -> Result<Signal, ValueError> {
    if let Ok(number) = text.parse::<i32>() {
        return Signal::try_from(number).map_err(|_| ValueError::Signal);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    format!("SIG{name}").parse().map_err(|_| ValueError::Signal)
}

/// What to do about CMD when the lock is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnLost {
    /// End CMD and everything it started.
    Kill,
    /// Send this signal to CMD's process group, and let it go on.
    Signal(Signal),
    /// Only print a message.
    Warn,
}

impl FromStr for OnLost {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.split_once(':') {
            None if text == "kill" => Ok(Self::Kill),
            None if text == "warn" => Ok(Self::Warn),
            Some(("signal", name)) => signal(name).map(Self::Signal),
            _ => Err(ValueError::OnLost),
        }
    }
}

/// The names in `NAME[,NAME...]`. A name with a slash in it is a path, as flock(1) takes it, and
/// stands for the lock name that [`name_of_path`] makes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names(pub(super) Vec<LockName>);

impl Names {
    pub(super) fn parse(text: &OsStr) -> Result<Self, ValueError> {
        let mut names = Vec::new();
        for part in text.as_bytes().split(|byte| *byte == b',') {
            let name = if part.contains(&b'/') {
                name_of_path(Path::new(OsStr::from_bytes(part)))?
            } else {
                LockName::parse(part)?
            };
            if names.contains(&name) {
                return Err(ValueError::Twice(name));
            }
            names.push(name);
        }
        if names.len() > LOCKS_PER_REQUEST_MAX {
            return Err(ValueError::TooMany(names.len()));
        }
        Ok(Self(names))
    }
}

/// Makes a lock name from a path. In the path that is left when all links are followed, each `/`
/// becomes `__`; each byte that cannot be in a lock name, and `_` itself, becomes `_` and two
/// hexadecimal digits. Different files have different names, and a file has the same name in every
/// directory, by every way that leads to it, and on every host where it has the same place.
pub(super) fn name_of_path(path: &Path) -> Result<LockName, ValueError> {
    let shown = || path.to_string_lossy().chars().take(80).collect();
    let resolved = resolve(path).map_err(|error| ValueError::Path { shown: shown(), why: error.to_string() })?;
    let mut name = String::new();
    for byte in resolved.into_os_string().as_bytes() {
        match byte {
            b'/' => name.push_str("__"),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' => name.push(char::from(*byte)),
            other => name.push_str(&format!("_{other:02x}")),
        }
    }
    LockName::parse(name.as_bytes()).map_err(|_| ValueError::LongPath { shown: shown(), bytes: name.len() })
}

/// Whether a host matches one of these patterns, with its whole name or the part before the first
/// dot. `*` stands for any characters and `?` for one.
pub(super) fn host_matches(host: &str, patterns: &[String]) -> bool {
    let short = host.split('.').next().unwrap_or(host);
    patterns
        .iter()
        .any(|pattern| matches(pattern.as_bytes(), host.as_bytes()) || matches(pattern.as_bytes(), short.as_bytes()))
}

fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=text.len()).any(|skipped| matches(rest, &text[skipped..])),
        (Some((b'?', rest)), Some((_, more))) => matches(rest, more),
        (Some((wanted, rest)), Some((byte, more))) => wanted.eq_ignore_ascii_case(byte) && matches(rest, more),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times are seconds, as in flock(1), or have a unit.
    #[test]
    fn times() {
        for (text, ms) in [("0", 0), ("1.5", 1500), ("500ms", 500), ("10s", 10_000), ("5m", 300_000), ("2h", 7_200_000)]
        {
            assert_eq!(time(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(time("365d").unwrap().as_secs(), 365 * 86_400);
        for bad in ["", "s", "-1", "1w", "inf", "nan", "1e3", "366d", "1 s", "0x1"] {
            assert_eq!(time(bad), Err(ValueError::Time), "{bad}");
        }
    }

    /// A lease needs both numbers, in range and in order.
    #[test]
    fn leases() {
        let lease: SlotLease = "cpu=2:8".parse().unwrap();
        assert_eq!((lease.name.as_str(), lease.take, lease.slots), ("cpu", 2, 8));
        for bad in ["cpu", "cpu=2", "cpu=0:4", "cpu=5:4", "cpu=1:1025", "cpu=1:x", "cpu=-1:4"] {
            assert_eq!(bad.parse::<SlotLease>(), Err(ValueError::Lease), "{bad}");
        }
        assert!(matches!("a b=1:2".parse::<SlotLease>(), Err(ValueError::Name(_))));
    }

    /// Signals have the names that kill(1) knows.
    #[test]
    fn signals() {
        for text in ["TERM", "SIGTERM", "term", "15"] {
            assert_eq!(signal(text), Ok(Signal::SIGTERM), "{text}");
        }
        assert_eq!("signal:usr1".parse(), Ok(OnLost::Signal(Signal::SIGUSR1)));
        for bad in ["", "0", "99", "NONE", "SIG"] {
            assert_eq!(signal(bad), Err(ValueError::Signal), "{bad}");
        }
        assert_eq!("signal".parse::<OnLost>(), Err(ValueError::OnLost));
    }

    /// A path means the same lock wherever it is written, and no other path means that lock.
    #[test]
    fn paths_are_names() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("a")).unwrap();
        std::os::unix::fs::symlink("a", base.join("link")).unwrap();
        let name = |path: &str| name_of_path(&base.join(path)).unwrap().to_string();
        assert!(name("a_b c.lock").ends_with("__a_5fb_20c.lock"));
        assert_eq!(name("a//./../a/x/"), name("link/x"));
        let here = std::env::current_dir().unwrap();
        let relative = name_of_path(Path::new("./x")).unwrap();
        assert_eq!(relative, name_of_path(&here.join("x")).unwrap());
        assert_ne!(name("a_b"), name("a/b"));
        let long = Path::new("/").join("x".repeat(250));
        assert!(matches!(name_of_path(&long), Err(ValueError::LongPath { .. })));
        let error = name_of_path(&base.join("none/x")).unwrap_err().to_string();
        assert!(error.contains("there is no folder") && error.contains("without a slash"), "{error}");
    }

    /// Names are checked one by one.
    #[test]
    fn names() {
        let parse = |text: &str| Names::parse(OsStr::new(text));
        assert_eq!(parse("a,b").unwrap().0.len(), 2);
        assert!(matches!(parse("a,,b"), Err(ValueError::Name(NameError::Empty))));
        assert!(matches!(parse("a,b,a"), Err(ValueError::Twice(_))));
        let many: Vec<String> = (0..65).map(|n| n.to_string()).collect();
        assert_eq!(parse(&many.join(",")), Err(ValueError::TooMany(65)));
    }

    /// Hosts match with their whole name or their short one.
    #[test]
    fn hosts() {
        let matches = |host: &str, pattern: &str| host_matches(host, &[pattern.to_owned()]);
        assert!(matches("db1.example.org", "db1") && matches("db1.example.org", "DB?") && matches("db1", "*"));
        assert!(matches("db1.example.org", "*.example.org") && !matches("web1", "db*") && !matches("db12", "db?"));
    }
}
