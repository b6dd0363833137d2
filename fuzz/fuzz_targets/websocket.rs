//! A WebSocket connection after its handshake: frames, and the messages of every dialect in them.
//! The first two bytes choose how the rest is cut.

#![no_main]

mod cuts;

use distrilock_protocol::Codec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((cuts, stream)) = bytes.split_first_chunk::<2>() {
        cuts::compare(Codec::websocket, cuts, stream);
    }
});
