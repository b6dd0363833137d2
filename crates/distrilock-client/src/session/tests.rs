//! The session in simulated time, against a daemon that is a few lines of text.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::grant::GrantGuard;
use crate::timing::{DaemonTimes, StopTime};
use crate::wanted::Wanted;
use distrilock_protocol::v1::Wait;

fn at(ms: u64) -> BootTime {
    BootTime::at(Duration::from_secs(1000) + Duration::from_millis(ms))
}

fn name(text: &str) -> LockName {
    LockName::parse(text.as_bytes()).unwrap()
}

struct Play {
    session: ClientSession,
}

impl Play {
    fn new() -> Self {
        let ms = Duration::from_millis;
        let (silence_max, stop) = (ms(20_000), StopTime::Exactly(ms(10_000)));
        let timing = Timing { silence_max, stop, heartbeat: ms(5000), slower: ms(0), too_slow: None };
        Self { session: ClientSession::new(timing, at(0)) }
    }

    fn acquire(
        &mut self,
        ms: u64,
        lock: &str,
        waits: bool,
    ) -> (u64, oneshot::Receiver<Result<GrantGuard, AcquireError>>) {
        let (to, answer) = oneshot::channel();
        let asked = Asked::of(&[Wanted::new(lock)], waits).unwrap();
        let id = self.session.acquire(at(ms), &asked, to).unwrap();
        (id, answer)
    }

    /// Lets the daemon say something at a moment. What is over ends before that, as in reality.
    fn hear(&mut self, ms: u64, text: &str) {
        self.session.check(at(ms));
        self.session.receive(at(ms), text.as_bytes());
    }

    fn tick(&mut self, ms: u64) {
        self.session.check(at(ms));
        self.session.tick(at(ms));
    }

    fn said(&mut self) -> Vec<String> {
        let said = std::mem::take(&mut self.session.outbox);
        String::from_utf8(said).unwrap().lines().map(str::to_owned).collect()
    }

    /// The key of the grant that is to be delivered.
    fn granted(&mut self) -> Option<u64> {
        self.session.effects.drain(..).find_map(|effect| match effect {
            Effect::Granted { key, .. } => Some(key),
            _ => None,
        })
    }
}

