//! The daemon's life: start, serve, and stop or hand over to its next process.
//!
//! ```text
//! run: sockets, log, directory, files, threads, lock table
//!   Daemon::start: take over, watch the storage, accept, READY=1
//!     Daemon::serve: until a signal
//!       SIGUSR2: hand_over      SIGTERM, SIGINT: stop
//! ```

mod hand_over;
mod listen;
mod report;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::SIGXFSZ;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::close;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::directory::{Directory, DirectoryError};
use crate::files::mount::Mount;
use crate::files::{FileId, presence};
use crate::front::{Listening, SessionThreads, Transport, accept};
use crate::host::host_name;
use crate::limits::{DESCRIPTORS_LOW, DESCRIPTORS_READY, FAREWELL_MS_MAX, START_DESCRIPTORS};
use crate::lock_table::storage::watch;
use crate::lock_table::turns::Turns;
use crate::lock_table::{LockTable, Storage, boards, deadlocks, hints};
use crate::settings::{Address, Settings};
use crate::shortage::{check_descriptors, remedy};
use crate::sync::locked;
use crate::systemd::notify::Notifier;
use crate::systemd::store::Store;
use crate::systemd::{ids, journal, sockets};
use listen::{Listeners, MadeSocket, Registered};

/// Why the daemon does not start. Each message names what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum StartError {
    #[error(transparent)]
    Socket(#[from] sockets::SocketError),
    #[error(transparent)]
    Log(#[from] journal::LogError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(
        "cannot listen at {address}: {error}; is another daemon running, or does the address not belong to this host?"
    )]
    Listen { address: Address, error: io::Error },
    #[error("cannot announce this daemon in the lock directory {}: {error}; its user must be able to write there", path.display())]
    Node { path: PathBuf, error: io::Error },
    #[error("another file system lies under the lock directory {}: {what}; stopped, since the locks were on the other one", path.display())]
    Remounted { path: PathBuf, what: String },
    #[error("cannot have {count} more files open: {error}{}", remedy(.error))]
    Descriptors { count: usize, error: io::Error },
    #[error("cannot start: {}{remedy}", .0, remedy = remedy(.0))]
    System(#[from] io::Error),
}

/// How long a stop or a hand-over waits for file calls that may take long.
const STORAGE_REST: Duration = Duration::from_secs(5);

/// Where this daemon's own file in the lock directory is.
type OwnFile = Arc<Mutex<PathBuf>>;

/// A daemon that serves.
struct Daemon {
    table: Arc<LockTable>,
    threads: Arc<SessionThreads>,
    directory: Directory,
    /// The device and inode of the lock directory. They are looked up once: in the end the file
    /// server might not answer.
    place: FileId,
    /// Where sessions go when this process ends; without it they end with it.
    store: Option<Store>,
    notifier: Arc<Notifier>,
    /// What runs beside the sessions.
    tasks: Vec<JoinHandle<()>>,
    own_file: Option<OwnFile>,
    /// Says what else is mounted under the lock directory now.
    remounted: oneshot::Receiver<String>,
    /// Removed at a stop. After a hand-over, the next process replaces them.
    made: Vec<MadeSocket>,
}

/// What systemd's file descriptor store had for this process.
struct Kept {
    store: Option<Store>,
    /// Names of descriptors that this version does not know.
    unknown_fds: Vec<String>,
}

/// Why the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The signal of `RestartKillSignal=` in the unit, SIGUSR2 (systemd.kill(5)): the next process
    /// continues the sessions.
    HandOver,
    /// This signal.
    Stop(&'static str),
}

