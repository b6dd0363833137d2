//! What the guard tells the front at the end: how it has to end.

use nix::sys::signal::Signal;

use crate::command::status;

/// How `distrilock run` ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// With this exit status.
    Status(u8),
    /// By this signal.
    Signal(Signal),
}

impl Report {
    pub(super) const BYTES: usize = 2;

    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        match self {
            Self::Status(status) => [b'e', status],
            Self::Signal(signal) => [b's', u8::try_from(signal as i32).expect("signals are below 32")],
        }
    }

    pub(super) fn of_bytes([kind, number]: [u8; Self::BYTES]) -> Self {
        match Signal::try_from(i32::from(number)) {
            Ok(signal) if kind == b's' => Self::Signal(signal),
            Err(_) if kind == b's' => Self::Status(status::SYSTEM),
            _ => Self::Status(number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report comes through the pipe as it was.
    #[test]
    fn through_the_pipe() {
        for report in [Report::Status(0), Report::Status(255), Report::Signal(Signal::SIGINT)] {
            assert_eq!(Report::of_bytes(report.to_bytes()), report);
        }
    }
}
