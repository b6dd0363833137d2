//! [`Shards`]: the engine, one value in a mutex for each share of the names.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::files::OpenFile;
use crate::limits::{COUNTED_AT_ONCE, NAMES_AT_ONCE, QUEUE_ENTRIES_PER_READ};
use crate::sync::locked;
use distrilock_engine::deadlock::Queue;
use distrilock_engine::limits::SHARDS;
use distrilock_engine::{Config, Engine, View};
use distrilock_protocol::name::LockName;

pub(super) type Shard = Engine<OpenFile>;

/// The place of a shard among the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ShardIndex(usize);

/// The engine's shards. A name belongs to the one that its hash says.
#[derive(Debug)]
pub struct Shards {
    shards: Box<[Mutex<Shard>]>,
    hash: RandomState,
    /// Only sessions begin anything now: the daemon hands over.
    is_frozen: AtomicBool,
}

impl Shards {
    pub(super) fn new(config: &Config) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::new(Engine::new(config.clone()))).collect();
        Self { shards, hash: RandomState::new(), is_frozen: AtomicBool::new(false) }
    }

    pub(super) fn index_of(&self, name: &LockName) -> ShardIndex {
        let places = SHARDS as u64;
        ShardIndex(usize::try_from(self.hash.hash_one(name) % places).expect("there are few shards"))
    }

    pub(super) fn all() -> impl Iterator<Item = ShardIndex> {
        (0..SHARDS).map(ShardIndex)
    }

    pub(super) fn lock(&self, shard: ShardIndex) -> MutexGuard<'_, Shard> {
        locked(&self.shards[shard.0])
    }

    /// Locks the shard of a name.
    pub(crate) fn of(&self, name: &LockName) -> MutexGuard<'_, Engine<OpenFile>> {
        self.lock(self.index_of(name))
    }

    /// Locks one shard after the other.
    pub(crate) fn each(&self) -> impl Iterator<Item = MutexGuard<'_, Engine<OpenFile>>> {
        self.shards.iter().map(locked)
    }

    /// From now on timers, hints and watches begin nothing.
    pub(crate) fn freeze(&self) {
        self.is_frozen.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.is_frozen.load(Ordering::SeqCst)
    }

    /// Returns once every shard could be locked: none is stuck.
    pub(crate) fn reach_all(&self) {
        self.each().for_each(drop);
    }

    /// How many locks are held, and how many requests wait.
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        let mut sum = (0, 0);
        for shard in Self::all() {
            let mut after = None;
            loop {
                let ((held, waiting), next) = self.lock(shard).count(after.as_ref(), COUNTED_AT_ONCE);
                sum = (sum.0 + held, sum.1 + waiting);
                after = next;
                if after.is_none() {
                    break;
                }
            }
        }
        sum
    }

    /// The first names after `after` that are held or waited for, at most `count`, in order.
    #[must_use]
    pub fn names(&self, after: Option<&LockName>, count: usize) -> Vec<LockName> {
        self.first(after, count, |shard, after| shard.names(after).take(NAMES_AT_ONCE).cloned().collect())
    }

    /// The next names of one shard after `after` that are held or waited for: a few at a time, none
    /// after the last one.
    pub(super) fn names_of(&self, shard: ShardIndex, after: Option<&LockName>) -> Vec<LockName> {
        self.lock(shard).names(after).take(NAMES_AT_ONCE).cloned().collect()
    }

    /// The first held names after `after`, at most `count`, in order.
    pub(super) fn held(&self, after: Option<&LockName>, count: usize) -> Vec<LockName> {
        self.first(after, count, |shard, after| shard.held(after).take(NAMES_AT_ONCE).cloned().collect())
    }

    /// The first names after `after` in the order of all shards, at most `count`. `read` reads the
    /// next names of one shard, a few at a time: fewer than [`NAMES_AT_ONCE`] are the last ones.
    fn first(
        &self,
        after: Option<&LockName>,
        count: usize,
        read: impl Fn(&Shard, Option<&LockName>) -> Vec<LockName>,
    ) -> Vec<LockName> {
        let piece = |at: usize, after: Option<&LockName>| {
            let names = read(&self.lock(ShardIndex(at)), after);
            (names.len() < NAMES_AT_ONCE, names.into_iter())
        };
        let mut pieces: Vec<_> = (0..SHARDS).map(|at| piece(at, after)).collect();
        let firsts = pieces.iter_mut().enumerate().filter_map(|(at, (_, names))| Some(Reverse((names.next()?, at))));
        let mut next: BinaryHeap<_> = firsts.collect();
        let mut names = Vec::new();
        while names.len() < count
            && let Some(Reverse((name, at))) = next.pop()
        {
            let (is_last, rest) = &mut pieces[at];
            let mut following = rest.next();
            if following.is_none() && !*is_last {
                pieces[at] = piece(at, Some(&name));
                following = pieces[at].1.next();
            }
            next.extend(following.map(|following| Reverse((following, at))));
            names.push(name);
        }
        names
    }

    /// The queues of all names that requests wait for. Each piece is passed through `keep` before
    /// the next one is read, while no shard is locked.
    pub(super) fn queues(&self, keep: impl Fn(&mut Vec<Queue>)) -> Vec<Queue> {
        let mut all = Vec::new();
        for shard in Self::all() {
            let mut after = None;
            loop {
                let (mut queues, next) = self.lock(shard).queues(after.as_ref(), QUEUE_ENTRIES_PER_READ);
                keep(&mut queues);
                all.append(&mut queues);
                after = next;
                if after.is_none() {
                    break;
                }
            }
        }
        all
    }

    /// Whether sessions of this daemon hold the name.
    pub(super) fn holds(&self, name: &LockName) -> bool {
        self.of(name).holds(name)
    }

    /// The names that have a file operation in flight.
    pub(crate) fn in_flight(&self) -> BTreeSet<LockName> {
        self.each().flat_map(|shard| shard.in_flight().cloned().collect::<Vec<_>>()).collect()
    }

    /// The name as the engine has it: it shares its memory with all that is known of it.
    pub(crate) fn own_name(&self, name: &LockName) -> Option<LockName> {
        self.of(name).own_name(name).cloned()
    }

    /// What is known of a name without asking the file system.
    #[must_use]
    pub fn view(&self, name: &LockName) -> Option<View> {
        self.of(name).view(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use distrilock_engine::{Asked, Input, Mode, Pace, RequestId, SessionId};

    /// Names of all shards come in their order, whatever page is asked for.
    #[test]
    fn names_in_order() {
        let shards = Shards::new(&Config {
            linger_ms: 0,
            linger_files_max: 0,
            linger_evicts: false,
            pace: Pace::LOCAL,
            history_from_ms: u64::MAX,
        });
        let mut all = BTreeSet::new();
        for number in 0..1500 {
            let name = LockName::parse(format!("n{number}").as_bytes()).unwrap();
            let asked = Asked { name: name.clone(), session: SessionId(1), request: RequestId(number) };
            let input = Input::Acquire { asked, want: Mode::Exclusive.into(), wait: true };
            shards.of(&name).input(input, &mut Vec::new());
            all.insert(name);
        }
        let all: Vec<LockName> = all.into_iter().collect();
        assert_eq!(shards.names(None, 2000), all);
        for (after, count) in [(0, 1), (7, 257), (700, 0), (700, 700), (1490, 257), (1499, 257)] {
            let rest = &all[after + 1..];
            assert_eq!(shards.names(Some(&all[after]), count), rest[..rest.len().min(count)]);
        }
        assert_eq!(shards.count(), (0, 1500));
        assert_eq!(shards.held(None, 257), [], "nobody has carried out a try");
    }
}
