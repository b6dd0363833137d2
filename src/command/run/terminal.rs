//! The controlling terminal, and which process group has it: that group reads from it and gets
//! Ctrl-C and Ctrl-Z.

use std::fs::File;

use nix::unistd::{Pid, tcgetpgrp, tcsetpgrp};

/// Whether a job has the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    Foreground,
    Background,
}

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

    /// Gives the terminal to a process group. The caller must have blocked SIGTTOU, which would
    /// stop it (tcsetpgrp(3)).
    pub(super) fn give_to(&self, group: Pid) {
        // The group may just have ended. Then the next process that cares takes the terminal.
        let _ = tcsetpgrp(&self.0, group);
    }
}
