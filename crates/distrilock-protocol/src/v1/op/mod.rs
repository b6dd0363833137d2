//! The table of ops (docs/protocol.md, chapter 3): what each asks, how it is read and written, and
//! the body of its reply.
//!
//! An op has a variant of [`Op`], its word in `OPS`, an arm in `RequestObject::op` that reads it,
//! and one in [`RequestObject::from`] that writes it. Members that no other op has go into
//! [`RequestObject`] and `left_over`. If the reply contains more than `ok`, the type of its body is
//! here or in the file of the op.

pub mod acquire;
pub mod hello;
pub mod look;

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};

use self::acquire::{Entry, Wait};
use self::hello::Introduction;
use super::{ErrorWord, Id, Rejected, Text, VERSION};
use crate::name::LockName;
use crate::want::Want;

/// Why a request is refused before it has an id: the word, and the sentence.
type Wrong = (ErrorWord, String);

/// A valid request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What its reply will carry.
    pub id: Option<Id>,
    /// What is asked.
    pub op: Op,
}

/// What a request asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Introduce the session.
    Hello(Box<Introduction>),
    /// Acquire a lock.
    Acquire {
        /// Which lock.
        lock: LockName,
        /// How it is to be held.
        want: Want,
        /// How long to wait for it.
        wait: Wait,
    },
    /// Acquire several locks, or none.
    AcquireAll {
        /// Which locks, and how each is to be held, in the order asked. No name occurs twice.
        wants: Vec<(LockName, Want)>,
        /// How long to wait for them.
        wait: Wait,
    },
    /// Release a lock.
    Release(LockName),
    /// Release several locks, or none.
    ReleaseAll(Vec<LockName>),
    /// Ask whether the session holds a lock and the lock is still real.
    Verify(LockName),
    /// Ask how old the stamp of a lock that the session holds is, or write it.
    Stamp {
        /// Which lock.
        lock: LockName,
        /// How old it is to be, in milliseconds; `None`: only ask.
        age_ms: Option<u32>,
    },
    /// Ask who holds a lock.
    Peek {
        /// Which lock.
        lock: LockName,
        /// Whether to look at what other daemons show as well.
        all: bool,
    },
    /// End the wait of another request.
    Cancel(Id),
    /// List locks with their holders.
    List {
        /// From the first name after this one.
        after: Option<LockName>,
        /// Whether to list those that other daemons show as well.
        all: bool,
    },
    /// Ask for a sign of life.
    Ping,
    /// Release everything and close.
    Bye,
}

/// The words of all ops.
pub(super) const OPS: [&str; 10] =
    ["hello", "acquire", "release", "verify", "stamp", "peek", "cancel", "list", "ping", "bye"];

/// The body of the reply to `cancel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancelled {
    /// Whether the request was still waiting.
    pub cancelled: bool,
}

/// The body of the reply to `stamp`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamped<'a> {
    /// Which lock.
    pub lock: Cow<'a, str>,
    /// How old the stamp is now, in milliseconds; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
}

/// The body of the reply to `ping`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// For how long the storage is certain to keep the session's locks, from when the ping was
    /// sent, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_ms: Option<u64>,
}

/// A request as it is written: every member that any op has. A client fills in those of one op. A
/// daemon reads them in one pass, strictly, before it knows whether they fit together; text stays
/// borrowed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the protocol's chapter 3 says what each member means")]
pub struct RequestObject<'a> {
    #[serde(borrow)]
    pub op: Text<'a>,
    /// Written by [`line`](Self::line), in front of the others.
    #[serde(skip_serializing)]
    pub id: Option<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locks: Option<Vec<Entry<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub take: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fence: Option<bool>,
    /// There even when it is `null`: no limit.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<Wait>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all: Option<bool>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Wait>, D::Error> {
    Wait::deserialize(deserializer).map(Some)
}

impl<'a> RequestObject<'a> {
    /// A request that has no member but its op.
    #[must_use]
    pub fn new(op: &'static str) -> Self {
        Self {
            op: Text::from(op),
            id: None,
            lock: None,
            locks: None,
            mode: None,
            slots: None,
            take: None,
            fence: None,
            wait_ms: None,
            age_ms: None,
            version: None,
            name: None,
            note: None,
            host: None,
            pid: None,
            command: None,
            user: None,
            request: None,
            after: None,
            all: None,
        }
    }

    fn of_lock(op: &'static str, lock: &'a LockName) -> Self {
        Self { lock: Some(lock.as_str().into()), ..Self::new(op) }
    }

