//! The link of a holder's host is cut: for longer than the lease, when the holder must learn that
//! its locks are lost before a rival gets them; and for a shorter time, or while the server
//! restarts, when nothing may be lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::contention::waits;
use crate::hosts::{LEASE_SECONDS, Node, Server};
use crate::report::Report;
use crate::support::{Gob, V1};

/// The longest wait of a rival.
const RIVAL: Duration = Duration::from_secs(100);

/// A session that is read all the time, so that its events have times, and that pings.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(V1, Seen)>,
}

/// The events of a watched session.
pub(crate) struct Seen {
    events: Vec<(Instant, Value)>,
    /// The latest time until which the daemon vouched for the locks.
    pub(crate) valid_until: Option<Instant>,
    pub(crate) slowest_ping: Duration,
    pub(crate) pings: u32,
}

impl Seen {
    pub(crate) fn when(&self, event: &str, lock: &str) -> Option<Instant> {
        let mut matching = self.events.iter().filter(|(_, told)| told["event"] == event && told["lock"] == lock);
        matching.next().map(|(when, _)| *when)
    }

    fn kinds(&self, start: Instant) -> String {
        let told = self.events.iter().map(|(when, told)| {
            let text = |member: &str| told[member].as_str().unwrap_or("?").to_owned();
            format!("{} {} {:.1} s", text("event"), text("lock"), since(start, *when))
        });
        told.collect::<Vec<_>>().join(", ")
    }
}

fn since(start: Instant, when: Instant) -> f64 {
    when.saturating_duration_since(start).as_secs_f64()
}

impl Watch {
    pub(crate) fn start(mut session: V1) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told_to = stop.clone();
        let thread = thread::spawn(move || {
            let mut seen = Seen { events: Vec::new(), valid_until: None, slowest_ping: Duration::ZERO, pings: 0 };
            let patience = session.stream().read_timeout().expect("it has one");
            session.stream().set_read_timeout(Some(Duration::from_millis(50))).expect("it is a socket");
            let mut sent: Option<Instant> = None;
            while !told_to.load(Ordering::Relaxed) || sent.is_some() {
                if sent.is_none() {
                    session.send(&json!({"id": "watch", "op": "ping"}));
                    sent = Some(Instant::now());
                }
                while let Ok(told) = session.try_receive() {
                    let now = Instant::now();
                    if told["id"] == "watch" {
                        let start = sent.take().expect("one ping at a time");
                        seen.slowest_ping = seen.slowest_ping.max(now - start);
                        seen.pings += 1;
                        let valid = told["valid_ms"]
                            .as_u64()
                            .filter(|valid_ms| *valid_ms > 0)
                            .map(|valid_ms| start + Duration::from_millis(valid_ms));
                        seen.valid_until = seen.valid_until.max(valid);
                        // The next ping follows after a moment, not at once.
                        break;
                    }
                    seen.events.push((now, told));
                }
                thread::sleep(Duration::from_millis(20));
            }
            session.stream().set_read_timeout(patience).expect("it is a socket");
            (session, seen)
        });
        Self { stop, thread }
    }

    pub(crate) fn end(self) -> (V1, Seen) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the daemon answers pings")
    }
}

/// A session that waits for a lock, and then releases it at once or keeps it.
pub(crate) struct Rival(JoinHandle<(V1, Value, Instant)>);

impl Rival {
    pub(crate) fn start(address: &str, lock: &str, keeps: bool) -> Self {
        let mut session = V1::connect(address);
        session.stream().set_read_timeout(Some(RIVAL)).expect("it is a socket");
        let name = lock.to_owned();
        let thread = thread::spawn(move || {
            let mut reply = Value::Null;
            // A server that does not answer for long ends a wait; then this asks again.
            while reply.is_null() || reply["error"] == "storage" {
                reply = session.request(json!({"op": "acquire", "lock": name, "wait_ms": null}));
            }
            let granted = Instant::now();
            if !keeps {
                session.release(&name);
            }
            (session, reply, granted)
        });
        waits(address, lock, || thread.is_finished());
        Self(thread)
    }

    pub(crate) fn is_waiting(&self) -> bool {
        !self.0.is_finished()
    }

    pub(crate) fn granted(self) -> (V1, Instant) {
        let (session, reply, granted) = self.0.join().expect("the rival is answered in time");
        assert_eq!(reply["ok"], true, "the rival: {reply}");
        (session, granted)
    }
}

/// A version 0.1 session gets no notice other than its end.
fn ends(mut session: Gob) -> JoinHandle<Instant> {
    thread::spawn(move || {
        session.bytes().stream().set_read_timeout(Some(RIVAL)).expect("it is a socket");
        session.bytes().closed();
        Instant::now()
    })
}

fn is_lost(reply: &Value) -> bool {
    reply["error"] == "lost" || reply["error"] == "not_held"
}

