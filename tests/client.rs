//! The client library against the real daemon, over every transport.

mod support;

use std::time::Duration;

use distrilock::client::{AcquireError, Client, Server};
use support::{Daemon, PATIENCE};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn server(text: &str) -> Server {
    text.parse().expect("a server")
}

/// A daemon with a front of each kind, and where they are.
fn every_front() -> (Daemon, Vec<Server>, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder for the socket");
    let unix = format!("unix:{}", folder.path().join("socket").display());
    let daemon = Daemon::setup().tcp("127.0.0.1:0").ws("127.0.0.1:0").tcp(&unix).start();
    let servers = vec![server(&daemon.tcp()), server(&format!("ws://{}", daemon.ws())), server(&unix)];
    (daemon, servers, folder)
}

/// Two clients over each pair of transports: what one holds the other does not get, until it is released or dropped.
#[tokio::test]
async fn every_transport_locks() -> Outcome {
    let (_daemon, servers, _folder) = every_front();
    for one in &servers {
        for other in &servers {
            let (one, other) = (Client::connect(&[one.clone()]).await?, Client::connect(&[other.clone()]).await?);
            let held = one.lock("a").acquire().await?;
            held.verify().await?;
            let busy = other.lock("a").acquire().await;
            assert!(matches!(busy, Err(AcquireError::Busy { .. })), "{busy:?}");
            held.release().await?;
            let held = other.lock("a").acquire().await?;
            drop(held);
            let held = tokio::time::timeout(PATIENCE, one.lock("a").wait().acquire()).await??;
            assert!(!held.is_lost() && held.valid_for() > Duration::from_secs(10));
            drop((held, one));
            let _held = tokio::time::timeout(PATIENCE, other.lock("a").wait().acquire()).await??;
            other.bye().await?;
        }
    }
    Ok(())
}
