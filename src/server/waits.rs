//! Who waits for whom in this daemon: a request is refused that would wait for sessions which wait for its own.
//!
//! The engine's shards know who holds a name and who stands in its queue, but each only of its own names. So all waits of the
//! daemon are noted here, and whoever begins one looks, with the notes locked, whether it can end; of two that close a cycle at
//! the same time the later one finds it. Nobody locks the notes while a shard is locked.
//!
//! A session counts as stuck only if that is certain: if none of its waits can end although all who are not stuck give back what
//! they hold. A wait for slots ends when others than stuck sessions have enough of them, here or in other daemons. So no request
//! is refused that could have been granted, but for sessions that release what they hold while they wait.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use distrilock_engine::{Claim, Extent, Mode, SessionId};
use distrilock_protocol::name::LockName;

/// The names that sessions wait for.
#[derive(Debug, Default)]
pub(super) struct Waits(Mutex<BTreeMap<SessionId, BTreeSet<LockName>>>);

/// A name's holders, and who waits for it, first come first.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    /// Who holds it.
    pub(super) holders: Vec<Claim>,
    /// Who waits for it.
    pub(super) waiters: Vec<Claim>,
}

/// A session waits for a name, because of another session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) waits: SessionId,
    pub(super) name: LockName,
    pub(super) because_of: SessionId,
    /// Whether that one holds the name; else it stands before the other one in the queue.
    pub(super) holds: bool,
}

impl Waits {
    /// Notes that a session waits for a name.
    pub(super) fn begin(&self, session: SessionId, name: &LockName) {
        self.notes().entry(session).or_default().insert(name.clone());
    }

    /// It waits for it no more.
    pub(super) fn end(&self, session: SessionId, name: &LockName) {
        forget(&mut self.notes(), session, name);
    }

    /// Notes that a session waits for a name, unless that closes a cycle: then it tells which.
    pub(super) fn cycle(
        &self,
        session: SessionId,
        name: &LockName,
        queue_of: impl Fn(&LockName) -> Queue,
    ) -> Option<Vec<Edge>> {
        let mut notes = self.notes();
        notes.entry(session).or_default().insert(name.clone());
        if !leads_back(session, name, &notes, &queue_of) {
            return None;
        }
        let mut graph = Graph::default();
        graph.look(session, &notes, queue_of);
        graph.free_those_who_get_on();
        let cycle = graph.way_back(session, name);
        if cycle.is_some() {
            // It is refused: another one that looks now shall not be, on its account.
            forget(&mut notes, session, name);
        }
        cycle
    }

    fn notes(&self) -> std::sync::MutexGuard<'_, BTreeMap<SessionId, BTreeSet<LockName>>> {
        // A panic aborts the daemon, so that a poisoned mutex is never met outside of tests.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the waits that follow from this one lead back to its session, over whoever stands in the same queues: seldom, and only
/// then a closer look is worth its price, which grows with all that the session waits for.
fn leads_back(
    session: SessionId,
    name: &LockName,
    notes: &BTreeMap<SessionId, BTreeSet<LockName>>,
    queue_of: impl Fn(&LockName) -> Queue,
) -> bool {
    let (mut names, mut sessions) = (BTreeSet::from([name.clone()]), BTreeSet::from([session]));
    let mut next = VecDeque::from([name.clone()]);
    while let Some(at) = next.pop_front() {
        let queue = queue_of(&at);
        for other in queue.holders.iter().chain(&queue.waiters).map(|seen| seen.session) {
            // It stands in the queue that it has just come to, which says nothing.
            if other == session && at != *name {
                return true;
            }
            if sessions.insert(other) {
                let waits = notes.get(&other).into_iter().flatten();
                next.extend(waits.filter(|name| names.insert((*name).clone())).cloned());
            }
        }
    }
    false
}

fn forget(notes: &mut BTreeMap<SessionId, BTreeSet<LockName>>, session: SessionId, name: &LockName) {
    if let Some(names) = notes.get_mut(&session) {
        names.remove(name);
        if names.is_empty() {
            notes.remove(&session);
        }
    }
}

/// What a session that waits, and those for whom it waits, wait for.
#[derive(Debug, Default)]
struct Graph {
    queues: BTreeMap<LockName, Queue>,
    /// The sessions that are stuck as far as is known, with the names that they wait for.
    stuck: BTreeMap<SessionId, BTreeSet<LockName>>,
}

impl Graph {
    /// Follows the waits from one session on.
    fn look(
        &mut self,
        from: SessionId,
        notes: &BTreeMap<SessionId, BTreeSet<LockName>>,
        queue_of: impl Fn(&LockName) -> Queue,
    ) {
        let mut names: VecDeque<LockName> = VecDeque::new();
        let mut sessions = VecDeque::from([from]);
        loop {
            while let Some(session) = sessions.pop_front() {
                names.extend(notes.get(&session).into_iter().flatten().cloned());
            }
            let Some(name) = names.pop_front() else { return };
            if self.queues.contains_key(&name) {
                continue;
            }
            let queue = queue_of(&name);
            // Who has just come to a queue may not have been noted yet.
            for waiter in &queue.waiters {
                self.stuck.entry(waiter.session).or_default().insert(name.clone());
            }
            sessions.extend(queue.holders.iter().chain(&queue.waiters).map(|seen| seen.session));
            self.queues.insert(name, queue);
        }
    }

