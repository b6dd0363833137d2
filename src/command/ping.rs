//! `distrilock ping`: whether the daemon answers, and how fast.

use std::time::Instant;

use super::connect::{block_on, connect_to_ask};
use super::error::CommandError;
use super::options::ServerOptions;
use super::output::{escaped, print};
use super::status;

/// Asks once, and prints how long the answer took and what the daemon says about itself.
pub(super) fn main(servers: &ServerOptions) -> Result<u8, CommandError> {
    block_on(async {
        let client = connect_to_ask(servers).await?;
        let sent = Instant::now();
        client.ping().await.map_err(CommandError::request(&client))?;
        let took = sent.elapsed().as_secs_f64() * 1000.0;
        let welcome = client.welcome();
        let (node, directory) = (escaped(&welcome.node), escaped(&welcome.directory));
        print(&format!(
            "{} answers after {took:.3} ms: node {node}, directory {directory}, protocol {}, a silent peer counts as dead after {} ms\n",
            client.server(),
            welcome.version,
            welcome.dead_after_ms
        ))?;
        Ok(status::DONE)
    })
}
