//! `acquire`, and what `release` and `verify` share with it: how each lock is to be held, and what
//! was granted.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{RequestObject, Wrong, missing, name, shortened};
use crate::limits::{LOCKS_PER_REQUEST_MAX, SLOTS_MAX};
use crate::name::LockName;
use crate::v1::{ErrorWord, ModeWord, Text};
use crate::want::{Extent, Mode, Want};

/// How long an acquire waits: `wait_ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    #[default]
    No,
    /// At most this many milliseconds.
    Millis(u64),
    /// Until it is granted or cancelled, or the session ends.
    NoLimit,
}

impl Serialize for Wait {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::No => serializer.serialize_u64(0),
            Self::Millis(millis) => serializer.serialize_u64(*millis),
            Self::NoLimit => serializer.serialize_none(),
        }
    }
}

impl<'de> Deserialize<'de> for Wait {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Option::<u64>::deserialize(deserializer)? {
            None => Self::NoLimit,
            Some(0) => Self::No,
            Some(millis) => Self::Millis(millis),
        })
    }
}

/// One of several locks in a request: its name, or an object that says more.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Entry<'a> {
    /// The name alone.
    #[serde(borrow)]
    Name(Text<'a>),
    /// How this one is to be held.
    Object(LockObject<'a>),
}

/// See [`Entry`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the protocol's chapter 3 says what each member means")]
pub struct LockObject<'a> {
    #[serde(borrow)]
    pub lock: Text<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub take: Option<u64>,
}

/// The body of the reply to an `acquire`, a `release` or a `verify` of one lock, and an item of
/// [`Grants`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant<'a> {
    /// Which lock.
    pub lock: Cow<'a, str>,
    /// [`ModeWord::Shared`], or absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<ModeWord>,
    /// Whether the session held the lock before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub already: Option<bool>,
    /// The first slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<u16>,
    /// All slots, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken: Option<Cow<'a, [u16]>>,
    /// The fence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fence: Option<u64>,
    /// For how long the storage is certain to keep the session's locks, from when the request was
    /// sent, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_ms: Option<u64>,
}

/// The body of the reply to an `acquire` or a `release` of several locks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grants<'a> {
    /// The locks, in the order asked.
    pub locks: Vec<Grant<'a>>,
}

impl<'a> Grant<'a> {
    /// A lock, and nothing more about it.
    #[must_use]
    pub fn of(lock: &'a LockName) -> Self {
        Self { lock: Cow::Borrowed(lock.as_str()), ..Self::default() }
    }

    /// Adds the slots.
    #[must_use]
    pub fn with_slots(self, slots: &'a [u16]) -> Self {
        let taken = (slots.len() > 1).then_some(Cow::Borrowed(slots));
        Self { slot: slots.first().copied(), taken, ..self }
    }
}

impl<'a> RequestObject<'a> {
    /// How an acquire of one lock wants it held.
    pub(super) fn want(&mut self) -> Result<Want, Wrong> {
        let fence = self.fence.take().unwrap_or_default();
        let (text, slots, take) = (self.mode.take(), self.slots.take(), self.take.take());
        want(mode(text.as_ref())?, slots, take, fence)
    }

    /// The locks of an acquire of several, in the order asked.
    pub(super) fn wants(&mut self) -> Result<Vec<(LockName, Want)>, Wrong> {
        let fence = self.fence.take().unwrap_or_default();
        let for_all = mode(self.mode.take().as_ref())?;
        let entries = self.locks.take().ok_or_else(|| missing("locks"))?;
        let wants = entries.into_iter().map(|entry| match entry {
            Entry::Name(Text(lock)) => Ok((name(&lock)?, want(for_all, None, None, fence)?)),
            Entry::Object(LockObject { lock: Text(lock), mode: text, slots, take }) => {
                let own = mode(text.as_ref())?;
                // The mode for all says nothing about a lock with slots.
                let mode = own.or(for_all.filter(|_| slots.is_none()));
                Ok((name(&lock)?, want(mode, slots, take, fence)?))
            }
        });
        let wants: Vec<_> = wants.collect::<Result<_, Wrong>>()?;
        check_names(wants.iter().map(|(lock, _)| lock))?;
        Ok(wants)
    }

