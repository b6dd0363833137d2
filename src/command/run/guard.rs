//! The guard: acquires the lock, has CMD supervised, and reports to the launcher. It is in its own
//! process group and a subreaper, so that no descendant of CMD can leave it.

use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::os::fd::RawFd;
use std::process::Stdio;

use clap::Parser;
use nix::sys::prctl::{set_child_subreaper, set_name};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, chdir};
use tokio::time::Instant;

use super::children::Ending;
use super::guarded_lock::GuardedLock;
use super::job::{Job, JobSpec};
use super::launcher_link::{LAUNCHER_DIED, LauncherLink, Pipes};
use super::once;
use super::random::jitter;
use super::report::GuardAfterwards;
use super::stop_time;
use super::supervisor::Supervisor;
use crate::command::acquire::{AcquiredLock, acquire};
use crate::command::connect::{block_on, command_line, connect, introduction};
use crate::command::environment::LockEnvironment;
use crate::command::error::CommandError;
use crate::command::exec::{close_inherited, open_descriptors};
use crate::command::given_signals::GivenSignals;
use crate::command::options::{CommandLine, RunOptions, ServerOptions, Verb};
use crate::command::time_limit::TimeLimit;
use crate::command::{output, status};
use distrilock_client::{BootTime, Client};

/// The first argument that makes a process of our program a guard. Users do not type it.
pub(in crate::command) const WORD: &str = "run:guard";

/// What the process table calls the guard. Somebody who ends all processes called distrilock should
/// not hit it.
pub(super) const NAME: &str = "lock-guard";

/// Runs the guard, and returns its exit status.
pub(in crate::command) fn main(arguments: &[OsString]) -> u8 {
    let Some(arguments) = GuardArguments::parse(arguments) else {
        output::message("this command line is internal to distrilock run, and not for people");
        return status::USAGE;
    };
    let Pipes { report_writer, signal_reader } = arguments.pipes;
    let ended = open_descriptors().map_err(CommandError::system("guard CMD")).and_then(|mut inherited| {
        inherited.retain(|descriptor| ![report_writer, signal_reader].contains(descriptor));
        block_on(guard(arguments, inherited))
    });
    match ended {
        Ok(()) => status::DONE,
        Err(error) => output::report(&error, status::BUSY),
    }
}

async fn guard(arguments: GuardArguments, inherited: Vec<RawFd>) -> Result<(), CommandError> {
    let mut guard = Guard::new(arguments, inherited).map_err(CommandError::system("guard CMD"))?;
    let Err(error) = guard.run().await else { return Ok(()) };
    let _ = guard.link.report(Ending::Status(status::SYSTEM), GuardAfterwards::Ends);
    Err(CommandError::system("guard CMD")(error))
}

/// What the launcher passes to the guard.
struct GuardArguments {
    pipes: Pipes,
    given_signals: GivenSignals,
    launcher: Pid,
    line: CommandLine,
}

impl GuardArguments {
    fn parse(arguments: &[OsString]) -> Option<Self> {
        let [report_writer, signal_reader, given_signals, launcher, rest @ ..] = arguments else { return None };
        let program = [OsString::from("distrilock")];
        Some(Self {
            pipes: Pipes {
                report_writer: report_writer.to_str()?.parse().ok()?,
                signal_reader: signal_reader.to_str()?.parse().ok()?,
            },
            given_signals: GivenSignals::from_text(given_signals.to_str()?)?,
            launcher: Pid::from_raw(launcher.to_str()?.parse().ok()?),
            line: CommandLine::try_parse_from(program.iter().chain(rest)).ok()?,
        })
    }
}

/// Why CMD is not started.
enum NotStarted {
    /// The user ended the wait by this signal.
    Signal(Signal),
    LauncherDied,
    Error(CommandError),
}

/// Whether the user's job is stopped before CMD runs. While it is, CMD must not start.
#[derive(Clone, Copy, PartialEq, Eq)]
enum UserJobState {
    Running,
    Stopped,
}

/// See the module.
struct Guard {
    options: RunOptions,
    words: Vec<OsString>,
    servers: ServerOptions,
    given_signals: GivenSignals,
    /// The descriptors that are CMD's, and that this process closes when CMD has them.
    inherited: Vec<RawFd>,
    link: LauncherLink,
    user_job: UserJobState,
    /// When this process began.
    began: BootTime,
}

impl Guard {
    fn new(arguments: GuardArguments, inherited: Vec<RawFd>) -> io::Result<Self> {
        // For killall(1), which looks for this name; pkill -f looks for the first argument.
        let _ = set_name(c"lock-guard");
        set_child_subreaper(true)?;
        let link = LauncherLink::open(arguments.launcher, arguments.pipes)?;
        let Verb::Run(options) = arguments.line.verb else { return Err(io::ErrorKind::InvalidInput.into()) };
        let words = options.words().map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(Self {
            options: *options,
            words,
            servers: arguments.line.servers,
            given_signals: arguments.given_signals,
            inherited,
            link,
            user_job: UserJobState::Running,
            began: BootTime::now(),
        })
    }

