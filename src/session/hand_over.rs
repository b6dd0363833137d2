//! What of a session goes to the next process of the daemon, and how it goes on there.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tungstenite::protocol::frame::coding::CloseCode;

use super::multi::Several;
use super::{End, Kind, Pending, Session};
use crate::lock_table::Core;
use crate::lock_table::mailbox::Mailbox;
use distrilock_engine::SessionId;
use distrilock_protocol::HandedCodec;
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::Introduction;

/// A [`Session`] on its way.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandedSession {
    id: SessionId,
    codec: HandedCodec,
    held: BTreeSet<LockName>,
    pending: Vec<Pending>,
    several: Vec<Several>,
    next_request: u64,
    introduction: Option<Box<Introduction>>,
}

impl HandedSession {
    /// Its identity.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// What it has said of itself.
    pub fn introduction(&mut self) -> Option<Box<Introduction>> {
        self.introduction.take()
    }
}

impl Session {
    /// Whether it goes to the next process of the daemon: its connection is not to be served any more.
    #[must_use]
    pub fn hands_over(&self) -> bool {
        self.hands_over && self.end.is_none()
    }

    /// What all sessions of its daemon share.
    #[must_use]
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// The daemon cannot hand it over: it ends.
    pub fn end(&mut self, reason: &str, out: &mut Vec<u8>) {
        self.finish(End::Stop, CloseCode::Away, reason, out);
    }

    /// Whether it can go: nothing of what it asks is under way.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        let waits = |pending: &Pending| matches!(pending.kind, Kind::Try | Kind::Wait);
        self.end.is_none() && self.bye.is_none() && self.releasing.is_empty() && self.pending.iter().all(waits)
    }

    /// Whether it holds, wants or asks about one of these names.
    #[must_use]
    pub fn touches(&self, names: &BTreeSet<LockName>) -> bool {
        let asked = self.pending.iter().map(|pending| &pending.name);
        self.held.iter().chain(asked).any(|name| names.contains(name))
            || names.iter().any(|name| self.gathers(name) || self.is_part(name))
    }

    /// What the next process needs.
    #[must_use]
    pub fn hand_over(self) -> HandedSession {
        let introduction = self.mailbox.introduction();
        let Self { id, codec, held, pending, several, next_request, .. } = self;
        HandedSession { id, codec: HandedCodec::from(&codec), held, pending, several, next_request, introduction }
    }

    /// The same session in the next process.
    #[must_use]
    pub fn taken_over(handed: HandedSession, core: Arc<Core>, mailbox: Arc<Mailbox>) -> Self {
        let HandedSession { id, codec, held, pending, several, next_request, introduction: _ } = handed;
        for waiting in pending.iter().filter(|pending| pending.noted) {
            core.wait_begins(id, &waiting.name);
        }
        let session = Self::new(id, core, mailbox, codec.into());
        Self { held, pending, several, next_request, ..session }
    }
}

/// A deadline as a time on the clock that goes on from process to process.
pub(super) mod deadline {
    use std::time::{Duration, Instant};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::clock::now_ms;

    pub(in super::super) fn serialize<S: Serializer>(
        deadline: &Option<Instant>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let left = |deadline: &Instant| deadline.saturating_duration_since(Instant::now()).as_millis();
        let at_ms = deadline.as_ref().map(|deadline| {
            let left_ms = u64::try_from(left(deadline)).unwrap_or(u64::MAX);
            now_ms().saturating_add(left_ms)
        });
        at_ms.serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Instant>, D::Error> {
        let at_ms = Option::<u64>::deserialize(deserializer)?;
        // A time beyond what the clock can tell is as good as no limit.
        let deadline = |at_ms: u64| Instant::now().checked_add(Duration::from_millis(at_ms.saturating_sub(now_ms())));
        Ok(at_ms.and_then(deadline))
    }
}