/// The signals that a daemon listens to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    hand_over: Signal,
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// If it cannot start.
pub fn run(settings: Settings) -> Result<(), StartError> {
    // The sockets come first: nothing else may have opened a descriptor.
    let mut passed = sockets::take()?;
    let descriptors_max = raise_descriptor_limit()?;
    let count = START_DESCRIPTORS;
    check_descriptors(count).map_err(|error| StartError::Descriptors { count, error })?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    survive_file_size_limit(&runtime)?;
    let _log = journal::start(settings.log)?;
    warn_of_few_descriptors(descriptors_max);
    let directory = Directory::find(&settings)?;
    let kept = Kept::of(&mut passed);
    let listeners = Listeners::open(&settings, passed)?;
    let files = directory.files()?;
    if files.network().is_some() {
        // The modes of lock files follow the directory's mode: daemons on other hosts have to open
        // them.
        umask(Mode::empty());
    }
    let turns = Arc::new(Turns::new(settings.threads()));
    let threads = Arc::new(SessionThreads::start(Arc::clone(&turns))?);
    let node = host_name();
    let storage = Storage::new(files, directory.mount.word(), directory.timing, &settings);
    let table = Arc::new(LockTable::new(settings, storage, node, descriptors_max, turns, runtime.handle().clone()));
    runtime.block_on(async {
        // Before anything else, so that none of them ends the process by its default action.
        let signals = Signals::listen()?;
        let daemon = Daemon::start(table, threads, directory, listeners, kept)?;
        daemon.serve(signals).await
    })
}

impl Kept {
    fn of(passed: &mut sockets::Passed) -> Self {
        let stored = std::mem::take(&mut passed.stored);
        let mut unknown_fds = std::mem::take(&mut passed.unknown_fds);
        let store = Store::of(stored).unwrap_or_else(|names| {
            unknown_fds.extend(names);
            None
        });
        Self { store, unknown_fds }
    }
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            hand_over: signal(SignalKind::user_defined2())?,
        })
    }

    /// Waits for a signal that ends the daemon, or for something else to be mounted under the lock
    /// directory.
    async fn ending(&mut self, remounted: &mut oneshot::Receiver<String>) -> Result<Ending, String> {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return Ok(Ending::Stop("SIGTERM")),
                _ = self.interrupt.recv() => return Ok(Ending::Stop("SIGINT")),
                _ = self.hand_over.recv() => return Ok(Ending::HandOver),
                Ok(what) = &mut *remounted => return Err(what),
                // There is no configuration to reload, and the end of a terminal does not concern a
                // daemon.
                _ = self.hang_up.recv() => {}
            }
        }
    }
}

impl Daemon {
    /// Continues the sessions of the previous process, if it left any, and starts to serve.
    fn start(
        table: Arc<LockTable>,
        threads: Arc<SessionThreads>,
        directory: Directory,
        listeners: Listeners,
        kept: Kept,
    ) -> Result<Self, StartError> {
        let notifier = Arc::new(Notifier::from_env()?);
        notifier.forget(&kept.unknown_fds);
        let place = table.storage.files.directory_id()?;
        // Everything that may fail for lack of resources comes before the sessions of the previous
        // process are taken from the store: if this process ends, the next one still finds them
        // there.
        let registered = listeners.register()?;
        table.start_storage()?;
        deadlocks::start(&table)?;
        boards::start(&table)?;
        let remounted = watch::remounted(Arc::clone(&table), directory.path.clone(), directory.mount.clone())?;
        let prepared = prepare_watch(&table, &directory, &notifier)?;
        let (store, left) = look_into(&table, kept.store, place, &notifier);
        directory.log();
        // A file server that has just started makes everybody wait until its grace period is over.
        let own_file = prepared.map(|prepared| notifier.while_starting(|| prepared.start()));
        if let Some(left) = left {
            hand_over::take_over(&table, &threads, left);
        }
        let Registered { listening, made } = registered;
        let tasks = Vec::new();
        let mut daemon = Self { table, threads, directory, place, store, notifier, tasks, own_file, remounted, made };
        daemon.accept(listening);
        daemon.start_tasks();
        Ok(daemon)
    }

    fn accept(&mut self, listeners: Vec<(Transport, Listening)>) {
        for (transport, listening) in listeners {
            let (table, threads) = (Arc::clone(&self.table), Arc::clone(&self.threads));
            self.tasks.push(tokio::spawn(accept(table, threads, listening, transport)));
        }
    }

