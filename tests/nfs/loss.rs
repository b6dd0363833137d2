//! Daemons and hosts that disappear, and a server that does not answer, or only slowly.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::hosts::{Host, LEASE_SECONDS, Node, Server};
use crate::partition::{Rival, works_again};
use crate::report::Report;
use crate::support::V1;

/// A daemon is killed; a host loses its link and its power.
pub(crate) fn gone(server: &Server, report: &Report) {
    let [a, b, c] = server.hosts("gone", ["xa", "xb", "xc"]);
    let (mut killed, right, lost) = (a.daemon(report, &[]), b.daemon(report, &[]), c.daemon(report, &[]));
    let mut session = killed.session();
    session.acquire("killed");
    let rival = Rival::start(&right.address, "killed", true);
    let start = Instant::now();
    killed.kill();
    let (_rival, granted) = rival.granted();
    // Its kernel unlocks. The host's lease goes on, so nobody waits for its end.
    let limit = Duration::from_secs(LEASE_SECONDS);
    let time = granted - start;
    report.check("a killed daemon's lock is free at once", time < limit, format!("after {time:?}"));

    let mut session = lost.session();
    session.acquire("gone");
    let rival = Rival::start(&right.address, "gone", true);
    let start = Instant::now();
    c.destroy();
    let (_rival, granted) = rival.granted();
    let time = granted - start;
    // The lease, counted from the last renewal, and the interval at which the server checks it.
    let in_time = time < Duration::from_secs(3 * LEASE_SECONDS);
    report.check("a host's lock is free when its lease has run out", in_time, format!("after {time:?}"));
}

/// The results of a session that keeps requesting names.
#[derive(Default)]
struct Load {
    grants: AtomicU64,
    storage: AtomicU64,
    others: AtomicU64,
    slowest_ms: AtomicU64,
}

