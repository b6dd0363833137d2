//! The hand-over: sessions and locks go to the next process of the daemon, and no client notices but for a short pause
//! (docs/decisions/0016). First every connection's task stops between two messages, then the engine comes to rest, then all of it
//! goes into the [`Store`]. The next process takes it out before it accepts anybody.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::handed_lock::HandedLock;
use super::{Core, STORAGE_REST};
use crate::clock;
use crate::files::contact::Contact;
use crate::files::{HandedFile, OpenFile};
use crate::front::{Frozen, HandedConnection, Worker, go_on};
use crate::systemd::ids;
use crate::systemd::store::{Left, Store};
use distrilock_engine::limits::SHARDS;
use distrilock_engine::{Handed, Input};
use distrilock_protocol::name::LockName;

/// The version of [`State`]: another one is not understood. Rises when a member is added that must not be ignored.
const VERSION: u32 = 1;

/// How long a hand-over waits for connections that are no session yet, or no more.
const BETWEEN_WAIT: Duration = Duration::from_millis(200);

/// How long it waits for the sessions' tasks to stop, which each do between two messages.
const TASKS_WAIT: Duration = Duration::from_secs(5);

/// How long it then waits for what sessions give back that had to end.
const ENDED_WAIT: Duration = Duration::from_secs(1);

/// What goes to the next process, besides descriptors and bytes. The bytes of the connections follow it.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    version: u32,
    /// Which directory it is, by device and inode.
    directory: (u64, u64),
    next_session: u64,
    /// When the file server was last heard, and in which epoch.
    contact: Option<(u64, u64)>,
    /// In the order of their sockets, which come first.
    connections: Vec<HandedConnection>,
    /// In the order of their files, for those that have one.
    locks: Vec<HandedLock<HandedFile>>,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// How many went over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) sessions: usize,
    pub(super) locks: usize,
    /// Sessions that had to be ended, since a call on a file of theirs does not come back.
    pub(super) ended: usize,
}

/// What was left is of no use: its sessions and locks have gone with their descriptors.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("it is of version {0}, and this daemon understands version {VERSION}")]
    Version(u32),
    #[error("it cannot be read: {0}")]
    State(#[from] serde_json::Error),
    #[error("its descriptors or bytes do not agree with what it says of them")]
    Count,
    #[error("its locks are on another directory")]
    Directory,
}

/// Leaves all sessions to the next process, with locks in that directory (its [place](crate::files::Files::place)). This one is not to
/// serve anybody any more.
pub(super) async fn hand_over(
    core: &Arc<Core>,
    workers: &[Worker],
    store: &Store,
    directory: (u64, u64),
) -> std::io::Result<Count> {
    core.is_frozen.store(true, Ordering::SeqCst);
    core.mailboxes.hand_over_all();
    let frozen = stopped(core, workers).await;
    let (going, ended) = those_at_rest(core, frozen, (STORAGE_REST, ENDED_WAIT)).await;
    let sessions = going.len();
    let (state, tail, descriptors) = pack(core, going, directory);
    let locks = state.locks.iter().filter(|lock| lock.locked.is_some()).count();
    let mut bytes = serde_json::to_vec(&state)?;
    let length = bytes.len() as u64;
    bytes.splice(0..0, length.to_le_bytes());
    bytes.extend_from_slice(&tail);
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    store.leave(&bytes, &borrowed)?;
    Ok(Count { sessions, locks, ended })
}

