//! The steps of each file operation, without taking them: which system calls it needs, in which
//! order, and what their results mean. The daemon's `files` makes the calls; the models interleave
//! them with those of other processes.

pub mod call;
pub mod local;
pub mod nfs4;
