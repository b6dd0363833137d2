//! Documentation and generated pages: they mention every option, and their examples work.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::support::{DISTRILOCK, Daemon, Running, V1, command, ended, eventually};

fn page(name: &str) -> String {
    let path = format!("{}/docs/{name}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

const VERBS: [&str; 15] = [
    "run",
    "lock",
    "try",
    "verify",
    "peek",
    "who",
    "ls",
    "wait",
    "ping",
    "fence",
    "bench",
    "doctor",
    "gc",
    "history",
    "completions",
];

/// The long options that a help text lists.
fn options(help: &str) -> Vec<String> {
    let lines = help.lines().filter(|line| line.trim_start().starts_with('-'));
    let words = lines.flat_map(|line| line.split([' ', ',', '=']).filter(|word| word.starts_with("--")).take(1));
    words.map(|word| word.trim_end_matches(']').to_owned()).collect()
}

/// An option is added, but the manual does not mention it.
#[test]
fn every_option_is_documented() {
    let manual = page("distrilock.md");
    let whole =
        |option: &str| manual.match_indices(option).any(|(at, _)| !manual[at + option.len()..].starts_with(['-', '_']));
    let mut seen = 0;
    for verb in VERBS {
        let help = ended(command("", &[verb, "--help"]));
        assert_eq!(help.code(), 0);
        for option in options(&help.out).iter().filter(|option| *option != "--help") {
            assert!(whole(option), "docs/distrilock.md does not mention {option} of {verb}");
            seen += 1;
        }
    }
    assert!(seen > 40, "this test finds only {seen} options");
}

/// There are man pages for every verb and for the daemon, and completions for every shell.
#[test]
fn man_pages_and_completions() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(ended(command("", &["man", folder.path().to_str().unwrap()])).code(), 0);
    let page =
        |name: &str| fs::read_to_string(folder.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(page("distrilock.1").contains("distrilock"));
    for verb in VERBS {
        assert!(page(&format!("distrilock-{verb}.1")).contains(".SH"), "{verb}");
    }
    assert!(page("distrilock-run.1").contains("kill\\-after"));
    assert!(page("distrilockd.8").contains("dead\\-after"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), VERBS.len() + 2);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = ended(command("", &["completions", shell]));
        assert!(script.code() == 0 && script.out.contains("kill-after"), "{shell}");
        assert!(!script.out.contains("run:guard"), "{shell}");
    }
}

/// The `sh` blocks of a page.
fn blocks(text: &str) -> Vec<String> {
    let parts = text.split("```sh\n").skip(1);
    parts.map(|part| part.split("```").next().expect("a split has a first part").to_owned()).collect()
}

fn program(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a program can be written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
}

/// Each distrilock line in coming-from.md works as it stands.
#[test]
fn coming_from() {
    let daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(DISTRILOCK, folder.path().join("distrilock")).unwrap();
    for name in ["backup.sh", "job.sh", "train.sh", "make", "daemon"] {
        program(folder.path(), name, &format!("echo {name} ran"));
    }
    fs::write(folder.path().join("config"), "the config\n").unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let mut said = String::new();
    let blocks = blocks(&page("coming-from.md"));
    assert_eq!(blocks.len(), 6);
    for block in blocks {
        let mut shell = Command::new("bash");
        shell.args(["-e", "-c", &block]).current_dir(folder.path()).env("PATH", &path).stdin(Stdio::null());
        shell.env("DISTRILOCK_SERVER", daemon.tcp());
        let run = ended(shell);
        assert_eq!(run.code(), 0, "{block}\n{}", run.err);
        said.push_str(&run.out);
    }
    for (line, times) in [
        ("x", 2),
        ("y", 1),
        ("the config", 1),
        ("backup.sh ran", 9),
        ("job.sh ran", 1),
        ("train.sh ran", 2),
        ("make ran", 1),
        ("daemon ran", 1),
        ("alone: a b", 1),
        ("input", 1),
    ] {
        assert_eq!(said.lines().filter(|said| *said == line).count(), times, "{line}:\n{said}");
    }
}

/// The examples in flock(1)'s manual work with `distrilock run` in place of flock.
#[test]
fn flocks_own_examples() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    // shell1> flock /tmp -c cat    shell2> flock -w .007 /tmp -c echo; /bin/echo $?
    let mut first = command(&server, &["run", "/tmp", "-c", "cat"]);
    let (input, keys) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    first.stdin(input);
    let mut first = Running::start(first);
    first.tree.waits_for("cat");
    let second = ended(command(&server, &["run", "-w", ".007", "/tmp", "-c", "echo"]));
    assert_eq!((second.code(), second.out.as_str()), (1, ""));
    // shell1> flock -s /tmp -c cat would share the lock with others that use -s.
    drop(keys);
    assert_eq!(first.end().code(), 0);
    // shell> flock -x local-lock-file echo 'a b c'
    let plain = ended(command(&server, &["run", "-x", "local-lock-file", "echo", "a b c"]));
    assert_eq!((plain.code(), plain.out.as_str()), (0, "a b c\n"));
    let mut holder = V1::connect(&server);
    holder.acquire("__tmp");
    let conflict = ended(command(&server, &["run", "-n", "-E", "7", "/tmp", "true"]));
    assert_eq!(conflict.code(), 7);
    // shell> exec 4<>/var/lock/mylockfile; flock -n 4 || exit 1
    let descriptor = ended(command(&server, &["run", "-n", "4"]));
    assert_eq!(descriptor.code(), 64);
    assert!(descriptor.err.contains("coproc distrilock lock"), "{}", descriptor.err);
    holder.release("__tmp");
}

/// The manual's way to hold a lock while a script runs.
#[test]
fn a_lock_beside_a_script() {
    let daemon = Daemon::start();
    let server = daemon.tcp();
    let manual = page("distrilock.md");
    let (before, after) = manual.split_once("    coproc LOCK").expect("the manual shows it");
    assert!(before.contains("hold the lock beside them"));
    let script: String = format!("    coproc LOCK{after}")
        .lines()
        .take_while(|line| line.starts_with("    "))
        .map(|line| format!("{}\n", &line[4..]))
        .collect();
    let script = script.replace("...", "echo working; distrilock peek backup; echo peeked $?")
        + "wait; distrilock peek backup; echo peeked $?\n";
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(DISTRILOCK, folder.path().join("distrilock")).unwrap();
    let mut shell = Command::new("bash");
    shell.args(["-c", &script]).env("DISTRILOCK_SERVER", &server).stdin(Stdio::null());
    shell.env("PATH", format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap()));
    let run = ended(shell);
    assert!(
        run.out.contains("working") && run.out.contains("peeked 1") && run.out.ends_with("peeked 0\n"),
        "{}{}",
        run.out,
        run.err
    );
    eventually("the lock is free", || V1::connect(&server).gets("backup"));
}
