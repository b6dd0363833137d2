//! What the guard tells the front at the end: how it has to end.

use nix::sys::signal::Signal;

use crate::command::status;

/// A report: how to end, and whether the guard stays behind, to keep the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) end: End,
    pub(super) guard_stays: bool,
}

/// How `distrilock run` ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With this exit status.
    Status(u8),
    /// By this signal.
    Signal(Signal),
}

impl Report {
    pub(super) const BYTES: usize = 3;

    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let stays = u8::from(self.guard_stays);
        match self.end {
            End::Status(status) => [b'e', status, stays],
            End::Signal(signal) => [b's', u8::try_from(signal as i32).expect("signals are below 32"), stays],
        }
    }

    pub(super) fn of_bytes([kind, number, stays]: [u8; Self::BYTES]) -> Self {
        let end = match Signal::try_from(i32::from(number)) {
            Ok(signal) if kind == b's' => End::Signal(signal),
            Err(_) if kind == b's' => End::Status(status::SYSTEM),
            _ => End::Status(number),
        };
        Self { end, guard_stays: stays != 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report comes through the pipe as it was.
    #[test]
    fn through_the_pipe() {
        for end in [End::Status(0), End::Status(255), End::Signal(Signal::SIGINT)] {
            for guard_stays in [false, true] {
                let report = Report { end, guard_stays };
                assert_eq!(Report::of_bytes(report.to_bytes()), report);
            }
        }
    }
}
