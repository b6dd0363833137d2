//! A short way for what is asked and answered most often. A request in plain form has only the
//! members `id`, `op`, `lock` and `wait_ms`, and neither escapes nor large numbers; the reply to it
//! has only a name. Everything else goes through serde, and both ways agree on what is plain.

use super::{Id, Op, Request, Wait};
use crate::name::LockName;
use crate::want::Mode;

/// So many digits make no number that is too large for an id (RFC 8259, section 6).
const DIGITS_MAX: usize = 15;

/// What has been read of a request.
#[derive(Default)]
struct Members<'a> {
    id: Option<u64>,
    op: Option<&'a [u8]>,
    lock: Option<&'a [u8]>,
    wait_ms: Option<u64>,
}

/// Reads a request in plain form; `None` says nothing about the others.
pub(super) fn decode(text: &[u8]) -> Option<Request> {
    let mut rest = Rest(text);
    let mut members = Members::default();
    rest.take(b'{')?;
    loop {
        let key = rest.word()?;
        rest.take(b':')?;
        match key {
            b"id" if members.id.is_none() => members.id = Some(rest.number()?),
            b"op" if members.op.is_none() => members.op = Some(rest.word()?),
            b"lock" if members.lock.is_none() => members.lock = Some(rest.word()?),
            b"wait_ms" if members.wait_ms.is_none() => members.wait_ms = Some(rest.number()?),
            _ => return None,
        }
        if rest.take(b',').is_none() {
            break;
        }
    }
    rest.take(b'}')?;
    if !rest.0.is_empty() {
        return None;
    }
    let lock = || LockName::parse(members.lock?).ok();
    let op = match (members.op?, members.wait_ms) {
        (b"acquire", wait_ms) => {
            let wait = wait_ms.filter(|millis| *millis > 0).map_or(Wait::No, Wait::Millis);
            Op::Acquire { lock: lock()?, want: Mode::Exclusive.into(), wait }
        }
        (b"release", None) => Op::Release(lock()?),
        (b"verify", None) => Op::Verify(lock()?),
        (b"ping", None) if members.lock.is_none() => Op::Ping,
        _ => return None,
    };
    Some(Request { id: members.id.map(Id::Number), op })
}

/// What has not been read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    /// Takes this sign, and a space after it.
    fn take(&mut self, sign: u8) -> Option<()> {
        let [first, rest @ ..] = self.0 else { return None };
        if *first != sign {
            return None;
        }
        self.0 = rest.strip_prefix(b" ").unwrap_or(rest);
        Some(())
    }

    /// Takes a text of signs that have no escapes and that lock names have.
    fn word(&mut self) -> Option<&'a [u8]> {
        let [b'"', rest @ ..] = self.0 else { return None };
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let (word, rest) = rest.split_at(rest.iter().position(|byte| !plain(byte))?);
        self.0 = rest.strip_prefix(b"\"")?;
        Some(word)
    }

    /// Takes a whole number.
    fn number(&mut self) -> Option<u64> {
        let (digits, rest) = self.0.split_at(self.0.iter().position(|byte| !byte.is_ascii_digit())?);
        let has_leading_zero = digits.len() > 1 && digits[0] == b'0';
        if digits.is_empty() || digits.len() > DIGITS_MAX || has_leading_zero {
            return None;
        }
        self.0 = rest;
        Some(digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
    }
}

