//! The events that an operator may act on: the `MESSAGE_ID=` of each, sd_journal_print(3).
//!
//! Each has an entry in `systemd/distrilock.catalog`, which `journalctl -x` shows; the entry names
//! the journal fields that the event carries. An event carries its id as a field:
//! `tracing::warn!(MESSAGE_ID = ids::SLOW_READER, SESSION = %session, PEER = %peer, "...")`.
//! An id is never changed and never used for anything else.

/// The daemon serves; `DIRECTORY=` is where its locks are.
pub const DAEMON_READY: &str = "f37211dafd7f4622993f69748ce11720";

/// The daemon was asked to stop, and ends its sessions.
pub const DAEMON_STOPPING: &str = "bd02056e397841fe99f3f2a65c674dc6";

/// The daemon is out of file descriptors, so new sessions wait.
pub const DESCRIPTORS_EXHAUSTED: &str = "026342be0d504d759c3671487192b1d4";

/// The limit of file descriptors is low; `LIMIT=` is the limit. Logged at start.
pub const DESCRIPTOR_LIMIT_LOW: &str = "eb9c3f5a71484ebfb34a5c49f47c0a9e";

/// The maximum number of sessions is reached, so new ones are refused; `LIMIT=` is the maximum.
pub const SESSION_LIMIT: &str = "1015ec24d6234199af1b18130d27729d";

/// An operation in the lock directory failed; `LOCK=` is the name, if it was for one name.
pub const STORAGE_FAULT: &str = "32e98d82e32e457dbce593c71110dc72";

/// A lock that a session held is lost; `LOCK=` is the lock, and `SESSION=` its holder, if it was
/// held until now.
pub const LOCK_LOST: &str = "5468911fb838457ebc321dea1812422d";

/// A peer broke the protocol and was closed; `SESSION=`, `PEER=` and `DIALECT=` identify it.
pub const SESSION_VIOLATION: &str = "b6a2da7e7a064beeb1e2c1f5f28520a1";

/// A peer did not read what it was sent and was closed; `SESSION=` and `PEER=` identify it.
pub const SLOW_READER: &str = "f7071ec758cf4d3094db50ac1ee55a18";

/// An engine shard or the runtime does not make progress, so the watchdog is not pinged.
pub const ENGINE_STALLED: &str = "acec9fbd91fd456a9de5f0055955ba3e";

/// A session kept its thread for long, so that the thread's other sessions waited; `LONGEST_MS=` is
/// for how long.
pub const LONG_TURN: &str = "878c234d01f14f4394948076cc3444c4";

/// The NFS server does not answer, so locks are in doubt or count as lost.
pub const STORAGE_SILENT: &str = "4868bfcff536481db2f1bd50e0286e49";

/// The NFS server answers again.
pub const STORAGE_HEARD: &str = "e38a8cae92e748f39e2ea2c07eeab944";

/// The NFS server has dropped this host's locks.
pub const LEASE_LOST: &str = "1b1468275ac1404c81e031d867001f16";

/// Two hosts identify themselves to the NFS server by the same name.
pub const CLIENT_CLASH: &str = "0f97a21293f3421db2f244e00c083e01";

/// Exclusion has not been verified on the lock directory's file system.
pub const STORAGE_UNPROVEN: &str = "a98a29cc267d45998d22eca3ed7ff27f";

/// Sessions are handed to the next process of the daemon.
pub const HAND_OVER: &str = "5e9c6d0c0f6a4c0f8a6b7f5f1c7e2a94";

/// Sessions of the previous process are served again.
pub const TAKE_OVER: &str = "c1b0d3e27f5d4b6e9d3c8a4e6f902b17";

/// Sessions could not be handed over or taken over, and have ended.
pub const HAND_OVER_FAILED: &str = "8f0a4d6b2c3e4f7fb5a1d9e8c7362540";

/// A session was granted a lock for which it had waited; `LOCK=`, `SESSION=`, `HOLDER=`, `PEER=`,
/// `MODE=` and `WAITED_MS=`.
pub const LOCK_GRANTED: &str = "ddb68d6c86f74d63beddc4906201b5f8";

/// A session holds a lock no longer; the same fields, `HELD_MS=`, and how it ended in `ENDED=`.
pub const LOCK_ENDED: &str = "6ae127556e0348ea9e8b7a0a437a2901";

/// A session waits for a lock no longer and has not been granted it; as for a grant, and `ENDED=`.
pub const WAIT_ENDED: &str = "8717265ae6694bdfa989145bac3a1f47";

/// A session has ended; `SESSION=`, `HOLDER=`, `PEER=`, `DIALECT=` and `ENDED=`.
pub const SESSION_ENDED: &str = "1f6a74c7dac9424884e8f3d8c94aeb42";

/// Some of the four events above were not logged, since there were too many; `MISSED=` is the
/// number.
pub const HISTORY_GAP: &str = "3ed17e7f299a403c8bf90793af0b3022";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    const SOURCE: &str = include_str!("ids.rs");
    const CATALOG: &str = include_str!("../../systemd/distrilock.catalog");

    #[test]
    fn each_id_is_unique_and_has_a_complete_entry() {
        // Somebody adds an id without an entry, or removes an id and leaves its entry.
        let ids: Vec<&str> =
            SOURCE.lines().filter_map(|line| line.strip_prefix("pub const ")?.split('"').nth(1)).collect();
        let unique: BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!(ids.len(), 24);
        assert_eq!(unique.len(), ids.len());
        for id in &ids {
            let hex = |c: char| matches!(c, '0'..='9' | 'a'..='f');
            assert!(id.len() == 32 && id.chars().all(hex), "{id}");
        }
        let mut described = BTreeSet::new();
        for entry in CATALOG.split("\n-- ").skip(1) {
            let (id, entry) = entry.split_once('\n').unwrap();
            let (header, text) = entry.split_once("\n\n").unwrap();
            for field in ["Subject: ", "Defined-By: distrilock", "Support: "] {
                assert!(header.lines().any(|line| line.starts_with(field)), "{id}");
            }
            assert!(!text.trim().is_empty(), "{id}");
            assert!(described.insert(id), "{id} is described twice");
        }
        assert_eq!(described, unique);
    }
}
