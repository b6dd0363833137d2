//! Sessions on three hosts compete for a few names: no overlap, with and without a collector; the
//! cost of a warm name; and the time that a waiter waits after a release on another host.

use std::collections::BTreeMap;
use std::io;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::hosts::{Host, LEASE_SECONDS, Node, Server, Version, eventually_clean, lock_files, timing};
use crate::machine::Suite;
use crate::report::Report;
use crate::support::{Dice, PATIENCE, V1, eventually};
use crate::witness::Witness;

const NAMES: [&str; 3] = ["one", "two", "three"];

/// A session that acquires one of several names again and again, until it is told to stop or its
/// daemon is gone.
struct Fighter<'a> {
    host: &'a Host,
    address: String,
    names: &'a [&'a str],
    seed: u64,
}

impl Fighter<'_> {
    fn fight(&self, witness: &Witness, stop: &dyn Fn() -> bool) -> io::Result<()> {
        let mut dice = Dice::new(self.seed);
        let mut session = V1::try_connect(&self.address)?;
        let who = format!("{}-{}", self.host.name, self.seed);
        let pick = |dice: &mut Dice, count: usize| usize::try_from(dice.below(count as u64)).expect("it is small");
        let home = usize::try_from(self.seed / 2).expect("it is small") % self.names.len();
        while !stop() {
            // Every other session keeps to one name, so that a daemon has several sessions for it.
            let roams = self.seed.is_multiple_of(2);
            let chosen = if roams { pick(&mut dice, self.names.len()) } else { home };
            let lock = self.names[chosen];
            // Mostly waiting in the queue: there grants are quick, and a lost notice would show.
            let wait_ms = [0, 20, 1000, 10_000, 10_000, 10_000][pick(&mut dice, 6)];
            let reply = session.try_request(json!({"op": "acquire", "lock": lock, "wait_ms": wait_ms}))?;
            if reply["ok"] != true {
                // On a slow machine, a deletion takes longer than a request waits for its end.
                let disturbed = reply["message"].as_str().is_some_and(|it| it.starts_with("wait for the deletion of"));
                let refused = reply["error"] == "busy" || reply["error"] == "timeout" || disturbed;
                assert!(refused, "{who}: {reply}");
                thread::sleep(Duration::from_micros(dice.below(2000)));
                continue;
            }
            witness.visit(lock, &self.host.name, &who, &mut dice);
            let reply = session.try_request(json!({"op": "release", "lock": lock}))?;
            assert_eq!(reply["ok"], true, "{who}: {reply}");
        }
        Ok(())
    }
}

fn fighters<'a>(hosts: &'a [Host], nodes: &[Node], names: &'a [&'a str], each: usize) -> Vec<Fighter<'a>> {
    let pairs = hosts.iter().zip(nodes).flat_map(|pair| std::iter::repeat_n(pair, each));
    (1..).zip(pairs).map(|(seed, (host, node))| Fighter { host, address: node.address.clone(), names, seed }).collect()
}

/// Six sessions on each of three hosts.
pub(crate) fn many_sessions(server: &Server, report: &Report) {
    let often = server.suite == Suite::Bookworm && server.version != Version::V40;
    let grants = if often { 20_000 } else { 3000 };
    let hosts = server.hosts("contention", ["ca", "cb", "cc"]);
    let nodes = hosts.each_ref().map(|host| host.daemon(report, &[]));
    let (witness, start) = (Witness::default(), Instant::now());
    let patience = Duration::from_secs(1800);
    let stop = || witness.grants() >= grants || !witness.overlaps().is_empty() || start.elapsed() > patience;
    thread::scope(|scope| {
        for fighter in fighters(&hosts, &nodes, &NAMES, 6) {
            let (witness, stop) = (&witness, &stop);
            scope.spawn(move || fighter.fight(witness, stop).expect("its daemon lives"));
        }
    });
    witness.report(report, grants, start);
    let changes = witness.changes();
    report.check("the hosts take turns", changes > 100, format!("{changes} grants from host to host"));
}

