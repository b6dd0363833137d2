//! [`Rows`]: what became of the events: who held or waited, from when to when. The end of a hold
//! says all of it; a grant is a row only if no end follows.

use std::collections::{HashMap, VecDeque};

use super::event::{Event, Kind};

/// As many rows as are kept; then the oldest goes. With the longest texts, they take some 100 MB.
pub(super) const ROWS_MAX: usize = 100_000;

/// How far the time of a grant may be from the beginning of its hold, in microseconds: the queue to
/// journald, and wall clocks that are set. Sessions of a daemon that was killed and started again
/// have the same numbers.
const SAME_US_MAX: u64 = 10_000_000;

/// The units whose events are believed: a user can log whatever he likes, but not as one of them.
const UNIT: &str = "distrilock.service";
const NODES: &str = "distrilock@";

/// A hold, or a wait without a grant.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) is_hold: bool,
    pub(super) lock: String,
    pub(super) holder: String,
    pub(super) peer: Option<String>,
    pub(super) session: String,
    pub(super) mode: Option<String>,
    pub(super) unit: String,
    pub(super) host: Option<String>,
    pub(super) from_us: Option<i64>,
    pub(super) to_us: Option<i64>,
    pub(super) held_ms: Option<u64>,
    pub(super) waited_ms: Option<u64>,
    pub(super) ended: Option<String>,
}

/// Who was granted which lock, and has not ended.
type Key = (String, String, String, Option<String>);

#[derive(Debug)]
pub(super) struct Rows<'a> {
    names: &'a [String],
    units: &'a [String],
    granted: HashMap<Key, Event>,
    found: Found,
}

/// What there is.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) rows: VecDeque<Row>,
    /// How many rows more there were before them.
    pub(super) too_many: u64,
    /// How many events the daemons have not logged.
    pub(super) missed: u64,
    /// How many events somebody else has logged, and one who did.
    pub(super) strangers: u64,
    pub(super) stranger: Option<String>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(names: &'a [String], units: &'a [String]) -> Self {
        Self { names, units, granted: HashMap::new(), found: Found::default() }
    }

    /// The next event of the journal.
    pub(super) fn add(&mut self, event: Event) {
        if !self.is_trusted(&event.unit) {
            self.found.strangers += 1;
            self.found.stranger.get_or_insert(event.unit);
            return;
        }
        if event.kind == Kind::Gap {
            self.found.missed = self.found.missed.saturating_add(event.missed);
            return;
        }
        if !self.names.is_empty() && !self.names.iter().any(|name| matches(name.as_bytes(), event.lock.as_bytes())) {
            return;
        }
        let key = (event.lock.clone(), event.session.clone(), event.unit.clone(), event.host.clone());
        match event.kind {
            Kind::Granted => {
                // An earlier grant of the same session has no end: a daemon was killed in between.
                if let Some(before) = self.granted.insert(key, event) {
                    self.push(Row::of_grant(before));
                }
                if self.granted.len() > ROWS_MAX {
                    self.found.too_many += 1;
                    let oldest = self.granted.iter().min_by_key(|(_, event)| event.at_us).map(|(key, _)| key.clone());
                    oldest.and_then(|key| self.granted.remove(&key));
                }
            }
            Kind::Ended => {
                let began_us = event.began_us().unwrap_or(event.at_us);
                if let Some(grant) = self.granted.remove(&key)
                    && grant.at_us.abs_diff(began_us) > SAME_US_MAX
                {
                    self.push(Row::of_grant(grant));
                }
                self.push(Row::of_end(event));
            }
            Kind::GaveUp => self.push(Row::of_wait(event)),
            Kind::Gap => {}
        }
    }

    /// What there is: those without an end come last.
    pub(super) fn finish(mut self) -> Found {
        let mut endless: Vec<Event> = std::mem::take(&mut self.granted).into_values().collect();
        endless.sort_by(|one, other| (one.at_us, &one.lock).cmp(&(other.at_us, &other.lock)));
        endless.into_iter().for_each(|grant| self.push(Row::of_grant(grant)));
        self.found
    }

    fn push(&mut self, row: Row) {
        self.found.rows.push_back(row);
        if self.found.rows.len() > ROWS_MAX {
            self.found.rows.pop_front();
            self.found.too_many += 1;
        }
    }

    fn is_trusted(&self, unit: &str) -> bool {
        if self.units.is_empty() {
            return unit == UNIT || unit.starts_with(NODES);
        }
        self.units.iter().any(|named| unit == named || unit.strip_suffix(".service") == Some(named))
    }
}

