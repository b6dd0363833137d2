//! Version 1 of the protocol: JSON objects (docs/protocol.md, chapters 2 to 7), written once for
//! both ends.
//!
//! | file | what it has |
//! |---|---|
//! | [`op`] | the table of ops: what each asks ([`Op`]), how it is read and written ([`RequestObject`]), the bodies of the replies |
//! | [`reply`] | the envelope of replies, refusals ([`Refusal`]), events ([`Event`]) |
//! | [`word`] | the words for errors and modes |
//! | [`id`] | ids, and text borrowed from a message |
//! | `plain` | a short way for what is asked and answered most often |
//!
//! The daemon reads strictly: [`decode`] makes a [`Request`] of an object, or a [`Rejected`] that
//! names what is wrong with it. It reads each object once, into [`RequestObject`], whose text stays
//! borrowed; serde's tagged enums would buffer the object and give less exact messages. The client
//! reads leniently: it ignores members and events that it does not know, and keeps words that it
//! does not know, since a newer daemon may have more.
//!
//! # Adding an op
//!
//! In the protocol, add it to the table in [`op`] (or to a file of its own there, if it is large):
//! the variant of [`Op`], its word, the two arms that read and write it, and the body of its reply.
//! In the daemon, answer it in `src/session/v1.rs`: the compiler points to the `match`. Describe it
//! in docs/protocol.md, chapter 3, with a test vector.

pub mod id;
pub mod op;
pub(crate) mod plain;
pub mod reply;
pub mod word;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};

pub use id::{Id, Text};
pub use op::acquire::{Entry, Grant, Grants, LockObject, Wait};
pub use op::hello::{Introduction, Welcome};
pub use op::look::{Listed, Listing, Peeked, SessionInfo};
pub use op::{Cancelled, Op, Pong, Request, RequestObject, Stamped};
pub use reply::{Done, Event, Head, Refusal, Reply};
pub use word::{ErrorWord, ModeWord};

/// The version that this module speaks.
pub const VERSION: u64 = 1;

/// A request that is refused before it means anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The request's id, as far as it could be read.
    pub id: Option<Id>,
    /// The word for programs.
    pub error: ErrorWord,
    /// The sentence for people.
    pub message: String,
}

/// What can still be read of a request that is refused.
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

/// Whether the bytes begin with an object that has the member `op`, which makes it a request of
/// this version.
#[must_use]
pub fn has_op(text: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Only {
        op: Option<IgnoredAny>,
    }
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    Only::deserialize(&mut deserializer).is_ok_and(|only| only.op.is_some())
}

/// Reads a request.
///
/// # Errors
/// A [`Rejected`] that names the member at fault.
pub fn decode(text: &[u8]) -> Result<Request, Rejected> {
    plain::decode(text).map_or_else(|| decode_by_serde(text), Ok)
}

fn decode_by_serde(text: &[u8]) -> Result<Request, Rejected> {
    match serde_json::from_slice::<RequestObject<'_>>(text) {
        Ok(object) => object.request(),
        Err(error) => Err(reject(text, &error)),
    }
}

