//! What the guard reports to the launcher at the end.

use nix::sys::signal::Signal;

use super::children::Ending;
use crate::command::status;

/// How the launcher has to end, and what becomes of the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) ending: Ending,
    pub(super) guard: GuardAfterwards,
}

/// What the guard does after its report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GuardAfterwards {
    /// It ends.
    Ends,
    /// It stays in the background and keeps the lock.
    Stays,
}

impl Report {
    /// The length of a report in the pipe.
    pub(super) const BYTES: usize = 3;

    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let stays = u8::from(self.guard == GuardAfterwards::Stays);
        match self.ending {
            Ending::Status(status) => [b'e', status, stays],
            Ending::Signal(signal) => [b's', u8::try_from(signal as i32).expect("signals are below 32"), stays],
        }
    }

    pub(super) fn from_bytes([kind, number, stays]: [u8; Self::BYTES]) -> Self {
        let ending = match Signal::try_from(i32::from(number)) {
            Ok(signal) if kind == b's' => Ending::Signal(signal),
            Err(_) if kind == b's' => Ending::Status(status::SYSTEM),
            _ => Ending::Status(number),
        };
        Self { ending, guard: if stays == 0 { GuardAfterwards::Ends } else { GuardAfterwards::Stays } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report survives the pipe unchanged.
    #[test]
    fn through_the_pipe() {
        for ending in [Ending::Status(0), Ending::Status(255), Ending::Signal(Signal::SIGINT)] {
            for guard in [GuardAfterwards::Ends, GuardAfterwards::Stays] {
                let report = Report { ending, guard };
                assert_eq!(Report::from_bytes(report.to_bytes()), report);
            }
        }
    }
}