/// Two locks are lost: the rival keeps one, and has released the other one before the link is back.
pub(crate) fn longer_than_the_lease(server: &Server, report: &Report) {
    let [a, b] = server.hosts("partition", ["pa", "pb"]);
    let (left, right) = (a.daemon(report, &[]), b.daemon(report, &[]));
    let mut holder = left.session();
    holder.acquire("keep");
    holder.acquire("pass");
    let mut old = Gob::connect(&left.address);
    assert!(old.gets("old"));
    let [keep, pass, third] =
        [("keep", true), ("pass", false), ("old", true)].map(|(lock, keeps)| Rival::start(&right.address, lock, keeps));
    let old = ends(old);
    let watch = Watch::start(holder);
    a.cut();
    let cut = Instant::now();
    let ((mut keeper, kept), (_passer, passed), (_third, third)) = (keep.granted(), pass.granted(), third.granted());
    let (mut holder, seen) = watch.end();
    for (lock, granted) in [("keep", kept), ("pass", passed)] {
        let lost = seen.when("lost", lock);
        let at = lost.map_or("never".to_owned(), |lost| format!("{:.2} s", since(cut, lost)));
        let detail = format!("cut, lost after {at}, rival granted after {:.2} s", since(cut, granted));
        report.check(
            &format!("lost is told before the rival is granted ({lock})"),
            lost < Some(granted) && lost.is_some(),
            detail,
        );
        let within = granted < cut + Duration::from_secs(3 * LEASE_SECONDS);
        report.check(&format!("the rival is granted ({lock})"), within, "");
    }
    let detail = seen.valid_until.map_or("never vouched".to_owned(), |end| format!("until {:.2} s", since(cut, end)));
    report.check("what the daemon vouched for ended before", seen.valid_until.is_some_and(|end| end < kept), detail);
    let closed = old.join().expect("the daemon closes it");
    let detail = format!("closed after {:.2} s, rival granted after {:.2} s", since(cut, closed), since(cut, third));
    report.check("a version 0.1 session is closed before", closed < third, detail);
    let detail = format!("{} pings, the slowest {:?}; {}", seen.pings, seen.slowest_ping, seen.kinds(cut));
    // They do not wait for the server, which answers only after the heal.
    report.check("pings go on", seen.slowest_ping < Duration::from_secs(LEASE_SECONDS / 2), detail);

    a.heal();
    let healed = Instant::now();
    for lock in ["keep", "pass"] {
        let reply = holder.request(json!({"op": "verify", "lock": lock}));
        report.check(&format!("verify says it after the heal ({lock})"), is_lost(&reply), reply);
    }
    works_again(&left, report, healed);
    let reply = holder.request(json!({"op": "verify", "lock": "pass"}));
    report.check("verify still says it", is_lost(&reply), reply);
    report.check("the old holder is refused while the rival holds", !holder.gets("keep"), "");
    let reply = keeper.request(json!({"op": "verify", "lock": "keep"}));
    report.check("the rival's lock is real", reply["ok"] == true && server.has_lock("partition", "keep"), reply);
    keeper.release("keep");
    for lock in ["keep", "pass"] {
        let regained = eventually_gets(&mut holder, lock) && server.has_lock("partition", lock);
        report.check(&format!("the old holder gets it anew ({lock})"), regained && !right.session().gets(lock), "");
    }
}

fn eventually_gets(session: &mut V1, lock: &str) -> bool {
    let reply = session.request(json!({"op": "acquire", "lock": lock, "wait_ms": 20_000}));
    reply["ok"] == true
}

/// When the link is back, the daemon grants again, without a restart.
pub(crate) fn works_again(node: &Node, report: &Report, healed: Instant) {
    let mut session = node.session();
    let mut reply = Value::Null;
    while reply["ok"] != true && healed.elapsed() < Duration::from_secs(60) {
        reply = session.request(json!({"op": "acquire", "lock": "again", "wait_ms": 10_000}));
        thread::sleep(Duration::from_millis(20));
    }
    let detail = format!("first grant {:.2} s after the heal {reply}", healed.elapsed().as_secs_f64());
    report.check("it works again without a restart", reply["ok"] == true, detail);
    session.release("again");
}

/// The link is cut for a moment.
pub(crate) fn shorter_than_the_lease(server: &Server, report: &Report) {
    /// TCP retransmits about 3 s after the cut, and then about 6.2 s after it, which is too late.
    /// The cut has to be over before the first of these, even on a slow machine.
    const BLINK: Duration = Duration::from_millis(2000);
    let [a, b] = server.hosts("blink", ["ba", "bb"]);
    let (left, right) = (a.daemon(report, &[]), b.daemon(report, &[]));
    let mut holder = left.session();
    holder.acquire("kept");
    let rival = Rival::start(&right.address, "kept", true);
    let watch = Watch::start(holder);
    a.cut();
    let cut = Instant::now();
    thread::sleep(BLINK);
    a.heal();
    report.figure("the cut lasted", format!("{:.2} s", cut.elapsed().as_secs_f64()));
    works_again(&left, report, Instant::now());
    hands_over(server, report, "blink", (watch, rival), cut);
}

/// The holder still has its lock, according to everybody, and passes it on when it releases it.
fn hands_over(server: &Server, report: &Report, folder: &str, (watch, rival): (Watch, Rival), start: Instant) {
    let (mut holder, seen) = watch.end();
    let told = seen.kinds(start);
    report.check("nothing is lost", seen.when("lost", "kept").is_none(), format!("told: {told}"));
    let reply = holder.request(json!({"op": "verify", "lock": "kept"}));
    report.check("verify says so", reply["ok"] == true, reply);
    report.check("the server says so", server.has_lock(folder, "kept"), "");
    report.check("the rival still waits", rival.is_waiting(), "");
    holder.release("kept");
    let released = Instant::now();
    let (_rival, granted) = rival.granted();
    report.check("the rival is granted after the release", true, format!("{:.2} s later", since(released, granted)));
    report.check("and excludes the old holder", !holder.gets("kept"), "");
}

/// The server restarts: after its grace period everything is as before.
pub(crate) fn server_restart(server: &Server, report: &Report) {
    let [a, b] = server.hosts("restart", ["sa", "sb"]);
    let (left, right) = (a.daemon(report, &[]), b.daemon(report, &[]));
    let mut holder = left.session();
    holder.acquire("kept");
    let rival = Rival::start(&right.address, "kept", true);
    let watch = Watch::start(holder);
    let start = Instant::now();
    server.down();
    server.up();
    works_again(&left, report, start);
    hands_over(server, report, "restart", (watch, rival), start);
}
