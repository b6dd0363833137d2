//! The hand-over: sessions and locks go to the next process of the daemon, and clients notice only
//! a short pause (docs/decisions/0016). First every connection's task stops between two messages,
//! then the engine comes to rest, then everything goes into the [`Store`]. The next process takes
//! it out before it accepts connections.

mod handed_lock;
mod state;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::STORAGE_REST;
use crate::files::lease::Lease;
use crate::files::{FileId, HandedFile, OpenFile};
use crate::front::{Frozen, HandedConnection, SessionThreads, resume};
use crate::lock_table::{LockTable, Source};
use crate::systemd::ids;
use crate::systemd::store::{Left, Store};
use distrilock_engine::{Handed, Input};
use distrilock_protocol::name::LockName;
pub(super) use state::UnusableError;
use state::{State, VERSION, Version};

/// How long a hand-over waits for connections that are not a session yet, or no longer.
const BETWEEN_WAIT: Duration = Duration::from_millis(200);

/// How long it waits for the sessions' tasks to stop, each between two messages.
const TASKS_WAIT: Duration = Duration::from_secs(5);

/// How long it then waits for what the sessions release that had to end.
const ENDED_WAIT: Duration = Duration::from_secs(1);

/// How many were handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) sessions: usize,
    pub(super) locks: usize,
    /// Sessions that had to end, since a call on one of their files does not come back.
    pub(super) ended: usize,
}

