use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn request(command: u8, name: &str) -> Request {
    Request { major: 0, minor: 1, command, name: name.as_bytes().into() }
}

fn encoded(reply: &Reply<'_>) -> String {
    let mut out = Vec::new();
    encode_json(reply, &mut out);
    String::from_utf8(out).unwrap()
}

fn encoded_name(name: &[u8]) -> String {
    let mut out = Vec::new();
    encode_json_request(&Request { name: name.into(), ..Request::default() }, &mut out);
    let text = String::from_utf8(out).unwrap();
    let start = r#"{"VersionMajor":0,"VersionMinor":0,"Command":0,"LockName":""#;
    text.strip_prefix(start).unwrap().strip_suffix("\"}\n").unwrap().to_owned()
}

/// Every captured reply is encoded byte for byte.
#[test]
fn captured_replies() {
    use Outcome::{BadRequest, Failed, Success};
    for (command, name, outcome, reason, is_locked, expected) in [
        (
            4,
            "wlock",
            Success,
            "",
            false,
            r#"{"VersionMajor":0,"VersionMinor":1,"Command":4,"LockName":"wlock","Result":2,"Reason":"","IsLocked":false}"#,
        ),
        (
            2,
            "wlock",
            Success,
            NO_OP,
            false,
            r#"{"VersionMajor":0,"VersionMinor":1,"Command":2,"LockName":"wlock","Result":2,"Reason":"no-op","IsLocked":false}"#,
        ),
        (
            1,
            "wlock",
            Success,
            "",
            true,
            r#"{"VersionMajor":0,"VersionMinor":1,"Command":1,"LockName":"wlock","Result":2,"Reason":"","IsLocked":true}"#,
        ),
        (
            3,
            "wlock",
            Failed,
            NOT_FOUND,
            false,
            r#"{"VersionMajor":0,"VersionMinor":1,"Command":3,"LockName":"wlock","Result":1,"Reason":"lock not found","IsLocked":false}"#,
        ),
        (
            1,
            "a b",
            BadRequest,
            INVALID_NAME,
            false,
            r#"{"VersionMajor":0,"VersionMinor":1,"Command":1,"LockName":"a b","Result":3,"Reason":"invalid lock name","IsLocked":false}"#,
        ),
        (
            9,
            "a",
            BadRequest,
            UNKNOWN_COMMAND,
            false,
            r#"{"VersionMajor":0,"VersionMinor":1,"Command":9,"LockName":"a","Result":3,"Reason":"unknown command","IsLocked":false}"#,
        ),
        (
            255,
            "a",
            Failed,
            OTHER_SESSION,
            false,
            r#"{"VersionMajor":0,"VersionMinor":1,"Command":255,"LockName":"a","Result":1,"Reason":"resource acquired through a different session","IsLocked":false}"#,
        ),
        (
            10,
            "a",
            Failed,
            OTHER_PROCESS,
            false,
            r#"{"VersionMajor":0,"VersionMinor":1,"Command":10,"LockName":"a","Result":1,"Reason":"resource acquired by different process","IsLocked":false}"#,
        ),
    ] {
        let name = name.as_bytes();
        let reply = Reply { command, name, outcome, reason, is_locked };
        assert_eq!(encoded(&reply), format!("{expected}\n"));
    }
    let reply = Reply {
        command: 2,
        name: b"a",
        outcome: Outcome::InternalError,
        reason: "open /dir/<a>.lck: is a directory",
        is_locked: false,
    };
    assert!(encoded(&reply).contains(r#""Result":4,"Reason":"open /dir/\u003ca\u003e.lck: is"#));
}

/// The captured request of the original client is decoded correctly and encoded to the same bytes.
#[test]
fn captured_request() {
    let text = b"{\"VersionMajor\":0,\"VersionMinor\":1,\"Command\":4,\"LockName\":\"wlock\"}\n";
    assert_eq!(decode_json(text), Some(request(4, "wlock")));
    let mut out = Vec::new();
    encode_json_request(&request(4, "wlock"), &mut out);
    assert_eq!(out, text);
}

/// Strings are escaped as in Go 1.19.
#[test]
fn escapes() {
    assert_eq!(encoded_name(b"<>&"), r"\u003c\u003e\u0026");
    assert_eq!(encoded_name("\u{2028}\u{2029}\u{2027}".as_bytes()), "\\u2028\\u2029\u{2027}");
    assert_eq!(encoded_name(b"\n\r\t\"\\/"), r#"\n\r\t\"\\/"#);
    assert_eq!(encoded_name(b"\0\x08\x0c\x1f\x7f"), "\\u0000\\u0008\\u000c\\u001f\x7f");
    assert_eq!(encoded_name("é\u{fffd}\u{1f512}".as_bytes()), "é\u{fffd}\u{1f512}");
    assert_eq!(encoded_name(b"a\xff\xe2\x82b\xc3"), r"a\ufffd\ufffd\ufffdb\ufffd");
}

/// Everything that the original accepts is accepted: members in any letter case, missing, unknown,
/// null or repeated, whitespace before the object, and anything after it.
#[test]
fn tolerant_requests() {
    let empty = Request::default();
    for (text, expected) in [
        ("{}", empty.clone()),
        ("null", empty.clone()),
        ("nullx", empty.clone()),
        (" \t\r\n{} {", empty.clone()),
        ("{}}", empty.clone()),
        ("{} \"\t", empty.clone()),
        ("{\"x\":\"\\\\\"\t,\n\"y\":[]}", empty.clone()),
        (r#"{"versionminor":1,"COMMAND":2,"lockname":"wlock","extra":[{}]} trailing"#, request(2, "wlock")),
        (r#"{"LockName":"a","Command":2,"VersionMinor":1}"#, request(2, "a")),
        ("{\"Loc\u{212a}Name\":\"a\",\"Ver\u{17f}ionMinor\":1}", request(0, "a")),
        (r#"{"\u0043ommand":2,"VersionMinor":1}"#, request(2, "")),
        (r#"{"Command":1,"command":2,"VersionMinor":1}"#, request(2, "")),
        (r#"{"Command":2,"VersionMinor":1,"Command":null,"LockName":null}"#, request(2, "")),
        (r#"{"Command":255,"VersionMinor":1}"#, request(255, "")),
        (r#"{"VersionMajor":1}"#, Request { major: 1, ..Request::default() }),
        (r#"{"a":1e999,"b":-0.5E-1,"c":"\ud800","\ud800":[[],{"d":true}],"e":null}"#, empty.clone()),
        (r#"{"VersionMinor":1,"LockName":"\ud800x\udfff\ud83d\udd12\n"}"#, request(0, "\u{fffd}x\u{fffd}\u{1f512}\n")),
        (r#"{"VersionMinor":1,"LockName":"a\/b\u0000"}"#, request(0, "a/b\0")),
    ] {
        assert_eq!(decode_json(text.as_bytes()), Some(expected), "{text}");
    }
    let invalid = b"{\"VersionMinor\":1,\"LockName\":\"a\xff\xe2\x82\"}";
    assert_eq!(decode_json(invalid), Some(request(0, "a\u{fffd}\u{fffd}\u{fffd}")));
    assert_eq!(decode_json(b"{\"a\xff\":\"\xff\"}"), Some(empty));
}

/// Texts that the original does not answer are not requests: invalid syntax, wrong types, and
/// numbers out of range.
#[test]
fn unanswered_texts() {
    for text in [
        "",
        " ",
        "{",
        "}",
        "nul",
        "nope",
        "[]",
        "[{}]",
        "1",
        "true",
        "\"Command\"",
        "{\"Command\"}",
        "{'Command':1}",
        "{Command:1}",
        r#"{"Command":1,}"#,
        r#"{"Command":01}"#,
        r#"{"Command":+1}"#,
        r#"{"Command":1.0}"#,
        r#"{"Command":1e0}"#,
        r#"{"Command":-1}"#,
        r#"{"Command":-0}"#,
        r#"{"Command":256}"#,
        r#"{"VersionMajor":99999999999999999999}"#,
        r#"{"Command":"1"}"#,
        r#"{"Command":[1]}"#,
        r#"{"Command":true}"#,
        r#"{"LockName":1}"#,
        r#"{"LockName":["a"]}"#,
        r#"{"LockName":{}}"#,
        r#"{"LockName":[97]}"#,
        r#"{"LockName":true}"#,
        r#"{"LockName":"a"#,
        r#"{"LockName":"\x"}"#,
        r#"{"LockName":"\u12"}"#,
        "{\"LockName\":\"a\nb\"}",
        r#"{"Command":"x","Command":1}"#,
        r#"{"x":tru}"#,
        r#"{"x":"\q"}"#,
        "{\"a\tb\":1}",
        "{\"x\":\"\\\"\u{1}\"}",
    ] {
        assert_eq!(decode_json(text.as_bytes()), None, "{text}");
    }
}

/// Deep nesting is read without recursion in a member that is ignored, and is refused as the value
/// of a known one.
#[test]
fn deep_nesting() {
    let deep = "[".repeat(60_000) + &"]".repeat(60_000);
    let text = format!("{{\"x\":{deep},\"VersionMinor\":1,\"Command\":2}}");
    assert_eq!(decode_json(text.as_bytes()), Some(request(2, "")));
    assert_eq!(decode_json(format!("{{\"Command\":{deep}}}").as_bytes()), None);
    assert_eq!(decode_json("{\"x\":".repeat(60_000).as_bytes()), None);
    assert_eq!(decode_json(deep.as_bytes()), None);
}

proptest! {
    /// Every request whose name is text is the same after encoding and decoding.
    #[test]
    fn requests_round_trip(major: u8, minor: u8, command: u8, name: String) {
        let request = Request { major, minor, command, name: name.as_bytes().into() };
        let mut text = Vec::new();
        encode_json_request(&request, &mut text);
        prop_assert_eq!(decode_json(&text), Some(request));
    }

    /// A reply is one line of JSON with the right members, whatever bytes the name contains.
    #[test]
    fn replies_are_json(command: u8, name in vec(any::<u8>(), 0..100), reason: String, is_locked: bool) {
        let reply = Reply { command, name: &name, outcome: Outcome::Failed, reason: &reason, is_locked };
        let text = encoded(&reply);
        prop_assert_eq!(text.find('\n'), Some(text.len() - 1));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(&value["Command"], command);
        let lossy = |chunk: std::str::Utf8Chunk<'_>| {
            chunk.valid().to_owned() + &"\u{fffd}".repeat(chunk.invalid().len())
        };
        prop_assert_eq!(&value["LockName"], &name.utf8_chunks().map(lossy).collect::<String>());
        prop_assert_eq!(&value["Reason"], &reason);
        prop_assert_eq!(&value["IsLocked"], is_locked);
        prop_assert_eq!(value.as_object().unwrap().len(), 7);
    }

    /// Random bytes never panic.
    #[test]
    fn random_bytes(bytes in vec(any::<u8>(), 0..300)) {
        decode_json(&bytes);
    }

    /// Pieces of JSON in any order never panic.
    #[test]
    fn random_pieces(pieces in vec(prop::sample::select(vec![
        "{", "}", "[", "]", ",", ":", "\"", "null", "1", "-", "\"Command\":", "\"LockName\":",
        "\\ud800", "\u{fffd}", "\"a\"", " ",
    ]), 0..40)) {
        decode_json(pieces.concat().as_bytes());
    }
}
