//! The states of a name, apart from those of its file: whose turn it is ([`Turn`]), whether its
//! next try has to wait ([`Contention`]), and whether its file is kept for the next acquire
//! ([`Linger`]).

use crate::limits::{DISTURBED_MAX, DISTURBED_MS_MAX, LINGER_TICKS};

/// The daemon's turn with a name that it passes on among its own sessions, so that it does not keep
/// other daemons out.
///
/// ```text
///           lock passed on             timer
///   Rested ────────────────▶ Running ─────────▶ Over ──┐ unlocked, or slots given back
///    ▲ ▲ ▲                      │ unlocked       │     │ while sessions wait
///    │ │ └──── timer ─ Broken ◀─┘                │     ▼
///    │ └─ unlocked, and nobody waits ────────────┘   Yielding
///    └──────────────────────── timer ───────────────────┘
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Turn {
    /// No timer is armed.
    #[default]
    Rested,
    /// The lock is being passed on; the timer is armed.
    Running,
    /// The file was unlocked in the meantime, which gave others their chance; the timer is armed.
    Broken,
    /// The time is up: at the next release the file is unlocked although sessions wait.
    Over,
    /// Waiting sessions leave the file alone until the timer, which is armed, runs out.
    Yielding,
}

impl Turn {
    /// The lock is passed on. Returns whether a turn begins with that, whose timer has to be armed.
    #[must_use]
    pub(crate) fn pass_on(&mut self) -> bool {
        let begins = *self == Self::Rested;
        if begins {
            *self = Self::Running;
        }
        begins
    }

    /// The turn is over, and sessions wait: they leave the file to others for a while. The timer
    /// has to be armed.
    pub(crate) fn give_way(&mut self) {
        assert_eq!(*self, Self::Over, "only a turn that is over gives way");
        *self = Self::Yielding;
    }

    /// The file was unlocked, and nobody has to give way.
    pub(crate) fn unlocked(&mut self) {
        *self = match *self {
            Self::Running => Self::Broken,
            Self::Over => Self::Rested,
            turn => turn,
        };
    }

    /// The timer has run out; a late one changes nothing.
    pub(crate) fn elapsed(&mut self) {
        *self = match *self {
            Self::Running | Self::Over => Self::Over,
            Self::Rested | Self::Broken | Self::Yielding => Self::Rested,
        };
    }
}

/// Whether the next try for a name has to wait, and what the last ones met.
///
/// ```text
///                  refused   disturbed        due        undisturbed
///   Clear          Refused   Disturbed(1)     Clear      Clear
///   Refused        Refused   Disturbed(1)     Clear      Refused
///   Disturbed(n)   Refused   Disturbed(n+1)   Again(n)   Refused
///   Again(n)       Refused   Disturbed(n+1)   Again(n)   Clear
/// ```
///
/// Every state becomes `Clear` once slots were taken or given back, or a request disagreed.
///
/// A name is *due* when a timer sweeps the contended names, when word comes from another daemon, or
/// when nobody waits any more. It is *undisturbed* when another operation on the file completes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Contention {
    /// A try may be made at once.
    #[default]
    Clear,
    /// A try was refused: waiting sessions wait for the next sweep of the contended names, or for
    /// word.
    Refused,
    /// The last tries met a process that deletes the file, not one that holds the lock: they wait
    /// for the next sweep.
    Disturbed(Disturbance),
    /// The same, and a try may be made at once.
    Again(Disturbance),
}

/// Tries in a row that met a process which deletes the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Disturbance {
    tries: u8,
    /// When the first of them did.
    since_ms: u64,
}

impl Contention {
    /// Whether the next try waits.
    pub(crate) fn is_contended(self) -> bool {
        matches!(self, Self::Refused | Self::Disturbed(_))
    }

    /// Whether the last try met a process that deletes the file.
    pub(crate) fn is_disturbed(self) -> bool {
        matches!(self, Self::Disturbed(_) | Self::Again(_))
    }

    /// The next try may be made.
    pub(crate) fn due(&mut self) {
        *self = match *self {
            Self::Refused => Self::Clear,
            Self::Disturbed(disturbance) => Self::Again(disturbance),
            contention => contention,
        };
    }

    /// A try met a process that deletes the file. Returns whether that has gone on for too long.
    #[must_use]
    pub(crate) fn disturbed(&mut self, now_ms: u64) -> bool {
        let mut disturbance = match *self {
            Self::Clear | Self::Refused => Disturbance { tries: 0, since_ms: now_ms },
            Self::Disturbed(disturbance) | Self::Again(disturbance) => disturbance,
        };
        disturbance.tries = (disturbance.tries + 1).min(DISTURBED_MAX + 1);
        *self = Self::Disturbed(disturbance);
        disturbance.tries > DISTURBED_MAX && disturbance.since_ms + DISTURBED_MS_MAX <= now_ms
    }

    /// An operation on the file has shown that nobody deletes it.
    pub(crate) fn undisturbed(&mut self) {
        *self = match *self {
            Self::Disturbed(_) => Self::Refused,
            Self::Again(_) => Self::Clear,
            contention => contention,
        };
    }
}

/// Whether the name is in the engine's queue of lingering files; and the file's age, in ticks
/// of the linger timer since it was last used.
///
/// ```text
///                idle
///   Unlisted ─────────────▶ Listed ──┐ tick: older, but within the linger
///       ▲                     │  ▲───┘
///       └── too old, in use, or no room
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Linger {
    Unlisted { age: u8 },
    Listed { age: u8 },
}

impl Default for Linger {
    fn default() -> Self {
        Self::Unlisted { age: 0 }
    }
}

impl Linger {
    pub(crate) fn is_listed(self) -> bool {
        matches!(self, Self::Listed { .. })
    }

    /// The name joins the queue.
    pub(crate) fn list(&mut self) {
        let Self::Unlisted { age } = *self else { panic!("a name is in the linger queue only once") };
        *self = Self::Listed { age };
    }

    /// The name has left the queue.
    pub(crate) fn unlist(&mut self) {
        let Self::Listed { age } = *self else { panic!("only a listed name leaves the linger queue") };
        *self = Self::Unlisted { age };
    }

    /// The file was used.
    pub(crate) fn used(&mut self) {
        let (Self::Unlisted { age } | Self::Listed { age }) = self;
        *age = 0;
    }

    /// A tick of the timer. Returns whether an idle file may stay.
    #[must_use]
    pub(crate) fn tick(&mut self) -> bool {
        let Self::Listed { age } = self else { panic!("only listed names grow older") };
        *age = age.saturating_add(1);
        *age <= LINGER_TICKS
    }
}