/// Leaves all sessions to the next process. `directory` is the
/// [id](crate::files::Files::directory_id) of the lock directory. This process must not serve
/// anyone any more.
pub(super) async fn hand_over(
    table: &Arc<LockTable>,
    threads: &SessionThreads,
    store: &Store,
    directory: FileId,
) -> std::io::Result<Count> {
    table.shards.freeze();
    table.mailboxes.hand_over_all();
    let frozen = await_frozen(table, threads).await;
    let waits = Waits { rest: STORAGE_REST, ended: ENDED_WAIT };
    let Settled { sessions: going, ended } = settle(table, frozen, waits).await;
    let sessions = going.len();
    let Packed { state, bytes: tail, descriptors } = pack(table, going, directory);
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
async fn await_frozen(table: &LockTable, threads: &SessionThreads) -> Vec<Frozen> {
    let begun = Instant::now();
    loop {
        let all = threads.frozen() >= table.mailboxes.count();
        let waited = begun.elapsed();
        if (all && (threads.connections() == 0 || waited > BETWEEN_WAIT)) || waited > TASKS_WAIT {
            return threads.take_frozen();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// How long `settle` waits.
#[derive(Clone, Copy)]
struct Waits {
    /// For sessions and engine to come to rest.
    rest: Duration,
    /// For what the ended sessions release.
    ended: Duration,
}

/// The sessions that have come to rest, and how many had to end.
struct Settled {
    sessions: Vec<Frozen>,
    ended: usize,
}

/// Lets sessions and engine come to rest, and ends the sessions that do not.
async fn settle(table: &LockTable, mut frozen: Vec<Frozen>, waits: Waits) -> Settled {
    let (before, mut end) = (frozen.len(), Instant::now() + waits.rest);
    let last = end + waits.ended;
    loop {
        let hung = come_to_rest(table, &mut frozen, end).await;
        let (going, ending): (Vec<Frozen>, Vec<Frozen>) =
            frozen.into_iter().partition(|it| it.session.is_at_rest() && !it.session.touches(&hung));
        if ending.is_empty() {
            let ended = before - going.len();
            return Settled { sessions: going, ended };
        }
        for one in ending {
            one.end("the daemon is restarted while the storage of a lock does not answer");
        }
        // What these held may go to other sessions, which have to come to rest with it, or end as
        // well.
        (frozen, end) = (going, last);
    }
}

/// Lets sessions and engine come to rest, until `end` at the latest. Returns the names whose
/// operations do not come back.
async fn come_to_rest(table: &LockTable, frozen: &mut [Frozen], end: Instant) -> BTreeSet<LockName> {
    loop {
        // Before the notices are read: those of operations that are complete now have been posted.
        let busy = table.shards.in_flight();
        let mut any = false;
        for one in &mut *frozen {
            any |= one.read_notices();
        }
        if !any && (busy.is_empty() || Instant::now() > end) {
            return busy;
        }
        if !any {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Everything that goes to the next process.
struct Packed {
    state: State,
    /// The bytes of the connections.
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

fn pack(table: &LockTable, going: Vec<Frozen>, directory: FileId) -> Packed {
    let (mut bytes, mut descriptors) = (Vec::new(), Vec::new());
    let mut connections = Vec::new();
    for frozen in going {
        let (connection, socket) = frozen.hand_over(&mut bytes);
        connections.push(connection);
        descriptors.push(socket);
    }
    let mut locks = Vec::new();
    for mut shard in table.shards.each() {
        for handed in shard.hand_over() {
            let handed = handed.map_file(|file: OpenFile| {
                let (file, descriptor) = file.hand_over();
                descriptors.push(descriptor);
                file
            });
            locks.push(handed.into());
        }
    }
    let contact = table.storage.contact().map(Lease::hand_over);
    let next_session = table.mailboxes.next_id();
    let state = State { version: VERSION, directory, next_session, contact, connections, locks };
    Packed { state, bytes, descriptors }
}

/// What was left, once it was found to be complete: no part of it is refused any more.
#[derive(Debug)]
pub(super) struct Taken {
    connections: Vec<(HandedConnection, OwnedFd)>,
    bytes: Vec<u8>,
    locks: Vec<Handed<OpenFile>>,
    next_session: u64,
    /// The epoch of the contact with the file server.
    epoch: Option<u64>,
}

/// Reads what was left, and takes over what is known of the file server.
pub(super) fn read(table: &LockTable, left: Left, place: FileId) -> Result<Taken, UnusableError> {
    let Left { bytes, descriptors } = left;
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or(UnusableError::Count)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let (text, tail) = rest.split_at_checked(length).ok_or(UnusableError::Count)?;
    let Version { version } = serde_json::from_slice(text)?;
    if version != VERSION {
        return Err(UnusableError::Version(version));
    }
    let State { directory, next_session, contact, connections, locks, .. } = serde_json::from_slice(text)?;
    let bytes = connections.iter().fold(0, |sum: usize, connection| sum.saturating_add(connection.bytes()));
    let locks: Vec<Handed<HandedFile>> = locks.into_iter().map(Handed::from).collect();
    let files = locks.iter().filter(|lock| lock.file.is_some()).count();
    let counted = descriptors.len() == connections.len() + files && tail.len() == bytes;
    if !counted || !locks.iter().all(Handed::is_sound) {
        return Err(UnusableError::Count);
    }
    if directory != place {
        return Err(UnusableError::Directory);
    }
    let mut descriptors = descriptors.into_iter();
    let connections = connections.into_iter().zip(descriptors.by_ref()).collect();
    let mut open = |lock: Handed<HandedFile>| {
        let (name, locked) = (lock.name.clone(), lock.locked);
        let mut file = |told| table.storage.files.take_over(&name, told, locked, descriptors.next()?);
        lock.map_file(|told| file(told).ok_or(UnusableError::Count)).transpose()
    };
    let locks = locks.into_iter().map(&mut open).collect::<Result<_, _>>()?;
    if let (Some(heard), Some(contact)) = (contact, table.storage.contact()) {
        contact.take_over(heard);
    }
    let epoch = contact.map(|lease| lease.epoch);
    Ok(Taken { connections, bytes: tail.to_vec(), locks, next_session, epoch })
}

/// Continues the sessions and locks where the previous process has stopped.
pub(super) fn take_over(table: &Arc<LockTable>, threads: &Arc<SessionThreads>, taken: Taken) {
    let Taken { connections, bytes, locks, next_session, epoch } = taken;
    let mut bytes = &bytes[..];
    let revive = |(mut connection, socket): (HandedConnection, OwnedFd)| {
        let mailbox = connection.open(table);
        connection.revive(table, mailbox, socket, &mut bytes)
    };
    let frozen: Vec<Frozen> = connections.into_iter().map(revive).collect();
    table.mailboxes.number_from(next_session);
    let held: Vec<LockName> = locks.iter().filter(|lock| lock.locked.is_some()).map(|it| it.name.clone()).collect();
    let (sessions, locked) = (frozen.len(), held.len());
    tracing::info!(
        MESSAGE_ID = ids::TAKE_OVER,
        "took over {sessions} sessions and {locked} locks of the previous process"
    );
    // Every mailbox is there, so that notices find it.
    locks.into_iter().for_each(|lock| table.take_over(lock));
    frozen.into_iter().for_each(|frozen| resume(table, threads, frozen));
    // The previous process may not have had time to look.
    table.deadlocks.look();
    // The lease may have run out in between: each lock is probed now, not in its turn.
    if table.storage.contact().map(Lease::epoch) != epoch {
        for name in held {
            table.submit(&name, Input::Probe(name.clone()), Source::Daemon);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock_table::mailbox::OpenedMailbox;
    use crate::session::Session;
    use distrilock_engine::{Asked, Mode, RequestId, SessionId};
    use distrilock_protocol::Codec;

    /// A session that has sent these requests.
    fn frozen(table: &Arc<LockTable>, requests: &[&str]) -> Frozen {
        let OpenedMailbox { id, mailbox } = table.mailboxes.open().unwrap();
        let mut session = Session::new(id, Arc::clone(table), Arc::clone(&mailbox), Codec::stream());
        let mut output = Vec::new();
        for request in requests {
            session.receive(format!("{request}\n").as_bytes(), &mut output).unwrap();
        }
        Frozen::of(session, mailbox, output)
    }

    /// A session ends since it waits for a call that does not come back. What it held goes to a
    /// waiting session, which is granted it and continues; no answer is left on its way.
    #[test]
    fn what_the_ended_held() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let table = LockTable::of_directory(directory.path(), runtime.handle());
        let name = LockName::parse(b"hung").unwrap();
        let asked = Asked { name: name.clone(), session: SessionId(1000), request: RequestId(0) };
        // Nobody carries out its file operation.
        let begins = Input::Acquire { asked, want: Mode::Exclusive.into(), wait: true };
        table.shards.of(&name).input(begins, &mut Vec::new());
        let ends =
            frozen(&table, &[r#"{"op":"acquire","lock":"held"}"#, r#"{"op":"acquire","lock":"hung","wait_ms":null}"#]);
        let goes = frozen(&table, &[r#"{"id":7,"op":"acquire","lock":"held","wait_ms":null}"#]);
        assert_eq!(goes.output(), "");
        let waits = Waits { rest: Duration::from_millis(5), ended: Duration::from_millis(5) };
        let Settled { sessions: going, ended } = runtime.block_on(settle(&table, vec![ends, goes], waits));
        assert_eq!((going.len(), ended), (1, 1));
        assert_eq!(going[0].output(), "{\"id\":7,\"ok\":true,\"lock\":\"held\"}\n");
        let Packed { state, .. } = pack(&table, going, (0, 0).into());
        assert_eq!(state.locks.len(), 1, "the other one stays behind");
    }
}
