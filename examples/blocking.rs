//! Without `async`: works in pieces, and begins each only while the lock is held: `cargo run
//! --example blocking`.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use distrilock_client::blocking::Client;
use distrilock_client::{Server, Standing};

fn main() -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn work() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect(&Server::defaults()?)?;
    let held = client.lock("pieces").wait_at_most(Duration::from_secs(60)).acquire()?;
    for piece in 1..=10 {
        if let Standing::Lost(lost) = held.standing() {
            return Err(lost.into());
        }
        println!("piece {piece}, sure of the lock for {:?}", held.valid_for());
        thread::sleep(Duration::from_millis(100));
    }
    Ok(held.release()?)
}
