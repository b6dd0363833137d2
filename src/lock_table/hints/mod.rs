//! Hints between the daemons of one lock directory. A daemon whose sessions wait for a name that
//! another process holds asks the others about it, and the daemon that releases the name wakes
//! those that asked. So a waiter has its lock as soon as it is free, and a name whose holder has
//! promised a wake-up is tried rarely (docs/decisions/0007).
//!
//! A hint is never believed: it causes a try, and the lock on the file decides. Hints that are
//! lost, late, forged or repeated only cost time. Each daemon listens on a socket in the directory
//! and connects to the sockets of the others ([`PeerSockets`]). The end of a connection is a hint,
//! too: its daemon is gone.
//!
//! `ask` is the waiting daemon's side, `promise` the holding daemon's, and `peer_message` what
//! passes between them. Programs that are not daemons give hints by closing files: `close_watch`.

mod ask;
mod close_watch;
mod peer_message;
mod promise;
mod rate_limit;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::time::{MissedTickBehavior, interval};

use super::LockTable;
use crate::files::peer_sockets::PeerSockets;
use crate::limits::ASK_AGAIN_MS;
use crate::shortage;
use ask::Questions;
use close_watch::CloseWatch;
use distrilock_engine::fault::{Fault, Operation};
use distrilock_protocol::name::LockName;
use promise::Promises;
use rate_limit::RateLimit;

/// What a daemon has asked the others, and has promised them.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    /// Where the others are; not set if they cannot be reached.
    meeting: OnceLock<PeerSockets>,
    questions: Questions,
    promises: Promises,
    close_watch: CloseWatch,
    /// How fast hints are handled, whoever sends them.
    rate: RateLimit,
}

impl Hints {
    /// Sessions wait for a name that another process holds.
    pub(crate) fn contended(&self, name: LockName) {
        self.close_watch.want();
        if self.meeting.get().is_some() {
            self.questions.want(name);
        }
    }

    /// This daemon has released a name, wholly or in part. Costs next to nothing unless a daemon
    /// has asked about some name.
    pub(crate) fn freed(&self, name: &LockName) {
        self.promises.keep(name);
    }

    /// No new daemon shall connect.
    pub(crate) fn leave(&self) {
        if let Some(meeting) = self.meeting.get() {
            meeting.leave();
        }
    }
}

/// How long to wait before the next attempt, while the system has no resources.
const ENTER_AGAIN: Duration = Duration::from_secs(5);

/// Opens this daemon's socket in the lock directory, which has to be on a local file system, and
/// connects to the others. If that fails, names that others hold are polled.
pub(crate) fn start(table: &Arc<LockTable>) {
    tokio::spawn(close_watch::watch(Arc::clone(table)));
    match enter(table) {
        Ok(listener) => serve(table, listener),
        Err(fault) if is_shortage(&fault) => drop(tokio::spawn(enter_later(Arc::clone(table), fault))),
        Err(fault) => report(&fault),
    }
}

fn is_shortage(fault: &Fault) -> bool {
    fault.errno().is_some_and(|errno| shortage::is_shortage(&std::io::Error::from_raw_os_error(errno)))
}

fn serve(table: &Arc<LockTable>, listener: UnixListener) {
    tokio::spawn(promise::listen(Arc::clone(table), listener));
    tokio::spawn(ask::ask(Arc::clone(table)));
    tokio::spawn(forget(Arc::clone(table)));
}

fn report(fault: &Fault) {
    tracing::info!("cannot receive wake-ups from other daemons; polling instead: {fault}: {}", fault.remedy());
}

/// Tries again until the system has resources.
async fn enter_later(table: Arc<LockTable>, fault: Fault) {
    report(&fault);
    loop {
        tokio::time::sleep(ENTER_AGAIN).await;
        match enter(&table) {
            Ok(listener) => break serve(&table, listener),
            Err(fault) if is_shortage(&fault) => {}
            Err(fault) => break report(&fault),
        }
    }
}

fn enter(table: &Arc<LockTable>) -> Result<UnixListener, Fault> {
    let directory = table.storage.files.directory();
    let (meeting, listener) = PeerSockets::join(directory)?;
    let watched = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
    let listener = watched.map_err(|error| Fault::io(Operation::ListenIn, directory.to_string_lossy(), &error))?;
    table.hints.meeting.set(meeting).expect("the daemon starts only once");
    Ok(listener)
}

/// Lets questions be asked again after a while, and forgets promises that nobody asks for any more.
async fn forget(table: Arc<LockTable>) {
    let mut ticks = interval(Duration::from_millis(ASK_AGAIN_MS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        table.hints.questions.look_again();
        table.hints.promises.age();
    }
}
