//! An unlink is under way when its host is cut off, for longer than the lease; the link heals while a rival holds the name. If
//! the unlink took effect then, it would remove the rival's live lock file, and a third host would get the lock, too.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::hosts::{Host, Server};
use crate::partition::{Rival, works_again};
use crate::report::Report;
use crate::support::{V1, eventually};
use crate::witness::{ANCHOR, Witness, anchored, try_lock};

/// How long a packet to or from the host takes that is going to be cut off, so that its calls can be told apart.
const DELAY_MS: u32 = 150;

/// A plain unlink shows that the lab can do it; then the daemon's, and the collector's.
pub(crate) fn in_flight(server: &Server, report: &Report) {
    thread::scope(|scope| {
        let threads = [plain, retiring, collecting].map(|unlink| scope.spawn(move || unlink(server, report)));
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

/// rm(1) without any lock, of a host whose lease then runs out. Where nobody kills it, it takes effect after the heal, and two
/// hosts have the lock. Where it is killed before, it must not; the client turns it into a rename if the file is open on its host.
fn plain(server: &Server, report: &Report) {
    thread::scope(|scope| {
        for (folder, opened, killed) in [("plain", false, false), ("killed", false, true), ("renamed", true, true)] {
            scope.spawn(move || {
                let hosts = server.hosts(folder, ["la", "lb", "lc"].map(|name| format!("{name}-{folder}")));
                let overlaps = plain_unlink(&hosts, report, folder, opened, killed);
                let what = if killed { "a killed unlink has no effect" } else { "catches a plain unlink" };
                report.check(&format!("{what} ({folder})"), overlaps.is_empty() == killed, format!("{overlaps:?}"));
            });
        }
    });
}

fn plain_unlink(hosts: &[Host; 3], report: &Report, folder: &str, opened: bool, killed: bool) -> Vec<String> {
    let [a, b, c] = hosts;
    let witness = Witness::default();
    let file = PathBuf::from(format!("/export/{folder}/name.lck"));
    fs::write(&file, "").expect("a lock file");
    let live = fs::metadata(&file).expect("it is there").ino();
    let known = anchored(&a.path("/mnt/name.lck")).expect("a lock file");
    let known = opened.then_some(known);
    let trap = anchored(&a.path("/mnt/trap.lck")).expect("a lock file");
    assert!(try_lock(&trap, 0, ANCHOR).expect("the server answers"), "nobody has it");
    a.slow(DELAY_MS);
    let mut rm = a.command("rm").args(["-f", "/mnt/name.lck"]).spawn().expect("rm is there");
    let caught = eventually_in_flight(rm.id());
    a.cut();
    let cut = Instant::now();
    if killed {
        rm.kill().expect("it is our child");
        let _ = rm.wait();
    }
    let dead = cut.elapsed();
    let seized = anchored(&b.path("/mnt/trap.lck")).expect("a lock file");
    eventually("the lease runs out", || try_lock(&seized, 0, ANCHOR).expect("the server answers"));
    let expired = cut.elapsed();
    let holder = anchored(&b.path("/mnt/name.lck")).expect("a lock file");
    assert!(try_lock(&holder, 0, ANCHOR).expect("the server answers"), "nobody has it");
    witness.enter("name", "lb", "rival");
    a.heal();
    let _ = rm.wait();
    fs::write(a.path("/mnt/sign-of-life"), "").expect("it is healed");
    let third = anchored(&c.path("/mnt/name.lck")).expect("a lock file");
    if try_lock(&third, 0, ANCHOR).expect("the server answers") {
        witness.enter("name", "lc", "third");
    }
    let now = fs::metadata(&file).map(|file| file.ino()).ok();
    let listed = crate::hosts::lock_files(folder);
    let detail =
        format!("killed after {dead:.1?}, lease over after {expired:.1?}, inode {live} became {now:?}: {listed:?}");
    report.check(&format!("the unlink was under way ({folder})"), caught, detail);
    drop(known);
    witness.overlaps()
}

/// Whether a process, or a child of it, is in unlink(2) within a moment.
fn eventually_in_flight(process: u32) -> bool {
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        if is_unlinking(process) {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    false
}

fn is_unlinking(process: u32) -> bool {
    let read = |process: &str, file: &str| fs::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default();
    let threads = fs::read_dir(format!("/proc/{process}/task")).map(|threads| threads.filter_map(Result::ok).collect());
    let threads: Vec<fs::DirEntry> = threads.unwrap_or_default();
    let children = threads.iter().map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    let children: Vec<String> =
        children.flat_map(|ids| ids.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect();
    let all = children.into_iter().chain([process.to_string()]);
    all.filter(|process| !process.is_empty()).any(|process| read(&process, "stack").contains("nfs_unlink"))
}

/// The daemon retires a name.
fn retiring(server: &Server, report: &Report) {
    let hosts = server.hosts("retiring", ["ea", "eb", "ec"]);
    let node = hosts[0].daemon(report, &["--linger", "0.2"]);
    let unlink = || {
        let mut session = node.session();
        session.acquire("name");
        hosts[0].slow(DELAY_MS);
        session.release("name");
        node.pid()
    };
    cut_during(server, report, "retiring", &hosts, unlink);
    works_again(&node, report, Instant::now());
}

/// The collector removes a name that nobody uses.
fn collecting(server: &Server, report: &Report) {
    let hosts = server.hosts("collecting", ["fa", "fb", "fc"]);
    fs::write("/export/collecting/name.lck", "").expect("a lock file");
    let unlink = || {
        hosts[0].slow(DELAY_MS);
        let mut command = hosts[0].command("/lab/distrilock");
        let command = command.args(["gc", "/mnt", "--idle", "0"]).stdout(Stdio::null());
        command.spawn().expect("nsenter is there").id()
    };
    cut_during(server, report, "collecting", &hosts, unlink);
}

/// Lets the first host begin an unlink, cuts it off when the unlink is under way, heals it
/// when the second host has the lock, and asks for it from the third one.
fn cut_during(server: &Server, report: &Report, folder: &str, hosts: &[Host; 3], unlink: impl Fn() -> u32) {
    let [a, b, c] = hosts;
    let (right, third) = (b.daemon(report, &[]), c.daemon(report, &[]));
    let file = PathBuf::from(format!("/export/{folder}/name.lck"));
    let witness = Witness::default();
    let process = unlink();
    let caught = eventually_in_flight(process);
    a.cut();
    let cut = Instant::now();
    let marked = fs::metadata(&file).map(|file| file.len());
    report.check(
        &format!("the unlink is under way ({folder})"),
        caught,
        format!("in flight: {caught}, size {marked:?}"),
    );
    let (mut keeper, granted) = Rival::start(&right, "name", true).granted();
    witness.enter("name", &b.name, "rival");
    report.figure(
        &format!("the rival is granted ({folder})"),
        format!("{:.2} s after the cut", (granted - cut).as_secs_f64()),
    );
    let live = fs::metadata(&file).map(|file| file.ino()).ok();
    a.heal();
    // What the client has not yet been answered, it sends again before it can do anything new: a sign of life of the client
    // is one that its old calls are over.
    let probe = a.path("/mnt/sign-of-life");
    let healed = Instant::now();
    let alive = thread::spawn(move || fs::write(probe, "")).join().expect("it does not panic");
    let detail = format!("{alive:?} {:.2} s after the heal", healed.elapsed().as_secs_f64());
    report.check(&format!("the host is back ({folder})"), alive.is_ok(), detail);
    let _ = fs::remove_file(format!("/export/{folder}/sign-of-life"));
    eventually("no unlink is under way", || !is_unlinking(process));
    let mut session = third.session();
    let reply = session.request(json!({"op": "acquire", "lock": "name"}));
    if reply["ok"] == true {
        witness.enter("name", &c.name, "third");
    }
    let now = fs::metadata(&file).map(|file| file.ino()).ok();
    let all = crate::hosts::lock_files(folder);
    let detail = format!("inode {live:?}, now {now:?}, {all:?}; the third host: {}", answer(&reply));
    report.check(&format!("0 overlaps, the third host is refused ({folder})"), reply["error"] == "busy", detail);
    let intact = live.is_some() && live == now && server.has_lock(folder, "name");
    let reply = keeper.request(json!({"op": "verify", "lock": "name"}));
    report.check(&format!("the rival's lock is real ({folder})"), intact && reply["ok"] == true, answer(&reply));
    keeper.release("name");
    witness.leave("name", "rival");
    report.check(
        &format!("it goes on to the third host ({folder})"),
        gets(&mut session),
        format!("{:?}", witness.overlaps()),
    );
}

fn answer(reply: &Value) -> String {
    reply.to_string()
}

fn gets(session: &mut V1) -> bool {
    session.request(json!({"op": "acquire", "lock": "name", "wait_ms": 10_000}))["ok"] == true
}
