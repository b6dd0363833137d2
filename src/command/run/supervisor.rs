//! The supervisor: what the guard does while CMD runs and after it.
//!
//! ```text
//!           CMD ends            --min-hold is over, or a signal
//!  Running ----------> MinHold --------------------------------> Kept -----------> released
//!   |   |                                                         |    not needed
//!   |   | loss, --max-hold                                        | loss
//!   |   +---------------------> Ending <--------------------------+
//!   |                             | --term-signal, and SIGKILL after --kill-after
//!   | the launcher died           v
//!   +-------------------------> nothing of CMD is left ----------------------------> released
//!     SIGKILL
//! ```
//!
//! The lock is kept in the background (Kept) for processes that CMD has left behind and for
//! `--once-per`; usually for neither. A loss leads to Ending unless `--on-lost` says otherwise.

use std::fs::File;
use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::time::{Instant, sleep, sleep_until};

use super::guarded_lock::GuardedLock;
use super::job::Job;
use super::launcher_link::{LAUNCHER_DIED, LauncherLink};
use super::process_tree::{self, ChildEvent, Ending, KillAll, KillAttempt, report_survivors};
use super::report::GuardAfterwards;
use crate::command::options::RunOptions;
use crate::command::signals::ReceivedSignal;
use crate::command::values::OnLost;
use crate::command::{output, status};
use distrilock_client::LostError;

/// The pause between two attempts to kill everything.
const KILL_INTERVAL: Duration = Duration::from_millis(2);

/// See the module.
pub(super) struct Supervisor<'a> {
    options: &'a RunOptions,
    link: &'a mut LauncherLink,
    job: Job,
    /// `None` if CMD runs without a lock (`--run-anyway`).
    lock: Option<GuardedLock>,
    granted_at: Instant,
    /// The signals that were passed on to CMD.
    passed_on: Vec<Signal>,
}

/// How the running phase ended.
enum RunningEnded {
    /// CMD ended. How is unknown if a real-time signal ended it.
    CmdEnded(Option<Ending>),
    /// Everything has to end, and `distrilock run` exits with this status.
    EndAll {
        status: u8,
    },
    LauncherDied,
}

/// What a signal that arrived means.
enum JobEvent {
    CmdEnded(Option<Ending>),
    /// Nothing that CMD started is left.
    NoChildren,
    LauncherDied,
    /// Somebody sent this signal to us.
    Signal(Signal),
    Nothing,
}

/// What a loss of the lock leads to (`--on-lost`).
#[derive(PartialEq, Eq)]
enum AfterLoss {
    EndAll,
    GoOn,
}

/// Whether a loss of the lock still has to be noticed.
#[derive(PartialEq, Eq)]
enum LossWatch {
    On,
    Off,
}

/// What the lock is kept for after CMD's end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum KeptFor {
    /// Processes that CMD left behind, and the period of `--once-per`.
    ProcessesAndPeriod,
    Processes,
    Period,
    Nothing,
}

impl KeptFor {
    fn new(processes: bool, period: bool) -> Self {
        match (processes, period) {
            (true, true) => Self::ProcessesAndPeriod,
            (true, false) => Self::Processes,
            (false, true) => Self::Period,
            (false, false) => Self::Nothing,
        }
    }

    fn processes(self) -> bool {
        matches!(self, Self::ProcessesAndPeriod | Self::Processes)
    }

    fn period(self) -> bool {
        matches!(self, Self::ProcessesAndPeriod | Self::Period)
    }

    fn without_processes(self) -> Self {
        Self::new(false, self.period())
    }

    fn without_period(self) -> Self {
        Self::new(self.processes(), false)
    }
}

impl<'a> Supervisor<'a> {
    pub(super) fn new(
        options: &'a RunOptions,
        link: &'a mut LauncherLink,
        job: Job,
        lock: Option<GuardedLock>,
        granted_at: Instant,
    ) -> Self {
        Self { options, link, job, lock, granted_at, passed_on: Vec::new() }
    }

    /// Attends to CMD and what it started until nothing needs the lock any more, releases the lock,
    /// and reports.
    pub(super) async fn run(mut self) -> io::Result<()> {
        match self.while_running().await? {
            RunningEnded::LauncherDied => kill_all(self.job.pid).await,
            RunningEnded::EndAll { status } => {
                self.end_all().await?;
                self.job.ended(None);
                self.release().await;
                self.link.report(Ending::Status(status), GuardAfterwards::Ends)
            }
            RunningEnded::CmdEnded(how) => self.after_cmd(how).await,
        }
    }