    fn start_tasks(&mut self) {
        let (table, threads, notifier) = (&self.table, &self.threads, &self.notifier);
        if table.storage.files.network().is_some() {
            self.tasks.push(tokio::spawn(watch::check_silence(Arc::clone(table), self.directory.timing)));
        } else {
            collect(table);
            hints::start(table);
        }
        self.tasks.push(tokio::spawn(report::ping(Arc::clone(table), Arc::clone(threads), Arc::clone(notifier))));
        notifier.status(&report::status(table));
        self.tasks.push(tokio::spawn(report::report(Arc::clone(table), Arc::clone(notifier))));
    }

    /// Serves until a signal ends the daemon.
    async fn serve(mut self, mut signals: Signals) -> Result<(), StartError> {
        let path = self.table.storage.files.directory().display().to_string();
        tracing::info!(
            MESSAGE_ID = ids::DAEMON_READY,
            DIRECTORY = path,
            "serving the lock directory {path} ({})",
            self.table.storage.kind()
        );
        self.notifier.ready();
        let ending = match signals.ending(&mut self.remounted).await {
            Ok(ending) => ending,
            // Locks on the previous file system do not exclude anyone on the new one: the kernel
            // frees them now.
            Err(what) => return Err(StartError::Remounted { path: self.directory.path, what }),
        };
        self.notifier.stopping();
        match (ending, self.store.take()) {
            (Ending::HandOver, Some(store)) if watch::may_hand_over(&self.table, self.directory.timing) => {
                self.hand_over(&store).await;
            }
            (Ending::HandOver, _) => self.stop("SIGUSR2").await,
            (Ending::Stop(signal), _) => self.stop(signal).await,
        }
        self.table.boards.leave();
        if let Some(place) = self.own_file {
            presence::leave(&locked(&place));
        }
        Ok(())
    }

