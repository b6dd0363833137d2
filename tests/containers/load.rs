//! Sessions that work while something happens to the daemon: holders that keep one lock each, and
//! rivals of all dialects that acquire and release a few names. Each waits for the reply to each of
//! its requests, so a lost one is noticed, and each tells the witness what it holds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::dialects::{Dialect, Session, Verb};
use crate::guest;
use crate::outside::Witness;
use crate::report::Report;
use crate::support::{Dice, V1};

/// The longest wait of a rival: long enough that waits span restarts.
const WAIT_MS_MAX: u64 = 400;

/// The pause between two requests of a holder.
const HOLDER_PAUSE: Duration = Duration::from_millis(500);

/// A small stack: a thread keeps little, and there are a thousand.
const STACK_BYTES: usize = 256 << 10;

/// How many sessions of each kind there are, and over how many names the rivals fight.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) holders: usize,
    pub(crate) rivals: usize,
    pub(crate) names: usize,
}

impl Size {
    pub(crate) fn sessions(self) -> usize {
        self.holders + self.rivals + PIPELINES + 1
    }
}

/// Sessions with several requests in flight.
const PIPELINES: usize = 4;

/// What all threads of a load share.
struct Shared {
    witness: Witness,
    end: AtomicBool,
    requests: AtomicU64,
    /// Failures, by dialect.
    faults: Mutex<Vec<String>>,
    pause: AtomicU64,
}

/// A running load.
pub(crate) struct Load {
    size: Size,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts the sessions; when this returns, every holder has its lock.
    pub(crate) fn start(size: Size) -> Self {
        let holders = (0..size.holders).map(|n| format!("held{n}"));
        let rivals = (0..size.names).map(|n| format!("rivals{n}"));
        let shared = Arc::new(Shared {
            witness: Witness::new(holders.chain(rivals)),
            end: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            faults: Mutex::default(),
            pause: AtomicU64::new(0),
        });
        let ready = Arc::new(Barrier::new(size.sessions() + 1));
        let mut load = Self { size, shared, threads: Vec::new() };
        for number in 0..size.holders {
            load.spawn(format!("holder {number}"), &ready, move |shared, ready| hold(shared, ready, number));
        }
        for number in 0..size.rivals {
            load.spawn(format!("rival {number}"), &ready, move |shared, ready| rival(shared, ready, number, size));
        }
        for number in 0..PIPELINES {
            load.spawn(format!("pipeline {number}"), &ready, move |shared, ready| pipeline(shared, ready, number));
        }
        load.spawn("pinger".into(), &ready, ping);
        ready.wait();
        let shared = Arc::clone(&load.shared);
        load.threads.push(thread::spawn(move || shared.witness.probe(&shared.end)));
        load
    }

    fn spawn(&mut self, name: String, ready: &Arc<Barrier>, work: impl FnOnce(&Shared, &Barrier) + Send + 'static) {
        let (shared, ready) = (Arc::clone(&self.shared), Arc::clone(ready));
        let builder = thread::Builder::new().name(name.clone()).stack_size(STACK_BYTES);
        let run = move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(&shared, &ready))) {
                let fault = format!("{name}: {}", guest::reason(panic.as_ref()));
                shared.faults.lock().expect("nobody panics with it").push(fault);
            }
        };
        self.threads.push(builder.spawn(run).expect("there is room for a thread"));
    }

    /// Grants, looks and requests so far: compare two of them to see progress.
    pub(crate) fn progress(&self) -> [u64; 3] {
        let Shared { witness, requests, .. } = &*self.shared;
        [witness.grants(), witness.seen(), requests.load(Ordering::Relaxed)]
    }

    /// The longest time from a ping to its reply since the last call.
    pub(crate) fn longest_pause(&self) -> Duration {
        Duration::from_micros(self.shared.pause.swap(0, Ordering::Relaxed))
    }

    /// The failures so far, in a few words; empty if there are none.
    pub(crate) fn faults(&self) -> String {
        let faults = self.shared.faults.lock().expect("nobody panics with it");
        let (offended, offences) = self.shared.witness.offences();
        if faults.is_empty() && offended == 0 {
            return String::new();
        }
        let some: Vec<&str> = faults.iter().take(3).map(String::as_str).collect();
        format!("{} sessions: {}; {offended} offences: {offences}", faults.len(), some.join("; "))
    }

    /// Ends the sessions, whatever was found.
    pub(crate) fn stop(mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }

    /// Ends the sessions, each of which releases its locks, and reports the findings.
    pub(crate) fn finish(mut self, report: &Report) {
        self.shared.end.store(true, Ordering::Relaxed);
        let joined = self.threads.drain(..).map(JoinHandle::join).filter(Result::is_ok).count();
        let [grants, looks, requests] = self.progress();
        let faults = self.shared.faults.lock().expect("nobody panics with it");
        let some: Vec<&str> = faults.iter().take(5).map(String::as_str).collect();
        report.check(
            "no session ended, no reply was lost",
            faults.is_empty() && joined > self.size.sessions(),
            format!(
                "{} sessions, {requests} requests, {} faults: {}",
                self.size.sessions(),
                faults.len(),
                some.join("; ")
            ),
        );
        let (offended, offences) = self.shared.witness.offences();
        report.check(
            "nothing was granted twice or early, no held lock was seen free",
            offended == 0 && grants > 0 && looks > 0,
            format!("{grants} grants, {looks} looks, {offended} offences: {offences}"),
        );
    }
}

