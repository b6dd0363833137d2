//! Version 1 of the protocol: JSON objects (docs/protocol.md, chapters 2 to 7). [`decode`] makes a [`Request`] of an object,
//! or a [`Refusal`] that names what is wrong with it; [`Reply`] and [`Event`] are what goes back.

mod hello;
mod reply;
mod wants;

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserializer, IgnoredAny, Visitor};
use serde::{Deserialize, Serialize};

use crate::limits::{ID_BYTES_MAX, ID_NUMBER_MAX};
use crate::name::LockName;
use crate::want::Want;
pub use hello::Introduction;
pub use reply::{Event, Grant, Listed, Listing, Look, Reply, Seen, Welcome, slots, word};
use wants::Entry;

/// The version that this module speaks.
pub const VERSION: u64 = 1;

/// A request's own name for itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
pub enum Id {
    /// A whole number up to 2^53-1.
    Number(u64),
    /// A text of at most 64 bytes.
    Text(Box<str>),
}

/// A valid request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What its reply will carry.
    pub id: Option<Id>,
    /// What is asked.
    pub op: Op,
}

/// What a request asks (docs/protocol.md, chapter 3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Introduce the session.
    Hello(Box<Introduction>),
    /// Take a lock.
    Acquire {
        /// Which.
        lock: LockName,
        /// How.
        want: Want,
        /// How long to wait for it.
        wait: Wait,
    },
    /// Take several locks, or none.
    AcquireAll {
        /// Which, and how, in the order asked; none is there twice.
        wants: Vec<(LockName, Want)>,
        /// How long to wait for them.
        wait: Wait,
    },
    /// Give a lock back.
    Release(LockName),
    /// Give several locks back.
    ReleaseAll(Vec<LockName>),
    /// Is my lock real?
    Verify(LockName),
    /// Who holds a lock?
    Peek(LockName),
    /// End the wait of a request.
    Cancel(Id),
    /// Who holds what, from the first name after this one?
    List(Option<LockName>),
    /// Are you there?
    Ping,
    /// Release everything and close.
    Bye,
}

/// How long an acquire waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    #[default]
    No,
    /// At most so many milliseconds.
    Millis(u64),
    /// Until it is granted, cancelled, or the session ends.
    NoLimit,
}

/// The words of docs/protocol.md, chapter 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the protocol's chapter 5 says what each word means")]
pub enum Error {
    Busy,
    Timeout,
    Cancelled,
    NotHeld,
    BadName,
    BadRequest,
    UnknownOp,
    Limit,
    Mismatch,
    Deadlock,
    Lost,
    Storage,
    Closing,
}

/// A request is refused: part of the protocol, always answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The request's id, as far as it could be read.
    pub id: Option<Id>,
    /// The word for programs.
    pub error: Error,
    /// The sentence for people.
    pub message: String,
}

/// A text member: borrowed from the request where it has no escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Of;
        impl<'de> Visitor<'de> for Of {
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
        deserializer.deserialize_str(Of)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Of;
        impl Visitor<'_> for Of {
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
        deserializer.deserialize_any(Of)
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

/// A request's members, before it is known whether they fit together. `wait_ms` is there even when it is `null`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Members<'a> {
    #[serde(borrow)]
    op: Text<'a>,
    id: Option<Id>,
    lock: Option<Text<'a>>,
    locks: Option<Vec<Entry<'a>>>,
    mode: Option<Text<'a>>,
    slots: Option<u64>,
    take: Option<u64>,
    fence: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    wait_ms: Option<Wait>,
    version: Option<u64>,
    name: Option<Text<'a>>,
    note: Option<Text<'a>>,
    host: Option<Text<'a>>,
    pid: Option<u32>,
    command: Option<Text<'a>>,
    user: Option<Text<'a>>,
    request: Option<Id>,
    after: Option<Text<'a>>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Wait>, D::Error> {
    Wait::deserialize(deserializer).map(Some)
}

/// What can be read of a request that is refused.
#[derive(Deserialize)]
struct Remains<'a> {
    #[serde(borrow)]
    op: Option<Text<'a>>,
    #[serde(default, deserialize_with = "id_or_other")]
    id: Option<Id>,
}

fn id_or_other<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Id>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Id(Id),
        Other(IgnoredAny),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::Id(id) => Some(id),
        Either::Other(_) => None,
    })
}

