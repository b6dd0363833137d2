//! The bytes of a WebSocket connection after its handshake: frames with messages in every dialect.
//! The first two bytes of the input determine how the rest is cut into reads.

#![no_main]

mod cuts;

use distrilock_protocol::Codec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((cuts, stream)) = bytes.split_first_chunk::<2>() {
        cuts::compare(Codec::websocket, cuts, stream);
    }
});
