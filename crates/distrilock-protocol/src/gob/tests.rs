use std::slice;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::v0;

const BODY_BYTES_MAX: usize = 65_536;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn request(command: u8, name: &[u8]) -> Request {
    Request { major: 0, minor: 1, command, name: name.into() }
}

/// Decodes a whole stream, which must end with a whole message. Definitions are left out.
fn decode_all(stream: &[u8]) -> Result<Vec<Decoded>, GobError> {
    let (mut decoder, mut rest, mut all) = (Decoder::default(), stream, Vec::new());
    while let Some(Frame { header, body }) = split(rest, BODY_BYTES_MAX)? {
        let decoded = decoder.message(&rest[header..header + body])?;
        if decoded != Decoded::Definition {
            all.push(decoded);
        }
        rest = &rest[header + body..];
    }
    assert!(rest.is_empty(), "{} bytes are left over", rest.len());
    Ok(all)
}

/// Writes a gob stream with any types.
#[derive(Default, Clone)]
struct Stream(Vec<u8>);

impl Stream {
    fn uint(mut self, number: u64) -> Self {
        append_uint(number, &mut self.0);
        self
    }

    fn int(self, number: i64) -> Self {
        let doubled = number.cast_unsigned() << 1;
        self.uint(if number < 0 { !doubled } else { doubled })
    }