    /// Hands all sessions to the next process.
    async fn hand_over(&self, store: &Store) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.table.hints.leave();
        self.table.deadlocks.end();
        self.table.boards.end(&self.table);
        match hand_over::hand_over(&self.table, &self.threads, store, self.place).await {
            Ok(count) => {
                tracing::info!(
                    MESSAGE_ID = ids::HAND_OVER,
                    "left {} sessions and {} locks to the next process; {} sessions had to end",
                    count.sessions,
                    count.locks,
                    count.ended
                );
                // After a short life of this process, the manager might not have been told yet to
                // keep the store.
                if let Err(error) = self.notifier.barrier() {
                    tracing::warn!("the service manager does not answer: {error}");
                }
            }
            Err(error) => tracing::error!(
                MESSAGE_ID = ids::HAND_OVER_FAILED,
                "the sessions end, and their locks are free, since they cannot be handed over: {error}; as many descriptors \
                 as LimitNOFILE= of the service may be on their way"
            ),
        }
    }

    /// Ends every session and leaves the directory as clean as it was found.
    async fn stop(&self, signal: &str) {
        tracing::info!(MESSAGE_ID = ids::DAEMON_STOPPING, "stopping on {signal}");
        self.tasks.iter().for_each(JoinHandle::abort);
        self.made.iter().for_each(MadeSocket::remove);
        self.table.hints.leave();
        self.table.deadlocks.end();
        self.table.boards.end(&self.table);
        self.table.drain();
        self.table.mailboxes.stop_all();
        // A session releases its locks before it says farewell, which may take a while: twice that
        // is enough for all.
        let all_left = timeout(2 * Duration::from_millis(FAREWELL_MS_MAX), self.table.mailboxes.emptied()).await;
        if all_left.is_err() {
            let count = self.table.mailboxes.count();
            tracing::warn!("{count} sessions did not end in time; the kernel frees their locks now");
        }
        let _ = timeout(STORAGE_REST, self.table.carried_out()).await;
        if !self.table.storage.rest(STORAGE_REST) {
            tracing::warn!(
                "the lock directory's storage did not answer in time; the kernel frees the locks now, and lock files may stay"
            );
        }
        // The session threads are writing the farewells; clients that read get them at once.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Returns the store, or a new one, and what the previous process left in it. Without a store, a
/// restart ends the sessions, as a stop does.
fn look_into(
    table: &Arc<LockTable>,
    store: Option<Store>,
    place: FileId,
    notifier: &Notifier,
) -> (Option<Store>, Option<hand_over::Taken>) {
    let Some(store) = store else {
        let made = Store::new(notifier);
        let made = made.inspect_err(|error| tracing::warn!("sessions will end with this process: {error}"));
        return (made.ok().flatten(), None);
    };
    let read = store.take().map_err(|fault| fault.to_string());
    let read = read.and_then(|left| {
        left.map(|left| hand_over::read(table, left, place)).transpose().map_err(|unusable| unusable.to_string())
    });
    let read = read.inspect_err(|why| {
        tracing::error!(
            MESSAGE_ID = ids::HAND_OVER_FAILED,
            "the sessions of the previous process have ended, and their locks are free: what it left cannot be used: {why}"
        );
    });
    (Some(store), read.ok().flatten())
}

/// Prepares the watch over an NFS server. Where no lease is known there is nothing to listen for.
fn prepare_watch(
    table: &Arc<LockTable>,
    directory: &Directory,
    notifier: &Notifier,
) -> Result<Option<watch::Prepared>, StartError> {
    let Some(timing) = directory.timing else { return Ok(None) };
    let by_name = matches!(&directory.mount, Mount::Nfs4(nfs) if nfs.minor > 0);
    let fault = |error| StartError::Node { path: directory.path.clone(), error };
    // This may have to wait for the end of the server's grace period, too.
    notifier.while_starting(|| watch::prepare(Arc::clone(table), timing, by_name)).map(Some).map_err(fault)
}

/// Deletes what killed daemons left, in a thread of its own: there may be much of it, and the end
/// of the daemon need not wait.
fn collect(table: &Arc<LockTable>) {
    let table = Arc::clone(table);
    let work = move || match table.storage.files.collect() {
        Ok(0) => {}
        Ok(count) => tracing::info!("deleted {count} lock files that nobody held"),
        Err(fault) => tracing::warn!(MESSAGE_ID = ids::STORAGE_FAULT, "{fault}: {}", fault.remedy()),
    };
    if let Err(error) = std::thread::Builder::new().name("collect".into()).spawn(work) {
        tracing::warn!("cannot delete the lock files that killed daemons left: {error}; the next start tries again");
    }
}

/// A write beyond the limit of file sizes (RLIMIT_FSIZE) fails with EFBIG, and does not end the
/// daemon: once SIGXFSZ has a handler, which stays for good, it no longer kills (setrlimit(2)).
fn survive_file_size_limit(runtime: &Runtime) -> io::Result<()> {
    let _context = runtime.enter();
    signal(SignalKind::from_raw(SIGXFSZ)).map(drop)
}

/// Makes the kernel's table of descriptors as large as it will be. Later, each time it has to grow,
/// opening a file or accepting a connection would take some ten milliseconds: in a process with
/// threads, the kernel waits until no processor reads the old table (expand_fdtable in fs/file.c).
fn make_room_for_descriptors(limit: u64) {
    let last = i32::try_from(limit.min(DESCRIPTORS_READY)).unwrap_or(i32::MAX) - 1;
    // Without room, the table grows later.
    if let Ok(number) = fcntl(io::stderr(), FcntlArg::F_DUPFD_CLOEXEC(last)) {
        let _ = close(number);
    }
}

/// Raises the limit of open files as far as possible. Returns the new limit.
fn raise_descriptor_limit() -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    make_room_for_descriptors(hard);
    Ok(hard)
}

fn warn_of_few_descriptors(hard: u64) {
    if hard < DESCRIPTORS_LOW {
        tracing::warn!(
            MESSAGE_ID = ids::DESCRIPTOR_LIMIT_LOW,
            LIMIT = hard,
            "only {hard} file descriptors: a session with one lock takes two; raise LimitNOFILE= of the service, or ulimit -Hn"
        );
    }
}
