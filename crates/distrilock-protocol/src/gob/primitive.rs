//! The elements of gob: integers, bytes with a length, type ids, and field numbers.

/// The bytes do not match the type, or end too early.
pub(super) struct CutError;

/// Takes gob's elements from the front of some bytes.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    /// How many of the bytes have been taken.
    pub(super) position: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.position == self.bytes.len()
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], CutError> {
        let taken = self.bytes[self.position..].get(..count).ok_or(CutError)?;
        self.position += count;
        Ok(taken)
    }

    pub(super) fn uint(&mut self) -> Result<u64, CutError> {
        let first = *self.bytes.get(self.position).ok_or(CutError)?;
        self.position += 1;
        match integer_width(first).ok_or(CutError)? {
            0 => Ok(first.into()),
            width => {
                let bytes = self.take(width)?;
                Ok(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
            }
        }
    }

    /// An integer of the original's 8-bit fields.
    pub(super) fn byte(&mut self) -> Result<u8, CutError> {
        u8::try_from(self.uint()?).map_err(|_| CutError)
    }

    /// A signed integer. Its sign is the lowest bit: if it is set, the other bits are inverted.
    pub(super) fn int(&mut self) -> Result<i64, CutError> {
        let coded = self.uint()?;
        let magnitude = (coded >> 1).cast_signed();
        Ok(if coded & 1 == 0 { magnitude } else { !magnitude })
    }

    pub(super) fn type_id(&mut self) -> Result<i32, CutError> {
        i32::try_from(self.int()?).map_err(|_| CutError)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], CutError> {
        let length = usize::try_from(self.uint()?).map_err(|_| CutError)?;
        self.take(length)
    }

    /// The index of a struct's next field, or `None` at the end of the struct. As in Go, the end of
    /// the message also ends it. `next` is the index that a delta of 1 means.
    pub(super) fn field(&mut self, next: &mut usize) -> Result<Option<usize>, CutError> {
        if self.is_empty() {
            return Ok(None);
        }
        let Some(skipped) = self.uint()?.checked_sub(1) else {
            return Ok(None);
        };
        let skipped = usize::try_from(skipped).map_err(|_| CutError)?;
        let index = next.checked_add(skipped).ok_or(CutError)?;
        *next = index.checked_add(1).ok_or(CutError)?;
        Ok(Some(index))
    }
}

/// Appends an unsigned integer: below 0x80 as one byte, otherwise as its negated number of bytes
/// followed by the bytes, highest first.
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

/// How many bytes follow `first` in an unsigned integer, or `None` if no such integer exists.
pub(super) fn integer_width(first: u8) -> Option<usize> {
    match first {
        0..0x80 => Some(0),
        0x80..0xf8 => None,
        0xf8.. => Some(usize::from(first.wrapping_neg())),
    }
}
