//! The README's commands, run as a user runs them: those of its `sh` blocks, in order, in one bash,
//! and the Python lines. `cargo run --release` builds the daemon; its state folder and its ports
//! are the defaults.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, Uid};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");

/// The fenced blocks of one language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let opening = format!("```{language}\n");
    let parts = text.split(opening.as_str()).skip(1);
    parts.map(|part| part.split("```").next().expect("a split has a first part").to_owned()).collect()
}

/// Gives this thread and its children a loopback network of their own: the default ports are among
/// those that the kernel assigns to outgoing connections (ip_local_port_range), so another program
/// may be using one.
fn own_network() {
    assert!(Uid::effective().is_root(), "the test needs a network namespace of its own: run it as root");
    unshare(CloneFlags::CLONE_NEWNET).expect("root may");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("iproute2 is there");
    assert!(up.success());
}

/// `cargo run` and the daemon that it runs, stopped together.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let group = Pid::from_raw(i32::try_from(self.0.id()).expect("process numbers are small"));
        let _ = killpg(group, Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// Starts the first command and waits until the daemon says that it serves.
fn serve(command: &str, state: &std::path::Path) -> Running {
    let mut child = Command::new("bash")
        .args(["-c", &format!("exec {command}")])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("XDG_STATE_HOME", state)
        .env_remove("STATE_DIRECTORY")
        .env_remove("JOURNAL_STREAM")
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("bash runs");
    let stderr = child.stderr.take().expect("it is a pipe");
    let running = Running(child);
    let mut lines = BufReader::new(stderr).lines();
    let mut said = Vec::new();
    let serving = lines.by_ref().map_while(Result::ok).find(|line| {
        said.push(line.clone());
        line.contains("serving the lock directory")
    });
    let serving = serving.unwrap_or_else(|| panic!("the daemon does not serve:\n{}", said.join("\n")));
    assert!(serving.contains(&*state.join("distrilock").to_string_lossy()), "the directory is not named: {serving}");
    std::thread::spawn(move || lines.for_each(drop));
    running
}

fn run(program: &str, script: &str) -> String {
    let mut command = Command::new(program);
    command.args(["-c", script]).current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("DISTRILOCK_SERVER");
    let output = command.output().expect("the interpreter runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program}: {script}\n{said}");
    String::from_utf8(output.stdout).expect("text")
}

/// The first lock, from a plain shell and from Python, with the daemon that the first command
/// starts.
#[test]
fn the_first_lock() {
    let text = fs::read_to_string(PATH).expect("there is a README");
    // The section on the package is tested in containers, with systemd (tests/containers).
    let (before, after) = text.split_once("\n## Install it\n").expect("the README tells how to install the package");
    let (_, after) = after.split_once("\n## ").expect("it goes on");
    let commands = blocks(&format!("{before}\n{after}"), "sh");
    let [start, first, nested, tests] = &commands[..] else { panic!("the README has other blocks: {commands:?}") };
    assert_eq!(tests.trim(), "tests/run", "the command that runs all tests, which runs this one");
    let ci = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/.ci/run")).expect("there is a CI");
    assert!(ci.lines().any(|line| line == tests.trim()), "CI does not run the README's test command");

    own_network();
    let state = tempfile::tempdir().expect("a directory");
    let _daemon = serve(start.trim(), state.path());
    let said = run("bash", &format!("{first}{nested}"));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..2], ["I am the only one", "refused: 1"], "{said}");
    assert!(lines[2..].iter().any(|line| line.contains("nightly")), "ls shows the lock: {said}");

    let python = blocks(&text, "python");
    assert_eq!(python.len(), 1);
    let said = run("python3", &python[0]);
    assert_eq!(said.trim(), "{'ok': True, 'lock': 'report'}");
}
