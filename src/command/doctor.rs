//! `distrilock doctor`: examines a lock directory.

use super::error::CommandError;
use super::options::DoctorOptions;
use super::output;
use crate::doctor;
use crate::settings::Settings;

/// Prints the findings. The status is the doctor's own.
pub(super) fn main(options: &DoctorOptions) -> Result<u8, CommandError> {
    let settings = Settings::for_directory(options.directory.clone());
    let findings = doctor::examine(&settings, options.peer.as_deref());
    let mut report = Vec::new();
    let directory = options.directory.as_deref();
    let status = doctor::report(directory, &findings, options.json, &mut report)
        .map_err(CommandError::system("write a report"))?;
    output::print(&String::from_utf8_lossy(&report))?;
    Ok(status)
}
