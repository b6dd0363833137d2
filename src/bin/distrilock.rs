//! The command. What it does is in the library; see `distrilock::command`.

use std::process::ExitCode;

fn main() -> ExitCode {
    distrilock::command::main()
}