    /// Acquires the lock, runs CMD, and reports.
    async fn run(&mut self) -> io::Result<()> {
        let lock = match self.acquire().await {
            Ok(lock) => Some(lock),
            Err(NotStarted::LauncherDied) => return Ok(()),
            Err(NotStarted::Signal(signal)) => {
                return self.link.report(Ending::Signal(signal), GuardAfterwards::Ends);
            }
            Err(NotStarted::Error(error)) => {
                let status = self.report_not_acquired(&error);
                if !self.options.run_anyway {
                    return self.link.report(Ending::Status(status), GuardAfterwards::Ends);
                }
                output::message("running CMD without the lock, as --run-anyway says");
                None
            }
        };
        let granted_at = Instant::now();
        let spec = JobSpec {
            words: &self.words,
            given_signals: self.given_signals,
            environment: lock.as_ref().map_or_else(LockEnvironment::without_lock, GuardedLock::environment),
            stdin: self.options.no_stdin.then(Stdio::null),
        };
        let job = Job::start(self.link.user_job(), spec)?;
        // CMD has them now, and decides how long files stay open and directories are in use.
        close_inherited(&std::mem::take(&mut self.inherited));
        let _ = chdir("/");
        Supervisor::new(&self.options, &mut self.link, job, lock, (self.began, granted_at)).run().await
    }

    /// Connects and acquires, unless a signal ends the wait. While the user's job is stopped, the
    /// place in the queue is kept, and so is a lock that is granted.
    async fn acquire(&mut self) -> Result<GuardedLock, NotStarted> {
        let mut options = self.options.clone();
        options.acquire.nonblock |= options.once().is_some();
        let (servers, began) = (self.servers.clone(), self.began);
        let shown_command = (!options.no_argv).then(|| command_line(&self.words));
        let work = async move {
            jitter(options.jitter).await;
            let introduction = introduction(options.acquire.note.as_deref(), shown_command.as_deref());
            let builder = stop_time::tell(Client::builder(), &options);
            let limit = TimeLimit::new(&options.acquire, &servers);
            let client = connect(builder, &introduction, &servers, &limit).await?;
            let lock = acquire(client, &options.acquire, &limit).await?;
            once::check(lock, options.once(), began).await
        };
        let lock = self.attend_signals_during(work).await?.map_err(NotStarted::Error)?;
        self.wait_until_resumed(&lock).await?;
        Ok(GuardedLock::new(lock))
    }

    async fn wait_until_resumed(&mut self, AcquiredLock { client, held }: &AcquiredLock) -> Result<(), NotStarted> {
        while self.user_job == UserJobState::Stopped {
            if let Some(lost) = self.attend_signal_or(held.lost()).await? {
                return Err(NotStarted::Error(CommandError::Lost { server: client.server().clone(), lost }));
            }
        }
        Ok(())
    }

    /// Does this work before CMD runs, and attends to signals meanwhile.
    async fn attend_signals_during<T>(&mut self, work: impl Future<Output = T>) -> Result<T, NotStarted> {
        let mut work = std::pin::pin!(work);
        loop {
            if let Some(done) = self.attend_signal_or(work.as_mut()).await? {
                return Ok(done);
            }
        }
    }

    /// Attends to one signal and returns `None`, or returns the result of the work.
    async fn attend_signal_or<T>(&mut self, work: impl Future<Output = T>) -> Result<Option<T>, NotStarted> {
        let failed = |error: io::Error| NotStarted::Error(CommandError::System { what: "read signals", error });
        let received = tokio::select! {
            biased;
            received = self.link.next_signal() => received.map_err(failed)?,
            done = work => return Ok(Some(done)),
        };
        match received.signal {
            LAUNCHER_DIED if self.link.launcher_died() => return Err(NotStarted::LauncherDied),
            Signal::SIGTSTP => {
                self.user_job = UserJobState::Stopped;
                self.link.stop_launcher();
            }
            Signal::SIGCONT => self.user_job = UserJobState::Running,
            Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP | Signal::SIGQUIT | Signal::SIGUSR1 | Signal::SIGUSR2 => {
                return Err(NotStarted::Signal(received.signal));
            }
            _ => {}
        }
        Ok(None)
    }

    /// Says why the lock could not be acquired, and returns the status for that. Like flock(1), it
    /// says nothing if the lock is busy.
    fn report_not_acquired(&self, error: &CommandError) -> u8 {
        let busy = self.options.busy_status();
        let status = match error.is_busy() && !self.options.acquire.verbose {
            true => busy,
            false => output::report(error, busy),
        };
        if status == status::UNREACHABLE && !error.is_busy() { self.options.unreachable_status() } else { status }
    }
}
