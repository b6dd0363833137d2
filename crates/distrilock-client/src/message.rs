//! What a client sends, and what it understands of what comes back (docs/protocol.md, chapters 3 to 5). Members that it does
//! not know are ignored, for a newer daemon may have more.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::error::shown;
use super::{Listed, Welcome};
use distrilock_protocol::name::LockName;

/// A request; what is absent is left out. `wait_ms` is `null` for a wait without limit.
#[derive(Debug, Default, Serialize)]
pub(super) struct Request<'a> {
    pub(super) id: u64,
    pub(super) op: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lock: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) locks: Option<Vec<Entry<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) slots: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) take: Option<u32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) fence: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) wait_ms: Option<Option<u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) after: Option<&'a str>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) hello: Option<Hello<'a>>,
}

/// The members of a hello.
#[derive(Debug, Serialize)]
pub(super) struct Hello<'a> {
    pub(super) version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) note: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) host: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) command: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<&'a str>,
}

/// One of several locks in a request.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Entry<'a> {
    Name(&'a str),
    Object {
        lock: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        mode: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        slots: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        take: Option<u32>,
    },
}

/// What every reply and every event may have; the rest of it depends on what was asked.
#[derive(Debug, Deserialize)]
pub(super) struct Head {
    pub(super) event: Option<String>,
    pub(super) id: Option<u64>,
    pub(super) ok: Option<bool>,
    error: Option<String>,
    message: Option<String>,
    reason: Option<String>,
    #[serde(default)]
    lock: Option<String>,
    pub(super) valid_ms: Option<u64>,
}

/// A daemon's no.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) word: String,
    pub(super) message: String,
    pub(super) lock: Option<LockName>,
}

impl Head {
    pub(super) fn lock(&self) -> Option<LockName> {
        LockName::parse(self.lock.as_ref()?.as_bytes()).ok()
    }

    pub(super) fn reason(&self) -> String {
        self.reason.as_deref().map_or_else(|| "the daemon gives no reason".into(), shown)
    }

    pub(super) fn refusal(&self) -> Refusal {
        let word = shown(self.error.as_deref().unwrap_or("refused"));
        let message = self.message.as_deref().map_or_else(|| format!("the daemon refuses: {word}"), shown);
        Refusal { word, message, lock: self.lock() }
    }
}

/// A lock in the reply to an acquire.
#[derive(Debug, Deserialize)]
pub(super) struct GrantedLock {
    lock: String,
    slot: Option<u32>,
    #[serde(default)]
    taken: Vec<u32>,
    fence: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct GrantedLocks {
    locks: Vec<GrantedLock>,
}

/// A lock that is held, and what the grant said of it.
///
/// ```
/// use distrilock_client::Client;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let daemon = distrilock_testing::Daemon::start();
/// # let servers = daemon.servers();
/// let client = Client::connect(&servers).await?;
/// let held = client.lock("nightly").acquire().await?;
/// assert_eq!(held.locks()[0].name.as_str(), "nightly");
/// assert!(held.locks()[0].slots.is_empty());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeldLock {
    /// Its name.
    pub name: LockName,
    /// The slots that are held, counted from 0; none unless slots were asked for.
    pub slots: Vec<u32>,
    /// The fence, if one was asked for: it only rises for its name.
    pub fence: Option<u64>,
}

/// Reads a grant of `names`, in this order.
///
/// # Errors
/// What is wrong with it.
pub(super) fn granted(text: &[u8], names: &[LockName]) -> Result<Vec<HeldLock>, String> {
    let locks = if let [_] = names {
        serde_json::from_slice::<GrantedLock>(text).map(|lock| vec![lock])
    } else {
        serde_json::from_slice::<GrantedLocks>(text).map(|several| several.locks)
    };
    let locks = locks.map_err(|error| format!("a grant: {error}"))?;
    if locks.len() != names.len() {
        return Err(format!("a grant of {} locks, not of the {} that were asked for", locks.len(), names.len()));
    }
    locks.into_iter().zip(names).map(|(lock, name)| held(lock, name)).collect()
}

fn held(lock: GrantedLock, name: &LockName) -> Result<HeldLock, String> {
    if lock.lock != name.as_str() {
        return Err(format!("a grant of another lock than {name}"));
    }
    let slots = if lock.taken.is_empty() { lock.slot.into_iter().collect() } else { lock.taken };
    if slots.iter().collect::<HashSet<_>>().len() != slots.len() {
        return Err(format!("a grant of {name} that names a slot twice"));
    }
    Ok(HeldLock { name: name.clone(), slots, fence: lock.fence })
}

/// What a reply says beyond yes.
pub(super) trait Body: Sized {
    /// Reads it.
    ///
    /// # Errors
    /// If it is not what was asked for.
    fn read(text: &[u8]) -> Result<Self, serde_json::Error>;
}

impl Body for () {
    fn read(_: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(())
    }
}

impl Body for Welcome {
    fn read(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }
}

impl Body for super::Peeked {
    fn read(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }
}

/// A page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    pub(super) locks: Vec<Listed>,
    #[serde(default)]
    pub(super) more: bool,
}

impl Body for Page {
    fn read(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }
}
