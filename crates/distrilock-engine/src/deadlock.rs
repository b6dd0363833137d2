//! Deadlocks: sessions that keep each other waiting for good.
//!
//! [`deadlocks`] looks at all queues of a daemon at once and finds the requests whose refusal lets
//! everybody else continue. Its time is linear in the holders and waiters that it is given, however
//! they are entangled, so one sweep in the background replaces a search for every wait.
//!
//! A session is **stuck** only if that is certain: none of its waits can end even if every session
//! that is not stuck releases what it holds. A session with two waits continues when one of them
//! ends. A wait for slots ends when sessions that are not stuck have enough of them, here or in
//! other daemons. So no request is refused that could have been granted, unless a session would
//! have released or cancelled something while it waits.
//!
//! Queues are read one after the other while sessions continue, so a snapshot may show a state that
//! never existed. But a deadlock does not change: [`changed`] compares two snapshots,
//! and a session that differs between them is not stuck. Whether sessions are stuck depends on
//! nothing but what these sessions hold and wait for. The second snapshot therefore needs [`only`]
//! the sessions that the first one shows as [`stuck`]: between the two, there was a moment at which
//! all that is the same in both was true.

use std::collections::{BTreeMap, BTreeSet};

use distrilock_protocol::ids::{RequestId, SessionId};
use distrilock_protocol::name::LockName;
use distrilock_protocol::want::Mode;

use crate::claim::Claim;
use crate::message::Asked;

/// One name that sessions wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// The name.
    pub name: LockName,
    /// The sessions of this daemon that hold it.
    pub holders: Vec<Holder>,
    /// The requests that wait for it, first come first.
    pub waiters: Vec<Waiting>,
}

/// A session that holds a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// The session.
    pub session: SessionId,
    /// How it holds the name.
    pub mode: Mode,
    /// How many slots it has.
    pub slots: u16,
    /// When it was granted.
    pub since_ms: u64,
}

/// A request that waits for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Waiting {
    /// Its session.
    pub session: SessionId,
    /// The session's number for it.
    pub request: RequestId,
    /// How it wants the name.
    pub mode: Mode,
    /// How many slots it wants.
    pub take: u16,
    /// When it came.
    pub since_ms: u64,
}

impl Holder {
    pub(crate) fn of(claim: &Claim) -> Self {
        let slots = u16::try_from(claim.slots.len()).expect("a lock has at most u16::MAX slots");
        Self { session: claim.session, mode: claim.mode(), slots, since_ms: claim.since_ms }
    }
}

impl Waiting {
    pub(crate) fn of(claim: &Claim, request: RequestId) -> Self {
        let Claim { session, extent, since_ms, .. } = *claim;
        Self { session, request, mode: extent.mode(), take: extent.slots(), since_ms }
    }
}

/// A request whose wait never ends by itself, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlock {
    /// The youngest request of the cycle, which is to be refused.
    pub victim: Asked,
    /// The cycle, from the victim on.
    pub cycle: Vec<Edge>,
}

/// A session waits for a name because of another session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    /// The session that waits.
    pub waits: SessionId,
    /// What it waits for.
    pub name: LockName,
    /// The session that keeps it waiting.
    pub because_of: SessionId,
    /// Whether that session holds the name; otherwise it is ahead in the queue.
    pub holds: bool,
}

/// What a session holds and waits for, as far as a snapshot shows it, in order.
type Part<'a> = Vec<(&'a LockName, Option<Holder>, Option<Waiting>)>;

/// The sessions that are not the same in two snapshots: they did something in between.
#[must_use]
pub fn changed(before: &[Queue], after: &[Queue]) -> BTreeSet<SessionId> {
    let (before, after) = (parts(before), parts(after));
    let sessions: BTreeSet<SessionId> = before.keys().chain(after.keys()).copied().collect();
    sessions.into_iter().filter(|session| before.get(session) != after.get(session)).collect()
}

fn parts(queues: &[Queue]) -> BTreeMap<SessionId, Part<'_>> {
    let mut parts: BTreeMap<SessionId, Part<'_>> = BTreeMap::new();
    for queue in queues {
        for holder in &queue.holders {
            parts.entry(holder.session).or_default().push((&queue.name, Some(*holder), None));
        }
        for waiter in &queue.waiters {
            parts.entry(waiter.session).or_default().push((&queue.name, None, Some(*waiter)));
        }
    }
    parts.values_mut().for_each(|part| part.sort_unstable());
    parts
}

