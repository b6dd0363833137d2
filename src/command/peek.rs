//! `distrilock peek`: whether a lock is held, and by whom; and `who`, which explains it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::sleep;

use super::connect::{block_on, connect_to_ask};
use super::error::CommandError;
use super::options::{PeekOptions, ServerOptions};
use super::output::{escaped, json_line, print};
use super::{sessions, status};
use distrilock_client::{Client, Peeked, RequestError, SessionInfo};
use distrilock_protocol::name::LockName;

/// Every daemon shows a lock that is held for a second within this time.
const SHOWN_WITHIN: Duration = Duration::from_secs(4);

/// How often `who` asks until then.
const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// Reports on each name. The status says whether any of them is held.
pub(super) fn main(options: &PeekOptions, servers: &ServerOptions) -> Result<u8, CommandError> {
    block_on(async {
        let client = connect_to_ask(servers).await?;
        let mut status = status::DONE;
        for name in &options.names.0 {
            let peeked = client.peek_everywhere(name.as_str()).await.map_err(CommandError::request(&client))?;
            let text = if options.json { json_line(&to_json(&peeked)) } else { to_text(name, &peeked) };
            report(&peeked, &text, &mut status)?;
        }
        Ok(status)
    })
}

/// The same with all that is known.
pub(super) fn main_of_who(options: &PeekOptions, servers: &ServerOptions) -> Result<u8, CommandError> {
    block_on(async {
        let client = connect_to_ask(servers).await?;
        let mut status = status::DONE;
        for name in &options.names.0 {
            let peeked = peek_until_known(&client, name).await.map_err(CommandError::request(&client))?;
            let text = if options.json { json_line(&to_json(&peeked)) } else { explanation(name, &peeked) };
            report(&peeked, &text, &mut status)?;
        }
        Ok(status)
    })
}

fn report(peeked: &Peeked, text: &str, status: &mut u8) -> Result<(), CommandError> {
    if peeked.locked {
        *status = status::BUSY;
    }
    match print(text) {
        // The status still says whether it is held.
        Ok(()) | Err(CommandError::ReaderGone) => Ok(()),
        failed => failed,
    }
}

/// Waits for the other daemons to show who holds a lock, if one does.
async fn peek_until_known(client: &Client, name: &LockName) -> Result<Peeked, RequestError> {
    let began = Instant::now();
    loop {
        let peeked = client.peek_everywhere(name.as_str()).await?;
        if !is_unknown(&peeked) || began.elapsed() >= SHOWN_WITHIN {
            return Ok(peeked);
        }
        sleep(ASK_INTERVAL).await;
    }
}

/// Whether somebody holds the lock, and nobody says who.
fn is_unknown(peeked: &Peeked) -> bool {
    peeked.locked && peeked.holders.is_empty()
}

/// What `peek` says.
fn to_text(name: &LockName, peeked: &Peeked) -> String {
    let unknown = "through another daemon, or by another program that locks its file";
    let mut text = holders_and_waiters(name, peeked, unknown, |_| String::new());
    if peeked.holders.is_empty() {
        text.push_str(&last_known(name, peeked));
    }
    text
}

/// Who holds the lock, with something more about each, and how many wait; `unknown` is who may hold
/// it if nobody says so.
fn holders_and_waiters(
    name: &LockName,
    peeked: &Peeked,
    unknown: &str,
    more: impl Fn(&SessionInfo) -> String,
) -> String {
    let mut text = String::new();
    if !peeked.locked {
        text.push_str(&format!("{name} is free\n"));
    }
    for holder in &peeked.holders {
        text.push_str(&format!("{name} is held by {}\n{}", escaped(&sessions::describe(holder)), more(holder)));
    }
    if let Some(total) = peeked.holders_total {
        text.push_str(&format!("{name} is held by {total} sessions in all\n"));
    }
    if is_unknown(peeked) {
        text.push_str(&format!("{name} is held {unknown}\n"));
    }
    match sessions::waiters(peeked) {
        0 => {}
        1 => text.push_str("1 session waits for it\n"),
        count => text.push_str(&format!("{count} sessions wait for it\n")),
    }
    text
}

fn last_known(name: &LockName, peeked: &Peeked) -> String {
    let known = peeked.last_known.iter();
    known.map(|holder| format!("{name} was held by {}\n", escaped(&sessions::describe_last_known(holder)))).collect()
}

/// What `who` says.
fn explanation(name: &LockName, peeked: &Peeked) -> String {
    let unknown =
        "by a program that locks its file and is no daemon, or by a daemon that does not show it (--no-board)";
    let more = |holder: &SessionInfo| format!("  {}\n", escaped(&details(holder)));
    holders_and_waiters(name, peeked, unknown, more) + &last_known(name, peeked)
}

/// How a session holds a lock, and through which daemon. Not escaped.
fn details(holder: &SessionInfo) -> String {
    let mut details = vec![match (&holder.node, holder.node_pid) {
        (None, _) => format!("session {} of the daemon that was asked", holder.session),
        (Some(node), None) => format!("session {} of the daemon at {node}", holder.session),
        (Some(node), Some(pid)) => format!("session {} of the daemon at {node} (pid {pid})", holder.session),
    }];
    details.push(match (holder.slots, &holder.taken[..]) {
        (Some(slots), [_, ..]) => {
            let taken: Vec<String> = holder.taken.iter().map(u16::to_string).collect();
            format!("slot {} of {slots}", taken.join(", "))
        }
        _ => holder.mode.to_string(),
    });
    details.extend(holder.introduction.user.as_ref().map(|user| format!("user {user}")));
    details.extend(holder.introduction.host.as_ref().map(|host| format!("host {host}")));
    details.extend(holder.fence.map(|fence| format!("fence {fence}")));
    details.join(", ")
}

fn to_json(peeked: &Peeked) -> Value {
    let mut object = json!({
        "lock": peeked.lock, "locked": peeked.locked, "holders": sessions::to_json(&peeked.holders),
        "waiters": sessions::waiters(peeked), "contender": peeked.contender,
    });
    if !peeked.last_known.is_empty() {
        object["last_known"] = json!(sessions::to_json(&peeked.last_known));
    }
    object
}
