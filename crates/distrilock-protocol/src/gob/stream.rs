//! The messages of a stream: definitions are kept, and values become requests. Everything else in a
//! value is skipped.

use std::mem;

use serde::{Deserialize, Serialize};

use super::primitive::{CutError, Reader};
use super::types::{BOOL, BYTES, COMPLEX, FIRST_USER_ID, FLOAT, Field, INT, INTERFACE, Role, STRING, Type, UINT};
use super::{DEFINITIONS_MAX, DEPTH_MAX, GobError, SUSPENDED_BYTES_MAX};
use crate::v0::Request;

/// What a message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// A type definition, or part of a value: a later message completes the request.
    Definition,
    /// A request.
    Request(Request),
    /// A value that the original refuses without a reply. The stream continues with the next
    /// message.
    Unanswered,
}

/// The type definitions of one stream, as far as it has been read.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Decoder {
    /// In the order of their ids.
    pub(super) types: Vec<(i32, Type)>,
    /// The start of a value that continues in the next message, or empty.
    pub(super) suspended: Vec<u8>,
}

impl Decoder {
    /// Reads one message, without its length prefix.
    ///
    /// A message is one definition or one value, with one exception: where an interface holds a
    /// type that was not sent before, Go's encoder ends the message in the middle of the value with
    /// that definition, and continues in the next message.
    ///
    /// # Errors
    ///
    /// [`GobError`] if a definition is corrupt or exceeds a limit: nothing sent after it could be
    /// understood. Corrupt *values* are [`Decoded::Unanswered`], since they harm only themselves.
    pub fn message(&mut self, body: &[u8]) -> Result<Decoded, GobError> {
        if !self.suspended.is_empty() {
            let mut joined = mem::take(&mut self.suspended);
            let replayed = joined.len();
            joined.extend_from_slice(body);
            return self.value_message(&joined, replayed);
        }
        let mut reader = Reader::new(body);
        let id = reader.int().map_err(|CutError| GobError::TypeId)?;
        if id >= 0 {
            return self.value_message(body, 0);
        }
        let definition = Type::read(&mut reader)?;
        if !reader.is_empty() {
            return Err(GobError::Definition);
        }
        Ok(if self.define(id, definition)? { Decoded::Definition } else { Decoded::Unanswered })
    }

    fn value_message(&mut self, body: &[u8], replayed: usize) -> Result<Decoded, GobError> {
        let mut value = Value { decoder: self, reader: Reader::new(body), replayed };
        match value.request() {
            Ok(request) => Ok(Decoded::Request(request)),
            Err(Stop::Refused) => Ok(Decoded::Unanswered),
            Err(Stop::Suspended { at }) if at <= SUSPENDED_BYTES_MAX => {
                self.suspended.extend_from_slice(&body[..at]);
                Ok(Decoded::Definition)
            }
            Err(Stop::Suspended { at }) => Err(GobError::TooLong { length: at as u64, maximum: SUSPENDED_BYTES_MAX }),
            Err(Stop::Malformed(reason)) => Err(reason),
        }
    }

    /// Adds the type that `negative_id` announces. Returns false if Go refuses that id, because it
    /// is built in or already in use.
    fn define(&mut self, negative_id: i64, definition: Type) -> Result<bool, GobError> {
        let id = i32::try_from(negative_id).ok().and_then(i32::checked_neg);
        let id = id.ok_or(GobError::TypeId)?;
        if id < FIRST_USER_ID {
            return Ok(false);
        }
        let Err(place) = self.place(id) else {
            return Ok(false);
        };
        if self.types.len() == DEFINITIONS_MAX {
            return Err(GobError::TooManyDefinitions);
        }
        self.types.insert(place, (id, definition));
        Ok(true)
    }

    fn place(&self, id: i32) -> Result<usize, usize> {
        self.types.binary_search_by_key(&id, |(id, _)| *id)
    }

    fn type_of(&self, id: i32) -> Option<&Type> {
        self.place(id).ok().map(|place| &self.types[place].1)
    }

    fn field(&self, id: i32, index: usize) -> Option<Field> {
        match self.type_of(id)? {
            Type::Struct { fields, .. } => fields.get(index).copied(),
            _ => None,
        }
    }
}

/// Why reading a value stopped early.
enum Stop {
    /// It is not a request, or its bytes do not match its type.
    Refused,
    /// The next message contains the rest, which is joined to the first `at` bytes.
    Suspended {
        at: usize,
    },
    Malformed(GobError),
}

impl From<CutError> for Stop {
    fn from(_: CutError) -> Self {
        Self::Refused
    }
}

