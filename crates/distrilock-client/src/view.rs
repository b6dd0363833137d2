//! What a daemon tells of itself, of locks and of sessions.

use serde::Deserialize;

/// What a daemon says of itself and of this session, in its reply to hello.
///
/// ```
/// use distrilock_client::Client;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let daemon = distrilock_testing::Daemon::start();
/// # let servers = daemon.servers();
/// let client = Client::connect(&servers).await?;
/// assert_eq!(client.welcome().version, 1);
/// assert_eq!(client.welcome().directory, "local");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Welcome {
    /// The version of the protocol that is spoken.
    pub version: u64,
    /// The session's identity.
    pub session: String,
    /// The daemon's host.
    pub node: String,
    /// What the lock directory is on: `local`, `nfs4` or `unknown`.
    pub directory: String,
    /// After how long a silent peer counts as dead, in milliseconds.
    pub dead_after_ms: u64,
    /// Where a file server may give locks away: how long the daemon reckons that a program takes to stop, in milliseconds.
    #[serde(default)]
    pub stop_ms: Option<u64>,
}

/// What is known of a name, through any daemon.
///
/// ```
/// use distrilock_client::Client;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let daemon = distrilock_testing::Daemon::start();
/// # let servers = daemon.servers();
/// let client = Client::connect(&servers).await?;
/// assert!(!client.peek("nightly").await?.locked);
/// let held = client.lock("nightly").acquire().await?;
/// let peeked = client.peek("nightly").await?;
/// assert!(peeked.locked && !peeked.contender);
/// assert_eq!(peeked.holders[0].session, client.welcome().session);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Peeked {
    /// The name.
    pub lock: String,
    /// Whether anybody holds it.
    pub locked: bool,
    /// Who holds it through this daemon.
    #[serde(default)]
    pub holders: Vec<Seen>,
    /// How many hold it, if they are more than are listed.
    pub holders_total: Option<u64>,
    /// How many wait for it at this daemon.
    #[serde(default)]
    pub waiters: u64,
    /// Whether another process holds it.
    #[serde(default)]
    pub contender: bool,
}

/// A lock of a daemon, with those who hold it and those who wait for it there.
///
/// ```
/// use distrilock_client::Client;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let daemon = distrilock_testing::Daemon::start();
/// # let servers = daemon.servers();
/// let client = Client::connect(&servers).await?;
/// let held = client.lock("nightly").shared().acquire().await?;
/// let listed = client.list().await?;
/// assert_eq!(listed[0].lock, "nightly");
/// assert_eq!(listed[0].mode.as_deref(), Some("shared"));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Listed {
    /// Its name.
    pub lock: String,
    /// `exclusive`, `shared` or `slots`, if it is held here.
    pub mode: Option<String>,
    /// Who holds it.
    #[serde(default)]
    pub holders: Vec<Seen>,
    /// How many hold it, if they are more than are listed.
    pub holders_total: Option<u64>,
    /// Who waits for it, in the order of arrival.
    #[serde(default)]
    pub waiters: Vec<Seen>,
    /// How many wait, if they are more than are listed.
    pub waiters_total: Option<u64>,
    /// Whether another process holds it.
    #[serde(default)]
    pub contender: bool,
}

/// A session that holds a lock or waits for it. What it says of itself in its hello is there if it said it.
///
/// ```
/// use distrilock_client::Client;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let daemon = distrilock_testing::Daemon::start();
/// # let servers = daemon.servers();
/// let client = Client::builder().name("backup@db1").connect(&servers).await?;
/// let held = client.lock("nightly").acquire().await?;
/// let holder = &client.peek("nightly").await?.holders[0];
/// assert_eq!(holder.name.as_deref(), Some("backup@db1"));
/// assert_eq!(holder.mode, "exclusive");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Seen {
    /// Its identity.
    pub session: String,
    /// Its name.
    pub name: Option<String>,
    /// What it does.
    pub note: Option<String>,
    /// Its host.
    pub host: Option<String>,
    /// Its process.
    pub pid: Option<u32>,
    /// Its command.
    pub command: Option<String>,
    /// Its user.
    pub user: Option<String>,
    /// `exclusive`, `shared` or `slots`.
    #[serde(default)]
    pub mode: String,
    /// How long it has held it or waited for it, in milliseconds.
    #[serde(default)]
    pub since_ms: u64,
    /// How many slots the name has, if it holds some of them or waits for some.
    pub slots: Option<u32>,
    /// The slots that it holds.
    #[serde(default)]
    pub taken: Vec<u32>,
    /// How many slots it waits for.
    pub take: Option<u32>,
    /// The fence of its grant.
    pub fence: Option<u64>,
}
