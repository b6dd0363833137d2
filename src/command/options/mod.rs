//! The command line of `distrilock`, as clap parses it and as --help and the man pages print it.

mod acquire;
mod run;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::status;
use super::values::{self, Names};
use distrilock_client::Server;

pub(super) use acquire::AcquireOptions;
pub(super) use run::{Once, RunOptions, STOP_MARGIN};

use acquire::names;

/// Runs commands under named locks kept by a distrilockd, and shows who holds them and who waits.
#[derive(Debug, Parser)]
#[command(
    version,
    name = "distrilock",
    after_help = "distrilock VERB --help describes a verb; the manual is docs/distrilock.md."
)]
pub(super) struct CommandLine {
    #[command(flatten)]
    pub(super) servers: ServerOptions,

    #[command(subcommand)]
    pub(super) verb: Verb,
}

/// Which daemon to talk to, and how long to wait for its first answer.
#[derive(Args, Clone, Debug)]
pub(super) struct ServerOptions {
    /// Where the daemon is: tcp://HOST:PORT, ws://HOST:PORT or unix:PATH; repeatable, tried in
    /// turn. Default: $DISTRILOCK_SERVER, or the local socket if it can be used, or
    /// tcp://127.0.0.1:40800
    #[arg(long = "server", global = true, value_name = "ADDRESS", value_parser = |text: &str| text.parse::<Server>())]
    pub(super) named: Vec<Server>,

    /// How long connecting may take, to all servers together. Default: 10 seconds for each; with -n
    /// or -w, connecting counts as part of the wait, which lasts at least 2 seconds
    #[arg(long, global = true, value_name = "TIME", value_parser = values::time)]
    pub(super) connect_timeout: Option<Duration>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Run a command under a lock, and end everything it started if the lock is lost
    Run(Box<RunOptions>),
    /// Hold a lock until the input ends or a signal arrives, and print what is held as a line of
    /// JSON
    Lock(LockOptions),
    /// Like lock, but without waiting
    Try(LockOptions),
    /// Inside run: check that the lock is still held and real; status 0 if it is, 74 if it is lost
    Verify(VerifyOptions),
    /// Show whether a lock is held, and by whom; status 0 if it is free, 1 if it is held
    Peek(PeekOptions),
    /// Explain who holds a lock, through any daemon of the directory, and who was last known to
    /// hold it; status as for peek
    Who(PeekOptions),
    /// List the locks of all daemons of the lock directory, with their holders and waiters
    Ls(LsOptions),
    /// Wait until a lock is free, without taking it
    Wait(WaitOptions),
    /// Check whether the daemon answers, and how fast
    Ping,
    /// Check a fence against the highest one seen for a file, and record it
    Fence(FenceOptions),
    /// Load the daemon with pairs of acquire and release, and print how many it did and how long
    /// they took
    Bench(BenchOptions),
    /// Examine a lock directory; status 0 if all is well, 1 with warnings, 2 if it is unsafe
    Doctor(DoctorOptions),
    /// Delete the unused lock files in a directory
    Gc(GcOptions),
    /// Show who held which lock, from when to when, and how it ended, as this host's journal has it
    History(HistoryOptions),
    /// Print completions for a shell
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

/// The options of `lock` and `try`.
#[derive(Args, Clone, Debug)]
pub(super) struct LockOptions {
    #[command(flatten)]
    pub(super) acquire: AcquireOptions,
}

/// The options of `verify`.
#[derive(Args, Clone, Debug)]
pub(super) struct VerifyOptions {
    /// Names that the distrilock run around this command must hold. Default: any
    #[arg(value_name = "NAME[,NAME...]", value_parser = names())]
    pub(super) names: Option<Names>,
}

/// The options of `peek` and `who`.
#[derive(Args, Clone, Debug)]
pub(super) struct PeekOptions {
    /// Print a line of JSON for each name
    #[arg(long)]
    pub(super) json: bool,

    /// The name of the lock
    #[arg(value_name = "NAME", value_parser = names())]
    pub(super) names: Names,
}

/// The options of `ls`.
#[derive(Args, Clone, Debug)]
pub(super) struct LsOptions {
    /// Print a line of JSON for each lock
    #[arg(long)]
    pub(super) json: bool,

