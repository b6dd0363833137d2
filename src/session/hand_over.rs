//! The state of a session that goes to the next process of the daemon, and how the session
//! continues there.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tungstenite::protocol::frame::coding::CloseCode;

use super::asking::Asking;
use super::multi::MultiAcquire;
use super::{End, Kind, Pending, Session};
use crate::lock_table::LockTable;
use crate::lock_table::mailbox::Mailbox;
use distrilock_engine::SessionId;
use distrilock_protocol::HandedCodec;
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::Introduction;

/// A [`Session`] on its way to the next process.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandedSession {
    id: SessionId,
    codec: HandedCodec,
    held: BTreeSet<LockName>,
    pending: Vec<Pending>,
    #[serde(rename = "several")]
    acquires: Vec<MultiAcquire>,
    next_request: u64,
    introduction: Option<Box<Introduction>>,
}

impl HandedSession {
    /// Its identity.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// How it introduced itself.
    pub fn introduction(&mut self) -> Option<Box<Introduction>> {
        self.introduction.take()
    }
}

impl Session {
    /// Whether it goes to the next process of the daemon: its connection must not be served any
    /// more.
    #[must_use]
    pub fn hands_over(&self) -> bool {
        self.hands_over && self.end.is_none()
    }

    /// Ends it, since the daemon cannot hand it over.
    pub fn end(&mut self, reason: &str, out: &mut Vec<u8>) {
        self.finish(End::Stop, CloseCode::Away, reason, out);
    }

    /// Whether it can be handed over: nothing that it asks is under way, except waits.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        let waits = |pending: &Pending| matches!(pending.kind, Kind::Try | Kind::Wait);
        self.end.is_none() && self.bye.is_none() && self.releases.is_empty() && self.asking.iter().all(waits)
    }

    /// Whether it holds, wants or asks about one of these names.
    #[must_use]
    pub fn touches(&self, names: &BTreeSet<LockName>) -> bool {
        let asked = self.asking.iter().map(|pending| &pending.name);
        self.held.iter().chain(asked).any(|name| names.contains(name))
            || names.iter().any(|name| self.asking.is_part(name))
    }

    /// Its state for the next process.
    #[must_use]
    pub fn hand_over(self) -> HandedSession {
        let introduction = self.mailbox.introduction();
        let Self { id, codec, held, asking, next_request, .. } = self;
        let (pending, acquires) = asking.into_parts();
        HandedSession {
            id,
            codec: HandedCodec::from(&codec),
            held: held.into_set(),
            pending,
            acquires,
            next_request,
            introduction,
        }
    }

    /// The same session in the next process.
    #[must_use]
    pub fn taken_over(handed: HandedSession, table: Arc<LockTable>, mailbox: Arc<Mailbox>) -> Self {
        let HandedSession { id, codec, held, pending, acquires, next_request, introduction: _ } = handed;
        let session = Self::new(id, table, mailbox, codec.into());
        let asking = Asking::of_parts(pending, acquires, |lock| held.contains(lock));
        let mut session = Self { held: held.into_iter().collect(), asking, next_request, ..session };
        session.charge();
        session
    }
}

/// Deadlines, as times on a clock that all processes share.
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
        // A time beyond the clock's range is as good as no limit.
        let deadline = |at_ms: u64| Instant::now().checked_add(Duration::from_millis(at_ms.saturating_sub(now_ms())));
        Ok(at_ms.and_then(deadline))
    }
}
