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

/// rm(1), which nobody kills, takes effect after the heal: two hosts have the lock.
fn plain(server: &Server, report: &Report) {
    let [a, b, c] = server.hosts("plain", ["la", "lb", "lc"]);
    let witness = Witness::default();
    fs::write("/export/plain/name.lck", "").expect("a lock file");
    let live = fs::metadata("/export/plain/name.lck").expect("it is there").ino();
    // The client knows the file already, so that nothing but the unlink is left to ask for.
    assert!(a.command("cat").arg("/mnt/name.lck").status().is_ok_and(|status| status.success()));
    a.cut();
    let mut rm = a.command("rm").args(["-f", "/mnt/name.lck"]).spawn().expect("rm is there");
    let caught = eventually_in_flight();
    let holder = anchored(&b.path("/mnt/name.lck")).expect("a lock file");
    assert!(try_lock(&holder, 0, ANCHOR).expect("the server answers"), "nobody has it");
    witness.enter("name", "lb", "rival");
    a.heal();
    let _ = rm.wait();
    let third = anchored(&c.path("/mnt/name.lck")).expect("a lock file");
    if try_lock(&third, 0, ANCHOR).expect("the server answers") {
        witness.enter("name", "lc", "third");
    }
    let now = fs::metadata("/export/plain/name.lck").map(|file| file.ino()).ok();
    let detail = format!("in flight: {caught}, inode {live} became {now:?}: {:?}", witness.overlaps());
    report.check("catches a plain unlink", caught && !witness.overlaps().is_empty(), detail);
}

/// Whether a process is in unlink(2) within a moment. (The client turns the unlink of an open file into a rename.)
fn eventually_in_flight() -> bool {
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        if unlinking() {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    false
}

fn unlinking() -> bool {
    let processes = fs::read_dir("/proc").expect("proc is mounted").filter_map(Result::ok);
    let stacks = processes.filter_map(|process| fs::read_to_string(process.path().join("stack")).ok());
    stacks.into_iter().any(|stack| stack.contains("nfs_unlink") || stack.contains("nfs4_proc_remove"))
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
        command.spawn().expect("nsenter is there");
    };
    cut_during(server, report, "collecting", &hosts, unlink);
}

/// Lets the first host begin an unlink, cuts it off when the file has been marked dead and the unlink is under way, heals it
/// when the second host has the lock, and asks for it from the third one.
fn cut_during(server: &Server, report: &Report, folder: &str, hosts: &[Host; 3], unlink: impl Fn()) {
    let [a, b, c] = hosts;
    let (right, third) = (b.daemon(report, &[]), c.daemon(report, &[]));
    let file = PathBuf::from(format!("/export/{folder}/name.lck"));
    let witness = Witness::default();
    unlink();
    let marked = eventually_marked(server, &file);
    let cut = Instant::now();
    a.deafen_server();
    let caught = eventually_in_flight();
    a.cut();
    report.check(
        &format!("the unlink is under way ({folder})"),
        caught,
        format!("marked: {marked}, in flight: {caught}"),
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
    eventually("no unlink is under way", || !unlinking());
    let mut session = third.session();
    let reply = session.request(json!({"op": "acquire", "lock": "name"}));
    if reply["ok"] == true {
        witness.enter("name", &c.name, "third");
    }
    let now = fs::metadata(&file).map(|file| file.ino()).ok();
    let detail = format!("inode {live:?}, now {now:?}; the third host: {}", answer(&reply));
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

/// Waits until the file says that it is dead: its size changes while a lock on all of it is held.
fn eventually_marked(server: &Server, file: &std::path::Path) -> bool {
    let Ok(before) = fs::metadata(file) else { return false };
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        let Ok(now) = fs::metadata(file) else { return false };
        let whole = server.locks(now.ino()).iter().any(|(mode, _, end)| mode == "WRITE" && end.is_none());
        if whole && now.len() != before.len() {
            return true;
        }
        thread::sleep(Duration::from_millis(2));
    }
    false
}
