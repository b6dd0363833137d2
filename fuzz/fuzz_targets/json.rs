//! One JSON text, decoded as a request of version 1 and of version 0.1. A decoded request can be
//! encoded and decoded again.

#![no_main]

use distrilock_protocol::limits::ID_BYTES_MAX;
use distrilock_protocol::{v0, v1};
use libfuzzer_sys::fuzz_target;

/// A refusal may quote the request, but stays much shorter than the longest request.
const MESSAGE_BYTES_MAX: usize = 2000;

fuzz_target!(|text: &[u8]| {
    let id = match v1::decode(text) {
        Ok(request) => {
            assert!(v1::has_op(text), "a request of version 1 has an op");
            request.id
        }
        Err(refusal) => {
            assert!(refusal.message.len() <= MESSAGE_BYTES_MAX, "{}", refusal.message);
            refusal.id
        }
    };
    if let Some(v1::Id::Text(id)) = id {
        assert!(id.len() <= ID_BYTES_MAX);
    }
    if let Some(request) = v0::decode_json(text) {
        let mut line = Vec::new();
        v0::encode_json_request(&request, &mut line);
        assert_eq!(v0::decode_json(&line), Some(request));
        assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1), "one line");
    }
});
