//! Acquiring: what can be asked, and the future that asks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::boot::BootTime;
use super::error::AcquireError;
use super::held::Held;
use super::message::{Entry, Request};
use super::session::NotNow;
use super::shared::Shared;
use super::{Client, MODE_SHARED};
use distrilock_protocol::name::LockName;

/// How many names one acquire may have.
const LOCKS_MAX: usize = 64;

/// One of several locks, where it differs from the others; see [`Client::locks`].
///
/// ```
/// use distrilock_client::{Client, Wanted};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let scripted = distrilock_testing::scripted(
/// #     r#"{"id":2,"ok":true,"locks":[{"lock":"config","mode":"shared"},{"lock":"gpu","slot":2}]}"#);
/// # let servers = scripted.servers();
/// let client = Client::connect(&servers).await?;
/// let held = client.locks([Wanted::new("config").shared(), Wanted::new("gpu").slots(4)]).acquire().await?;
/// assert_eq!(held.locks()[1].slots, [2]);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Wanted {
    name: String,
    shared: bool,
    slots: Option<u32>,
    take: Option<u32>,
}

impl Wanted {
    /// The lock of this name, exclusively; see [`Wanted`] for an example.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), shared: false, slots: None, take: None }
    }

    /// Together with others who share it; see [`Wanted`] for an example.
    #[must_use]
    pub fn shared(mut self) -> Self {
        self.shared = true;
        self
    }

    /// One of so many slots; see [`Wanted`] for an example.
    #[must_use]
    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = Some(slots);
        self
    }

    /// So many of the slots.
    ///
    /// ```
    /// let wanted = distrilock_client::Wanted::new("gpu").slots(4).take(2);
    /// ```
    #[must_use]
    pub fn take(mut self, take: u32) -> Self {
        self.take = Some(take);
        self
    }

    fn mode(&self) -> Option<&'static str> {
        self.shared.then_some(MODE_SHARED)
    }
}

impl<T: Into<String>> From<T> for Wanted {
    fn from(name: T) -> Self {
        Self::new(name)
    }
}

#[derive(Clone, Copy, Debug)]
enum Wait {
    No,
    AtMost(Duration),
    NoLimit,
}

/// A valid acquire.
#[derive(Debug)]
pub(super) struct Asked {
    locks: Vec<(LockName, Wanted)>,
    wait: Wait,
    fence: bool,
}

impl Asked {
    fn new(wanted: &[Wanted], wait: Wait, fence: bool) -> Result<Self, AcquireError> {
        let bad = |message: String, lock| AcquireError::BadRequest { message, lock };
        if !(1..=LOCKS_MAX).contains(&wanted.len()) {
            return Err(bad(format!("an acquire has 1 to {LOCKS_MAX} names; this one has {}", wanted.len()), None));
        }
        let mut locks: Vec<(LockName, Wanted)> = Vec::new();
        for wanted in wanted {
            let name = LockName::parse(wanted.name.as_bytes())?;
            if locks.iter().any(|(other, _)| *other == name) {
                return Err(bad(format!("the lock {name} is named twice"), Some(name)));
            }
            locks.push((name, wanted.clone()));
        }
        Ok(Self { locks, wait, fence })
    }

    #[cfg(test)]
    pub(super) fn of(wanted: &[Wanted], waits: bool) -> Result<Self, AcquireError> {
        Self::new(wanted, if waits { Wait::NoLimit } else { Wait::No }, false)
    }

    pub(super) fn names(&self) -> Vec<LockName> {
        self.locks.iter().map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn waits(&self) -> bool {
        match self.wait {
            Wait::No => false,
            Wait::AtMost(time) => !time.is_zero(),
            Wait::NoLimit => true,
        }
    }

    pub(super) fn request(&self) -> Request<'_> {
        let wait_ms = match self.wait {
            Wait::No => None,
            // Rounded up: to wait for a part of a millisecond is to wait.
            Wait::AtMost(time) => Some(u64::try_from(time.as_nanos().div_ceil(1_000_000)).ok()),
            Wait::NoLimit => Some(None),
        };
        let request = Request { op: "acquire", fence: self.fence, wait_ms, ..Request::default() };
        match &self.locks[..] {
            [(name, Wanted { slots, take, shared, .. })] => {
                let mode = shared.then_some(MODE_SHARED);
                Request { lock: Some(name.as_str()), mode, slots: *slots, take: *take, ..request }
            }
            several => Request { locks: Some(several.iter().map(entry).collect()), ..request },
        }
    }
}

fn entry((name, wanted): &(LockName, Wanted)) -> Entry<'_> {
    match (wanted.mode(), wanted.slots, wanted.take) {
        (None, None, None) => Entry::Name(name.as_str()),
        (mode, slots, take) => Entry::Object { lock: name.as_str(), mode, slots, take },
    }
}

