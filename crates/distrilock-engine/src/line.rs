//! [`Line`]: entries of sessions, in the order in which they came. A short line is a plain list; a
//! long one has indexes, so that no step of the engine depends on how many sessions wait for a name
//! or share it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::hash::{Hash, Hasher};

use distrilock_protocol::ids::SessionId;

use crate::limits::SHORT_LINE_MAX;

/// An entry of a [`Line`].
pub(crate) trait Entry {
    /// What entries are looked up by, in addition to their session.
    type Class: Copy + Ord;

    fn session(&self) -> SessionId;

    fn class(&self) -> Self::Class;
}

/// Entries of sessions, first come first. Each has a ticket: those of later entries are higher.
#[derive(Clone)]
pub(crate) struct Line<T: Entry> {
    entries: Entries<T>,
    /// The ticket of the entry that comes next.
    next: u64,
}

#[derive(Clone)]
enum Entries<T: Entry> {
    Short(VecDeque<(u64, T)>),
    Long(Box<Long<T>>),
}

#[derive(Clone)]
struct Long<T: Entry> {
    entries: BTreeMap<u64, T>,
    sessions: BTreeSet<(SessionId, u64)>,
    /// The tickets of each class that has any.
    classes: BTreeMap<T::Class, BTreeSet<u64>>,
}

impl<T: Entry> Default for Line<T> {
    fn default() -> Self {
        Self { entries: Entries::Short(VecDeque::new()), next: 0 }
    }
}

impl<T: Entry> Line<T> {
    pub(crate) fn len(&self) -> usize {
        match &self.entries {
            Entries::Short(entries) => entries.len(),
            Entries::Long(long) => long.entries.len(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ticket of the entry that comes next.
    pub(crate) fn next_ticket(&self) -> u64 {
        self.next
    }

    pub(crate) fn front(&self) -> Option<&T> {
        self.placed().next().map(|(_, entry)| entry)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.placed().map(|(_, entry)| entry)
    }

    /// The entries with their tickets, first come first.
    pub(crate) fn placed(&self) -> impl Iterator<Item = (u64, &T)> {
        let (short, long) = match &self.entries {
            Entries::Short(entries) => (Some(entries), None),
            Entries::Long(long) => (None, Some(&long.entries)),
        };
        let short = short.into_iter().flatten().map(|(ticket, entry)| (*ticket, entry));
        short.chain(long.into_iter().flatten().map(|(ticket, entry)| (*ticket, entry)))
    }

    pub(crate) fn last_ticket(&self) -> Option<u64> {
        match &self.entries {
            Entries::Short(entries) => entries.back().map(|(ticket, _)| *ticket),
            Entries::Long(long) => long.entries.keys().next_back().copied(),
        }
    }

    /// The first entry of a session.
    pub(crate) fn of(&self, session: SessionId) -> Option<&T> {
        match &self.entries {
            Entries::Short(entries) => entries.iter().map(|(_, entry)| entry).find(|entry| entry.session() == session),
            Entries::Long(long) => long.entries.get(&long.tickets_of(session).next()?),
        }
    }

    /// The same. Its session and its class must stay.
    pub(crate) fn of_mut(&mut self, session: SessionId) -> Option<&mut T> {
        match &mut self.entries {
            Entries::Short(entries) => {
                entries.iter_mut().map(|(_, entry)| entry).find(|entry| entry.session() == session)
            }
            Entries::Long(long) => {
                let ticket = long.tickets_of(session).next()?;
                long.entries.get_mut(&ticket)
            }
        }
    }

    /// Whether there are entries of these classes.
    pub(crate) fn has(&self, classes: impl Fn(T::Class) -> bool) -> bool {
        match &self.entries {
            Entries::Short(entries) => entries.iter().any(|(_, entry)| classes(entry.class())),
            Entries::Long(long) => long.classes.keys().any(|class| classes(*class)),
        }
    }

    /// The ticket of the last entry of these classes.
    pub(crate) fn last_ticket_of(&self, classes: impl Fn(T::Class) -> bool) -> Option<u64> {
        match &self.entries {
            Entries::Short(entries) => {
                entries.iter().rev().find(|(_, entry)| classes(entry.class())).map(|(ticket, _)| *ticket)
            }
            Entries::Long(long) => {
                let of_them = long.classes.iter().filter(|(class, _)| classes(**class));
                of_them.filter_map(|(_, tickets)| tickets.last()).max().copied()
            }
        }
    }

    /// The tickets of entries of these classes, in order.
    fn tickets(&self, classes: impl Fn(T::Class) -> bool) -> Vec<u64> {
        match &self.entries {
            Entries::Short(entries) => {
                entries.iter().filter(|(_, entry)| classes(entry.class())).map(|(ticket, _)| *ticket).collect()
            }
            Entries::Long(long) => {
                let of_them = long.classes.iter().filter(|(class, _)| classes(**class));
                let mut tickets: Vec<u64> = of_them.flat_map(|(_, tickets)| tickets).copied().collect();
                tickets.sort_unstable();
                tickets
            }
        }
    }

    pub(crate) fn push_back(&mut self, entry: T) {
        let ticket = self.next;
        self.next += 1;
        if self.len() == SHORT_LINE_MAX {
            self.lengthen();
        }
        match &mut self.entries {
            Entries::Short(entries) => {
                // Most names have one holder.
                if entries.capacity() == 0 {
                    entries.reserve_exact(1);
                }
                entries.push_back((ticket, entry));
            }
            Entries::Long(long) => long.add(ticket, entry),
        }
    }

    pub(crate) fn pop_front(&mut self) -> Option<T> {
        match &mut self.entries {
            Entries::Short(entries) => entries.pop_front().map(|(_, entry)| entry),
            Entries::Long(long) => {
                let ticket = *long.entries.keys().next()?;
                self.remove_at(ticket)
            }
        }
    }

    /// Removes the first entry of a session that `which` picks.
    pub(crate) fn remove(&mut self, session: SessionId, which: impl Fn(&T) -> bool) -> Option<T> {
        let ticket = match &self.entries {
            Entries::Short(entries) => {
                let ours = |(_, entry): &&(u64, T)| entry.session() == session && which(entry);
                entries.iter().find(ours).map(|(ticket, _)| *ticket)
            }
            Entries::Long(long) => long.tickets_of(session).find(|ticket| which(&long.entries[ticket])),
        };
        self.remove_at(ticket?)
    }

    /// Removes the first entries of these classes that `which` picks by their tickets and values,
    /// at most `count`, and passes them on in their order.
    pub(crate) fn extract(
        &mut self,
        count: usize,
        classes: impl Fn(T::Class) -> bool,
        which: impl Fn(u64, &T) -> bool,
        mut each: impl FnMut(T),
    ) {
        if !self.has(&classes) {
            return;
        }
        let tickets = self.tickets(classes);
        let picked = tickets.into_iter().filter(|ticket| self.at(*ticket).is_some_and(|entry| which(*ticket, entry)));
        let picked: Vec<u64> = picked.take(count).collect();
        for ticket in picked {
            self.remove_at(ticket).into_iter().for_each(&mut each);
        }
    }

    fn at(&self, ticket: u64) -> Option<&T> {
        match &self.entries {
            Entries::Short(entries) => {
                let place = entries.binary_search_by_key(&ticket, |(ticket, _)| *ticket).ok()?;
                Some(&entries[place].1)
            }
            Entries::Long(long) => long.entries.get(&ticket),
        }
    }

    fn remove_at(&mut self, ticket: u64) -> Option<T> {
        match &mut self.entries {
            Entries::Short(entries) => {
                let place = entries.binary_search_by_key(&ticket, |(ticket, _)| *ticket).ok()?;
                entries.remove(place).map(|(_, entry)| entry)
            }
            Entries::Long(long) => {
                let entry = long.remove(ticket);
                if long.entries.len() * 2 <= SHORT_LINE_MAX {
                    self.entries = Entries::Short(std::mem::take(&mut long.entries).into_iter().collect());
                }
                entry
            }
        }
    }

    fn lengthen(&mut self) {
        if let Entries::Short(entries) = &mut self.entries {
            let mut long = Box::new(Long::default());
            std::mem::take(entries).into_iter().for_each(|(ticket, entry)| long.add(ticket, entry));
            self.entries = Entries::Long(long);
        }
    }

    /// Checks that the indexes say what the entries say.
    ///
    /// # Panics
    /// If they do not.
    pub(crate) fn check(&self) {
        assert!(self.last_ticket().is_none_or(|last| last < self.next), "a line has used a ticket twice");
        let Entries::Long(long) = &self.entries else { return };
        let sessions = long.entries.iter().map(|(ticket, entry)| (entry.session(), *ticket)).collect::<BTreeSet<_>>();
        let mut classes: BTreeMap<T::Class, BTreeSet<u64>> = BTreeMap::new();
        for (ticket, entry) in &long.entries {
            classes.entry(entry.class()).or_default().insert(*ticket);
        }
        assert!(sessions == long.sessions && classes == long.classes, "the indexes of a line differ from its entries");
    }
}

impl<T: Entry> Default for Long<T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), sessions: BTreeSet::new(), classes: BTreeMap::new() }
    }
}

