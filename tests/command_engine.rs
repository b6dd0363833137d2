//! The command with more than plain locks: slots, several names and fences.

mod support;

use std::fs;

use nix::sys::signal::Signal;
use support::{Daemon, Running, V1, command, ended};

/// Two slots admit two holders, each with its own slot; a third is refused, on another daemon of
/// the directory, too.
#[test]
fn slots() {
    let one = Daemon::start();
    let other = Daemon::setup().directory(one.directory()).start();
    let servers = [one.tcp(), other.tcp()];
    let show = "echo \"slot $DISTRILOCK_SLOT\"; exec sleep 1001";
    let holders: Vec<Running> = servers
        .iter()
        .map(|server| Running::start(command(server, &["run", "-N", "2", "gpu", "sh", "-c", show])))
        .collect();
    holders.iter().for_each(|holder| holder.says("slot "));
    let slots: Vec<String> = holders.iter().map(Running::out).collect();
    assert!(slots == ["slot 0\n", "slot 1\n"] || slots == ["slot 1\n", "slot 0\n"], "{slots:?}");
    for (server, slot) in servers.iter().zip(&slots) {
        let ls = ended(command(server, &["ls"])).out;
        assert!(ls.contains(&format!("{} of 2", slot.trim())), "{ls}");
        let json = ended(command(server, &["ls", "--json"])).out;
        let number = slot.trim().trim_start_matches("slot ");
        assert!(json.contains(&format!("\"taken\":[{number}]")) && json.contains("\"slots\":2"), "{json}");
    }
    for server in &servers {
        let third = ended(command(server, &["run", "-n", "-N", "2", "gpu", "true"]));
        assert_eq!(third.code(), 1, "{}", third.err);
        let mismatch = ended(command(server, &["run", "-n", "-N", "3", "gpu", "true"]));
        assert_eq!(mismatch.code(), 65, "{}", mismatch.err);
        assert!(mismatch.err.contains('2') && mismatch.err.contains('3'), "both numbers are named: {}", mismatch.err);
    }
    for mut holder in holders {
        holder.signal(Signal::SIGTERM);
        holder.end();
        holder.tree.goes();
    }
    let again = ended(command(&servers[0], &["run", "-w", "30", "-N", "2", "gpu", "true"]));
    assert_eq!(again.code(), 0, "{}", again.err);
}

/// A lease of several slots together with a name: all or nothing.
#[test]
fn leases() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let show = "echo \"$DISTRILOCK_LOCK $DISTRILOCK_SLOT\"; exec sleep 1001";
    let mut first = Running::start(command(&server, &["run", "--lease", "cpu=2:3", "build", "sh", "-c", show]));
    first.says("build,cpu 0,1\n");
    let second = ended(command(&server, &["run", "-n", "--lease", "cpu=2:3", "other", "true"]));
    assert_eq!(second.code(), 1, "{}", second.err);
    // The refused request has left nothing locked.
    assert!(V1::connect(&server).gets("other"));
    let third = ended(command(&server, &["run", "-n", "--lease", "cpu=1:3", "another", "true"]));
    assert_eq!(third.code(), 0, "{}", third.err);
    first.signal(Signal::SIGTERM);
    first.end();
    let fourth = ended(command(&server, &["run", "-n", "--lease", "cpu=3:3", "build", "true"]));
    assert_eq!(fourth.code(), 0, "{}", fourth.err);
}

/// Commands that name the same locks in different orders do not deadlock.
#[test]
fn several_names_in_any_order() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("witness");
    let script = format!("set -C; echo $$ > '{0}' || exit 99; sleep 0.02; rm '{0}'", witness.display());
    let runs: Vec<Running> = ["a,b,c", "c,b,a", "b,a", "b,c", "c,a,b", "a,b"]
        .iter()
        .map(|names| Running::start(command(&server, &["run", names, "-c", &script])))
        .collect();
    for mut run in runs {
        let ended = run.end();
        assert_eq!(ended.code(), 0, "{}", ended.err);
        run.tree.goes();
    }
}

/// Fences increase, reach CMD, and stop a holder that comes too late.
#[test]
fn fences() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let fence = || -> u64 {
        let run =
            ended(command(&server, &["run", "--fence", "ledger", "-c", "echo $DISTRILOCK_FENCE $DISTRILOCK_TOKEN"]));
        let numbers: Vec<u64> = run.out.split_whitespace().map(|number| number.parse().unwrap()).collect();
        assert_eq!((run.code(), numbers.len()), (0, 2), "{}", run.err);
        assert_eq!(numbers[0], numbers[1]);
        numbers[0]
    };
    let (first, second) = (fence(), fence());
    assert!(first < second);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ledger.db");
    let file = file.to_str().unwrap();
    for (number, code) in [(first, 0), (second, 0), (first, 1), (second, 0)] {
        assert_eq!(ended(command("", &["fence", file, &number.to_string(), "--", "true"])).code(), code, "{number}");
    }
    assert!(!fs::exists(file).unwrap());
}
