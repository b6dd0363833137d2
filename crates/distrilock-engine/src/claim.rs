//! [`Claim`]: what one session holds of a name, or wants of it; and [`View`]: what a look at a name
//! shows.

use distrilock_protocol::ids::SessionId;
use distrilock_protocol::want::{Extent, Mode, Want};

/// What a session holds of a name, or wants of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The session.
    pub session: SessionId,
    /// How much of the lock it holds or wants.
    pub extent: Extent,
    /// What `Input::Now` last said when the lock was granted, or when the request came.
    pub since_ms: u64,
    /// How long the request waited for the grant, in milliseconds.
    pub waited_ms: u64,
    /// Which slots it holds.
    pub slots: Box<[u16]>,
    /// The fence of its grant.
    pub fence: Option<u64>,
}

impl Claim {
    /// The claim of a session that wants a lock, or holds it without slots and fence.
    #[must_use]
    pub fn new(session: SessionId, want: Want, since_ms: u64) -> Self {
        Self { session, extent: want.extent, since_ms, waited_ms: 0, slots: Box::default(), fence: None }
    }

    /// The mode in which it holds the lock or wants it.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.extent.mode()
    }
}

/// A look at one name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// The sessions of this daemon that hold it, at most as many as a reply shows.
    pub holders: Vec<Claim>,
    /// How many hold it.
    pub holders_total: usize,
    /// The sessions of this daemon that wait for it, first come first, at most as many as a reply
    /// shows.
    pub waiters: Vec<Claim>,
    /// How many wait for it.
    pub waiters_total: usize,
    /// Whether another process holds it; when a name is only listed, whether the last try was
    /// refused.
    pub contender: bool,
}
