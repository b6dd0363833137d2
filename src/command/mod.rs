//! The command, `distrilock`: what users put before their own commands. All it knows about locks
//! comes from [`distrilock_client`]; this module decides about processes and about what people
//! read.
//!
//! - A module for each verb: `run`, `lock` (and `try`), `verify`, `peek` (and `who`), `ls`, `wait`,
//!   `ping`, `fence`, `bench`, `doctor`, `gc`, `history`, `completions`, `man`.
//! - `options` is the command line, and `values` the types of its values.
//! - `connect` and `acquire` get from options to a held lock within a `time_limit`; `sessions`
//!   shows the sessions of others.
//! - `environment` and `guard_socket` are what a command that runs under a lock finds: variables,
//!   and whom to ask.
//! - `paths` resolves the paths that users name.
//! - `output` prints, and escapes what others wrote. `error`, `usage_error` and `verify_error` are
//!   the errors; `status` the exit statuses.
//! - `exec`, `signals` and `given_signals` deal with the kernel.
//!
//! Verbs are at the top and do not use each other; `error`, `values` and the like are at the
//! bottom.

mod acquire;
mod bench;
mod completions;
mod connect;
mod doctor;
mod environment;
mod error;
mod exec;
mod fence;
mod gc;
mod given_signals;
mod guard_socket;
mod history;
mod lock;
mod ls;
mod man;
mod options;
mod output;
mod paths;
mod peek;
mod ping;
mod run;
mod sessions;
mod signals;
mod status;
mod time_limit;
mod usage_error;
mod values;
mod verify;
mod verify_error;
mod wait;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use options::{CommandLine, Verb};

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    if let Err(errno) = given_signals::begin() {
        output::message(&format!("cannot block a signal: {errno}"));
        return ExitCode::from(status::SYSTEM);
    }
    // The doctor and the collector start this program again, for one lock or one deletion.
    if let Some(status) = crate::doctor::run_as_helper() {
        return status;
    }
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match arguments.get(1).and_then(|word| word.to_str()) {
        Some(run::EXEC_SHIM_WORD) => ExitCode::from(run::exec_shim_main(&arguments[2..])),
        Some(run::GUARD_WORD) => ExitCode::from(run::guard_main(&arguments[2..])),
        _ => match CommandLine::try_parse_from(&arguments) {
            Ok(line) => dispatch(line, &arguments),
            Err(error) => print_help_or_error(&error),
        },
    }
}

/// Prints help, or what is wrong with the command line. For the latter, clap's own status would be
/// 2.
fn print_help_or_error(error: &clap::Error) -> ExitCode {
    // Nobody may be there to read it.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { status::USAGE } else { status::DONE })
}

fn dispatch(line: CommandLine, arguments: &[OsString]) -> ExitCode {
    let servers = &line.servers;
    let ended = match line.verb {
        Verb::Run(options) => return run::main(&options, servers, &arguments[1..]),
        Verb::Lock(options) => lock::main(&options, servers),
        Verb::Try(options) => lock::main_of_try(options, servers),
        Verb::Verify(options) => verify::main(&options),
        Verb::Peek(options) => peek::main(&options, servers),
        Verb::Who(options) => peek::main_of_who(&options, servers),
        Verb::Ls(options) => ls::main(&options, servers),
        Verb::Wait(options) => wait::main(&options, servers),
        Verb::Ping => ping::main(servers),
        Verb::Fence(options) => fence::main(&options),
        Verb::Bench(options) => bench::main(&options, servers),
        Verb::Doctor(options) => doctor::main(&options),
        Verb::Gc(options) => gc::main(options),
        Verb::History(options) => history::main(&options),
        Verb::Completions { shell } => completions::main(shell),
        Verb::Man { directory } => man::main(&directory),
    };
    ExitCode::from(ended.unwrap_or_else(|error| output::report(&error, status::BUSY)))
}
