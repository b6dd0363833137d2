//! `distrilock ls`: the locks of all daemons of a directory, with their holders and waiters.

use std::io::{self, IsTerminal};
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::connect::{block_on, connect_to_ask};
use super::error::CommandError;
use super::options::{LsOptions, ServerOptions};
use super::output::{columns, duration, escaped, json_line, print};
use super::{sessions, status};
use distrilock_client::{Listed, SessionInfo};

/// How often `--watch` lists again.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// The columns of the table.
const HEADINGS: [&str; 7] = ["LOCK", "STATE", "SINCE", "NAME", "PID", "COMMAND", "NOTE"];

/// Lists the locks, once or until a signal.
pub(super) fn main(options: &LsOptions, servers: &ServerOptions) -> Result<u8, CommandError> {
    block_on(async {
        let client = connect_to_ask(servers).await?;
        // Codes that clear a terminal are of no use in a pipe or a file.
        let clears = !options.json && io::stdout().is_terminal();
        let mut again = false;
        loop {
            let listed = if options.here { client.list().await } else { client.list_everywhere().await };
            let locks = listed.map_err(CommandError::request(&client))?;
            let text = if options.json { to_json(&locks) } else { table(&locks) };
            if !options.watch {
                print(&text)?;
                return Ok(status::DONE);
            }
            let before = match (clears, options.json, again) {
                (true, ..) => "\x1b[H\x1b[J",
                (false, false, true) => "\n",
                (false, ..) => "",
            };
            print(&format!("{before}{text}"))?;
            again = true;
            sleep(WATCH_INTERVAL).await;
        }
    })
}

/// A line for each lock.
fn to_json(locks: &[Listed]) -> String {
    let objects = locks.iter().map(|lock| {
        let (holders, waiters) = (sessions::to_json(&lock.holders), sessions::to_json(&lock.waiters));
        let mut object = json!({
            "lock": lock.lock, "mode": lock.mode, "holders": holders, "waiters": waiters, "contender": lock.contender,
        });
        if !lock.last_known.is_empty() {
            object["last_known"] = json!(sessions::to_json(&lock.last_known));
        }
        json_line(&object)
    });
    objects.collect()
}

/// A row for each holder and each waiter.
fn table(locks: &[Listed]) -> String {
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    for lock in locks {
        rows.extend(lock.holders.iter().map(|holder| row(&lock.lock, &state(holder), holder)));
        if lock.contender && lock.holders.iter().all(|holder| holder.node.is_none()) {
            let mut row = [const { String::new() }; HEADINGS.len()];
            row[0] = escaped(&lock.lock);
            row[1] = "elsewhere".to_owned();
            rows.push(row);
        }
        rows.extend(lock.waiters.iter().map(|waiter| row(&lock.lock, "waits", waiter)));
        rows.extend(lock.last_known.iter().map(|holder| row(&lock.lock, &last_known(holder), holder)));
    }
    columns(&rows)
}

/// How a holder holds.
fn state(holder: &SessionInfo) -> String {
    let list = || holder.taken.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
    match (&holder.taken[..], holder.slots, holder.mode.as_str()) {
        ([_, ..], Some(slots), _) => format!("slot {} of {slots}", list()),
        (_, _, "shared") => "shared".to_owned(),
        _ => "held".to_owned(),
    }
}

/// A holder whose daemon does not run any more.
fn last_known(holder: &SessionInfo) -> String {
    format!("last known, {} ago", duration(holder.seen_ms.unwrap_or_default()))
}

fn row(lock: &str, state: &str, session: &SessionInfo) -> [String; HEADINGS.len()] {
    let text = |text: &Option<String>| escaped(text.as_deref().unwrap_or_default());
    let name = match (&session.introduction.name, &session.introduction.host) {
        (None, Some(host)) => escaped(&format!("{}@{host}", session.session)),
        _ => escaped(&sessions::called(session)),
    };
    let pid = session.introduction.pid.map(|pid| pid.to_string()).unwrap_or_default();
    let since = duration(session.since_ms);
    [
        escaped(lock),
        state.to_owned(),
        since,
        name,
        pid,
        text(&session.introduction.command),
        text(&session.introduction.note),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table shows what sessions say about themselves, in columns, without anything that a
    /// terminal obeys.
    #[test]
    fn a_table() {
        let lock: Listed = serde_json::from_value(json!({
            "lock": "gpu", "mode": "exclusive", "contender": true,
            "holders": [{"session": "s-1", "name": "a\u{1b}[2J", "pid": 7, "command": "make", "mode": "exclusive", "since_ms": 61_000}],
            "waiters": [{"session": "s-2", "mode": "shared", "since_ms": 0}],
        }))
        .unwrap();
        let slots: Listed = serde_json::from_value(json!({
            "lock": "cpu", "mode": "slots",
            "holders": [{"session": "s-3", "mode": "slots", "slots": 4, "taken": [0, 2], "fence": 9, "since_ms": 0}],
            "waiters": [{"session": "s-4", "mode": "slots", "slots": 4, "take": 3, "since_ms": 0}],
        }))
        .unwrap();
        let json = to_json(std::slice::from_ref(&slots));
        assert!(
            json.contains(r#""taken":[0,2]"#) && json.contains(r#""fence":9"#) && json.contains(r#""take":3"#),
            "{json}"
        );
        assert!(table(&[slots]).contains("cpu   slot 0,2 of 4  0 s    s-3"));
        let text = table(&[lock]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0].split_whitespace().collect::<Vec<_>>(),
            ["LOCK", "STATE", "SINCE", "NAME", "PID", "COMMAND", "NOTE"]
        );
        assert!(lines[1].starts_with("gpu   held       1 min 1 s  a\\u{1b}[2J  7    make"), "{text}");
        assert_eq!(lines[2], "gpu   elsewhere");
        assert!(lines[3].starts_with("gpu   waits      0 s        s-2"), "{text}");
    }
}