/// Holds a lock from beginning to end, and verifies it from time to time.
fn hold(shared: &Shared, ready: &Barrier, number: usize) {
    let mut session = Dialect::ALL[number % Dialect::ALL.len()].session();
    let lock = shared.witness.lock(number).to_owned();
    let granted = session.does(Verb::Acquire, &lock);
    let ticket = shared.witness.enters(number);
    ready.wait();
    assert!(granted, "{lock} is not granted");
    // Not all at the same time.
    let mut next = Instant::now() + HOLDER_PAUSE * u32::try_from(number % 16).expect("a small number") / 16;
    while !shared.end.load(Ordering::Relaxed) {
        if Instant::now() < next {
            thread::sleep(Duration::from_millis(20));
            continue;
        }
        next = Instant::now() + HOLDER_PAUSE;
        assert!(session.does(Verb::Verify, &lock), "{}: {lock} is not held any more", session.dialect);
        shared.requests.fetch_add(1, Ordering::Relaxed);
    }
    shared.witness.leaves(number, ticket);
    assert!(session.does(Verb::Release, &lock), "{}: {lock} is not released", session.dialect);
}

/// Acquires and releases.
fn rival(shared: &Shared, ready: &Barrier, number: usize, size: Size) {
    let mut session = Dialect::ALL[number % Dialect::ALL.len()].session();
    let mut dice = Dice::new(number as u64 + 1);
    ready.wait();
    while !shared.end.load(Ordering::Relaxed) {
        let index = size.holders + usize::try_from(dice.below(size.names as u64)).expect("a small number");
        compete(shared, &mut session, &mut dice, index);
    }
}

fn compete(shared: &Shared, session: &mut Session, dice: &mut Dice, index: usize) {
    let lock = shared.witness.lock(index);
    let granted = if session.dialect.is_new() && dice.below(4) > 0 {
        let (wait_ms, start) = (50 + dice.below(WAIT_MS_MAX), Instant::now());
        let granted = session.waits(lock, wait_ms);
        assert!(granted || start.elapsed().as_millis() >= u128::from(wait_ms), "{lock}: timed out early");
        granted
    } else {
        session.does(Verb::Acquire, lock)
    };
    shared.requests.fetch_add(1, Ordering::Relaxed);
    if granted {
        let ticket = shared.witness.enters(index);
        thread::sleep(Duration::from_millis(dice.below(8)));
        if dice.below(4) == 0 {
            assert!(session.does(Verb::Verify, lock), "{}: {lock} is not held any more", session.dialect);
        }
        shared.witness.leaves(index, ticket);
        assert!(session.does(Verb::Release, lock), "{}: {lock} is not released", session.dialect);
    }
    thread::sleep(Duration::from_millis(5 + dice.below(20)));
}

/// Has several requests in flight, each of which must be answered exactly once.
fn pipeline(shared: &Shared, ready: &Barrier, number: usize) {
    let mut session = V1::connect(if number.is_multiple_of(2) { guest::TCP } else { guest::UNIX });
    ready.wait();
    let mut id = 0_u64;
    while !shared.end.load(Ordering::Relaxed) {
        let first = id + 1;
        let own = |n: u64| format!("own{number}-{n}");
        for n in 0..8 {
            id += 3;
            session.send(&json!({"id": id - 2, "op": "acquire", "lock": own(n), "wait_ms": 20_000}));
            session.send(&json!({"id": id - 1, "op": "ping"}));
            session.send(&json!({"id": id, "op": "release", "lock": own(n)}));
        }
        let mut due: Vec<u64> = (first..=id).collect();
        while !due.is_empty() {
            let reply: Value = session.receive();
            let answered = due.iter().position(|id| reply["id"] == *id);
            let Some(place) = answered else { panic!("not the reply to any of {due:?}: {reply}") };
            due.swap_remove(place);
            // A release may overtake its acquire, and is then refused.
            assert!(reply["ok"] == true || reply["error"] == "not_held", "{reply}");
        }
        shared.requests.fetch_add(24, Ordering::Relaxed);
        let locks: Vec<String> = (0..8).map(own).collect();
        locks.iter().for_each(|lock| drop(session.request(json!({"id": "last", "op": "release", "lock": lock}))));
        thread::sleep(Duration::from_millis(5));
    }
}

/// Measures how long a client waits for a reply.
fn ping(shared: &Shared, ready: &Barrier) {
    let mut session = V1::connect(guest::TCP);
    ready.wait();
    while !shared.end.load(Ordering::Relaxed) {
        let start = Instant::now();
        session.ping();
        let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        shared.pause.fetch_max(micros, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(2));
    }
}
