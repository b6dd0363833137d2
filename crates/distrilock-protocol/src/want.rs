//! How a lock is held, and what an acquire asks for.

use serde::{Deserialize, Serialize};

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// Beside other shared holders.
    Shared,
    /// With one or several of so many slots, beside others who hold other slots of the same number.
    Slots(u16),
    /// Alone.
    Exclusive,
}

impl Mode {
    /// Whether a name cannot be in both modes, ever: it is shared, or has slots, and so many.
    #[must_use]
    pub fn disagrees_with(self, other: Self) -> bool {
        self != other && self != Self::Exclusive && other != Self::Exclusive
    }
}

/// What an acquire asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Want {
    /// How the lock is to be held.
    pub mode: Mode,
    /// How many slots, in [`Mode::Slots`]; else 0.
    pub take: u16,
    /// Whether the grant is to carry a fence.
    pub fence: bool,
}

impl From<Mode> for Want {
    fn from(mode: Mode) -> Self {
        Self { mode, take: u16::from(matches!(mode, Mode::Slots(_))), fence: false }
    }
}
