//! Connecting: one server after another, until one answers the hello.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Uid, User};
use tokio::time::Instant;

use crate::address::Server;
use crate::boottime::Alarm;
use crate::client::{About, Client};
use crate::driver::drive;
use crate::error::{AttemptError, ConnectError, DisconnectedError, RequestError, ServerError};
use crate::link::Link;
use crate::shared::{Handle, Shared};
use crate::timing::{DaemonTimes, HEARTBEAT_MIN, SILENCE_MIN, StopTime, Timing};
use distrilock_protocol::limits::{
    FRAME_BYTES_MAX, HELLO_COMMAND_BYTES_MAX, HELLO_HOST_BYTES_MAX, HELLO_USER_BYTES_MAX,
};
use distrilock_protocol::v1::{Introduction, RequestObject, VERSION, Welcome};

/// How long one server has to answer.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// What this process says of itself: its host, its id, its command line and its user, as far as the
/// system knows them, each shortened to what a daemon takes.
///
/// ```
/// let introduction = distrilock_client::introduction_of_this_process();
/// assert_eq!(introduction.pid, Some(std::process::id()));
/// assert!(introduction.command.is_some());
/// ```
#[must_use]
pub fn introduction_of_this_process() -> Introduction {
    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let host = nix::unistd::gethostname().ok().map(|host| host.to_string_lossy().into_owned());
    let user = User::from_uid(Uid::effective()).ok().flatten().map(|user| user.name);
    Introduction {
        host: host.map(|host| fitting(&host, HELLO_HOST_BYTES_MAX)),
        pid: Some(std::process::id()),
        command: Some(fitting(&words.join(" "), HELLO_COMMAND_BYTES_MAX)),
        user: user.map(|user| fitting(&user, HELLO_USER_BYTES_MAX)),
        ..Introduction::default()
    }
}

/// How to connect; [`Client::builder`] begins one.
///
/// ```
/// use std::time::Duration;
/// use distrilock_client::Client;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let daemon = distrilock_testing::Daemon::start();
/// # let servers = daemon.servers();
/// let client = Client::builder()
///     .name("backup@db1")
///     .connect_within(Duration::from_secs(3))
///     .stop_within(Duration::from_secs(5))
///     .connect(&servers)
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is connected before `connect`"]
pub struct Builder {
    introduction: Introduction,
    connect_within: Duration,
    connect_within_in_all: Option<Duration>,
    timing: Timing,
}

impl Default for Builder {
    fn default() -> Self {
        let (introduction, timing) = (Introduction::default(), Timing::default());
        Self { introduction, connect_within: CONNECT_WITHIN, connect_within_in_all: None, timing }
    }
}

impl Client {
    /// Connects to the first of the servers that answers, with the default settings. It has to run
    /// in a tokio runtime with I/O and time enabled.
    ///
    /// # Errors
    /// Each server that was tried, and why it does not serve this client.
    ///
    /// See [`Client`] for an example.
    pub async fn connect(servers: &[Server]) -> Result<Self, ConnectError> {
        Self::builder().connect(servers).await
    }

    /// Connects with other settings: with an introduction, or other times.
    ///
    /// ```
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let client = Client::builder().name("backup@db1").note("nightly").connect(&servers).await?;
    /// # Ok(()) }
    /// ```
    pub fn builder() -> Builder {
        Builder::default()
    }
}

impl Builder {
    /// Everything that others see of the session.
    ///
    /// ```
    /// use distrilock_client::{Client, Introduction};
    ///
    /// let introduction = Introduction { note: Some("nightly".into()), ..Introduction::default() };
    /// let builder = Client::builder().introduction(introduction);
    /// ```
    pub fn introduction(mut self, introduction: Introduction) -> Self {
        self.introduction = introduction;
        self
    }

