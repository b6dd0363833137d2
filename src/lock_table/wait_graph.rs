//! The wait-for graph of this daemon's sessions: a request that would close a cycle is refused as a
//! deadlock.
//!
//! The engine's shards know who holds a name and who waits in its queue, but each shard knows only
//! its own names. So every wait of the daemon is noted here. A session that begins to wait checks,
//! with the notes locked, whether its wait can end; of two that close a cycle at the same time, the
//! later one finds it. Nobody locks the notes while a shard is locked.
//!
//! A session counts as stuck only if that is certain: none of its waits can end even if all
//! sessions that are not stuck release what they hold. A wait for slots ends when enough of them
//! belong to sessions that are not stuck, here or in other daemons. So no request is refused that
//! could have been granted, unless a session releases a lock while it waits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;

use crate::sync::locked;
use distrilock_engine::{Claim, Extent, Mode, SessionId};
use distrilock_protocol::name::LockName;

/// The names that each session waits for.
type Waits = BTreeMap<SessionId, BTreeSet<LockName>>;

/// All waits of the daemon.
#[derive(Debug, Default)]
pub struct WaitGraph(Mutex<Waits>);

/// A name's holders and waiters, the first in the queue first.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    /// The sessions that hold it.
    pub(super) holders: Vec<Claim>,
    /// The sessions that wait for it.
    pub(super) waiters: Vec<Claim>,
}

/// A session waits for a name, because of another session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) waits: SessionId,
    pub(super) name: LockName,
    pub(super) because_of: SessionId,
    /// Whether that session holds the name; otherwise it is ahead in the queue.
    pub(super) holds: bool,
}

impl WaitGraph {
    /// Notes that a session waits for a name.
    pub fn add(&self, session: SessionId, name: &LockName) {
        locked(&self.0).entry(session).or_default().insert(name.clone());
    }

    /// The session no longer waits for the name.
    pub fn remove(&self, session: SessionId, name: &LockName) {
        forget(&mut locked(&self.0), session, name);
    }

    /// Notes that a session waits for a name, unless that would close a cycle: then returns the
    /// cycle.
    pub(super) fn add_unless_cycle(
        &self,
        session: SessionId,
        name: &LockName,
        queue_of: impl Fn(&LockName) -> Queue,
    ) -> Option<Vec<Edge>> {
        let mut waits = locked(&self.0);
        waits.entry(session).or_default().insert(name.clone());
        if !leads_back(session, name, &waits, &queue_of) {
            return None;
        }
        let mut reachable = Reachable::default();
        reachable.explore(session, &waits, queue_of);
        reachable.remove_unstuck();
        let cycle = reachable.shortest_cycle(session, name);
        if cycle.is_some() {
            // It is refused, and must not cause the refusal of another one that checks now.
            forget(&mut waits, session, name);
        }
        cycle
    }
}

/// Whether the waits that follow from this one lead back to its session, through any session in the
/// same queues. They rarely do. Only then is the full check worth its price, which grows with
/// everything that the session waits for.
fn leads_back(session: SessionId, name: &LockName, waits: &Waits, queue_of: impl Fn(&LockName) -> Queue) -> bool {
    let (mut names, mut sessions) = (BTreeSet::from([name.clone()]), BTreeSet::from([session]));
    let mut next = VecDeque::from([name.clone()]);
    while let Some(at) = next.pop_front() {
        let queue = queue_of(&at);
        for other in queue.holders.iter().chain(&queue.waiters).map(|seen| seen.session) {
            // The session is in the queue that it has just joined, which proves nothing.
            if other == session && at != *name {
                return true;
            }
            if sessions.insert(other) {
                let names_of_other = waits.get(&other).into_iter().flatten();
                next.extend(names_of_other.filter(|name| names.insert((*name).clone())).cloned());
            }
        }
    }
    false
}

fn forget(waits: &mut Waits, session: SessionId, name: &LockName) {
    if let Some(names) = waits.get_mut(&session) {
        names.remove(name);
        if names.is_empty() {
            waits.remove(&session);
        }
    }
}

