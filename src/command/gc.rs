//! `distrilock gc`: deletes the unused lock files in a directory.

use super::error::CommandError;
use super::options::GcOptions;
use super::{output, status};
use crate::doctor;

/// Collects, and prints what was deleted or would be.
pub(super) fn main(options: GcOptions) -> Result<u8, CommandError> {
    let report = doctor::collect(options.directory, options.idle, options.dry_run)?;
    output::print(&report)?;
    Ok(status::DONE)
}