/// An acquire that is being put together: [`Client::lock`] begins one for a name, [`Client::locks`] one for several.
///
/// ```
/// use std::time::Duration;
/// use distrilock_client::Client;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let daemon = distrilock_testing::Daemon::start();
/// # let servers = daemon.servers();
/// let client = Client::connect(&servers).await?;
/// let held = client.lock("config").shared().wait_at_most(Duration::from_secs(60)).acquire().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is asked before `acquire`"]
pub struct Acquire {
    client: Client,
    wanted: Vec<Wanted>,
    wait: Wait,
    fence: bool,
}

impl Acquire {
    pub(super) fn new(client: Client, wanted: Vec<Wanted>) -> Self {
        Self { client, wanted, wait: Wait::No, fence: false }
    }

    /// Together with others who share it; see [`Acquire`] for an example.
    pub fn shared(mut self) -> Self {
        self.wanted.iter_mut().for_each(|wanted| wanted.shared = true);
        self
    }

    /// Waits until the lock is granted, without limit. Without this or [`wait_at_most`](Self::wait_at_most), the lock is tried
    /// once.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::connect(&servers).await?;
    /// let held = client.lock("nightly").wait().acquire().await?;
    /// # Ok(()) }
    /// ```
    pub fn wait(mut self) -> Self {
        self.wait = Wait::NoLimit;
        self
    }

    /// Waits for at most so long, then fails with [`AcquireError::Timeout`]; see [`Acquire`] for an example.
    pub fn wait_at_most(mut self, time: Duration) -> Self {
        self.wait = Wait::AtMost(time);
        self
    }

    /// The name is a lock of so many slots, of which one is acquired. All holders have to name the same number.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let scripted = distrilock_testing::scripted(r#"{"id":2,"ok":true,"lock":"gpu","slot":2,"taken":[2,3]}"#);
    /// # let servers = scripted.servers();
    /// let client = Client::connect(&servers).await?;
    /// let held = client.lock("gpu").slots(4).take(2).acquire().await?;
    /// assert_eq!(held.slots(), [2, 3]);
    /// # Ok(()) }
    /// ```
    pub fn slots(mut self, slots: u32) -> Self {
        self.wanted.iter_mut().for_each(|wanted| wanted.slots = Some(slots));
        self
    }

    /// So many of the slots; see [`slots`](Self::slots) for an example.
    pub fn take(mut self, take: u32) -> Self {
        self.wanted.iter_mut().for_each(|wanted| wanted.take = Some(take));
        self
    }

    /// The grant carries a fence: a number that only rises for its name. What the lock guards can refuse lower ones.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let scripted = distrilock_testing::scripted(r#"{"id":2,"ok":true,"lock":"ledger","fence":91}"#);
    /// # let servers = scripted.servers();
    /// let client = Client::connect(&servers).await?;
    /// let held = client.lock("ledger").fence().acquire().await?;
    /// assert_eq!(held.fence(), Some(91));
    /// # Ok(()) }
    /// ```
    pub fn fence(mut self) -> Self {
        self.fence = true;
        self
    }

    /// Acquires, all or none.
    ///
    /// # Errors
    /// Says why not. After [`AcquireError::Disconnected`], connect again: a connection is never made anew in silence, since a
    /// new one holds nothing.
    ///
    /// # Cancel safety
    /// Dropping the future ends the wait, and gives back a grant that is on its way: no lock is left over. Until the daemon has
    /// confirmed that, another acquire of the same name on this client waits for it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let (one, other) = (Client::connect(&servers).await?, Client::connect(&servers).await?);
    /// let held = one.lock("nightly").acquire().await?;
    /// tokio::select! {
    ///     held = other.lock("nightly").wait().acquire() => println!("held: {held:?}"),
    ///     () = tokio::time::sleep(Duration::from_millis(10)) => println!("something else came first"),
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn acquire(self) -> Result<Held, AcquireError> {
        let asked = Asked::new(&self.wanted, self.wait, self.fence)?;
        let shared = self.client.shared();
        loop {
            let freed = shared.freed.notified();
            let mut freed = std::pin::pin!(freed);
            // From here on no change is missed.
            freed.as_mut().enable();
            let (to, answer) = oneshot::channel();
            match shared.with(|session, now| session.acquire(now, &asked, to)) {
                Ok(id) => {
                    let _waiting = Waiting { shared: Arc::clone(shared), id };
                    let dropped = AcquireError::Disconnected(super::error::Disconnected::Dropped);
                    let grant = answer.await.unwrap_or(Err(dropped))?;
                    return Held::new(grant, self.client.clone());
                }
                Err(NotNow::Refused(error)) => return Err(error),
                Err(NotNow::Leaving) => freed.await,
            }
        }
    }
}

/// An acquire whose answer is waited for. Dropped before that, it says so; afterwards nobody knows its id any more.
struct Waiting {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.with(|session, now: BootTime| session.abandon(now, self.id));
    }
}
