//! Which fence follows which.

use crate::fault::Cause;
use crate::limits::{FENCES_AHEAD, MARK_MAX};

/// Returns the next fence, and the least value that the mark must have before that fence is
/// granted.
///
/// # Errors
/// If the numbers cannot be trusted: the mark is never below a fence that was granted, and no
/// daemon comes near the highest number.
pub fn following(last: Option<u64>, mark: u64) -> Result<(u64, u64), Cause> {
    match last {
        Some(last) if last > mark => Err(Cause::FenceAboveMark),
        _ if mark > MARK_MAX => Err(Cause::MarkAtEnd),
        None => Ok((mark + 1, mark + 1)),
        Some(last) if last < mark => Ok((last + 1, mark)),
        Some(last) => Ok((last + 1, last + FENCES_AHEAD)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the numbers, the fence is above the last one and not above the mark that it needs,
    /// or there is none.
    #[test]
    fn never_wraps() {
        let edges = |number: u64| (0..=2 * FENCES_AHEAD).map(move |distance| number.saturating_sub(distance));
        let marks: Vec<u64> = edges(u64::MAX).chain(edges(1 << 63)).chain(edges(2 * FENCES_AHEAD)).collect();
        for mark in &marks {
            for last in marks.iter().map(|last| Some(*last)).chain([None]) {
                match following(last, *mark) {
                    Ok((fence, needed)) => {
                        assert!(fence > last.unwrap_or(*mark), "{last:?} {mark}");
                        assert!(needed >= fence && needed >= *mark && last.is_none_or(|last| last <= *mark));
                    }
                    Err(Cause::FenceAboveMark) => assert!(last > Some(*mark)),
                    Err(cause) => assert!(cause == Cause::MarkAtEnd && *mark > MARK_MAX, "{last:?} {mark} {cause:?}"),
                }
            }
        }
    }
}