impl Load {
    fn run(&self, node: &Node, names: u64, done: &AtomicBool) {
        let mut session = node.session();
        session.stream().set_read_timeout(Some(Duration::from_secs(60))).expect("it is a socket");
        let mut n = 0;
        while !done.load(Ordering::Relaxed) {
            let lock = format!("load{}", n % names);
            n += 1;
            let start = Instant::now();
            let mut reply = session.request(json!({"op": "acquire", "lock": lock}));
            if reply["ok"] == true {
                reply = session.request(json!({"op": "release", "lock": lock}));
            }
            let time = u64::try_from(start.elapsed().as_millis()).expect("less than an age");
            self.slowest_ms.fetch_max(time, Ordering::Relaxed);
            match &reply {
                reply if reply["ok"] == true => &self.grants,
                reply if reply["error"] == "storage" => &self.storage,
                _ => &self.others,
            }
            .fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn grants(&self) -> u64 {
        self.grants.load(Ordering::Relaxed)
    }
}

/// The server does not answer a daemon under load for longer than its lease: requests without
/// storage are served, there and in another daemon with a local directory; when the server is back,
/// so is everything else.
pub(crate) fn hung_server(server: &Server, report: &Report) {
    const HUNG: Duration = Duration::from_secs(LEASE_SECONDS + 4);
    /// What takes less time does not wait for the server.
    const NOT_HUNG: Duration = Duration::from_secs(LEASE_SECONDS / 2 + 2);
    let [host] = server.hosts("hung", ["ha"]);
    let flags = ["--storage-timeout", "2"];
    let mut node = host.daemon(report, &flags);
    fs::create_dir("/run/local").expect("a fresh folder");
    let local = host.daemon_as(report, None, "/run/local", &[]);
    let (remote_load, local_load, done) = (Load::default(), Load::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        let loaded = Instant::now();
        for _ in 0..3 {
            scope.spawn(|| remote_load.run(&node, 5, &done));
        }
        scope.spawn(|| local_load.run(&local, 5, &done));
        crate::support::eventually("the load runs", || remote_load.grants() > 100 && local_load.grants() > 100);
        let before = local_load.grants();
        let rate = before as f64 / loaded.elapsed().as_secs_f64();
        let cut = Instant::now();
        host.cut();
        let stalled = ask_for_storage(&node);
        let slowest = answers(&node, cut + HUNG);
        let went_on = local_load.grants() - before;
        host.heal();
        let healed = Instant::now();
        let (time, reply) = stalled.join().expect("it is answered");
        let in_time = reply["error"] == "storage" && time < NOT_HUNG;
        report.check("what needs storage is refused in time", in_time, format!("after {time:?}: {reply}"));
        report.check("ping and list go on", slowest < NOT_HUNG, format!("the slowest took {slowest:?}"));
        // If it had stood still most of the time, there would be fewer than a fifth of them.
        let goes_on = went_on as f64 > rate * HUNG.as_secs_f64() / 5.0;
        let detail = format!("{went_on} grants, {rate:.0} a second before");
        report.check("the daemon of a local directory goes on", goes_on, detail);
        works_again(&node, report, healed);
        let before = remote_load.grants();
        crate::support::eventually("the load goes on", || remote_load.grants() > before + 100);
        done.store(true, Ordering::Relaxed);
    });
    let slowest = Duration::from_millis(local_load.slowest_ms.load(Ordering::Relaxed));
    report.check("and never waited for the server", slowest < NOT_HUNG, format!("the slowest took {slowest:?}"));
    report.check("the same process serves", node.runs(), format!("process {}", node.pid()));
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let load = &remote_load;
    let detail = format!("{} grants, {} storage, {} others", load.grants(), of(&load.storage), of(&load.others));
    report.figure("the load was answered", detail);
    reachable(&host, report);
}

fn ask_for_storage(node: &Node) -> thread::JoinHandle<(Duration, Value)> {
    let mut session = node.session();
    thread::spawn(move || {
        let start = Instant::now();
        let reply = session.request(json!({"op": "acquire", "lock": "never-seen"}));
        (start.elapsed(), reply)
    })
}

/// Pings and lists until a given time; returns the slowest reply.
fn answers(node: &Node, end: Instant) -> Duration {
    let mut slowest = Duration::ZERO;
    let mut session: V1 = node.session();
    while Instant::now() < end {
        for op in ["ping", "list"] {
            let start = Instant::now();
            let reply = session.request(json!({"op": op}));
            assert_eq!(reply["ok"], true, "{reply}");
            slowest = slowest.max(start.elapsed());
        }
        let start = Instant::now();
        node.session().ping();
        slowest = slowest.max(start.elapsed());
        thread::sleep(Duration::from_millis(100));
    }
    slowest
}

/// On a slow link, a look at the daemons of the directory takes several times as long as the server
/// may be silent. The daemon listens to the server meanwhile.
pub(crate) fn crowd(server: &Server, report: &Report) {
    const DAEMONS: u64 = 8;
    const DELAY_MS: u32 = 500;
    const LOOK_MAX: Duration = Duration::from_secs(600);
    let [host] = server.hosts("crowd", ["cr"]);
    let node = host.daemon(report, &[]);
    node.session().ping();
    let folder = Path::new("/export/crowd/.distrilock");
    let entries = fs::read_dir(folder).expect("the daemon has created it").filter_map(Result::ok);
    let own = entries.map(|entry| entry.path()).find(|path| path.to_string_lossy().contains("/node-"));
    let text = fs::read(own.expect("the daemon has announced itself")).expect("it is readable");
    let mut info: Value = serde_json::from_slice(&text).expect("it is JSON");
    for n in 0..DAEMONS {
        for member in ["node", "client", "instance", "mount"] {
            info[member] = json!(format!("far{n}"));
        }
        fs::write(folder.join(format!("node-far{n}")), info.to_string()).expect("our own folder");
    }
    let opens = || -> u64 {
        let calls = host.calls();
        calls.iter().filter(|(name, _)| name.starts_with("OPEN")).map(|(_, count)| count).sum()
    };
    let (before, start) = (opens(), Instant::now());
    host.slow(DELAY_MS);
    while opens() < before + DAEMONS && start.elapsed() < LOOK_MAX {
        thread::sleep(Duration::from_millis(100));
    }
    let looked = opens() - before;
    report.check("the daemon looks at the others", looked >= DAEMONS, format!("{looked} in {:?}", start.elapsed()));
    let said = node.said();
    let silent: Vec<&str> = said.lines().filter(|line| line.contains("does not answer")).collect();
    let lost = silent.iter().any(|line| line.contains("count as lost"));
    report.check("and listens to the server meanwhile", !lost, silent.join(" / "));
    host.heal();
}

/// The host's own mount works again.
fn reachable(host: &Host, report: &Report) {
    let names = fs::read_dir(host.path("/mnt")).map(Iterator::count);
    report.check("the mount answers", names.is_ok(), format!("{names:?}"));
}
