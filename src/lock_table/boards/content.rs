//! [`Board`]: what is on a board.

use serde::{Deserialize, Serialize};

use crate::files::board::BoardContent;
use crate::limits::{BOARD_BYTES_MAX, BOARD_LOCKS_MAX, BOARD_SESSIONS_MAX};
use distrilock_protocol::limits::{
    HELLO_COMMAND_BYTES_MAX, HELLO_HOST_BYTES_MAX, HELLO_NAME_BYTES_MAX, HELLO_NOTE_BYTES_MAX, HELLO_USER_BYTES_MAX,
    SLOTS_MAX,
};
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::{Listed, ModeWord, SessionInfo};

/// The longest text of a session's number.
const SESSION_BYTES_MAX: usize = 32;

/// What a daemon shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Board {
    /// Its host.
    pub(super) node: String,
    /// Its process.
    pub(super) pid: u32,
    /// When it wrote this, in milliseconds on a clock of its own.
    pub(super) now_ms: u64,
    /// The locks. In the file, `since_ms` is a time on the same clock; in a board that was read, it
    /// is how long a session had held the lock or waited for it at `now_ms`.
    pub(super) locks: Vec<Listed>,
    /// How many locks are left out.
    #[serde(default)]
    pub(super) unlisted: usize,
}

impl Board {
    /// As it is written, with as many locks as there is room for.
    pub(super) fn json(mut self) -> Vec<u8> {
        loop {
            let json = serde_json::to_vec(&self).expect("it is plain text and numbers");
            if json.len() > BOARD_BYTES_MAX {
                let half = self.locks.len() / 2;
                self.unlisted += self.locks.len() - half;
                self.locks.truncate(half);
                continue;
            }
            return json;
        }
    }
}

impl BoardContent for Board {
    /// Everything is bounded and printable afterwards.
    fn read(json: &[u8]) -> Option<Self> {
        let mut board: Self = serde_json::from_slice(json).ok()?;
        clean(&mut board.node, HELLO_HOST_BYTES_MAX);
        board.locks.retain(|lock| LockName::parse(lock.lock.as_bytes()).is_ok());
        board.unlisted = board.unlisted.saturating_add(board.locks.len().saturating_sub(BOARD_LOCKS_MAX));
        board.locks.truncate(BOARD_LOCKS_MAX);
        // What is left out, or was never there, must not take memory either.
        board.locks.shrink_to_fit();
        for lock in &mut board.locks {
            lock.last_known = Vec::new();
            lock.mode = lock.mode.take().filter(is_known);
            for sessions in [&mut lock.holders, &mut lock.waiters] {
                sessions.truncate(BOARD_SESSIONS_MAX);
                sessions.shrink_to_fit();
                sessions.iter_mut().for_each(|session| tidy(session, board.now_ms));
            }
        }
        Some(board)
    }

    fn is_empty(&self) -> bool {
        self.locks.is_empty()
    }
}

fn is_known(mode: &ModeWord) -> bool {
    !matches!(mode, ModeWord::Other(_))
}

fn tidy(session: &mut SessionInfo, now_ms: u64) {
    clean(&mut session.session, SESSION_BYTES_MAX);
    let said = &mut session.introduction;
    for (text, bytes_max) in [
        (&mut said.name, HELLO_NAME_BYTES_MAX),
        (&mut said.note, HELLO_NOTE_BYTES_MAX),
        (&mut said.host, HELLO_HOST_BYTES_MAX),
        (&mut said.command, HELLO_COMMAND_BYTES_MAX),
        (&mut said.user, HELLO_USER_BYTES_MAX),
    ] {
        if let Some(text) = text {
            clean(text, bytes_max);
        }
    }
    if !is_known(&session.mode) {
        session.mode = ModeWord::default();
    }
    if session.taken.len() > usize::from(SLOTS_MAX) {
        session.taken = Box::default();
    }
    session.since_ms = now_ms.saturating_sub(session.since_ms);
    (session.node, session.node_pid, session.seen_ms) = (None, None, None);
}

/// A text as a hello could have brought it.
fn clean(text: &mut String, bytes_max: usize) {
    if text.chars().any(char::is_control) {
        *text = text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
    }
    let end = (0..=bytes_max.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What a daemon writes is read by another: times have become ages, and what a terminal would
    /// obey is gone from texts.
    #[test]
    fn a_board_is_read() {
        let locks = json!([{"lock": "a", "mode": "exclusive", "holders":
            [{"session": "s-1", "name": "a\u{1b}[2J", "mode": "exclusive", "since_ms": 400}]}]);
        let locks = serde_json::from_value(locks).unwrap();
        let board = Board { node: "db1".into(), pid: 7, now_ms: 1000, locks, unlisted: 0 };
        let read = Board::read(&board.json()).unwrap();
        assert!(read.node == "db1" && read.pid == 7 && !read.is_empty());
        let holder = &read.locks[0].holders[0];
        assert_eq!((holder.since_ms, holder.introduction.name.as_deref()), (600, Some("a\u{fffd}[2J")));
    }

    /// A board with more than fits leaves some of it out, and says how many locks.
    #[test]
    fn a_board_that_is_too_large() {
        let note = "\"".repeat(HELLO_NOTE_BYTES_MAX);
        let session = json!({"session": "s-1", "note": note, "command": note, "mode": "shared", "since_ms": 0});
        let lock = json!({"lock": "x", "holders": vec![session; BOARD_SESSIONS_MAX]});
        let locks = serde_json::from_value(json!(vec![lock; 1000])).unwrap();
        let json = Board { locks, ..Board::default() }.json();
        assert!(json.len() <= BOARD_BYTES_MAX);
        let read = Board::read(&json).unwrap();
        assert!(!read.locks.is_empty() && read.locks.len() + read.unlisted == 1000);
        assert_eq!(read.locks[0].holders[0].introduction.note.as_ref(), Some(&note));
    }

    /// Names that are no lock names, unknown modes, too many sessions and deep nesting do not come
    /// through.
    #[test]
    fn forged_boards_are_bounded() {
        let session = json!({"session": "s".repeat(100), "note": "\u{e9}".repeat(1000), "mode": "loud", "since_ms": u64::MAX,
            "node": "x", "seen_ms": 1});
        let lock = json!({"lock": "a", "mode": "loud", "holders": vec![session; 100]});
        let locks = json!([lock, {"lock": "../b"}, {"lock": "b\n"}]);
        let board = Board { locks: serde_json::from_value(locks).unwrap(), now_ms: 1000, ..Board::default() };
        let read = Board::read(&board.json()).unwrap();
        assert_eq!(read.locks.len(), 1);
        let (lock, holder) = (&read.locks[0], &read.locks[0].holders[0]);
        assert!(lock.mode.is_none() && lock.holders.len() == BOARD_SESSIONS_MAX);
        assert_eq!((holder.session.len(), holder.since_ms, &holder.node), (SESSION_BYTES_MAX, 0, &None));
        assert_eq!(holder.introduction.note.as_ref().map(String::len), Some(HELLO_NOTE_BYTES_MAX));
        assert_eq!(holder.mode, ModeWord::default());
        for garbage in ["", "{}", "[]", "null", &"[".repeat(100_000), &"{\"locks\":".repeat(50_000)] {
            assert_eq!(Board::read(garbage.as_bytes()), None);
        }
    }
}
