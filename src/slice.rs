//! [`TimeSlice`]: work of unknown length is done in pieces, so that others have their turn in
//! between.

use std::time::{Duration, Instant};

use crate::limits::SLICE_US;

/// The time for a piece of work, which consists of steps. The clock is first read after the first
/// step: a piece of one step, as most are, costs nothing.
#[derive(Debug)]
pub struct TimeSlice {
    ends: Option<Instant>,
    is_bounded: bool,
}

impl TimeSlice {
    /// A piece of work begins.
    #[must_use]
    pub fn begin() -> Self {
        Self { ends: None, is_bounded: true }
    }

    /// All of the work has to be done at once: nobody is served meanwhile.
    #[must_use]
    pub fn endless() -> Self {
        Self { ends: None, is_bounded: false }
    }

    /// The time is over after each step.
    #[cfg(test)]
    pub(crate) fn over() -> Self {
        Self { ends: Some(Instant::now()), is_bounded: true }
    }

    /// A step is done. Returns whether the next one has to wait until others have had their turn.
    pub fn is_over(&mut self) -> bool {
        if !self.is_bounded {
            return false;
        }
        let now = Instant::now();
        now >= *self.ends.get_or_insert(now + Duration::from_micros(SLICE_US))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A slice begins with its first step's end, and ends after its time. One without bounds never
    /// ends.
    #[test]
    fn ends() {
        let (mut slice, mut endless) = (TimeSlice::begin(), TimeSlice::endless());
        assert!(!slice.is_over() && !endless.is_over());
        std::thread::sleep(Duration::from_micros(SLICE_US));
        assert!(slice.is_over() && slice.is_over() && !endless.is_over());
    }
}
