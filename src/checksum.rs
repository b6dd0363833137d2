//! A checksum that is good enough to tell a torn text from a whole one.

/// FNV-1a with 32 bits (RFC 9923).
#[must_use]
pub fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of the RFC: what is in files has to be read by later versions.
    #[test]
    fn the_sum_of_known_texts() {
        assert_eq!((fnv1a(b""), fnv1a(b"a"), fnv1a(b"foobar")), (0x811c_9dc5, 0xe40c_292c, 0xbf9c_f968));
    }
}
