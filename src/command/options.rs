//! The command line: what `distrilock` can be asked, as clap(1) understands it and prints it in --help and the man pages.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use nix::sys::signal::Signal;

use super::contradiction::Contradiction;
use super::status;
use super::storage::{Doctor, Gc};
use super::values::{self, BadValue, Lease, Names, OnLost};
use distrilock_client::Server;
use distrilock_protocol::limits::{HELLO_NOTE_BYTES_MAX, LOCKS_PER_REQUEST_MAX, SLOTS_MAX};

/// Runs commands under named locks that a distrilockd keeps, and tells who holds and who waits.
#[derive(Debug, Parser)]
#[command(
    version,
    name = "distrilock",
    after_help = "The manual is docs/distrilock.md; distrilock VERB --help tells more."
)]
pub(super) struct CommandLine {
    /// Where the daemon is: tcp://HOST:PORT, ws://HOST:PORT or unix:PATH; repeatable, tried in turn. Default:
    /// $DISTRILOCK_SERVER, else the local socket if it is there, else tcp://127.0.0.1:40800
    #[arg(long = "server", global = true, value_name = "ADDRESS", value_parser = |text: &str| text.parse::<Server>())]
    pub(super) servers: Vec<Server>,

    #[command(subcommand)]
    pub(super) verb: Verb,
}

/// What is to be done.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Run a command while a lock is held, and end all that it started if the lock is lost
    Run(Box<Run>),
    /// Hold a lock until the end of the input or a signal, and print what is held as a line of JSON
    Lock(Hold),
    /// Like lock, but without waiting
    Try(Hold),
    /// Within run: ask whether the lock is still held, and real: status 0 if it is, 74 if it is lost
    Verify(Verify),
    /// Tell whether a lock is held, and by whom: status 0 if it is free, 1 if it is held
    Peek(Peek),
    /// List the daemon's locks, with who holds them and who waits
    Ls(Ls),
    /// Wait until a lock is free, without taking it
    Wait(Wait),
    /// Ask whether the daemon answers, and how fast
    Ping,
    /// Check a fence against the highest one seen for a file, and record it
    Fence(Fence),
    /// Load the daemon with pairs of acquire and release, and print how many there were and how long they took
    Bench(Bench),
    /// Examine a lock directory: status 0 all is well, 1 with warnings, 2 unsafe
    Doctor(Doctor),
    /// Delete lock files in a directory that nobody uses
    Gc(Gc),
    /// Print the completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a folder
    #[command(hide = true)]
    Man {
        /// The folder
        directory: PathBuf,
    },
}

/// Which locks, how, and for how long to wait for them.
#[derive(Args, Clone, Debug)]
pub(super) struct Asking {
    /// Take the lock for this one holder alone; the default
    #[arg(short = 'x', short_alias = 'e', long, conflicts_with = "shared")]
    exclusive: bool,

    /// Take the lock together with others that take it so
    #[arg(short, long)]
    pub(super) shared: bool,

    /// Do not wait: fail if the lock is not free
    #[arg(short, long = "nonblock", visible_aliases = ["nb", "nonblocking"], conflicts_with = "wait")]
    pub(super) nonblock: bool,

    /// Wait for at most this time: seconds, or with a unit, as in 500ms, 10s, 5m, 2h; 0 is the same as -n
    #[arg(short, long, visible_alias = "timeout", value_name = "TIME", value_parser = values::time)]
    pub(super) wait: Option<Duration>,

    /// The exit status if the lock is held by others or the wait runs out. Default: 1
    #[arg(short = 'E', long, value_name = "STATUS")]
    pub(super) conflict_exit_code: Option<u8>,

    /// Take one of N slots of NAME; all that use the name have to agree on N
    #[arg(short = 'N', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(SLOTS_MAX)))]
    pub(super) slots: Option<u16>,

    /// Take COUNT of the TOTAL slots of RES as well; repeatable. All locks are taken together, or none
    #[arg(long = "lease", value_name = "RES=COUNT:TOTAL")]
    pub(super) leases: Vec<Lease>,

    /// Ask for a fence: a number that only rises for its name
    #[arg(long)]
    pub(super) fence: bool,

    /// What others see of this session beside its name
    #[arg(long, value_name = "TEXT", value_parser = note)]
    pub(super) note: Option<String>,

    /// Say on stderr how long it took to get the lock, or why it was not to be had
    #[arg(long)]
    pub(super) verbose: bool,
}

impl Asking {
    /// Whether the request may wait.
    pub(super) fn waits(&self) -> bool {
        !self.nonblock && self.wait != Some(Duration::ZERO)
    }

    /// The exit status for who does not get the lock.
    pub(super) fn busy_status(&self) -> u8 {
        self.conflict_exit_code.unwrap_or(status::BUSY)
    }

