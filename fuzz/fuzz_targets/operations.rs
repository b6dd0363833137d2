//! The engine: whatever sessions, files and timers do, its answers obey the rules. The first byte
//! determines the linger, and every three bytes after it are one step of a run. The engine's own
//! tests make the same runs.

#![no_main]

use distrilock_engine::fault::{Cause, Fault, Operation};
use distrilock_engine::{
    Answer, Asked, Config, Effect, Engine, Extent, FileOp, Input, Mode, Outcome, Pace, RequestId, SessionId, Timer,
    Want, Withdrawal,
};
use distrilock_protocol::name::LockName;
use libfuzzer_sys::fuzz_target;

#[path = "../../crates/distrilock-engine/src/tests/run.rs"]
mod run;

fuzz_target!(|bytes: &[u8]| {
    if let Some((first, rest)) = bytes.split_first() {
        run::run([first & 1 == 1, first & 2 == 2], rest.as_chunks().0.iter().copied());
    }
});
