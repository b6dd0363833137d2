//! What only looks: `peek`, `ls`, `wait` and `ping`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::options::{Ls, Peek, Wait};
use super::session::{self, who};
use super::trouble::Trouble;
use super::{say, status};
use distrilock_client::{Client, Listed, Peeked, RequestError, Server, SessionInfo};
use distrilock_protocol::name::LockName;

/// How often `wait` looks, and `ls --watch` lists.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const LIST_AGAIN: Duration = Duration::from_secs(1);

async fn client(servers: &[Server]) -> Result<Client, Trouble> {
    session::connect(Client::builder(), &session::introduction(None, None), servers).await
}

/// Makes a trouble of a request's failure, for `map_err`.
fn failed(client: &Client) -> impl Fn(RequestError) -> Trouble {
    let server = client.server().clone();
    move |error| Trouble::Request { server: server.clone(), error }
}

fn out(text: &str) -> Result<(), Trouble> {
    say::out(text).map_err(Trouble::system("write to stdout"))
}

/// Tells of each name whether it is held. The status says whether any is.
pub(super) fn peek(options: &Peek, servers: &[Server]) -> Result<u8, Trouble> {
    session::block_on(async {
        let client = client(servers).await?;
        let mut ended = status::DONE;
        for name in &options.names.0 {
            let peeked = client.peek(name.as_str()).await.map_err(failed(&client))?;
            if peeked.locked {
                ended = status::BUSY;
            }
            if options.json {
                out(&format!("{}\n", json_of_peeked(&peeked)))?
            } else {
                out(&text_of_peeked(name, &peeked))?
            }
        }
        Ok(ended)
    })
}

fn text_of_peeked(name: &LockName, peeked: &Peeked) -> String {
    if !peeked.locked {
        return format!("{name} is free\n");
    }
    let mut text = String::new();
    for holder in &peeked.holders {
        text.push_str(&format!("{name} is held by {}\n", say::shown(&who(holder))));
    }
    if let Some(total) = peeked.holders_total {
        text.push_str(&format!("{name} is held by {total} in all\n"));
    }
    if peeked.contender {
        text.push_str(&format!("{name} is held through another daemon, or by another program that locks its file\n"));
    }
    match peeked.waiters {
        0 => {}
        1 => text.push_str("1 session waits for it\n"),
        count => text.push_str(&format!("{count} sessions wait for it\n")),
    }
    text
}

fn json_of_peeked(peeked: &Peeked) -> Value {
    json!({
        "lock": peeked.lock, "locked": peeked.locked, "holders": json_of_all(&peeked.holders),
        "waiters": peeked.waiters, "contender": peeked.contender,
    })
}

fn json_of_all(seen: &[SessionInfo]) -> Vec<Value> {
    seen.iter().map(json_of_seen).collect()
}

fn json_of_seen(seen: &SessionInfo) -> Value {
    let mut object = json!({"session": seen.session, "mode": seen.mode, "since_ms": seen.since_ms});
    let texts = [
        ("name", &seen.introduction.name),
        ("note", &seen.introduction.note),
        ("host", &seen.introduction.host),
        ("command", &seen.introduction.command),
        ("user", &seen.introduction.user),
    ];
    for (member, text) in texts.into_iter().filter_map(|(member, text)| Some((member, text.as_ref()?))) {
        object[member] = json!(text);
    }
    let numbers = [
        ("pid", seen.introduction.pid.map(u64::from)),
        ("slots", seen.slots.map(u64::from)),
        ("take", seen.take.map(u64::from)),
        ("fence", seen.fence),
    ];
    for (member, number) in numbers.into_iter().filter_map(|(member, number)| Some((member, number?))) {
        object[member] = json!(number);
    }
    if !seen.taken.is_empty() {
        object["taken"] = json!(seen.taken);
    }
    object
}

