//! Scenarios of names that another process holds: how often they are tried, and what a word from
//! another daemon changes.

use std::collections::BTreeMap;

use super::*;
use crate::limits::{RECHECK_MS, RETRY_US_PER_NAME, SHARDS};

/// A session waits for a name that another process holds.
fn contended() -> Scenario {
    let mut n = Scenario::new();
    n.wait(1, Exclusive);
    assert_eq!(n.done(Outcome::Refused), [Effect::Arm(Timer::Retry, RETRY_MS_MIN), Effect::Contended(name("n"))]);
    n
}

fn retry() -> Effect<u32> {
    file(FileOp::Retry(Exclusive))
}

/// Word that the name is free causes a try at once; if another process was quicker, word is asked
/// for again.
#[test]
fn word_causes_a_try() {
    let mut n = contended();
    assert_eq!(n.input(Input::Hint(name("n"))), [retry()]);
    assert_eq!(n.input(Input::Hint(name("n"))), [], "one is under way");
    assert_eq!(n.done(Outcome::Refused), [Effect::Contended(name("n"))]);
    assert_eq!(n.input(Input::Hint(name("n"))), [retry()]);
    assert_eq!(n.done(Outcome::Locked), [granted(1, Exclusive)]);
}

/// A wake-up for a name that nobody waits for, that a session holds, or that is unknown changes
/// nothing.
#[test]
fn word_that_nobody_waits_for() {
    let mut n = Scenario::new();
    n.held(1, Exclusive);
    n.wait(2, Exclusive);
    let before = n.engine.clone();
    for text in ["n", "unknown"] {
        assert_eq!(n.input(Input::Hint(name(text))), []);
        assert_eq!(n.input(Input::Promised(name(text))), []);
    }
    assert_eq!(n.input(Input::PromisesBroken), []);
    assert_eq!(n.engine, before);
}

/// A promised name is left to the slow timer, and comes back from it as one for which nothing is
/// promised.
#[test]
fn a_promise_slows_tries_down() {
    let mut n = contended();
    assert_eq!(n.input(Input::Promised(name("n"))), [Effect::Arm(Timer::Recheck, RECHECK_MS)]);
    assert_eq!(n.elapsed(Timer::Retry), []);
    assert_eq!(n.input(Input::Promised(name("n"))), []);
    assert_eq!(n.elapsed(Timer::Recheck), [retry()]);
    assert_eq!(n.done(Outcome::Refused), [Effect::Arm(Timer::Retry, RETRY_MS_MIN), Effect::Contended(name("n"))]);
    assert_eq!(n.elapsed(Timer::Retry), [retry()]);
}

/// The daemon that promised word is killed: the names that it held are tried at once.
#[test]
fn a_promise_is_broken() {
    let mut n = contended();
    n.input(Input::Promised(name("n")));
    assert_eq!(n.input(Input::PromisesBroken), [retry()]);
    assert_eq!(n.done(Outcome::Locked), [granted(1, Exclusive)]);
    assert_eq!(n.elapsed(Timer::Recheck), []);
}

/// Nobody waits any more for a promised name: nothing of it stays behind.
#[test]
fn a_promise_is_forgotten() {
    let mut n = contended();
    n.input(Input::Promised(name("n")));
    n.withdraw(1, Withdrawal::Cancelled);
    assert_eq!(n.elapsed(Timer::Recheck), []);
    assert_eq!(n.elapsed(Timer::Retry), []);
    n.elapsed(Timer::Linger);
    n.elapsed(Timer::Linger);
    n.closed(UNLOCKED);
    assert_eq!(n.engine, Scenario::new().engine);
}

/// A request that does not wait meets a deletion: word and promises do not concern that, and it is
/// tried again soon.
#[test]
fn a_deletion_gives_no_word() {
    let mut n = contended();
    n.input(Input::Promised(name("n")));
    assert_eq!(n.try_it(2, Exclusive), [file(FileOp::Try(Exclusive))]);
    assert_eq!(n.done(Outcome::Disturbed), []);
    let before = n.engine.clone();
    assert_eq!(n.input(Input::Hint(name("n"))), []);
    assert_eq!(n.input(Input::Promised(name("n"))), []);
    assert_eq!(n.engine, before);
    assert_eq!(n.elapsed(Timer::Retry), [file(FileOp::Try(Exclusive))]);
}

/// A shard with a clock of its own: every try is refused.
struct Clockwork {
    engine: Engine<u32>,
    now_ms: u64,
    /// Timers that are armed, by the time at which they run out.
    timers: BTreeMap<u64, Vec<Timer>>,
    tries: u64,
    promises: bool,
}

impl Clockwork {
    fn input(&mut self, input: Input<u32>) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut effects = Vec::new();
            self.engine.input(input, &mut effects);
            for effect in effects {
                match effect {
                    Effect::File { name, .. } => {
                        self.tries += 1;
                        inputs.push_back(Input::Done { name, file: Some(FILE), outcome: Outcome::Refused });
                    }
                    Effect::Contended(name) if self.promises => inputs.push_back(Input::Promised(name)),
                    Effect::Arm(timer, after_ms) => {
                        self.timers.entry(self.now_ms + after_ms).or_default().push(timer);
                    }
                    _ => {}
                }
            }
        }
        self.engine.check_all();
    }

    /// How many tries there are in this many seconds, once everything has come into its stride.
    fn tries_in(names: u64, promises: bool, seconds: u64) -> u64 {
        let engine = Scenario::new().engine;
        let mut shard = Self { engine, now_ms: 0, timers: BTreeMap::new(), tries: 0, promises };
        for number in 0..names {
            let asked = Asked { name: name(&format!("n{number}")), ..asked(1) };
            shard.input(Input::Acquire { asked, want: Exclusive.into(), wait: true });
        }
        for end_ms in [10_000, 10_000 + seconds * 1000] {
            shard.tries = 0;
            while let Some(due) = shard.timers.first_entry().filter(|due| *due.key() <= end_ms) {
                shard.now_ms = *due.key();
                due.remove().into_iter().for_each(|timer| shard.input(Input::Elapsed(timer)));
            }
        }
        shard.tries
    }
}

/// However many names are contended, tries have a bounded rate; few names are tried every few
/// milliseconds.
#[test]
fn the_rate_of_tries() {
    let seconds = 100;
    let most = seconds * 1_000_000 / RETRY_US_PER_NAME;
    assert!(most / seconds * SHARDS as u64 <= 4500, "tries a second of all shards");
    assert_eq!(Clockwork::tries_in(1, false, seconds), seconds * 1000 / RETRY_MS_MIN);
    for names in [2, 10, 62, 625] {
        let tries = Clockwork::tries_in(names, false, seconds);
        // A timer is armed for a whole number of milliseconds, and the last sweep may be just in
        // time.
        assert!((most * 8 / 10..=most + names).contains(&tries), "{names} names: {tries} tries");
    }
}

/// Names for which another daemon promised word cost one try every two seconds, and no timer in
/// between.
#[test]
fn the_rate_of_tries_with_promises() {
    for names in [1, 62, 625] {
        let tries = Clockwork::tries_in(names, true, 100);
        assert!((names * 49..=names * 50).contains(&tries), "{names} names: {tries} tries");
    }
}
