//! The replies to `peek` and `list`: locks, and the sessions that hold them or wait for them.

use serde::{Deserialize, Serialize};

use super::hello::Introduction;
use crate::v1::ModeWord;
use crate::v1::reply::or_default;

/// The body of the reply to `peek`: what is known of a name, through any daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peeked {
    /// The name.
    pub lock: String,
    /// Whether any session or process holds it.
    pub locked: bool,
    /// The sessions that hold it through this daemon, and those that other daemons show, with
    /// [`SessionInfo::node`].
    #[serde(default)]
    pub holders: Vec<SessionInfo>,
    /// How many hold it through this daemon, if more do than are listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holders_total: Option<usize>,
    /// How many wait for it at this daemon.
    #[serde(default)]
    pub waiters: usize,
    /// How many wait for it at other daemons, as far as these show it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub waiters_elsewhere: usize,
    /// Whether another process holds it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub contender: bool,
    /// The sessions that were last known to hold it through daemons that do not run any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_known: Vec<SessionInfo>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// The body of the reply to `list`: a page of the daemon's locks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The locks, in the order of their names.
    pub locks: Vec<Listed>,
    /// Whether there are more locks after these.
    #[serde(default)]
    pub more: bool,
    /// How many locks other daemons hold that are in no list, since these show only so many.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unlisted: usize,
}

/// A lock in a [`Listing`], with the sessions that hold it or wait for it at this daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its name.
    pub lock: String,
    /// How it is held, if it is held here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<ModeWord>,
    /// The sessions that hold it.
    #[serde(default)]
    pub holders: Vec<SessionInfo>,
    /// How many hold it, if more do than are listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holders_total: Option<usize>,
    /// The sessions that wait for it, in the order of their arrival.
    #[serde(default)]
    pub waiters: Vec<SessionInfo>,
    /// How many wait for it, if more do than are listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiters_total: Option<usize>,
    /// Whether another process holds it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub contender: bool,
    /// The sessions that were last known to hold it through daemons that do not run any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_known: Vec<SessionInfo>,
}

/// A session that holds a lock or waits for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// Its identity.
    pub session: String,
    /// What it says of itself.
    #[serde(flatten)]
    pub introduction: Introduction,
    /// How it holds the lock or wants to.
    #[serde(default)]
    pub mode: ModeWord,
    /// How many slots the lock has, in [`ModeWord::Slots`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<u16>,
    /// The slots that a holder has.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "<[u16]>::is_empty")]
    pub taken: Box<[u16]>,
    /// How many slots a waiter wants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub take: Option<u16>,
    /// The fence of its grant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fence: Option<u64>,
    /// How long it has held the lock or waited for it, in milliseconds.
    #[serde(default)]
    pub since_ms: u64,
    /// The host of its daemon, if that is another one than the one that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The process of its daemon, in the same case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_pid: Option<u32>,
    /// How long ago that daemon showed it, in milliseconds, if it does not run any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_ms: Option<u64>,
}

impl Listed {
    /// About how long it is when written.
    #[must_use]
    pub fn bytes(&self) -> usize {
        const ROW: usize = 100;
        const SLOT: usize = 5;
        let sessions = self.holders.iter().chain(&self.waiters).chain(&self.last_known);
        let bytes = sessions.map(|it| ROW + it.introduction.bytes() + SLOT * it.taken.len());
        ROW + self.lock.len() + bytes.sum::<usize>()
    }
}