    /// Those who are stuck and keep this session from the name, but for the waiters of each queue that were told before, who are
    /// so many from its front.
    fn in_the_way(&self, session: SessionId, name: &LockName, told: &mut BTreeMap<LockName, usize>) -> Vec<Edge> {
        let Some(queue) = self.queues.get(name) else { return Vec::new() };
        let Some(place) = queue.waiters.iter().position(|waiter| waiter.session == session) else { return Vec::new() };
        let edge = |because_of, holds| Edge { waits: session, name: name.clone(), because_of, holds };
        let stuck = |seen: &&Claim| self.stuck.contains_key(&seen.session);
        let told = told.entry(name.clone()).or_default();
        let ahead =
            queue.waiters[(*told).min(place)..place].iter().filter(stuck).map(|other| edge(other.session, false));
        let wants = &queue.waiters[place];
        let kept = Kept::by_stuck(queue, &self.stuck);
        let in_the_way =
            |holder: &&Claim| kept.from(wants) && (holder.mode() != wants.mode() || wants.mode() != Mode::Shared);
        let holders = queue.holders.iter().filter(in_the_way).filter(stuck);
        let edges = holders.map(|holder| edge(holder.session, true)).chain(ahead).collect();
        *told = place.max(*told);
        edges
    }

    /// Takes out those who have a wait that will end, until all that are left keep each other waiting.
    fn free_those_who_get_on(&mut self) {
        let Self { queues, stuck } = self;
        loop {
            let before = stuck.len();
            for queue in queues.values() {
                let kept = Kept::by_stuck(queue, stuck);
                for waiter in &queue.waiters {
                    if !kept.from(waiter) {
                        stuck.remove(&waiter.session);
                    } else if stuck.contains_key(&waiter.session) {
                        // Nobody behind it gets on in this queue.
                        break;
                    }
                }
            }
            if stuck.len() == before {
                return;
            }
        }
    }

    /// The shortest way from a session's wait back to it, over those who are stuck.
    fn way_back(&self, session: SessionId, name: &LockName) -> Option<Vec<Edge>> {
        if !self.stuck.contains_key(&session) {
            return None;
        }
        let mut came_by: BTreeMap<SessionId, Edge> = BTreeMap::new();
        let mut told = BTreeMap::new();
        let mut next = VecDeque::from(self.in_the_way(session, name, &mut told));
        while let Some(edge) = next.pop_front() {
            let at = edge.because_of;
            if at == session {
                let mut way = vec![edge];
                while way[0].waits != session {
                    way.insert(0, came_by[&way[0].waits].clone());
                }
                return Some(way);
            }
            if came_by.contains_key(&at) {
                continue;
            }
            came_by.insert(at, edge);
            for name in self.stuck.get(&at).into_iter().flatten() {
                next.extend(self.in_the_way(at, name, &mut told));
            }
        }
        None
    }
}

/// What stuck sessions keep of a name.
#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    holders: usize,
    exclusive: bool,
    slots: usize,
}

impl Kept {
    fn by_stuck(queue: &Queue, stuck: &BTreeMap<SessionId, BTreeSet<LockName>>) -> Self {
        let mut kept = Self::default();
        for holder in queue.holders.iter().filter(|holder| stuck.contains_key(&holder.session)) {
            kept.holders += 1;
            kept.exclusive |= holder.mode() == Mode::Exclusive;
            kept.slots += holder.slots.len();
        }
        kept
    }