    async fn while_running(&mut self) -> io::Result<RunningEnded> {
        let mut loss_watch = LossWatch::On;
        loop {
            let event = tokio::select! {
                biased;
                received = self.link.next_signal() => self.interpret(received?)?,
                lost = self.loss(), if loss_watch == LossWatch::On => {
                    if self.on_loss(&lost) == AfterLoss::EndAll {
                        return Ok(RunningEnded::EndAll { status: self.options.lost_status() });
                    }
                    loss_watch = LossWatch::Off;
                    JobEvent::Nothing
                }
                () = self.since_grant(self.options.max_hold) => {
                    output::message("CMD has held the lock for as long as --max-hold allows; ending it");
                    return Ok(RunningEnded::EndAll { status: status::TOO_LONG });
                }
            };
            match event {
                JobEvent::CmdEnded(how) => return Ok(RunningEnded::CmdEnded(how)),
                JobEvent::LauncherDied => return Ok(RunningEnded::LauncherDied),
                JobEvent::Signal(Signal::SIGCONT) => self.job.resume(),
                JobEvent::Signal(signal) => {
                    self.passed_on.push(signal);
                    self.job.signal(signal);
                }
                JobEvent::NoChildren | JobEvent::Nothing => {}
            }
        }
    }

    /// Turns a signal into what it means. Children other than CMD are reaped here.
    fn interpret(&mut self, received: ReceivedSignal) -> io::Result<JobEvent> {
        match received.signal {
            Signal::SIGCHLD => loop {
                match process_tree::next_event(self.job.pid)? {
                    ChildEvent::Ended(pid, how) if pid == self.job.pid => return Ok(JobEvent::CmdEnded(how)),
                    ChildEvent::Stopped(pid, by) if pid == self.job.pid => self.job.stopped(by),
                    ChildEvent::Ended(..) | ChildEvent::Stopped(..) => {}
                    ChildEvent::Nothing => return Ok(JobEvent::Nothing),
                    ChildEvent::NoChildren => return Ok(JobEvent::NoChildren),
                }
            },
            LAUNCHER_DIED if self.link.launcher_died() => Ok(JobEvent::LauncherDied),
            LAUNCHER_DIED | Signal::SIGTTIN | Signal::SIGTTOU => Ok(JobEvent::Nothing),
            signal => Ok(JobEvent::Signal(signal)),
        }
    }

    /// Waits for a loss of the lock; forever if there is no lock.
    async fn loss(&self) -> LostError {
        match &self.lock {
            Some(lock) => lock.held().lost().await,
            None => std::future::pending().await,
        }
    }

    /// Reports that the lock is lost, and does what `--on-lost` says short of ending everything.
    fn on_loss(&self, lost: &LostError) -> AfterLoss {
        let on_lost = self.options.on_lost.unwrap_or(OnLost::Kill);
        let then = match on_lost {
            OnLost::Kill => "ending CMD and everything it started",
            OnLost::Signal(_) => "sending CMD a signal, after which it goes on",
            OnLost::Warn => "CMD goes on",
        };
        let server = self.lock.as_ref().map(|lock| lock.server().to_string()).unwrap_or_default();
        output::message(&output::escaped(&format!("{server}: {lost}; {then}")));
        match on_lost {
            OnLost::Kill => AfterLoss::EndAll,
            OnLost::Signal(signal) => {
                self.job.signal(signal);
                AfterLoss::GoOn
            }
            OnLost::Warn => AfterLoss::GoOn,
        }
    }

    /// Waits until this much time has passed since the grant; forever if no time is given.
    async fn since_grant(&self, time: Option<Duration>) {
        match time {
            Some(time) => sleep_until(self.granted_at + time).await,
            None => std::future::pending().await,
        }
    }

