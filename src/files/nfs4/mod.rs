//! What carries out the steps of [`nfs4`](distrilock_engine::steps::nfs4): `hand` makes the calls, `mortal` the one that deletes.

mod hand;
mod mortal;

pub(super) use hand::Hand;
pub use mortal::take_over;
