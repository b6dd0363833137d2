//! The clash watch: looks for daemons whose hosts and this one introduce themselves to the NFS
//! server by the same name, and so wipe each other's locks.
//!
//! A look takes several calls for each daemon of the directory. On a slow server that adds up, so
//! the clash watch has a thread of its own: the watch over the server must keep listening
//! meanwhile, or the daemon would mistake its own looking for silence of the server.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::files::presence::{DaemonInfo, others};
use crate::lock_table::LockTable;
use crate::sync::locked;

/// Makes the clash watch look at once.
#[derive(Debug)]
pub(super) struct LookNow(SyncSender<()>);

impl LookNow {
    pub(super) fn look(&self) {
        // If a look is already due, one is enough.
        let _ = self.0.try_send(());
    }
}

struct ClashWatch {
    table: Arc<LockTable>,
    identity: DaemonInfo,
    /// Where the daemon's own file is.
    place: Arc<Mutex<PathBuf>>,
    interval: Duration,
    look_now: Receiver<()>,
}

/// Looks now and after each interval, until the returned value is dropped.
pub(super) fn start(
    table: Arc<LockTable>,
    identity: DaemonInfo,
    place: Arc<Mutex<PathBuf>>,
    interval: Duration,
) -> io::Result<LookNow> {
    let (sender, look_now) = sync_channel(1);
    let watch = ClashWatch { table, identity, place, interval, look_now };
    thread::Builder::new().name("clash-watch".into()).spawn(move || watch.run())?;
    Ok(LookNow(sender))
}

impl ClashWatch {
    fn run(self) {
        loop {
            self.report_clashes();
            match self.look_now.recv_timeout(self.interval) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn report_clashes(&self) {
        let files = &self.table.storage.files;
        let network = files.network().expect("only a network file system is watched");
        let own = locked(&self.place).clone();
        let others = others(files.directory(), network.open_flags(), Some(&own)).unwrap_or_else(|error| {
            tracing::debug!("cannot look for other daemons: {error}");
            Vec::new()
        });
        for other in others {
            if self.identity.clashes_with(&other) {
                self.table.log.clash(&other.node, other.pid, &other.client);
            }
        }
    }
}
