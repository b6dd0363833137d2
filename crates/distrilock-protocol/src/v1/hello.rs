//! What a session says of itself.

use serde::{Deserialize, Serialize};

use super::{Error, Members, Op, VERSION, limited};
use crate::limits::{
    HELLO_COMMAND_BYTES_MAX, HELLO_HOST_BYTES_MAX, HELLO_NAME_BYTES_MAX, HELLO_NOTE_BYTES_MAX, HELLO_USER_BYTES_MAX,
};

/// What a session says of itself in a hello, and others see of it; what it does not say is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Box<str>>,
    /// What it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<Box<str>>,
    /// Its host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Box<str>>,
    /// Its process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Box<str>>,
    /// Its user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<Box<str>>,
}

impl Introduction {
    /// How long its texts are.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let texts = [&self.name, &self.note, &self.host, &self.command, &self.user];
        texts.into_iter().flatten().map(|text| text.len()).sum()
    }
}

impl Members<'_> {
    pub(super) fn hello(&mut self) -> Result<Op, (Error, String)> {
        if self.version.take() == Some(0) {
            return Err((Error::BadRequest, format!("\"version\" is 0; this daemon speaks version {VERSION}")));
        }
        Ok(Op::Hello(Box::new(Introduction {
            name: limited("name", self.name.take(), HELLO_NAME_BYTES_MAX)?,
            note: limited("note", self.note.take(), HELLO_NOTE_BYTES_MAX)?,
            host: limited("host", self.host.take(), HELLO_HOST_BYTES_MAX)?,
            pid: self.pid.take(),
            command: limited("command", self.command.take(), HELLO_COMMAND_BYTES_MAX)?,
            user: limited("user", self.user.take(), HELLO_USER_BYTES_MAX)?,
        })))
    }
}