/// A warm name without contenders costs one LOCK and one LOCKU.
pub(crate) fn cost(server: &Server, report: &Report) {
    const CYCLES: u64 = 500;
    let [host] = server.hosts("cost", ["co"]);
    let node = host.daemon(report, &[]);
    let mut session = node.session();
    session.acquire("warm");
    session.release("warm");
    let (began, before) = (Instant::now(), host.calls());
    let mut times = cycles(&mut session, "warm", CYCLES);
    let (after, elapsed) = (host.calls(), began.elapsed());
    let difference = |name: &str| after[name] - before.get(name).copied().unwrap_or(0);
    let counted: BTreeMap<&str, u64> =
        after.keys().map(|name| (name.as_str(), difference(name))).filter(|(_, count)| *count > 0).collect();
    // The other calls come from background work, probes and looks at other daemons. Their number
    // depends on the time, not on the cycles. A third call in each cycle would add 500 of a kind.
    let probes = elapsed.as_millis() / timing().probe_every.as_millis();
    let background = (6 + 2 * u64::try_from(probes).expect("it ends")).min(CYCLES / 2);
    let is_right = |(name, count): (&&str, &u64)| match *name {
        "LOCK" | "LOCKU" => (CYCLES..=CYCLES + background).contains(count),
        _ => *count <= background,
    };
    let two = counted.contains_key("LOCK") && counted.contains_key("LOCKU") && counted.iter().all(is_right);
    let detail = format!("{CYCLES} cycles in {:.1} s: {counted:?}", elapsed.as_secs_f64());
    report.check("two calls a cycle", two, detail);
    report.figure("time of a cycle", quantiles(&mut times));
}

/// Acquires and releases a name this many times; returns the time of each.
fn cycles(session: &mut V1, lock: &str, count: u64) -> Vec<Duration> {
    let cycle = |_| {
        let start = Instant::now();
        session.acquire(lock);
        session.release(lock);
        start.elapsed()
    };
    (0..count).map(cycle).collect()
}

/// "min 0.7 ms, median 0.9 ms, ...".
pub(crate) fn quantiles(times: &mut [Duration]) -> String {
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
    format!(
        "{} times: min {:.2} ms, median {:.2} ms, 95 % {:.2} ms, max {:.2} ms",
        times.len(),
        at(0),
        at(50),
        at(95),
        at(100)
    )
}

/// Two hosts pass a name back and forth; each time, the other one is already waiting.
pub(crate) fn waiting(server: &Server, report: &Report) {
    let hand_overs = 200;
    let hosts = server.hosts("waiting", ["ta", "tb"]);
    let nodes = hosts.each_ref().map(|host| host.daemon(report, &[]));
    let mut sessions = nodes.each_ref().map(Node::session);
    // The cost on this machine while nobody else wants the lock.
    let mut alone = cycles(&mut sessions[0], "baton", 50);
    report.figure("time of a cycle", quantiles(&mut alone));
    sessions[0].acquire("baton");
    let mut times = Vec::new();
    for n in 0..hand_overs {
        let (holder, waiter) = (n % 2, 1 - n % 2);
        let id = format!("w{n}");
        sessions[waiter].send(&json!({"id": id, "op": "acquire", "lock": "baton", "wait_ms": null}));
        waits(&nodes[waiter].address, "baton", || false);
        // The waiting time must not be a multiple of any interval.
        thread::sleep(Duration::from_millis(40 + n as u64 * 7 % 50));
        let start = Instant::now();
        sessions[holder].send(&json!({"op": "release", "lock": "baton"}));
        let reply = sessions[waiter].receive();
        times.push(start.elapsed());
        assert_eq!(reply["ok"], true, "{reply}");
        assert_eq!(reply["id"], json!(id), "{reply}");
        let reply = sessions[holder].receive();
        assert_eq!(reply["ok"], true, "{reply}");
    }
    let figures = quantiles(&mut times);
    let median = times[times.len() / 2];
    // A daemon polls about every 40 ms. On a slow machine, the calls themselves take long, too.
    let limit = Duration::from_millis(100) + 10 * alone[alone.len() / 2];
    report.check("from release to grant on another host", median < limit, format!("{figures}, limit {limit:.0?}"));
    cancel_while_blocked(&mut sessions, &nodes, report);
}

