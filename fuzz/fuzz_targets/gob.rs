//! The bytes of a TCP connection. The first bytes of a connection determine its dialect: most seeds
//! are gob streams, the others are lines of JSON. The first two bytes of the input determine how
//! the rest is cut into reads.

#![no_main]

mod cuts;

use distrilock_protocol::Codec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((cuts, stream)) = bytes.split_first_chunk::<2>() {
        cuts::compare(Codec::stream, cuts, stream);
    }
});
