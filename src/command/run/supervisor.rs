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
//! `--max-hold` counts as long as anything of CMD is left, in MinHold and Kept as well.
//!
//! The lock is kept in the background (Kept) for processes that CMD has left behind; usually there
//! are none. A loss leads to Ending unless `--on-lost` says otherwise.

use std::fs::File;
use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{Pid, setpgid, setsid};
use tokio::time::{Instant, sleep, sleep_until};

use super::children::{self, ChildEvent, Ending};
use super::guarded_lock::GuardedLock;
use super::job::Job;
use super::launcher_link::{ArrivedSignal, LAUNCHER_DIED, LauncherLink};
use super::once;
use super::passing_on::{Pass, PassingOn};
use super::process_tree::{KillAll, KillAttempt, report_survivors};
use super::report::GuardAfterwards;
use super::stop_time;
use crate::command::options::{Once, RunOptions};
use crate::command::values::OnLost;
use crate::command::{output, status};
use distrilock_client::{BootTime, LostError};

/// See the module.
pub(super) struct Supervisor<'a> {
    options: &'a RunOptions,
    link: &'a mut LauncherLink,
    job: Job,
    /// `None` if CMD runs without a lock (`--run-anyway`).
    lock: Option<GuardedLock>,
    granted_at: Instant,
    /// When this process began.
    began: BootTime,
    /// The time from the first signal to SIGKILL.
    kill_after: Duration,
    loss_watch: LossWatch,
    passing_on: PassingOn,
    /// The signals that were meant for CMD.
    meant_for_cmd: Vec<Signal>,
}

/// How the running phase ended.
enum RunningEnded {
    CmdEnded(Ending),
    /// Everything has to end, and `distrilock run` exits with this status.
    EndAll {
        status: u8,
    },
    LauncherDied,
}

/// What a signal that arrived means.
enum JobEvent {
    CmdEnded(Ending),
    /// Nothing that CMD started is left.
    NoChildren,
    LauncherDied,
    /// Somebody sent this signal to us.
    Signal(ArrivedSignal),
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

/// How `--min-hold` ended.
#[derive(PartialEq, Eq)]
enum MinHold {
    Over,
    /// Processes that CMD left behind have held the lock for as long as `--max-hold` allows.
    TooLongForProcesses,
}

impl<'a> Supervisor<'a> {
    pub(super) fn new(
        options: &'a RunOptions,
        link: &'a mut LauncherLink,
        job: Job,
        lock: Option<GuardedLock>,
        (began, granted_at): (BootTime, Instant),
    ) -> Self {
        let kill_after = stop_time::kill_after(options, lock.as_ref().map(|lock| lock.stop_within()));
        Self {
            options,
            link,
            job,
            lock,
            granted_at,
            began,
            kill_after,
            loss_watch: LossWatch::On,
            passing_on: PassingOn::default(),
            meant_for_cmd: Vec::new(),
        }
    }

    /// Attends to CMD and what it started until nothing needs the lock any more, releases the lock,
    /// and reports.
    pub(super) async fn run(mut self) -> io::Result<()> {
        let ended = self.attend().await;
        if ended.is_err() {
            // What cannot be guarded must not go on, and the lock is still held meanwhile.
            let _ = kill_all().await;
        }
        ended
    }

    async fn attend(&mut self) -> io::Result<()> {
        match self.while_running().await? {
            RunningEnded::LauncherDied => kill_all().await,
            RunningEnded::EndAll { status } => self.end_all_and_report(status).await,
            RunningEnded::CmdEnded(how) => self.after_cmd(how).await,
        }
    }

    async fn end_all_and_report(&mut self, status: u8) -> io::Result<()> {
        self.end_all().await?;
        self.job.ended(None);
        self.release().await;
        self.link.report(Ending::Status(status), GuardAfterwards::Ends)
    }