    /// The request as a line, with this id.
    #[must_use]
    pub fn line(&self, id: u64) -> Vec<u8> {
        #[derive(Serialize)]
        struct Numbered<'a> {
            id: u64,
            #[serde(flatten)]
            object: &'a RequestObject<'a>,
        }
        let mut line = serde_json::to_vec(&Numbered { id, object: self }).expect("text and numbers are valid JSON");
        line.push(b'\n');
        line
    }

    /// Checks that the members make a request.
    pub(super) fn request(mut self) -> Result<Request, Rejected> {
        let id = self.id.take();
        match self.op() {
            Ok(op) => Ok(Request { id, op }),
            Err((error, message)) => Err(Rejected { id, error, message }),
        }
    }

    fn op(&mut self) -> Result<Op, Wrong> {
        let op = std::mem::replace(&mut self.op, Text::from("")).0;
        let request = match &*op {
            "hello" => Op::Hello(Box::new(self.introduction()?)),
            "acquire" => {
                let wait = self.wait_ms.take().unwrap_or_default();
                match self.locks {
                    Some(_) => Op::AcquireAll { wants: self.wants()?, wait },
                    None => Op::Acquire { lock: self.lock()?, want: self.want()?, wait },
                }
            }
            "release" if self.locks.is_some() => Op::ReleaseAll(self.names()?),
            "release" => Op::Release(self.lock()?),
            "verify" => Op::Verify(self.lock()?),
            "stamp" => Op::Stamp { lock: self.lock()?, age_ms: self.age()? },
            "peek" => Op::Peek { lock: self.lock()?, all: self.all() },
            "cancel" => Op::Cancel(self.request.take().ok_or_else(|| missing("request"))?),
            "list" => {
                Op::List { after: self.after.take().map(|Text(after)| name(&after)).transpose()?, all: self.all() }
            }
            "ping" => Op::Ping,
            "bye" => Op::Bye,
            op => return Err((ErrorWord::UnknownOp, unknown(op))),
        };
        match self.left_over() {
            Some(member) => Err((ErrorWord::BadRequest, format!("{op} has no member \"{member}\""))),
            None => Ok(request),
        }
    }

    fn lock(&mut self) -> Result<LockName, Wrong> {
        let Text(lock) = self.lock.take().ok_or_else(|| missing("lock"))?;
        name(&lock)
    }

    fn all(&mut self) -> bool {
        self.all.take().unwrap_or_default()
    }

    fn age(&mut self) -> Result<Option<u32>, Wrong> {
        let Some(age_ms) = self.age_ms.take() else { return Ok(None) };
        let too_old = |_| (ErrorWord::BadRequest, format!("\"age_ms\" is {age_ms}; it can be 0 to {}", u32::MAX));
        u32::try_from(age_ms).map(Some).map_err(too_old)
    }

    /// A member that the op does not have. It is refused, since ignoring it might change what the
    /// request means.
    fn left_over(&self) -> Option<&'static str> {
        [
            ("lock", self.lock.is_some()),
            ("locks", self.locks.is_some()),
            ("mode", self.mode.is_some()),
            ("slots", self.slots.is_some()),
            ("take", self.take.is_some()),
            ("fence", self.fence.is_some()),
            ("wait_ms", self.wait_ms.is_some()),
            ("age_ms", self.age_ms.is_some()),
            ("version", self.version.is_some()),
            ("name", self.name.is_some()),
            ("note", self.note.is_some()),
            ("host", self.host.is_some()),
            ("pid", self.pid.is_some()),
            ("command", self.command.is_some()),
            ("user", self.user.is_some()),
            ("request", self.request.is_some()),
            ("after", self.after.is_some()),
            ("all", self.all.is_some()),
        ]
        .into_iter()
        .find_map(|(member, there)| there.then_some(member))
    }
}

impl<'a> From<&'a Op> for RequestObject<'a> {
    fn from(op: &'a Op) -> Self {
        match op {
            Op::Hello(introduction) => Self::hello(introduction),
            Op::Acquire { lock, want, wait } => Self::acquire(lock, *want, *wait),
            Op::AcquireAll { wants, wait } => Self::acquire_all(wants, *wait),
            Op::Release(lock) => Self::of_lock("release", lock),
            Op::ReleaseAll(locks) => {
                let names = locks.iter().map(|lock| Entry::Name(lock.as_str().into()));
                Self { locks: Some(names.collect()), ..Self::new("release") }
            }
            Op::Verify(lock) => Self::of_lock("verify", lock),
            Op::Stamp { lock, age_ms } => Self { age_ms: age_ms.map(u64::from), ..Self::of_lock("stamp", lock) },
            Op::Peek { lock, all } => Self { all: all.then_some(true), ..Self::of_lock("peek", lock) },
            Op::Cancel(request) => Self { request: Some(request.clone()), ..Self::new("cancel") },
            Op::List { after, all } => {
                let after = after.as_ref().map(|after| after.as_str().into());
                Self { after, all: all.then_some(true), ..Self::new("list") }
            }
            Op::Ping => Self::new("ping"),
            Op::Bye => Self::new("bye"),
        }
    }
}

fn missing(member: &str) -> Wrong {
    (ErrorWord::BadRequest, format!("the member \"{member}\" is missing"))
}

fn name(text: &str) -> Result<LockName, Wrong> {
    LockName::parse(text.as_bytes()).map_err(|bad| (ErrorWord::BadName, bad.to_string()))
}

pub(super) fn unknown(op: &str) -> String {
    format!("{:?} is no op of version {VERSION}; it has {}", shortened(op), OPS.join(", "))
}

/// A message quotes the request; it does not echo all of it.
pub(super) fn shortened(message: &str) -> String {
    const CHARS_MAX: usize = 200;
    let mut short: String = message.chars().take(CHARS_MAX).collect();
    if short.len() < message.len() {
        short.push('\u{2026}');
    }
    short
}
