//! [`Waiters`]: the requests for one name that have not been granted yet, first come first.

use std::hash::{Hash, Hasher};

use distrilock_protocol::ids::{RequestId, SessionId};
use distrilock_protocol::want::{Extent, Mode, Want};

use crate::claim::Claim;
use crate::deadlock::Waiting;
use crate::line::{Entry, Line};
use crate::message::Asker;

/// A request that has not been granted yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Waiter {
    pub(crate) session: SessionId,
    pub(crate) request: RequestId,
    /// What `Input::Now` last said when it came.
    pub(crate) since_ms: u64,
    pub(crate) extent: Extent,
    /// Whether the grant should carry a fence.
    pub(crate) fence: bool,
    /// Whether it queues; otherwise it is refused as soon as it cannot enter.
    pub(crate) waits: bool,
}

impl Waiter {
    pub(crate) fn asker(&self) -> Asker {
        Asker { session: self.session, request: self.request }
    }

    pub(crate) fn mode(&self) -> Mode {
        self.extent.mode()
    }

    /// What it wants, as others see it.
    pub(crate) fn claim(&self) -> Claim {
        Claim::new(self.session, Want { extent: self.extent, fence: self.fence }, self.since_ms)
    }

    /// The request, if it queues.
    pub(crate) fn waiting(&self) -> Option<Waiting> {
        self.waits.then(|| Waiting::of(&self.claim(), self.request))
    }
}

/// What waiters are looked for by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Class {
    pub(crate) mode: Mode,
    pub(crate) waits: bool,
    pub(crate) fence: bool,
}

impl Entry for Waiter {
    type Class = Class;

    fn session(&self) -> SessionId {
        self.session
    }

    fn class(&self) -> Class {
        Class { mode: self.mode(), waits: self.waits, fence: self.fence }
    }
}

/// The requests for a name, first come first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waiters {
    line: Line<Waiter>,
    /// Those before this ticket have been *tried*: they were there when the try in flight, or the
    /// last one, began. A refusal is about their time only then.
    tried_before: u64,
}

impl Waiters {
    pub(crate) fn len(&self) -> usize {
        self.line.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.line.is_empty()
    }

    pub(crate) fn front(&self) -> Option<&Waiter> {
        self.line.front()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Waiter> {
        self.line.iter()
    }

    pub(crate) fn push_back(&mut self, waiter: Waiter) {
        self.line.push_back(waiter);
    }

    pub(crate) fn pop_front(&mut self) -> Option<Waiter> {
        self.line.pop_front()
    }

    /// Takes one request out, if it is there.
    pub(crate) fn remove(&mut self, asker: Asker) -> Option<Waiter> {
        self.line.remove(asker.session, |waiter| waiter.request == asker.request)
    }

    /// A session has ended: takes out its requests.
    pub(crate) fn leave(&mut self, session: SessionId, each: impl FnMut(Waiter)) {
        std::iter::from_fn(|| self.line.remove(session, |_| true)).for_each(each);
    }

    pub(crate) fn take(&mut self) -> Vec<Waiter> {
        self.line.take()
    }

    /// A try begins that is for all of them.
    pub(crate) fn all_are_tried(&mut self) {
        self.tried_before = self.line.next_ticket();
    }

    /// A try begins that is for the first one alone.
    pub(crate) fn first_is_tried(&mut self) {
        self.tried_before = self.line.placed().next().map_or(0, |(ticket, _)| ticket + 1);
    }

    pub(crate) fn is_first_tried(&self) -> bool {
        self.line.placed().next().is_some_and(|(ticket, _)| ticket < self.tried_before)
    }

    /// Whether all of them have been tried.
    pub(crate) fn are_all_tried(&self) -> bool {
        self.line.last_ticket().is_none_or(|last| last < self.tried_before)
    }

    /// Whether there are some of these classes.
    pub(crate) fn has(&self, classes: impl Fn(Class) -> bool) -> bool {
        self.line.has(classes)
    }

    /// Whether a request that does not wait has not been tried.
    pub(crate) fn has_new_try(&self) -> bool {
        self.line.last_ticket_of(|class| !class.waits).is_some_and(|last| last >= self.tried_before)
    }

    /// Takes the first of these classes out that `which` picks by its value and by whether it has
    /// been tried, at most `count`, and passes them on in their order.
    pub(crate) fn extract(
        &mut self,
        count: usize,
        classes: impl Fn(Class) -> bool,
        which: impl Fn(&Waiter, bool) -> bool,
        each: impl FnMut(Waiter),
    ) {
        let tried_before = self.tried_before;
        self.line.extract(count, classes, |ticket, waiter| which(waiter, ticket < tried_before), each);
    }

    /// Checks the indexes.
    pub(crate) fn check(&self) {
        self.line.check();
    }

    /// How many of them have been tried: the first ones.
    fn tried(&self) -> usize {
        self.line.placed().take_while(|(ticket, _)| *ticket < self.tried_before).count()
    }
}

impl FromIterator<Waiter> for Waiters {
    fn from_iter<I: IntoIterator<Item = Waiter>>(waiters: I) -> Self {
        Self { line: waiters.into_iter().collect(), tried_before: 0 }
    }
}

impl PartialEq for Waiters {
    fn eq(&self, other: &Self) -> bool {
        self.tried() == other.tried() && self.line == other.line
    }
}

impl Eq for Waiters {}

impl Hash for Waiters {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_usize(self.tried());
        self.line.hash(state);
    }
}
