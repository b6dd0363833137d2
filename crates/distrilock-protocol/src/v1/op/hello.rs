//! `hello`: what a session says of itself, and what the daemon says of itself in return.

use serde::{Deserialize, Serialize};

use super::{RequestObject, Wrong};
use crate::limits::{
    HELLO_COMMAND_BYTES_MAX, HELLO_HOST_BYTES_MAX, HELLO_NAME_BYTES_MAX, HELLO_NOTE_BYTES_MAX, HELLO_USER_BYTES_MAX,
};
use crate::v1::{ErrorWord, Text, VERSION};

/// What a session says of itself in a hello, and what others see of it in replies to `peek` and
/// `list`. Everything is optional.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// Its name, such as `backup@db1`: at most 128 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it does: at most 256 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Its host: at most 64 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Its process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its command: at most 256 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Its user: at most 64 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// The body of the reply to `hello`: what a daemon says of itself and of the session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version of the protocol that the session uses.
    pub version: u64,
    /// The session's identity.
    pub session: String,
    /// The daemon's host.
    pub node: String,
    /// What the lock directory is on: `local`, `nfs4` or `unknown`.
    pub directory: String,
    /// After how long a silent peer counts as dead, in milliseconds.
    pub dead_after_ms: u64,
    /// Where a file server may give locks away: how long the daemon assumes that a program takes to
    /// stop, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_ms: Option<u64>,
    /// In the same place: the least that `valid_ms` is in a reply while the file server answers the
    /// daemon, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_ms_min: Option<u64>,
}

impl Introduction {
    /// How many bytes its texts have.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let texts = [&self.name, &self.note, &self.host, &self.command, &self.user];
        texts.into_iter().flatten().map(String::len).sum()
    }
}

impl<'a> RequestObject<'a> {
    pub(super) fn introduction(&mut self) -> Result<Introduction, Wrong> {
        if self.version.take() == Some(0) {
            let message = format!("\"version\" is 0; this daemon speaks version {VERSION}");
            return Err((ErrorWord::BadRequest, message));
        }
        Ok(Introduction {
            name: limited("name", self.name.take(), HELLO_NAME_BYTES_MAX)?,
            note: limited("note", self.note.take(), HELLO_NOTE_BYTES_MAX)?,
            host: limited("host", self.host.take(), HELLO_HOST_BYTES_MAX)?,
            pid: self.pid.take(),
            command: limited("command", self.command.take(), HELLO_COMMAND_BYTES_MAX)?,
            user: limited("user", self.user.take(), HELLO_USER_BYTES_MAX)?,
        })
    }

    /// A hello that says all of this.
    #[must_use]
    pub fn hello(introduction: &'a Introduction) -> Self {
        let text = |text: &'a Option<String>| text.as_deref().map(Text::from);
        Self {
            version: Some(VERSION),
            name: text(&introduction.name),
            note: text(&introduction.note),
            host: text(&introduction.host),
            pid: introduction.pid,
            command: text(&introduction.command),
            user: text(&introduction.user),
            ..Self::new("hello")
        }
    }
}

fn limited(member: &str, text: Option<Text<'_>>, bytes_max: usize) -> Result<Option<String>, Wrong> {
    match text {
        Some(Text(text)) if text.len() > bytes_max => {
            let message = format!("\"{member}\" has {} bytes; at most {bytes_max} are kept", text.len());
            Err((ErrorWord::BadRequest, message))
        }
        // Others see it, on terminals too.
        Some(Text(text)) if text.chars().any(char::is_control) => {
            let message = format!("\"{member}\" has a control character; only printable text is kept");
            Err((ErrorWord::BadRequest, message))
        }
        text => Ok(text.map(|Text(text)| text.into_owned())),
    }
}