    /// What clap cannot check.
    pub(super) fn check(&self, names: &Names) -> Result<(), Contradiction> {
        let leased = self.leases.iter().map(|lease| &lease.name);
        let all: Vec<_> = names.0.iter().chain(leased).collect();
        if let Some(twice) = all.iter().enumerate().find_map(|(n, name)| all[..n].contains(name).then_some(*name)) {
            return Err(BadValue::Twice(twice.clone()).into());
        }
        if all.len() > LOCKS_PER_REQUEST_MAX {
            return Err(BadValue::TooMany(all.len()).into());
        }
        if self.slots.is_some() && names.0.len() > 1 {
            return Err(Contradiction::SlotsOfSeveral);
        }
        if self.shared && (self.slots.is_some() || !self.leases.is_empty()) {
            return Err(Contradiction::SharedSlots);
        }
        Ok(())
    }
}

fn note(text: &str) -> Result<String, Contradiction> {
    if text.len() > HELLO_NOTE_BYTES_MAX || text.contains(char::is_control) {
        return Err(Contradiction::Note);
    }
    Ok(text.to_owned())
}

fn names() -> impl TypedValueParser<Value = Names> {
    OsStringValueParser::new().try_map(|text| Names::parse(&text))
}

/// The options of `run`.
#[derive(Args, Clone, Debug)]
#[command(
    override_usage = "distrilock run [OPTIONS] NAME[,NAME...] [--] CMD [ARG]...\n       distrilock run [OPTIONS] NAME[,NAME...] -c STRING"
)]
pub(super) struct Run {
    #[command(flatten)]
    pub(super) asking: Asking,

    /// Release the lock when CMD itself ends, though processes that it started go on
    #[arg(short = 'o', long = "close")]
    pub(super) close: bool,

    /// Become CMD, without a process that watches over it: it inherits the connection, and the lock lives as long as any
    /// process has that. Nothing ends CMD if the lock is lost
    #[arg(short = 'F', long, conflicts_with_all = [
        "close", "on_lost", "kill_after", "term_signal", "max_hold", "min_hold", "once_per", "run_anyway", "lost_exit_code",
    ])]
    pub(super) no_fork: bool,

    /// Run this string by $SHELL, else by /bin/sh
    #[arg(short, long, value_name = "STRING")]
    command: Option<OsString>,

    /// What to do when the lock is lost: kill (end everything that CMD started), signal:SIG, or warn. Default: kill
    #[arg(long, value_name = "WHAT")]
    pub(super) on_lost: Option<OnLost>,

    /// How long what is to end has between the first signal and SIGKILL. Default: 5 seconds
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    pub(super) kill_after: Option<Duration>,

    /// The first signal. Default: TERM
    #[arg(long, value_name = "SIG", value_parser = values::signal)]
    pub(super) term_signal: Option<Signal>,

    /// End CMD after it has had the lock for this time, with status 124
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    pub(super) max_hold: Option<Duration>,

    /// Keep the lock for at least this time, also if CMD ends before
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    pub(super) min_hold: Option<Duration>,

    /// Wait for a random time of at most this before anything else
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    pub(super) jitter: Option<Duration>,

    /// Exit with status 0 if the lock is held by others or the wait runs out
    #[arg(long, conflicts_with = "conflict_exit_code")]
    ok_if_busy: bool,

    /// Run CMD without the lock if it is not to be had
    #[arg(long, conflicts_with_all = ["once_per", "ok_if_busy"])]
    pub(super) run_anyway: bool,

    /// Run CMD only if none has begun under this name within this time, on any host; else exit with status 0. The lock is kept
    /// that long, in the background
    #[arg(long, value_name = "TIME", value_parser = values::time, conflicts_with_all = ["wait", "shared", "min_hold", "slots", "leases"])]
    pub(super) once_per: Option<Duration>,

    /// Do nothing, with status 0, unless this host goes by one of these names; * and ? stand for any characters
    #[arg(long, value_name = "HOST[,HOST...]", value_delimiter = ',')]
    pub(super) only_on: Vec<String>,

    /// Do not tell others what CMD is
    #[arg(long)]
    pub(super) no_argv: bool,

    /// Give CMD an empty input instead of ours
    #[arg(long)]
    pub(super) no_stdin: bool,

    /// The exit status if the lock is lost while CMD runs. Default: 74
    #[arg(long, value_name = "STATUS")]
    lost_exit_code: Option<u8>,

    /// The exit status if no daemon is reached. Default: 68
    #[arg(long, value_name = "STATUS")]
    unreachable_exit_code: Option<u8>,

    /// The names of the locks, separated by commas: all are taken, or none. A name with a slash in it is a path, as for flock(1),
    /// and makes the name of a lock
    #[arg(value_name = "NAME[,NAME...]", value_parser = names())]
    pub(super) names: Names,

    /// What to run, and its arguments; or -c STRING
    #[arg(value_name = "CMD", trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

impl Run {
    /// How long what is to end has before it is killed.
    pub(super) fn kill_after(&self) -> Duration {
        self.kill_after.unwrap_or(Duration::from_secs(5))
    }