/// Waits until a daemon has a waiter for a name, or has granted the name.
pub(crate) fn waits(address: &str, lock: &str, granted: impl Fn() -> bool) {
    let mut session = V1::connect(address);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let reply = session.request(json!({"op": "peek", "lock": lock}));
        if reply["waiters"] == 1 || granted() {
            return;
        }
        assert!(Instant::now() < deadline, "nobody waits for {lock}: {reply}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn cancel_while_blocked(sessions: &mut [V1; 2], nodes: &[Node; 2], report: &Report) {
    // After an even number of hand-overs, the first one has it.
    let mut times = Vec::new();
    for n in 0..20 {
        let id = format!("c{n}");
        sessions[1].send(&json!({"id": id, "op": "acquire", "lock": "baton", "wait_ms": null}));
        waits(&nodes[1].address, "baton", || false);
        thread::sleep(Duration::from_millis(30));
        let start = Instant::now();
        sessions[1].send(&json!({"id": n, "op": "cancel", "request": id}));
        let reply = sessions[1].receive();
        times.push(start.elapsed());
        assert_eq!(reply["error"], "cancelled", "{reply}");
        assert_eq!(sessions[1].receive()["cancelled"], true);
    }
    let figures = quantiles(&mut times);
    // Not only once the lock is free, or when a call returns that waits for it.
    report.check("a wait that is blocked can be cancelled", times[19] < Duration::from_secs(LEASE_SECONDS), figures);
}

/// Tells the collectors to stop, even if a fighter fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Contention while names are constantly retired and collectors run and are killed; nothing is left
/// at the end.
pub(crate) fn collector(server: &Server, report: &Report) {
    let grants = 3000;
    let names = ["c1", "c2", "c3", "c4", "c5", "c6"];
    let hosts = server.hosts("collector", ["ga", "gb", "gc"]);
    let mut nodes = hosts.each_ref().map(|host| host.daemon(report, &["--linger", "0.05"]));
    let (witness, start) = (Witness::default(), Instant::now());
    let patience = Duration::from_secs(1200);
    let stop = || witness.grants() >= grants || !witness.overlaps().is_empty() || start.elapsed() > patience;
    let done = AtomicBool::new(false);
    let counts = thread::scope(|scope| {
        let fought = Done(&done);
        let collectors: Vec<_> = (1..)
            .zip(&hosts)
            .map(|(seed, host)| {
                let done = &done;
                scope.spawn(move || collect(host, seed, done))
            })
            .collect();
        let threads: Vec<_> = fighters(&hosts, &nodes, &names, 2)
            .into_iter()
            .map(|fighter| {
                let (witness, stop) = (&witness, &stop);
                scope.spawn(move || fighter.fight(witness, stop).expect("its daemon lives"))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("a fighter goes through"));
        drop(fought);
        let counts = collectors.into_iter().map(|thread| thread.join().expect("a collector goes through"));
        counts.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    });
    witness.report(report, grants, start);
    report.figure("collectors", format!("{} ran, {} of them were killed", counts.0, counts.1));
    // The collector removes what a killed daemon could no longer remove.
    let mut session = nodes[2].session();
    session.acquire("left");
    nodes[2].kill();
    eventually("the lock is free", || nodes[0].session().gets("left"));
    if server.version != Version::V40 {
        thread::sleep(Duration::from_millis(200));
    }
    let left = lock_files("collector");
    let last = hosts[0].collector().output().expect("nsenter is there");
    let said = String::from_utf8_lossy(&last.stdout).replace('\n', ", ");
    report.check("the last collector succeeds", last.status.success(), format!("{}: {said}", last.status));
    report.figure("files before and after it", format!("{left:?} {:?}", lock_files("collector")));
    if server.version != Version::V40 {
        eventually_clean("collector");
        report.check("the directory is clean", lock_files("collector").is_empty(), "");
    }
}

/// Runs collectors until it is told to stop, and kills about half of them; returns how many ran,
/// and how many were killed.
fn collect(host: &Host, seed: u64, done: &AtomicBool) -> (u32, u32) {
    let mut dice = Dice::new(seed);
    let (mut ran, mut killed) = (0, 0);
    while !done.load(Ordering::Relaxed) {
        let mut command = host.collector();
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nsenter is there");
        ran += 1;
        if dice.below(2) == 0 {
            thread::sleep(Duration::from_millis(dice.below(150)));
            killed += u32::from(child.try_wait().is_ok_and(|status| status.is_none()));
            let _ = child.kill();
        }
        child.wait().expect("it is our child");
        thread::sleep(Duration::from_millis(dice.below(100)));
    }
    (ran, killed)
}