/// Waits until no task serves a session any more.
async fn stopped(core: &Arc<Core>, workers: &[Worker]) -> Vec<Frozen> {
    let begun = Instant::now();
    loop {
        let frozen = core.frozen.lock().expect("nothing panics while it is held").len();
        let all = frozen >= core.mailboxes.count();
        let connections: usize = workers.iter().map(Worker::connections).sum();
        let waited = begun.elapsed();
        if (all && (connections == 0 || waited > BETWEEN_WAIT)) || waited > TASKS_WAIT {
            return std::mem::take(&mut *core.frozen.lock().expect("nothing panics while it is held"));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Lets sessions and engine come to rest, and ends the sessions that do not; tells how many those were.
async fn those_at_rest(
    core: &Arc<Core>,
    mut frozen: Vec<Frozen>,
    (wait, ended_wait): (Duration, Duration),
) -> (Vec<Frozen>, usize) {
    let (before, mut end) = (frozen.len(), Instant::now() + wait);
    let last = end + ended_wait;
    loop {
        let hung = come_to_rest(core, &mut frozen, end).await;
        let (going, ending): (Vec<Frozen>, Vec<Frozen>) =
            frozen.into_iter().partition(|it| it.session.is_at_rest() && !it.session.touches(&hung));
        if ending.is_empty() {
            let ended = before - going.len();
            return (going, ended);
        }
        for mut one in ending {
            one.tell("the daemon is restarted while the file server does not answer");
            one.end();
        }
        // What these held may be on its way to others, who have to come to rest with it, or end as well.
        (frozen, end) = (going, last);
    }
}

/// Lets sessions and engine come to rest, until `end` at the latest; tells the names whose operations do not come back.
async fn come_to_rest(core: &Arc<Core>, frozen: &mut [Frozen], end: Instant) -> BTreeSet<LockName> {
    loop {
        // Before the mail is read: what is complete now has been posted.
        let busy = core.in_flight();
        let mut any = false;
        for one in &mut *frozen {
            any |= one.read_mail();
        }
        if !any && (busy.is_empty() || Instant::now() > end) {
            return busy;
        }
        if !any {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// What is told of all, the bytes of the connections, and the descriptors.
fn pack(core: &Core, going: Vec<Frozen>, directory: (u64, u64)) -> (State, Vec<u8>, Vec<OwnedFd>) {
    let (mut bytes, mut descriptors) = (Vec::new(), Vec::new());
    let mut connections = Vec::new();
    for frozen in going {
        let (connection, socket) = frozen.hand_over(&mut bytes);
        connections.push(connection);
        descriptors.push(socket);
    }
    let mut locks = Vec::new();
    for shard in 0..SHARDS {
        for handed in core.shard(shard).hand_over() {
            let told = handed.map_file(|file: OpenFile| {
                let (told, descriptor) = file.hand_over();
                descriptors.push(descriptor);
                told
            });
            locks.push(told.into());
        }
    }
    let contact = core.contact().map(Contact::hand_over);
    let next_session = core.mailboxes.next();
    let state = State { version: VERSION, directory, next_session, contact, connections, locks };
    (state, bytes, descriptors)
}

/// What was left, found to be whole: nothing of it is refused any more.
#[derive(Debug)]
pub(super) struct Taken {
    connections: Vec<(HandedConnection, OwnedFd)>,
    bytes: Vec<u8>,
    locks: Vec<Handed<OpenFile>>,
    next_session: u64,
    /// Of the contact with the file server.
    epoch: Option<u64>,
}

/// Reads what was left, and goes on with what is known of the file server.
pub(super) fn read(core: &Core, left: Left, place: (u64, u64)) -> Result<Taken, Unusable> {
    let Left { bytes, descriptors } = left;
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or(Unusable::Count)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let (text, tail) = rest.split_at_checked(length).ok_or(Unusable::Count)?;
    let Version { version } = serde_json::from_slice(text)?;
    if version != VERSION {
        return Err(Unusable::Version(version));
    }
    let State { directory, next_session, contact, connections, locks, .. } = serde_json::from_slice(text)?;
    let bytes = connections.iter().fold(0, |sum: usize, connection| sum.saturating_add(connection.bytes()));
    let locks: Vec<Handed<HandedFile>> = locks.into_iter().map(Handed::from).collect();
    let files = locks.iter().filter(|lock| lock.file.is_some()).count();
    let counted = descriptors.len() == connections.len() + files && tail.len() == bytes;
    if !counted || !locks.iter().all(Handed::is_sound) {
        return Err(Unusable::Count);
    }
    if directory != place {
        return Err(Unusable::Directory);
    }
    let mut descriptors = descriptors.into_iter();
    let connections = connections.into_iter().zip(descriptors.by_ref()).collect();
    let mut open = |lock: Handed<HandedFile>| {
        let (name, locked) = (lock.name.clone(), lock.locked);
        let mut file = |told| core.files.take_over(&name, told, locked, descriptors.next()?);
        lock.map_file(|told| file(told).ok_or(Unusable::Count)).transpose()
    };
    let locks = locks.into_iter().map(&mut open).collect::<Result<_, _>>()?;
    if let (Some(heard), Some(contact)) = (contact, core.contact()) {
        contact.take_over(heard);
    }
    let epoch = contact.map(|(_, epoch)| epoch);
    Ok(Taken { connections, bytes: tail.to_vec(), locks, next_session, epoch })
}

/// Goes on with sessions and locks where the process before has stopped.
pub(super) fn take_over(core: &Arc<Core>, workers: &Arc<[Worker]>, taken: Taken) {
    let Taken { connections, bytes, locks, next_session, epoch } = taken;
    let mut bytes = &bytes[..];
    let revive = |(mut connection, socket): (HandedConnection, OwnedFd)| {
        let mailbox = connection.open(core);
        connection.revive(core, mailbox, socket, &mut bytes)
    };
    let frozen: Vec<Frozen> = connections.into_iter().map(revive).collect();
    core.mailboxes.begin_at(next_session);
    let held: Vec<LockName> = locks.iter().filter(|lock| lock.locked.is_some()).map(|it| it.name.clone()).collect();
    let (sessions, locked) = (frozen.len(), held.len());
    tracing::info!(
        MESSAGE_ID = ids::TAKE_OVER,
        "took over {sessions} sessions and {locked} locks of the process before"
    );
    // Every mailbox is there: letters find it.
    locks.into_iter().for_each(|lock| core.go_on(lock));
    frozen.into_iter().for_each(|frozen| go_on(core, workers, frozen));
    // The lease may have run out in between: each lock is looked at now, not in its turn.
    if core.contact().map(Contact::epoch) != epoch {
        for name in held {
            core.carry_out(core.shard_of(&name), Input::Probe(name.clone()), None);
        }
    }
}

impl Core {
    /// Keeps a connection that is to be handed over.
    pub fn freeze(&self, frozen: Frozen) {
        self.frozen.lock().expect("nothing panics while it is held").push(frozen);
    }

    fn in_flight(&self) -> BTreeSet<LockName> {
        (0..SHARDS).flat_map(|shard| self.shard(shard).in_flight().cloned().collect::<Vec<_>>()).collect()
    }

    /// Goes on with a name of the process before.
    fn go_on(self: &Arc<Self>, lock: Handed<OpenFile>) {
        let shard = self.shard_of(&lock.name);
        self.work(shard, None, |engine, effects| {
            engine.input(Input::Now(clock::now_ms()), effects);
            engine.take_over(lock, |session| self.mailboxes.is_open(session), effects);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Files;
    use crate::session::Session;
    use crate::settings::Settings;
    use distrilock_engine::{Asked, Mode, RequestId, SessionId};
    use distrilock_protocol::Codec;

    /// A session that has sent these requests.
    fn frozen(core: &Arc<Core>, requests: &[&str]) -> Frozen {
        let (id, mailbox) = core.mailboxes.open().unwrap();
        let mut session = Session::new(id, Arc::clone(core), Arc::clone(&mailbox), Codec::stream());
        let mut output = Vec::new();
        for request in requests {
            session.take(format!("{request}\n").as_bytes(), &mut output).unwrap();
        }
        Frozen::of(session, mailbox, output)
    }

    /// A session ends since a call does not come back that it waits for. What it held goes to one that waits, is told so, and goes
    /// on; nobody is left whose answer was on its way.
    #[test]
    fn what_the_ended_held() {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings::for_directory(Some(directory.path().into()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let files = (Files::new(directory.path().into()), "local", None);
        let core = Arc::new(Core::new(settings, files, String::new(), 1000, runtime.handle().clone()));
        let name = LockName::parse(b"hung").unwrap();
        let asked = Asked { name: name.clone(), session: SessionId(1000), request: RequestId(0) };
        // Its file operation is carried out by nobody.
        let begins = Input::Acquire { asked, want: Mode::Exclusive.into(), wait: true };
        core.shard(core.shard_of(&name)).input(begins, &mut Vec::new());
        let ends =
            frozen(&core, &[r#"{"op":"acquire","lock":"held"}"#, r#"{"op":"acquire","lock":"hung","wait_ms":null}"#]);
        let goes = frozen(&core, &[r#"{"id":7,"op":"acquire","lock":"held","wait_ms":null}"#]);
        assert_eq!(goes.output(), "");
        let waits = (Duration::from_millis(5), Duration::from_millis(5));
        let (going, ended) = runtime.block_on(those_at_rest(&core, vec![ends, goes], waits));
        assert_eq!((going.len(), ended), (1, 1));
        assert_eq!(going[0].output(), "{\"id\":7,\"ok\":true,\"lock\":\"held\"}\n");
        let (state, ..) = pack(&core, going, (0, 0));
        assert_eq!(state.locks.len(), 1, "the other one stays behind");
    }
}
