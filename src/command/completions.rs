//! `distrilock completions`: what a shell needs to complete our command lines.

use clap::CommandFactory;

use super::error::CommandError;
use super::options::CommandLine;
use super::{output, status};

/// Prints the script for this shell.
pub(super) fn main(shell: clap_complete::Shell) -> Result<u8, CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), "distrilock", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(status::DONE)
}