/// The part of the graph that can be reached from one session.
#[derive(Debug, Default)]
struct Reachable {
    queues: BTreeMap<LockName, Queue>,
    /// The sessions that may be stuck, with the names that they wait for.
    stuck: Waits,
}

impl Reachable {
    /// Follows the waits, starting at one session.
    fn explore(&mut self, from: SessionId, waits: &Waits, queue_of: impl Fn(&LockName) -> Queue) {
        let mut names: VecDeque<LockName> = VecDeque::new();
        let mut sessions = VecDeque::from([from]);
        loop {
            while let Some(session) = sessions.pop_front() {
                names.extend(waits.get(&session).into_iter().flatten().cloned());
            }
            let Some(name) = names.pop_front() else { return };
            if self.queues.contains_key(&name) {
                continue;
            }
            let queue = queue_of(&name);
            // A session that has just joined a queue may not have been noted yet.
            for waiter in &queue.waiters {
                self.stuck.entry(waiter.session).or_default().insert(name.clone());
            }
            sessions.extend(queue.holders.iter().chain(&queue.waiters).map(|seen| seen.session));
            self.queues.insert(name, queue);
        }
    }

    /// The stuck sessions that keep this one from the name, except the waiters of each queue that
    /// were returned before: `seen` is their number, counted from its front.
    fn in_the_way(&self, session: SessionId, name: &LockName, seen: &mut BTreeMap<LockName, usize>) -> Vec<Edge> {
        let Some(queue) = self.queues.get(name) else { return Vec::new() };
        let Some(place) = queue.waiters.iter().position(|waiter| waiter.session == session) else { return Vec::new() };
        let edge = |because_of, holds| Edge { waits: session, name: name.clone(), because_of, holds };
        let stuck = |other: &&Claim| self.stuck.contains_key(&other.session);
        let seen = seen.entry(name.clone()).or_default();
        let ahead =
            queue.waiters[(*seen).min(place)..place].iter().filter(stuck).map(|other| edge(other.session, false));
        let wants = &queue.waiters[place];
        let kept = Kept::by_stuck(queue, &self.stuck);
        let in_the_way =
            |holder: &&Claim| kept.from(wants) && (holder.mode() != wants.mode() || wants.mode() != Mode::Shared);
        let holders = queue.holders.iter().filter(in_the_way).filter(stuck);
        let edges = holders.map(|holder| edge(holder.session, true)).chain(ahead).collect();
        *seen = place.max(*seen);
        edges
    }

    /// Removes the sessions that have a wait which will end, until all that are left keep each
    /// other waiting.
    fn remove_unstuck(&mut self) {
        let Self { queues, stuck } = self;
        loop {
            let before = stuck.len();
            for queue in queues.values() {
                let kept = Kept::by_stuck(queue, stuck);
                for waiter in &queue.waiters {
                    if !kept.from(waiter) {
                        stuck.remove(&waiter.session);
                    } else if stuck.contains_key(&waiter.session) {
                        // Nobody behind it advances in this queue.
                        break;
                    }
                }
            }
            if stuck.len() == before {
                return;
            }
        }
    }

    /// The shortest path from a session's wait back to it, through stuck sessions.
    fn shortest_cycle(&self, session: SessionId, name: &LockName) -> Option<Vec<Edge>> {
        if !self.stuck.contains_key(&session) {
            return None;
        }
        let mut reached_by: BTreeMap<SessionId, Edge> = BTreeMap::new();
        let mut seen = BTreeMap::new();
        let mut next = VecDeque::from(self.in_the_way(session, name, &mut seen));
        while let Some(edge) = next.pop_front() {
            let at = edge.because_of;
            if at == session {
                let mut path = vec![edge];
                while path[0].waits != session {
                    path.insert(0, reached_by[&path[0].waits].clone());
                }
                return Some(path);
            }
            if reached_by.contains_key(&at) {
                continue;
            }
            reached_by.insert(at, edge);
            for name in self.stuck.get(&at).into_iter().flatten() {
                next.extend(self.in_the_way(at, name, &mut seen));
            }
        }
        None
    }
}

