//! `-F`: this process becomes CMD and keeps the connection open, so that the lock lives as long as any process that inherits it,
//! as a descriptor does under flock(1). Nobody is left who could send heartbeats, learn of a loss, or end CMD.

use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use super::{VARIABLES, start, variables};
use crate::command::options::Run;
use crate::command::trouble::Trouble;
use crate::command::{inherit, session};
use distrilock_client::{Client, Server};

/// The variable that names the descriptor.
pub(in crate::command) const DESCRIPTOR: &str = "DISTRILOCK_FD";

/// Takes the lock and becomes CMD. Returns only if that fails.
pub(super) fn main(options: &Run, words: &[OsString], servers: &[Server]) -> Result<ExitCode, Trouble> {
    let taken = session::block_on(async {
        session::jitter(options.jitter).await;
        let told = (!options.no_argv).then(|| session::line_of(words));
        let who = session::introduction(options.asking.note.as_deref(), told.as_deref());
        let client = session::connect(Client::builder(), &who, servers).await?;
        let held = session::acquire(&client, &options.asking, &options.names).await?;
        let connection = client.connection();
        let passed_on = inherit::leave_open(connection).and_then(|()| inherit::let_wait(connection));
        passed_on.map_err(Trouble::system("pass on the connection"))?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        for name in VARIABLES {
            command.env_remove(name);
        }
        command.envs(variables(&client.welcome().session, &held));
        command.env(DESCRIPTOR, connection.as_raw_fd().to_string());
        if options.no_stdin {
            command.stdin(Stdio::null());
        }
        // Within the runtime, whose end would close the connection.
        Ok(start::not_run(&words[0], &command.exec()))
    });
    match taken {
        Ok(status) => Ok(ExitCode::from(status)),
        Err(trouble) if trouble.is_busy() && !options.asking.verbose => Ok(ExitCode::from(options.busy_status())),
        Err(trouble) => Err(trouble),
    }
}
