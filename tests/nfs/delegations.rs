//! From Linux 6.6 on, the server grants a write delegation with every open to read and write that
//! no other host competes with. Under a delegation, locks stay on the host: they cost no call, and
//! a host that is cut off grants itself what the server has given to another host.
//!
//! The scenario shows that first, with a program that opens its file plainly. Then it shows that
//! the daemon's flag keeps delegations away, and that no file has one that a daemon, a doctor or a
//! collector opens.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::hosts::{Host, Node, Server, Version};
use crate::locker::{Locker, Opened};
use crate::machine::COMMAND;
use crate::partition::{Rival, Watch, works_again};
use crate::report::Report;
use crate::support::{PATIENCE, eventually};

/// A call that is not answered within this time hangs. It is shorter than the lease.
const HANGS: Duration = Duration::from_secs(3);

/// How many files are opened until one gets a delegation.
const CONTROLS_MAX: u32 = 50;

/// The parts. Each has its own hosts, so that they wait for their leases at the same time.
pub(crate) fn none(server: &Server, report: &Report) {
    thread::scope(|scope| {
        let threads = [plainly, as_daemons_do, daemons, beside_another_program];
        let threads = threads.map(|part| scope.spawn(move || part(server, report)));
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

/// Whether the server grants write delegations to clients of this version. On 4.0 it cannot tell
/// from whom a request comes, and grants none.
fn grants(server: &Server) -> bool {
    server.version != Version::V40
}

/// Opens files plainly until one gets a delegation, which shows that the server grants them to this
/// host.
fn control(server: &Server, folder: &str, host: &Host) -> Option<(Locker, String)> {
    for n in 0..CONTROLS_MAX {
        let lock = format!("control{n}");
        let locker = Locker::start(host, &lock, Opened::Plainly);
        if server.delegated(folder).contains(&format!("{lock}.lck")) {
            return Some((locker, lock));
        }
        thread::sleep(Duration::from_millis(100));
    }
    None
}

/// The answers to the tries of a host that is cut off; `None` while a try hangs.
struct Tries {
    early: Option<String>,
    late: Option<String>,
    /// The answers to the tries that hung, after the heal.
    healed: Vec<String>,
}

impl Tries {
    fn granted(&self) -> bool {
        [&self.early, &self.late].into_iter().flatten().chain(&self.healed).any(|word| word == "granted")
    }
}

impl std::fmt::Display for Tries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = |word: &Option<String>| word.clone().unwrap_or_else(|| "hung".to_owned());
        let (early, late) = (word(&self.early), word(&self.late));
        write!(f, "{early} before the lease ran out, {late} after, then {:?}", self.healed)
    }
}

/// Tries to lock a file on a host that is cut off: before its lease has run out, and again when
/// another host holds the lock.
fn cut_off(a: &Host, b: &Host, lock: &str, opened: Opened) -> Tries {
    // It shows when the lease has run out: until then, the server refuses it to everybody else.
    let mut trap = Locker::start(a, "trap", Opened::AsDaemonsDo);
    trap.eventually_locks();
    let [mut first, mut second] = [(); 2].map(|()| Locker::start(a, lock, opened));
    a.cut();
    let early = first.tries(HANGS);
    if early.as_deref() == Some("granted") {
        first.unlocks();
    }
    Locker::start(b, "trap", Opened::AsDaemonsDo).eventually_locks();
    let mut rival = Locker::start(b, lock, Opened::AsDaemonsDo);
    rival.eventually_locks();
    let late = second.tries(HANGS);
    a.heal();
    let hung = [(&early, &first), (&late, &second)].into_iter().filter(|(word, _)| word.is_none());
    let healed = hung.map(|(_, locker)| locker.hears(2 * PATIENCE).unwrap_or_else(|| "hangs".to_owned()));
    Tries { healed: healed.collect(), early, late }
}

/// A file that is opened without the daemon's flag: the danger that the rule averts.
fn plainly(server: &Server, report: &Report) {
    let folder = "plainly";
    let [a, b] = server.hosts(folder, ["qa", "qb"]);
    let found = control(server, folder, &a);
    let lock = found.as_ref().map_or("none", |(_, lock)| lock);
    let expected = grants(server);
    report.check(
        if expected { "a plain open gets a delegation" } else { "4.0 has no write delegations" },
        found.is_some() == expected,
        format!("{lock}; all: {:?}", server.delegated(folder)),
    );
    if expected {
        let tries = cut_off(&a, &b, lock, Opened::Plainly);
        let both = tries.early.as_deref() == Some("granted") && tries.late.as_deref() == Some("granted");
        report.check("under it, a host that is cut off grants itself what another host holds", both, &tries);
    }
}

/// A file that is opened with the daemon's flag, on a host to which the server grants delegations.
fn as_daemons_do(server: &Server, report: &Report) {
    let folder = "asdaemons";
    let [a, b] = server.hosts(folder, ["ra", "rb"]);
    let control = control(server, folder, &a);
    let lock = "mine";
    let mut locker = Locker::start(&a, lock, Opened::AsDaemonsDo);
    locker.eventually_locks();
    locker.unlocks();
    let (opened, delegated) = (server.opened(folder), server.delegated(folder));
    let file = format!("{lock}.lck");
    let right = opened.contains(&file) && !delegated.contains(&file) && control.is_some() == grants(server);
    report.check("an open with the daemon's flag gets none", right, format!("delegations: {delegated:?}"));
    let tries = cut_off(&a, &b, lock, Opened::AsDaemonsDo);
    report.check("a host that is cut off grants itself nothing", !tries.granted(), &tries);
}

/// Everything that opens files in a lock directory, on a host that no other one competes with; then
/// the daemon's own tries while the host is cut off.
fn daemons(server: &Server, report: &Report) {
    let folder = "daemons";
    let [a, b] = server.hosts(folder, ["da", "db"]);
    let control = control(server, folder, &a);
    let flags = ["--storage-timeout", "2"];
    let node = a.daemon(report, &flags);
    let second = a.daemon(report, &["--linger", "0"]);
    let mut holder = node.session();
    for request in [
        json!({"op": "acquire", "lock": "held"}),
        json!({"op": "acquire", "lock": "shared", "mode": "shared"}),
        json!({"op": "acquire", "lock": "slots", "slots": 4}),
        json!({"op": "acquire", "lock": "fenced", "fence": true}),
    ] {
        let reply = holder.request(request);
        assert_eq!(reply["ok"], true, "{reply}");
    }
    let warm = ["warm0", "warm1", "warm2", "warm3"];
    for lock in warm {
        holder.acquire(lock);
        holder.release(lock);
    }
    let mut retiring = second.session();
    retiring.acquire("retired");
    retiring.release("retired");
    // A killed daemon may leave this. The doctor checks whether it can be opened, and the collector
    // deletes it.
    fs::write(format!("/export/{folder}/idle.lck"), "").expect("a lock file");
    let doctor = a.command("/lab/distrilockd").args(["--check", "-d", "/mnt"]).output().expect("nsenter is there");
    let said = String::from_utf8_lossy(&doctor.stdout).replace('\n', " / ");
    report.check("the doctor looks at the directory", doctor.status.code().is_some_and(|code| code < 2), said);
    if COMMAND.is_some() {
        a.distrilock(&["doctor", "/mnt"]);
    }
    eventually("the daemon shows what it holds", || server.opened(folder).iter().any(|file| file.contains("/board-")));
    let checked = |when: &str| {
        let mut delegated = server.delegated(folder);
        delegated.retain(|file| !file.starts_with("control"));
        let opened = server.opened(folder);
        let has = |part: &str| opened.iter().any(|file| file.contains(part));
        let all = ["held.lck", "shared.lck", "slots.lck", "fenced.lck", "warm0.lck", "gate", "node-", "board-"];
        let seen = all.iter().all(|part| has(part)) && control.is_some() == grants(server);
        let detail = format!("delegations: {delegated:?}; open: {opened:?}");
        report.check(&format!("no delegation lies on a file of ours ({when})"), seen && delegated.is_empty(), detail);
    };
    checked("daemons, doctor");
    // On 4.0, the collector runs only on the server.
    if grants(server) {
        let collected = a.collector().output().expect("nsenter is there");
        report.check("the collector runs", collected.status.success(), collected.status);
        checked("collector");
    }
    drop((retiring, second));
    tries_of_a_daemon(report, (&a, &node), &b.daemon(report, &[]), &warm);
}

/// The daemon's tries for warm names while its host is cut off: for two before the lease has run
/// out, for the others while another host's daemon holds them.
fn tries_of_a_daemon(report: &Report, (host, node): (&Host, &Node), other: &Node, warm: &[&str; 4]) {
    let rival = Rival::start(&other.address, "held", true);
    host.cut();
    let mut session = node.session();
    let mut tries = |lock: &str| session.request(json!({"op": "acquire", "lock": lock}));
    let early: Vec<Value> = warm[..2].iter().map(|lock| tries(lock)).collect();
    let (mut right, _) = rival.granted();
    for lock in &warm[2..] {
        assert!(right.gets(lock), "nobody holds {lock}");
    }
    let late: Vec<Value> = warm[2..].iter().map(|lock| tries(lock)).collect();
    host.heal();
    works_again(node, report, Instant::now());
    let refused = early.iter().chain(&late).all(|reply| reply["error"] == "storage");
    let errors = |replies: &[Value]| replies.iter().map(|reply| reply["error"].to_string()).collect::<Vec<_>>();
    let detail = format!("{:?} before the lease ran out, {:?} after", errors(&early), errors(&late));
    report.check("a daemon that is cut off grants nothing", refused, detail);
    let busy = warm[2..].iter().all(|lock| session.request(json!({"op": "acquire", "lock": lock}))["error"] == "busy");
    report.check("nor afterwards, while the other host holds it", busy, "");
}

/// Another program on the daemon's host opens lock files plainly, so that the daemon's locks may be
/// covered by its delegations. The daemon cannot prevent that. But what it says and grants on a
/// host that is cut off still depends on what it knows of the lease.
fn beside_another_program(server: &Server, report: &Report) {
    let folder = "beside";
    let [a, b] = server.hosts(folder, ["ba", "bb"]);
    let (node, other) = (a.daemon(report, &["--storage-timeout", "2"]), b.daemon(report, &[]));
    let mut holder = node.session();
    let mut session = node.session();
    let names = ["kept", "tried"];
    let programs = names.map(|lock| {
        holder.acquire(lock);
        holder.release(lock);
        Locker::start(&a, lock, Opened::Plainly)
    });
    holder.acquire("kept");
    let before = a.calls();
    const CYCLES: u64 = 20;
    for _ in 0..CYCLES {
        session.acquire("tried");
        session.release("tried");
    }
    let locks = a.calls()["LOCK"] - before["LOCK"];
    let detail = format!("{locks} calls for {CYCLES} locks, delegations: {:?}", server.delegated(folder));
    report.figure("a daemon's locks beside another program's open", detail);
    let watch = Watch::start(holder);
    a.cut();
    let cut = Instant::now();
    let sent = Instant::now();
    let early = session.request(json!({"op": "acquire", "lock": "tried"}));
    let valid_until = early["valid_ms"].as_u64().map(|valid_ms| sent + Duration::from_millis(valid_ms));
    let rivals = names.map(|lock| Rival::start(&other.address, lock, true));
    let [(_kept, kept), (_tried, tried)] = rivals.map(Rival::granted);
    let late = node.session().request(json!({"op": "acquire", "lock": "tried"}));
    let (_, seen) = watch.end();
    a.heal();
    works_again(&node, report, Instant::now());
    drop(programs);
    let lost = seen.when("lost", "kept");
    let after = |when: Instant| when.saturating_duration_since(cut).as_secs_f64();
    let detail = format!("lost after {:.1?} s, rival granted after {:.1} s", lost.map(after), after(kept));
    report.check("lost is told before the rival is granted", lost.is_some_and(|lost| lost < kept), detail);
    let vouched = early["ok"] != true || valid_until.is_some_and(|until| until < tried);
    let detail = format!(
        "{early}, vouched for until {:.1?} s, rival granted after {:.1} s",
        valid_until.map(after),
        after(tried)
    );
    report.check("what is granted on a host that is cut off ends before", vouched, detail);
    report.check("and nothing is granted once the lease has run out", late["error"] == "storage", late);
}
