//! [`Boards`]: what this daemon shows the other daemons of the directory of its locks, and what
//! they show of theirs. A thread of its own does both (docs/decisions/0024).
//!
//! No request waits for the disk here. The thread looks at the lock table once a second, each shard
//! in pieces and only if something has happened in it, and writes its board if that has changed. It
//! reads the boards of others only while somebody asks for them. What it has read is kept, and
//! sessions look into that. A request that wants to know more exactly waits, without its thread,
//! for the next reading.

mod content;

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Waker;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::LockTable;
use super::mailbox::Notice;
use super::shards::{ShardIndex, Shards};
use crate::clock::now_ms;
use crate::files::board::{self, FoundBoard, OwnBoard, ReadBoards};
use crate::limits::{
    BOARD_AFTER_MS, BOARD_ASKED_MS, BOARD_EVERY_MS, BOARD_FRESH_MS, BOARD_LOCKS_PER_SHARD_MAX, BOARD_NAMES_MAX,
    BOARD_REST_FACTOR, BOARD_REST_MS_MAX, BOARD_SESSIONS_MAX, BOARD_WAIT_MS_MAX, LAST_KNOWN_MAX,
};
use crate::sync::locked;
use content::Board;
use distrilock_engine::{Claim, Extent, SessionId, View};
use distrilock_protocol::limits::LIST_SESSIONS_MAX;
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::{Listed, ModeWord, SessionInfo};

/// For how long the difference between the clock of the file system and this host's is taken to
/// stay the same.
const CLOCK_SECONDS: u64 = 60;

/// What sessions and the thread of the boards know of each other.
#[derive(Debug, Default)]
pub struct Boards {
    shown: Mutex<Arc<Elsewhere>>,
    /// When somebody last asked for the boards of others; 0: never.
    asked_ms: AtomicU64,
    askers: Mutex<Askers>,
    thread: OnceLock<Thread>,
    /// This daemon's board.
    own: Mutex<Option<PathBuf>>,
}

#[derive(Debug, Default)]
struct Askers {
    /// The daemon ends: nobody waits any more.
    ended: bool,
    /// The sessions that wait for the next reading.
    sessions: Vec<SessionId>,
}

/// What other daemons show.
#[derive(Debug, Default)]
pub struct Elsewhere {
    read: Option<Instant>,
    locks: BTreeMap<LockName, Listed>,
    /// How many locks they leave out.
    pub unlisted: usize,
}

impl Elsewhere {
    /// What is shown of a name.
    #[must_use]
    pub fn lock(&self, name: &LockName) -> Option<Listed> {
        self.locks.get(name).map(|lock| self.now(lock))
    }

    /// Somebody who holds a name.
    #[must_use]
    pub fn holder(&self, name: &LockName) -> Option<SessionInfo> {
        let mut holder = self.locks.get(name)?.holders.first()?.clone();
        holder.since_ms = holder.since_ms.saturating_add(self.age_ms());
        Some(holder)
    }

    fn age_ms(&self) -> u64 {
        self.read.map_or(0, |read| millis(read.elapsed()))
    }

