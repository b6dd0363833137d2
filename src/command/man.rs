//! `distrilock man`: man pages, generated from the same command line that --help prints.

use std::fs;
use std::path::Path;

use clap::CommandFactory;
use clap_mangen::Man;

use super::error::CommandError;
use super::options::CommandLine;
use super::status;
use crate::settings::Settings;

/// Writes distrilock.1, a page for each verb, and distrilockd.8.
pub(super) fn main(directory: &Path) -> Result<u8, CommandError> {
    let mut line = CommandLine::command().disable_help_subcommand(true);
    line.build();
    write(directory, "distrilock.1", &Man::new(line.clone()))?;
    for verb in line.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let name = format!("distrilock-{}", verb.get_name());
        write(directory, &format!("{name}.1"), &Man::new(verb.clone()))?;
    }
    write(directory, "distrilockd.8", &Man::new(Settings::command()).section("8"))?;
    Ok(status::DONE)
}

fn write(directory: &Path, name: &str, man: &Man) -> Result<(), CommandError> {
    let path = directory.join(name);
    let failed = |error| CommandError::File { what: "write", path: path.display().to_string(), error };
    let mut page = Vec::new();
    man.render(&mut page).map_err(failed)?;
    fs::write(&path, page).map_err(failed)
}