    async fn while_running(&mut self) -> io::Result<RunningEnded> {
        loop {
            let event = tokio::select! {
                biased;
                received = self.link.next_signal() => self.interpret(received?)?,
                lost = self.loss() => {
                    if self.on_loss(&lost) == AfterLoss::EndAll {
                        return Ok(RunningEnded::EndAll { status: self.options.lost_status() });
                    }
                    JobEvent::Nothing
                }
                () = self.since_grant(self.options.max_hold) => return Ok(self.held_too_long()),
                () = until(self.passing_on.next_due()) => {
                    while let Some(pass) = self.passing_on.take_due(Instant::now()) {
                        self.pass_on(pass);
                    }
                    JobEvent::Nothing
                }
            };
            match event {
                JobEvent::CmdEnded(how) => return Ok(RunningEnded::CmdEnded(how)),
                JobEvent::LauncherDied => return Ok(RunningEnded::LauncherDied),
                JobEvent::Signal(ArrivedSignal { signal: Signal::SIGCONT, .. }) => self.job.resume(),
                JobEvent::Signal(ArrivedSignal { signal, source, echo_time }) => {
                    self.meant_for_cmd.push(signal);
                    if let Some(pass) = self.passing_on.received(signal, source, echo_time, Instant::now()) {
                        self.pass_on(pass);
                    }
                }
                JobEvent::NoChildren | JobEvent::Nothing => {}
            }
        }
    }

    fn pass_on(&self, pass: Pass) {
        match pass {
            Pass::On(signal) => self.job.signal(signal),
            Pass::IfMissed(signal) if self.job.missed(signal) => self.job.signal(signal),
            Pass::IfMissed(_) => {}
        }
    }

    fn held_too_long(&self) -> RunningEnded {
        output::message("CMD has held the lock for as long as --max-hold allows; ending it");
        RunningEnded::EndAll { status: status::TOO_LONG }
    }

    /// Turns a signal into what it means. Children other than CMD are reaped here.
    fn interpret(&mut self, received: ArrivedSignal) -> io::Result<JobEvent> {
        match received.signal {
            Signal::SIGCHLD => loop {
                match children::next_event()? {
                    ChildEvent::Ended(pid, how) if pid == self.job.pid => return Ok(JobEvent::CmdEnded(how)),
                    ChildEvent::Stopped(pid, by) if pid == self.job.pid => self.job.stopped(by),
                    ChildEvent::Ended(..) | ChildEvent::Stopped(..) => {}
                    ChildEvent::Nothing => return Ok(JobEvent::Nothing),
                    ChildEvent::NoChildren => return Ok(JobEvent::NoChildren),
                }
            },
            LAUNCHER_DIED if self.link.launcher_died() => Ok(JobEvent::LauncherDied),
            LAUNCHER_DIED | Signal::SIGTTIN | Signal::SIGTTOU => Ok(JobEvent::Nothing),
            _ => Ok(JobEvent::Signal(received)),
        }
    }

    /// Waits for a loss of the lock; forever if there is no lock, or if its loss is known.
    async fn loss(&self) -> LostError {
        match &self.lock {
            Some(lock) if self.loss_watch == LossWatch::On => lock.held().lost().await,
            _ => std::future::pending().await,
        }
    }

