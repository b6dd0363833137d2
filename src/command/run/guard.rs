//! The guard: holds the lock, starts CMD, and ends all that CMD started when the lock is lost, when its time is over, or when the
//! front is gone. It is in a process group of its own and a subreaper: no descendant of CMD can leave it.

use std::ffi::OsString;
use std::fs::File;
use std::future::Future;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::time::Duration;

use clap::Parser;
use nix::sys::prctl::{set_child_subreaper, set_name, set_pdeathsig};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, close, getpgid, getppid};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, sleep_until};

use super::job::{Front, Job};
use super::report::Report;
use super::signals::{self, Signalled, Signals};
use super::{tree, variables};
use crate::client::{Client, Held};
use crate::command::options::{CommandLine, Run, Verb};
use crate::command::trouble::Trouble;
use crate::command::{say, session, status};

/// The word that makes a process of our program a guard. It is nothing that a user types.
pub(in crate::command) const WORD: &str = "run:guard";

/// What the kernel sends when the front has died. Nobody else has a use for it here.
const FRONT_DIED: Signal = Signal::SIGURG;

/// Begins to guard.
pub(in crate::command) fn main(arguments: &[OsString]) -> u8 {
    let Some(order) = Order::read(arguments) else {
        say::error("this command line is not one that people write");
        return status::USAGE;
    };
    let ended = session::block_on(async {
        let guard = Guard::begin(order).map_err(Trouble::system("guard CMD"))?;
        guard.serve().await.map_err(Trouble::system("guard CMD"))
    });
    match ended {
        Ok(()) => status::DONE,
        Err(trouble) => trouble.tell(status::BUSY),
    }
}

/// What the front orders.
struct Order {
    reporter: RawFd,
    mask: SigSet,
    front: Pid,
    line: CommandLine,
}

impl Order {
    fn read(arguments: &[OsString]) -> Option<Self> {
        let [reporter, mask, front, rest @ ..] = arguments else { return None };
        let program = [OsString::from("distrilock")];
        Some(Self {
            reporter: reporter.to_str()?.parse().ok()?,
            mask: signals::of_text(mask.to_str()?)?,
            front: Pid::from_raw(front.to_str()?.parse().ok()?),
            line: CommandLine::try_parse_from(program.iter().chain(rest)).ok()?,
        })
    }
}

/// Why CMD is not started.
enum Early {
    /// The user ended us by this signal.
    Signal(Signal),
    FrontDied,
    Trouble(Trouble),
}