    /// Whether that is enough to keep it from a waiter.
    fn from(self, waiter: &Claim) -> bool {
        match waiter.extent {
            Extent::Exclusive => self.holders > 0,
            Extent::Shared => self.exclusive,
            Extent::Slots { of, take } => self.exclusive || self.slots + usize::from(take) > usize::from(of),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use distrilock_engine::Want;

    fn name(text: &str) -> LockName {
        LockName::parse(text.as_bytes()).unwrap()
    }

    /// Queues as texts: the name, its holders and its waiters, as in `a: 1 2 < 3`; a session is its number.
    fn cycle(queues: &[&str], session: u64, wanted: &str) -> Option<String> {
        let waits = Waits::default();
        let mut all: BTreeMap<LockName, Queue> = BTreeMap::new();
        for queue in queues {
            let (text, rest) = queue.split_once(": ").unwrap();
            let (holders, waiters) = rest.split_once('<').unwrap_or((rest, ""));
            let seen = |word: &str| {
                let (mode, number) = match (word.strip_prefix('s'), word.strip_prefix('f')) {
                    (Some(number), _) => (Mode::Shared, number),
                    (_, Some(number)) => (Mode::Slots(2), number),
                    _ => (Mode::Exclusive, word),
                };
                Claim::new(SessionId(number.parse().unwrap()), Want::from(mode), 0)
            };
            let mut holders: Vec<Claim> = holders.split_whitespace().map(seen).collect();
            holders.iter_mut().for_each(|holder| holder.slots = vec![0; holder.extent.slots().into()].into());
            let waiters: Vec<Claim> = waiters.split_whitespace().map(seen).collect();
            waiters.iter().for_each(|waiter| waits.begin(waiter.session, &name(text)));
            all.insert(name(text), Queue { holders, waiters });
        }
        let way = waits.cycle(SessionId(session), &name(wanted), |name| all.get(name).cloned().unwrap_or_default())?;
        let edge = |edge: &Edge| format!("{}{}{}", edge.waits.0, edge.name, edge.because_of.0);
        Some(way.iter().map(edge).collect::<Vec<_>>().join(" "))
    }

    /// Two and three sessions wait for each other; one that waits outside of the cycle does not close it.
    #[test]
    fn cycles_are_found() {
        assert_eq!(cycle(&["a: 1 < 2", "b: 2"], 2, "a"), None);
        assert_eq!(cycle(&["a: 1 < 2", "b: 2 < 1"], 1, "b").as_deref(), Some("1b2 2a1"));
        assert_eq!(cycle(&["a: 1 < 3", "b: 2 < 1", "c: 3 < 2"], 2, "c").as_deref(), Some("2c3 3a1 1b2"));
        assert_eq!(cycle(&["a: 1 < 2 4", "b: 2 < 1"], 4, "a"), None);
    }

    /// A reader behind a writer that waits for another reader, who waits for the first one.
    #[test]
    fn cycles_through_a_queue() {
        let queues = ["a: s1 < 2 s3", "b: 3 < 1"];
        assert_eq!(cycle(&queues, 3, "a").as_deref(), Some("3a2 2a1 1b3"));
        assert_eq!(cycle(&["a: s1 < s3", "b: 3 < 1"], 3, "a"), None, "it shares, and is about to enter");
    }

    /// A wait for a slot ends if any holder can go on; only when none can, it is part of a cycle.
    #[test]
    fn slots_need_all_holders_stuck() {
        assert_eq!(cycle(&["f: f1 f2 < f3", "b: 3 < 1"], 3, "f"), None);
        assert_eq!(cycle(&["f: f1 < f3", "b: 3 < 1"], 3, "f"), None, "the other slot is in another daemon");
        assert_eq!(cycle(&["f: f1 f2 < f3", "b: 3 < 1 2"], 3, "f").as_deref(), Some("3f1 1b3"));
    }

    /// A long queue costs no more than to walk along it once or twice, whether its head gets on or not.
    #[test]
    fn long_queues() {
        let crowd: Vec<String> = (10..5000_u64).map(|session| session.to_string()).collect();
        let queue = format!("a: 1 < {} 2", crowd.join(" "));
        assert_eq!(cycle(&[&queue, "b: 2"], 2, "a"), None);
        assert_eq!(cycle(&[&queue, "b: 2 < 1"], 2, "a").as_deref(), Some("2a1 1b2"));
    }

    /// A session with two waits goes on if one of them ends.
    #[test]
    fn one_wait_of_two_ends() {
        assert_eq!(cycle(&["a: 1 < 2", "b: 2 < 1", "c: 9 < 1"], 2, "a"), None);
    }
}
