//! The target by which the log knows events of the history.

/// They have a level of their own: the daemon logs them or does not, whatever the log's level is.
pub const HISTORY_TARGET: &str = "distrilock_history";
