//! [`Shards`]: the engine, one value in a mutex for each share of the names.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::files::OpenFile;
use crate::limits::QUEUE_ENTRIES_PER_READ;
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
        self.each().map(|shard| shard.count()).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// The first names after `after` that are held or waited for, at most `count`, in order.
    #[must_use]
    pub fn names(&self, after: Option<&LockName>, count: usize) -> Vec<LockName> {
        let mut names: Vec<LockName> = Vec::new();
        for shard in self.each() {
            names.extend(shard.names(after).take(count).cloned());
        }
        names.sort_unstable();
        names.truncate(count);
        names
    }

    /// The first held names after `after`, at most `count`, in order.
    pub(super) fn held(&self, after: Option<&LockName>, count: usize) -> Vec<LockName> {
        let mut names: Vec<LockName> = Vec::new();
        for shard in self.each() {
            names.extend(shard.held(after).take(count).cloned());
        }
        names.sort_unstable();
        names.truncate(count);
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