impl From<GobError> for Stop {
    fn from(reason: GobError) -> Self {
        Self::Malformed(reason)
    }
}

/// A value that is being read. It needs the whole decoder, since an interface can contain
/// definitions.
struct Value<'a> {
    decoder: &'a mut Decoder,
    reader: Reader<'a>,
    /// How many bytes at the start were read before, so that their definitions are known.
    replayed: usize,
}

impl Value<'_> {
    fn request(&mut self) -> Result<Request, Stop> {
        let id = self.reader.type_id()?;
        let Some(Type::Struct { is_request: true, .. }) = self.decoder.type_of(id) else {
            return Err(Stop::Refused);
        };
        let mut request = Request::default();
        let mut next = 0;
        while let Some(index) = self.reader.field(&mut next)? {
            let field = self.decoder.field(id, index).ok_or(Stop::Refused)?;
            match field.role {
                Role::Major => request.major = self.reader.byte()?,
                Role::Minor => request.minor = self.reader.byte()?,
                Role::Command => request.command = self.reader.byte()?,
                Role::Name => request.name = self.reader.bytes()?.into(),
                Role::Unknown | Role::Nameless => self.skip(field.type_id, 0)?,
            }
        }
        Ok(request)
    }

    /// Skips a value. At least one byte is consumed, unless the message ends here.
    fn skip(&mut self, id: i32, depth: usize) -> Result<(), Stop> {
        if depth > DEPTH_MAX {
            return Err(Stop::Refused);
        }
        match id {
            BOOL | INT | UINT | FLOAT => _ = self.reader.uint()?,
            BYTES | STRING => _ = self.reader.bytes()?,
            COMPLEX => {
                self.reader.uint()?;
                self.reader.uint()?;
            }
            INTERFACE => self.skip_interface(depth)?,
            _ => self.skip_defined(id, depth)?,
        }
        Ok(())
    }

    fn skip_defined(&mut self, id: i32, depth: usize) -> Result<(), Stop> {
        match self.decoder.type_of(id) {
            None => Err(Stop::Refused),
            Some(Type::Opaque) => {
                self.reader.bytes()?;
                Ok(())
            }
            Some(Type::Struct { .. }) => self.skip_struct(id, depth),
            Some(&Type::Slice { element }) => {
                let count = self.reader.uint()?;
                self.skip_elements(count, &[element], depth)
            }
            Some(&Type::Map { key, element }) => {
                let count = self.reader.uint()?;
                self.skip_elements(count, &[key, element], depth)
            }
            Some(&Type::Array { element, length }) => {
                if self.reader.uint()? != length {
                    return Err(Stop::Refused);
                }
                self.skip_elements(length, &[element], depth)
            }
        }
    }

    /// Skips a value of each of the types `ids`, `count` times. An empty struct would consume
    /// nothing at the end of the message, so the end is checked for before each one.
    fn skip_elements(&mut self, count: u64, ids: &[i32], depth: usize) -> Result<(), Stop> {
        for _ in 0..count {
            for &id in ids {
                if self.reader.is_empty() {
                    return Err(Stop::Refused);
                }
                self.skip(id, depth + 1)?;
            }
        }
        Ok(())
    }

    fn skip_struct(&mut self, id: i32, depth: usize) -> Result<(), Stop> {
        let mut next = 0;
        while let Some(index) = self.reader.field(&mut next)? {
            let field = self.decoder.field(id, index).ok_or(Stop::Refused)?;
            self.skip(field.type_id, depth + 1)?;
        }
        Ok(())
    }

    /// Skips an interface: the name of the type in it (empty if it is nil), definitions that were
    /// not sent before, the type's id, the length of the value, and the value. The length is not
    /// used, since it does not count definitions inside the value.
    fn skip_interface(&mut self, depth: usize) -> Result<(), Stop> {
        if self.reader.bytes()?.is_empty() {
            return Ok(());
        }
        let id = loop {
            let at = self.reader.position;
            let id = self.reader.int()?;
            if id >= 0 {
                break i32::try_from(id).map_err(|_| Stop::Refused)?;
            }
            let definition = Type::read(&mut self.reader)?;
            if at >= self.replayed && !self.decoder.define(id, definition)? {
                return Err(Stop::Refused);
            }
            if self.reader.is_empty() {
                return Err(Stop::Suspended { at });
            }
            // The length of what follows the definition, which matters only to streams.
            self.reader.uint()?;
        };
        self.reader.uint()?;
        let is_struct = matches!(self.decoder.type_of(id), Some(Type::Struct { .. }));
        if !is_struct && self.reader.uint()? != 0 {
            return Err(Stop::Refused);
        }
        self.skip(id, depth + 1)
    }
}
