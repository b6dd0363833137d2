//! The watch over a network file system. It listens to the server, proves held locks in turn, and
//! tells sessions when their locks are in doubt or lost. docs/safety.md explains what it concludes
//! from silence, and why that is soon enough.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval};

use super::clash_watch::{self, LookNow};
use crate::clock::now_ms;
use crate::files::mount::Mount;
use crate::files::network::Network;
use crate::files::presence::{DaemonInfo, Presence, PresenceLock, leave};
use crate::limits::{PROBES_PER_SECOND_MAX, SHEDS_PER_CALL_MAX, STORAGE_CHECK_MS};
use crate::lock_table::{LockTable, Source};
use crate::settings::OnSilence;
use crate::shortage::is_shortage;
use crate::sync::locked;
use crate::systemd::ids;
use crate::timing::Timing;
use distrilock_engine::Input;
use distrilock_engine::fault::{Cause, Fault};
use distrilock_protocol::name::LockName;

/// Why sessions lose their locks when the server is silent.
const SILENT: &str = "the file server does not answer, and may give the lock to another host";

/// Listens to the server through the daemon's own file.
struct Watch {
    table: Arc<LockTable>,
    node: Presence,
    /// Where the daemon's own file is, for the end of the daemon.
    place: Arc<Mutex<PathBuf>>,
    identity: DaemonInfo,
    timing: Timing,
    /// Makes the clash watch look at once. There is one where the host introduces itself to the
    /// server by its name alone: on NFS 4.0 its address is part of that.
    clashes: Option<LookNow>,
    /// The held lock that was proven last.
    proven: Option<LockName>,
}

/// The clash watch looks for other daemons once in this many rounds of listening to the server.
const ROUNDS_BETWEEN_LOOKS: u32 = 10;

/// A watch that does not listen yet. Everything that may fail for lack of resources is done.
pub(crate) struct Prepared {
    watch: Watch,
    /// Its thread waits for it.
    begin: SyncSender<Watch>,
}

/// Makes the daemon known in the lock directory.
pub(crate) fn prepare(table: Arc<LockTable>, timing: Timing, by_name: bool) -> std::io::Result<Prepared> {
    let directory = table.storage.files.directory();
    let identity = DaemonInfo::of_this_process(directory)?;
    let network = table.storage.files.network().expect("only a network file system is watched");
    let node = Presence::announce(directory, network, &identity)?;
    let place = Arc::new(Mutex::new(node.path().to_owned()));
    let clash_watch = || {
        let interval = timing.probe_every * ROUNDS_BETWEEN_LOOKS;
        clash_watch::start(Arc::clone(&table), identity.clone(), Arc::clone(&place), interval)
    };
    let clashes = by_name.then(clash_watch).transpose()?;
    let (begin, watch) = sync_channel(1);
    let run = move || watch.recv().into_iter().for_each(Watch::run);
    std::thread::Builder::new().name("storage-watch".into()).spawn(run)?;
    let watch = Watch { table, node, place, identity, timing, clashes, proven: None };
    Ok(Prepared { watch, begin })
}

impl Prepared {
    /// Listens for as long as the daemon lives, in a thread of its own. Returns where the daemon's
    /// own file is.
    pub(crate) fn start(self) -> Arc<Mutex<PathBuf>> {
        let Self { watch, begin } = self;
        let place = Arc::clone(&watch.place);
        let network = watch.table.storage.files.network().expect("only a network file system is watched");
        // A server that has just started delays this by its grace period: time counts from now. If
        // it fails, silence begins.
        if let Err(error) = watch.node.listen(network) {
            tracing::debug!("the lock directory's server: {error}");
        }
        begin.send(watch).expect("the thread waits for it");
        place
    }
}

impl Watch {
    fn run(mut self) {
        let table = Arc::clone(&self.table);
        let network = table.storage.files.network().expect("only a network file system is watched");
        loop {
            match self.node.listen(network) {
                Ok(PresenceLock::Known) => {}
                Ok(PresenceLock::Forgotten) => self.enter_again(network),
                Err(error) => tracing::debug!("the lock directory's server: {error}"),
            }
            self.prove_held();
        }
    }

