//! The sessions that the daemon reports, holders and waiters, as text and as JSON.

use serde_json::{Value, json};

use super::output;
use distrilock_client::SessionInfo;

/// A session for people: its name, what else is known about it, and since when it holds or waits.
/// Not escaped.
pub(super) fn describe(session: &SessionInfo) -> String {
    let mut text = session.introduction.name.clone().unwrap_or_else(|| session.session.clone());
    let pid = session.introduction.pid.map(|pid| format!("pid {pid}"));
    let details: Vec<String> =
        pid.into_iter().chain(session.introduction.command.clone()).chain(session.introduction.note.clone()).collect();
    if !details.is_empty() {
        text.push_str(&format!(" ({})", details.join(", ")));
    }
    format!("{text} for {}", output::duration(session.since_ms))
}

/// The sessions as `--json` prints them.
pub(super) fn to_json(sessions: &[SessionInfo]) -> Vec<Value> {
    sessions.iter().map(one_to_json).collect()
}

fn one_to_json(session: &SessionInfo) -> Value {
    let mut object = json!({"session": session.session, "mode": session.mode, "since_ms": session.since_ms});
    let texts = [
        ("name", &session.introduction.name),
        ("note", &session.introduction.note),
        ("host", &session.introduction.host),
        ("command", &session.introduction.command),
        ("user", &session.introduction.user),
    ];
    for (member, text) in texts.into_iter().filter_map(|(member, text)| Some((member, text.as_ref()?))) {
        object[member] = json!(text);
    }
    let numbers = [
        ("pid", session.introduction.pid.map(u64::from)),
        ("slots", session.slots.map(u64::from)),
        ("take", session.take.map(u64::from)),
        ("fence", session.fence),
    ];
    for (member, number) in numbers.into_iter().filter_map(|(member, number)| Some((member, number?))) {
        object[member] = json!(number);
    }
    if !session.taken.is_empty() {
        object["taken"] = json!(session.taken);
    }
    object
}
