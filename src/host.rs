//! This host's name.

use nix::unistd::gethostname;

/// The host's name; `unknown` if it cannot be read.
#[must_use]
pub fn host_name() -> String {
    gethostname().map_or_else(|_| "unknown".to_owned(), |name| name.to_string_lossy().into_owned())
}
