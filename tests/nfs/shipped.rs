//! Three booted hosts, each with systemd as its first process, on which somebody follows
//! systemd/examples/nfs/README.md: its commands, its files and the package's units, all unchanged.
//! Only the names on that page are replaced by addresses of the lab.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use distrilock::systemd::ids;
use serde_json::{Value, json};

use crate::booted::{Booted, said};
use crate::hosts::{LEASE_SECONDS, Server, sh};
use crate::partition::Rival;
use crate::report::Report;
use crate::support::{V1, eventually};

const EXAMPLES: &str = "/usr/share/doc/distrilock/examples/nfs";

/// All units in use, for systemd-analyze(1).
const UNITS: &[&str] = &[
    "srv-locks.mount",
    "distrilock.service",
    "distrilock.socket",
    "distrilock-ws.socket",
    "distrilock-local.socket",
    "distrilock@ci.service",
    "distrilock@ci.socket",
    "distrilock-gc@srv-locks.service",
    "distrilock-gc@srv-locks.timer",
];

/// The hours by which clocks are set forward, so that files are old and timers elapse.
const JUMP_HOURS: u32 = 3;

pub(crate) fn three_hosts(server: &Server, report: &Report) {
    serve(report);
    let mut hosts = boot(server, report);
    if !administer(&hosts, report) {
        return;
    }
    excludes(server, &hosts, report);
    restarted(&hosts, report);
    killed(&hosts, report);
    stopped(&hosts, report);
    second_node(&hosts, report);
    from_the_network(&hosts, report);
    detached(&hosts, report);
    restarted_in_silence(server, &hosts, report);
    late_server(server, &hosts, report);
    rebooted(&mut hosts, report);
    collected(&hosts, report);
    for booted in &hosts {
        let name = &booted.host.name;
        let told = |id: &str| booted.journal(&[&format!("MESSAGE_ID={id}")]);
        let clashes = told(ids::CLIENT_CLASH);
        let holds = clashes.is_empty() && !told(ids::DAEMON_READY).is_empty();
        report.check(&format!("no host is taken for another one ({name})"), holds, clashes);
        let complaints = booted.journal(&["_PID=1", "--priority=warning"]);
        report.figure(&format!("what systemd warned about ({name})"), complaints);
    }
    drop(hosts);
    sh("rm /etc/exports.d/distrilock.exports && exportfs -ra");
}

/// The commands of a chapter of the examples' page.
fn commands(heading: &str) -> String {
    let page = fs::read_to_string(format!("{EXAMPLES}/README.md")).expect("it is installed");
    let chapter = page.split("\n## ").find(|chapter| chapter.starts_with(heading)).expect("the page has the chapter");
    let blocks = chapter.split("```sh\n").skip(1).filter_map(|block| block.split("```").next());
    let commands: String = blocks.collect();
    assert!(!commands.is_empty(), "{heading} has no commands");
    format!("set -ex\n{commands}")
}

/// Follows a chapter on one host; returns whether that went well.
fn follow(booted: &Booted, heading: &str, report: &Report) -> bool {
    let (status, text) = booted.run("sh", &["-c", &commands(heading)]);
    succeeds(report, &format!("{heading} ({})", booted.host.name), status, &text);
    status == Some(0)
}

/// Runs a command that must succeed; its output matters only if it does not.
fn succeeds(report: &Report, what: &str, status: Option<i32>, text: &str) {
    let holds = status == Some(0);
    report.check(what, holds, if holds { "" } else { text });
}

fn doctor(booted: &Booted, report: &Report, what: &str, arguments: &[&str]) {
    let (status, text) = booted.run("distrilock", &[&["doctor", "/srv/locks"], arguments].concat());
    succeeds(report, &format!("the doctor is content {what}"), status, &text);
}

