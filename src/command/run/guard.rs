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
use tokio::time::Instant;

use super::answer::Lock;
use super::job::{Front, Job};
use super::report::{End, Report};
use super::signals::{self, Signalled, Signals};
use super::watch;
use crate::command::options::{CommandLine, Run, Verb};
use crate::command::trouble::Trouble;
use crate::command::{say, session, status};
use crate::readiness::watched;
use distrilock_client::Client;

/// The word that makes a process of our program a guard. It is nothing that a user types.
pub(in crate::command) const WORD: &str = "run:guard";

/// What the kernel sends when the front has died. Nobody else has a use for it here.
pub(super) const FRONT_DIED: Signal = Signal::SIGURG;

/// Begins to guard.
pub(in crate::command) fn main(arguments: &[OsString]) -> u8 {
    let Some(order) = Order::read(arguments) else {
        say::error("this command line is not one that people write");
        return status::USAGE;
    };
    let ended = session::block_on(async {
        let failed = Trouble::system("guard CMD");
        let mut guard = Guard::begin(order).map_err(Trouble::system("guard CMD"))?;
        let Err(error) = guard.serve().await else { return Ok(()) };
        // What cannot be guarded does not go on.
        let _ = watch::kill(Pid::this()).await;
        let _ = guard.report(End::Status(status::SYSTEM), false);
        Err(failed(error))
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

/// See the module.
pub(super) struct Guard {
    pub(super) options: Run,
    words: Vec<OsString>,
    line_servers: Vec<distrilock_client::Server>,
    mask: SigSet,
    pub(super) signals: AsyncFd<Signals>,
    pub(super) front: Front,
    /// Where the front waits for our report, until it has it.
    pub(super) reports: Option<File>,
    /// The server that has the lock.
    pub(super) server: String,
    /// The signals that we passed on to CMD.
    pub(super) passed_on: Vec<Signal>,
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
        if getppid() != order.front {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        // Opened anew, since it comes as a number; the copy that we inherited would stay open in CMD.
        let reports = File::options().write(true).open(format!("/proc/self/fd/{}", order.reporter))?;
        close(order.reporter)?;
        let front = Front { pid: order.front, group: getpgid(Some(order.front)).unwrap_or(order.front) };
        let Verb::Run(options) = order.line.verb else { return Err(io::ErrorKind::InvalidInput.into()) };
        let words = options.words().map_err(|_| io::ErrorKind::InvalidInput)?;
        let signals = watched(signals)?;
        Ok(Self {
            options: *options,
            words,
            line_servers: order.line.servers,
            mask: order.mask,
            signals,
            front,
            reports: Some(reports),
            server: String::new(),
            passed_on: Vec::new(),
            suspended: false,
        })
    }

    /// Takes the lock, runs CMD, and reports.
    async fn serve(&mut self) -> io::Result<()> {
        let lock = match self.lock().await {
            Ok(lock) => Some(lock),
            Err(Early::FrontDied) => return Ok(()),
            Err(Early::Signal(signal)) => return self.report(End::Signal(signal), false),
            Err(Early::Trouble(trouble)) => {
                let status = self.tell(&trouble);
                if !self.options.run_anyway {
                    return self.report(End::Status(status), false);
                }
                say::error("running CMD without the lock, as --run-anyway says");
                None
            }
        };
        let began = Instant::now();
        let held = lock.as_ref().map(Lock::held);
        let told = match &lock {
            Some(lock) => lock.variables(),
            None => vec![("DISTRILOCK_HELD", "0".to_owned())],
        };
        let mut job = Job::start(&self.options, &self.words, self.front, &self.mask, &told)?;
        match self.watch(&mut job, held, began).await? {
            watch::Watched::FrontDied => watch::kill(job.pid).await,
            watch::Watched::Over(status) => {
                self.end(&job).await?;
                job.ended(None);
                watch::release(lock).await;
                self.report(End::Status(status), false)
            }
            watch::Watched::Ended(how) => self.finish(&mut job, lock, how, began).await,
        }
    }

    /// Connects and acquires, unless a signal ends the wait. While the user's job is stopped, the place in the queue is kept, and
    /// what is granted as well.
    async fn lock(&mut self) -> Result<Lock, Early> {
        let mut options = self.options.clone();
        options.asking.nonblock |= options.once_per.is_some();
        let servers = self.line_servers.clone();
        let command = (!options.no_argv).then(|| session::line_of(&self.words));
        let work = async move {
            session::jitter(options.jitter).await;
            let who = session::introduction(options.asking.note.as_deref(), command.as_deref());
            // What is left of the time to stop is for the kernel and for us.
            let stop_within = options.kill_after() + Duration::from_secs(2);
            let client = session::connect(Client::builder().stop_within(stop_within), &who, &servers).await?;
            let held = session::acquire(&client, &options.asking, &options.names).await?;
            Ok((client, held))
        };
        let (client, held) = self.attend_while(work).await?.map_err(Early::Trouble)?;
        self.server = client.server().to_string();
        while self.suspended {
            if let Some(lost) = self.attend_once(held.lost()).await? {
                return Err(Early::Trouble(Trouble::Lost { server: client.server().clone(), lost }));
            }
        }
        Ok(Lock::new(client, held))
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
    pub(super) fn report(&mut self, end: End, guard_stays: bool) -> io::Result<()> {
        match self.reports.take() {
            Some(mut reports) => reports.write_all(&Report { end, guard_stays }.to_bytes()),
            None => Ok(()),
        }
    }
}

/// The next signal.
///
/// # Cancel safety
/// No signal is taken unless it is given.
pub(super) async fn next(signals: &AsyncFd<Signals>) -> io::Result<Signalled> {
    loop {
        let mut ready = signals.readable().await?;
        match signals.get_ref().next()? {
            Some(came) => return Ok(came),
            None => ready.clear_ready(),
        }
    }
}
