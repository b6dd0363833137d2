//! The state that the daemon keeps for a session in addition to its connection, before and after a
//! restart: its place in the queue, its remaining time, slots, fences, parts of several names, its
//! introduction, and who waits for whom.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::guest::{self, SERVICE, TCP, UNIX, main_pid, sh};
use crate::report::Report;
use crate::support::V1;

/// How late a wait may end: restarts and a loaded machine take time.
const LATE_MAX: Duration = Duration::from_secs(5);

fn restart() {
    sh("systemctl restart distrilock.service");
}

fn waits(lock: &str, wait_ms: Option<u64>, address: &str) -> V1 {
    let mut session = V1::connect(address);
    session.send(&json!({"id": "wait", "op": "acquire", "lock": lock, "wait_ms": wait_ms}));
    // When this is answered, the wait has begun and has its place.
    session.ping();
    session
}

/// A waiter keeps its place and its time.
pub(crate) fn places(report: &Report) {
    guest::installed();
    let mut holder = V1::connect(TCP);
    holder.acquire("queue");
    holder.acquire("late");
    holder.acquire("cancelled");
    let mut queue: Vec<V1> = (0..6).map(|n| waits("queue", None, if n % 2 == 0 { TCP } else { UNIX })).collect();
    let begun = Instant::now();
    let times = [500, 4000, 7000].map(|wait_ms| (wait_ms, waits("late", Some(wait_ms), TCP)));
    let mut cancelled = waits("cancelled", Some(60_000), TCP);
    let pid = main_pid(SERVICE);
    restart();
    report.check("another process serves", main_pid(SERVICE) != pid, pid);
    restart();
    let mut watcher = V1::connect(TCP);
    let waiters = |watcher: &mut V1| watcher.request(json!({"op": "peek", "lock": "queue"}))["waiters"].clone();
    report.check("all wait on", waiters(&mut watcher) == 6, waiters(&mut watcher));
    let reply = cancelled.request(json!({"op": "cancel", "request": "wait"}));
    report.check("a wait of before can be cancelled", reply["cancelled"] == true, &reply);
    for (wait_ms, mut session) in times {
        let reply = session.receive();
        let (took, wanted) = (begun.elapsed(), Duration::from_millis(wait_ms));
        let fits =
            reply["error"] == "timeout" && took + Duration::from_millis(50) >= wanted && took < wanted + LATE_MAX;
        report.check("a wait ends in its time", fits, format!("{wait_ms} ms: {took:?}: {reply}"));
    }
    let last = queue.len() - 1;
    for (place, session) in queue.iter_mut().enumerate() {
        let mut previous = waiters(&mut watcher);
        report.check("one after the other", previous == last + 1 - place, &previous);
        holder.release("queue");
        let reply = session.receive();
        report.check("in the order of their arrival", reply["ok"] == true && reply["id"] == "wait", &reply);
        if place == 2 {
            restart();
            previous = waiters(&mut watcher);
            report.check("also after one more restart", previous == last - place, &previous);
        }
        std::mem::swap(&mut holder, session);
    }
}

/// The reply to `list`, without the times.
fn picture(watcher: &mut V1) -> (Value, Vec<u64>) {
    let mut list = watcher.request(json!({"id": "list", "op": "list"}));
    let mut ages = Vec::new();
    strip(&mut list, &mut ages);
    (list, ages)
}

fn strip(value: &mut Value, ages: &mut Vec<u64>) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| strip(item, ages)),
        Value::Object(members) => {
            ages.extend(members.remove("since_ms").and_then(|age| age.as_u64()));
            members.values_mut().for_each(|item| strip(item, ages));
        }
        _ => {}
    }
}

/// Everything in the reply to `list` is there after a restart, and works on.
pub(crate) fn belongings(report: &Report) {
    guest::installed();
    let hello = json!({"op": "hello", "version": 1, "name": "nightly@db1", "note": "the backup", "host": "db1", "pid": 4711,
        "command": "pg_dump -Fc shop", "user": "postgres"});
    let (mut one, mut two, mut three, mut four) =
        (V1::connect(TCP), V1::connect(UNIX), V1::connect(TCP), V1::connect(UNIX));
    one.request(hello);
    let gpu = json!({"op": "acquire", "lock": "gpu", "slots": 3, "take": 2, "fence": true});
    let granted = one.request(gpu.clone());
    report.check("slots with a fence", granted["taken"] == json!([0, 1]) && granted["fence"].is_u64(), &granted);
    two.send(
        &json!({"id": "slots", "op": "acquire", "lock": "gpu", "slots": 3, "take": 2, "fence": true, "wait_ms": null}),
    );
    two.ping();
    three.request(json!({"op": "acquire", "locks": ["x", "y"], "mode": "shared"}));
    four.send(&json!({"id": "several", "op": "acquire", "locks": ["w", "x"], "wait_ms": null, "fence": true}));
    four.ping();
    two.acquire("mine");
    let mut watcher = V1::connect(TCP);
    let (before, ages) = picture(&mut watcher);
    restart();
    restart();
    let (after, older) = picture(&mut watcher);
    report.check(
        "list says the same",
        before == after,
        if before == after { String::new() } else { format!("{before} -> {after}") },
    );
    let grown = ages.len() == older.len() && ages.iter().zip(&older).all(|(young, old)| old >= young);
    report.check("ages go on", grown && !ages.is_empty(), format!("{ages:?} -> {older:?}"));
    let reply = one.request(json!({"op": "verify", "lock": "gpu"}));
    let same = reply["fence"] == granted["fence"] && reply["taken"] == granted["taken"];
    report.check("slots and fence are the same", same, &reply);
    let reply = one.request(gpu);
    report.check("they count as held", reply["already"] == true, &reply);
    let reply = one.request(json!({"op": "acquire", "lock": "mine", "wait_ms": null, "id": "for two"}));
    report.check("who would wait in a circle is refused", reply["error"] == "deadlock", &reply);
    one.release("gpu");
    let reply = two.receive();
    let risen = reply["fence"].as_u64() > granted["fence"].as_u64();
    report.check("who waits for slots gets them, with a higher fence", reply["id"] == "slots" && risen, &reply);
    let reply = four.request(json!({"op": "verify", "lock": "w"}));
    report.check("a part is not yet held", reply["error"] == "not_held", &reply);
    let reply = three.request(json!({"op": "release", "locks": ["x", "y"]}));
    report.check("several names are released", reply["ok"] == true, &reply);
    let reply = four.receive();
    report.check("who waits for several gets all of them", reply["id"] == "several" && reply["ok"] == true, &reply);
    fences(report);
}

/// Fences increase, restart after restart, also across deleted files.
fn fences(report: &Report) {
    let mut fences = Vec::new();
    let mut session = V1::connect(TCP);
    for round in 0..6 {
        let reply = session.request(json!({"op": "acquire", "lock": "disk", "fence": true}));
        fences.push(reply["fence"].as_u64().expect("it was asked for"));
        session.release("disk");
        match round % 3 {
            0 => restart(),
            1 => drop(sh("systemctl stop distrilock.service && systemctl start distrilock.service")),
            _ => drop(sh("systemctl kill --kill-whom=main -s KILL distrilock.service")),
        }
        if round % 3 != 0 {
            session = guest::again();
        }
    }
    let rise = fences.windows(2).all(|pair| pair[0] < pair[1]);
    report.check("fences rise over restarts, stops and kills", rise, format!("{fences:?}"));
}
