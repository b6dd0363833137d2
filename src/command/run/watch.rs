//! The guard while CMD runs: what signals, losses and deadlines do to it, and what is kept and ended after it.

use std::fs::File;
use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};
use tokio::time::{Instant, sleep, sleep_until};

use super::answer::Lock;
use super::guard::{FRONT_DIED, Guard, next};
use super::job::Job;
use super::report::End;
use super::signals::Signalled;
use super::tree;
use crate::command::values::OnLost;
use crate::command::{say, status};
use distrilock_client::{Held, LostError};

/// What happened while CMD ran.
pub(super) enum Watched {
    Ended(Option<tree::Ending>),
    /// Everything is to end, with this status.
    Over(u8),
    FrontDied,
}

/// What happened to the processes, or what somebody wants.
enum Heard {
    Ended(Option<tree::Ending>),
    /// Nothing that CMD started is left.
    Childless,
    FrontDied,
    Signal(Signal),
    Nothing,
}

impl Guard {
    /// Attends to CMD until it ends or has to.
    pub(super) async fn watch(&mut self, job: &mut Job, held: Option<&Held>, began: Instant) -> io::Result<Watched> {
        let mut held = held;
        loop {
            let lost = async {
                match held {
                    Some(held) => held.lost().await,
                    None => std::future::pending().await,
                }
            };
            let heard = tokio::select! {
                biased;
                came = next(&self.signals) => self.hear(came?, job)?,
                lost = lost => {
                    if self.lost(&lost, job) {
                        return Ok(Watched::Over(self.options.lost_status()));
                    }
                    held = None;
                    Heard::Nothing
                }
                () = until(began, self.options.max_hold) => {
                    say::error("CMD has had the lock for as long as --max-hold allows, and is ended");
                    return Ok(Watched::Over(status::TOO_LONG));
                }
            };
            match heard {
                Heard::Ended(how) => return Ok(Watched::Ended(how)),
                Heard::FrontDied => return Ok(Watched::FrontDied),
                Heard::Signal(Signal::SIGCONT) => job.go_on(),
                Heard::Signal(signal) => {
                    self.passed_on.push(signal);
                    job.signal(signal);
                }
                Heard::Childless | Heard::Nothing => {}
            }
        }
    }

    /// Tells that the lock is lost. True if everything has to end.
    fn lost(&self, lost: &LostError, job: &Job) -> bool {
        let then = match self.options.on_lost.unwrap_or(OnLost::Kill) {
            OnLost::Kill => "CMD and all that it started is ended",
            OnLost::Signal(_) => "CMD gets a signal, and goes on",
            OnLost::Warn => "CMD goes on",
        };
        say::error(&say::shown(&format!("{}: {lost}; {then}", self.server)));
        if let Some(OnLost::Signal(signal)) = self.options.on_lost {
            job.signal(signal);
        }
        matches!(self.options.on_lost, None | Some(OnLost::Kill))
    }

    /// Turns a signal into what it means. Of children it tells what became of CMD; others are buried.
    fn hear(&self, came: Signalled, job: &mut Job) -> io::Result<Heard> {
        match came.signal {
            Signal::SIGCHLD => loop {
                match tree::news(job.pid)? {
                    tree::News::Ended(pid, how) if pid == job.pid => return Ok(Heard::Ended(how)),
                    tree::News::Stopped(pid, by) if pid == job.pid => job.stopped(by),
                    tree::News::Ended(..) | tree::News::Stopped(..) => {}
                    tree::News::Nothing => return Ok(Heard::Nothing),
                    tree::News::Childless => return Ok(Heard::Childless),
                }
            },
            // When the front has our report, it may go.
            FRONT_DIED if self.reports.is_some() && getppid() != self.front.pid => Ok(Heard::FrontDied),
            FRONT_DIED | Signal::SIGTTIN | Signal::SIGTTOU => Ok(Heard::Nothing),
            signal => Ok(Heard::Signal(signal)),
        }
    }

