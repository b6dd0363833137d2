//! Type definitions: what a stream says about its values, reduced to the part that is needed.

use serde::{Deserialize, Serialize};

use super::primitive::{CutError, Reader};
use super::{FIELDS_MAX, GobError};

/// Gob's built-in types, which need no definition.
pub(super) const BOOL: i32 = 1;
pub(super) const INT: i32 = 2;
pub(super) const UINT: i32 = 3;
pub(super) const FLOAT: i32 = 4;
pub(super) const BYTES: i32 = 5;
pub(super) const STRING: i32 = 6;
pub(super) const COMPLEX: i32 = 7;
pub(super) const INTERFACE: i32 = 8;
/// The first id that is not built in.
pub(super) const FIRST_USER_ID: i32 = 64;

/// A definition, reduced to what is needed to skip a value, or to read a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Type {
    Array {
        element: i32,
        length: u64,
    },
    Slice {
        element: i32,
    },
    Map {
        key: i32,
        element: i32,
    },
    Struct {
        fields: Box<[Field]>,
        is_request: bool,
    },
    /// A type that encodes itself: its values are bytes, prefixed by their length.
    Opaque,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Field {
    pub(super) role: Role,
    pub(super) type_id: i32,
}

/// What a field means in a request. Names match as in Go: in full, and in this letter case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Role {
    Major,
    Minor,
    Command,
    Name,
    Unknown,
    /// A field without a name, for which Go refuses the type.
    Nameless,
}

impl Role {
    fn of(name: &[u8]) -> Self {
        match name {
            b"VersionMajor" => Self::Major,
            b"VersionMinor" => Self::Minor,
            b"Command" => Self::Command,
            b"LockName" => Self::Name,
            b"" => Self::Nameless,
            _ => Self::Unknown,
        }
    }
}

impl From<CutError> for GobError {
    fn from(_: CutError) -> Self {
        Self::Definition
    }
}

impl Type {
    /// Reads a `wireType`: a struct with exactly one field set.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, GobError> {
        let mut next = 0;
        let kind = reader.field(&mut next)?.ok_or(GobError::Definition)?;
        let definition = match kind {
            0..=3 => Self::read_composite(kind, reader)?,
            4..=6 => {
                Self::read_composite(kind, reader)?;
                Self::Opaque
            }
            _ => return Err(GobError::Definition),
        };
        match reader.field(&mut next)? {
            None => Ok(definition),
            Some(_) => Err(GobError::Definition),
        }
    }

    /// Reads the description of one kind of type. All of them start with the type's name and id,
    /// which are not needed.
    fn read_composite(kind: usize, reader: &mut Reader<'_>) -> Result<Self, GobError> {
        let mut next = 0;
        let (mut first, mut second, mut length) = (0, 0, 0);
        let mut fields = Box::default();
        while let Some(index) = reader.field(&mut next)? {
            match (kind, index) {
                (_, 0) => drop(read_name_and_id(reader)?),
                (0 | 1 | 3, 1) => first = reader.type_id()?,
                (0, 2) => length = reader.int()?.cast_unsigned(),
                (3, 2) => second = reader.type_id()?,
                (2, 1) => fields = read_fields(reader)?,
                _ => return Err(GobError::Definition),
            }
        }
        Ok(match kind {
            0 => Self::Array { element: first, length },
            1 => Self::Slice { element: first },
            2 => Self::Struct { is_request: is_request(&fields), fields },
            3 => Self::Map { key: first, element: second },
            _ => Self::Opaque,
        })
    }
}

fn read_fields(reader: &mut Reader<'_>) -> Result<Box<[Field]>, GobError> {
    let count = reader.uint()?;
    if count > FIELDS_MAX as u64 {
        return Err(GobError::TooManyFields(count));
    }
    let field = |_| {
        if reader.is_empty() {
            return Err(GobError::Definition);
        }
        let (name, type_id) = read_name_and_id(reader)?;
        Ok(Field { role: Role::of(name), type_id })
    };
    (0..count).map(field).collect()
}

/// Reads a struct of a name and an id, which describes a type or a field.
fn read_name_and_id<'a>(reader: &mut Reader<'a>) -> Result<(&'a [u8], i32), GobError> {
    let (mut next, mut name, mut id) = (0, &b""[..], 0);
    while let Some(index) = reader.field(&mut next)? {
        match index {
            0 => name = reader.bytes()?,
            1 => id = reader.type_id()?,
            _ => return Err(GobError::Definition),
        }
    }
    Ok((name, id))
}

/// Whether Go's decoder reads a struct of these fields as a request: every field that it knows has
/// the right type, and it knows at least one, unless there are none.
fn is_request(fields: &[Field]) -> bool {
    let agrees = |field: &Field| match field.role {
        Role::Major | Role::Minor | Role::Command => field.type_id == UINT,
        Role::Name => field.type_id == STRING,
        Role::Unknown => true,
        Role::Nameless => false,
    };
    let is_known = |field: &Field| field.role != Role::Unknown;
    fields.iter().all(agrees) && (fields.is_empty() || fields.iter().any(is_known))
}
