//! An unlink is under way when its host is cut off for longer than the lease; the link comes back
//! while a rival holds the name. If the unlink took effect then, it would remove the rival's live
//! lock file, and a third host would get the lock, too.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::hosts::{Host, Server};
use crate::partition::{Rival, works_again};
use crate::report::Report;
use crate::support::{PATIENCE, eventually};
use crate::witness::{ANCHOR, Witness, anchored, try_lock};

/// The delay of packets to or from the host that will be cut off, so that its calls can be told
/// apart.
const DELAY_MS: u32 = 300;

/// Occasionally an unlink reaches the server before the cut; then another one is tried, this often.
const TRIES_MAX: u32 = 10;

/// A plain unlink shows that the lab can catch one; then come the daemon's and the collector's.
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

/// rm(1) without any lock, on a host whose lease then expires. If nothing kills it, it takes effect
/// when the link is back, and two hosts have the lock. If it is killed before, it does not, unless
/// the file is open on its host: then the client turns it into a rename, which continues without
/// the process.
fn plain(server: &Server, report: &Report) {
    thread::scope(|scope| {
        for (folder, opened, killed) in [("plain", false, false), ("killed", false, true), ("renamed", true, true)] {
            scope.spawn(move || {
                let hosts = server.hosts(folder, ["la", "lb", "lc"].map(|name| format!("{name}-{folder}")));
                let overlaps = plain_unlink(&hosts, report, folder, opened, killed);
                let detail = format!("{overlaps:?}");
                match (opened, killed) {
                    (_, false) => report.check("catches a plain unlink", !overlaps.is_empty(), detail),
                    (false, true) => report.check("a killed unlink has no effect", overlaps.is_empty(), detail),
                    // The client's rename is a separate task, which SIGKILL does not end.
                    (true, true) => report.figure("overlaps after a killed unlink of an open file", detail),
                }
            });
        }
    });
}

fn plain_unlink(hosts: &[Host; 3], report: &Report, folder: &str, opened: bool, killed: bool) -> Vec<String> {
    let [a, b, c] = hosts;
    let witness = Witness::default();
    let trap = anchored(&a.path("/mnt/trap.lck")).expect("a lock file");
    assert!(try_lock(&trap, 0, ANCHOR).expect("the server answers"), "nobody has it");
    let mut known = None;
    let caught = Caught::cut(a, folder, false, |lock| {
        fs::write(format!("/export/{folder}/{lock}.lck"), "").expect("a lock file");
        let file = anchored(&a.path(&format!("/mnt/{lock}.lck"))).expect("a lock file");
        known = opened.then_some(file);
        a.slow(DELAY_MS);
        Unlinker::Own(a.command("rm").args(["-f", &format!("/mnt/{lock}.lck")]).spawn().expect("rm is there"))
    });
    let Some(mut caught) = caught else {
        report.check(&format!("the unlink was under way ({folder})"), false, "never caught");
        return Vec::new();
    };
    let (rm, name, live) = (&mut caught.process, &caught.lock, caught.inode);
    let path = format!("/mnt/{name}.lck");
    let cut = Instant::now();
    if killed {
        rm.kill();
        rm.wait();
    }
    let dead = cut.elapsed();
    let seized = anchored(&b.path("/mnt/trap.lck")).expect("a lock file");
    eventually("the lease runs out", || try_lock(&seized, 0, ANCHOR).expect("the server answers"));
    let expired = cut.elapsed();
    let holder = anchored(&b.path(&path)).expect("a lock file");
    assert!(try_lock(&holder, 0, ANCHOR).expect("the server answers"), "nobody has it");
    witness.enter(name, "lb", "rival");
    a.heal();
    rm.wait();
    fs::write(a.path("/mnt/sign-of-life"), "").expect("it is healed");
    let third = anchored(&c.path(&path)).expect("a lock file");
    if try_lock(&third, 0, ANCHOR).expect("the server answers") {
        witness.enter(name, "lc", "third");
    }
    let now = inode(folder, name);
    let detail = format!("killed after {dead:.1?}, lease over after {expired:.1?}, inode {live} became {now:?}");
    report.check(&format!("the unlink was under way ({folder})"), true, detail);
    drop(known);
    witness.overlaps()
}

fn inode(folder: &str, lock: &str) -> Option<u64> {
    fs::metadata(format!("/export/{folder}/{lock}.lck")).map(|file| file.ino()).ok()
}

fn size(folder: &str, lock: &str) -> Option<u64> {
    fs::metadata(format!("/export/{folder}/{lock}.lck")).map(|file| file.len()).ok()
}

/// Whose unlink it is: that of our own process, or that of a daemon's child.
enum Unlinker {
    Own(Child),
    Daemon(u32),
}

impl Unlinker {
    fn id(&self) -> u32 {
        match self {
            Self::Own(child) => child.id(),
            Self::Daemon(id) => *id,
        }
    }

    fn kill(&mut self) {
        if let Self::Own(child) = self {
            child.kill().expect("it is our child");
        }
    }

    fn wait(&mut self) {
        if let Self::Own(child) = self {
            child.wait().expect("it is our child");
        }
    }
}

/// An unlink that is under way and has not reached the server: its host is cut off.
struct Caught {
    process: Unlinker,
    lock: String,
    inode: u64,
}