fn reject(text: &[u8], error: &serde_json::Error) -> Rejected {
    let remains = serde_json::from_slice::<Remains<'_>>(text).unwrap_or(Remains { op: None, id: None });
    let (error, message) = match remains.op {
        Some(Text(op)) if !op::OPS.contains(&&*op) => (ErrorWord::UnknownOp, op::unknown(&op)),
        _ => (ErrorWord::BadRequest, op::shortened(&error.to_string())),
    };
    Rejected { id: remains.id, error, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::ID_NUMBER_MAX;
    use crate::name::LockName;
    use crate::want::{Extent, Mode, Want};

    fn lock(text: &str) -> LockName {
        LockName::parse(text.as_bytes()).unwrap()
    }

    fn refused(text: &str) -> (Option<Id>, ErrorWord, String) {
        let Rejected { id, error, message } = decode(text.as_bytes()).unwrap_err();
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
            (r#"{"op":"list","after":"x"}"#, None, Op::List { after: Some(lock("x")), all: false }),
            (r#"{"op":"list","all":true}"#, None, Op::List { after: None, all: true }),
            (r#"{"op":"peek","lock":"b","all":true}"#, None, Op::Peek { lock: lock("b"), all: true }),
            (r#"{"op":"peek","lock":"b"}"#, None, Op::Peek { lock: lock("b"), all: false }),
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
            (r#"{"id":4,"op":"acquire"}"#, ErrorWord::BadRequest, "\"lock\""),
            (r#"{"id":4,"op":"acquire","lock":"a","colour":4}"#, ErrorWord::BadRequest, "colour"),
            (r#"{"id":4,"op":"acquire","lock":"a","slots":0}"#, ErrorWord::BadRequest, "\"slots\""),
            (r#"{"id":4,"op":"acquire","lock":"a","slots":1025}"#, ErrorWord::BadRequest, "1024"),
            (r#"{"id":4,"op":"acquire","lock":"a","slots":2,"take":3}"#, ErrorWord::BadRequest, "\"take\""),
            (r#"{"id":4,"op":"acquire","lock":"a","take":1}"#, ErrorWord::BadRequest, "\"take\""),
            (r#"{"id":4,"op":"acquire","lock":"a","slots":2,"mode":"shared"}"#, ErrorWord::BadRequest, "\"mode\""),
            (r#"{"id":4,"op":"acquire","lock":"a","locks":["a","b"]}"#, ErrorWord::BadRequest, "\"lock\""),
            (r#"{"id":4,"op":"acquire","locks":["a","b"],"slots":2}"#, ErrorWord::BadRequest, "\"slots\""),
            (r#"{"id":4,"op":"acquire","locks":["a"]}"#, ErrorWord::BadRequest, "2 to 64"),
            (r#"{"id":4,"op":"acquire","locks":["a","b","a"]}"#, ErrorWord::BadRequest, "a twice"),
            (r#"{"id":4,"op":"acquire","locks":["a","b/"]}"#, ErrorWord::BadName, "'/'"),
            (r#"{"id":4,"op":"release","locks":["a",{"lock":"b"}]}"#, ErrorWord::BadRequest, "names only"),
            (r#"{"id":4,"op":"ping","lock":"a"}"#, ErrorWord::BadRequest, "\"lock\""),
            (r#"{"id":4,"op":"acquire","lock":"a","mode":"x"}"#, ErrorWord::BadRequest, "\"x\""),
            (r#"{"id":4,"op":"acquire","lock":"a","wait_ms":-1}"#, ErrorWord::BadRequest, "-1"),
            (r#"{"id":4,"op":"acquire","lock":"a","wait_ms":1.5}"#, ErrorWord::BadRequest, "1.5"),
            (r#"{"id":4,"op":"acquire","lock":"a","lock":"b"}"#, ErrorWord::BadRequest, "lock"),
            (r#"{"id":4,"op":"acquire","lock":"a/b"}"#, ErrorWord::BadName, "'/'"),
            (r#"{"id":4,"op":"fly","wings":2}"#, ErrorWord::UnknownOp, "fly"),
            (r#"{"id":4,"op":"hello","version":0}"#, ErrorWord::BadRequest, "version"),
            (r#"{"id":4,"op":"hello","pid":-1}"#, ErrorWord::BadRequest, "-1"),
            (r#"{"id":4,"op":"hello","host":"a\u0007b"}"#, ErrorWord::BadRequest, "\"host\""),
            (r#"{"id":4,"op":"ping","user":"joe"}"#, ErrorWord::BadRequest, "\"user\""),
        ] {
            let (id, word, message) = refused(text);
            assert_eq!((id, word), (four.clone(), error), "{text}");
            assert!(message.contains(part), "{text}: {message}");
        }
        for text in ["", "[]", "nonsense", "{", r#"{"id":1.5,"op":"ping"}"#, r#"{"id":9007199254740992,"op":"ping"}"#] {
            assert_eq!(refused(text).0, None, "{text}");
            assert_eq!(refused(text).1, ErrorWord::BadRequest, "{text}");
        }
        let deep = format!(r#"{{"op":"ping","lock":{}"#, "[".repeat(60_000));
        assert_eq!(refused(&deep).1, ErrorWord::BadRequest);
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
