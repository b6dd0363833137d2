//! [`Event`]: an event of the history, as journalctl prints it. Anybody may write to the journal,
//! so nothing is taken for granted: a value may be a text, a list of bytes, a list of values, or
//! `null` if it is long.

use serde_json::{Map, Value};

use crate::systemd::ids;

/// The fields that are read, besides the time, which is always there.
pub(super) const FIELDS: [&str; 12] = [
    "MESSAGE_ID",
    "LOCK",
    "SESSION",
    "HOLDER",
    "PEER",
    "MODE",
    "HELD_MS",
    "WAITED_MS",
    "ENDED",
    "MISSED",
    "_SYSTEMD_UNIT",
    "_HOSTNAME",
];

/// The ids of the events.
pub(super) const IDS: [&str; 4] = [ids::LOCK_GRANTED, ids::LOCK_ENDED, ids::WAIT_ENDED, ids::HISTORY_GAP];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Granted,
    Ended,
    GaveUp,
    Gap,
}

#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) kind: Kind,
    /// When it was logged, in microseconds since 1970.
    pub(super) at_us: i64,
    pub(super) lock: String,
    pub(super) session: String,
    pub(super) holder: String,
    pub(super) peer: Option<String>,
    pub(super) mode: Option<String>,
    /// journald's word for who logged it.
    pub(super) unit: String,
    pub(super) host: Option<String>,
    pub(super) held_ms: Option<u64>,
    pub(super) waited_ms: Option<u64>,
    pub(super) ended: Option<String>,
    pub(super) missed: u64,
}

impl Event {
    /// A line of journalctl, if it is such an event.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let Ok(Value::Object(entry)) = serde_json::from_slice(line) else { return None };
        let kind = match text(&entry, "MESSAGE_ID")?.as_str() {
            ids::LOCK_GRANTED => Kind::Granted,
            ids::LOCK_ENDED => Kind::Ended,
            ids::WAIT_ENDED => Kind::GaveUp,
            ids::HISTORY_GAP => Kind::Gap,
            _ => return None,
        };
        let (lock, session) = (text(&entry, "LOCK"), text(&entry, "SESSION"));
        if kind != Kind::Gap && (lock.is_none() || session.is_none()) {
            return None;
        }
        Some(Self {
            kind,
            at_us: number(&entry, "__REALTIME_TIMESTAMP").and_then(|us| us.try_into().ok())?,
            lock: lock.unwrap_or_default(),
            holder: text(&entry, "HOLDER").or_else(|| session.clone()).unwrap_or_default(),
            session: session.unwrap_or_default(),
            peer: text(&entry, "PEER"),
            mode: text(&entry, "MODE"),
            unit: text(&entry, "_SYSTEMD_UNIT").unwrap_or_default(),
            host: text(&entry, "_HOSTNAME"),
            held_ms: number(&entry, "HELD_MS"),
            waited_ms: number(&entry, "WAITED_MS"),
            ended: text(&entry, "ENDED"),
            missed: number(&entry, "MISSED").unwrap_or(0),
        })
    }

    /// When the hold that ends with this event began.
    pub(super) fn began_us(&self) -> Option<i64> {
        let held_us = i64::try_from(self.held_ms?.checked_mul(1000)?).ok()?;
        self.at_us.checked_sub(held_us)
    }
}

fn number(entry: &Map<String, Value>, field: &str) -> Option<u64> {
    text(entry, field)?.parse().ok()
}

/// A field's value as text. What is not UTF-8 is replaced; of several values the first one counts.
fn text(entry: &Map<String, Value>, field: &str) -> Option<String> {
    match entry.get(field)? {
        Value::String(text) => Some(text.clone()),
        Value::Array(values) => match values.first()? {
            Value::String(text) => Some(text.clone()),
            Value::Array(bytes) => of_bytes(bytes),
            _ => of_bytes(values),
        },
        _ => None,
    }
}

fn of_bytes(values: &[Value]) -> Option<String> {
    let byte = |value: &Value| value.as_u64().and_then(|byte| u8::try_from(byte).ok());
    let bytes: Vec<u8> = values.iter().map(byte).collect::<Option<_>>()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values as journalctl prints them: bytes, several values, none, and lines that are no events.
    #[test]
    fn values_of_any_kind() {
        let line = |fields: &str| {
            let id = ids::LOCK_ENDED;
            format!(r#"{{"MESSAGE_ID":"{id}","__REALTIME_TIMESTAMP":"1000000","SESSION":"s",{fields}}}"#)
        };
        let event = Event::parse(line(r#""LOCK":[97,255],"HELD_MS":["500","9"],"HOLDER":[[98,99],"d"]"#).as_bytes());
        let event = event.unwrap();
        assert_eq!((event.lock.as_str(), event.holder.as_str(), event.held_ms), ("a\u{fffd}", "bc", Some(500)));
        assert_eq!(event.began_us(), Some(500_000));
        let long = Event::parse(line(r#""LOCK":"a","HOLDER":null,"HELD_MS":"-1","ENDED":{}"#).as_bytes()).unwrap();
        assert_eq!((long.holder.as_str(), long.held_ms, long.began_us(), long.ended), ("s", None, None, None));
        let endless = Event::parse(line(r#""LOCK":"a","HELD_MS":"18446744073709551615""#).as_bytes()).unwrap();
        assert_eq!(endless.began_us(), None);
        for strange in ["", "-- No entries --", "[]", "{}", "null", r#"{"MESSAGE_ID":[]}"#, &line(r#""LOCK":[300]"#)] {
            assert!(Event::parse(strange.as_bytes()).is_none(), "{strange}");
        }
    }
}