/// The sessions that are stuck.
#[must_use]
pub fn stuck(queues: &[Queue]) -> BTreeSet<SessionId> {
    let mut search = Search::new(queues);
    search.settle([]);
    search.stuck.into_keys().collect()
}

/// Leaves only the parts of these sessions in the queues.
pub fn only(queues: &mut Vec<Queue>, sessions: &BTreeSet<SessionId>) {
    for queue in &mut *queues {
        queue.holders.retain(|holder| sessions.contains(&holder.session));
        queue.waiters.retain(|waiter| sessions.contains(&waiter.session));
        queue.holders.shrink_to_fit();
        queue.waiters.shrink_to_fit();
    }
    queues.retain(|queue| !queue.holders.is_empty() || !queue.waiters.is_empty());
}

/// Finds the requests to refuse so that nobody is stuck, at most `count_max` of them. Sessions in
/// `moving` are not stuck, whatever they wait for.
#[must_use]
pub fn deadlocks(queues: &[Queue], moving: &BTreeSet<SessionId>, count_max: usize) -> Vec<Deadlock> {
    let mut search = Search::new(queues);
    search.settle(moving.iter().copied());
    let mut found = Vec::new();
    while found.len() < count_max
        && let Some(deadlock) = search.cycle()
    {
        // Its session gets an answer and continues.
        search.settle([deadlock.victim.session]);
        found.push(deadlock);
    }
    found
}

/// A place in a queue: the queue's index, and the waiter's or the holder's.
type Place = (usize, usize);

/// Which sessions are stuck, as far as is known: all that wait, until they are shown to go on.
#[derive(Debug)]
struct Search<'a> {
    queues: &'a [Queue],
    /// Where each stuck session waits.
    stuck: BTreeMap<SessionId, Vec<Place>>,
    /// Where each session holds a name: the queue's index, and the holder's.
    holds: BTreeMap<SessionId, Vec<Place>>,
    /// What stuck sessions keep of each queue's name.
    kept: Vec<Kept>,
    /// How many waiters at the front of each queue belong to sessions that go on.
    front: Vec<usize>,
}

/// What stuck sessions keep of a name.
#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    holders: usize,
    exclusive: usize,
    slots: usize,
}

impl Kept {
    fn add(&mut self, holder: &Holder) {
        self.holders += 1;
        self.exclusive += usize::from(holder.mode == Mode::Exclusive);
        self.slots += usize::from(holder.slots);
    }

    fn remove(&mut self, holder: &Holder) {
        self.holders -= 1;
        self.exclusive -= usize::from(holder.mode == Mode::Exclusive);
        self.slots -= usize::from(holder.slots);
    }

    /// Whether that keeps the name from a waiter.
    fn from(self, waiter: &Waiting) -> bool {
        match waiter.mode {
            Mode::Exclusive => self.holders > 0,
            Mode::Shared => self.exclusive > 0,
            Mode::Slots(of) => self.exclusive > 0 || self.slots + usize::from(waiter.take) > usize::from(of),
        }
    }
}

impl<'a> Search<'a> {
    fn new(queues: &'a [Queue]) -> Self {
        let mut stuck: BTreeMap<SessionId, Vec<Place>> = BTreeMap::new();
        let mut holds: BTreeMap<SessionId, Vec<Place>> = BTreeMap::new();
        for (at, queue) in queues.iter().enumerate() {
            for (place, waiter) in queue.waiters.iter().enumerate() {
                stuck.entry(waiter.session).or_default().push((at, place));
            }
            for (place, holder) in queue.holders.iter().enumerate() {
                holds.entry(holder.session).or_default().push((at, place));
            }
        }
        let mut kept = vec![Kept::default(); queues.len()];
        for (queue, kept) in queues.iter().zip(&mut kept) {
            queue.holders.iter().filter(|holder| stuck.contains_key(&holder.session)).for_each(|it| kept.add(it));
        }
        Self { queues, stuck, holds, kept, front: vec![0; queues.len()] }
    }

    /// Takes out the sessions that can continue, given that `moving` can. A queue is looked at
    /// again only when less of it is kept than before, or its first stuck waiter can continue.
    fn settle(&mut self, moving: impl IntoIterator<Item = SessionId>) {
        let mut again: Vec<usize> = (0..self.queues.len()).collect();
        for session in moving {
            self.go_on(session, &mut again);
        }
        while let Some(at) = again.pop() {
            while let Some(waiter) = self.queues[at].waiters.get(self.front[at]) {
                let stuck = self.stuck.contains_key(&waiter.session);
                if stuck && self.kept[at].from(waiter) {
                    break;
                }
                self.front[at] += 1;
                if stuck {
                    self.go_on(waiter.session, &mut again);
                }
            }
        }
    }

