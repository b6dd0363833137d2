//! The controlling terminal and which process group has it: what reads from it, and what Ctrl-C and Ctrl-Z reach.

use std::fs::File;

use nix::unistd::{Pid, tcgetpgrp, tcsetpgrp};

/// The controlling terminal.
pub(super) struct Terminal(File);

impl Terminal {
    /// The terminal of this session, if it has one (tty(4)).
    pub(super) fn open() -> Option<Self> {
        File::open("/dev/tty").ok().map(Self)
    }

    /// Whether this process group has the terminal.
    pub(super) fn belongs_to(&self, group: Pid) -> bool {
        tcgetpgrp(&self.0) == Ok(group)
    }

    /// Gives the terminal to a process group. Whoever calls has SIGTTOU blocked, else it would stop (tcsetpgrp(3)).
    pub(super) fn give_to(&self, group: Pid) {
        // The group can have ended just now: then the next process that cares takes the terminal.
        let _ = tcsetpgrp(&self.0, group);
    }
}
