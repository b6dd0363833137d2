//! Acquiring: from options to the request, and what a terminal shows meanwhile.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use super::error::CommandError;
use super::options::AcquireOptions;
use super::output::{self, StatusLine, escaped};
use super::sessions;
use super::time_limit::TimeLimit;
use distrilock_client::{Acquire, Client, Held, Wanted};

/// How long a wait lasts before the terminal shows it, and how often the line is renewed.
const SHOW_INTERVAL: Duration = Duration::from_secs(1);

/// How long a refused request may take to find out who holds the lock.
const HOLDERS_WITHIN: Duration = Duration::from_secs(2);

/// What is held, and the connection that it lives by.
pub(super) struct AcquiredLock {
    pub(super) client: Client,
    pub(super) held: Held,
}

/// Acquires what the options ask for. On a terminal, a status line shows a wait of more than a
/// second.
pub(super) async fn acquire(
    client: Client,
    options: &AcquireOptions,
    limit: &TimeLimit,
) -> Result<AcquiredLock, CommandError> {
    let began = Instant::now();
    let request = request(&client, options, limit).acquire();
    let acquired = limit.bound(async {
        tokio::select! {
            acquired = request => acquired,
            never = show_wait(&client, options) => match never {},
        }
    });
    let no_answer = || CommandError::NoAnswer {
        server: client.server().clone(),
        after: limit.elapsed(),
        so: "the lock was not acquired",
    };
    let held = match acquired.await.ok_or_else(no_answer)? {
        Ok(held) => held,
        Err(error) => {
            let error = CommandError::Acquire { server: client.server().clone(), error };
            if options.verbose && error.is_busy() {
                say_who_holds(&client, options).await;
            }
            return Err(error);
        }
    };
    if options.verbose {
        output::message(&format!("the lock was granted after {:.3} s", began.elapsed().as_secs_f64()));
    }
    Ok(AcquiredLock { client, held })
}

fn request(client: &Client, options: &AcquireOptions, limit: &TimeLimit) -> Acquire {
    let named = options.names.0.iter().map(|name| {
        let wanted = Wanted::new(name.as_str());
        match options.slots {
            Some(slots) => wanted.slots(slots),
            None if options.shared => wanted.shared(),
            None => wanted,
        }
    });
    let leased =
        options.leases.iter().map(|lease| Wanted::new(lease.name.as_str()).slots(lease.slots).take(lease.take));
    let mut acquire = client.locks(named.chain(leased));
    if options.fence {
        acquire = acquire.fence();
    }
    match options.wait {
        _ if !options.waits() => acquire,
        Some(time) => acquire.wait_at_most(time.saturating_sub(limit.elapsed())),
        None => acquire.wait(),
    }
}

/// Says who holds the locks that were refused, as far as daemons know it. This has a time limit of
/// its own.
async fn say_who_holds(client: &Client, options: &AcquireOptions) {
    let say = async {
        for name in &options.names.0 {
            let Ok(peeked) = client.peek_everywhere(name.as_str()).await else { continue };
            if let Some(holder) = sessions::holder(&peeked) {
                output::message(&format!("{name} is held by {}", escaped(&holder)));
            }
        }
    };
    let _ = tokio::time::timeout(HOLDERS_WITHIN, say).await;
}

/// Shows who holds the lock that we wait for, and for how long, until it is dropped.
async fn show_wait(client: &Client, options: &AcquireOptions) -> Infallible {
    let Some(mut line) = StatusLine::new() else { return std::future::pending().await };
    loop {
        tokio::time::sleep(SHOW_INTERVAL).await;
        for name in &options.names.0 {
            // The line is a courtesy: if something is wrong, the acquire reports it.
            let Ok(peeked) = client.peek_everywhere(name.as_str()).await else { continue };
            let Some(holder) = sessions::holder(&peeked) else { continue };
            line.show(&format!("waiting for {name}: held by {holder}"));
            break;
        }
    }
}
