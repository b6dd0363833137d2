//! Which signals are passed on to CMD. Somebody who signals the process that the user started means
//! CMD. But a service manager, a CI runner or a container runtime may signal every process of a
//! job, CMD among them: then CMD must not get the signal a second time from us, which many programs
//! take for "now, without cleaning up".
//!
//! The two differ in what the guard gets: in the second case it gets the signal twice, from the
//! launcher and directly. So a signal waits a moment for its echo.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;

/// How long a signal waits. A walk through a tree of processes takes some milliseconds for each.
const ECHO_TIME: Duration = Duration::from_millis(100);

/// Who sent a signal to the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Launcher,
    Elsewhere,
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

/// Whether a second one of this signal may do harm.
fn waits(signal: Signal) -> bool {
    !matches!(signal, Signal::SIGCONT | Signal::SIGWINCH | Signal::SIGTSTP)
}

impl PassingOn {
    /// A signal has arrived. Returns what is to be done at once.
    pub(super) fn received(&mut self, signal: Signal, source: Source, now: Instant) -> Option<Pass> {
        if !waits(signal) {
            return Some(Pass::On(signal));
        }
        let until = now + ECHO_TIME;
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
    use super::*;

    const SOURCES: [(Source, Source); 2] =
        [(Source::Launcher, Source::Elsewhere), (Source::Elsewhere, Source::Launcher)];

    /// A signal from both sides is not passed on, in whichever order it comes; one from a single
    /// side is, a moment later.
    #[test]
    fn echoes() {
        let now = Instant::now();
        let later = now + ECHO_TIME;
        for (first, second) in SOURCES {
            let mut passing = PassingOn::default();
            assert_eq!(passing.received(Signal::SIGTERM, first, now), None);
            assert_eq!(passing.received(Signal::SIGINT, first, now), None);
            assert_eq!(passing.received(Signal::SIGTERM, second, now), None);
            assert_eq!(passing.take_due(now), None);
            assert_eq!(passing.next_due(), Some(later));
            assert_eq!(passing.take_due(later), Some(Pass::IfMissed(Signal::SIGTERM)));
            assert_eq!(passing.take_due(later), Some(Pass::On(Signal::SIGINT)));
            assert_eq!((passing.take_due(later), passing.next_due()), (None, None));
        }
    }

    /// A signal that comes twice from the same side is passed on twice; those that do no harm do
    /// not wait.
    #[test]
    fn repeated_and_harmless_signals() {
        let now = Instant::now();
        let mut passing = PassingOn::default();
        assert_eq!(passing.received(Signal::SIGINT, Source::Launcher, now), None);
        assert_eq!(passing.received(Signal::SIGINT, Source::Launcher, now), Some(Pass::On(Signal::SIGINT)));
        assert_eq!(passing.received(Signal::SIGCONT, Source::Launcher, now), Some(Pass::On(Signal::SIGCONT)));
        assert_eq!(passing.take_due(now + ECHO_TIME), Some(Pass::On(Signal::SIGINT)));
    }
}
