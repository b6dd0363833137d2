//! The steps of each file operation, without making them: which system calls it takes, in which order, and what comes of the
//! answers. The daemon's `files` makes the calls; the models interleave them with those of other processes.

pub mod local;
pub mod nfs4;
