//! `-F`: this process becomes CMD and leaves the connection open, so that the lock lasts as long as
//! any process that inherits it, like a descriptor under flock(1). No process is left to send
//! heartbeats, to notice a loss, or to end CMD.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::process::{Command, ExitCode};

use nix::unistd::dup2_stdin;

use super::random::jitter;
use crate::command::acquire::acquire;
use crate::command::connect::{block_on, command_line, connect, introduction};
use crate::command::environment::{DESCRIPTOR, LockEnvironment};
use crate::command::error::CommandError;
use crate::command::exec::{become_program, make_blocking, make_inheritable, report_not_run};
use crate::command::given_signals::GivenSignals;
use crate::command::options::{RunOptions, ServerOptions};
use crate::command::time_limit::TimeLimit;
use distrilock_client::Client;

/// Acquires the lock and becomes CMD. Returns only if that fails.
pub(super) fn main(
    options: &RunOptions,
    words: &[OsString],
    servers: &ServerOptions,
) -> Result<ExitCode, CommandError> {
    let not_run = block_on(async {
        jitter(options.jitter).await;
        let shown_command = (!options.no_argv).then(|| command_line(words));
        let introduction = introduction(options.acquire.note.as_deref(), shown_command.as_deref());
        let limit = TimeLimit::new(&options.acquire, servers);
        let client = connect(Client::builder(), &introduction, servers, &limit).await?;
        let lock = acquire(client, &options.acquire, &limit).await?;
        let connection = lock.client.connection();
        make_inheritable(connection)
            .and_then(|()| make_blocking(connection))
            .map_err(CommandError::system("pass on the connection"))?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        LockEnvironment::held(&lock.client, &lock.held)
            .with(DESCRIPTOR, connection.as_raw_fd().to_string())
            .apply(&mut command);
        if options.no_stdin {
            empty_stdin().map_err(CommandError::system("open /dev/null"))?;
        }
        // This happens inside the runtime, since its end would close the connection.
        Ok(report_not_run(&words[0], &become_program(&mut command, GivenSignals::of_this_process())))
    });
    match not_run {
        Ok(status) => Ok(ExitCode::from(status)),
        Err(error) if error.is_busy() && !options.acquire.verbose => Ok(ExitCode::from(options.busy_status())),
        Err(error) => Err(error),
    }
}

fn empty_stdin() -> io::Result<()> {
    Ok(dup2_stdin(File::open("/dev/null")?)?)
}