    /// The server has forgotten this host: the watch starts again, and every lock is probed at
    /// once.
    fn enter_again(&mut self, network: &Network) {
        tracing::error!(
            MESSAGE_ID = ids::LEASE_LOST,
            "the file server has dropped this host's locks: its lease ran out, or somebody else uses its name"
        );
        let announce = || Presence::announce(self.table.storage.files.directory(), network, &self.identity);
        let mut announced = announce();
        // Released lock files are closed before the watch is left without a file of its own.
        for _ in 0..SHEDS_PER_CALL_MAX {
            if !announced.as_ref().is_err_and(is_shortage) || !self.table.shed() {
                break;
            }
            announced = announce();
        }
        match announced {
            Ok(node) => {
                node.path().clone_into(&mut locked(&self.place));
                leave(std::mem::replace(&mut self.node, node).path());
            }
            Err(error) => {
                tracing::error!(MESSAGE_ID = ids::STORAGE_FAULT, "cannot write into the lock directory: {error}")
            }
        }
        for name in self.table.shards.held(None, usize::MAX) {
            self.table.submit(&name, Input::Probe(name.clone()), Source::Daemon);
        }
        if let Some(clashes) = &self.clashes {
            clashes.look();
        }
    }

    /// Proves held locks in turn, evenly spread over the time until the next round.
    fn prove_held(&mut self) {
        let every = self.timing.probe_every;
        let count = u64::try_from(every.as_millis()).unwrap_or(u64::MAX) * PROBES_PER_SECOND_MAX / 1000;
        let count = usize::try_from(count).unwrap_or(usize::MAX).max(1);
        let names = self.next_to_prove(count);
        let pause = every / u32::try_from(names.len() + 1).unwrap_or(u32::MAX);
        for name in names {
            std::thread::sleep(pause);
            self.table.submit(&name, Input::Probe(name.clone()), Source::Daemon);
        }
        std::thread::sleep(pause);
    }

    /// The next held locks in turn.
    fn next_to_prove(&mut self, count: usize) -> Vec<LockName> {
        let mut names = self.table.shards.held(self.proven.as_ref(), count);
        if names.len() < count && self.proven.is_some() {
            names.extend(self.table.shards.held(None, count - names.len()));
            names.dedup();
        }
        self.proven = names.last().cloned();
        names
    }
}

/// After how many milliseconds the daemon looks again at what is mounted, if it could not find out.
const LOOK_AGAIN_MS: u16 = 1000;

/// How long the server has been silent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// It was heard recently.
    None,
    /// Locks are in doubt, and the sessions know.
    Doubt,
    /// The locks count as lost.
    Lost,
}

/// Whether sessions may be handed over: not while the file server is silent. Between two processes
/// nothing would tell sessions that their locks are lost, and the next process might have to wait
/// for the server.
pub(crate) fn may_hand_over(table: &LockTable, timing: Option<Timing>) -> bool {
    let silence = table.storage.contact().map(|contact| Duration::from_millis(contact.silent_ms(now_ms())));
    let is_silent = silence.zip(timing).is_some_and(|(silence, timing)| timing.is_silence(silence));
    if is_silent {
        tracing::warn!(
            MESSAGE_ID = ids::STORAGE_SILENT,
            "the file server does not answer: sessions end with this process, since they must learn of lost locks in time"
        );
    }
    !is_silent
}