/// Appends the reply that says yes and has only a name, unless its id is a text: that may need
/// escapes. Returns whether it did.
#[cfg(any(test, feature = "websocket"))]
pub(crate) fn encode_yes(id: Option<&Id>, lock: &LockName, out: &mut Vec<u8>) -> bool {
    match id {
        Some(Id::Text(_)) => return false,
        Some(Id::Number(number)) => {
            out.extend_from_slice(b"{\"id\":");
            serde_json::to_writer(&mut *out, number).expect("numbers are plain values, and memory takes them");
            out.push(b',');
        }
        None => out.push(b'{'),
    }
    out.extend_from_slice(b"\"ok\":true,\"lock\":\"");
    out.extend_from_slice(lock.as_str().as_bytes());
    out.extend_from_slice(b"\"}");
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Grant, Reply, decode_by_serde};
    use super::*;

    /// What clients send most often is plain, with and without spaces, in any order.
    #[test]
    fn what_is_plain() {
        let lock = || LockName::parse(b"a.b_c-9").unwrap();
        let acquire = |wait| Op::Acquire { lock: lock(), want: Mode::Exclusive.into(), wait };
        let number = |number| Some(Id::Number(number));
        for (text, id, op) in [
            (r#"{"id":7,"op":"acquire","lock":"a.b_c-9"}"#, number(7), acquire(Wait::No)),
            (r#"{"id": 7, "op": "acquire", "lock": "a.b_c-9", "wait_ms": 0}"#, number(7), acquire(Wait::No)),
            (r#"{"lock":"a.b_c-9","wait_ms":5,"op":"acquire"}"#, None, acquire(Wait::Millis(5))),
            (r#"{"id":0,"op":"release","lock":"a.b_c-9"}"#, number(0), Op::Release(lock())),
            (
                r#"{"op":"verify","lock":"a.b_c-9","id":999999999999999}"#,
                number(999_999_999_999_999),
                Op::Verify(lock()),
            ),
            (r#"{"op":"ping"}"#, None, Op::Ping),
        ] {
            assert_eq!(decode(text.as_bytes()), Some(Request { id, op }), "{text}");
        }
    }

    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            prop::sample::select(vec![
                "{",
                "}",
                ",",
                ":",
                " ",
                "\"",
                "\\",
                "\"id\"",
                "\"op\"",
                "\"lock\"",
                "\"wait_ms\"",
                "\"id\":",
                "\"op\":",
                "\"lock\":",
                "\"wait_ms\":",
                "\"acquire\"",
                "\"release\"",
                "\"verify\"",
                "\"ping\"",
                "\"peek\"",
                "null",
                "true",
                "1",
                "0",
                "-1",
                "01",
                "1.5",
                "1e3",
                "9007199254740991",
                "9007199254740992",
                "18446744073709551616",
                "\"mode\":\"shared\"",
                "\"fence\":true",
                "\"a\"",
                "\"\"",
                "\"a/b\"",
                "\"\\u0061\"",
                "\t",
                "\u{feff}",
                "\u{e4}",
            ])
            .prop_map(str::to_owned),
            "[ -~]{0,2}",
        ];
        prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
    }

    /// Objects of the members that requests have, some of them twice, with values that fit or not.
    fn objects() -> impl Strategy<Value = String> {
        let id = prop_oneof![
            any::<u64>().prop_map(|id| id.to_string()),
            "[0-9]{1,17}",
            Just("\"x\"".to_owned()),
            Just("null".to_owned())
        ];
        let op = prop::sample::select(vec!["acquire", "release", "verify", "ping", "peek", "bye", "fly"]);
        let member = prop_oneof![
            4 => id.prop_map(|id| format!("\"id\":{id}")),
            4 => op.prop_map(|op| format!("\"op\":\"{op}\"")),
            4 => "[A-Za-z0-9._-]{0,5}".prop_map(|lock| format!("\"lock\":\"{lock}\"")),
            1 => "[a-zA-Z0-9._-]{250,253}".prop_map(|lock| format!("\"lock\": \"{lock}\"")),
            2 => "[0-9]{1,17}".prop_map(|wait| format!("\"wait_ms\": {wait}")),
            1 => Just("\"wait_ms\":null".to_owned()),
            1 => Just("\"fence\":false".to_owned()),
            1 => Just("\"mode\":\"exclusive\"".to_owned()),
        ];
        let comma = prop::sample::select(vec![",", ", ", " ,", ",,"]);
        (prop::collection::vec((member, comma), 0..6), prop::sample::select(vec!["}", " }", "} ", "},", ""])).prop_map(
            |(members, end)| {
                let mut text = String::from("{");
                for (number, (member, comma)) in members.iter().enumerate() {
                    text += if number > 0 { comma } else { "" };
                    text += member;
                }
                text + end
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// What the short way reads, serde reads in the same way.
        #[test]
        fn both_ways_agree(text in prop_oneof![pieces(), objects()]) {
            if let Some(request) = decode(text.as_bytes()) {
                prop_assert_eq!(decode_by_serde(text.as_bytes()), Ok(request));
            }
        }

        /// So do they with bytes changed in a request that is plain.
        #[test]
        fn both_ways_agree_on_damage(at in 0_usize..60, byte: u8, cut in 0_usize..3) {
            let mut text = br#"{"id":12,"op":"acquire","lock":"load-0000000042","wait_ms":10}"#.to_vec();
            let end = (at + cut).min(text.len());
            text.splice(at..end, [byte]);
            if let Some(request) = decode(&text) {
                prop_assert_eq!(decode_by_serde(&text), Ok(request));
            }
        }

        /// The reply is the one that serde writes.
        #[test]
        fn the_reply_is_the_same(id: Option<u64>, name in "[A-Za-z0-9._-]{1,251}") {
            let (id, lock) = (id.map(Id::Number), LockName::parse(name.as_bytes()).unwrap());
            let mut out = b"before".to_vec();
            prop_assert!(encode_yes(id.as_ref(), &lock, &mut out));
            let reply = serde_json::to_string(&Reply::yes(id.as_ref(), Grant::of(&lock))).unwrap();
            prop_assert_eq!(String::from_utf8(out).unwrap(), format!("before{reply}"));
        }
    }

    /// A text may need escapes.
    #[test]
    fn texts_as_ids_are_left_to_serde() {
        let mut out = Vec::new();
        assert!(
            !encode_yes(Some(&Id::Text("a\"b".into())), &LockName::parse(b"a").unwrap(), &mut out) && out.is_empty()
        );
    }
}
