//! Runs a job that should run on only one host, and stops it if the lock is lost: `cargo run
//! --example nightly`.

use std::process::ExitCode;
use std::time::Duration;

use distrilock_client::{AcquireError, Client, Server};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match once().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn once() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::builder().name("nightly").pid(std::process::id()).connect(&Server::defaults()?).await?;
    let held = match client.lock("nightly").acquire().await {
        Ok(held) => held,
        Err(AcquireError::Busy { message, .. }) => {
            println!("somebody else is doing it: {message}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    tokio::select! {
        () = job() => println!("done"),
        // Dropping the job's future stops it.
        lost = held.lost() => return Err(lost.into()),
    }
    Ok(held.release().await?)
}

async fn job() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}