    /// The first names after `after`, at most `count`, in order.
    #[must_use]
    pub fn names(&self, after: Option<&LockName>, count: usize) -> Vec<LockName> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.locks.range::<LockName, _>((start, Bound::Unbounded)).take(count).map(|(name, _)| name.clone()).collect()
    }

    /// All times have gone on since it was read.
    fn now(&self, lock: &Listed) -> Listed {
        let more_ms = self.age_ms();
        let mut lock = lock.clone();
        for session in lock.holders.iter_mut().chain(&mut lock.waiters) {
            session.since_ms = session.since_ms.saturating_add(more_ms);
        }
        for session in &mut lock.last_known {
            session.seen_ms = session.seen_ms.map(|seen_ms| seen_ms.saturating_add(more_ms));
        }
        lock
    }

    fn is_fresh(&self) -> bool {
        self.read.is_some() && self.age_ms() < BOARD_FRESH_MS
    }

    fn of(boards: Vec<FoundBoard<Board>>) -> Self {
        let mut elsewhere = Self { read: Some(Instant::now()), ..Self::default() };
        for FoundBoard { board, runs, age_ms } in boards {
            if runs {
                elsewhere.unlisted = elsewhere.unlisted.saturating_add(board.unlisted);
            }
            for lock in &board.locks {
                let Ok(name) = LockName::parse(lock.lock.as_bytes()) else { continue };
                elsewhere.add(name, lock, |session| SessionInfo {
                    node: Some(board.node.clone()),
                    node_pid: Some(board.pid),
                    since_ms: if runs { session.since_ms.saturating_add(age_ms) } else { session.since_ms },
                    seen_ms: (!runs).then_some(age_ms),
                    ..session.clone()
                });
            }
        }
        elsewhere
    }

    /// The boards of daemons that run come before those of others, and the latest come first.
    fn add(&mut self, name: LockName, lock: &Listed, seen: impl Fn(&SessionInfo) -> SessionInfo) {
        let entry = self.locks.entry(name).or_insert_with(|| Listed {
            lock: lock.lock.clone(),
            mode: None,
            holders: Vec::new(),
            holders_total: None,
            waiters: Vec::new(),
            waiters_total: None,
            contender: false,
            last_known: Vec::new(),
        });
        for holder in lock.holders.iter().map(&seen) {
            if holder.seen_ms.is_none() && entry.holders.len() >= LIST_SESSIONS_MAX {
                break;
            }
            if holder.seen_ms.is_none() {
                entry.mode.get_or_insert(holder.mode.clone());
                entry.holders.push(holder);
            } else if entry.last_known.len() < LAST_KNOWN_MAX {
                entry.last_known.push(holder);
            }
        }
        let waiters: Vec<SessionInfo> =
            lock.waiters.iter().map(&seen).filter(|waiter| waiter.seen_ms.is_none()).collect();
        if !waiters.is_empty() {
            let total = lock.waiters_total.unwrap_or(waiters.len());
            let before = entry.waiters_total.unwrap_or(0);
            entry.waiters_total = Some(before.saturating_add(total));
            entry.waiters.extend(waiters);
            entry.waiters.truncate(LIST_SESSIONS_MAX);
        }
    }
}

impl Boards {
    /// What other daemons show, as far as it has been read. From now on it is read again for a
    /// while.
    #[must_use]
    pub fn elsewhere(&self) -> Arc<Elsewhere> {
        self.asked_ms.store(now_ms(), Ordering::Relaxed);
        Arc::clone(&locked(&self.shown))
    }

    /// No request waits any more, and this daemon shows nothing any more: it ends.
    pub(crate) fn end(&self, table: &LockTable) {
        locked(&self.askers).ended = true;
        self.answer(table);
        self.wake();
    }

    /// Removes this daemon's board.
    pub(crate) fn leave(&self) {
        if let Some(own) = locked(&self.own).take() {
            board::leave(&own);
        }
    }

    fn has_ended(&self) -> bool {
        locked(&self.askers).ended
    }

    fn is_asked(&self) -> bool {
        let asked_ms = self.asked_ms.load(Ordering::Relaxed);
        let recently = asked_ms > 0 && now_ms().saturating_sub(asked_ms) < BOARD_ASKED_MS;
        recently || self.is_awaited()
    }

    fn is_awaited(&self) -> bool {
        !locked(&self.askers).sessions.is_empty()
    }

    fn is_fresh(&self) -> bool {
        locked(&self.shown).is_fresh()
    }

