//! Which signals are passed on to CMD. Somebody who signals the process that the user started means
//! CMD. But a service manager, a CI runner or a container runtime may signal every process of a
//! job, CMD among them: then CMD must not get the signal a second time from us, which many programs
//! take for "now, without cleaning up".
//!
//! The two differ in what the guard gets: in the second case it gets the signal twice, from the
//! launcher and directly. So a signal waits a moment for its echo, for as long as its sender may
//! take to get from one process to the next.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;

use super::process_list;
use crate::command::signals::ReceivedSignal;

/// Who sent a signal to the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Launcher,
    Elsewhere,
}

/// How long after a signal its echo may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EchoTime {
    /// There is none: a key at the terminal is for a single process group. Or it does no harm.
    None,
    /// The sender has not started us, so it was told which processes it should signal, and signals
    /// them one right after the other: kill(1), or pkill(1).
    Short,
    /// A process that started a job may end it by walking through the tree of its processes, with
    /// some milliseconds for each.
    Long,
}

impl EchoTime {
    pub(super) fn of(received: ReceivedSignal) -> Self {
        if received.by_kernel || !harms_if_repeated(received.signal) {
            return Self::None;
        }
        // A sender outside of this PID namespace has no number here, and may have started us.
        let outside = received.sender.as_raw() == 0;
        match !outside && process_list::is_ancestor(received.sender) == Some(false) {
            true => Self::Short,
            false => Self::Long,
        }
    }

    fn duration(self) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Short => Duration::from_millis(20),
            Self::Long => Duration::from_millis(100),
        }
    }

    /// The signal with its time as a byte, for the pipe between launcher and guard.
    pub(super) fn to_byte(self, signal: Signal) -> u8 {
        let number = u8::try_from(signal as i32).expect("signals are below 32");
        number | (self as u8) << 5
    }

    /// Reads what [`EchoTime::to_byte`] wrote.
    pub(super) fn from_byte(byte: u8) -> Option<(Signal, Self)> {
        let time = [Self::None, Self::Short, Self::Long].into_iter().find(|time| *time as u8 == byte >> 5)?;
        Some((Signal::try_from(i32::from(byte & 31)).ok()?, time))
    }
}

/// What is to be done about a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// CMD has to get it.
    On(Signal),
    /// CMD has got it, unless it lives on without a handler for it.
    IfMissed(Signal),
}

/// The signals that wait for their echo.
#[derive(Debug, Default)]
pub(super) struct PassingOn(Vec<Waiting>);

#[derive(Debug)]
struct Waiting {
    signal: Signal,
    source: Source,
    echoed: bool,
    until: Instant,
}

fn harms_if_repeated(signal: Signal) -> bool {
    use Signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    matches!(signal, SIGINT | SIGTERM | SIGHUP | SIGQUIT | SIGUSR1 | SIGUSR2)
}

impl PassingOn {
    /// A signal has arrived. Returns what is to be done at once.
    pub(super) fn received(&mut self, signal: Signal, source: Source, time: EchoTime, now: Instant) -> Option<Pass> {
        if time == EchoTime::None {
            return Some(Pass::On(signal));
        }
        let until = now + time.duration();
        match self.0.iter_mut().find(|waiting| waiting.signal == signal) {
            Some(waiting) if waiting.source != source => {
                waiting.echoed = true;
                None
            }
            // The next one before the first has waited long enough. An echo of the first may still
            // come; it is treated as one of the second.
            Some(waiting) => {
                let before = std::mem::replace(waiting, Waiting { signal, source, echoed: false, until });
                Some(if before.echoed { Pass::IfMissed(signal) } else { Pass::On(signal) })
            }
            None => {
                self.0.push(Waiting { signal, source, echoed: false, until });
                None
            }
        }
    }

    /// When the next signal has waited long enough.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.0.iter().map(|waiting| waiting.until).min()
    }

    /// Takes a signal that has waited long enough.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Pass> {
        let due = self.0.iter().position(|waiting| waiting.until <= now)?;
        let Waiting { signal, echoed, .. } = self.0.remove(due);
        Some(if echoed { Pass::IfMissed(signal) } else { Pass::On(signal) })
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::{Pid, getppid};

    use super::*;

    const SOURCES: [(Source, Source); 2] =
        [(Source::Launcher, Source::Elsewhere), (Source::Elsewhere, Source::Launcher)];

    /// A signal from both sides is not passed on, in whichever order it comes; one from a single
    /// side is, a moment later, which depends on its sender.
    #[test]
    fn echoes() {
        let now = Instant::now();
        let (soon, later) = (now + EchoTime::Short.duration(), now + EchoTime::Long.duration());
        for (first, second) in SOURCES {
            let mut passing = PassingOn::default();
            assert_eq!(passing.received(Signal::SIGTERM, first, EchoTime::Long, now), None);
            assert_eq!(passing.received(Signal::SIGINT, first, EchoTime::Short, now), None);
            assert_eq!(passing.received(Signal::SIGTERM, second, EchoTime::Long, now), None);
            assert_eq!(passing.take_due(now), None);
            assert_eq!(passing.next_due(), Some(soon));
            assert_eq!(passing.take_due(soon), Some(Pass::On(Signal::SIGINT)));
            assert_eq!((passing.take_due(soon), passing.next_due()), (None, Some(later)));
            assert_eq!(passing.take_due(later), Some(Pass::IfMissed(Signal::SIGTERM)));
            assert_eq!((passing.take_due(later), passing.next_due()), (None, None));
        }
    }

    /// A signal that comes twice from the same side is passed on twice; those without an echo do
    /// not wait.
    #[test]
    fn repeated_and_harmless_signals() {
        let now = Instant::now();
        let mut passing = PassingOn::default();
        let mut received = |signal, time| passing.received(signal, Source::Launcher, time, now);
        assert_eq!(received(Signal::SIGINT, EchoTime::Long), None);
        assert_eq!(received(Signal::SIGINT, EchoTime::Long), Some(Pass::On(Signal::SIGINT)));
        assert_eq!(received(Signal::SIGHUP, EchoTime::None), Some(Pass::On(Signal::SIGHUP)));
        assert_eq!(passing.take_due(now + EchoTime::Long.duration()), Some(Pass::On(Signal::SIGINT)));
    }

    /// A key has no echo, nor has a signal that does no harm. An ancestor may take its time, and so
    /// may a sender that cannot be seen; any other does not.
    #[test]
    fn senders() {
        let time = |signal, sender, by_kernel| EchoTime::of(ReceivedSignal { signal, sender, by_kernel });
        assert_eq!(time(Signal::SIGINT, Pid::from_raw(0), true), EchoTime::None);
        assert_eq!(time(Signal::SIGWINCH, getppid(), false), EchoTime::None);
        assert_eq!(time(Signal::SIGTERM, getppid(), false), EchoTime::Long);
        assert_eq!(time(Signal::SIGTERM, Pid::from_raw(0), false), EchoTime::Long);
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        assert_eq!(time(Signal::SIGTERM, Pid::from_raw(child.id().cast_signed()), false), EchoTime::Short);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Every signal and time survives the pipe.
    #[test]
    fn bytes() {
        for signal in Signal::iterator() {
            for time in [EchoTime::None, EchoTime::Short, EchoTime::Long] {
                assert_eq!(EchoTime::from_byte(time.to_byte(signal)), Some((signal, time)));
            }
        }
        assert_eq!((EchoTime::from_byte(0), EchoTime::from_byte(255)), (None, None));
    }
}
