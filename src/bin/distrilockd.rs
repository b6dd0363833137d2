//! The daemon. What it does is in the library; see `distrilock::server`.

use std::process::ExitCode;

use clap::Parser;
use distrilock::files::nfs4;
use distrilock::server;
use distrilock::settings::Settings;

fn main() -> ExitCode {
    if let Some(status) = nfs4::take_over() {
        return status;
    }
    match server::run(Settings::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("distrilockd: {fault}");
            ExitCode::FAILURE
        }
    }
}