    /// A session is not stuck: its places in queues and what it holds keep nobody for good.
    fn go_on(&mut self, session: SessionId, again: &mut Vec<usize>) {
        let Some(places) = self.stuck.remove(&session) else { return };
        again.extend(places.into_iter().map(|(at, _)| at));
        for (at, place) in self.holds.get(&session).into_iter().flatten() {
            self.kept[*at].remove(&self.queues[*at].holders[*place]);
            again.push(*at);
        }
    }

    /// Follows stuck sessions from one to the next, until one comes again.
    fn cycle(&self) -> Option<Deadlock> {
        let mut at = *self.stuck.keys().next()?;
        let mut way: Vec<(Place, Edge)> = Vec::new();
        let mut seen: BTreeMap<SessionId, usize> = BTreeMap::new();
        while seen.insert(at, way.len()).is_none() {
            let place = self.stuck[&at][0];
            let edge = self.edge(place);
            at = edge.because_of;
            way.push((place, edge));
        }
        // The last insertion has replaced the place where the cycle begins.
        let start = way.iter().position(|(_, edge)| edge.waits == at).expect("the way has come here before");
        let mut cycle = way.split_off(start);
        let waiter = |(queue, place): Place| &self.queues[queue].waiters[place];
        let youngest = (0..cycle.len()).max_by_key(|n| {
            let waiter = waiter(cycle[*n].0);
            (waiter.since_ms, waiter.session)
        })?;
        cycle.rotate_left(youngest);
        let place = cycle[0].0;
        let (name, waiter) = (self.queues[place.0].name.clone(), waiter(place));
        let victim = Asked { name, session: waiter.session, request: waiter.request };
        Some(Deadlock { victim, cycle: cycle.into_iter().map(|(_, edge)| edge).collect() })
    }

