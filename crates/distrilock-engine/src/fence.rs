//! Which fence follows which.

use crate::limits::FENCES_AHEAD;

/// Returns the next fence, and the least value that the mark must have before that fence is
/// granted.
#[must_use]
pub fn following(last: Option<u64>, mark: u64) -> (u64, u64) {
    match last {
        None => (mark + 1, mark + 1),
        Some(last) if last < mark => (last + 1, mark),
        Some(last) => (last + 1, last + FENCES_AHEAD),
    }
}