impl Row {
    fn of_end(event: Event) -> Self {
        Self { from_us: event.began_us(), to_us: Some(event.at_us), ..Self::new(true, event) }
    }

    fn of_grant(event: Event) -> Self {
        Self { from_us: Some(event.at_us), ..Self::new(true, event) }
    }

    fn of_wait(event: Event) -> Self {
        Self { to_us: Some(event.at_us), ..Self::new(false, event) }
    }

    fn new(is_hold: bool, event: Event) -> Self {
        let Event { lock, session, holder, peer, mode, unit, host, held_ms, waited_ms, ended, .. } = event;
        let (from_us, to_us) = (None, None);
        Self { is_hold, lock, holder, peer, session, mode, unit, host, from_us, to_us, held_ms, waited_ms, ended }
    }
}

/// Whether a name matches a pattern with `*` and `?`.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut done) = (0, 0);
    // Where to go on when what follows the last star does not fit.
    let mut star = None;
    while done < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, done));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[done] => (at, done) = (at + 1, done + 1),
            _ => {
                let Some((after, taken)) = star else { return false };
                star = Some((after, taken + 1));
                (at, done) = (after, taken + 1);
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: Kind, session: &str, at_s: i64, held_ms: Option<u64>) -> Event {
        let text = |text: &str| text.to_owned();
        let (lock, session, holder, unit) = (text("a"), text(session), text("h"), text(UNIT));
        let (peer, mode, host, ended, missed) = (None, None, None, None, 0);
        let (at_us, waited_ms) = (at_s * 1_000_000, Some(2000));
        Event { kind, at_us, lock, session, holder, peer, mode, unit, host, held_ms, waited_ms, ended, missed }
    }

    /// A grant and its end are one row; a grant whose daemon was killed is one of its own, although
    /// a later session has the same number.
    #[test]
    fn grants_and_their_ends() {
        let mut rows = Rows::new(&[], &[]);
        rows.add(event(Kind::Granted, "1", 100, None));
        rows.add(event(Kind::Ended, "1", 160, Some(60_000)));
        rows.add(event(Kind::Granted, "1", 200, None));
        rows.add(event(Kind::Ended, "1", 900, Some(5000)));
        rows.add(event(Kind::Granted, "2", 950, None));
        rows.add(event(Kind::Granted, "2", 990, None));
        let found = rows.finish();
        let times = |row: &Row| (row.from_us.map(|us| us / 1_000_000), row.to_us.map(|us| us / 1_000_000));
        let times: Vec<_> = found.rows.iter().map(times).collect();
        let expected = [(100, Some(160)), (200, None), (895, Some(900)), (950, None), (990, None)];
        assert_eq!(times, expected.map(|(from, to)| (Some(from), to)));
    }

    /// Patterns of names; a pattern of stars takes no time.
    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("a", "a", true),
            ("a", "A", false),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*b*", "abc", true),
            ("", "a", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), fits, "{pattern} {name}");
        }
        assert!(!matches("*a".repeat(100).as_bytes(), "b".repeat(250).as_bytes()));
    }

    /// Who logs as another unit is left out, and may be asked for.
    #[test]
    fn units() {
        for (units, unit, trusted) in [
            (&[][..], "distrilock.service", true),
            (&[], "distrilock@a.service", true),
            (&[], "distrilock-evil.service", false),
            (&[], "", false),
            (&["mine".to_owned()], "mine.service", true),
            (&["mine".to_owned()], "distrilock.service", false),
        ] {
            assert_eq!(Rows::new(&[], units).is_trusted(unit), trusted, "{unit}");
        }
    }
}
