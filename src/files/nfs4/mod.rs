//! Carries out file operations on NFSv4: makes the system calls for which the steps in
//! [`distrilock_engine::steps::nfs4`] ask. `executor` makes them, except for the deletion, which a
//! process of its own makes (`unlink_helper`).

mod executor;
mod unlink_helper;

pub(super) use executor::Nfs4Executor;
pub use unlink_helper::run_as_unlink_helper;
