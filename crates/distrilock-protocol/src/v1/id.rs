//! The two kinds of values that a request's members share: its id, and text borrowed from it.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

use crate::limits::{ID_BYTES_MAX, ID_NUMBER_MAX};

/// A request's own name for itself; its reply repeats it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
pub enum Id {
    /// A whole number up to 2^53-1.
    Number(u64),
    /// A text of at most 64 bytes.
    Text(Box<str>),
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IdVisitor;
        impl Visitor<'_> for IdVisitor {
            type Value = Id;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an id: a whole number up to {ID_NUMBER_MAX}, or a text of at most {ID_BYTES_MAX} bytes")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Id, E> {
                if number <= ID_NUMBER_MAX {
                    Ok(Id::Number(number))
                } else {
                    Err(E::invalid_value(de::Unexpected::Unsigned(number), &self))
                }
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Id, E> {
                if text.len() <= ID_BYTES_MAX {
                    Ok(Id::Text(text.into()))
                } else {
                    Err(E::invalid_length(text.len(), &self))
                }
            }
        }
        deserializer.deserialize_any(IdVisitor)
    }
}

/// A text member, borrowed from the message unless it has escapes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Text<'a>(pub Cow<'a, str>);

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}
