//! What an acquire asks for.

use crate::error::AcquireError;
use distrilock_protocol::limits::LOCKS_PER_REQUEST_MAX;
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::{LockObject, RequestObject, Wait};

/// One of several locks, if it differs from the others. See
/// [`Client::locks`](crate::Client::locks).
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
    pub(crate) name: String,
    pub(crate) shared: bool,
    pub(crate) slots: Option<u16>,
    pub(crate) take: Option<u16>,
}

impl Wanted {
    /// The lock of this name, exclusively. See [`Wanted`] for an example.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), shared: false, slots: None, take: None }
    }

    /// Shares the lock with other shared holders. See [`Wanted`] for an example.
    #[must_use]
    pub fn shared(mut self) -> Self {
        self.shared = true;
        self
    }

    /// One slot of this many. See [`Wanted`] for an example.
    #[must_use]
    pub fn slots(mut self, slots: u16) -> Self {
        self.slots = Some(slots);
        self
    }

    /// This many of the slots.
    ///
    /// ```
    /// let wanted = distrilock_client::Wanted::new("gpu").slots(4).take(2);
    /// ```
    #[must_use]
    pub fn take(mut self, take: u16) -> Self {
        self.take = Some(take);
        self
    }

    /// How it is written in a request.
    fn object<'a>(&self, name: &'a LockName) -> LockObject<'a> {
        LockObject {
            lock: name.as_str().into(),
            mode: self.shared.then(|| "shared".into()),
            slots: self.slots.map(u64::from),
            take: self.take.map(u64::from),
        }
    }
}

impl<T: Into<String>> From<T> for Wanted {
    fn from(name: T) -> Self {
        Self::new(name)
    }
}

/// A valid acquire.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    locks: Vec<(LockName, Wanted)>,
    wait: Wait,
    fence: bool,
}

impl Asked {
    pub(crate) fn new(wanted: &[Wanted], wait: Wait, fence: bool) -> Result<Self, AcquireError> {
        let bad = |message: String, lock| AcquireError::BadRequest { message, lock };
        if !(1..=LOCKS_PER_REQUEST_MAX).contains(&wanted.len()) {
            return Err(bad(
                format!("an acquire has 1 to {LOCKS_PER_REQUEST_MAX} names; this one has {}", wanted.len()),
                None,
            ));
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
    pub(crate) fn of(wanted: &[Wanted], waits: bool) -> Result<Self, AcquireError> {
        Self::new(wanted, if waits { Wait::NoLimit } else { Wait::No }, false)
    }

    pub(crate) fn names(&self) -> Vec<LockName> {
        self.locks.iter().map(|(name, _)| name.clone()).collect()
    }

    pub(crate) fn locks(&self) -> &[(LockName, Wanted)] {
        &self.locks
    }

    pub(crate) fn fence(&self) -> bool {
        self.fence
    }

    pub(crate) fn waits(&self) -> bool {
        self.wait != Wait::No
    }

    pub(crate) fn request(&self) -> RequestObject<'_> {
        let request = RequestObject::new_acquire(self.fence, self.wait);
        match &self.locks[..] {
            [(name, wanted)] => {
                let LockObject { lock, mode, slots, take } = wanted.object(name);
                RequestObject { lock: Some(lock), mode, slots, take, ..request }
            }
            several => {
                let entries = several.iter().map(|(name, wanted)| wanted.object(name).entry());
                RequestObject { locks: Some(entries.collect()), ..request }
            }
        }
    }
}
