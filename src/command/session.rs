//! From options to the client library: which servers, what is said of us, and which locks are asked for.

use std::ffi::OsString;
use std::future::Future;
use std::time::Duration;

use nix::unistd::Uid;

use super::options::Asking;
use super::say::{self, Passing};
use super::trouble::Trouble;
use super::values::Names;
use crate::host::host_name;
use distrilock_client::{
    Acquire, Builder, Client, ConnectError, Held, Introduction, Server, ServerError, SessionInfo, Wanted,
    introduction_of_this_process,
};
use distrilock_protocol::limits::{HELLO_COMMAND_BYTES_MAX, HELLO_NAME_BYTES_MAX};

/// How long a wait has to take before people are told about it, and how often they are told again.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// Runs one future on a runtime of this thread. The runtime is not taken apart afterwards: the process ends, and the kernel does it
/// in less time.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = std::mem::ManuallyDrop::new(runtime.map_err(Trouble::system("start"))?);
    runtime.block_on(work)
}

/// Waits for a random time of at most this.
pub(super) async fn jitter(whole: Option<Duration>) {
    // The runtime counts in milliseconds: with nothing to wait for it would wait for one.
    if let Some(whole) = whole {
        tokio::time::sleep(random_part(whole)).await;
    }
}

/// The servers that were named, or those that stand for none.
pub(super) fn servers(named: &[Server]) -> Result<Vec<Server>, Trouble> {
    if named.is_empty() { Ok(Server::defaults()?) } else { Ok(named.to_vec()) }
}

/// Who we are, and what we do if that may be told.
pub(super) fn introduction(note: Option<&str>, command: Option<&str>) -> Introduction {
    let process = introduction_of_this_process();
    let user = process.user.clone().unwrap_or_else(|| Uid::effective().to_string());
    Introduction {
        name: Some(cut(&format!("{user}@{}", host()), HELLO_NAME_BYTES_MAX)),
        note: note.map(str::to_owned),
        command: command.map(|command| cut(command, HELLO_COMMAND_BYTES_MAX)),
        ..process
    }
}

/// The name of this host.
pub(super) fn host() -> String {
    host_name()
}

/// At most so many bytes of a text, on one line.
fn cut(text: &str, bytes_max: usize) -> String {
    let mut cut: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    while cut.len() > bytes_max {
        cut.pop();
    }
    cut
}

/// A command as one line.
pub(super) fn line_of(words: &[OsString]) -> String {
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

/// A random number. The standard library seeds its hash maps from the kernel's.
pub(super) fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

/// A random time of at most this.
fn random_part(whole: Duration) -> Duration {
    const PARTS: u32 = 1 << 20;
    let roll = random() % u64::from(PARTS);
    whole.mul_f64(f64::from(u32::try_from(roll).expect("it is below 2^20")) / f64::from(PARTS))
}

/// Connects. A daemon that is older than this command, and does not know all that it says of itself, hears less.
pub(super) async fn connect(builder: Builder, who: &Introduction, named: &[Server]) -> Result<Client, Trouble> {
    let servers = servers(named)?;
    let refused = match builder.clone().introduction(who.clone()).connect(&servers).await {
        Err(ConnectError::Unreachable(attempts)) if attempts.iter().any(|one| is_older(&one.failure)) => attempts,
        connected => return connected.map_err(|error| Trouble::Connect { error }),
    };
    let less = Introduction { name: who.name.clone(), note: who.note.clone(), ..Introduction::default() };
    let older: Vec<Server> = refused.into_iter().filter(|one| is_older(&one.failure)).map(|one| one.server).collect();
    builder.introduction(less).connect(&older).await.map_err(|error| Trouble::Connect { error })
}

fn is_older(failure: &ServerError) -> bool {
    matches!(failure, ServerError::Refused { word, .. } if *word == "bad_request")
}

/// The acquire that the options ask for.
fn acquire_of(client: &Client, asking: &Asking, names: &Names) -> Acquire {
    let named = names.0.iter().map(|name| {
        let wanted = Wanted::new(name.as_str());
        match asking.slots {
            Some(slots) => wanted.slots(slots),
            None if asking.shared => wanted.shared(),
            None => wanted,
        }
    });
    let leased = asking.leases.iter().map(|lease| Wanted::new(lease.name.as_str()).slots(lease.slots).take(lease.take));
    let mut acquire = client.locks(named.chain(leased));
    if asking.fence {
        acquire = acquire.fence();
    }
    match asking.wait {
        _ if !asking.waits() => acquire,
        Some(time) => acquire.wait_at_most(time),
        None => acquire.wait(),
    }
}

/// Acquires what the options ask for. A wait longer than a second is told about on a terminal, by a line that goes away.
pub(super) async fn acquire(client: &Client, asking: &Asking, names: &Names) -> Result<Held, Trouble> {
    let began = std::time::Instant::now();
    let acquired = acquire_of(client, asking, names).acquire();
    let held = tokio::select! {
        held = acquired => held,
        never = tell_while_waiting(client, names) => match never {},
    };
    let held = held.map_err(|error| Trouble::Acquire { server: client.server().clone(), error })?;
    if asking.verbose {
        say::error(&format!("the lock was granted after {:.3} s", began.elapsed().as_secs_f64()));
    }
    Ok(held)
}

/// Shows who holds what we wait for, and for how long, until it is dropped.
async fn tell_while_waiting(client: &Client, names: &Names) -> std::convert::Infallible {
    let Some(mut line) = Passing::new() else { return std::future::pending().await };
    loop {
        tokio::time::sleep(TELL_AGAIN).await;
        for name in &names.0 {
            // It is a courtesy: whatever is wrong, the acquire says it.
            let Ok(peeked) = client.peek(name.as_str()).await else { continue };
            let holder = match peeked.holders.first() {
                Some(holder) => who(holder),
                None if peeked.contender => "another process of the daemon's host, or another daemon".to_owned(),
                None => continue,
            };
            line.show(&format!("waiting for {name}: held by {holder}"));
            break;
        }
    }
}

/// A session as people see it: its name, and what is known beside it.
pub(super) fn who(seen: &SessionInfo) -> String {
    let mut who = seen.introduction.name.clone().unwrap_or_else(|| seen.session.clone());
    let pid = seen.introduction.pid.map(|pid| format!("pid {pid}"));
    let beside: Vec<String> =
        pid.into_iter().chain(seen.introduction.command.clone()).chain(seen.introduction.note.clone()).collect();
    if !beside.is_empty() {
        who.push_str(&format!(" ({})", beside.join(", ")));
    }
    format!("{who} for {}", say::span(seen.since_ms))
}