    /// The locks of a release of several.
    pub(super) fn names(&mut self) -> Result<Vec<LockName>, Wrong> {
        let entries = self.locks.take().ok_or_else(|| missing("locks"))?;
        let names = entries.into_iter().map(|entry| match entry {
            Entry::Name(Text(lock)) => name(&lock),
            Entry::Object(_) => Err((ErrorWord::BadRequest, "\"locks\" of a release has names only".into())),
        });
        let names: Vec<_> = names.collect::<Result<_, Wrong>>()?;
        check_names(names.iter())?;
        Ok(names)
    }

    pub(super) fn acquire(lock: &'a LockName, want: Want, wait: Wait) -> Self {
        let LockObject { lock, mode, slots, take } = LockObject::new(lock, want);
        Self { lock: Some(lock), mode, slots, take, ..Self::new_acquire(want.fence, wait) }
    }

    pub(super) fn acquire_all(wants: &'a [(LockName, Want)], wait: Wait) -> Self {
        let locks = wants.iter().map(|(lock, want)| LockObject::new(lock, *want).entry()).collect();
        let fence = wants.iter().any(|(_, want)| want.fence);
        Self { locks: Some(locks), ..Self::new_acquire(fence, wait) }
    }

    /// An acquire of nothing yet.
    #[must_use]
    pub fn new_acquire(fence: bool, wait: Wait) -> Self {
        let (fence, wait_ms) = (fence.then_some(true), (wait != Wait::No).then_some(wait));
        Self { fence, wait_ms, ..Self::new("acquire") }
    }
}

impl<'a> LockObject<'a> {
    fn new(lock: &'a LockName, want: Want) -> Self {
        let (mode, slots, take) = match want.extent {
            Extent::Exclusive => (None, None, None),
            Extent::Shared => (Some("shared".into()), None, None),
            Extent::Slots { of, take } => (None, Some(of.into()), Some(take.into())),
        };
        Self { lock: lock.as_str().into(), mode, slots, take }
    }

    /// The short form, if the name says it all.
    #[must_use]
    pub fn entry(self) -> Entry<'a> {
        match self {
            Self { lock, mode: None, slots: None, take: None } => Entry::Name(lock),
            object => Entry::Object(object),
        }
    }
}

/// Checks that the names are neither too few nor too many, and that none occurs twice.
fn check_names<'a>(locks: impl ExactSizeIterator<Item = &'a LockName>) -> Result<(), Wrong> {
    let count = locks.len();
    if !(2..=LOCKS_PER_REQUEST_MAX).contains(&count) {
        let message = format!("\"locks\" has {count} entries; it can have 2 to {LOCKS_PER_REQUEST_MAX}");
        return Err((ErrorWord::BadRequest, message));
    }
    let mut sorted: Vec<_> = locks.collect();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err((ErrorWord::BadRequest, format!("\"locks\" has {} twice", pair[0]))),
        None => Ok(()),
    }
}

fn mode(text: Option<&Text<'_>>) -> Result<Option<Mode>, Wrong> {
    match text.map(|Text(mode)| &**mode) {
        None => Ok(None),
        Some("exclusive") => Ok(Some(Mode::Exclusive)),
        Some("shared") => Ok(Some(Mode::Shared)),
        Some(mode) => {
            let mode = shortened(mode);
            Err((ErrorWord::BadRequest, format!("\"mode\" is {mode:?}; it can be \"exclusive\" or \"shared\"")))
        }
    }
}

fn want(mode: Option<Mode>, slots: Option<u64>, take: Option<u64>, fence: bool) -> Result<Want, Wrong> {
    let refused = |message: String| Err((ErrorWord::BadRequest, message));
    let Some(slots) = slots else {
        return match take {
            Some(_) => refused("\"take\" is how many of the \"slots\", which are missing".into()),
            None => Ok(Want { fence, ..Want::from(mode.unwrap_or(Mode::Exclusive)) }),
        };
    };
    if mode.is_some() {
        return refused("a lock with \"slots\" has no \"mode\"".into());
    }
    let Some(of) = u16::try_from(slots).ok().filter(|of| (1..=SLOTS_MAX).contains(of)) else {
        return refused(format!("\"slots\" is {slots}; it can be 1 to {SLOTS_MAX}"));
    };
    let take = take.unwrap_or(1);
    match u16::try_from(take) {
        Ok(take) if (1..=of).contains(&take) => Ok(Want { extent: Extent::Slots { of, take }, fence }),
        _ => refused(format!("\"take\" is {take}; it can be 1 to {of}, the number of \"slots\"")),
    }
}
