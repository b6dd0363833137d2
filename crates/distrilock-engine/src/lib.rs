//! The lock engine: it decides who holds a name. It has no I/O, no clock, no random numbers and no
//! locks of its own; it takes an [`Input`], queues [`Effect`]s, and is `Clone + Eq + Hash`, so that
//! a model checker can walk it (`model`).
//!
//! One [`Engine`] is a shard: the names that hash to it, each with one `Record`. Every input
//! updates facts and then calls `settle`, the only place that starts a file operation. A file
//! operation is a request with a completion ([`Input::Done`]); the open file `F` travels with it,
//! so that a second operation on the same name cannot even be written.
//!
//! `engine` takes the inputs; `record` and `state` have the facts of one name, `next` decides what
//! comes next for it, and `done` what a completed operation changes. [`steps`] has the system calls
//! of each file operation. [`deadlock`] finds sessions that keep each other waiting.
//!
//! The invariants, cited by number here and in `check`:
//!
//! - **I1** A name has one exclusive holder, or any number of shared ones, or holders of different
//!   slots of one number, or none.
//! - **I2** A session holds a name through a locked file: a name with holders has its file locked
//!   in their mode, or a probe in flight.
//! - **I3** A grant directly follows a completed try or probe: nothing is granted on the strength
//!   of an old answer.
//! - **I4** At most one file operation of a name is in flight.
//! - **I5** First come, first served: no waiter is granted while an earlier one is not, except that
//!   neighbouring shared ones enter together.
//! - **I6** Every request is answered exactly once, unless its session left.
//! - **I7** Nobody waits for nothing: a name at rest with waiters has holders in their way, or is
//!   contended and a timer for its next try is armed, or yields and its turn timer is armed.
//! - **I8** A session has at most one waiting request per name (the session layer refuses a second
//!   one).
//! - **I9** A release is answered when the lock is free or has passed to the next holder, never
//!   before.
//! - **I10** A name without file, holders, waiters and open questions has no record; an idle file
//!   is in the linger queue.

mod check;
mod claim;
mod contention;
mod context;
pub mod deadlock;
mod done;
mod engine;
pub mod fault;
pub mod fence;
mod hand_over;
pub mod limits;
mod line;
mod message;
#[cfg(test)]
mod model;
mod next;
mod record;
mod state;
pub mod steps;
#[cfg(test)]
mod tests;
mod waiters;

pub use claim::{Claim, View};
pub use contention::Pace;
pub use distrilock_protocol::ids::{RequestId, SessionId};
pub use distrilock_protocol::want::{Extent, Mode, Want};
pub use engine::{Config, Engine};
pub use hand_over::{Handed, HandedWaiter};
pub use message::{Answer, Asked, Effect, FileOp, HoldEnd, Input, Outcome, Past, Timer, WaitEnd, Withdrawal};