    /// CMD has ended. Processes that it left behind keep the lock, as under flock(1), unless `-o`
    /// says otherwise.
    async fn after_cmd(mut self, how: Option<Ending>) -> io::Result<()> {
        let ending = self.ending_of(how);
        if self.lock.is_none() {
            return self.link.report(ending, GuardAfterwards::Ends);
        }
        self.hold_at_least().await?;
        let processes_left = !self.options.close && !process_tree::reap(self.job.pid)?;
        if processes_left || self.options.once_per.is_some() {
            self.link.report(ending, GuardAfterwards::Stays)?;
            self.keep(KeptFor::new(processes_left, self.options.once_per.is_some())).await?;
            self.release().await;
            return Ok(());
        }
        self.release().await;
        self.link.report(ending, GuardAfterwards::Ends)
    }

    /// How the launcher has to end after CMD ended like this: by the same signal if it came from
    /// the keyboard or through us.
    fn ending_of(&self, how: Option<Ending>) -> Ending {
        let by = if let Some(Ending::Signal(signal)) = how { Some(signal) } else { None };
        let by_key = self.job.ended(by);
        match how {
            Some(Ending::Status(status)) => Ending::Status(status),
            Some(Ending::Signal(signal)) if by_key || self.passed_on.contains(&signal) => Ending::Signal(signal),
            Some(Ending::Signal(signal)) => {
                Ending::Status(status::SIGNALLED + u8::try_from(signal as i32).expect("signals are below 32"))
            }
            None => Ending::Status(u8::MAX),
        }
    }

    /// Keeps the lock for `--min-hold`, unless a signal ends that.
    async fn hold_at_least(&self) -> io::Result<()> {
        if self.options.min_hold.is_none() {
            return Ok(());
        }
        loop {
            let received = tokio::select! {
                received = self.link.next_signal() => received?,
                _ = self.loss() => return Ok(()),
                () = self.since_grant(self.options.min_hold) => return Ok(()),
            };
            if !matches!(received.signal, Signal::SIGCHLD | Signal::SIGCONT | Signal::SIGWINCH) {
                return Ok(());
            }
        }
    }

    /// Keeps the lock in the background, when the launcher has its report and the user has gone on.
    async fn keep(&mut self, mut kept_for: KeptFor) -> io::Result<()> {
        detach_from_user()?;
        while kept_for != KeptFor::Nothing {
            let event = tokio::select! {
                biased;
                received = self.link.next_signal() => self.interpret(received?)?,
                lost = self.loss() => {
                    let end = !kept_for.processes() || self.on_loss(&lost) == AfterLoss::EndAll;
                    return if end { self.end_all().await } else { Ok(()) };
                }
                () = self.since_grant(self.options.once_per), if kept_for.period() => {
                    kept_for = kept_for.without_period();
                    JobEvent::Nothing
                }
            };
            match event {
                JobEvent::NoChildren => kept_for = kept_for.without_processes(),
                JobEvent::Signal(signal) if kept_for.processes() => self.job.signal(signal),
                // With no processes left, whoever ends the guard means the lock.
                JobEvent::Signal(Signal::SIGCONT) => {}
                JobEvent::Signal(_) => kept_for = kept_for.without_period(),
                JobEvent::CmdEnded(_) | JobEvent::LauncherDied | JobEvent::Nothing => {}
            }
        }
        Ok(())
    }

    /// Ends everything that CMD started: first by `--term-signal`, after `--kill-after` by SIGKILL.
    async fn end_all(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + self.options.kill_after();
        self.job.terminate(self.options.term_signal.unwrap_or(Signal::SIGTERM));
        while !process_tree::reap(self.job.pid)? {
            tokio::select! {
                received = self.link.next_signal() => {
                    if received?.signal == LAUNCHER_DIED && self.link.launcher_died() {
                        break;
                    }
                }
                () = sleep_until(deadline) => break,
            };
        }
        kill_all(self.job.pid).await
    }

    async fn release(&mut self) {
        if let Some(lock) = self.lock.take() {
            lock.release().await;
        }
    }
}

/// Kills everything that CMD started, and waits until nothing is left. `expected` is as for
/// [`process_tree::next_event`].
pub(super) async fn kill_all(expected: Pid) -> io::Result<()> {
    let mut kill_all = KillAll::new(expected);
    loop {
        match kill_all.attempt()? {
            KillAttempt::Again => sleep(KILL_INTERVAL).await,
            KillAttempt::Done { survivors } => {
                report_survivors(&survivors);
                return Ok(());
            }
        }
    }
}

/// Closes the streams that the user waits for: a shell or a cron daemon reads them until their end.
fn detach_from_user() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}