/// The deadline counts from when the last answered request was sent. An answer that comes too late
/// revives nothing.
#[test]
fn the_deadline_counts_from_the_sending() {
    let mut play = Play::new();
    // After a day of idling, a deadline does not depend on that day.
    let day = 86_400_000;
    assert_eq!(play.session.next_tick(), None);
    play.tick(day);
    assert_eq!(play.said(), [""; 0]);
    let (id, _answer) = play.acquire(day, "a", false);
    play.hear(day + 3000, &format!(r#"{{"id":{id},"ok":true,"lock":"a"}}"#));
    let key = play.granted().unwrap();
    assert_eq!(play.session.valid_until(key), Some(at(day + 20_000)));
    play.said();
    play.tick(day + 4999);
    assert_eq!(play.said(), [""; 0]);
    play.tick(day + 5000);
    assert_eq!(play.said(), [r#"{"id":3,"op":"ping"}"#]);
    // No second heartbeat is sent before the first one is answered.
    play.tick(day + 11_000);
    assert_eq!(play.said(), [""; 0]);
    play.hear(day + 12_000, r#"{"id":3,"ok":true}"#);
    assert_eq!(play.session.valid_until(key), Some(at(day + 25_000)));
    play.tick(day + 12_000);
    assert_eq!(play.said(), [r#"{"id":4,"op":"ping"}"#]);
    assert_eq!(play.session.next_tick(), Some(at(day + 25_000)));
    play.session.check(at(day + 24_999));
    assert!(play.session.ended().is_none());
    play.hear(day + 25_000, r#"{"id":4,"ok":true}"#);
    assert!(matches!(play.session.ended(), Some(DisconnectedError::Silent { .. })));
    assert_eq!(play.session.valid_until(key), None);
    assert!(matches!(*play.session.watch(key).unwrap().borrow(), Standing::Lost(LostError::Disconnected(_))));
}

/// The storage's deadline is the earlier one, each heartbeat's answer moves it, and doubt shortens
/// it.
#[test]
fn the_storage_ends_it_sooner() {
    let mut play = Play::new();
    let (id, _answer) = play.acquire(0, "a", false);
    play.hear(100, &format!(r#"{{"id":{id},"ok":true,"lock":"a","valid_ms":9000}}"#));
    let key = play.granted().unwrap();
    assert_eq!(play.session.valid_until(key), Some(at(9000)));
    play.tick(5000);
    play.hear(5200, r#"{"id":3,"ok":true,"valid_ms":9000}"#);
    assert_eq!(play.session.valid_until(key), Some(at(14_000)));
    play.hear(6000, r#"{"event":"suspect","lock":"b","valid_ms":1}"#);
    assert_eq!(play.session.valid_until(key), Some(at(14_000)));
    play.hear(6000, r#"{"event":"suspect","lock":"a","valid_ms":3000}"#);
    assert_eq!(play.session.valid_until(key), Some(at(9000)));
    play.hear(7000, r#"{"event":"held","lock":"a"}"#);
    assert_eq!(play.session.valid_until(key), Some(at(14_000)));
    play.hear(8000, r#"{"event":"suspect","lock":"a","valid_ms":60000}"#);
    assert_eq!(play.session.valid_until(key), Some(at(14_000)), "doubt extends nothing");
    // An answer without a time says nothing about the storage: what was known remains valid.
    play.tick(10_000);
    play.hear(10_100, r#"{"id":4,"ok":true}"#);
    // The next heartbeat comes soon: 3.9 s are left, into which four of them fit.
    assert_eq!(play.session.next_tick(), Some(at(10_100 + 3900 / 4)));
    play.session.check(at(14_000));
    assert!(matches!(*play.session.watch(key).unwrap().borrow(), Standing::Lost(LostError::Unproven)));
    assert!(play.session.ended().is_none());
    // A lost lock stays lost.
    play.tick(15_000);
    play.hear(15_000, r#"{"id":5,"ok":true,"valid_ms":9000}"#);
    assert_eq!(play.session.valid_until(key), None);
    // The daemon still keeps it, so it is released.
    play.said();
    play.session.release(at(15_000), key, None);
    assert_eq!(play.said(), [r#"{"id":6,"op":"release","lock":"a"}"#]);
}

/// On such a storage, a grant after a wait is delivered with a fresh proof, and not if the lock is
/// lost before that.
#[test]
fn a_late_grant_is_confirmed() {
    for lost in [false, true] {
        let mut play = Play::new();
        let (id, _answer) = play.acquire(0, "a", true);
        for (ms, ping) in [(5000, 2), (10_000, 3), (15_000, 4)] {
            play.tick(ms);
            play.hear(ms, &format!(r#"{{"id":{ping},"ok":true}}"#));
        }
        play.said();
        play.hear(16_000, &format!(r#"{{"id":{id},"ok":true,"lock":"a","valid_ms":9000}}"#));
        assert_eq!(play.granted(), None);
        assert_eq!(play.said(), [r#"{"id":6,"op":"ping"}"#]);
        if lost {
            play.hear(16_100, r#"{"event":"lost","lock":"a","reason":"the server says so"}"#);
        }
        play.hear(16_200, r#"{"id":6,"ok":true,"valid_ms":9000}"#);
        let key = play.granted().unwrap();
        assert_eq!(play.session.valid_until(key), (!lost).then(|| at(25_000)));
        assert_eq!(matches!(*play.session.watch(key).unwrap().borrow(), Standing::Lost(_)), lost);
    }
}

/// A name stays in use until the daemon has answered. An abandoned acquire frees it, whatever the
/// answer is.
#[test]
fn names_are_in_use_until_the_answer() {
    for granted in [false, true] {
        let mut play = Play::new();
        let asked = Asked::of(&[Wanted::new("a")], true).unwrap();
        let again = |play: &mut Play| play.session.acquire(at(0), &asked, oneshot::channel().0);
        let (id, answer) = play.acquire(0, "a", true);
        assert!(matches!(again(&mut play), Err(StartError::Refused(AcquireError::AlreadyHeld { .. }))));
        drop(answer);
        play.session.abandon(at(0), id);
        assert_eq!(play.said()[1], r#"{"id":2,"op":"cancel","request":1}"#);
        assert!(matches!(again(&mut play), Err(StartError::Leaving)));
        if granted {
            play.hear(1, r#"{"id":1,"ok":true,"lock":"a"}"#);
            play.hear(1, r#"{"id":2,"ok":true,"cancelled":false}"#);
            assert!(matches!(again(&mut play), Err(StartError::Leaving)));
            let key = play.granted().unwrap();
            // A grant that nobody takes is dropped, which releases it.
            play.session.release(at(1), key, None);
            assert_eq!(play.said(), [r#"{"id":4,"op":"release","lock":"a"}"#]);
            assert!(matches!(again(&mut play), Err(StartError::Leaving)));
            play.hear(2, r#"{"id":4,"ok":true,"lock":"a"}"#);
        } else {
            play.hear(1, r#"{"id":1,"ok":false,"error":"cancelled","message":""}"#);
        }
        assert!(play.session.effects.iter().any(|effect| matches!(effect, Effect::Freed)));
        assert!(again(&mut play).is_ok());
    }
}

/// A grant without a receiver releases itself, through the real channel.
#[test]
fn a_grant_that_nobody_takes() {
    let shared = Arc::new(crate::shared::Shared::new(Timing::default()));
    let asked = Asked::of(&[Wanted::new("a")], true).unwrap();
    for late in [false, true] {
        let (to, answer) = oneshot::channel();
        let mut answer = Some(answer);
        let id = shared.with(|session, now| session.acquire(now, &asked, to)).unwrap();
        if !late {
            answer = None;
        }
        let reply = format!(r#"{{"id":{id},"ok":true,"lock":"a"}}"#);
        shared.with(|session, now| session.receive(now, reply.as_bytes()));
        drop(answer);
        let said = shared.with(|session, _| std::mem::take(&mut session.outbox));
        let said = String::from_utf8(said).unwrap();
        let release = said.lines().last().unwrap().to_owned();
        assert!(release.contains(r#""op":"release","lock":"a""#), "{said}");
        let id: serde_json::Value = serde_json::from_str(&release).unwrap();
        shared.with(|session, now| session.receive(now, format!(r#"{{"id":{},"ok":true}}"#, id["id"]).as_bytes()));
        assert!(shared.with(|session, _| session.held.is_empty() && session.names.is_empty()));
    }
}

/// One of several locks is lost: all are lost together, the others are released, and the lost one
/// can be requested again.
#[test]
fn one_of_several_is_lost() {
    let mut play = Play::new();
    let asked = Asked::of(&[Wanted::new("a"), Wanted::new("b"), Wanted::new("c")], false).unwrap();
    play.session.acquire(at(0), &asked, oneshot::channel().0).unwrap();
    play.hear(1, r#"{"id":1,"ok":true,"locks":[{"lock":"a"},{"lock":"b"},{"lock":"c"}]}"#);
    let key = play.granted().unwrap();
    play.hear(2, r#"{"event":"lost","lock":"b","reason":"deleted"}"#);
    assert_eq!(play.session.lost(key), LostError::Told { lock: name("b"), reason: "deleted".into() });
    play.said();
    let (again, _answer) = play.acquire(3, "b", false);
    play.hear(3, &format!(r#"{{"id":{again},"ok":true,"lock":"b"}}"#));
    let second = play.granted().unwrap();
    play.said();
    play.session.release(at(4), key, None);
    assert_eq!(play.said(), [r#"{"id":5,"op":"release","locks":["a","c"]}"#]);
    assert!(play.session.valid_until(second).is_some());
}

/// Lines of an arbitrary daemon: some follow the protocol, some almost do.
fn any_line() -> impl Strategy<Value = String> {
    let id = 0..12u64;
    let lock = prop_oneof![Just("a"), Just("b"), Just("c"), Just("../x")];
    let word = prop_oneof![Just("busy"), Just("lost"), Just("not_held"), Just("cancelled"), Just("\\u0000")];
    let valid = prop_oneof![Just(0u64), Just(9000), Just(u64::MAX)];
    prop_oneof![
        4 => (id.clone(), lock.clone()).prop_map(|(id, lock)| format!(r#"{{"id":{id},"ok":true,"lock":"{lock}"}}"#)),
        2 => (id.clone(), valid.clone(), lock.clone())
            .prop_map(|(id, valid, lock)| format!(r#"{{"id":{id},"ok":true,"lock":"{lock}","valid_ms":{valid}}}"#)),
        2 => (id.clone(), word, lock.clone())
            .prop_map(|(id, word, lock)| format!(r#"{{"id":{id},"ok":false,"error":"{word}","lock":"{lock}"}}"#)),
        3 => (prop_oneof![Just("lost"), Just("suspect"), Just("held"), Just("eclipse")], lock, valid)
            .prop_map(|(event, lock, valid)| format!(r#"{{"event":"{event}","lock":"{lock}","valid_ms":{valid}}}"#)),
        1 => ".{0,40}",
    ]
}

#[derive(Clone, Debug)]
enum Move {
    Hear(String),
    Acquire(&'static str, bool),
    Abandon(u64),
    /// Releases the last grant that was delivered.
    Release,
    Verify,
    Bye,
    Wait(u64),
}

fn any_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        6 => any_line().prop_map(Move::Hear),
        4 => (prop_oneof![Just("a"), Just("b"), Just("c")], any::<bool>()).prop_map(|(lock, waits)| Move::Acquire(lock, waits)),
        2 => (0..12u64).prop_map(Move::Abandon),
        2 => Just(Move::Release),
        1 => Just(Move::Verify),
        1 => Just(Move::Bye),
        4 => (0..9000u64).prop_map(Move::Wait),
    ]
}

proptest! {
    /// Whatever the daemon says and the program does, nothing panics. A held name is in use, once,
    /// and counts as held at most for the longest silence. Once the session has ended, nothing is
    /// held.
    #[test]
    fn whatever_comes(moves in proptest::collection::vec(any_move(), 0..60)) {
        let (mut play, mut ms, mut keys) = (Play::new(), 0, Vec::new());
        for next in moves {
            play.session.check(at(ms));
            match next {
                Move::Hear(line) => play.hear(ms, &line),
                Move::Acquire(lock, waits) => {
                    let asked = Asked::of(&[Wanted::new(lock)], waits).unwrap();
                    let _ = play.session.acquire(at(ms), &asked, oneshot::channel().0);
                }
                Move::Abandon(id) => play.session.abandon(at(ms), id),
                Move::Release => keys.pop().into_iter().for_each(|key| play.session.release(at(ms), key, None)),
                Move::Verify => drop(keys.first().map(|key| play.session.verify(at(ms), *key))),
                Move::Bye => drop(play.session.bye(at(ms))),
                Move::Wait(more) => {
                    ms += more;
                    play.tick(ms);
                }
            }
            keys.extend(play.granted());
            for line in play.said() {
                let line: serde_json::Value = serde_json::from_str(&line).unwrap();
                prop_assert!(line["id"].is_u64() && line["op"].is_string());
            }
            let session = &play.session;
            for (key, held) in &session.held {
                let until = session.valid_until(*key);
                prop_assert!(until.is_none_or(|until| until <= at(ms + 20_000)));
                prop_assert!(!held.is_lost() || until.is_none());
                prop_assert!(session.ended().is_none() || held.is_lost());
                let used = |name| session.names.contains_key(name);
                prop_assert!(held.is_lost() || held.names.iter().all(used));
            }
            let mut names: Vec<_> = session.held.values().filter(|held| !held.is_lost()).flat_map(|held| &held.names).collect();
            let count = names.len();
            names.sort();
            names.dedup();
            prop_assert_eq!(names.len(), count, "two hold one name");
        }
    }
}

/// A daemon on a file server with this lease, which answers after `latency_ms`, and whose probes
/// are at most one interval late. The client needs `stop` to stop its work, and holds a lock for
/// five leases. Returns false if it is too slow, and therefore requests nothing.
fn hold_on_a_lease(lease_ms: u64, stop: StopTime, latency_ms: u64, late: &[u64]) -> Result<bool, TestCaseError> {
    let ms = Duration::from_millis;
    let (silence_ms, stop_ms) = (lease_ms * 2 / 3, (lease_ms / 6).min(10_000));
    let probe_ms = silence_ms / 6;
    let times =
        DaemonTimes { dead_after: ms(45_000), stop: Some(ms(stop_ms)), valid_min: Some(ms(silence_ms - 2 * probe_ms)) };
    let timing = (Timing { stop, ..Timing::default() }).fit(times).expect("45 s are enough");
    let mut play = Play { session: ClientSession::new(timing, at(0)) };
    let asked = Asked::of(&[Wanted::new("a")], false).unwrap();
    let acquired = play.session.acquire(at(0), &asked, oneshot::channel().0);
    if timing.too_slow.is_some() {
        prop_assert!(matches!(acquired, Err(StartError::Refused(AcquireError::TooSlow { .. }))), "{acquired:?}");
        prop_assert_eq!(play.said(), [""; 0], "nothing is requested");
        return Ok(false);
    }
    let mut late = late.iter().cycle();
    let (mut now, mut heard, mut next_probe, mut key) = (0, 0, probe_ms, None);
    while now < 5 * lease_ms {
        play.session.check(at(now));
        if let Some(key) = key {
            prop_assert!(play.session.valid_until(key).is_some(), "lost after {now} ms: {timing:?}");
        }
        play.tick(now);
        for request in play.said() {
            let request: serde_json::Value = serde_json::from_str(&request).unwrap();
            now += latency_ms;
            while next_probe <= now {
                heard = next_probe;
                next_probe += probe_ms + late.next().unwrap() % probe_ms;
            }
            let valid_ms = silence_ms - (now - heard);
            let lock = if request["op"] == "acquire" { r#","lock":"a""# } else { "" };
            play.hear(now, &format!(r#"{{"id":{},"ok":true{lock},"valid_ms":{valid_ms}}}"#, request["id"]));
            key = key.or(play.granted());
        }
        let next = play.session.next_tick().expect("it is held");
        // The task that drives the connection gets its turn late.
        now = u64::try_from(next.saturating_since(at(0)).as_millis()).unwrap().max(now) + late.next().unwrap() % 100;
    }
    Ok(true)
}

proptest! {
    /// With every lease and every time to stop, a lock is held for as long as the server answers,
    /// even if each answer takes a second; or the acquire is refused before anything is requested.
    #[test]
    fn no_lease_is_too_short(
        lease_ms in 10_000u64..=120_000,
        stop_ms in 0u64..=40_000,
        exactly in any::<bool>(),
        latency_ms in 0u64..=1000,
        late in proptest::collection::vec(0u64..20_000, 8),
    ) {
        let ms = Duration::from_millis;
        let stop = if exactly { StopTime::Exactly(ms(stop_ms)) } else { StopTime::Between(ms(0), ms(stop_ms)) };
        let held = hold_on_a_lease(lease_ms, stop, latency_ms, &late)?;
        prop_assert!(held || exactly, "what may be less is made to fit");
    }
}

/// With a lease of ten seconds, the default of `distrilock run` fits, and five seconds from the
/// first signal to SIGKILL do not.
#[test]
fn ten_seconds_of_lease() {
    let second = Duration::from_secs(1);
    assert!(hold_on_a_lease(10_000, StopTime::Between(2 * second, 7 * second), 1000, &[0, 1110, 500]).unwrap());
    assert!(!hold_on_a_lease(10_000, StopTime::Exactly(7 * second), 10, &[0]).unwrap());
}

/// A grant has to be what was asked for: another mode, fewer slots, slots that do not exist, or no
/// fence ends the connection, and with it whatever was granted.
#[test]
fn a_grant_is_what_was_asked_for() {
    let exclusive = || Wanted::new("a");
    let shared = || Wanted::new("a").shared();
    let slots = || Wanted::new("a").slots(4).take(2);
    for (wanted, fence, grant, good) in [
        (exclusive(), false, r#""lock":"a""#, true),
        (exclusive(), false, r#""lock":"a","mode":"exclusive","fence":7"#, true),
        (exclusive(), false, r#""lock":"a","mode":"shared""#, false),
        (exclusive(), false, r#""lock":"a","mode":"slots""#, false),
        (exclusive(), false, r#""lock":"a","slot":0"#, false),
        (exclusive(), false, r#""lock":"b""#, false),
        (exclusive(), true, r#""lock":"a","fence":7"#, true),
        (exclusive(), true, r#""lock":"a""#, false),
        (shared(), false, r#""lock":"a","mode":"shared""#, true),
        (shared(), false, r#""lock":"a""#, false),
        (slots(), false, r#""lock":"a","slot":0,"taken":[0,3]"#, true),
        (slots(), false, r#""lock":"a","slot":0,"taken":[0,4]"#, false),
        (slots(), false, r#""lock":"a","slot":0"#, false),
        (slots(), false, r#""lock":"a","slot":0,"taken":[0,0]"#, false),
        (slots(), false, r#""lock":"a""#, false),
        (slots().take(1), false, r#""lock":"a","slot":3"#, true),
    ] {
        let mut play = Play::new();
        let (to, _answer) = oneshot::channel();
        let asked = Asked::new(&[wanted], Wait::No, fence).unwrap();
        let id = play.session.acquire(at(0), &asked, to).unwrap();
        play.hear(10, &format!(r#"{{"id":{id},"ok":true,{grant}}}"#));
        assert_eq!(play.granted().is_some(), good, "{grant}");
        assert_eq!(matches!(play.session.ended(), Some(DisconnectedError::Garbage { .. })), !good, "{grant}");
    }
}
