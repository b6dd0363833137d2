//! Completions and man pages, made of the same command line that --help prints.

use std::fs;
use std::path::Path;

use clap::CommandFactory;
use clap_mangen::Man;

use super::options::CommandLine;
use super::trouble::Trouble;
use super::{say, status};
use crate::settings::Settings;

/// Prints what a shell needs to complete our command lines.
pub(super) fn completions(shell: clap_complete::Shell) -> Result<u8, Trouble> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), "distrilock", &mut script);
    say::out(&String::from_utf8_lossy(&script)).map_err(Trouble::system("write to stdout"))?;
    Ok(status::DONE)
}

/// Writes distrilock.1, a page for each verb, and distrilockd.8.
pub(super) fn man(directory: &Path) -> Result<u8, Trouble> {
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

fn write(directory: &Path, name: &str, man: &Man) -> Result<(), Trouble> {
    let path = directory.join(name);
    let failed = |error| Trouble::File { what: "write", path: path.display().to_string(), error };
    let mut page = Vec::new();
    man.render(&mut page).map_err(failed)?;
    fs::write(&path, page).map_err(failed)
}
