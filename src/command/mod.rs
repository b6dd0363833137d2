//! The command, `distrilock`: what users put before their own commands. Everything that it knows of locks it has from
//! [`client`](crate::client); what is decided here is the life of processes, and what people read.
//!
//! - `options` is the command line, `values` what stands behind an option, `status` how it all ends.
//! - `run` runs a command under a lock; docs/decisions/0015 tells of its processes.
//! - `say` writes, and lets nothing of others through to the terminal.

mod bench;
mod contradiction;
mod fence;
mod hold;
mod inherit;
mod look;
mod options;
mod pages;
mod run;
mod say;
mod session;
mod status;
mod storage;
mod trouble;
mod values;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use crate::doctor;
use options::{CommandLine, Verb};
use trouble::Trouble;

/// The program that this process runs, whatever became of its path.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    // The doctor and the collector start this program again, for one lock or one deletion.
    if let Some(status) = doctor::run_as_helper() {
        return status;
    }
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match arguments.get(1).and_then(|word| word.to_str()) {
        Some(run::START) => ExitCode::from(run::start(&arguments[2..])),
        Some(run::GUARD) => ExitCode::from(run::guard(&arguments[2..])),
        _ => match CommandLine::try_parse_from(&arguments) {
            Ok(line) => done(line, &arguments),
            Err(error) => refuse(&error),
        },
    }
}

/// Prints help, or what is wrong with the command line. clap's own status for the latter is 2.
fn refuse(error: &clap::Error) -> ExitCode {
    // Nobody may be there to read it.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { status::USAGE } else { status::DONE })
}

fn done(line: CommandLine, arguments: &[OsString]) -> ExitCode {
    let servers = &line.servers;
    let ended = match line.verb {
        Verb::Run(options) => return run::main(&options, servers, &arguments[1..]),
        Verb::Lock(options) => hold::main(&options, servers),
        Verb::Try(options) => hold::try_main(options, servers),
        Verb::Verify(options) => verify::main(&options),
        Verb::Peek(options) => look::peek(&options, servers),
        Verb::Ls(options) => look::ls(&options, servers),
        Verb::Wait(options) => look::wait(&options, servers),
        Verb::Ping => look::ping(servers),
        Verb::Fence(options) => fence::main(&options),
        Verb::Bench(options) => bench::main(&options, servers),
        Verb::Doctor(options) => storage::doctor(&options),
        Verb::Gc(options) => storage::gc(options),
        Verb::Completions { shell } => pages::completions(shell),
        Verb::Man { directory } => pages::man(&directory),
    };
    ExitCode::from(ended.unwrap_or_else(|trouble: Trouble| trouble.tell(status::BUSY)))
}
