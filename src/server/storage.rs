//! The watch over a network file system: it makes sure that the server is heard, proves held locks in turn, and tells sessions
//! when their locks are in doubt or lost. What is decided from silence, and why in time, is in docs/safety.md.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval};

use super::Core;
use crate::clock::now_ms;
use crate::files::contact::Contact;
use crate::files::mount::Mount;
use crate::files::network::Network;
use crate::files::node::{Heard, Identity, Node, leave, others};
use crate::limits::{PROBES_PER_SECOND_MAX, STORAGE_CHECK_MS};
use crate::settings::OnSilence;
use crate::systemd::ids;
use crate::timing::Timing;
use distrilock_engine::Input;
use distrilock_engine::fault::{Cause, Fault};
use distrilock_engine::limits::SHARDS;
use distrilock_protocol::name::LockName;

/// Why sessions lose their locks when the server is not heard.
const SILENT: &str = "the file server does not answer, and may give the lock to another host";

/// Listens to the server through the daemon's own file.
pub(super) struct Watch {
    core: Arc<Core>,
    node: Node,
    /// Where the file is, for the end of the daemon.
    place: Arc<Mutex<PathBuf>>,
    identity: Identity,
    timing: Timing,
    /// Whether the host's name alone is what it introduces itself with: on NFS 4.0 its address is part of that.
    by_name: bool,
}

/// So seldom it is looked who else is there, counted in times that the server is listened to.
const ROUNDS_BETWEEN_LOOKS: u32 = 10;

impl Watch {
    /// Makes the daemon known in the lock directory.
    pub(super) fn new(core: Arc<Core>, timing: Timing, by_name: bool) -> std::io::Result<Self> {
        let identity = Identity::of_this_process(core.files.directory());
        let network = core.files.network().expect("only a network file system is watched");
        let node = Node::enter(core.files.directory(), network, &identity)?;
        // A server that has just started lets it wait for its grace period: time counts from now.
        node.listen(network)?;
        let place = Arc::new(Mutex::new(node.path().to_owned()));
        Ok(Self { core, node, place, identity, timing, by_name })
    }

    /// Listens for as long as the daemon lives, in a thread of its own; tells where the daemon's own file is.
    pub(super) fn start(self) -> std::io::Result<Arc<Mutex<PathBuf>>> {
        let place = Arc::clone(&self.place);
        std::thread::Builder::new().name("storage-watch".into()).spawn(move || self.run())?;
        Ok(place)
    }

    fn run(mut self) {
        let core = Arc::clone(&self.core);
        let network = core.files.network().expect("only a network file system is watched");
        for round in 0_u32.. {
            if round % ROUNDS_BETWEEN_LOOKS == 0 {
                self.look_around();
            }
            match self.node.listen(network) {
                Ok(Heard::Well) => {}
                Ok(Heard::Forgotten) => self.enter_again(network),
                Err(error) => tracing::debug!("the lock directory's server: {error}"),
            }
            self.prove_held();
        }
    }

    /// Says which daemons' hosts would wipe each other's locks.
    fn look_around(&self) {
        if !self.by_name {
            return;
        }
        for other in others(self.core.files.directory(), Some(&self.node)) {
            if self.identity.clashes_with(&other) {
                tracing::error!(
                    MESSAGE_ID = ids::CLIENT_CLASH,
                    "the host of another daemon, {} (process {}), introduces itself to the NFS server as {:?}, as this one \
                     does: each wipes the other's locks; give the hosts different names, or set nfs4_unique_id (nfs(5))",
                    other.node,
                    other.pid,
                    other.client
                );
            }
        }
    }

    /// The server has forgotten this host: every lock is looked at at once, and the watch begins anew.
    fn enter_again(&mut self, network: &Network) {
        tracing::error!(
            MESSAGE_ID = ids::LEASE_LOST,
            "the file server has dropped this host's locks: its lease ran out, or somebody else uses its name"
        );
        match Node::enter(self.core.files.directory(), network, &self.identity) {
            Ok(node) => {
                node.path().clone_into(&mut self.place.lock().expect("nothing panics while it is held"));
                leave(std::mem::replace(&mut self.node, node).path());
            }
            Err(error) => {
                tracing::error!(MESSAGE_ID = ids::STORAGE_FAULT, "cannot write into the lock directory: {error}")
            }
        }
        for name in self.core.held(None, usize::MAX) {
            self.core.submit_unasked(&name, Input::Probe(name.clone()));
        }
        self.look_around();
    }

    /// Until the server is to be heard next: proves held locks in turn, evenly spread.
    fn prove_held(&self) {
        let every = self.timing.probe_every;
        let count = u64::try_from(every.as_millis()).unwrap_or(u64::MAX) * PROBES_PER_SECOND_MAX / 1000;
        let count = usize::try_from(count).unwrap_or(usize::MAX).max(1);
        let names = self.core.next_to_prove(count);
        let pause = every / u32::try_from(names.len() + 1).unwrap_or(u32::MAX);
        for name in names {
            std::thread::sleep(pause);
            self.core.submit_unasked(&name, Input::Probe(name.clone()));
        }
        std::thread::sleep(pause);
    }
}

/// How the server's silence stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// It was heard not long ago.
    None,
    /// It was not, and the sessions know.
    Doubt,
    /// It counts as gone, and so do the locks.
    Lost,
}