    /// Tells those who wait that there is nothing more to wait for.
    fn answer(&self, table: &LockTable) {
        let sessions = std::mem::take(&mut locked(&self.askers).sessions);
        let tell = |session: SessionId| table.mailboxes.post(session, Notice::BoardsRead);
        sessions.into_iter().filter_map(tell).for_each(Waker::wake);
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// Starts the thread of the boards, before there are sessions.
///
/// # Errors
/// If the system refuses a thread.
pub(crate) fn start(table: &Arc<LockTable>) -> io::Result<()> {
    let own = Arc::clone(table);
    let thread = thread::Builder::new().name("boards".into()).spawn(move || Keeper::new(own).run())?;
    table.boards.thread.set(thread.thread().clone()).expect("the daemon starts only once");
    Ok(())
}

/// What is shown of a shard.
#[derive(Default)]
struct ShownShard {
    read_ms: u64,
    /// Somebody in it does not hold or wait for long enough yet.
    is_young: bool,
    locks: Vec<Listed>,
    unlisted: usize,
}

/// The thread of the boards.
struct Keeper {
    table: Arc<LockTable>,
    shards: Vec<ShownShard>,
    own: Option<OwnBoard>,
    /// What is shown has changed since it was written.
    is_unwritten: bool,
    /// Writing failed the last time, which was logged.
    fails: bool,
    read: ReadBoards<Board>,
    /// The clock of the file system minus this host's, and when it was found out.
    clock: Option<(i64, Instant)>,
}

impl Keeper {
    fn new(table: Arc<LockTable>) -> Self {
        Self {
            table,
            shards: Shards::all().map(|_| ShownShard::default()).collect(),
            own: None,
            is_unwritten: false,
            fails: false,
            read: ReadBoards::default(),
            clock: None,
        }
    }

    fn run(mut self) {
        let table = Arc::clone(&self.table);
        let every = Duration::from_millis(BOARD_EVERY_MS);
        let mut looked: Option<Instant> = None;
        while !table.boards.has_ended() {
            let begun = Instant::now();
            if !table.settings.no_board && looked.is_none_or(|looked| looked.elapsed() >= every) {
                looked = Some(begun);
                self.show();
            }
            if table.boards.is_asked() {
                self.look();
                table.boards.answer(&table);
            }
            let earliest = Instant::now() + rest_after(begun.elapsed());
            rest(&table, earliest, begun + every);
        }
    }

    /// Writes this daemon's board, if that has changed.
    fn show(&mut self) {
        for (index, shown) in Shards::all().zip(&mut self.shards) {
            let changed_ms = self.table.shards.lock(index).changed_ms();
            // An input that followed from another one has the time of that.
            if changed_ms.saturating_add(BOARD_EVERY_MS) >= shown.read_ms || shown.is_young {
                let new = self.table.shown(index);
                self.is_unwritten |= new.locks != shown.locks || new.unlisted != shown.unlisted;
                *shown = new;
            }
        }
        if self.own.as_ref().is_some_and(|own| !own.is_valid(&self.table.storage.files)) {
            self.own = None;
            self.table.boards.leave();
            self.is_unwritten = true;
        }
        if !self.is_unwritten || self.own.is_none() && self.shards.iter().all(|shard| shard.locks.is_empty()) {
            return;
        }
        match self.write() {
            Ok(()) => (self.is_unwritten, self.fails) = (false, false),
            Err(error) => {
                if !std::mem::replace(&mut self.fails, true) {
                    tracing::warn!(
                        "other daemons cannot see who holds the locks of this one: cannot write .distrilock/board-...: {error}"
                    );
                }
                self.own = None;
                self.table.boards.leave();
            }
        }
    }

    fn write(&mut self) -> io::Result<()> {
        let own = match &self.own {
            Some(own) => own,
            None => {
                let new = self.table.storage.files.create_board()?;
                *locked(&self.table.boards.own) = Some(new.path().to_owned());
                self.own.insert(new)
            }
        };
        let board = Board {
            node: self.table.node.clone(),
            pid: std::process::id(),
            now_ms: now_ms(),
            locks: self.shards.iter().flat_map(|shard| shard.locks.iter().cloned()).collect(),
            unlisted: self.shards.iter().map(|shard| shard.unlisted).sum(),
        };
        own.write(&board.json())
    }

    /// Reads the boards of others.
    fn look(&mut self) {
        let files = &self.table.storage.files;
        let here_ms = i64::try_from(now_ms()).unwrap_or(i64::MAX);
        if self.clock.is_none_or(|(_, found)| found.elapsed().as_secs() >= CLOCK_SECONDS) {
            self.clock = files.time_ms().ok().map(|time_ms| (time_ms - here_ms, Instant::now()));
        }
        // Without a clock nothing is old.
        let now_ms = self.clock.map_or(i64::MIN, |(ahead_ms, _)| here_ms + ahead_ms);
        let found = files.boards(self.own.as_ref(), now_ms, &mut self.read);
        let new = Arc::new(Elsewhere::of(found));
        let old = std::mem::replace(&mut *locked(&self.table.boards.shown), new);
        // It may take long to drop, which neither those who look now nor those who still look into
        // the old one should wait for.
        while Arc::strong_count(&old) > 1 {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// How long the thread rests after a round that took this long.
fn rest_after(took: Duration) -> Duration {
    took.saturating_mul(BOARD_REST_FACTOR).min(Duration::from_millis(BOARD_REST_MS_MAX))
}

/// Rests until the next round is due, or, if a session waits for one, until the earliest time for
/// it.
fn rest(table: &LockTable, earliest: Instant, due: Instant) {
    let boards = &table.boards;
    while !boards.has_ended() {
        let mut until = earliest.max(due);
        if boards.is_awaited() {
            if boards.is_fresh() {
                boards.answer(table);
            } else {
                until = earliest;
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::park_timeout(left);
    }
}

impl LockTable {
    /// Asks for the boards of others on behalf of a session. Returns false if they were read just
    /// now, or nobody reads them any more; otherwise the session gets [`Notice::BoardsRead`].
    pub fn await_boards(self: &Arc<Self>, session: SessionId) -> bool {
        if self.boards.elsewhere().is_fresh() {
            return false;
        }
        let mut askers = locked(&self.boards.askers);
        if askers.ended {
            return false;
        }
        askers.sessions.push(session);
        drop(askers);
        self.boards.wake();
        let table = Arc::clone(self);
        self.timers.spawn(async move {
            tokio::time::sleep(Duration::from_millis(BOARD_WAIT_MS_MAX)).await;
            // The storage may be slow.
            let mut askers = locked(&table.boards.askers);
            let before = askers.sessions.len();
            askers.sessions.retain(|asker| *asker != session);
            let waits = askers.sessions.len() < before;
            drop(askers);
            if waits {
                table.mailboxes.post(session, Notice::BoardsRead).into_iter().for_each(Waker::wake);
            }
        });
        true
    }

    /// A session that holds a lock or waits for it, as others see it.
    #[must_use]
    pub fn seen(&self, claim: &Claim, since_ms: u64) -> SessionInfo {
        let (slots, take) = match claim.extent {
            Extent::Slots { of, take } => (Some(of), claim.slots.is_empty().then_some(take)),
            Extent::Shared | Extent::Exclusive => (None, None),
        };
        SessionInfo {
            session: claim.session.to_string(),
            introduction: self.mailboxes.introduction(claim.session),
            mode: claim.mode().into(),
            slots,
            taken: claim.slots.clone(),
            take,
            fence: claim.fence,
            since_ms,
            node: None,
            node_pid: None,
            seen_ms: None,
        }
    }

    /// What others are shown of a shard, which is locked for a few names at a time.
    fn shown(&self, index: ShardIndex) -> ShownShard {
        let mut shown = ShownShard { read_ms: now_ms(), ..ShownShard::default() };
        let (mut after, mut looked_at) = (None, 0);
        while looked_at < BOARD_NAMES_MAX {
            let names = self.shards.names_of(index, after.as_ref());
            for name in &names {
                let Some(view) = self.shards.view(name) else { continue };
                self.show_name(name, &view, &mut shown);
            }
            looked_at += names.len();
            let Some(last) = names.into_iter().next_back() else { break };
            after = Some(last);
        }
        shown
    }

    fn show_name(&self, name: &LockName, view: &View, shown: &mut ShownShard) {
        let old_enough = |claim: &&Claim| claim.since_ms.saturating_add(BOARD_AFTER_MS) <= shown.read_ms;
        let old = |claims: &[Claim]| -> Vec<Claim> { claims.iter().filter(old_enough).cloned().collect() };
        let (holders, waiters) = (old(&view.holders), old(&view.waiters));
        if holders.len() < view.holders.len() || waiters.len() < view.waiters.len() {
            shown.is_young = true;
        }
        if holders.is_empty() && waiters.is_empty() {
            return;
        }
        if shown.locks.len() >= BOARD_LOCKS_PER_SHARD_MAX {
            shown.unlisted += 1;
            return;
        }
        // Times on this host's clock: they do not change from one writing to the next.
        let seen = |claims: Vec<Claim>| -> Vec<SessionInfo> {
            claims.iter().take(BOARD_SESSIONS_MAX).map(|claim| self.seen(claim, claim.since_ms)).collect()
        };
        let (holders, waiters) = (seen(holders), seen(waiters));
        shown.locks.push(Listed { contender: false, ..listed(name, view, holders, waiters) });
    }
}

/// What the daemon knows of a name, with those of its holders and waiters that are shown.
#[must_use]
pub(crate) fn listed(name: &LockName, view: &View, holders: Vec<SessionInfo>, waiters: Vec<SessionInfo>) -> Listed {
    Listed {
        lock: name.to_string(),
        mode: view.holders.first().map(|holder| ModeWord::from(holder.mode())),
        holders_total: (view.holders_total > holders.len()).then_some(view.holders_total),
        waiters_total: (view.waiters_total > waiters.len()).then_some(view.waiters_total),
        holders,
        waiters,
        contender: view.contender,
        last_known: Vec::new(),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A round that was short is followed by a rest that is longer; one that waited long for the
    /// storage is not.
    #[test]
    fn rests() {
        let rests = |took_ms| millis(rest_after(Duration::from_millis(took_ms)));
        assert_eq!([0, 20, 500, 501, 60_000, u64::MAX].map(rests), [0, 200, 5000, 5000, 5000, 5000]);
    }
}
