//! The programs in examples/, which `cargo test` builds. Each does what its first line says.

mod support;

use std::process::{Command, Output};

use serde_json::json;
use support::{Daemon, V1};

fn run(example: &str, server: &str) -> Output {
    let test = std::env::current_exe().expect("a test has a path");
    // target/PROFILE/deps/TEST and target/PROFILE/examples/EXAMPLE
    let program = test.ancestors().nth(2).expect("a profile's folder").join("examples").join(example);
    let output = Command::new(&program).env("DISTRILOCK_SERVER", server).output();
    output.unwrap_or_else(|error| panic!("{}: {error}: build it with cargo build --examples", program.display()))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The first program does the job; the second one says which session is doing it.
#[test]
fn nightly() {
    let daemon = Daemon::start();
    let output = run("nightly", &daemon.tcp());
    assert!(output.status.success() && text(&output) == "done\n", "{}", text(&output));
    let mut other = V1::connect(&daemon.tcp());
    other.request(json!({"op":"hello","name":"the other one"}));
    assert_eq!(other.request(json!({"op":"acquire","lock":"nightly"}))["ok"], true);
    let output = run("nightly", &format!("ws://{}", daemon.ws()));
    assert!(output.status.success() && text(&output).contains("held by the other one"), "{}", text(&output));
}

/// All pieces are processed, and the lock is free afterwards; without a daemon, the error says what
/// to do.
#[test]
fn blocking() {
    let mut daemon = Daemon::start();
    let output = run("blocking", &daemon.tcp());
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(text(&output).matches("sure of the lock").count(), 10);
    assert_eq!(V1::connect(&daemon.tcp()).request(json!({"op":"peek","lock":"pieces"}))["locked"], false);
    let address = daemon.tcp();
    daemon.kill();
    let output = run("blocking", &address);
    assert!(!output.status.success() && text(&output).contains("systemctl start"), "{}", text(&output));
}
