//! What goes back to a client: replies and events (docs/protocol.md, chapters 3 to 5). The bodies
//! of the replies stand with their ops, in [`op`](super::op).
//!
//! A daemon writes a [`Reply`] or an [`Event`]. A client reads the [`Head`] of a message, which
//! says what kind of message it is, and then its body, from the same bytes. Both ends use the same
//! bodies. Reading ignores members that it does not know, since a newer daemon may send more.

use std::borrow::Cow;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

use super::id::Id;
use super::word::ErrorWord;

/// A reply: the request's id, whether the answer is yes, and the body.
#[derive(Debug, Serialize)]
pub struct Reply<'a, B> {
    /// The id of the request, if it had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a Id>,
    /// Whether the request was granted.
    pub ok: bool,
    /// The rest.
    #[serde(flatten)]
    pub body: B,
}

impl<'a, B: Serialize> Reply<'a, B> {
    /// A reply that says yes.
    pub fn yes(id: Option<&'a Id>, body: B) -> Self {
        Self { id, ok: true, body }
    }
}

impl<'a, 'b> Reply<'a, Refusal<'b>> {
    /// A reply that says no.
    #[must_use]
    pub fn no(id: Option<&'a Id>, body: Refusal<'b>) -> Self {
        Self { id, ok: false, body }
    }
}

/// The body of a reply that says yes and nothing more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}

/// The body of a reply that says no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal<'a> {
    /// The word for programs.
    #[serde(default = "no_word", deserialize_with = "word_or_none")]
    pub error: ErrorWord,
    /// The sentence for people.
    #[serde(default, deserialize_with = "or_default")]
    pub message: Cow<'a, str>,
    /// Which of several locks it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<Cow<'a, str>>,
}

impl<'a> Refusal<'a> {
    /// A refusal that names no lock.
    pub fn new(error: ErrorWord, message: impl Into<Cow<'a, str>>) -> Self {
        Self { error, message: message.into(), lock: None }
    }
}

/// The word of a refusal that has none.
fn no_word() -> ErrorWord {
    ErrorWord::from("refused")
}

fn word_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ErrorWord, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_else(no_word))
}

/// Reads `null` like an absent member.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// What is pushed to a session (docs/protocol.md, chapter 4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// The session does not hold this lock any more.
    Lost {
        /// Which lock.
        #[serde(default, deserialize_with = "or_default")]
        lock: Cow<'a, str>,
        /// Why.
        reason: Option<Cow<'a, str>>,
    },
    /// The file server does not answer: the lock is certain to be held only for this long.
    Suspect {
        /// Which lock.
        #[serde(default, deserialize_with = "or_default")]
        lock: Cow<'a, str>,
        /// For how long, in milliseconds; 0 if the daemon does not say.
        #[serde(default, deserialize_with = "or_default")]
        valid_ms: u64,
    },
    /// The file server answers again, and the lock is held.
    Held {
        /// Which lock.
        #[serde(default, deserialize_with = "or_default")]
        lock: Cow<'a, str>,
    },
    /// An event that this version does not know.
    #[serde(other)]
    Unknown,
}

/// The members that distinguish the messages of a daemon: an event has `event`; a reply has `ok`,
/// and the `id` of its request.
#[derive(Debug, Deserialize)]
pub struct Head {
    /// There if it is an event.
    pub event: Option<IgnoredAny>,
    /// The id of the request that it answers.
    pub id: Option<Id>,
    /// Whether the answer is yes.
    pub ok: Option<bool>,
    /// For how long the storage is certain to keep the session's locks, from when the request was
    /// sent, in milliseconds.
    pub valid_ms: Option<u64>,
}