    pub(super) fn busy_status(&self) -> u8 {
        if self.ok_if_busy || (self.once_per.is_some() && self.asking.conflict_exit_code.is_none()) {
            return status::DONE;
        }
        self.asking.busy_status()
    }

    pub(super) fn lost_status(&self) -> u8 {
        self.lost_exit_code.unwrap_or(status::LOST)
    }

    pub(super) fn unreachable_status(&self) -> u8 {
        self.unreachable_exit_code.unwrap_or(status::UNREACHABLE)
    }

    /// CMD and its arguments: as they stand there, or by a shell.
    pub(super) fn words(&self) -> Result<Vec<OsString>, Contradiction> {
        let words =
            if self.words.first().is_some_and(|first| first == "--") { &self.words[1..] } else { &self.words[..] };
        let by_shell = |string: &OsStr| {
            let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty()).unwrap_or("/bin/sh".into());
            vec![shell, "-c".into(), string.to_owned()]
        };
        let first = words.first().map(|first| first.to_string_lossy());
        match (&self.command, first.as_deref(), words) {
            (Some(string), None, _) => Ok(by_shell(string)),
            (None, Some("-c" | "--command"), [_, string]) => Ok(by_shell(string)),
            (Some(_), Some(_), _) | (None, Some("-c" | "--command"), _) => Err(Contradiction::OneString),
            (None, Some(late), _) if late.starts_with('-') && words.len() == self.words.len() => {
                Err(Contradiction::LateOption(late.to_owned()))
            }
            (None, Some(_), _) => Ok(words.to_vec()),
            (None, None, _) => match &self.names.0[..] {
                [name] if name.as_str().bytes().all(|byte| byte.is_ascii_digit()) => {
                    Err(Contradiction::Descriptor(name.to_string()))
                }
                _ => Err(Contradiction::NoCommand),
            },
        }
    }
}

/// The options of `lock` and `try`.
#[derive(Args, Clone, Debug)]
pub(super) struct Hold {
    #[command(flatten)]
    pub(super) asking: Asking,

    /// The names of the locks, separated by commas: all are taken, or none
    #[arg(value_name = "NAME[,NAME...]", value_parser = names())]
    pub(super) names: Names,
}

/// The options of `verify`.
#[derive(Args, Clone, Debug)]
pub(super) struct Verify {
    /// The names that have to be among those that the distrilock run around this command holds. Default: any
    #[arg(value_name = "NAME[,NAME...]", value_parser = names())]
    pub(super) names: Option<Names>,
}

/// The options of `peek`.
#[derive(Args, Clone, Debug)]
pub(super) struct Peek {
    /// Print what the daemon says as a line of JSON
    #[arg(long)]
    pub(super) json: bool,

    /// The name of the lock
    #[arg(value_name = "NAME", value_parser = names())]
    pub(super) names: Names,
}

/// The options of `ls`.
#[derive(Args, Clone, Debug)]
pub(super) struct Ls {
    /// Print a line of JSON for each lock
    #[arg(long)]
    pub(super) json: bool,

    /// List again every second, until a signal
    #[arg(long)]
    pub(super) watch: bool,
}

/// The options of `wait`.
#[derive(Args, Clone, Debug)]
pub(super) struct Wait {
    /// Wait for at most this time
    #[arg(short, long, visible_alias = "timeout", value_name = "TIME", value_parser = values::time)]
    pub(super) wait: Option<Duration>,

    /// The exit status if the wait runs out. Default: 1
    #[arg(short = 'E', long, value_name = "STATUS", default_value_t = status::BUSY, hide_default_value = true)]
    pub(super) conflict_exit_code: u8,

    /// The name of the lock
    #[arg(value_name = "NAME", value_parser = names())]
    pub(super) names: Names,
}

/// The options of `fence`.
#[derive(Args, Clone, Debug)]
pub(super) struct Fence {
    /// The exit status if a higher fence was seen. Default: 1
    #[arg(short = 'E', long, value_name = "STATUS", default_value_t = status::BUSY, hide_default_value = true)]
    pub(super) conflict_exit_code: u8,

    /// The file that is guarded; it need not be there. What was seen is kept beside it, in FILE.fence
    pub(super) file: PathBuf,

    /// The fence, as in $DISTRILOCK_FENCE
    pub(super) number: u64,

    /// A command to run if the fence is high enough; until it ends, no other fence is checked for the file
    #[arg(value_name = "CMD", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) command: Vec<OsString>,
}

/// The options of `bench`.
#[derive(Args, Clone, Debug)]
pub(super) struct Bench {
    /// How many connections, each with a lock of its own
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(super) connections: u16,

    /// For how long
    #[arg(long, value_name = "TIME", default_value = "5", value_parser = values::time)]
    pub(super) seconds: Duration,

    /// Let all connections want one lock
    #[arg(long)]
    pub(super) contended: bool,
}