const OPS: [&str; 9] = ["hello", "acquire", "release", "verify", "peek", "cancel", "list", "ping", "bye"];

/// Whether the bytes begin with an object that has the member `op`, which makes it a request of this version.
#[must_use]
pub fn has_op(text: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Only {
        op: Option<IgnoredAny>,
    }
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    Only::deserialize(&mut deserializer).is_ok_and(|only| only.op.is_some())
}

/// Takes an object.
///
/// # Errors
/// A [`Refusal`] that names the member at fault.
pub fn decode(text: &[u8]) -> Result<Request, Refusal> {
    match serde_json::from_slice::<Members<'_>>(text) {
        Ok(members) => members.request(),
        Err(error) => Err(refuse(text, &error)),
    }
}

fn refuse(text: &[u8], error: &serde_json::Error) -> Refusal {
    let remains = serde_json::from_slice::<Remains<'_>>(text).unwrap_or(Remains { op: None, id: None });
    let (error, message) = match remains.op {
        Some(Text(op)) if !OPS.contains(&&*op) => (Error::UnknownOp, unknown(&op)),
        _ => (Error::BadRequest, shortened(&error.to_string())),
    };
    Refusal { id: remains.id, error, message }
}

fn unknown(op: &str) -> String {
    format!("{:?} is no op of version {VERSION}; it has {}", shortened(op), OPS.join(", "))
}

/// A message quotes the request; it does not echo all of it.
fn shortened(message: &str) -> String {
    const CHARS_MAX: usize = 200;
    let mut short: String = message.chars().take(CHARS_MAX).collect();
    if short.len() < message.len() {
        short.push('\u{2026}');
    }
    short
}

impl Members<'_> {
    fn request(mut self) -> Result<Request, Refusal> {
        let id = self.id.take();
        match self.op() {
            Ok(op) => Ok(Request { id, op }),
            Err((error, message)) => Err(Refusal { id, error, message }),
        }
    }

    fn op(&mut self) -> Result<Op, (Error, String)> {
        let op = std::mem::replace(&mut self.op, Text(Cow::Borrowed(""))).0;
        let request = match &*op {
            "hello" => self.hello()?,
            "acquire" => {
                let wait = self.wait_ms.take().unwrap_or_default();
                match self.locks {
                    Some(_) => Op::AcquireAll { wants: self.wants()?, wait },
                    None => Op::Acquire { lock: self.lock()?, want: self.want()?, wait },
                }
            }
            "release" if self.locks.is_some() => Op::ReleaseAll(self.names()?),
            "release" => Op::Release(self.lock()?),
            "verify" => Op::Verify(self.lock()?),
            "peek" => Op::Peek(self.lock()?),
            "cancel" => Op::Cancel(self.request.take().ok_or_else(|| missing("request"))?),
            "list" => Op::List(self.after.take().map(|Text(after)| name(&after)).transpose()?),
            "ping" => Op::Ping,
            "bye" => Op::Bye,
            op => return Err((Error::UnknownOp, unknown(op))),
        };
        match self.left_over() {
            Some(member) => Err((Error::BadRequest, format!("{op} has no member \"{member}\""))),
            None => Ok(request),
        }
    }

    fn lock(&mut self) -> Result<LockName, (Error, String)> {
        let Text(lock) = self.lock.take().ok_or_else(|| missing("lock"))?;
        name(&lock)
    }

    /// A member that the op has no use for: refused, since ignoring it might not be what was meant.
    fn left_over(&self) -> Option<&'static str> {
        [
            ("lock", self.lock.is_some()),
            ("locks", self.locks.is_some()),
            ("mode", self.mode.is_some()),
            ("slots", self.slots.is_some()),
            ("take", self.take.is_some()),
            ("fence", self.fence.is_some()),
            ("wait_ms", self.wait_ms.is_some()),
            ("version", self.version.is_some()),
            ("name", self.name.is_some()),
            ("note", self.note.is_some()),
            ("host", self.host.is_some()),
            ("pid", self.pid.is_some()),
            ("command", self.command.is_some()),
            ("user", self.user.is_some()),
            ("request", self.request.is_some()),
            ("after", self.after.is_some()),
        ]
        .into_iter()
        .find_map(|(member, there)| there.then_some(member))
    }
}

