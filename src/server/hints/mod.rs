//! Word between the daemons of one lock directory: who waits for a name that another process holds asks the others for word of it,
//! and who lets go of a name tells those who asked. So a waiter has its lock as soon as it is free, and names whose holder has
//! promised word need no frequent tries (docs/decisions/0007).
//!
//! Word is a hint, never a proof: it brings about a try, and the lock on the file decides. Word that is lost, late, forged or
//! repeated costs time. Each daemon listens on a socket in the directory and connects to the others' ([`Meeting`]); a connection's
//! end is word, too: its daemon is gone.
//!
//! `ask` is the side of the waiting daemon, `promise` that of the holding one, `words` what passes between them. Programs that are
//! no daemon speak by closing files: `closings`.

mod ask;
mod closings;
mod portions;
mod promise;
mod words;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::time::{MissedTickBehavior, interval};

use super::Core;
use crate::files::meeting::Meeting;
use crate::limits::ASK_AGAIN_MS;
use ask::Questions;
use closings::Closings;
use distrilock_engine::fault::{Fault, Operation};
use distrilock_protocol::name::LockName;
use promise::Promises;

/// What a daemon has asked others, and has promised them.
#[derive(Debug, Default)]
pub(super) struct Hints {
    /// Where the others are; not set if they cannot be met.
    meeting: OnceLock<Meeting>,
    questions: Questions,
    promises: Promises,
    closings: Closings,
}

impl Hints {
    /// Sessions wait for a name that another process holds.
    pub(super) fn contended(&self, name: LockName) {
        self.closings.want();
        if self.meeting.get().is_some() {
            self.questions.want(name);
        }
    }

    /// This daemon has let go of a name, wholly or in part. Costs next to nothing while nobody has asked for any.
    pub(super) fn freed(&self, name: &LockName) {
        self.promises.keep(name);
    }

    /// Nobody new is to come.
    pub(super) fn leave(&self) {
        if let Some(meeting) = self.meeting.get() {
            meeting.leave();
        }
    }
}

/// Goes to the meeting place of the lock directory, which has to be on a local file system. Without one, or if it cannot be used,
/// names of others are polled.
pub(super) fn start(core: &Arc<Core>) {
    tokio::spawn(closings::watch(Arc::clone(core)));
    match enter(core) {
        Ok(listener) => {
            tokio::spawn(promise::listen(Arc::clone(core), listener));
            tokio::spawn(ask::ask(Arc::clone(core)));
            tokio::spawn(forget(Arc::clone(core)));
        }
        Err(fault) => {
            tracing::info!("no word from other daemons, their locks are noticed later: {fault}: {}", fault.remedy())
        }
    }
}

fn enter(core: &Arc<Core>) -> Result<UnixListener, Fault> {
    let directory = core.files.directory();
    let (meeting, listener) = Meeting::enter(directory)?;
    let watched = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
    let listener = watched.map_err(|error| Fault::io(Operation::ListenIn, directory.to_string_lossy(), &error))?;
    core.hints.meeting.set(meeting).expect("the daemon starts only once");
    Ok(listener)
}

/// Questions are asked anew after a while, and promises lapse that nobody asks for any more.
async fn forget(core: Arc<Core>) {
    let mut ticks = interval(Duration::from_millis(ASK_AGAIN_MS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        core.hints.questions.look_again();
        core.hints.promises.age();
    }
}
