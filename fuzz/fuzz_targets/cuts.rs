//! How a [`Codec`] reads bytes must not depend on how they were cut in transit.

use distrilock_protocol::{Codec, Incoming, Violation};

/// The result of reading a stream: its messages, the violation of the protocol if there is one, and
/// the replies of the framing itself.
#[derive(Debug, PartialEq, Eq)]
struct Taken {
    messages: Vec<String>,
    violation: Option<String>,
    dialect: &'static str,
    out: Vec<u8>,
}

/// Reads the stream once in one piece and once in pieces, and compares the results. `cuts` are the
/// sizes of the pieces, used over and over.
///
/// # Panics
/// If the results differ.
pub(crate) fn compare(new: impl Fn() -> Codec, cuts: &[u8], stream: &[u8]) {
    let whole = take(new(), &[stream.len()], stream);
    let cuts: Vec<usize> = cuts.iter().map(|cut| usize::from(*cut) + 1).collect();
    assert_eq!(take(new(), &cuts, stream), whole, "cut after {cuts:?}");
}

fn take(mut codec: Codec, cuts: &[usize], stream: &[u8]) -> Taken {
    let mut taken = Taken { messages: Vec::new(), violation: None, dialect: "", out: Vec::new() };
    let (mut start, mut end) = (0, 0);
    let mut cuts = cuts.iter().cycle();
    while end < stream.len() && taken.violation.is_none() {
        end = (end + cuts.next().expect("a cycle does not end")).min(stream.len());
        loop {
            match codec.next(&stream[start..end], &mut taken.out) {
                Ok(None) => break,
                Ok(Some((bytes, message))) => {
                    assert!(bytes > 0 && start + bytes <= end, "a message of {bytes} bytes");
                    start += bytes;
                    taken.messages.push(format!("{message:?}"));
                    // Nothing is read after the client has closed the connection.
                    if matches!(message, Incoming::Closed) {
                        taken.dialect = codec.dialect().word();
                        return taken;
                    }
                }
                Err(violation) => {
                    taken.violation = Some(seen(&violation, &mut taken.out));
                    break;
                }
            }
        }
    }
    taken.dialect = codec.dialect().word();
    taken
}

/// The length of a line without its end depends on how much of it was there, so it is not compared.
fn seen(violation: &Violation, out: &mut Vec<u8>) -> String {
    match violation {
        Violation::TooLong { .. } => {
            out.clear();
            "too long".into()
        }
        violation => format!("{violation:?}"),
    }
}