    /// CMD has ended. What it has left behind keeps the lock, as with flock(1), unless -o says otherwise.
    pub(super) async fn finish(
        &mut self,
        job: &mut Job,
        lock: Option<Lock>,
        how: Option<tree::Ending>,
        began: Instant,
    ) -> io::Result<()> {
        let by = if let Some(tree::Ending::Signal(signal)) = how { Some(signal) } else { None };
        let by_key = job.ended(by);
        let end = match how {
            Some(tree::Ending::Status(status)) => End::Status(status),
            Some(tree::Ending::Signal(signal)) if by_key || self.passed_on.contains(&signal) => End::Signal(signal),
            Some(tree::Ending::Signal(signal)) => {
                End::Status(status::SIGNALLED + u8::try_from(signal as i32).expect("signals are below 32"))
            }
            None => End::Status(u8::MAX),
        };
        let Some(lock) = lock else { return self.report(end, false) };
        self.keep_at_least(lock.held(), began).await?;
        let leaves = !self.options.close && !tree::bury(job.pid)?;
        if leaves || self.options.once_per.is_some() {
            self.report(end, true)?;
            self.keep(job, lock.held(), began, leaves).await?;
            release(Some(lock)).await;
            return Ok(());
        }
        release(Some(lock)).await;
        self.report(end, false)
    }

    /// Keeps the lock for `--min-hold`, unless a signal says that it is enough.
    async fn keep_at_least(&self, held: &Held, began: Instant) -> io::Result<()> {
        let Some(time) = self.options.min_hold else { return Ok(()) };
        loop {
            let came = tokio::select! {
                came = next(&self.signals) => came?,
                _ = held.lost() => return Ok(()),
                () = sleep_until(began + time) => return Ok(()),
            };
            if !matches!(came.signal, Signal::SIGCHLD | Signal::SIGCONT | Signal::SIGWINCH) {
                return Ok(());
            }
        }
    }

    /// Keeps the lock behind the back of the user, who has the report: for what CMD has left behind, and for `--once-per`.
    async fn keep(&mut self, job: &mut Job, held: &Held, began: Instant, leaves: bool) -> io::Result<()> {
        leave_the_user()?;
        let mut childless = !leaves;
        let mut over = self.options.once_per.is_none();
        while !(childless && over) {
            let heard = tokio::select! {
                biased;
                came = next(&self.signals) => self.hear(came?, job)?,
                lost = held.lost() => {
                    return if childless || self.lost(&lost, job) { self.end(job).await } else { Ok(()) };
                }
                () = until(began, self.options.once_per), if !over => {
                    over = true;
                    Heard::Nothing
                }
            };
            match heard {
                Heard::Childless => childless = true,
                // Who ends the guard means what it guards.
                Heard::Signal(signal) if childless => over |= signal != Signal::SIGCONT,
                Heard::Signal(signal) => job.signal(signal),
                Heard::Ended(_) | Heard::FrontDied | Heard::Nothing => {}
            }
        }
        Ok(())
    }

    /// Ends everything that CMD started: first by a signal, then by SIGKILL.
    pub(super) async fn end(&mut self, job: &Job) -> io::Result<()> {
        let deadline = Instant::now() + self.options.kill_after();
        job.terminate(self.options.term_signal.unwrap_or(Signal::SIGTERM));
        while !tree::bury(job.pid)? {
            tokio::select! {
                came = next(&self.signals) => {
                    if came?.signal == FRONT_DIED && self.reports.is_some() && getppid() != self.front.pid {
                        break;
                    }
                }
                () = sleep_until(deadline) => break,
            };
        }
        kill(job.pid).await
    }
}

/// Kills everything that CMD started, and waits until nothing is left.
pub(super) async fn kill(expected: Pid) -> io::Result<()> {
    const LOOK_AGAIN: Duration = Duration::from_millis(2);
    let mut spared = Vec::new();
    while let Some(strangers) = tree::kill_all(expected)? {
        if !strangers.is_empty() && strangers == spared {
            for pid in spared {
                say::error(&format!("process {pid} goes on: only the user it runs as may end it"));
            }
            break;
        }
        spared = strangers;
        sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

/// Waits until so much time has passed since then; for ever if there is no such time.
async fn until(began: Instant, time: Option<Duration>) {
    match time {
        Some(time) => sleep_until(began + time).await,
        None => std::future::pending().await,
    }
}

/// Gives the lock back, so that it is free when the user sees us end. A daemon that does not answer gets it by the end of the
/// connection.
pub(super) async fn release(lock: Option<Lock>) {
    const PATIENCE: Duration = Duration::from_secs(2);
    let Some(lock) = lock else { return };
    let Some((_client, held)) = lock.into_held().await else { return };
    let _ = tokio::time::timeout(PATIENCE, held.release()).await;
}

/// Lets go of what the user waits for: a shell or a cron daemon reads our streams until their end.
fn leave_the_user() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}
