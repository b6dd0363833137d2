//! `distrilock peek`: whether a lock is held, and by whom.

use serde_json::{Value, json};

use super::connect::{block_on, connect_to_ask};
use super::error::CommandError;
use super::options::{PeekOptions, ServerOptions};
use super::output::{escaped, json_line, print};
use super::{sessions, status};
use distrilock_client::Peeked;
use distrilock_protocol::name::LockName;

/// Reports on each name. The status says whether any of them is held.
pub(super) fn main(options: &PeekOptions, servers: &ServerOptions) -> Result<u8, CommandError> {
    block_on(async {
        let client = connect_to_ask(servers).await?;
        let mut status = status::DONE;
        for name in &options.names.0 {
            let peeked = client.peek(name.as_str()).await.map_err(CommandError::request(&client))?;
            if peeked.locked {
                status = status::BUSY;
            }
            let text = if options.json { json_line(&to_json(&peeked)) } else { to_text(name, &peeked) };
            match print(&text) {
                // The status still says whether it is held.
                Ok(()) | Err(CommandError::ReaderGone) => {}
                failed => failed?,
            }
        }
        Ok(status)
    })
}

fn to_text(name: &LockName, peeked: &Peeked) -> String {
    if !peeked.locked {
        return format!("{name} is free\n");
    }
    let mut text = String::new();
    for holder in &peeked.holders {
        text.push_str(&format!("{name} is held by {}\n", escaped(&sessions::describe(holder))));
    }
    if let Some(total) = peeked.holders_total {
        text.push_str(&format!("{name} is held by {total} sessions in all\n"));
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

fn to_json(peeked: &Peeked) -> Value {
    json!({
        "lock": peeked.lock, "locked": peeked.locked, "holders": sessions::to_json(&peeked.holders),
        "waiters": peeked.waiters, "contender": peeked.contender,
    })
}
