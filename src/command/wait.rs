//! `distrilock wait`: waits until a lock is free, without taking it.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::connect::{block_on, connect, introduction};
use super::error::CommandError;
use super::options::{ServerOptions, WaitOptions};
use super::status;
use super::time_limit::TimeLimit;
use distrilock_client::Client;

/// How often the daemon is asked.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Waits until each name in turn is free.
pub(super) fn main(options: &WaitOptions, servers: &ServerOptions) -> Result<u8, CommandError> {
    block_on(async {
        let limit = TimeLimit::at_most(options.wait);
        let client = connect(Client::builder(), &introduction(None, None), servers, &limit).await?;
        let free = async {
            for name in &options.names.0 {
                while client.peek(name.as_str()).await.map_err(CommandError::request(&client))?.locked {
                    sleep(POLL_INTERVAL).await;
                }
            }
            Ok(status::DONE)
        };
        match options.wait {
            Some(time) => {
                timeout(time.saturating_sub(limit.elapsed()), free).await.unwrap_or(Ok(options.conflict_exit_code))
            }
            None => free.await,
        }
    })
}