/// The package and the server's part.
fn serve(report: &Report) {
    sh("cp -a /lab/package/. / && modprobe overlay && mount -t cgroup2 cgroup2 /sys/fs/cgroup");
    let heading = "On the file server";
    let (status, text) = said(Command::new("sh").args(["-c", &commands(heading)]).output().expect("sh is there"));
    succeeds(report, heading, status, &text);
}

/// Boots the hosts, which know each other and the server by name.
fn boot(server: &Server, report: &Report) -> [Booted; 3] {
    let start = Instant::now();
    let hosts = ["host1", "host2", "host3"].map(|name| server.host(name));
    let lines = hosts.iter().map(|host| format!("{} {1}.example.com {1}\n", host.addresses()[0], host.name));
    let names: String = lines.collect();
    let known = fs::read_to_string("/etc/hosts").expect("the machine has names");
    fs::write("/etc/hosts", format!("{known}\n{names}")).expect("the disk has room");
    sh("exportfs -ra && echo 1 >/proc/sys/net/ipv4/ip_forward");
    let mut booted = hosts.map(|host| {
        host.output(&format!("ip route add default via {}", host.addresses()[1]));
        Booted::start(host, &names, report)
    });
    booted.iter_mut().for_each(Booted::wait_until_up);
    report.figure("three hosts are up", format!("after {:.1} s", start.elapsed().as_secs_f64()));
    booted
}

/// Sets up each host as the page says, and checks all units; returns whether the hosts are ready
/// for more.
fn administer(hosts: &[Booted; 3], report: &Report) -> bool {
    let well = thread::scope(|scope| {
        let follows = hosts.each_ref().map(|booted| scope.spawn(move || follow(booted, "On each host", report)));
        follows.map(|host| host.join().expect("it ends")).iter().all(|well| *well)
    });
    let (status, text) = hosts[0].run("systemd-analyze", &[&["verify", "--man=no"], UNITS].concat());
    report.check("the units are well formed", status == Some(0) && text.is_empty(), text);
    let sockets = ["distrilock.socket", "distrilock-ws.socket", "distrilock-local.socket"];
    let listens = sockets.iter().all(|socket| hosts[0].is_active(socket));
    report.check("the sockets are there", listens && !hosts[0].is_active("distrilock.service"), "and no daemon yet");
    well
}

fn lock_file(lock: &str) -> PathBuf {
    Path::new("/srv/locks").join(format!("{lock}.lck"))
}

fn session(booted: &Booted) -> V1 {
    V1::connect(&booted.address(""))
}

/// Runs a command under a lock on a host without waiting for the lock; returns the exit status.
fn try_run(booted: &Booted, lock: &str, options: &[&str]) -> (Option<i32>, String) {
    booted.run("distrilock", &[&["run", "-n", "--connect-timeout", "60"], options, &[lock, "--", "hostname"]].concat())
}

/// A lock of one host is refused to the others; then they get it.
fn excludes(server: &Server, hosts: &[Booted; 3], report: &Report) {
    let [a, b, c] = hosts;
    let start = Instant::now();
    let mut holder = session(a);
    holder.acquire("nightly");
    let detail = format!("after {:.1} s", start.elapsed().as_secs_f64());
    report.check("the first connection starts the daemon", a.is_active("distrilock.service"), detail);
    report.check("the server has the lock", server.has_lock_on(&lock_file("nightly")), "");
    for other in [b, c] {
        let (status, text) = try_run(other, "nightly", &[]);
        report.check(&format!("it is refused on {}", other.host.name), status == Some(1), text);
    }
    holder.release("nightly");
    for other in [b, c, a] {
        let (status, text) = try_run(other, "nightly", &[]);
        let ran = status == Some(0) && text.contains(&other.host.name);
        report.check(&format!("then it is granted on {}", other.host.name), ran, text);
    }
    doctor(a, report, "beside daemons", &[]);
}

