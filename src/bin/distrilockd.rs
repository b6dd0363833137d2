//! The daemon. What it does is in the library; see `distrilock::daemon`.

use std::io;
use std::process::ExitCode;

use clap::Parser;
use distrilock::daemon;
use distrilock::doctor;
use distrilock::settings::Settings;

fn main() -> ExitCode {
    // This program may have been started by itself, for one deletion or one lock.
    if let Some(status) = doctor::run_as_helper() {
        return status;
    }
    let settings = Settings::parse();
    if settings.check {
        let findings = doctor::examine(&settings, None);
        let directory = settings.directory.as_deref();
        let told = doctor::report(directory, &findings, false, &mut io::stdout());
        return told.map_or(ExitCode::FAILURE, ExitCode::from);
    }
    match daemon::run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("distrilockd: {fault}");
            ExitCode::FAILURE
        }
    }
}