/// How much of a name stuck sessions hold.
#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    holders: usize,
    exclusive: bool,
    slots: usize,
}

impl Kept {
    fn by_stuck(queue: &Queue, stuck: &Waits) -> Self {
        let mut kept = Self::default();
        for holder in queue.holders.iter().filter(|holder| stuck.contains_key(&holder.session)) {
            kept.holders += 1;
            kept.exclusive |= holder.mode() == Mode::Exclusive;
            kept.slots += holder.slots.len();
        }
        kept
    }

    /// Whether that is enough to keep the name from a waiter.
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

    /// Each text is a queue: the name, its holders and its waiters, as in `a: 1 2 < 3`; sessions
    /// are numbers.
    fn cycle(queues: &[&str], session: u64, wanted: &str) -> Option<String> {
        let waits = WaitGraph::default();
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
            waiters.iter().for_each(|waiter| waits.add(waiter.session, &name(text)));
            all.insert(name(text), Queue { holders, waiters });
        }
        let way = waits
            .add_unless_cycle(SessionId(session), &name(wanted), |name| all.get(name).cloned().unwrap_or_default())?;
        let edge = |edge: &Edge| format!("{}{}{}", edge.waits.0, edge.name, edge.because_of.0);
        Some(way.iter().map(edge).collect::<Vec<_>>().join(" "))
    }

    /// Two and three sessions wait for each other; a session that waits outside of the cycle does
    /// not close it.
    #[test]
    fn cycles_are_found() {
        assert_eq!(cycle(&["a: 1 < 2", "b: 2"], 2, "a"), None);
        assert_eq!(cycle(&["a: 1 < 2", "b: 2 < 1"], 1, "b").as_deref(), Some("1b2 2a1"));
        assert_eq!(cycle(&["a: 1 < 3", "b: 2 < 1", "c: 3 < 2"], 2, "c").as_deref(), Some("2c3 3a1 1b2"));
        assert_eq!(cycle(&["a: 1 < 2 4", "b: 2 < 1"], 4, "a"), None);
    }

    /// A reader is queued behind a writer, which waits for another reader, which waits for the
    /// first one.
    #[test]
    fn cycles_through_a_queue() {
        let queues = ["a: s1 < 2 s3", "b: 3 < 1"];
        assert_eq!(cycle(&queues, 3, "a").as_deref(), Some("3a2 2a1 1b3"));
        assert_eq!(cycle(&["a: s1 < s3", "b: 3 < 1"], 3, "a"), None, "it shares, and is about to enter");
    }

    /// A wait for a slot ends if any holder can continue; it is part of a cycle only if none can.
    #[test]
    fn slots_need_all_holders_stuck() {
        assert_eq!(cycle(&["f: f1 f2 < f3", "b: 3 < 1"], 3, "f"), None);
        assert_eq!(cycle(&["f: f1 < f3", "b: 3 < 1"], 3, "f"), None, "the other slot is in another daemon");
        assert_eq!(cycle(&["f: f1 f2 < f3", "b: 3 < 1 2"], 3, "f").as_deref(), Some("3f1 1b3"));
    }

    /// A long queue costs no more than one or two walks along it, whether or not its head can
    /// advance.
    #[test]
    fn long_queues() {
        let crowd: Vec<String> = (10..5000_u64).map(|session| session.to_string()).collect();
        let queue = format!("a: 1 < {} 2", crowd.join(" "));
        assert_eq!(cycle(&[&queue, "b: 2"], 2, "a"), None);
        assert_eq!(cycle(&[&queue, "b: 2 < 1"], 2, "a").as_deref(), Some("2a1 1b2"));
    }

    /// A session with two waits continues if one of them ends.
    #[test]
    fn one_wait_of_two_ends() {
        assert_eq!(cycle(&["a: 1 < 2", "b: 2 < 1", "c: 9 < 1"], 2, "a"), None);
    }
}