    /// Reports that the lock is lost, and does what `--on-lost` says short of ending everything.
    fn on_loss(&mut self, lost: &LostError) -> AfterLoss {
        self.loss_watch = LossWatch::Off;
        let on_lost = self.options.on_lost.unwrap_or(OnLost::Kill);
        let then = match on_lost {
            OnLost::Kill => "ending CMD and everything it started",
            OnLost::Signal(_) => "sending CMD a signal; it keeps running",
            OnLost::Warn => "CMD keeps running",
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
    async fn after_cmd(&mut self, how: Ending) -> io::Result<()> {
        let ending = self.ending_of(how);
        if self.lock.is_none() {
            return self.link.report(ending, GuardAfterwards::Ends);
        }
        if how == Ending::Status(status::DONE) {
            self.record_success().await;
        }
        if self.hold_at_least().await? == MinHold::TooLongForProcesses {
            return self.end_all_and_report(status::TOO_LONG).await;
        }
        let processes_left = !self.options.close && !children::reap()?;
        // A loss that CMD was to survive leaves nothing to keep.
        if self.loss_watch == LossWatch::On && processes_left {
            // First of all, since the launcher's end is what the user waits for.
            self.detach_from_user()?;
            self.link.report(ending, GuardAfterwards::Stays)?;
            self.keep().await?;
            self.release().await;
            return Ok(());
        }
        self.release().await;
        self.link.report(ending, GuardAfterwards::Ends)
    }

    /// How the launcher has to end after CMD ended like this: by the same signal if it came from
    /// the keyboard or through us.
    fn ending_of(&mut self, how: Ending) -> Ending {
        let by = if let Ending::Signal(signal) = how { Some(signal) } else { None };
        let by_key = self.job.ended(by);
        match how {
            Ending::Signal(signal) if !by_key && !self.meant_for_cmd.contains(&signal) => {
                Ending::Status(status::SIGNALLED + u8::try_from(signal as i32).expect("signals are below 32"))
            }
            how => how,
        }
    }

    /// Keeps the lock for `--min-hold`, unless a signal ends that.
    async fn hold_at_least(&mut self) -> io::Result<MinHold> {
        let Some(min_hold) = self.options.min_hold else { return Ok(MinHold::Over) };
        let mut processes_left = !self.options.close && !children::reap()?;
        loop {
            let received = tokio::select! {
                biased;
                received = self.link.next_signal() => received?,
                _ = self.loss() => return Ok(MinHold::Over),
                () = self.since_grant(Some(min_hold)) => return Ok(MinHold::Over),
                () = self.since_grant(self.options.max_hold), if processes_left => {
                    self.held_too_long();
                    return Ok(MinHold::TooLongForProcesses);
                }
            };
            match received.signal {
                Signal::SIGCHLD => processes_left = !children::reap()? && !self.options.close,
                Signal::SIGCONT | Signal::SIGWINCH => {}
                _ => return Ok(MinHold::Over),
            }
        }
    }

    /// Records that CMD ended with status 0, if `--once-per-success` wants to know.
    async fn record_success(&self) {
        let Some(lock) = self.lock.as_ref().filter(|_| matches!(self.options.once(), Some(Once::PerSuccess(_)))) else {
            return;
        };
        if let Err(error) = once::record_success(lock.acquired(), self.began).await {
            output::message(&output::escaped(&format!(
                "{error}; it is not recorded that CMD succeeded, so it will run again"
            )));
        }
    }

    /// Keeps the lock in the background, when the launcher has its report and the user has gone on.
    async fn keep(&mut self) -> io::Result<()> {
        loop {
            let event = tokio::select! {
                biased;
                received = self.link.next_signal() => self.interpret(received?)?,
                lost = self.loss() => {
                    return if self.on_loss(&lost) == AfterLoss::EndAll { self.end_all().await } else { Ok(()) };
                }
                () = self.since_grant(self.options.max_hold) => return self.end_all().await,
            };
            match event {
                JobEvent::NoChildren => return Ok(()),
                JobEvent::Signal(arrived) => self.job.signal(arrived.signal),
                JobEvent::CmdEnded(_) | JobEvent::LauncherDied | JobEvent::Nothing => {}
            }
        }
    }

    /// Ends everything that CMD started: first by `--term-signal`, after `--kill-after` by SIGKILL.
    async fn end_all(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + self.kill_after;
        self.job.terminate(self.options.term_signal.unwrap_or(Signal::SIGTERM));
        while !children::reap()? {
            tokio::select! {
                received = self.link.next_signal() => {
                    if received?.signal == LAUNCHER_DIED && self.link.launcher_died() {
                        break;
                    }
                }
                () = sleep_until(deadline) => break,
            };
        }
        kill_all().await
    }

    /// Closes what the user waits for or wants to use again: the streams, which a shell or a
    /// cron daemon reads until their end, and the terminal. The other descriptors and the working
    /// directory are given up as soon as CMD has them.
    fn detach_from_user(&mut self) -> io::Result<()> {
        self.job.forget_terminal();
        let null = File::options().read(true).write(true).open("/dev/null")?;
        nix::unistd::dup2_stdin(&null)?;
        nix::unistd::dup2_stdout(&null)?;
        nix::unistd::dup2_stderr(&null)?;
        // A leader of a process group cannot leave its session (setsid(2)). The launcher's group
        // exists until it has our report, unless it was killed just now: then it does not matter.
        let _ = setpgid(Pid::from_raw(0), self.link.user_job().group).and_then(|()| setsid());
        Ok(())
    }

    async fn release(&mut self) {
        if let Some(lock) = self.lock.take() {
            lock.release().await;
        }
    }
}

/// Kills everything that CMD started, and waits until nothing is left but what cannot be killed.
async fn kill_all() -> io::Result<()> {
    let mut kill_all = KillAll::default();
    loop {
        match kill_all.attempt()? {
            KillAttempt::Again(pause) => sleep(pause).await,
            KillAttempt::Done { survivors } => {
                report_survivors(&survivors);
                return Ok(());
            }
        }
    }
}

/// Waits until then; forever if there is no time.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
