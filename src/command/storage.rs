//! What looks at a lock directory instead of a daemon: the doctor and the collector.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::trouble::Trouble;
use super::{say, status, values};
use crate::doctor;
use crate::settings::Settings;

/// A lock directory to be examined.
#[derive(Args, Debug)]
pub(super) struct Doctor {
    /// The lock directory. Default: that of a daemon which is told none
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,

    /// Find out whether this host and the daemon of another one exclude each other, as in host2:40800
    #[arg(long, value_name = "ADDR")]
    peer: Option<String>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A lock directory to be cleaned.
#[derive(Args, Debug)]
pub(super) struct Gc {
    /// The lock directory
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// Leave files that were made, or marked for deletion, less than this time ago
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = values::time)]
    idle: Duration,

    /// Delete nothing: tell what would be tried
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// Examines a lock directory.
pub(super) fn doctor(options: &Doctor) -> Result<u8, Trouble> {
    let settings = Settings::for_directory(options.directory.clone());
    let findings = doctor::examine(&settings, options.peer.as_deref());
    let mut report = Vec::new();
    let directory = options.directory.as_deref();
    let found =
        doctor::report(directory, &findings, options.json, &mut report).map_err(Trouble::system("write a report"))?;
    say::out(&String::from_utf8_lossy(&report)).map_err(Trouble::system("write to stdout"))?;
    Ok(found)
}

/// Deletes lock files that nobody uses.
pub(super) fn gc(options: Gc) -> Result<u8, Trouble> {
    let told = doctor::collect(options.directory, options.idle, options.dry_run)?;
    say::out(&told).map_err(Trouble::system("write to stdout"))?;
    Ok(status::DONE)
}