/// Checks several times a second whether the server is silent and whether a call does not come
/// back.
pub(crate) async fn check_silence(table: Arc<LockTable>, timing: Option<Timing>) {
    let mut silence = Silence::None;
    let mut ticks = interval(Duration::from_millis(STORAGE_CHECK_MS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Some(timing) = timing {
            silence = announce(&table, silence, timing);
        }
        refuse_stalled(&table);
    }
}

/// Tells the sessions what silence means for their locks. Nothing is said during its first half.
fn announce(table: &Arc<LockTable>, before: Silence, timing: Timing) -> Silence {
    let contact = table.storage.contact().expect("a lease is known, and therefore contact");
    let valid_ms = contact.valid_ms(now_ms());
    let doubt_ms = u64::try_from(timing.silence.as_millis() / 2).unwrap_or(u64::MAX);
    let now = match (valid_ms, table.settings.on_storage_silence) {
        (0, OnSilence::Fence) => Silence::Lost,
        (valid_ms, _) if valid_ms <= doubt_ms => Silence::Doubt,
        _ => Silence::None,
    };
    match (before, now) {
        (Silence::None, Silence::Doubt) => {
            tracing::warn!(
                MESSAGE_ID = ids::STORAGE_SILENT,
                "the file server does not answer; locks are surely held for {valid_ms} ms more"
            );
            table.submit_to_all(|| Input::Suspect(valid_ms));
        }
        (Silence::Doubt | Silence::None, Silence::Lost) => {
            tracing::error!(
                MESSAGE_ID = ids::STORAGE_SILENT,
                "the file server does not answer: all locks count as lost"
            );
            table.submit_to_all(|| Input::Silence(SILENT));
        }
        (Silence::Doubt | Silence::Lost, Silence::None) => {
            tracing::info!(MESSAGE_ID = ids::STORAGE_HEARD, "the file server answers again");
            table.submit_to_all(|| Input::Trust);
        }
        _ => {}
    }
    now
}

/// Looks after the calls on a local file system, for as long as any is under way: nobody else does
/// there.
pub(in crate::lock_table) fn watch_local(table: &Arc<LockTable>, timers: &Handle) {
    if table.storage.files.network().is_some() || !table.storage.threads.begin_watch() {
        return;
    }
    let table = Arc::clone(table);
    timers.spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(STORAGE_CHECK_MS)).await;
            if !table.storage.threads.continue_watch() {
                break;
            }
            refuse_stalled(&table);
        }
    });
}

/// Refuses the requests that wait for a call that does not come back.
fn refuse_stalled(table: &Arc<LockTable>) {
    let cause = if table.storage.files.network().is_some() { Cause::ServerSilent } else { Cause::DiskSilent };
    let after_ms = u64::try_from(table.settings.storage_timeout.as_millis()).unwrap_or(u64::MAX);
    for name in table.storage.threads.stalled(after_ms) {
        let path = table.storage.files.path(name.as_str()).to_string_lossy().into();
        let fault = Fault { cause, path };
        table.log.fault(&name, &fault);
        table.submit(&name, Input::Stalled { name: name.clone(), fault }, Source::Daemon);
    }
}

/// Sends a message when something else is mounted under the lock directory than at start. Without
/// /proc it never does. The table of mounts is opened now and stays open: a later shortage of
/// descriptors can neither hide a mount nor look like one.
pub(crate) fn remounted(
    table: Arc<LockTable>,
    directory: PathBuf,
    mount: Mount,
) -> std::io::Result<oneshot::Receiver<String>> {
    let (tell, told) = oneshot::channel();
    let mounts = match File::open("/proc/self/mountinfo") {
        Err(error) if is_shortage(&error) => return Err(error),
        mounts => mounts.ok(),
    };
    let watch = move || {
        let what = mounts.map(|mounts| await_remount(&table, &directory, &mount, mounts));
        // At the end of the daemon nobody listens.
        what.map(|what| tell.send(what))
    };
    std::thread::Builder::new().name("mount-watch".into()).spawn(watch)?;
    Ok(told)
}

fn await_remount(table: &LockTable, directory: &Path, mount: &Mount, mut mounts: File) -> String {
    let mut unknown = false;
    loop {
        // The kernel raises an exceptional condition when the table changes (proc(5)).
        let mut changes = [PollFd::new(mounts.as_fd(), PollFlags::POLLPRI)];
        let until = if unknown { PollTimeout::from(LOOK_AGAIN_MS) } else { PollTimeout::NONE };
        if poll(&mut changes, until).is_err() {
            // Interrupted, or out of memory: the table may have changed.
            std::thread::sleep(Duration::from_millis(LOOK_AGAIN_MS.into()));
        }
        match mount.changed(directory, &mut mounts) {
            Ok(None) => unknown = false,
            Ok(Some(what)) => return what,
            Err(error) => {
                unknown = true;
                table.log.mount_unknown(&error);
            }
        }
    }
}
