//! The words of the protocol, as open enums: a daemon writes the ones listed here, and a client
//! keeps a word it does not know, since a newer daemon may have more.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::want::Mode;

macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
            /// A word that this version does not know.
            Other(Box<str>),
        }

        impl $name {
            /// The word as it is written.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $word,)*
                    Self::Other(word) => word,
                }
            }
        }

        impl From<&str> for $name {
            fn from(word: &str) -> Self {
                match word {
                    $($word => Self::$variant,)*
                    word => Self::Other(word.into()),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, word: &str) -> bool {
                self.as_str() == word
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, word: &&str) -> bool {
                self.as_str() == *word
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Ok(Self::from(&*Cow::<str>::deserialize(deserializer)?))
            }
        }
    };
}

words! {
    /// Why a request was refused, for programs (docs/protocol.md, chapter 5).
    ErrorWord {
        /// Another session or another process holds the lock, or others wait for it.
        Busy = "busy",
        /// The wait took as long as it was allowed to.
        Timeout = "timeout",
        /// A `cancel` ended the wait.
        Cancelled = "cancelled",
        /// This session does not hold the lock.
        NotHeld = "not_held",
        /// The name is not a lock name.
        BadName = "bad_name",
        /// The object is not a valid request.
        BadRequest = "bad_request",
        /// The daemon does not know the op.
        UnknownOp = "unknown_op",
        /// A limit of docs/protocol.md, chapter 7.
        Limit = "limit",
        /// The lock is held in another mode, or with another number of slots.
        Mismatch = "mismatch",
        /// The wait would close a cycle of sessions that wait for each other.
        Deadlock = "deadlock",
        /// The lock was held, but is not real any more.
        Lost = "lost",
        /// The lock directory failed.
        Storage = "storage",
        /// Reserved for access control.
        Denied = "denied",
        /// The daemon is stopping.
        Closing = "closing",
    }
}

words! {
    /// How a lock is held or asked for.
    ModeWord {
        /// By one session alone.
        Exclusive = "exclusive",
        /// Together with other sessions that share it.
        Shared = "shared",
        /// With one or more of its slots.
        Slots = "slots",
    }
}

impl From<Mode> for ModeWord {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Exclusive => Self::Exclusive,
            Mode::Shared => Self::Shared,
            Mode::Slots(_) => Self::Slots,
        }
    }
}

impl Default for ModeWord {
    fn default() -> Self {
        Self::from("")
    }
}