/// The daemon is restarted while a session holds a lock, and a rival requests it all the time.
fn restarted(hosts: &[Booted; 3], report: &Report) {
    let [a, b, _] = hosts;
    let mut holder = session(a);
    holder.acquire("restart");
    let before = main_process(a);
    let done = AtomicBool::new(false);
    let (refusals, granted) = thread::scope(|scope| {
        let rival = scope.spawn(|| {
            let mut session = session(b);
            let mut refusals = 0_u32;
            while !done.load(Ordering::Relaxed) {
                if session.gets("restart") {
                    return (refusals, true);
                }
                refusals += 1;
            }
            (refusals, false)
        });
        for n in 1..=3 {
            let (status, text) = a.systemctl(&["restart", "distrilock.service"]);
            succeeds(report, &format!("restart {n}"), status, &text);
            holder.ping();
        }
        let reply = holder.request(json!({"op": "verify", "lock": "restart"}));
        report.check("the session goes on, and its lock is real", reply["ok"] == true, reply);
        done.store(true, Ordering::Relaxed);
        rival.join().expect("it is answered")
    });
    report.check("the rival was always refused", !granted && refusals > 0, format!("{refusals} refusals"));
    let after = main_process(a);
    report.check("by another process", before != after, format!("{before} {after}"));
    holder.release("restart");
    let (status, text) = try_run(b, "restart", &[]);
    report.check("after a release the rival has it", status == Some(0), text);
}

/// The daemon is killed: its locks are free, and systemd starts it again.
fn killed(hosts: &[Booted; 3], report: &Report) {
    let [a, b, _] = hosts;
    let mut holder = session(a);
    holder.acquire("killed");
    let rival = Rival::start(&b.address(""), "killed", true);
    let start = Instant::now();
    let (status, text) = a.systemctl(&["kill", "--kill-whom=main", "--signal=KILL", "distrilock.service"]);
    assert_eq!(status, Some(0), "{text}");
    let (_rival, granted) = rival.granted();
    let time = granted - start;
    report.check(
        "a killed daemon's lock is free at once",
        time < Duration::from_secs(LEASE_SECONDS),
        format!("after {time:?}"),
    );
    holder.closed();
    let refused = !session(a).gets("killed");
    let (_, restarts) = a.systemctl(&["show", "--property=NRestarts,Result", "distrilock.service"]);
    report.check("the daemon is back, and excluded", refused, restarts);
}

/// The service is stopped: sessions end, the sockets stay, and the next connection starts it.
fn stopped(hosts: &[Booted; 3], report: &Report) {
    let [a, b, _] = hosts;
    let mut holder = session(a);
    holder.acquire("stopped");
    let rival = Rival::start(&b.address(""), "stopped", true);
    let start = Instant::now();
    let (status, text) = a.systemctl(&["stop", "distrilock.service"]);
    let (_rival, granted) = rival.granted();
    let time = granted.saturating_duration_since(start);
    holder.closed();
    succeeds(report, "a stop frees locks", status, &text);
    report.figure("after", format!("{time:?}"));
    let stays = a.is_active("distrilock.socket") && !a.is_active("distrilock.service");
    report.check("the sockets stay", stays, "");
    report.check("the next connection starts it again", !session(a).gets("stopped"), "and it excludes");
}

/// A second node on the first host, with the same directory.
fn second_node(hosts: &[Booted; 3], report: &Report) {
    let [a, b, _] = hosts;
    follow(a, "Another node on the same host", report);
    let mut second = V1::connect(&a.address("ci"));
    second.acquire("node");
    for (booted, options) in [(a, &[][..]), (b, &[])] {
        let (status, text) = try_run(booted, "node", options);
        report.check(&format!("the second node's lock is refused on {}", booted.host.name), status == Some(1), text);
    }
    let mut first = session(a);
    first.acquire("first");
    report.check("and the first node's by the second one", !second.gets("first"), "");
    doctor(a, report, "with two nodes", &[]);
    let (status, text) =
        a.systemctl(&["disable", "--now", "distrilock@ci.socket", "distrilock-ws@ci.socket", "distrilock@ci.service"]);
    succeeds(report, "the second node goes", status, &text);
}

