//! What goes back to a client of version 1: replies and events (docs/protocol.md, chapters 3 and 4).

use serde::Serialize;

use super::{Error, Id, Introduction};
use crate::want::Mode;

/// The reply to most requests; what is absent is left out.
#[derive(Debug, Default, Serialize)]
#[expect(missing_docs, reason = "the protocol's chapter 3 says what each member means")]
pub struct Reply<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a Id>,
    pub ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub already: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken: Option<&'a [u16]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locks: Option<Vec<Grant<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cancelled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_ms: Option<u64>,
}

/// A lock among several that a request acquired or released.
#[derive(Debug, Default, Serialize)]
#[expect(missing_docs, reason = "the protocol's chapter 3 says what each member means")]
pub struct Grant<'a> {
    pub lock: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub already: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken: Option<&'a [u16]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fence: Option<u64>,
}

/// Which slots a grant has: the first one, and all of them where there are several.
#[must_use]
pub fn slots(slots: &[u16]) -> (Option<u16>, Option<&[u16]>) {
    (slots.first().copied(), (slots.len() > 1).then_some(slots))
}

/// The reply to a hello.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the protocol's chapter 3 says what each member means")]
pub struct Welcome<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a Id>,
    pub ok: bool,
    pub version: u64,
    pub session: &'a str,
    pub node: &'a str,
    pub directory: &'a str,
    pub dead_after_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_ms: Option<u64>,
}

/// The reply to a peek.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the protocol's chapter 3 says what each member means")]
pub struct Look<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a Id>,
    pub ok: bool,
    pub lock: &'a str,
    pub locked: bool,
    pub holders: Vec<Seen>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holders_total: Option<usize>,
    pub waiters: usize,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub contender: bool,
}

/// The reply to a list.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the protocol's chapter 3 says what each member means")]
pub struct Listing<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a Id>,
    pub ok: bool,
    pub locks: Vec<Listed>,
    pub more: bool,
}

/// A lock in a [`Listing`].
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the protocol's chapter 3 says what each member means")]
pub struct Listed {
    pub lock: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<&'static str>,
    pub holders: Vec<Seen>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holders_total: Option<usize>,
    pub waiters: Vec<Seen>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiters_total: Option<usize>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub contender: bool,
}

impl Listed {
    /// About how long it is when written.
    #[must_use]
    pub fn bytes(&self) -> usize {
        const ROW: usize = 100;
        const SLOT: usize = 5;
        let seen = self.holders.iter().chain(&self.waiters);
        ROW + self.lock.len() + seen.map(|it| ROW + it.introduction.bytes() + SLOT * it.taken.len()).sum::<usize>()
    }
}

/// A session in a [`Look`] or a [`Listing`].
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the protocol's chapter 3 says what each member means")]
pub struct Seen {
    pub session: String,
    #[serde(flatten)]
    pub introduction: Introduction,
    pub mode: &'static str,
    /// How many slots the lock has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<u16>,
    /// Which of them a holder has.
    #[serde(skip_serializing_if = "<[u16]>::is_empty")]
    pub taken: Box<[u16]>,
    /// How many of them a waiter wants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub take: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fence: Option<u64>,
    pub since_ms: u64,
}

/// What is pushed to a session (docs/protocol.md, chapter 4).
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// The session does not hold this lock any more.
    Lost {
        /// Which.
        lock: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// The file server does not answer; the lock is surely held for so long only.
    Suspect {
        /// Which.
        lock: &'a str,
        /// For how long, in milliseconds.
        valid_ms: u64,
    },
    /// It answers again, and the lock is held.
    Held {
        /// Which.
        lock: &'a str,
    },
}

/// The word for a mode.
#[must_use]
pub fn word(mode: Mode) -> &'static str {
    match mode {
        Mode::Shared => "shared",
        Mode::Slots(_) => "slots",
        Mode::Exclusive => "exclusive",
    }
}
