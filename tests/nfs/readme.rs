//! README.md's lines for several hosts on one mount, run unchanged on two hosts, except for the
//! replacements in `fit`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use crate::hosts::{Host, Server};
use crate::report::Report;
use crate::support::eventually;

const README: &str = include_str!("../../README.md");

/// The lines of the section that mount, examine and serve; and the one that is refused.
fn lines_of_the_readme() -> ([&'static str; 3], &'static str) {
    let section = README.split("\n## ").find(|part| part.starts_with("Several hosts on one NFSv4 mount\n"));
    let section = section.expect("README.md has the section");
    let lines: Vec<&str> = section.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    let lines: [&str; 3] = lines.try_into().unwrap_or_else(|lines| panic!("README.md has other lines: {lines:?}"));
    let refused = section.split('`').find(|part| part.starts_with("distrilock run "));
    (lines, refused.expect("README.md says what is refused"))
}

/// A line with the lab's addresses in place of README.md's names: the server, whose export is one
/// folder, and the other host.
fn fit(line: &str, host: &Host, other: &Host) -> String {
    let server = format!("{}.1:/export/readme", network(host));
    let other = format!("{}.2", network(other));
    line.replace("files.example.com:/srv/locks", &server).replace("host2", &other)
}

/// The first three numbers of a host's address: the host is the second address of its network, the
/// server the first.
fn network(host: &Host) -> String {
    let address = host.output("ip -4 -o addr show dev eth0");
    let network = address.split_whitespace().find_map(|word| word.strip_suffix(".2/24"));
    network.expect("the host has an address").to_owned()
}

/// A line of shell on a host, with the programs under test on its path.
fn shell(host: &Host, line: &str) -> Command {
    let mut command = host.command("sh");
    command.args(["-c", line]).env("PATH", "/lab:/usr/sbin:/usr/bin:/sbin:/bin").env_remove("DISTRILOCK_SERVER");
    command
}

fn output(host: &Host, line: &str) -> (Output, String) {
    let output = shell(host, line).output().expect("nsenter is there");
    let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    (output, said)
}

/// A process of a host, killed at the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Mounts, examines and serves on two hosts; then a lock of one host is refused on the other.
pub(crate) fn several_hosts(server: &Server, report: &Report) {
    let ([mount, doctor, daemon], refused) = lines_of_the_readme();
    server.folder("readme", "");
    // In the lab the hosts' networks meet at the server.
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("proc is mounted");
    let hosts = ["rma", "rmb"].map(|name| server.host(name));
    for host in &hosts {
        let route = format!("mkdir -p /srv/locks && ip route add default via {}.1", network(host));
        assert!(output(host, &route).0.status.success(), "{route}");
        let line = fit(mount, host, host);
        let (mounted, said) = output(host, &line);
        report.check("README.md's mount", mounted.status.success(), format!("{line}: {said}"));
    }
    let serve = |host: &Host| {
        let line = format!("exec {daemon}");
        let log = PathBuf::from(format!("/run/lab/readme-{}.log", host.name));
        let file = fs::File::create(&log).expect("memory is left");
        let child = shell(host, &line).stdout(Stdio::null()).stderr(file).spawn().expect("nsenter is there");
        report.show_if_failed(log);
        let running = Running(child);
        eventually("README.md's daemon serves", || output(host, "distrilock ping").0.status.success());
        running
    };
    let examine = |host: &Host, other: &Host| {
        let line = fit(doctor, host, other);
        let (examined, said) = output(host, &line);
        let bad: Vec<&str> = said.lines().filter(|line| !line.starts_with("ok ")).collect();
        let both = said.lines().any(|line| line.starts_with("ok ") && line.contains("exclude each other"));
        let healthy = examined.status.code() == Some(0) && both;
        report.check(
            "README.md's doctor, with a peer",
            healthy,
            format!("{line}: {:?} {bad:?}", examined.status.code()),
        );
    };
    let [first, second] = &hosts;
    let _second = serve(second);
    examine(first, second);
    let _first = serve(first);
    examine(second, first);

    // The lab's lease is short: a command that takes long to stop would have to give up the lock
    // before it has it.
    let hold = "exec distrilock run --kill-after 0.1 nightly -- sh -c 'echo held; read line'";
    let held = shell(first, hold).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut held = Running(held.expect("nsenter is there"));
    let mut line = String::new();
    let stdout = held.0.stdout.take().expect("it is a pipe");
    BufReader::new(stdout).read_line(&mut line).expect("it says what it holds");
    let status = |line: &str| output(second, line).0.status.code();
    let busy = status(refused);
    report.check(
        "README.md's command is refused on the second host",
        busy == Some(1),
        format!("{refused}: {busy:?}, {line}"),
    );
    drop(held.0.stdin.take());
    let ended = held.0.wait();
    let free = status(&refused.replace("-n", "-w 30 --kill-after 0.1"));
    report.check("it is granted once the lock is free", free == Some(0), format!("{ended:?}, {free:?}"));
}