impl Caught {
    /// Starts unlinks, each of another lock's file, until one is caught; if required, of a file
    /// that has been marked dead.
    fn cut(host: &Host, folder: &str, marked: bool, mut unlink: impl FnMut(&str) -> Unlinker) -> Option<Self> {
        for n in 0..TRIES_MAX {
            let lock = format!("name{n}");
            let process = unlink(&lock);
            let seen = eventually_in_flight(process.id(), || {
                let size = size(folder, &lock)?;
                Some(!marked || size != 0)
            });
            host.cut();
            match inode(folder, &lock) {
                Some(inode) if seen => return Some(Self { process, lock, inode }),
                _ => host.heal(),
            }
        }
        None
    }
}

/// Whether a process, or a child of it, is in unlink(2) within a moment while the file is ready;
/// false if the file is gone.
fn eventually_in_flight(process: u32, ready: impl Fn() -> Option<bool>) -> bool {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        match ready() {
            Some(true) if is_unlinking(process) => return true,
            Some(_) => thread::sleep(Duration::from_millis(2)),
            None => return false,
        }
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
    all.filter(|process| !process.is_empty()).any(|process| {
        let stack = read(&process, "stack");
        // Before a rename, the client looks up the new name.
        stack.contains("proc_remove") || stack.contains("nfs_sillyrename") && !stack.contains("lookup")
    })
}

/// The daemon retires a name.
fn retiring(server: &Server, report: &Report) {
    let hosts = server.hosts("retiring", ["ea", "eb", "ec"]);
    let node = hosts[0].daemon(report, &["--linger", "0.2"]);
    let mut session = node.session();
    let unlink = |lock: &str| {
        session.acquire(lock);
        hosts[0].slow(DELAY_MS);
        session.release(lock);
        Unlinker::Daemon(node.pid())
    };
    cut_during(server, report, "retiring", &hosts, unlink);
    works_again(&node, report, Instant::now());
}

/// The collector removes an unused name.
fn collecting(server: &Server, report: &Report) {
    let hosts = server.hosts("collecting", ["fa", "fb", "fc"]);
    let unlink = |lock: &str| {
        fs::write(format!("/export/collecting/{lock}.lck"), "").expect("a lock file");
        hosts[0].slow(DELAY_MS);
        Unlinker::Own(hosts[0].collector().stdout(Stdio::null()).spawn().expect("nsenter is there"))
    };
    cut_during(server, report, "collecting", &hosts, unlink);
}

/// The first host begins an unlink, is cut off while it is under way, and is reconnected when the
/// second host has the lock; then the third one requests the lock.
fn cut_during(server: &Server, report: &Report, folder: &str, hosts: &[Host; 3], unlink: impl FnMut(&str) -> Unlinker) {
    let [a, b, c] = hosts;
    let (right, third) = (b.daemon(report, &[]), c.daemon(report, &[]));
    let witness = Witness::default();
    let caught = Caught::cut(a, folder, true, unlink);
    let cut = Instant::now();
    let what = format!("the unlink is under way ({folder})");
    let Some(caught) = caught else { return report.check(&what, false, "never caught") };
    let name = &*caught.lock;
    report.check(&what, true, format!("{name}, whose size is {:?}", size(folder, name)));
    let (mut keeper, granted) = Rival::start(&right.address, name, true).granted();
    witness.enter(name, &b.name, "rival");
    let detail = format!("{:.2} s after the cut", (granted - cut).as_secs_f64());
    report.figure(&format!("the rival is granted ({folder})"), detail);
    let live = inode(folder, name);
    a.heal();
    // The client repeats unanswered calls before it can do anything new, so a sign of life means
    // that its old calls are over.
    let healed = Instant::now();
    let alive = fs::write(a.path("/mnt/sign-of-life"), "");
    let detail = format!("{alive:?} {:.2} s after the heal", healed.elapsed().as_secs_f64());
    report.check(&format!("the host is back ({folder})"), alive.is_ok(), detail);
    let _ = fs::remove_file(format!("/export/{folder}/sign-of-life"));
    eventually("no unlink is under way", || !is_unlinking(caught.process.id()));
    let mut session = third.session();
    let reply = session.request(json!({"op": "acquire", "lock": name}));
    if reply["ok"] == true {
        witness.enter(name, &c.name, "third");
    }
    let now = inode(folder, name);
    let detail = format!("inode {} became {live:?}, then {now:?}; the third host: {reply}", caught.inode);
    report.check(&format!("0 overlaps, the third host is refused ({folder})"), reply["error"] == "busy", detail);
    let intact = live.is_some() && live == now && server.has_lock(folder, name);
    let reply = keeper.request(json!({"op": "verify", "lock": name}));
    report.check(&format!("the rival's lock is real ({folder})"), intact && reply["ok"] == true, &reply);
    // A lost lock cannot be released.
    keeper.request(json!({"op": "release", "lock": name}));
    witness.leave(name, "rival");
    let reply = session.request(json!({"op": "acquire", "lock": name, "wait_ms": 10_000}));
    let detail = format!("{:?}", witness.overlaps());
    report.check(&format!("it goes on to the third host ({folder})"), reply["ok"] == true, detail);
}
