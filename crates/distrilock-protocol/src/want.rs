//! How a lock is held, and what an acquire asks for.

use serde::{Deserialize, Serialize};

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// Together with other shared holders.
    Shared,
    /// As a lock with this many slots. Each holder has its own slots.
    Slots(u16),
    /// Alone.
    Exclusive,
}

impl Mode {
    /// Whether a name can never be in both modes. A name is either shared or has a fixed number of
    /// slots.
    #[must_use]
    pub fn disagrees_with(self, other: Self) -> bool {
        self != other && self != Self::Exclusive && other != Self::Exclusive
    }
}

/// How much of a lock an acquire asks for, or a session holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extent {
    /// All of it, together with other shared holders.
    Shared,
    /// Some of its slots.
    Slots {
        /// How many slots the lock has.
        of: u16,
        /// How many of them to take.
        take: u16,
    },
    /// All of it, alone.
    Exclusive,
}

impl Extent {
    /// The mode in which a lock is held to this extent.
    #[must_use]
    pub fn mode(self) -> Mode {
        match self {
            Self::Shared => Mode::Shared,
            Self::Slots { of, .. } => Mode::Slots(of),
            Self::Exclusive => Mode::Exclusive,
        }
    }

    /// The number of slots; 0 if the lock has none.
    #[must_use]
    pub fn slots(self) -> u16 {
        match self {
            Self::Slots { take, .. } => take,
            Self::Shared | Self::Exclusive => 0,
        }
    }

    /// The extent for this mode; `take` is the number of slots and is ignored in other modes.
    #[must_use]
    pub fn new(mode: Mode, take: u16) -> Self {
        match mode {
            Mode::Shared => Self::Shared,
            Mode::Slots(of) => Self::Slots { of, take },
            Mode::Exclusive => Self::Exclusive,
        }
    }
}

/// One slot if the lock has slots; otherwise all of the lock.
impl From<Mode> for Extent {
    fn from(mode: Mode) -> Self {
        Self::new(mode, 1)
    }
}

/// What an acquire asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Want {
    /// How much of the lock.
    pub extent: Extent,
    /// Whether the grant should carry a fence.
    pub fence: bool,
}

impl Want {
    /// The mode in which the lock would be held.
    #[must_use]
    pub fn mode(self) -> Mode {
        self.extent.mode()
    }
}

impl From<Mode> for Want {
    fn from(mode: Mode) -> Self {
        Self { extent: mode.into(), fence: false }
    }
}

/// A [`Want`] in the form in which one process of the daemon hands it to the next.
#[derive(Serialize, Deserialize)]
struct Written {
    mode: Mode,
    /// 0 unless the mode has slots.
    take: u16,
    fence: bool,
}

impl From<Want> for Written {
    fn from(Want { extent, fence }: Want) -> Self {
        Self { mode: extent.mode(), take: extent.slots(), fence }
    }
}

impl From<Written> for Want {
    fn from(Written { mode, take, fence }: Written) -> Self {
        Self { extent: Extent::new(mode, take), fence }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The next process of the daemon, which may be another version, can read what this one writes.
    #[test]
    fn the_text_handed_over() {
        for (extent, text) in [
            (Extent::Exclusive, r#"{"mode":"Exclusive","take":0,"fence":true}"#),
            (Extent::Shared, r#"{"mode":"Shared","take":0,"fence":true}"#),
            (Extent::Slots { of: 4, take: 2 }, r#"{"mode":{"Slots":4},"take":2,"fence":true}"#),
        ] {
            let want = Want { extent, fence: true };
            assert_eq!(serde_json::to_string(&want).unwrap(), text);
            assert_eq!(serde_json::from_str::<Want>(text).unwrap(), want);
        }
    }
}
