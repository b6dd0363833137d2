//! The sessions that the daemon reports, holders and waiters, as text and as JSON.

use serde_json::{Value, json};

use super::output;
use distrilock_client::{Peeked, SessionInfo};

/// A session for people: its name, what else is known about it, and since when it holds or waits.
/// Not escaped.
pub(super) fn describe(session: &SessionInfo) -> String {
    let mut text = called(session);
    let pid = session.introduction.pid.map(|pid| format!("pid {pid}"));
    let details: Vec<String> =
        pid.into_iter().chain(session.introduction.command.clone()).chain(session.introduction.note.clone()).collect();
    if !details.is_empty() {
        text.push_str(&format!(" ({})", details.join(", ")));
    }
    format!("{text} for {}", output::duration(session.since_ms))
}

/// What a session is called: its name, or its number. Where its daemon is another one, its host or
/// that of its daemon is part of it. Not escaped.
pub(super) fn called(session: &SessionInfo) -> String {
    let text = session.introduction.name.clone().unwrap_or_else(|| session.session.clone());
    match session.introduction.host.as_ref().or(session.node.as_ref()) {
        Some(host) if session.node.is_some() && !text.contains('@') => format!("{text}@{host}"),
        _ => text,
    }
}

/// A session that held a lock when its daemon was last heard of. Not escaped.
pub(super) fn describe_last_known(session: &SessionInfo) -> String {
    let ago = output::duration(session.seen_ms.unwrap_or_default());
    let node = session.node.as_deref().unwrap_or_default();
    format!("{}, as the daemon at {node} said {ago} ago; that daemon does not run any more", describe(session))
}

/// Who holds a lock, in a few words for the line of a wait; `None` if nobody does. Not escaped.
pub(super) fn holder(peeked: &Peeked) -> Option<String> {
    let holder = match peeked.holders.first() {
        Some(holder) => describe(holder),
        None if peeked.contender => "another daemon, or a program that locks its file".to_owned(),
        None => return None,
    };
    let others = match waiters(peeked) {
        0 | 1 => String::new(),
        count => format!("; {count} wait"),
    };
    Some(format!("{holder}{others}"))
}

/// How many wait for a lock, at any daemon.
pub(super) fn waiters(peeked: &Peeked) -> usize {
    peeked.waiters.saturating_add(peeked.waiters_elsewhere)
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
        ("node", &session.node),
    ];
    for (member, text) in texts.into_iter().filter_map(|(member, text)| Some((member, text.as_ref()?))) {
        object[member] = json!(text);
    }
    let numbers = [
        ("pid", session.introduction.pid.map(u64::from)),
        ("slots", session.slots.map(u64::from)),
        ("take", session.take.map(u64::from)),
        ("fence", session.fence),
        ("node_pid", session.node_pid.map(u64::from)),
        ("seen_ms", session.seen_ms),
    ];
    for (member, number) in numbers.into_iter().filter_map(|(member, number)| Some((member, number?))) {
        object[member] = json!(number);
    }
    if !session.taken.is_empty() {
        object["taken"] = json!(session.taken);
    }
    object
}