    /// List only the locks of the daemon that is asked
    #[arg(long)]
    pub(super) here: bool,

    /// List again every second until interrupted
    #[arg(long)]
    pub(super) watch: bool,
}

/// The options of `wait`.
#[derive(Args, Clone, Debug)]
pub(super) struct WaitOptions {
    /// Wait for at most this time
    #[arg(short, long, visible_alias = "timeout", value_name = "TIME", value_parser = values::time)]
    pub(super) wait: Option<Duration>,

    /// Exit status if the wait runs out. Default: 1
    #[arg(short = 'E', long, value_name = "STATUS", default_value_t = status::BUSY, hide_default_value = true)]
    pub(super) conflict_exit_code: u8,

    /// The name of the lock
    #[arg(value_name = "NAME", value_parser = names())]
    pub(super) names: Names,
}

/// The options of `fence`.
#[derive(Args, Clone, Debug)]
pub(super) struct FenceOptions {
    /// Exit status if a higher fence was seen. Default: 1
    #[arg(short = 'E', long, value_name = "STATUS", default_value_t = status::BUSY, hide_default_value = true)]
    pub(super) conflict_exit_code: u8,

    /// The guarded file, which need not exist. The highest fence is recorded beside it, in
    /// FILE.fence
    pub(super) file: PathBuf,

    /// The fence, as in $DISTRILOCK_FENCE
    pub(super) number: u64,

    /// A command to run if the fence is high enough. No other fence is checked for the file until
    /// it ends
    #[arg(value_name = "CMD", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) command: Vec<OsString>,
}

/// The options of `bench`.
#[derive(Args, Clone, Debug)]
pub(super) struct BenchOptions {
    /// How many connections to make, each with a lock of its own
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(super) connections: u16,

    /// How long to run
    #[arg(long, value_name = "TIME", default_value = "5", value_parser = values::time)]
    pub(super) seconds: Duration,

    /// Make all connections compete for one lock
    #[arg(long)]
    pub(super) contended: bool,
}

/// The options of `doctor`.
#[derive(Args, Debug)]
pub(super) struct DoctorOptions {
    /// The lock directory. Default: the directory that a daemon uses without -d
    #[arg(value_name = "DIR")]
    pub(super) directory: Option<PathBuf>,

    /// Check whether this host and the daemon of another one exclude each other, as in host2:40800
    #[arg(long, value_name = "ADDR")]
    pub(super) peer: Option<String>,

    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// The options of `gc`.
#[derive(Args, Debug)]
pub(super) struct GcOptions {
    /// The lock directory
    #[arg(value_name = "DIR")]
    pub(super) directory: PathBuf,

    /// Keep files that were created, or marked for deletion, less than this time ago
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = values::time)]
    pub(super) idle: Duration,

    /// Delete nothing; list the files that would be tried
    #[arg(short = 'n', long)]
    pub(super) dry_run: bool,
}

/// The options of `history`.
#[derive(Args, Debug)]
pub(super) struct HistoryOptions {
    /// Begin at this time, as journalctl(1) takes it: "2026-11-28 03:00", yesterday, -2h
    #[arg(short = 'S', long, value_name = "TIME", allow_hyphen_values = true)]
    pub(super) since: Option<String>,

    /// End at this time
    #[arg(short = 'U', long, value_name = "TIME", allow_hyphen_values = true)]
    pub(super) until: Option<String>,

    /// Print a line of JSON for each
    #[arg(long)]
    pub(super) json: bool,

    /// Look for daemons in these units; repeatable. Default: distrilock.service and
    /// distrilock@NAME.service
    #[arg(short, long, value_name = "UNIT")]
    pub(super) unit: Vec<String>,

    /// Read the journal of this container
    #[arg(short = 'M', long, value_name = "CONTAINER")]
    pub(super) machine: Option<String>,

    /// Read the journal files in this folder
    #[arg(short = 'D', long, value_name = "DIR")]
    pub(super) directory: Option<PathBuf>,

    /// Read these journal files, which may be a pattern; repeatable
    #[arg(long, value_name = "FILE")]
    pub(super) file: Vec<PathBuf>,

    /// Show only locks of these names; * and ? are wildcards
    #[arg(value_name = "NAME")]
    pub(super) names: Vec<String>,
}
