//! What systemd learns of a daemon that serves: that it lives, and how many sessions and locks it
//! has.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::front::SessionThreads;
use crate::limits::{TURN_LOGGED_MS, TURN_SHOWN_MS};
use crate::lock_table::LockTable;
use crate::systemd::ids;
use crate::systemd::notify::{Notifier, watchdog_interval};

/// Pings systemd's watchdog as long as the session threads run and no shard is stuck.
pub(super) async fn ping(table: Arc<LockTable>, threads: Arc<SessionThreads>, notifier: Arc<Notifier>) {
    let Some(period) = watchdog_interval() else { return };
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let checks = threads.runtimes().map(|runtime| {
            let table = Arc::clone(&table);
            runtime.spawn(async move { table.shards.reach_all() })
        });
        let checked = async {
            for check in checks.collect::<Vec<_>>() {
                let _ = check.await;
            }
        };
        if timeout(period, checked).await.is_ok() {
            notifier.watchdog();
        } else {
            tracing::error!(MESSAGE_ID = ids::ENGINE_STALLED, "a thread or a shard of the engine is stuck");
        }
    }
}

/// Reports to systemd how many sessions and locks there are, when that changes, at most once a
/// second, and logs the number of messages that were held back and when a session has kept its
/// thread for long.
pub(super) async fn report(table: Arc<LockTable>, notifier: Arc<Notifier>) {
    let mut reported = status(&table);
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        table.log.summarise();
        table.history.summarise();
        if let Some((thread, turn)) = table.turns.take_lately()
            && turn.as_millis() > TURN_LOGGED_MS
        {
            table.log.long_turn(thread, turn);
        }
        let now = status(&table);
        if now != reported {
            notifier.status(&now);
            reported = now;
        }
    }
}

pub(super) fn status(table: &LockTable) -> String {
    let (held, waiting) = table.shards.count();
    let mut status = format!("{} sessions, {held} locks, {waiting} waiting requests", table.mailboxes.count());
    let longest = table.turns.longest();
    if longest.as_millis() >= TURN_SHOWN_MS {
        status += &format!(", longest turn {:.1} ms", longest.as_secs_f64() * 1000.0);
    }
    status
}