    /// What others see as the session's name; see [`Builder`] for an example.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.introduction.name = Some(name.into());
        self
    }

    /// What others see as the session's note; see [`Client::builder`] for an example.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.introduction.note = Some(note.into());
        self
    }

    /// What others see as the session's host.
    ///
    /// ```
    /// let builder = distrilock_client::Client::builder().host("db1").user("joe");
    /// let builder = builder.pid(std::process::id()).command("backup -v");
    /// ```
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.introduction.host = Some(host.into());
        self
    }

    /// What others see as the session's process; see [`host`](Self::host) for an example.
    pub fn pid(mut self, pid: u32) -> Self {
        self.introduction.pid = Some(pid);
        self
    }

    /// What others see as the session's command; see [`host`](Self::host) for an example.
    pub fn command(mut self, command: impl Into<String>) -> Self {
        self.introduction.command = Some(command.into());
        self
    }

    /// What others see as the session's user; see [`host`](Self::host) for an example.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.introduction.user = Some(user.into());
        self
    }

    /// How long each server has to answer, from the first packet to the reply to the hello: 10 s by
    /// default. See [`Builder`] for an example.
    pub fn connect_within(mut self, time: Duration) -> Self {
        self.connect_within = time;
        self
    }

    /// How long all servers together have to answer: no limit by default, but that of
    /// [`connect_within`](Self::connect_within) for each. What is left is shared out among the
    /// servers that are left, so that each of them gets its turn.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let three = Duration::from_secs(3);
    /// let builder = distrilock_client::Client::builder().connect_within_in_all(three);
    /// ```
    pub fn connect_within_in_all(mut self, time: Duration) -> Self {
        self.connect_within_in_all = Some(time);
        self
    }

    /// How often a heartbeat is sent while a lock is held or waited for: 5 s by default, at most a
    /// quarter of [`silence_max`](Self::silence_max), and at least 10 ms. On a file server with a
    /// short lease, heartbeats are more frequent.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let second = Duration::from_secs(1);
    /// let builder = distrilock_client::Client::builder().heartbeat(second).silence_max(4 * second);
    /// ```
    pub fn heartbeat(mut self, period: Duration) -> Self {
        self.timing.heartbeat = period.max(HEARTBEAT_MIN);
        self
    }

    /// The longest silence the client tolerates, counted from when the last answered request was
    /// sent: 20 s by default, at least 100 ms. After that, the locks count as lost and the
    /// connection is closed. It is shortened if necessary, so that this time and
    /// [`stop_within`](Self::stop_within) together end before the daemon gives the client up
    /// (`dead_after_ms`). See [`heartbeat`](Self::heartbeat) for an example.
    pub fn silence_max(mut self, time: Duration) -> Self {
        self.timing.silence_max = time.max(SILENCE_MIN);
        self
    }

    /// How long this program needs to stop its work once it learns that a lock is lost. The default
    /// is 10 s, or less on a file server with a short lease ([`Client::stop_within`]). If the
    /// daemon gives a silent client up sooner than that, connecting fails with
    /// [`ServerError::NoTime`]. If a file server's lease is too short for it, acquiring fails with
    /// [`AcquireError::TooSlow`](crate::AcquireError::TooSlow). See [`Builder`] for an example.
    pub fn stop_within(mut self, time: Duration) -> Self {
        self.timing.stop = StopTime::Exactly(time);
        self
    }

    /// Like [`stop_within`](Self::stop_within), for a program that can stop faster where it has to:
    /// the longest time between `least` and `most` that fits the daemon. [`Client::stop_within`]
    /// returns it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use distrilock_client::Client;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let daemon = distrilock_testing::Daemon::start();
    /// # let servers = daemon.servers();
    /// let (least, most) = (Duration::from_secs(1), Duration::from_secs(7));
    /// let client = Client::builder().stop_within_between(least, most).connect(&servers).await?;
    /// assert_eq!(client.stop_within(), most);
    /// # Ok(()) }
    /// ```
    pub fn stop_within_between(mut self, least: Duration, most: Duration) -> Self {
        self.timing.stop = StopTime::Between(least, most.max(least));
        self
    }

    /// Connects to the first of the servers that answers; see [`Builder`] for an example.
    ///
    /// # Errors
    /// Each server that was tried, and why it does not serve this client.
    ///
    /// # Cancel safety
    /// Dropping the future closes what it has opened.
    pub async fn connect(self, servers: &[Server]) -> Result<Client, ConnectError> {
        let (client, driver) = self.open(servers).await?;
        tokio::spawn(driver);
        Ok(client)
    }

    /// Connects, and leaves driving the connection to the caller.
    pub(crate) async fn open(
        self,
        servers: &[Server],
    ) -> Result<(Client, impl Future<Output = ()> + use<>), ConnectError> {
        let bytes = RequestObject::hello(&self.introduction).line(1).len();
        if bytes > FRAME_BYTES_MAX {
            return Err(ConnectError::TooLong { bytes });
        }
        let mut attempts = Vec::new();
        let began = Instant::now();
        for (tried, server) in (0_u32..).zip(servers) {
            let alarm = Alarm::new()?;
            let left = u32::try_from(servers.len()).unwrap_or(u32::MAX) - tried;
            let share = self.connect_within_in_all.map(|in_all| in_all.saturating_sub(began.elapsed()) / left);
            let within = share.map_or(self.connect_within, |share| share.min(self.connect_within));
            let opened = tokio::time::timeout(within, self.open_one(server, alarm)).await;
            match opened.unwrap_or(Err(ServerError::TimedOut { after: within })) {
                Ok(opened) => return Ok(opened),
                Err(failure) => attempts.push(AttemptError { server: server.clone(), failure }),
            }
        }
        Err(if attempts.is_empty() { ConnectError::NoServer } else { ConnectError::Unreachable(attempts) })
    }

    async fn open_one(
        &self,
        server: &Server,
        alarm: Alarm,
    ) -> Result<(Client, impl Future<Output = ()> + use<>), ServerError> {
        let link = Link::open(server).await?;
        let shared = Arc::new(Shared::new(self.timing));
        let connection = link.descriptor().map_err(ServerError::Io)?;
        let handle = Arc::new(Handle { shared: Arc::clone(&shared), connection });
        let mut driver = Box::pin(drive(Arc::clone(&shared), link, alarm));
        let hello = shared.with(|session, now| session.ask(now, &RequestObject::hello(&self.introduction)));
        // The answer is polled first: the driver may end right after delivering it.
        let answer = tokio::select! {
            biased;
            answer = hello => answer,
            () = &mut driver => {
                let why = shared.with(|session, _| session.ended().cloned());
                return Err(ended(why.unwrap_or(DisconnectedError::Dropped)));
            }
        };
        let answer = answer.map_err(|_| ServerError::Ended(DisconnectedError::Dropped))?;
        let text = answer.map_err(|error| match error {
            RequestError::Refused { word, message } => ServerError::Refused { word, message },
            RequestError::Disconnected(why) => ended(why),
            other => ServerError::Stranger { what: other.to_string() },
        })?;
        let welcome: Welcome = serde_json::from_slice(&text)
            .map_err(|error| ServerError::Stranger { what: format!("its reply to hello: {error}") })?;
        if welcome.version != VERSION {
            return Err(ServerError::Version { version: welcome.version });
        }
        let dead_after = Duration::from_millis(welcome.dead_after_ms);
        let daemon = DaemonTimes {
            dead_after,
            stop: welcome.stop_ms.map(Duration::from_millis),
            valid_min: welcome.valid_ms_min.map(Duration::from_millis),
        };
        let stop_within = self.timing.stop_within();
        let timing = self.timing.fit(daemon).ok_or(ServerError::NoTime { dead_after, stop_within })?;
        shared.with(|session, _| session.set_timing(timing));
        let client = Client::new(handle, About { server: server.clone(), welcome });
        Ok((client, driver))
    }
}

/// As much of a text as a daemon accepts, without the control characters that it refuses.
fn fitting(text: &str, bytes_max: usize) -> String {
    let mut fitting = text.replace(char::is_control, " ");
    let end = (0..=bytes_max).rev().find(|end| fitting.is_char_boundary(*end)).unwrap_or_default();
    fitting.truncate(end);
    fitting
}

/// Why a connection ended before the first reply. A server that sends garbage is not a daemon.
fn ended(why: DisconnectedError) -> ServerError {
    match why {
        DisconnectedError::Garbage { what } => ServerError::Stranger { what },
        DisconnectedError::Told { word, message } => ServerError::Refused { word, message },
        why => ServerError::Ended(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command line of any length and content fits into a hello.
    #[test]
    fn what_is_too_long_is_cut() {
        assert_eq!(fitting("a\tb\u{1b}[2J", 64), "a b [2J");
        assert_eq!(fitting("\u{e4}\u{e4}\u{e4}", 5), "\u{e4}\u{e4}");
        assert_eq!(fitting("abc", 3), "abc");
        assert_eq!(fitting("", 3), "");
    }
}