/// A port that is open to other hosts.
fn from_the_network(hosts: &[Booted; 3], report: &Report) {
    let [a, b, _] = hosts;
    follow(b, "From other hosts", report);
    let mut holder = session(a);
    holder.acquire("far");
    let (status, text) = try_run(a, "far", &["--server", "tcp://host2.example.com:40800"]);
    report.check("another host's daemon is reached, and refuses", status == Some(1), text);
    doctor(a, report, "with the other host", &["--peer", "host2.example.com:40800"]);
}

/// Waits until a session of a host is granted a lock; returns the reply, and after how long.
fn eventually_granted(address: String, lock: &str) -> JoinHandle<(Value, Duration)> {
    let lock = lock.to_owned();
    thread::spawn(move || {
        let start = Instant::now();
        let mut reply = Value::Null;
        while reply["ok"] != true && start.elapsed() < Duration::from_secs(150) {
            let session = V1::try_connect(&address);
            let asked = session.and_then(|mut session| {
                session.stream().set_read_timeout(Some(Duration::from_secs(120)))?;
                session.try_request(json!({"op": "acquire", "lock": lock, "wait_ms": 30_000}))
            });
            reply = asked.unwrap_or_else(|error| json!(error.to_string()));
            thread::sleep(Duration::from_millis(200));
        }
        (reply, start.elapsed())
    })
}

/// The mount is detached under a daemon that holds a lock; then the daemon is stopped.
fn detached(hosts: &[Booted; 3], report: &Report) {
    let [_, b, c] = hosts;
    let mut holder = session(c);
    holder.acquire("detached");
    let before = main_process(c);
    let (status, text) = c.run("umount", &["-l", "/srv/locks"]);
    assert_eq!(status, Some(0), "{text}");
    let start = Instant::now();
    holder.closed();
    let time = start.elapsed();
    eventually("the daemon is back", || c.is_active("distrilock.service") && main_process(c) != before);
    let back = c.is_active("srv-locks.mount");
    report.check("a daemon whose mount is detached ends, and has it mounted anew", back, format!("after {time:.1?}"));
    let (status, text) = try_run(b, "detached", &[]);
    report.check("its locks were free", status == Some(0), text);
    let (status, text) = c.systemctl(&["stop", "srv-locks.mount"]);
    let gone = status == Some(0) && !c.is_active("distrilock.service");
    report.check("who stops the mount stops the daemon", gone, text);
    let (reply, time) = eventually_granted(c.address(""), "detached").join().expect("it ends");
    let back = reply["ok"] == true && c.is_active("srv-locks.mount");
    report.check("the next connection brings both back", back, format!("{reply} after {time:.1?}"));
}

/// A daemon is restarted while the server does not answer: its sessions are not handed to a process
/// that could not tell them about lost locks.
fn restarted_in_silence(server: &Server, hosts: &[Booted; 3], report: &Report) {
    let c = &hosts[2];
    let mut holder = session(c);
    holder.acquire("silence");
    server.down();
    while holder.receive()["event"] != "suspect" {}
    let start = Instant::now();
    let (status, text) = c.systemctl(&["restart", "--no-block", "distrilock.service"]);
    assert_eq!(status, Some(0), "{text}");
    holder.closed();
    let time = start.elapsed();
    let said = c.journal(&["--unit=distrilock.service", "--grep=sessions end with this process"]);
    report.check("a restart in silence ends sessions", !said.is_empty(), format!("after {time:.1?}"));
    server.up();
    let (reply, time) = eventually_granted(c.address(""), "silence").join().expect("it ends");
    report.check("and grants when the server is back", reply["ok"] == true, format!("{reply} after {time:.1?}"));
}