impl<T: Entry> Long<T> {
    fn tickets_of(&self, session: SessionId) -> impl Iterator<Item = u64> {
        self.sessions.range((session, 0)..=(session, u64::MAX)).map(|(_, ticket)| *ticket)
    }

    fn add(&mut self, ticket: u64, entry: T) {
        self.sessions.insert((entry.session(), ticket));
        self.classes.entry(entry.class()).or_default().insert(ticket);
        self.entries.insert(ticket, entry);
    }

    fn remove(&mut self, ticket: u64) -> Option<T> {
        let entry = self.entries.remove(&ticket)?;
        self.sessions.remove(&(entry.session(), ticket));
        let class = self.classes.get_mut(&entry.class()).expect("each entry is in its class");
        class.remove(&ticket);
        if class.is_empty() {
            self.classes.remove(&entry.class());
        }
        Some(entry)
    }
}

impl<T: Entry> FromIterator<T> for Line<T> {
    fn from_iter<I: IntoIterator<Item = T>>(entries: I) -> Self {
        let mut line = Self::default();
        entries.into_iter().for_each(|entry| line.push_back(entry));
        line
    }
}

impl<T: Entry> Line<T> {
    /// Takes all entries out, first come first.
    pub(crate) fn take(&mut self) -> Vec<T> {
        let entries = std::mem::replace(&mut self.entries, Entries::Short(VecDeque::new()));
        match entries {
            Entries::Short(entries) => entries.into_iter().map(|(_, entry)| entry).collect(),
            Entries::Long(long) => long.entries.into_values().collect(),
        }
    }
}

/// Two lines are equal if their entries are, whatever their tickets.
impl<T: Entry + PartialEq> PartialEq for Line<T> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl<T: Entry + Eq> Eq for Line<T> {}

impl<T: Entry + Hash> Hash for Line<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_usize(self.len());
        self.iter().for_each(|entry| entry.hash(state));
    }
}

impl<T: Entry + fmt::Debug> fmt::Debug for Line<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
