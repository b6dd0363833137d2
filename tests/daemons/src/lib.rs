//! Daemons for the tests and the examples in the documentation: a real one in a thread, and one
//! that follows a script.

mod real;
mod script;

pub use real::Daemon;
pub use script::{Peer, Script, Scripted, play, scripted};
