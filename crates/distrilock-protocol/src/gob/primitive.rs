//! The elements of gob: integers, bytes with a length, type ids, and the numbers of fields.

/// The bytes are not what the type says, or end too early.
pub(super) struct Cut;

/// Takes gob's elements from the front of some bytes.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    /// How many of the bytes were taken.
    pub(super) position: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.position == self.bytes.len()
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Cut> {
        let taken = self.bytes[self.position..].get(..count).ok_or(Cut)?;
        self.position += count;
        Ok(taken)
    }

    pub(super) fn uint(&mut self) -> Result<u64, Cut> {
        let first = *self.bytes.get(self.position).ok_or(Cut)?;
        self.position += 1;
        match integer_width(first).ok_or(Cut)? {
            0 => Ok(first.into()),
            width => {
                let bytes = self.take(width)?;
                Ok(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
            }
        }
    }

    /// An integer of the original's 8-bit fields.
    pub(super) fn byte(&mut self) -> Result<u8, Cut> {
        u8::try_from(self.uint()?).map_err(|_| Cut)
    }

    /// A signed integer: its sign is the lowest bit, which, if set, says that the others are
    /// inverted.
    pub(super) fn int(&mut self) -> Result<i64, Cut> {
        let coded = self.uint()?;
        let magnitude = (coded >> 1).cast_signed();
        Ok(if coded & 1 == 0 { magnitude } else { !magnitude })
    }

    pub(super) fn type_id(&mut self) -> Result<i32, Cut> {
        i32::try_from(self.int()?).map_err(|_| Cut)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Cut> {
        let length = usize::try_from(self.uint()?).map_err(|_| Cut)?;
        self.take(length)
    }

    /// The index of a struct's next field, or `None` at the struct's end, which, as in Go, may also
    /// be the end of the message. `next` is the index that a delta of 1 means.
    pub(super) fn field(&mut self, next: &mut usize) -> Result<Option<usize>, Cut> {
        if self.is_empty() {
            return Ok(None);
        }
        let Some(skipped) = self.uint()?.checked_sub(1) else {
            return Ok(None);
        };
        let skipped = usize::try_from(skipped).map_err(|_| Cut)?;
        let index = next.checked_add(skipped).ok_or(Cut)?;
        *next = index.checked_add(1).ok_or(Cut)?;
        Ok(Some(index))
    }
}

/// An unsigned integer: itself in one byte below 0x80, else its bytes, the highest first, after
/// their negated number.
pub(super) fn append_uint(number: u64, out: &mut Vec<u8>) {
    let bytes = number.to_be_bytes();
    if number < 0x80 {
        out.push(bytes[7]);
        return;
    }
    let zeros = bytes.iter().take_while(|byte| **byte == 0).map(|_| 1).sum::<u8>();
    out.push(0xf8 + zeros);
    out.extend_from_slice(&bytes[usize::from(zeros)..]);
}

/// The bytes that follow `first` in an unsigned integer, or `None` if there is no such integer.
pub(super) fn integer_width(first: u8) -> Option<usize> {
    match first {
        0..0x80 => Some(0),
        0x80..0xf8 => None,
        0xf8.. => Some(usize::from(first.wrapping_neg())),
    }
}
