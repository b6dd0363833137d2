//! Start, serve and stop.

use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{self, Backlog};
use nix::sys::stat::{Mode, umask};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::directory::{Directory, DirectoryFault};
use super::{Core, STORAGE_REST, hand_over, hints, storage};
use crate::files::mount::Mount;
use crate::files::node;
use crate::front::{Front, Listening, Worker, accept, burst};
use crate::limits::{DESCRIPTORS_LOW, FAREWELL_MS_MAX};
use crate::settings::{Address, Settings};
use crate::systemd::notify::{Notifier, watchdog_interval};
use crate::systemd::sockets::{Listener, Passed};
use crate::systemd::store::Store;
use crate::systemd::{ids, journal, sockets};

/// Why the daemon does not start. Each names what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum StartFault {
    #[error(transparent)]
    Socket(#[from] sockets::SocketError),
    #[error(transparent)]
    Log(#[from] journal::LogError),
    #[error(transparent)]
    Directory(#[from] DirectoryFault),
    #[error("cannot listen at {address}: {error}; is another daemon running, or is the address not of this host?")]
    Listen { address: Address, error: io::Error },
    #[error("cannot make this daemon known in the lock directory {}: {error}; its user has to be able to write there", path.display())]
    Node { path: PathBuf, error: io::Error },
    #[error("another file system lies under the lock directory {}: {what}; stopped, since the locks were on the other one", path.display())]
    Remounted { path: PathBuf, what: String },
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

/// How many connections may wait to be accepted: as many as systemd asks for (systemd.socket(5), Backlog=).
const BACKLOG: i32 = 4096;

/// After so many tasks a thread looks for new events, although there are tasks left: a burst of a thousand clients stays whole.
const EVENT_INTERVAL: u32 = 1000;

/// The signal after which the sessions go on in the next process: `RestartKillSignal=` of the unit (systemd.kill(5)).
const HAND_OVER: &str = "SIGUSR2";

/// Where this daemon's own file in the lock directory is.
type NodePlace = Arc<Mutex<PathBuf>>;

/// The sockets of both fronts.
struct Fronts {
    tcp: Vec<Listener>,
    ws: Vec<Listener>,
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// If it cannot start.
pub fn run(settings: Settings) -> Result<(), StartFault> {
    // The sockets come first: nothing else may have opened a descriptor.
    let mut passed = sockets::take()?;
    let _log = journal::start(settings.log)?;
    let descriptors = raise_descriptor_limit()?;
    let directory = Directory::find(&settings)?;
    let stored = std::mem::take(&mut passed.stored);
    let mut unknown_fds = std::mem::take(&mut passed.unknown_fds);
    let store = Store::of(stored).unwrap_or_else(|names| {
        unknown_fds.extend(names);
        None
    });
    let fronts = listen(&settings, passed)?;
    let files = directory.files()?;
    if files.network().is_some() {
        // Lock files have the mode that the directory's calls for: daemons on other hosts have to open them.
        umask(Mode::empty());
    }
    let workers = (0..settings.threads()).map(worker).collect::<io::Result<Vec<_>>>()?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let node = nix::unistd::gethostname().map_or_else(|_| "unknown".into(), |name| name.to_string_lossy().into_owned());
    let stop_ms = directory.timing.map(|timing| u64::try_from(timing.stop.as_millis()).unwrap_or(u64::MAX));
    let files = (files, directory.mount.word(), stop_ms);
    let core = Arc::new(Core::new(settings, files, node, descriptors, runtime.handle().clone()));
    runtime.block_on(serve(core, workers.into(), fronts, directory, (store, unknown_fds)))
}

async fn serve(
    core: Arc<Core>,
    workers: Arc<[Worker]>,
    fronts: Fronts,
    found: Directory,
    (store, unknown_fds): (Option<Store>, Vec<String>),
) -> Result<(), StartFault> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut hand_on = signal(SignalKind::user_defined2())?;
    let directory = core.files.directory().display().to_string();
    let notifier = Arc::new(Notifier::from_env());
    notifier.forget(&unknown_fds);
    // Once and for all: at the end the file server might not answer.
    let place = core.files.place()?;
    let (store, taken) = look_into(&core, store, place, &notifier);
    found.tell();
    let node = watch_storage(&core, &found, &notifier)?;
    if let Some(taken) = taken {
        hand_over::take_over(&core, &workers, taken);
    }
    let mut tasks = Vec::new();
    for (front, listeners) in [(Front::Tcp, fronts.tcp), (Front::WebSocket, fronts.ws)] {
        for listener in listeners {
            let listening = Listening::new(listener)?;
            tasks.push(tokio::spawn(accept(Arc::clone(&core), Arc::clone(&workers), listening, front)));
        }
    }
    if core.files.network().is_some() {
        let on_silence = core.settings.on_storage_silence;
        tasks.push(tokio::spawn(storage::look_after(Arc::clone(&core), on_silence, found.timing)));
    } else {
        collect(&core)?;
        hints::start(&core);
    }
    tasks.push(tokio::spawn(watch(Arc::clone(&core), Arc::clone(&workers), Arc::clone(&notifier))));
    notifier.status(&status(&core));
    tasks.push(tokio::spawn(report(Arc::clone(&core), Arc::clone(&notifier))));
    tracing::info!(
        MESSAGE_ID = ids::DAEMON_READY,
        DIRECTORY = directory,
        "serving the lock directory {directory} ({})",
        core.storage()
    );
    notifier.ready();
    let mut remounted = storage::remounted(found.path.clone(), found.mount.clone())?;
    let by = loop {
        tokio::select! {
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
            _ = hand_on.recv() => break HAND_OVER,
            // Locks on the file system that was there before exclude nobody who uses the new one: the kernel frees them now.
            Ok(what) = &mut remounted => return Err(StartFault::Remounted { path: found.path, what }),
            // Nothing is read anew: what a terminal's end says to its programs is not meant for a daemon.
            _ = hang_up.recv() => {}
        }
    };
    notifier.stopping();
    match store.filter(|_| by == HAND_OVER && storage::may_hand_over(&core, found.timing)) {
        Some(store) => leave_to_the_next(&core, &workers, tasks, (&store, place), &notifier).await,
        None => stop(&core, tasks, by).await,
    }
    if let Some(place) = node {
        node::leave(&place.lock().expect("nothing panics while it is held"));
    }
    Ok(())
}

/// What is in the store, or a new one. Without one, a restart ends the sessions, as a stop does.
fn look_into(
    core: &Arc<Core>,
    store: Option<Store>,
    place: (u64, u64),
    notifier: &Notifier,
) -> (Option<Store>, Option<hand_over::Taken>) {
    let Some(store) = store else {
        let made = Store::new(notifier);
        let made = made.inspect_err(|error| tracing::warn!("sessions will end with this process: {error}"));
        return (made.ok().flatten(), None);
    };
    let read = store.take().map_err(|fault| fault.to_string());
    let read = read.and_then(|left| {
        left.map(|left| hand_over::read(core, left, place)).transpose().map_err(|unusable| unusable.to_string())
    });
    let read = read.inspect_err(|why| not_taken_over(why));
    (Some(store), read.ok().flatten())
}

fn not_taken_over(why: &str) {
    tracing::error!(
        MESSAGE_ID = ids::HAND_OVER_FAILED,
        "the sessions of the process before have ended, and their locks are free: what it left is of no use: {why}"
    );
}

/// Leaves all sessions to the next process.
async fn leave_to_the_next(
    core: &Arc<Core>,
    workers: &[Worker],
    tasks: Vec<JoinHandle<()>>,
    (store, place): (&Store, (u64, u64)),
    notifier: &Notifier,
) {
    tasks.iter().for_each(JoinHandle::abort);
    core.hints.leave();
    match hand_over::hand_over(core, workers, store, place).await {
        Ok(count) => {
            tracing::info!(
                MESSAGE_ID = ids::HAND_OVER,
                "left {} sessions and {} locks to the next process; {} sessions had to end",
                count.sessions,
                count.locks,
                count.ended
            );
            // Else it might not know yet, if this process was a short one, that it is to keep the store.
            if let Err(error) = notifier.barrier() {
                tracing::warn!("the service manager does not answer: {error}");
            }
        }
        Err(error) => tracing::error!(
            MESSAGE_ID = ids::HAND_OVER_FAILED,
            "the sessions end, and their locks are free, since they cannot be handed over: {error}; as many descriptors as \
             LimitNOFILE= of the service may be on their way"
        ),
    }
}

/// Ends every session and leaves the directory as clean as it was found.
async fn stop(core: &Arc<Core>, tasks: Vec<JoinHandle<()>>, by: &str) {
    tracing::info!(MESSAGE_ID = ids::DAEMON_STOPPING, "stopping on {by}");
    tasks.iter().for_each(JoinHandle::abort);
    core.hints.leave();
    core.drain();
    core.mailboxes.stop_all();
    // A session gives its locks back before its last words, which may take a while: twice that is enough for all.
    let all_left = timeout(2 * Duration::from_millis(FAREWELL_MS_MAX), core.mailboxes.emptied()).await;
    if all_left.is_err() {
        tracing::warn!("{} sessions did not end in time; the kernel frees their locks now", core.mailboxes.count());
    }
    if core.workers.as_ref().is_some_and(|workers| !workers.rest(STORAGE_REST)) {
        tracing::warn!(
            "the file server did not answer in time; the kernel frees the locks now, and lock files may stay"
        );
    }
    // The last words are on their way in the other threads; whoever reads gets them at once.
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// Watches over an NFS server. Where no lease is known there is nothing to listen for.
fn watch_storage(core: &Arc<Core>, found: &Directory, notifier: &Notifier) -> Result<Option<NodePlace>, StartFault> {
    let Some(timing) = found.timing else { return Ok(None) };
    let by_name = matches!(&found.mount, Mount::Nfs4(nfs) if nfs.minor > 0);
    let fault = |error| StartFault::Node { path: found.path.clone(), error };
    // A file server that has just started lets everybody wait until its grace period is over.
    let watch = notifier.while_starting(|| storage::Watch::new(Arc::clone(core), timing, by_name));
    watch.and_then(storage::Watch::start).map(Some).map_err(fault)
}

/// Deletes what daemons left that were killed, in a thread of its own: there may be much of it, and the end need not wait.
fn collect(core: &Arc<Core>) -> io::Result<()> {
    let core = Arc::clone(core);
    let work = move || match core.files.collect() {
        Ok(0) => {}
        Ok(count) => tracing::info!("deleted {count} lock files that nobody held"),
        Err(fault) => tracing::warn!(MESSAGE_ID = ids::STORAGE_FAULT, "{fault}: {}", fault.remedy()),
    };
    std::thread::Builder::new().name("collect".into()).spawn(work).map(drop)
}

/// Tells systemd that the daemon lives, as long as its threads and its shards turn.
async fn watch(core: Arc<Core>, workers: Arc<[Worker]>, notifier: Arc<Notifier>) {
    let Some(period) = watchdog_interval() else { return };
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let turns = workers.iter().map(|worker| {
            let core = Arc::clone(&core);
            worker.handle.spawn(async move { core.turn_shards() })
        });
        let turned = async {
            for turn in turns.collect::<Vec<_>>() {
                let _ = turn.await;
            }
        };
        if timeout(period, turned).await.is_ok() {
            notifier.watchdog();
        } else {
            tracing::error!(MESSAGE_ID = ids::ENGINE_STALLED, "a thread or a shard of the engine does not turn");
        }
    }
}

/// Tells systemd how many sessions and locks there are, when that changes, at most once a second.
async fn report(core: Arc<Core>, notifier: Arc<Notifier>) {
    let mut told = status(&core);
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let now = status(&core);
        if now != told {
            notifier.status(&now);
            told = now;
        }
    }
}

fn status(core: &Core) -> String {
    let (held, waiting) = core.count();
    format!("{} sessions, {held} locks, {waiting} waiting requests", core.mailboxes.count())
}

/// A thread that serves connections.
fn worker(number: usize) -> io::Result<Worker> {
    let runtime: Runtime = Builder::new_current_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .on_thread_park(burst::ended)
        .build()?;
    let handle = runtime.handle().clone();
    let name = format!("sessions-{number}");
    std::thread::Builder::new().name(name).spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(Worker::new(handle))
}

fn listen(settings: &Settings, passed: Passed) -> Result<Fronts, StartFault> {
    let named = !settings.tcp.is_empty() || !settings.ws.is_empty();
    let standalone = passed.has_no_listener() && !named;
    let mut fronts = Fronts { tcp: passed.tcp, ws: passed.ws };
    let default = |port: u16| standalone.then(|| Address::Tcp(([127, 0, 0, 1], port).into()));
    for address in settings.tcp.iter().cloned().chain(default(40_800)) {
        fronts.tcp.push(bind(address, "tcp")?);
    }
    for address in settings.ws.iter().cloned().chain(default(40_801)) {
        fronts.ws.push(bind(address, "ws")?);
    }
    Ok(fronts)
}

/// Binds an address, and prints it: with port 0 only the kernel knows which it is.
fn bind(address: Address, front: &str) -> Result<Listener, StartFault> {
    let (listener, bound) = match &address {
        Address::Tcp(ip) => TcpListener::bind(ip)
            .and_then(|listener| {
                // The standard library asks for 128; while descriptors are short, more may have to wait.
                socket::listen(&listener, Backlog::new(BACKLOG)?)?;
                Ok((listener.local_addr()?, listener))
            })
            .map(|(bound, listener)| (Listener::Tcp(listener), Address::Tcp(bound))),
        Address::Unix(path) => bind_unix(path).map(|listener| (Listener::Unix(listener), Address::Unix(path.clone()))),
    }
    .map_err(|error| StartFault::Listen { address, error })?;
    // Nobody has to read it.
    let mut stdout = io::stdout();
    let _ = writeln!(stdout, "{front} {bound}").and_then(|()| stdout.flush());
    Ok(listener)
}

/// A socket that a killed daemon left is in the way of its successor: nobody answers there.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = std::fs::symlink_metadata(path)?.file_type().is_socket();
            if is_socket && UnixStream::connect(path).err().as_ref().is_some_and(refused) {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)
            } else {
                Err(error)
            }
        }
        bound => bound,
    }
}

/// Raises the limit of open files as far as it goes; tells how far that is.
fn raise_descriptor_limit() -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    if hard < DESCRIPTORS_LOW {
        tracing::warn!(
            MESSAGE_ID = ids::DESCRIPTOR_LIMIT_LOW,
            LIMIT = hard,
            "only {hard} file descriptors: a session with one lock takes two; raise LimitNOFILE= of the service, or ulimit -Hn"
        );
    }
    Ok(hard)
}