fn missing(member: &str) -> (Error, String) {
    (Error::BadRequest, format!("the member \"{member}\" is missing"))
}

fn name(text: &str) -> Result<LockName, (Error, String)> {
    LockName::parse(text.as_bytes()).map_err(|bad| (Error::BadName, bad.to_string()))
}

fn limited(member: &str, text: Option<Text<'_>>, bytes_max: usize) -> Result<Option<Box<str>>, (Error, String)> {
    match text {
        Some(Text(text)) if text.len() > bytes_max => {
            Err((Error::BadRequest, format!("\"{member}\" has {} bytes; at most {bytes_max} are kept", text.len())))
        }
        // They are shown to others, on terminals as well.
        Some(Text(text)) if text.chars().any(char::is_control) => {
            Err((Error::BadRequest, format!("\"{member}\" has a control character; only printable text is kept")))
        }
        text => Ok(text.map(|Text(text)| text.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::want::{Extent, Mode};

    fn lock(text: &str) -> LockName {
        LockName::parse(text.as_bytes()).unwrap()
    }

    fn refused(text: &str) -> (Option<Id>, Error, String) {
        let Refusal { id, error, message } = decode(text.as_bytes()).unwrap_err();
        (id, error, message)
    }

    /// The requests of DESIGN's and the protocol's examples.
    #[test]
    fn requests_are_understood() {
        let number = |n| Some(Id::Number(n));
        for (text, id, op) in [
            (r#"{"op":"ping"}"#, None, Op::Ping),
            (r#"{"id":7,"op":"bye"}"#, number(7), Op::Bye),
            (r#"{"id":"\u0061","op":"verify","lock":"b"}"#, Some(Id::Text("a".into())), Op::Verify(lock("b"))),
            (r#"{"id":5,"op":"cancel","request":4}"#, number(5), Op::Cancel(Id::Number(4))),
            (r#"{"op":"list","after":"x"}"#, None, Op::List(Some(lock("x")))),
        ] {
            assert_eq!(decode(text.as_bytes()), Ok(Request { id, op }), "{text}");
        }
        for (member, wait) in [
            ("", Wait::No),
            (r#","wait_ms":0"#, Wait::No),
            (r#","wait_ms":5000"#, Wait::Millis(5000)),
            (r#","wait_ms":null"#, Wait::NoLimit),
        ] {
            let text = format!(r#"{{"id":1,"op":"acquire","lock":"b","mode":"shared"{member}}}"#);
            let op = Op::Acquire { lock: lock("b"), want: Mode::Shared.into(), wait };
            assert_eq!(decode(text.as_bytes()), Ok(Request { id: number(1), op }), "{text}");
        }
    }

    /// Slots, fences, and several locks with what is for all of them and what is for one.
    #[test]
    fn wants_are_understood() {
        let slots = |of, take| Want { extent: Extent::Slots { of, take }, fence: true };
        let text = br#"{"op":"acquire","lock":"g","slots":4,"take":2,"fence":true}"#;
        let op = Op::Acquire { lock: lock("g"), want: slots(4, 2), wait: Wait::No };
        assert_eq!(decode(text), Ok(Request { id: None, op }));
        let text = br#"{"op":"acquire","locks":["b",{"lock":"a","mode":"exclusive"},{"lock":"g","slots":1}],"mode":"shared","fence":true}"#;
        let plain = |mode: Mode| Want { extent: mode.into(), fence: true };
        let wants =
            vec![(lock("b"), plain(Mode::Shared)), (lock("a"), plain(Mode::Exclusive)), (lock("g"), slots(1, 1))];
        assert_eq!(decode(text), Ok(Request { id: None, op: Op::AcquireAll { wants, wait: Wait::No } }));
        let op = Op::ReleaseAll(vec![lock("b"), lock("a")]);
        assert_eq!(decode(br#"{"op":"release","locks":["b","a"]}"#), Ok(Request { id: None, op }));
    }

    /// Every refusal carries the id if it can be read, and names the member.
    #[test]
    fn refusals_name_the_member() {
        let four = Some(Id::Number(4));
        for (text, error, part) in [
            (r#"{"id":4,"op":"acquire"}"#, Error::BadRequest, "\"lock\""),
            (r#"{"id":4,"op":"acquire","lock":"a","colour":4}"#, Error::BadRequest, "colour"),
            (r#"{"id":4,"op":"acquire","lock":"a","slots":0}"#, Error::BadRequest, "\"slots\""),
            (r#"{"id":4,"op":"acquire","lock":"a","slots":1025}"#, Error::BadRequest, "1024"),
            (r#"{"id":4,"op":"acquire","lock":"a","slots":2,"take":3}"#, Error::BadRequest, "\"take\""),
            (r#"{"id":4,"op":"acquire","lock":"a","take":1}"#, Error::BadRequest, "\"take\""),
            (r#"{"id":4,"op":"acquire","lock":"a","slots":2,"mode":"shared"}"#, Error::BadRequest, "\"mode\""),
            (r#"{"id":4,"op":"acquire","lock":"a","locks":["a","b"]}"#, Error::BadRequest, "\"lock\""),
            (r#"{"id":4,"op":"acquire","locks":["a","b"],"slots":2}"#, Error::BadRequest, "\"slots\""),
            (r#"{"id":4,"op":"acquire","locks":["a"]}"#, Error::BadRequest, "2 to 64"),
            (r#"{"id":4,"op":"acquire","locks":["a","b","a"]}"#, Error::BadRequest, "a twice"),
            (r#"{"id":4,"op":"acquire","locks":["a","b/"]}"#, Error::BadName, "'/'"),
            (r#"{"id":4,"op":"release","locks":["a",{"lock":"b"}]}"#, Error::BadRequest, "names only"),
            (r#"{"id":4,"op":"ping","lock":"a"}"#, Error::BadRequest, "\"lock\""),
            (r#"{"id":4,"op":"acquire","lock":"a","mode":"x"}"#, Error::BadRequest, "\"x\""),
            (r#"{"id":4,"op":"acquire","lock":"a","wait_ms":-1}"#, Error::BadRequest, "-1"),
            (r#"{"id":4,"op":"acquire","lock":"a","wait_ms":1.5}"#, Error::BadRequest, "1.5"),
            (r#"{"id":4,"op":"acquire","lock":"a","lock":"b"}"#, Error::BadRequest, "lock"),
            (r#"{"id":4,"op":"acquire","lock":"a/b"}"#, Error::BadName, "'/'"),
            (r#"{"id":4,"op":"fly","wings":2}"#, Error::UnknownOp, "fly"),
            (r#"{"id":4,"op":"hello","version":0}"#, Error::BadRequest, "version"),
            (r#"{"id":4,"op":"hello","pid":-1}"#, Error::BadRequest, "-1"),
            (r#"{"id":4,"op":"hello","host":"a\u0007b"}"#, Error::BadRequest, "\"host\""),
            (r#"{"id":4,"op":"ping","user":"joe"}"#, Error::BadRequest, "\"user\""),
        ] {
            let (id, word, message) = refused(text);
            assert_eq!((id, word), (four.clone(), error), "{text}");
            assert!(message.contains(part), "{text}: {message}");
        }
        for text in ["", "[]", "nonsense", "{", r#"{"id":1.5,"op":"ping"}"#, r#"{"id":9007199254740992,"op":"ping"}"#] {
            assert_eq!(refused(text).0, None, "{text}");
            assert_eq!(refused(text).1, Error::BadRequest, "{text}");
        }
        let deep = format!(r#"{{"op":"ping","lock":{}"#, "[".repeat(60_000));
        assert_eq!(refused(&deep).1, Error::BadRequest);
        let long = format!(r#"{{"op":"{}"}}"#, "x".repeat(60_000));
        assert!(refused(&long).2.len() < 1000, "a message quotes the request; it does not echo all of it");
    }

    proptest::proptest! {
        /// No bytes make it panic.
        #[test]
        fn any_bytes(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }

        /// A valid request comes back as it went out.
        #[test]
        fn round_trip(id in 0..=ID_NUMBER_MAX, name in "[A-Za-z0-9._-]{1,251}", wait in 1_u64..) {
            let text = serde_json::json!({"id": id, "op": "acquire", "lock": name, "wait_ms": wait}).to_string();
            let want = Mode::Exclusive.into();
            let op = Op::Acquire { lock: lock(&name), want, wait: Wait::Millis(wait) };
            proptest::prop_assert_eq!(decode(text.as_bytes()), Ok(Request { id: Some(Id::Number(id)), op }));
        }
    }
}
