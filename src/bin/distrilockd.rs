//! The daemon's program. The daemon itself is in the library: `distrilock::daemon`.

use std::io;
use std::process::ExitCode;

use clap::Parser;
use distrilock::daemon;
use distrilock::doctor;
use distrilock::settings::Settings;

fn main() -> ExitCode {
    // The daemon starts this program for single deletions and locks.
    if let Some(status) = doctor::run_as_helper() {
        return status;
    }
    let settings = Settings::parse();
    if settings.check {
        let findings = doctor::examine(&settings, None);
        let directory = settings.directory.as_deref();
        let status = doctor::report(directory, &findings, false, &mut io::stdout());
        return status.map_or(ExitCode::FAILURE, ExitCode::from);
    }
    match daemon::run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("distrilockd: {fault}");
            ExitCode::FAILURE
        }
    }
}