/// What happened while CMD ran.
enum Watched {
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

struct Guard {
    options: Run,
    words: Vec<OsString>,
    line_servers: Vec<crate::client::Server>,
    mask: SigSet,
    signals: AsyncFd<Signals>,
    front: Front,
    /// Where the front waits for our report, until it has it.
    reports: Option<File>,
    /// The signals that we passed on to CMD.
    passed_on: Vec<Signal>,
    /// Whether the user's job is stopped, so that nothing may begin.
    suspended: bool,
}

impl Guard {
    fn begin(order: Order) -> io::Result<Self> {
        // Who ends all processes that are called distrilock does not mean this one.
        let _ = set_name(c"lock-guard");
        set_child_subreaper(true)?;
        // SIGTTOU would stop us when we give the terminal away from the background (tcsetpgrp(3)).
        let signals = Signals::take(&[Signal::SIGCHLD, Signal::SIGTTIN, Signal::SIGTTOU, FRONT_DIED])?;
        set_pdeathsig(FRONT_DIED)?;
        // Opened anew, since it comes as a number; the copy that we inherited would stay open in CMD.
        let reports = File::options().write(true).open(format!("/proc/self/fd/{}", order.reporter))?;
        close(order.reporter)?;
        let front = Front { pid: order.front, group: getpgid(Some(order.front)).unwrap_or(order.front) };
        let Verb::Run(options) = order.line.verb else { return Err(io::ErrorKind::InvalidInput.into()) };
        let words = options.words().map_err(|_| io::ErrorKind::InvalidInput)?;
        #[expect(
            deprecated,
            reason = "what replaces it is unsafe, for values whose descriptor changes; this one keeps its own until it is dropped"
        )]
        let signals = AsyncFd::new(signals)?;
        Ok(Self {
            options: *options,
            words,
            line_servers: order.line.servers,
            mask: order.mask,
            signals,
            front,
            reports: Some(reports),
            passed_on: Vec::new(),
            suspended: false,
        })
    }

    /// Takes the lock, runs CMD, and reports.
    async fn serve(mut self) -> io::Result<()> {
        let lock = match self.lock().await {
            Ok(lock) => Some(lock),
            Err(Early::FrontDied) => return Ok(()),
            Err(Early::Signal(signal)) => return self.report(Report::Signal(signal)),
            Err(Early::Trouble(trouble)) => {
                let status = self.tell(&trouble);
                if !self.options.run_anyway {
                    return self.report(Report::Status(status));
                }
                say::error("running CMD without the lock, as --run-anyway says");
                None
            }
        };
        let began = Instant::now();
        let held = lock.as_ref().map(|(_, held)| held);
        let told = match &lock {
            Some((client, held)) => variables(&client.welcome().session, held),
            None => vec![("DISTRILOCK_HELD", "0".to_owned())],
        };
        let mut job = Job::start(&self.options, &self.words, self.front, &self.mask, &told)?;
        match self.watch(&mut job, held, began).await? {
            Watched::FrontDied => kill(&job).await,
            Watched::Over(status) => {
                self.end(&job).await?;
                job.ended(None);
                release(lock).await;
                self.report(Report::Status(status))
            }
            Watched::Ended(how) => self.finish(&mut job, lock, how, began).await,
        }
    }

    /// Connects and acquires, unless a signal ends the wait. While the user's job is stopped, the place in the queue is kept, and
    /// what is granted as well.
    async fn lock(&mut self) -> Result<(Client, Held), Early> {
        let mut options = self.options.clone();
        options.asking.nonblock |= options.once_per.is_some();
        let servers = self.line_servers.clone();
        let command = (!options.no_argv).then(|| session::line_of(&self.words));
        let work = async move {
            sleep(session::random_part(options.jitter.unwrap_or_default())).await;
            let who = session::introduction(options.asking.note.as_deref(), command.as_deref());
            // What is left of the time to stop is for the kernel and for us.
            let stop_within = options.kill_after() + Duration::from_secs(2);
            let client = session::connect(Client::builder().stop_within(stop_within), &who, &servers).await?;
            let held = session::acquire(&client, &options.asking, &options.names).await?;
            Ok((client, held))
        };
        let (client, held) = self.attend_while(work).await?.map_err(Early::Trouble)?;
        while self.suspended {
            let resumed = async { Err::<(), _>(Trouble::Lost(held.lost().await)) };
            let came = self.attend_once(resumed).await?;
            came.transpose().map_err(Early::Trouble)?;
        }
        Ok((client, held))
    }

    /// Does this work before CMD runs, and attends to signals meanwhile.
    async fn attend_while<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Early> {
        let mut work = std::pin::pin!(work);
        loop {
            if let Some(done) = self.attend_once(work.as_mut()).await? {
                return Ok(done);
            }
        }
    }

    /// Attends to one signal, or gives what the work gives.
    async fn attend_once<T>(&mut self, work: impl Future<Output = T>) -> Result<Option<T>, Early> {
        let failed = |error: io::Error| Early::Trouble(Trouble::System { what: "read signals", error });
        let came = tokio::select! {
            biased;
            came = next(&self.signals) => came.map_err(failed)?,
            done = work => return Ok(Some(done)),
        };
        match came.signal {
            FRONT_DIED if getppid() != self.front.pid => return Err(Early::FrontDied),
            Signal::SIGTSTP => {
                self.suspended = true;
                // It does to the front what it would have done without us.
                let _ = nix::sys::signal::kill(self.front.pid, Signal::SIGTSTP);
            }
            Signal::SIGCONT => self.suspended = false,
            Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP | Signal::SIGQUIT | Signal::SIGUSR1 | Signal::SIGUSR2 => {
                return Err(Early::Signal(came.signal));
            }
            _ => {}
        }
        Ok(None)
    }

    /// Attends to CMD until it ends or has to.
    async fn watch(&mut self, job: &mut Job, held: Option<&Held>, began: Instant) -> io::Result<Watched> {
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
    fn lost(&self, lost: &crate::client::Lost, job: &Job) -> bool {
        use crate::command::values::OnLost;
        let then = match self.options.on_lost.unwrap_or(OnLost::Kill) {
            OnLost::Kill => "CMD and all that it started is ended",
            OnLost::Signal(_) => "CMD gets a signal, and goes on",
            OnLost::Warn => "CMD goes on",
        };
        say::error(&say::shown(&format!("{lost}; {then}")));
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
    async fn finish(
        &mut self,
        job: &mut Job,
        lock: Option<(Client, Held)>,
        how: Option<tree::Ending>,
        began: Instant,
    ) -> io::Result<()> {
        let by = if let Some(tree::Ending::Signal(signal)) = how { Some(signal) } else { None };
        let by_key = job.ended(by);
        let report = match how {
            Some(tree::Ending::Status(status)) => Report::Status(status),
            Some(tree::Ending::Signal(signal)) if by_key || self.passed_on.contains(&signal) => Report::Signal(signal),
            Some(tree::Ending::Signal(signal)) => {
                Report::Status(status::SIGNALLED + u8::try_from(signal as i32).expect("signals are below 32"))
            }
            None => Report::Status(u8::MAX),
        };
        let Some((client, held)) = lock else { return self.report(report) };
        self.keep_at_least(&held, began).await?;
        let leaves = !self.options.close && tree::news(job.pid)? != tree::News::Childless;
        if leaves || self.options.once_per.is_some() {
            self.report(report)?;
            self.keep(job, &held, began, leaves).await?;
            release(Some((client, held))).await;
            return Ok(());
        }
        release(Some((client, held))).await;
        self.report(report)
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
    async fn end(&mut self, job: &Job) -> io::Result<()> {
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
        kill(job).await
    }

    /// Says why the lock is not to be had, and gives the status for it. That it is busy is no error, as with flock(1).
    fn tell(&self, trouble: &Trouble) -> u8 {
        let busy = self.options.busy_status();
        let status = match trouble.is_busy() && !self.options.asking.verbose {
            true => busy,
            false => trouble.tell(busy),
        };
        if status == status::UNREACHABLE && !trouble.is_busy() { self.options.unreachable_status() } else { status }
    }

    /// Tells the front how to end. That ends the front, so what is to be done before that is done.
    fn report(&mut self, report: Report) -> io::Result<()> {
        match self.reports.take() {
            Some(mut reports) => reports.write_all(&report.to_bytes()),
            None => Ok(()),
        }
    }
}

/// Kills everything that CMD started, and waits until nothing is left.
async fn kill(job: &Job) -> io::Result<()> {
    const LOOK_AGAIN: Duration = Duration::from_millis(2);
    let mut spared = Vec::new();
    while let Some(strangers) = tree::kill_all(job.pid)? {
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

/// The next signal.
///
/// # Cancel safety
/// No signal is taken unless it is given.
async fn next(signals: &AsyncFd<Signals>) -> io::Result<Signalled> {
    loop {
        let mut ready = signals.readable().await?;
        match signals.get_ref().next()? {
            Some(came) => return Ok(came),
            None => ready.clear_ready(),
        }
    }
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
async fn release(lock: Option<(Client, Held)>) {
    const PATIENCE: Duration = Duration::from_secs(2);
    let Some((_client, held)) = lock else { return };
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
