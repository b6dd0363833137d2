//! What an acquire wants: how each of its locks is to be held.

use serde::Deserialize;

use super::{Error, Members, Text, missing, name, shortened};
use crate::limits::{LOCKS_PER_REQUEST_MAX, SLOTS_MAX};
use crate::name::LockName;
use crate::want::{Extent, Mode, Want};

type Refused = (Error, String);

/// A lock among several: its name, or an object that says more.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Entry<'a> {
    #[serde(borrow)]
    Name(Text<'a>),
    More(Details<'a>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Details<'a> {
    #[serde(borrow)]
    lock: Text<'a>,
    mode: Option<Text<'a>>,
    slots: Option<u64>,
    take: Option<u64>,
}

impl Members<'_> {
    /// What an acquire of one lock wants.
    pub(super) fn want(&mut self) -> Result<Want, Refused> {
        let fence = self.fence.take().unwrap_or_default();
        let (text, slots, take) = (self.mode.take(), self.slots.take(), self.take.take());
        want(mode(text.as_ref())?, slots, take, fence)
    }

    /// The locks of an acquire of several, in the order asked.
    pub(super) fn wants(&mut self) -> Result<Vec<(LockName, Want)>, Refused> {
        let fence = self.fence.take().unwrap_or_default();
        let for_all = mode(self.mode.take().as_ref())?;
        let entries = self.locks.take().ok_or_else(|| missing("locks"))?;
        let wants = entries.into_iter().map(|entry| match entry {
            Entry::Name(Text(lock)) => Ok((name(&lock)?, want(for_all, None, None, fence)?)),
            Entry::More(Details { lock: Text(lock), mode: text, slots, take }) => {
                let own = mode(text.as_ref())?;
                // The mode for all says nothing about a lock with slots.
                let mode = own.or(for_all.filter(|_| slots.is_none()));
                Ok((name(&lock)?, want(mode, slots, take, fence)?))
            }
        });
        let wants: Vec<_> = wants.collect::<Result<_, Refused>>()?;
        several(wants.iter().map(|(lock, _)| lock))?;
        Ok(wants)
    }

    /// The locks of a release of several.
    pub(super) fn names(&mut self) -> Result<Vec<LockName>, Refused> {
        let entries = self.locks.take().ok_or_else(|| missing("locks"))?;
        let names = entries.into_iter().map(|entry| match entry {
            Entry::Name(Text(lock)) => name(&lock),
            Entry::More(_) => Err((Error::BadRequest, "\"locks\" of a release has names only".into())),
        });
        let names: Vec<_> = names.collect::<Result<_, Refused>>()?;
        several(names.iter())?;
        Ok(names)
    }
}

/// Checks that there are not too few, not too many, and none twice.
fn several<'a>(locks: impl ExactSizeIterator<Item = &'a LockName>) -> Result<(), Refused> {
    let count = locks.len();
    if !(2..=LOCKS_PER_REQUEST_MAX).contains(&count) {
        let message = format!("\"locks\" has {count} entries; it can have 2 to {LOCKS_PER_REQUEST_MAX}");
        return Err((Error::BadRequest, message));
    }
    let mut sorted: Vec<_> = locks.collect();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err((Error::BadRequest, format!("\"locks\" has {} twice", pair[0]))),
        None => Ok(()),
    }
}

fn mode(text: Option<&Text<'_>>) -> Result<Option<Mode>, Refused> {
    match text.map(|Text(mode)| &**mode) {
        None => Ok(None),
        Some("exclusive") => Ok(Some(Mode::Exclusive)),
        Some("shared") => Ok(Some(Mode::Shared)),
        Some(mode) => {
            let mode = shortened(mode);
            Err((Error::BadRequest, format!("\"mode\" is {mode:?}; it can be \"exclusive\" or \"shared\"")))
        }
    }
}

fn want(mode: Option<Mode>, slots: Option<u64>, take: Option<u64>, fence: bool) -> Result<Want, Refused> {
    let refused = |message: String| Err((Error::BadRequest, message));
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