/// Changes a unit until the host boots again.
fn configure(booted: &Booted, unit: &str, text: &str) {
    let folder = booted.path(&format!("/run/systemd/system/{unit}.d"));
    fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join("lab.conf"), text)).expect("memory is left");
    let (status, text) = booted.systemctl(&["daemon-reload"]);
    assert_eq!(status, Some(0), "{text}");
}

fn main_process(booted: &Booted) -> String {
    booted.systemctl(&["show", "--property=MainPID", "--value", "distrilock.service"]).1
}

/// A host needs its mount while the server is down: mounting fails, but connections wait, and are
/// served when the server is back.
fn late_server(server: &Server, hosts: &[Booted; 3], report: &Report) {
    let c = &hosts[2];
    let (status, text) = c.systemctl(&["stop", "srv-locks.mount"]);
    assert_eq!(status, Some(0), "{text}");
    configure(c, "srv-locks.mount", "[Mount]\nTimeoutSec=3\n");
    server.down();
    let late = eventually_granted(c.address(""), "late");
    let failures = || c.journal(&["--unit=srv-locks.mount", "--grep=Mounting timed out"]).lines().count();
    eventually("the mount fails, and is tried again", || failures() > 1);
    let waits = !late.is_finished() && !c.is_active("distrilock.service");
    report.check("a daemon without its mount does not serve", waits, format!("the mount failed {} times", failures()));
    server.up();
    let up = Instant::now();
    let (reply, _) = late.join().expect("it ends");
    let time = up.elapsed();
    let detail = format!("{reply} {time:.1?} after the server's start, whose grace time is {LEASE_SECONDS} s");
    report.check("a server that comes late is enough", reply["ok"] == true, detail);
}

/// A host boots again, and works as before without any help.
fn rebooted(hosts: &mut [Booted; 3], report: &Report) {
    let [a, _, c] = hosts;
    let mut holder = session(a);
    holder.acquire("boot");
    session(c).acquire("left");
    let start = Instant::now();
    c.reboot();
    let time = start.elapsed();
    let (status, text) = try_run(c, "boot", &[]);
    report.check("a host that was booted again excludes", status == Some(1), format!("after {time:.1?} {text}"));
    let (status, text) = try_run(c, "left", &[]);
    report.check("and grants", status == Some(0), text);
}

/// The timer deletes, hours later, what a killed daemon left; held files are not deleted, and no
/// lock is affected by clocks that jump.
fn collected(hosts: &[Booted; 3], report: &Report) {
    let [a, b, _] = hosts;
    let (mut holder, mut victim) = (session(a), session(b));
    holder.acquire("held");
    victim.acquire("leftover");
    let (status, text) = b.systemctl(&["kill", "--kill-whom=main", "--signal=KILL", "distrilock.service"]);
    assert_eq!(status, Some(0), "{text}");
    victim.closed();
    report.check("a killed daemon leaves a file", lock_file("leftover").exists(), "");
    // After a jump, a random delay would start again.
    configure(b, "distrilock-gc@srv-locks.timer", "[Timer]\nRandomizedDelaySec=0\n");
    sh(&format!("date -s '+{JUMP_HOURS} hours'"));
    let ran = |booted: &Booted| booted.journal(&["--unit=distrilock-gc@srv-locks.service"]);
    let start = Instant::now();
    while lock_file("leftover").exists() && start.elapsed() < Duration::from_secs(60) {
        thread::sleep(Duration::from_millis(100));
    }
    let gone = !lock_file("leftover").exists();
    let detail = format!("after {:.1?}: {}", start.elapsed(), hosts.each_ref().map(ran).concat());
    report.check("the timer's collector deletes it", gone, detail);
    report.check("and nothing that is held", lock_file("held").exists() && !session(b).gets("held"), "");
    let reply = holder.request(json!({"op": "verify", "lock": "held"}));
    report.check("a jump of the clock loses no lock", reply["ok"] == true, reply);
}