    /// One of the stuck sessions that keep a stuck waiter waiting: a holder in its way, or a
    /// session ahead of it.
    fn edge(&self, (at, place): Place) -> Edge {
        let (queue, waiter) = (&self.queues[at], &self.queues[at].waiters[place]);
        let stuck = |session: SessionId| self.stuck.contains_key(&session);
        let in_the_way =
            |holder: &&Holder| stuck(holder.session) && (waiter.mode, holder.mode) != (Mode::Shared, Mode::Shared);
        let holder = queue.holders.iter().find(in_the_way).filter(|_| self.kept[at].from(waiter));
        let (because_of, holds) = match holder {
            Some(holder) => (holder.session, true),
            // The first one at the front that does not go on is stuck, and everybody behind it is.
            None => (queue.waiters[self.front[at]].session, false),
        };
        Edge { waits: waiter.session, name: queue.name.clone(), because_of, holds }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> LockName {
        LockName::parse(text.as_bytes()).unwrap()
    }

    /// Reads queues from texts: the name, its holders and its waiters, as in `a: 1 2 < 3`. A
    /// session is its number, after `s` for shared, after `f` for one slot of two. Later waiters
    /// are younger.
    fn queues(texts: &[&str]) -> Vec<Queue> {
        let mut clock = 0;
        let mut seen = |word: &str| {
            clock += 1;
            let (mode, number) = match (word.strip_prefix('s'), word.strip_prefix('f')) {
                (Some(number), _) => (Mode::Shared, number),
                (_, Some(number)) => (Mode::Slots(2), number),
                _ => (Mode::Exclusive, word),
            };
            let take = u16::from(matches!(mode, Mode::Slots(_)));
            (SessionId(number.parse().unwrap()), mode, take, clock)
        };
        let mut queue = |text: &&str| {
            let (named, rest) = text.split_once(": ").unwrap();
            let (holders, waiters) = rest.split_once('<').unwrap_or((rest, ""));
            let holders: Vec<_> = holders.split_whitespace().map(&mut seen).collect();
            let waiters: Vec<_> = waiters.split_whitespace().map(&mut seen).collect();
            let holder = |(session, mode, slots, since_ms)| Holder { session, mode, slots, since_ms };
            let request = RequestId(0);
            let waiter = |(session, mode, take, since_ms)| Waiting { session, request, mode, take, since_ms };
            Queue {
                name: name(named),
                holders: holders.into_iter().map(holder).collect(),
                waiters: waiters.into_iter().map(waiter).collect(),
            }
        };
        texts.iter().map(&mut queue).collect()
    }

    fn found(texts: &[&str]) -> Vec<String> {
        let edge = |edge: &Edge| format!("{}{}{}", edge.waits.0, edge.name, edge.because_of.0);
        let cycle = |it: Deadlock| it.cycle.iter().map(edge).collect::<Vec<_>>().join(" ");
        deadlocks(&queues(texts), &BTreeSet::new(), usize::MAX).into_iter().map(cycle).collect()
    }

    /// Two and three sessions wait for each other; one that waits outside the cycle does not close
    /// it.
    #[test]
    fn cycles_are_found() {
        assert!(found(&["a: 1 < 2", "b: 2"]).is_empty());
        assert_eq!(found(&["a: 1 < 2", "b: 2 < 1"]), ["1b2 2a1"]);
        assert_eq!(found(&["a: 1 < 3", "b: 2 < 1", "c: 3 < 2"]), ["2c3 3a1 1b2"]);
        assert_eq!(found(&["a: 1 < 2 4", "b: 2 < 1"]), ["1b2 2a1"]);
        assert_eq!(found(&["a: 1 < 2", "b: 2 < 1", "c: 3 < 4", "d: 4 < 3"]).len(), 2, "each of two is broken");
    }

    /// A reader is queued behind a writer that waits for another reader, which waits for the first
    /// one.
    #[test]
    fn cycles_through_a_queue() {
        assert_eq!(found(&["b: 3 < 1", "a: s1 < 2 s3"]), ["3a2 2a1 1b3"]);
        assert!(found(&["a: s1 < s3", "b: 3 < 1"]).is_empty(), "it shares, and is about to enter");
    }

    /// A wait for a slot ends if any holder can go on; only when none can, it is part of a cycle.
    #[test]
    fn slots_need_all_holders_stuck() {
        assert!(found(&["f: f1 f2 < f3", "b: 3 < 1"]).is_empty());
        assert!(found(&["f: f1 < f3", "b: 3 < 1"]).is_empty(), "the other slot is in another daemon");
        assert_eq!(found(&["b: 3 < 1 2", "f: f1 f2 < f3"]), ["3f1 1b3"]);
    }

    /// A session with two waits continues if one of them ends.
    #[test]
    fn one_wait_of_two_ends() {
        assert!(found(&["a: 1 < 2", "b: 2 < 1", "c: 9 < 1"]).is_empty());
    }

    /// A session that differs between two snapshots is not stuck: it does something.
    #[test]
    fn what_moves_is_not_stuck() {
        let before = queues(&["a: 1 < 2", "b: 2 < 1"]);
        assert!(changed(&before, &before).is_empty());
        let mut after = before.clone();
        after[1].waiters[0].request = RequestId(7);
        let moving = changed(&before, &after);
        assert_eq!(moving, BTreeSet::from([SessionId(1)]));
        assert!(deadlocks(&after, &moving, 9).is_empty());
        after[1].waiters[0].request = RequestId(0);
        after[0].holders[0].since_ms += 1;
        assert_eq!(changed(&before, &after), BTreeSet::from([SessionId(1)]), "it has released it in between");
    }

    /// The plain definition: a session stays stuck as long as each of its waits has a stuck session
    /// ahead of it in the queue, or is kept by what stuck sessions hold.
    fn stuck_by_definition(queues: &[Queue]) -> BTreeSet<SessionId> {
        let mut stuck: BTreeSet<SessionId> =
            queues.iter().flat_map(|queue| &queue.waiters).map(|waiter| waiter.session).collect();
        loop {
            let goes_on = |queue: &Queue, place: usize| {
                let mut kept = Kept::default();
                queue.holders.iter().filter(|it| stuck.contains(&it.session)).for_each(|it| kept.add(it));
                !kept.from(&queue.waiters[place])
                    && !queue.waiters[..place].iter().any(|ahead| stuck.contains(&ahead.session))
            };
            let places = queues.iter().flat_map(|queue| (0..queue.waiters.len()).map(move |place| (queue, place)));
            let free: Vec<SessionId> = places
                .filter(|(queue, place)| goes_on(queue, *place))
                .map(|(queue, place)| queue.waiters[place].session)
                .collect();
            let before = stuck.len();
            stuck.retain(|session| !free.contains(session));
            if stuck.len() == before {
                return stuck;
            }
        }
    }

    /// A mode, holders, and waiters with whether their mode is the holders'.
    type Drawn = (u8, Vec<u64>, Vec<(u64, u16)>);

    /// Queues of a few sessions and names, as an engine could have them: no session twice in a
    /// queue.
    fn any_queues() -> impl Strategy<Value = Vec<Queue>> {
        let queue = (0..4_u8, prop::collection::vec(0..7_u64, 0..3), prop::collection::vec((0..7_u64, 0..2_u16), 0..5));
        prop::collection::vec(queue, 1..6).prop_map(|all| {
            let mut clock = 0;
            let queue = |(at, (kind, holders, waiters)): (usize, Drawn)| {
                let mut seen = BTreeSet::new();
                let common = match kind {
                    0 => Mode::Shared,
                    1 => Mode::Slots(2),
                    _ => Mode::Exclusive,
                };
                let slots = u16::from(kind == 1);
                let holders: Vec<Holder> = holders
                    .into_iter()
                    .filter(|session| seen.insert(*session))
                    .take(if common == Mode::Exclusive { 1 } else { 2 })
                    .map(|session| Holder { session: SessionId(session), mode: common, slots, since_ms: 0 })
                    .collect();
                let waiters = waiters
                    .into_iter()
                    .filter(|(session, _)| seen.insert(*session))
                    .map(|(session, own)| {
                        clock += 1;
                        let (mode, take) = if own == 1 { (common, slots) } else { (Mode::Exclusive, 0) };
                        let (session, request) = (SessionId(session), RequestId(clock));
                        Waiting { session, request, mode, take, since_ms: clock }
                    })
                    .collect();
                Queue { name: name(&format!("n{at}")), holders, waiters }
            };
            all.into_iter().enumerate().map(queue).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// The search agrees with the plain definition, every cycle is one, and after the refusals
        /// nobody is stuck.
        #[test]
        fn agrees_with_the_plain_definition(mut queues in any_queues()) {
            let stuck = stuck_by_definition(&queues);
            let mut search = Search::new(&queues);
            search.settle([]);
            prop_assert_eq!(search.stuck.keys().copied().collect::<BTreeSet<_>>(), stuck.clone());
            let found = deadlocks(&queues, &BTreeSet::new(), usize::MAX);
            prop_assert_eq!(found.is_empty(), stuck.is_empty());
            let mut suspects = queues.clone();
            only(&mut suspects, &stuck);
            prop_assert_eq!(deadlocks(&suspects, &BTreeSet::new(), usize::MAX), found.clone());
            for Deadlock { victim, cycle } in &found {
                prop_assert!(stuck.contains(&victim.session));
                prop_assert_eq!((cycle[0].waits, &cycle[0].name), (victim.session, &victim.name));
                let next = cycle.iter().skip(1).chain(&cycle[..1]);
                prop_assert!(cycle.iter().zip(next).all(|(edge, next)| edge.because_of == next.waits));
                for edge in cycle {
                    let queue = queues.iter().find(|queue| queue.name == edge.name).unwrap();
                    let place = queue.waiters.iter().position(|it| it.session == edge.waits);
                    prop_assert!(place.is_some(), "it waits for the name");
                    let ahead = queue.waiters[..place.unwrap()].iter().any(|it| it.session == edge.because_of);
                    let holds = queue.holders.iter().any(|it| it.session == edge.because_of);
                    prop_assert_eq!((holds, ahead), (edge.holds, !edge.holds));
                }
            }
            // A session that is refused continues, and may also give up its other waits.
            for Deadlock { victim, .. } in &found {
                for queue in &mut queues {
                    queue.waiters.retain(|waiter| waiter.session != victim.session);
                    queue.holders.retain(|holder| holder.session != victim.session);
                }
            }
            prop_assert!(stuck_by_definition(&queues).is_empty());
        }
    }

    /// A crowd behind a deadlock, and a dense graph without one: time grows with the input alone.
    #[test]
    fn large_graphs() {
        let names = 300;
        let waiters: Vec<String> = (10..60_u64).map(|session| session.to_string()).collect();
        let mut texts: Vec<String> = (0..names).map(|n| format!("n{n}: 1 < {}", waiters.join(" "))).collect();
        let refs: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert!(found(&refs).is_empty());
        texts.push("own: 10 < 1".into());
        let refs: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert_eq!(found(&refs).len(), 1);
    }
}
