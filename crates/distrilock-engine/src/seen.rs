//! What those see who look at a name.

use serde::{Deserialize, Serialize};

use super::message::SessionId;
use distrilock_protocol::want::{Mode, Want};

/// A look at one name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// The sessions of this daemon that hold it, as many as a reply shows.
    pub holders: Vec<ViewedSession>,
    /// How many hold it.
    pub holders_total: usize,
    /// The sessions of this daemon that wait for it, first come first, as many as a reply shows.
    pub waiters: Vec<ViewedSession>,
    /// How many wait for it.
    pub waiters_total: usize,
    /// Whether another process holds it; when a name is only listed, whether the last try found it so.
    pub contender: bool,
}

/// A holder or a waiter in a [`View`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ViewedSession {
    /// The session.
    pub session: SessionId,
    /// How it holds the lock or wants it.
    pub mode: Mode,
    /// What [`Input::Now`](super::Input::Now) last said when the lock was granted, or the request came.
    pub since_ms: u64,
    /// How many slots it holds or wants.
    pub take: u16,
    /// Which slots it holds.
    pub slots: Box<[u16]>,
    /// The fence of its grant.
    pub fence: Option<u64>,
}

impl ViewedSession {
    /// A session that holds the lock or wants it.
    #[must_use]
    pub fn new(session: SessionId, want: Want, since_ms: u64) -> Self {
        Self { session, mode: want.mode, since_ms, take: want.take, slots: Box::default(), fence: None }
    }
}