/// Lists the daemon's locks.
pub(super) fn ls(options: &Ls, servers: &[Server]) -> Result<u8, Trouble> {
    session::block_on(async {
        let client = client(servers).await?;
        loop {
            let locks = client.list().await.map_err(failed(&client))?;
            let text = if options.json { json_of_locks(&locks) } else { table(&locks) };
            if !options.watch {
                out(&text)?;
                return Ok(status::DONE);
            }
            let clear = if options.json { "" } else { "\x1b[H\x1b[J" };
            out(&format!("{clear}{text}"))?;
            sleep(LIST_AGAIN).await;
        }
    })
}

fn json_of_locks(locks: &[Listed]) -> String {
    let objects = locks.iter().map(|lock| {
        let object = json!({
            "lock": lock.lock, "mode": lock.mode, "holders": json_of_all(&lock.holders), "waiters": json_of_all(&lock.waiters),
            "contender": lock.contender,
        });
        format!("{object}\n")
    });
    objects.collect()
}

/// The locks as a table: a row for each holder and each waiter.
fn table(locks: &[Listed]) -> String {
    const HEADINGS: [&str; 7] = ["LOCK", "STATE", "SINCE", "NAME", "PID", "COMMAND", "NOTE"];
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    for lock in locks {
        rows.extend(lock.holders.iter().map(|seen| row(&lock.lock, &how(seen), seen)));
        if lock.contender {
            let mut row = [const { String::new() }; 7];
            row[0] = say::shown(&lock.lock);
            row[1] = "elsewhere".to_owned();
            rows.push(row);
        }
        rows.extend(lock.waiters.iter().map(|seen| row(&lock.lock, "waits", seen)));
    }
    let widths: Vec<usize> = (0..HEADINGS.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &[String; 7]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}  "));
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    rows.iter().map(line).collect()
}

/// How a holder holds.
fn how(seen: &SessionInfo) -> String {
    let list = || seen.taken.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
    match (&seen.taken[..], seen.slots, seen.mode.as_str()) {
        ([_, ..], Some(slots), _) => format!("slot {} of {slots}", list()),
        (_, _, "shared") => "shared".to_owned(),
        _ => "held".to_owned(),
    }
}

fn row(lock: &str, state: &str, seen: &SessionInfo) -> [String; 7] {
    let text = |text: &Option<String>| say::shown(text.as_deref().unwrap_or_default());
    let name = match (&seen.introduction.name, &seen.introduction.host) {
        (Some(name), _) => say::shown(name),
        (None, Some(host)) => say::shown(&format!("{}@{host}", seen.session)),
        (None, None) => say::shown(&seen.session),
    };
    let pid = seen.introduction.pid.map(|pid| pid.to_string()).unwrap_or_default();
    [
        say::shown(lock),
        state.to_owned(),
        say::span(seen.since_ms),
        name,
        pid,
        text(&seen.introduction.command),
        text(&seen.introduction.note),
    ]
}

/// Waits until none of the names is held.
pub(super) fn wait(options: &Wait, servers: &[Server]) -> Result<u8, Trouble> {
    session::block_on(async {
        let client = client(servers).await?;
        let free = async {
            for name in &options.names.0 {
                while client.peek(name.as_str()).await.map_err(failed(&client))?.locked {
                    sleep(LOOK_AGAIN).await;
                }
            }
            Ok(status::DONE)
        };
        match options.wait {
            Some(time) => timeout(time, free).await.unwrap_or(Ok(options.conflict_exit_code)),
            None => free.await,
        }
    })
}

/// Asks whether the daemon answers.
pub(super) fn ping(servers: &[Server]) -> Result<u8, Trouble> {
    session::block_on(async {
        let client = client(servers).await?;
        let sent = Instant::now();
        client.ping().await.map_err(failed(&client))?;
        let took = sent.elapsed().as_secs_f64() * 1000.0;
        let welcome = client.welcome();
        let (node, directory) = (say::shown(&welcome.node), say::shown(&welcome.directory));
        out(&format!(
            "{} answers after {took:.3} ms: node {node}, directory {directory}, protocol {}, a silent peer is dead after {} ms\n",
            client.server(),
            welcome.version,
            welcome.dead_after_ms
        ))?;
        Ok(status::DONE)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What others say of themselves stands in the table, in its columns, and without what a terminal obeys.
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
        let json = json_of_locks(std::slice::from_ref(&slots));
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
