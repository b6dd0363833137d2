//! The options of `run`.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use clap::Args;
use nix::sys::signal::Signal;

use super::acquire::AcquireOptions;
use crate::command::status;
use crate::command::usage_error::UsageError;
use crate::command::values::{self, OnLost};

/// Time to stop CMD beyond `--kill-after`: for the kernel, and for us.
pub(in crate::command) const STOP_MARGIN: Duration = Duration::from_secs(2);

/// The options of `run`.
#[derive(Args, Clone, Debug)]
#[command(
    override_usage = "distrilock run [OPTIONS] NAME[,NAME...] [--] CMD [ARG]...\n       distrilock run [OPTIONS] NAME[,NAME...] -c STRING"
)]
pub(in crate::command) struct RunOptions {
    #[command(flatten)]
    pub(in crate::command) acquire: AcquireOptions,

    /// Release the lock when CMD itself ends, even if processes that it started go on
    #[arg(short = 'o', long = "close")]
    pub(in crate::command) close: bool,

    /// Become CMD, without a process that supervises it: CMD inherits the connection, and the lock
    /// lasts as long as any process keeps it open. Nothing ends CMD if the lock is lost
    #[arg(short = 'F', long, conflicts_with_all = [
        "close", "on_lost", "kill_after", "term_signal", "max_hold", "min_hold", "once_per", "once_per_success", "run_anyway",
        "lost_exit_code",
    ])]
    pub(in crate::command) no_fork: bool,

    /// Run this string with $SHELL, or with /bin/sh if that is not set
    #[arg(short, long, value_name = "STRING")]
    command: Option<OsString>,

    /// What to do if the lock is lost: kill (end CMD and everything it started), signal:SIG or
    /// warn. Default: kill
    #[arg(long, value_name = "WHAT")]
    pub(in crate::command) on_lost: Option<OnLost>,

    /// Time from the first signal to SIGKILL when ending CMD. Default: 5 seconds, or less if the
    /// lease of the file server is short
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    pub(in crate::command) kill_after: Option<Duration>,

    /// The first signal when ending CMD. Default: TERM
    #[arg(long, value_name = "SIG", value_parser = values::signal)]
    pub(in crate::command) term_signal: Option<Signal>,

    /// End CMD when it has held the lock for this time, and exit with status 124
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    pub(in crate::command) max_hold: Option<Duration>,

    /// Keep the lock for at least this time, even if CMD ends earlier
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    pub(in crate::command) min_hold: Option<Duration>,

    /// First wait for a random time of at most this
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    pub(in crate::command) jitter: Option<Duration>,

    /// Exit with status 0 if the lock cannot be acquired in time
    #[arg(long, conflicts_with = "conflict_exit_code")]
    ok_if_busy: bool,

    /// Run CMD without the lock if it cannot be acquired
    #[arg(long, conflicts_with_all = ["once_per", "once_per_success", "ok_if_busy"])]
    pub(in crate::command) run_anyway: bool,

    /// Run CMD only if none was started under this name within this time, less a tenth, on any
    /// host; otherwise exit with status 0. The daemons keep the time of the last start in the lock
    /// directory. TIME is the period of the schedule: 1d for a daily job
    #[arg(long, value_name = "TIME", value_parser = values::time, conflicts_with_all = ["wait", "shared", "min_hold", "slots", "leases"])]
    once_per: Option<Duration>,

    /// The same, but only runs that ended with status 0 count: CMD runs again if it failed
    #[arg(long, value_name = "TIME", value_parser = values::time, conflicts_with_all = ["once_per", "wait", "shared", "min_hold", "slots", "leases"])]
    once_per_success: Option<Duration>,

    /// Do nothing and exit with status 0 unless the name of this host is in this list; * and ? are
    /// wildcards
    #[arg(long, value_name = "HOST[,HOST...]", value_delimiter = ',')]
    pub(in crate::command) only_on: Vec<String>,

    /// Do not show CMD to others
    #[arg(long)]
    pub(in crate::command) no_argv: bool,

    /// Give CMD an empty input
    #[arg(long)]
    pub(in crate::command) no_stdin: bool,

    /// Exit status if the lock is lost while CMD runs. Default: 74
    #[arg(long, value_name = "STATUS")]
    lost_exit_code: Option<u8>,

    /// Exit status if no daemon can be reached. Default: 68
    #[arg(long, value_name = "STATUS")]
    unreachable_exit_code: Option<u8>,

    /// The command to run and its arguments; or -c STRING
    #[arg(value_name = "CMD", trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

/// Which earlier runs keep CMD from running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::command) enum Once {
    /// Those that began within this time.
    PerStart(Duration),
    /// Those that began within this time and ended with status 0.
    PerSuccess(Duration),
}

impl RunOptions {
    /// What `--once-per` or `--once-per-success` says.
    pub(in crate::command) fn once(&self) -> Option<Once> {
        self.once_per.map(Once::PerStart).or(self.once_per_success.map(Once::PerSuccess))
    }

    pub(in crate::command) fn busy_status(&self) -> u8 {
        if self.ok_if_busy || (self.once().is_some() && self.acquire.conflict_exit_code.is_none()) {
            return status::DONE;
        }
        self.acquire.busy_status()
    }

    pub(in crate::command) fn lost_status(&self) -> u8 {
        self.lost_exit_code.unwrap_or(status::LOST)
    }

    pub(in crate::command) fn unreachable_status(&self) -> u8 {
        self.unreachable_exit_code.unwrap_or(status::UNREACHABLE)
    }

    /// CMD and its arguments, as given or run by a shell.
    pub(in crate::command) fn words(&self) -> Result<Vec<OsString>, UsageError> {
        let words =
            if self.words.first().is_some_and(|first| first == "--") { &self.words[1..] } else { &self.words[..] };
        let with_shell = |string: &OsStr| {
            let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty()).unwrap_or("/bin/sh".into());
            vec![shell, "-c".into(), string.to_owned()]
        };
        let first = words.first().map(|first| first.to_string_lossy());
        match (&self.command, first.as_deref(), words) {
            (Some(string), None, _) => Ok(with_shell(string)),
            (None, Some("-c" | "--command"), [_, string]) => Ok(with_shell(string)),
            (Some(_), Some(_), _) | (None, Some("-c" | "--command"), _) => Err(UsageError::OneString),
            (None, Some(late), _) if late.starts_with('-') && words.len() == self.words.len() => {
                Err(UsageError::LateOption(late.to_owned()))
            }
            (None, Some(_), _) => Ok(words.to_vec()),
            (None, None, _) => match &self.acquire.names.0[..] {
                [name] if name.as_str().bytes().all(|byte| byte.is_ascii_digit()) => {
                    Err(UsageError::Descriptor(name.to_string()))
                }
                _ => Err(UsageError::NoCommand),
            },
        }
    }
}