/// Not while the file server is silent: between two processes nobody would tell sessions that their locks are lost, and the next one
/// might wait for the server.
pub(super) fn may_hand_over(core: &Core, timing: Option<Timing>) -> bool {
    let silence = core.contact().map(|contact| Duration::from_millis(contact.silent_ms(now_ms())));
    let is_silent = silence.zip(timing).is_some_and(|(silence, timing)| timing.is_silence(silence));
    if is_silent {
        tracing::warn!(
            MESSAGE_ID = ids::STORAGE_SILENT,
            "the file server does not answer: sessions end with this process, since they may have to know of lost locks in time"
        );
    }
    !is_silent
}

/// Looks, several times a second, whether the server is silent or a call does not come back.
pub(super) async fn look_after(core: Arc<Core>, on_silence: OnSilence, timing: Option<Timing>) {
    let mut silence = Silence::None;
    let mut ticks = interval(Duration::from_millis(STORAGE_CHECK_MS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Some(timing) = timing {
            silence = listen(&core, silence, on_silence, timing);
        }
        refuse_stalled(&core);
    }
}

/// Tells the sessions what silence means for their locks; half of it passes without a word.
fn listen(core: &Arc<Core>, before: Silence, on_silence: OnSilence, timing: Timing) -> Silence {
    let contact = core.contact().expect("there is a lease, thus contact");
    let valid_ms = contact.valid_ms(now_ms());
    let doubt_ms = u64::try_from(timing.silence.as_millis() / 2).unwrap_or(u64::MAX);
    let now = match (valid_ms, on_silence) {
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
            core.submit_to_all(|| Input::Suspect(valid_ms));
        }
        (Silence::Doubt | Silence::None, Silence::Lost) => {
            tracing::error!(
                MESSAGE_ID = ids::STORAGE_SILENT,
                "the file server does not answer: all locks count as lost"
            );
            core.submit_to_all(|| Input::Silence(SILENT));
        }
        (Silence::Doubt | Silence::Lost, Silence::None) => {
            tracing::info!(MESSAGE_ID = ids::STORAGE_HEARD, "the file server answers again");
            core.submit_to_all(|| Input::Trust);
        }
        _ => {}
    }
    now
}

/// Refuses who waits for a call that does not come back.
fn refuse_stalled(core: &Arc<Core>) {
    let Some(workers) = &core.workers else { return };
    let after_ms = u64::try_from(core.settings.storage_timeout.as_millis()).unwrap_or(u64::MAX);
    for name in workers.stalled(after_ms) {
        let path = core.files.path(name.as_str()).to_string_lossy().into();
        let fault = Fault { cause: Cause::ServerSilent, path };
        core.log_fault(&name, &fault);
        core.submit_unasked(&name, Input::Stalled { name: name.clone(), fault });
    }
}

/// Tells, once, when something else is mounted under the lock directory than what was recognised at start. Without /proc nothing
/// is ever told.
pub(super) fn remounted(directory: PathBuf, mount: Mount) -> std::io::Result<oneshot::Receiver<String>> {
    let (tell, told) = oneshot::channel();
    let watch = move || {
        let what = await_remount(&directory, &mount);
        // Nobody listens any more at the end of the daemon.
        what.map(|what| tell.send(what))
    };
    std::thread::Builder::new().name("mount-watch".into()).spawn(watch)?;
    Ok(told)
}

fn await_remount(directory: &Path, mount: &Mount) -> Option<String> {
    let table = std::fs::File::open("/proc/self/mountinfo").ok()?;
    loop {
        // The kernel raises an exceptional condition when the table changes (proc(5)).
        let mut changes = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
        match poll(&mut changes, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
        match Mount::under(directory) {
            Ok(now) if now.is_like(mount) => {}
            Ok(now) => return Some(format!("it was {} and is {} now", mount.describe(), now.describe())),
            Err(unfit) => return Some(unfit.to_string()),
        }
    }
}

impl Core {
    /// What is known of the server's lease, if the directory is on one that has leases.
    pub(super) fn contact(&self) -> Option<&Contact> {
        self.files.network().and_then(Network::contact)
    }

    /// The next held locks in turn.
    fn next_to_prove(&self, count: usize) -> Vec<LockName> {
        let mut last = self.proven.lock().expect("nothing panics while it is held");
        let mut names = self.held(last.as_ref(), count);
        if names.len() < count && last.is_some() {
            names.extend(self.held(None, count - names.len()));
            names.dedup();
        }
        *last = names.last().cloned();
        names
    }

    fn held(&self, after: Option<&LockName>, count: usize) -> Vec<LockName> {
        let mut names: Vec<LockName> = Vec::new();
        for shard in 0..SHARDS {
            names.extend(self.shard(shard).held(after).take(count).cloned());
        }
        names.sort_unstable();
        names.truncate(count);
        names
    }

    /// Gives the engine an input that no session has asked for.
    fn submit_unasked(self: &Arc<Self>, name: &LockName, input: super::LockInput) {
        self.carry_out(self.shard_of(name), input, None);
    }

    fn submit_to_all(self: &Arc<Self>, input: impl Fn() -> super::LockInput) {
        for shard in 0..SHARDS {
            self.carry_out(shard, input(), None);
        }
    }
}