    fn text(self, text: &str) -> Self {
        self.uint(text.len() as u64).raw(text.as_bytes())
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn message(self, body: &Self) -> Self {
        self.uint(body.0.len() as u64).raw(&body.0)
    }

    /// The `CommonType` that every definition starts with. It contains the type's `id`.
    fn common(self, kind: u64, id: i64) -> Self {
        self.int(-id).uint(kind).uint(1).uint(1).text("T").uint(1).int(id).uint(0)
    }

    fn structure_body(id: i64, fields: &[(&str, i64)]) -> Self {
        let mut body = Self::default().common(3, id);
        if !fields.is_empty() {
            body = body.uint(1).uint(fields.len() as u64);
        }
        for (name, type_id) in fields {
            body = body.uint(1).text(name).uint(1).int(*type_id).uint(0);
        }
        body.uint(0).uint(0)
    }

    fn structure(self, id: i64, fields: &[(&str, i64)]) -> Self {
        self.message(&Self::structure_body(id, fields))
    }

    fn slice(self, id: i64, element: i64) -> Self {
        self.message(&Self::default().common(2, id).uint(1).int(element).uint(0).uint(0))
    }

    fn array(self, id: i64, element: i64, length: i64) -> Self {
        let body = Self::default().common(1, id).uint(1).int(element).uint(1).int(length);
        self.message(&body.uint(0).uint(0))
    }

    fn map(self, id: i64, key: i64, element: i64) -> Self {
        let body = Self::default().common(4, id).uint(1).int(key).uint(1).int(element);
        self.message(&body.uint(0).uint(0))
    }

    /// A type that encodes itself: with GobEncode (`kind` 5), MarshalBinary (6) or MarshalText (7).
    fn opaque(self, id: i64, kind: u64) -> Self {
        self.message(&Self::default().common(kind, id).uint(0).uint(0))
    }

    fn value(self, id: i64, content: &Self) -> Self {
        self.message(&Self::default().int(id).raw(&content.0))
    }

    fn decoded(&self) -> Vec<Decoded> {
        decode_all(&self.0).unwrap()
    }
}

fn w() -> Stream {
    Stream::default()
}

/// The definitions of the request and of the reply are byte for byte those captured from the
/// original.
#[test]
fn definitions_are_the_originals() {
    let expected = hex("54 ff 81 03 01 01 0b 4c 6f 63 6b 52 65 71 75 65 73 74 01 ff 82 00 01 04 01 0c
        56 65 72 73 69 6f 6e 4d 61 6a 6f 72 01 06 00 01 0c 56 65 72 73 69 6f 6e 4d 69 6e 6f 72 01 06
        00 01 07 43 6f 6d 6d 61 6e 64 01 06 00 01 08 4c 6f 63 6b 4e 61 6d 65 01 0c 00 00 00");
    assert_eq!(REQUEST_DEFINITION.to_vec(), expected);
    let expected = hex("4e ff 81 03 01 01 0c 4c 6f 63 6b 52 65 73 70 6f 6e 73 65 01 ff 82 00 01 04 01
        0b 4c 6f 63 6b 52 65 71 75 65 73 74 01 ff 84 00 01 06 52 65 73 75 6c 74 01 06 00 01 06 52 65
        61 73 6f 6e 01 0c 00 01 08 49 73 4c 6f 63 6b 65 64 01 02 00 00 00
        54 ff 83 03 01 01 0b 4c 6f 63 6b 52 65 71 75 65 73 74 01 ff 84 00 01 04 01 0c 56 65 72 73 69
        6f 6e 4d 61 6a 6f 72 01 06 00 01 0c 56 65 72 73 69 6f 6e 4d 69 6e 6f 72 01 06 00 01 07 43 6f
        6d 6d 61 6e 64 01 06 00 01 08 4c 6f 63 6b 4e 61 6d 65 01 0c 00 00 00");
    assert_eq!(REPLY_DEFINITIONS.to_vec(), expected);
    assert_eq!(decode_all(&REPLY_DEFINITIONS), Ok(vec![]));
    assert_eq!(decode_all(&REQUEST_DEFINITION), Ok(vec![]));
}

/// An integer below 0x80 is a single byte. A larger one is a count of bytes and then the bytes,
/// big-endian.
#[test]
fn integers_are_spelled_as_in_go() {
    for (number, bytes) in [
        (0, "00"),
        (127, "7f"),
        (128, "ff 80"),
        (200, "ff c8"),
        (256, "fe 01 00"),
        (261, "fe 01 05"),
        (65_536, "fd 01 00 00"),
        (u64::MAX, "f8 ffffffffffffffff"),
    ] {
        assert_eq!(w().uint(number).0, hex(bytes), "{number}");
        assert!(matches!(Reader::new(&hex(bytes)).uint(), Ok(read) if read == number), "{number}");
    }
    for (number, bytes) in [
        (65, "ff 82"),
        (-65, "ff 81"),
        (66, "ff 84"),
        (-66, "ff 83"),
        (i64::MAX, "f8 fffffffffffffffe"),
        (i64::MIN, "f8 ffffffffffffffff"),
    ] {
        assert_eq!(w().int(number).0, hex(bytes), "{number}");
        assert!(matches!(Reader::new(&hex(bytes)).int(), Ok(read) if read == number), "{number}");
    }
}

/// Every captured request is decoded correctly and encoded to the same bytes.
#[test]
fn captured_requests() {
    let name = |name: &str| name.as_bytes().to_vec().into_boxed_slice();
    let long = "x".repeat(251);
    let long_bytes = w().raw(&hex("ff82 0201 0102 01")).text(&long).uint(0);
    let empty = Request::default();
    for (bytes, expected) in [
        (hex("0e ff82 0201 0102 01056c6f636b31 00"), request(2, b"lock1")),
        (hex("0e ff82 0201 0104 01056c6f636b31 00"), request(4, b"lock1")),
        (hex("0e ff82 0201 0101 01056c6f636b31 00"), request(1, b"lock1")),
        (hex("0e ff82 0201 0103 01056c6f636b31 00"), request(3, b"lock1")),
        (hex("0c ff82 0201 0102 0103612062 00"), request(2, b"a b")),
        (hex("0a ff82 0201 0105 010161 00"), request(5, b"a")),
        (hex("08 ff82 0201 020161 00"), request(0, b"a")),
        (hex("07 ff82 0201 0102 00"), request(2, b"")),
        (hex("0c ff82 0101 0101 0101 010161 00"), Request { major: 1, ..request(1, b"a") }),
        (hex("08 ff82 0301 010161 00"), Request { minor: 0, ..request(1, b"a") }),
        (hex("03 ff82 00"), empty.clone()),
        (hex("0b ff82 0201 01ffff 010161 00"), request(255, b"a")),
        (w().message(&long_bytes).0, Request { name: name(&long), ..request(2, b"") }),
    ] {
        let mut encoded = Vec::new();
        encode_request(&expected, &mut encoded);
        assert_eq!(encoded, bytes);
        let stream = [&REQUEST_DEFINITION[..], &bytes, &bytes].concat();
        let decoded = Decoded::Request(expected.clone());
        assert_eq!(decode_all(&stream), Ok(vec![decoded.clone(), decoded]));
        assert_eq!(decode_message(&stream, BODY_BYTES_MAX), Some(expected));
    }
    assert!(w().text(&long).0.starts_with(&[0xff, 0xfb]));
}

/// Every captured reply is encoded to the same bytes and decoded correctly.
#[test]
fn captured_replies() {
    use Outcome::{BadRequest, Failed, Success};
    let reason = |text: &str| [&[1, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let lock1 = "ff82 01 0201 0102 01056c6f636b31 00";
    for (start, reason_bytes, end, (command, name, outcome, text, is_locked)) in [
        ("12 ff82 01 0201 0102 01056c6f636b31 00 0102", "", "00", (2, "lock1", Success, "", false)),
        ("19 ff82 01 0201 0102 01056c6f636b31 00 0102", v0::NO_OP, "00", (2, "lock1", Success, v0::NO_OP, false)),
        ("12 ff82 01 0201 0104 01056c6f636b31 00 0102", "", "00", (4, "lock1", Success, "", false)),
        ("14 ff82 01 0201 0101 01056c6f636b31 00 0102", "", "020100", (1, "lock1", Success, "", true)),
        ("12 ff82 01 0201 0101 01056c6f636b31 00 0102", "", "00", (1, "lock1", Success, "", false)),
        ("12 ff82 01 0201 0103 01056c6f636b31 00 0102", "", "00", (3, "lock1", Success, "", false)),
        (
            "22 ff82 01 0201 0103 01056c6f636b31 00 0101",
            v0::NOT_FOUND,
            "00",
            (3, "lock1", Failed, v0::NOT_FOUND, false),
        ),
        (&format!("41 {lock1} 0101"), v0::OTHER_SESSION, "00", (2, "lock1", Failed, v0::OTHER_SESSION, false)),
        (&format!("3a {lock1} 0101"), v0::OTHER_PROCESS, "00", (2, "lock1", Failed, v0::OTHER_PROCESS, false)),
        (
            "23 ff82 01 0201 0102 0103612062 00 0103",
            v0::INVALID_NAME,
            "00",
            (2, "a b", BadRequest, v0::INVALID_NAME, false),
        ),
        (
            "1f ff82 01 0201 0105 010161 00 0103",
            v0::UNKNOWN_COMMAND,
            "00",
            (5, "a", BadRequest, v0::UNKNOWN_COMMAND, false),
        ),
        ("1d ff82 01 0201 020161 00 0103", v0::UNKNOWN_COMMAND, "00", (0, "a", BadRequest, v0::UNKNOWN_COMMAND, false)),
        ("1e ff82 01 0201 0102 00 0103", v0::INVALID_NAME, "00", (2, "", BadRequest, v0::INVALID_NAME, false)),
    ] {
        let mut bytes = hex(start);
        if !reason_bytes.is_empty() {
            bytes.extend(reason(reason_bytes));
        }
        bytes.extend(hex(end));
        let reply = Reply { command, name: name_of(name), outcome, reason: text, is_locked };
        let mut encoded = Vec::new();
        encode_reply(&reply, &mut encoded);
        assert_eq!(encoded, bytes);
        let owned = OwnedReply { command, name: name.as_bytes().into(), outcome, reason: text.into(), is_locked };
        assert_eq!(decode_reply(&bytes[1..]), Some(owned));
    }
    assert_eq!(v0::OTHER_SESSION.len(), 0x2d);
    assert_eq!(v0::OTHER_PROCESS.len(), 0x26);
}

fn name_of(name: &str) -> &[u8] {
    name.as_bytes()
}

/// The sizes measured with the original: with a name of two letters, the first request takes 97
/// bytes and later ones take 12. Messages on WebSocket take 100 and 183 bytes.
#[test]
fn captured_sizes() {
    let mut encoded = Vec::new();
    encode_request(&request(2, b"ab"), &mut encoded);
    assert_eq!((encoded.len(), REQUEST_DEFINITION.len() + encoded.len()), (12, 97));
    encoded.clear();
    encode_request(&request(2, b"wlock"), &mut encoded);
    assert_eq!(REQUEST_DEFINITION.len() + encoded.len(), 100);
    encoded.clear();
    let reply = Reply { command: 2, name: b"wlock", outcome: Outcome::Success, reason: "", is_locked: false };
    encode_reply(&reply, &mut encoded);
    assert_eq!(REPLY_DEFINITIONS.len() + encoded.len(), 183);
}

/// A stream may be cut at any byte. A message is read only once all of it has arrived.
#[test]
fn a_stream_cut_anywhere() {
    let mut stream = REQUEST_DEFINITION.to_vec();
    encode_request(&request(2, b"lock1"), &mut stream);
    encode_request(&request(3, &[b'x'; 251]), &mut stream);
    let ends = [85, 100, stream.len()];
    for cut in 0..=stream.len() {
        let (mut decoder, mut at, mut messages) = (Decoder::default(), 0, 0);
        while let Some(Frame { header, body }) = split(&stream[at..cut], BODY_BYTES_MAX).unwrap() {
            decoder.message(&stream[at + header..at + header + body]).unwrap();
            at += header + body;
            assert_eq!(at, ends[messages]);
            messages += 1;
        }
        assert_eq!(messages, ends.iter().filter(|end| **end <= cut).count(), "cut at {cut}");
        let expected = (cut >= 100).then(|| request(2, b"lock1"));
        assert_eq!(decode_message(&stream[..cut], BODY_BYTES_MAX), expected, "cut at {cut}");
    }
}

/// A length that no message can have is refused as soon as it is known. The error contains the
/// length and the maximum.
#[test]
fn impossible_lengths() {
    assert_eq!(split(&[], 10), Ok(None));
    assert_eq!(split(&[0x80], 10), Err(GobError::Length(0x80)));
    assert_eq!(split(&[0xf7], 10), Err(GobError::Length(0xf7)));
    assert_eq!(split(&[0], 10), Err(GobError::Empty));
    assert_eq!(split(&[0xff], 10), Ok(None));
    assert_eq!(split(&[0xff, 0], 10), Err(GobError::Empty));
    assert_eq!(split(&hex("fe000a"), 10), Ok(None));
    assert_eq!(split(&[11], 10), Err(GobError::TooLong { length: 11, maximum: 10 }));
    let error = split(&hex("fc 80000000"), 65_536).unwrap_err();
    assert_eq!(error.to_string(), "a message of 2147483648 bytes is over the maximum of 65536");
    let length = u64::MAX;
    assert_eq!(split(&[0xff; 9], 10), Err(GobError::TooLong { length: 255, maximum: 10 }));
    assert_eq!(split(&w().uint(length).0, 10), Err(GobError::TooLong { length, maximum: 10 }));
    assert_eq!(split(&w().uint(length).0[..8], 10), Ok(None));
    assert_eq!(split(&[1, 7], 10), Ok(Some(Frame { header: 1, body: 1 })));
    assert_eq!(split(&[0xff, 1, 7, 7], 10), Ok(Some(Frame { header: 2, body: 1 })));
}

/// Fields may come in any order or be missing, and the sender chooses the type's name and id.
#[test]
fn any_order_any_id() {
    let served = |stream: Stream, expected: &Decoded| {
        assert_eq!(stream.decoded(), slice::from_ref(expected));
    };
    let fields = [("LockName", 6), ("Command", 3)];
    let value = w().uint(1).text("a").uint(1).uint(2).uint(0);
    let expected = Decoded::Request(Request { minor: 0, ..request(2, b"a") });
    for id in [64, 65, 1000, i64::from(i32::MAX)] {
        let stream = w().slice(90, 6).structure(id, &fields).value(id, &value);
        served(stream, &expected);
    }
    // Zeros and integers that are longer than necessary are accepted. The end of the message also
    // ends the struct, and bytes after the struct are ignored.
    let value = w().uint(1).text("a").uint(1).raw(&hex("fe0002"));
    served(w().structure(65, &fields).value(65, &value), &expected);
    let value = value.uint(0).text("more");
    served(w().structure(65, &fields).value(65, &value), &expected);
    let value = w().uint(2).uint(0).uint(0);
    let expected = Decoded::Request(Request::default());
    served(w().structure(65, &fields).value(65, &value), &expected);
    // A struct without fields has none in common with a request, but Go accepts it as an empty one.
    served(w().structure(65, &[]).value(65, &w().uint(0)), &expected);
}

/// Additional fields of every kind of type are skipped, whether they come before, between or after
/// the known ones.
#[test]
fn additional_fields_of_any_type() {
    let mut fields = vec![];
    let mut value = w();
    let mut add = |name, id, content: Stream| {
        fields.push((name, id));
        value = value.clone().uint(1).raw(&content.0);
    };
    add("Bool", 1, w().uint(1));
    add("Int", 2, w().int(-70_000));
    add("Uint", 3, w().uint(u64::MAX));
    add("Float", 4, w().raw(&hex("fe f83f")));
    add("VersionMinor", 3, w().uint(1));
    add("Bytes", 5, w().text("\0\u{1}"));
    add("String", 6, w().text("text"));
    add("Complex", 7, w().raw(&hex("fef03f 40")));
    add("Command", 3, w().uint(2));
    add("Nil", 8, w().uint(0));
    add("Text", 8, w().text("string").int(6).uint(4).uint(0).text("xy"));
    add("Point", 8, w().text("main.P").int(70).uint(5).uint(1).int(3).uint(1).int(4).uint(0));
    add("Struct", 70, w().uint(2).int(9).uint(0));
    add("Array", 71, w().uint(2).text("a").text("b"));
    add("Slice", 72, w().uint(2).uint(0).uint(1).int(1).uint(0));
    add("Map", 73, w().uint(1).text("key").uint(1).uint(0));
    add("LockName", 6, w().text("lock1"));
    add("Gob", 74, w().text("gob"));
    add("Binary", 75, w().text("bin"));
    add("Textual", 76, w().text("txt"));
    add("Tree", 77, w().uint(1).uint(1).uint(1).uint(0).uint(0).uint(0));
    add("lockname", 6, w().text("another"));
    add("NestedInterface", 8, w().text("m").int(78).uint(9).uint(0).uint(1).text("i").int(2).uint(2).uint(0).int(5));
    let stream = w()
        .structure(70, &[("X", 2), ("Y", 2)])
        .array(71, 6, 2)
        .slice(72, 70)
        .map(73, 6, 72)
        .opaque(74, 5)
        .opaque(75, 6)
        .opaque(76, 7)
        .structure(77, &[("Children", 79)])
        .slice(78, 8)
        .slice(79, 77)
        .structure(100, &fields)
        .value(100, &value.uint(0));
    assert_eq!(stream.decoded(), [Decoded::Request(request(2, b"lock1"))]);
    assert_eq!(decode_message(&stream.0, BODY_BYTES_MAX), Some(request(2, b"lock1")));
}

/// The value of an interface may have a type that was not sent before. Go then ends the message
/// after the type's definition, in the middle of the value, and continues the value in the next
/// message. An inner type is defined in place.
#[test]
fn a_value_that_goes_on_in_the_next_message() {
    let start = w().int(65).uint(1).uint(1).uint(1).text("main.P").raw(&definition_of(70).0);
    let inline = w().text("main.Q").raw(&definition_of(71).0);
    let rest = w().int(70).uint(3).uint(1).raw(&inline.0).uint(9).int(71).uint(1).uint(0).uint(0);
    let fields = [("VersionMinor", 3), ("Extra", 8), ("More", 8), ("LockName", 6), ("Command", 3)];
    let more = w().uint(1).text("main.R").raw(&definition_of(72).0);
    let end = w().int(72).uint(1).uint(0).uint(1).text("lock1").uint(1).uint(2).uint(0);
    let stream = w().structure(65, &fields).message(&start).message(&rest.raw(&more.0)).message(&end);
    let mut all = stream.clone().value(65, &w().uint(5).uint(2).uint(0)).decoded();
    assert_eq!(all.pop(), Some(Decoded::Request(Request { minor: 0, ..request(2, b"") })));
    assert_eq!(all, [Decoded::Request(request(2, b"lock1"))]);
    assert_eq!(decode_message(&stream.0, BODY_BYTES_MAX), Some(request(2, b"lock1")));
}

fn definition_of(id: i64) -> Stream {
    Stream::structure_body(id, &[("Inner", 8), ("Number", 2)])
}

/// A value that continues over many messages is kept only up to a limit.
#[test]
fn a_suspended_value_is_bounded() {
    let name = "x".repeat(SUSPENDED_BYTES_MAX);
    let start = w().int(65).uint(1).text(&name).uint(1).text("T").raw(&definition_of(70).0);
    let mut decoder = Decoder::default();
    let definition = w().structure(65, &[("LockName", 6), ("Extra", 8)]).0;
    decoder.message(&definition[1..]).unwrap();
    assert!(matches!(decoder.message(&start.0), Err(GobError::TooLong { .. })));
}

/// Requests that the original refuses without a reply are refused, and the next request is still
/// read.
#[test]
fn refused_requests() {
    let all = [("VersionMajor", 3), ("VersionMinor", 3), ("Command", 3), ("LockName", 6)];
    let one = |number: u64| w().uint(number).uint(1).uint(0);
    let refused = [
        ("signed integer", w().structure(70, &[("VersionMinor", 2)]).value(70, &w().uint(0))),
        ("bytes as name", w().structure(70, &[("LockName", 5)]).value(70, &w().uint(0))),
        ("257 in 8 bits", w().structure(70, &all).value(70, &w().uint(3).uint(257).uint(0))),
        ("other letter case", w().structure(70, &[("lockName", 6)]).value(70, &one(0))),
        ("no field in common", w().structure(70, &[("Name", 6)]).value(70, &w().uint(0))),
        ("field without name", w().structure(70, &[("Command", 3), ("", 3)]).value(70, &one(1))),
        ("bare string", w().value(6, &w().uint(0).text("lock1"))),
        ("bare integer", w().value(2, &w().uint(0).int(5))),
        ("a slice", w().slice(70, 3).value(70, &w().uint(0).uint(0))),
        ("unknown type id", w().value(90, &w().uint(0))),
        ("type id 0", w().value(0, &w().uint(0))),
        ("type id out of range", w().value(1 << 40, &w().uint(0))),
        ("unknown type", w().structure(70, &[("Command", 3), ("X", 99)]).value(70, &one(2))),
        ("gob's own type", w().structure(70, &[("Command", 3), ("X", 20)]).value(70, &one(2))),
        ("field out of range", w().structure(70, &all).value(70, &one(5))),
        ("huge delta", w().structure(70, &all).value(70, &one(u64::MAX))),
        ("name cut short", w().structure(70, &all).value(70, &w().uint(4).uint(9).raw(b"ab"))),
        (
            "array of other length",
            w().array(71, 3, 2)
                .structure(70, &[("Command", 3), ("X", 71)])
                .value(70, &w().uint(2).uint(1).uint(1).uint(0)),
        ),
        ("id used twice", w().structure(70, &all).structure(70, &all)),
        ("id of gob's own", w().structure(63, &all)),
    ];
    for (what, stream) in refused {
        let stream = stream.raw(&REQUEST_DEFINITION).raw(&hex("0e ff82 0201 0102 01056c6f636b31 00"));
        let expected = [Decoded::Unanswered, Decoded::Request(request(2, b"lock1"))];
        assert_eq!(stream.decoded(), expected, "{what}");
        assert_eq!(decode_message(&stream.0, BODY_BYTES_MAX), None, "{what}");
    }
    // A reply sent as a request: its type has no field in common with a request, even though an
    // inner type has.
    let mut stream = REPLY_DEFINITIONS.to_vec();
    stream.extend(hex("12 ff82 01 0201 0102 01056c6f636b31 00 0102 00"));
    assert_eq!(decode_all(&stream), Ok(vec![Decoded::Unanswered]));
}

/// The example in gob's package documentation, a Point, is read, and refused because it is not a
/// request.
#[test]
fn the_documented_point() {
    let stream = hex("1f ff81 03 01 01 05 506f696e74 01 ff82 00 01 02 01 01 58 01 04 00 01 01 59 01 04
        00 00 00 07 ff82 01 2c 01 42 00");
    assert_eq!(decode_all(&stream), Ok(vec![Decoded::Unanswered]));
}

/// A WebSocket message with a value but not its definition gets no reply. A second value in a
/// message is ignored.
#[test]
fn websocket_messages_stand_alone() {
    let value = hex("0e ff82 0201 0102 01056c6f636b31 00");
    assert_eq!(decode_message(&value, BODY_BYTES_MAX), None);
    assert_eq!(decode_message(&REQUEST_DEFINITION, BODY_BYTES_MAX), None);
    assert_eq!(decode_message(&[], BODY_BYTES_MAX), None);
    let second = hex("0e ff82 0201 0103 01056c6f636b31 00 80");
    let message = [&REQUEST_DEFINITION[..], &value, &second].concat();
    assert_eq!(decode_message(&message, BODY_BYTES_MAX), Some(request(2, b"lock1")));
    assert_eq!(decode_message(&message, 50), None);
}

/// Definitions that are corrupt or exceed the limits end the stream.
#[test]
fn malformed_definitions() {
    let decode = |body: &[u8]| Decoder::default().message(body);
    assert_eq!(decode(&[]), Err(GobError::TypeId));
    assert_eq!(decode(&[0xff]), Err(GobError::TypeId));
    assert_eq!(decode(&[0x90]), Err(GobError::TypeId));
    assert_eq!(decode(&w().int(-65).0), Err(GobError::Definition));
    assert_eq!(decode(&w().int(-65).uint(0).0), Err(GobError::Definition));
    assert_eq!(decode(&w().int(-65).uint(8).uint(0).0), Err(GobError::Definition));
    assert_eq!(decode(&w().int(-65).uint(1).uint(9).0), Err(GobError::Definition));
    let body = &REQUEST_DEFINITION[1..];
    assert_eq!(decode(&[body, &[0]].concat()), Err(GobError::Definition));
    let huge = Decoder::default().message(&w().int(i64::MIN).raw(&body[2..]).0);
    assert_eq!(huge, Err(GobError::TypeId));
    // As in Go, the end of the message also ends its structs, so some truncated messages are valid.
    let whole: Vec<usize> = (2..body.len()).filter(|cut| decode(&body[..*cut]).is_ok()).collect();
    assert_eq!(whole, [3, 4, 17, 20, 21, 79, 81, 82, 83]);
    let fields = vec![("F", 3); FIELDS_MAX];
    assert!(decode_all(&w().structure(65, &fields).0).is_ok());
    let fields = vec![("F", 3); FIELDS_MAX + 1];
    assert_eq!(decode_all(&w().structure(65, &fields).0), Err(GobError::TooManyFields(129)));
    let count = u64::MAX;
    let body = w().common(3, 65).uint(1).uint(count);
    assert_eq!(decode(&body.0), Err(GobError::TooManyFields(count)));
    let define = |stream: Stream, id| stream.slice(i64::from(id), 3);
    let most = (100..164).fold(w(), define);
    assert_eq!(decode_all(&most.0), Ok(vec![]));
    assert_eq!(decode_all(&define(most, 200).0), Err(GobError::TooManyDefinitions));
}

/// Reading a type that contains itself stops at the end of the bytes or at the maximum depth.
#[test]
fn recursive_types() {
    let stream = |extra: Stream, content: Stream| {
        extra
            .structure(65, &[("Command", 3), ("X", 70)])
            .value(65, &w().uint(1).uint(2).uint(1).raw(&content.0).uint(0))
            .decoded()
    };
    let served = [Decoded::Request(Request { minor: 0, ..request(2, b"") })];
    for depth in [1, DEPTH_MAX, DEPTH_MAX + 1, 30_000] {
        let down = w().raw(&vec![1; depth]).uint(0);
        let is_served = depth <= DEPTH_MAX;
        let slice = stream(w().slice(70, 70), down.clone());
        assert_eq!(slice == served, is_served, "a slice of itself, depth {depth}");
        let up = down.clone().raw(&vec![0; depth]);
        let list = stream(w().structure(70, &[("Next", 70)]), up);
        assert_eq!(list == served, is_served, "a struct with itself, depth {depth}");
        let array = stream(w().array(70, 70, 1), down.clone());
        assert_eq!(array, [Decoded::Unanswered], "an array of itself never ends");
        let map = stream(w().map(70, 3, 70), w().raw(&vec![1; depth * 2]).uint(0));
        assert_eq!(map == served, is_served, "a map of itself, depth {depth}");
        let content = w().text("T").int(71).uint(1).uint(0).uint(1);
        let boxes = (0..depth.min(5000)).fold(w().uint(1), |all, _| all.raw(&content.0).uint(1));
        let nested = stream(w().slice(70, 8).slice(71, 8), boxes);
        assert_eq!(nested, [Decoded::Unanswered], "interfaces in interfaces, cut short");
    }
}

/// A huge announced number of elements costs no more than the bytes that follow, even if elements
/// of the type may be empty.
#[test]
fn announced_counts_cost_nothing() {
    let started = Instant::now();
    let fields = [("Command", 3), ("X", 70)];
    let huge = 1 << 60;
    let empty = w().structure(71, &[("F", 3)]);
    for definitions in [
        empty.clone().slice(70, 71),
        empty.clone().array(70, 71, huge),
        empty.clone().map(70, 71, 71),
        w().array(71, 3, 0).slice(70, 71),
        w().slice(70, 3),
        w().array(70, 70, huge),
    ] {
        let content = w().uint(2).uint(huge.cast_unsigned()).raw(&[0; 60_000]);
        let stream = definitions.structure(65, &fields).value(65, &content);
        assert_eq!(stream.decoded(), [Decoded::Unanswered]);
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

fn any_request() -> impl Strategy<Value = Request> {
    let name = vec(any::<u8>(), 0..300).prop_map(Vec::into_boxed_slice);
    (any::<u8>(), any::<u8>(), any::<u8>(), name).prop_map(|(major, minor, command, name)| Request {
        major,
        minor,
        command,
        name,
    })
}

fn any_reply() -> impl Strategy<Value = OwnedReply> {
    let outcome = (1u8..=4).prop_map(|code| Outcome::from_code(code).unwrap());
    let name = vec(any::<u8>(), 0..300).prop_map(Vec::into_boxed_slice);
    let reason = ".{0,80}".prop_map(String::into_boxed_str);
    (any::<u8>(), name, outcome, reason, any::<bool>()).prop_map(|(command, name, outcome, reason, is_locked)| {
        OwnedReply { command, name, outcome, reason, is_locked }
    })
}

/// A valid stream with definitions of every kind, a suspended interface, and requests.
fn rich_stream() -> Vec<u8> {
    let fields = [("VersionMinor", 3), ("Extra", 8), ("Map", 73), ("LockName", 6), ("Command", 3)];
    let start = w().int(66).uint(1).uint(1).uint(1).text("main.P").raw(&definition_of(70).0);
    let map = w().uint(1).text("key").uint(1).uint(2).uint(7).uint(8);
    let end = w().int(70).uint(1).uint(0).uint(1).raw(&map.0).uint(1).text("a").uint(1).uint(2);
    let stream = w().raw(&REQUEST_DEFINITION).slice(71, 72).array(72, 3, 2).map(73, 6, 71);
    let stream = stream.structure(66, &fields).message(&start).message(&end.uint(0));
    stream.raw(&hex("0e ff82 0201 0102 01056c6f636b31 00")).0
}

/// The stream that `mutated_streams` starts from is valid.
#[test]
fn the_rich_stream_is_valid() {
    let all = decode_all(&rich_stream());
    let expected = [request(2, b"a"), request(2, b"lock1")].map(Decoded::Request);
    assert_eq!(all, Ok(expected.to_vec()));
}

/// Reads as a session does, and checks the limits on what a decoder keeps.
fn read_anything(stream: &[u8]) {
    let (mut decoder, mut rest) = (Decoder::default(), stream);
    while let Ok(Some(Frame { header, body })) = split(rest, BODY_BYTES_MAX) {
        if decoder.message(&rest[header..header + body]).is_err() {
            break;
        }
        rest = &rest[header + body..];
    }
    assert!(decoder.types.len() <= DEFINITIONS_MAX);
    assert!(decoder.suspended.len() <= SUSPENDED_BYTES_MAX);
    decode_message(stream, BODY_BYTES_MAX);
    decode_reply(stream);
}

proptest! {
    /// Every request is the same after encoding and decoding.
    #[test]
    fn requests_round_trip(requests in vec(any_request(), 1..4)) {
        let mut stream = REQUEST_DEFINITION.to_vec();
        for request in &requests {
            encode_request(request, &mut stream);
        }
        let decoded = decode_all(&stream);
        prop_assert_eq!(decode_message(&stream, BODY_BYTES_MAX), Some(requests[0].clone()));
        prop_assert_eq!(decoded, Ok(requests.into_iter().map(Decoded::Request).collect()));
    }

    /// Every reply is the same after encoding and decoding.
    #[test]
    fn replies_round_trip(expected in any_reply()) {
        let OwnedReply { command, name, outcome, reason, is_locked } = &expected;
        let (command, outcome, is_locked) = (*command, *outcome, *is_locked);
        let mut bytes = Vec::new();
        encode_reply(&Reply { command, name, outcome, reason, is_locked }, &mut bytes);
        let frame = split(&bytes, BODY_BYTES_MAX).unwrap().unwrap();
        prop_assert_eq!(frame.header + frame.body, bytes.len());
        prop_assert_eq!(decode_reply(&bytes[frame.header..]), Some(expected));
    }

    /// Random bytes never panic.
    #[test]
    fn random_bytes(bytes in vec(any::<u8>(), 0..2000)) {
        read_anything(&bytes);
    }

    /// Random bytes as one message after definitions of every kind never panic.
    #[test]
    fn random_values(id in 64..75_i64, bytes in vec(prop_oneof![0..4_u8, any::<u8>()], 0..500)) {
        let stream = w().raw(&rich_stream()).value(id, &Stream(bytes));
        read_anything(&stream.0);
    }

    /// A valid stream with some bytes replaced, removed or inserted never panics.
    #[test]
    fn mutated_streams(
        mutations in vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 1..8),
    ) {
        let mut stream = rich_stream();
        for (index, byte, kind) in mutations {
            let at = index.index(stream.len());
            match kind {
                0 => stream[at] = byte,
                1 => drop(stream.remove(at)),
                _ => stream.insert(at, byte),
            }
        }
        read_anything(&stream);
    }
}
