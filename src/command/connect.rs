//! Connecting: which servers to try, and how this process introduces itself.

use std::ffi::OsString;
use std::future::Future;

use nix::unistd::{Uid, gethostname};
use tokio::time::Instant;

use super::error::CommandError;
use super::exec::check_descriptors;
use super::options::ServerOptions;
use super::time_limit::TimeLimit;
use distrilock_client::{
    Builder, Client, ConnectError, Introduction, Server, ServerError, introduction_of_this_process,
};
use distrilock_protocol::limits::{HELLO_COMMAND_BYTES_MAX, HELLO_NAME_BYTES_MAX};

/// The descriptors that the runtime and one connection need, with some to spare.
const RUNTIME_DESCRIPTORS: usize = 10;

/// Runs one future on a runtime of this thread. The runtime is leaked: the process ends soon, and
/// the kernel cleans up faster.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, CommandError>>) -> Result<T, CommandError> {
    check_descriptors(RUNTIME_DESCRIPTORS)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = std::mem::ManuallyDrop::new(runtime.map_err(CommandError::system("start"))?);
    runtime.block_on(work)
}

/// The servers that were named, or the defaults if none were.
pub(super) fn servers_or_default(named: &[Server]) -> Result<Vec<Server>, CommandError> {
    if named.is_empty() { Ok(Server::defaults()?) } else { Ok(named.to_vec()) }
}

/// Connects, for a verb that only asks and holds nothing.
pub(super) async fn connect_to_ask(servers: &ServerOptions) -> Result<Client, CommandError> {
    connect(Client::builder(), &introduction(None, None), servers, &TimeLimit::none()).await
}

/// Connects within the time limit. A daemon too old to know everything in the introduction refuses
/// it, and gets a shorter one.
pub(super) async fn connect(
    builder: Builder,
    introduction: &Introduction,
    options: &ServerOptions,
    limit: &TimeLimit,
) -> Result<Client, CommandError> {
    let servers = servers_or_default(&options.named)?;
    let began = Instant::now();
    let within_limit = |builder: Builder| {
        let mut builder = builder;
        if let Some(time) = options.connect_timeout {
            builder = builder.connect_within(time);
        }
        let left = options.connect_timeout.map(|time| time.saturating_sub(began.elapsed()));
        match left.into_iter().chain(limit.left()).min() {
            Some(left) => builder.connect_within_in_all(left),
            None => builder,
        }
    };
    let first = within_limit(builder.clone()).introduction(introduction.clone());
    let refused = match first.connect(&servers).await {
        Err(ConnectError::Unreachable(attempts)) if attempts.iter().any(|one| is_old_daemon(&one.failure)) => attempts,
        connected => return connected.map_err(|error| CommandError::Connect { error }),
    };
    let shorter =
        Introduction { name: introduction.name.clone(), note: introduction.note.clone(), ..Introduction::default() };
    let old = refused.into_iter().filter(|one| is_old_daemon(&one.failure)).map(|one| one.server);
    let old: Vec<Server> = old.collect();
    let second = within_limit(builder).introduction(shorter);
    second.connect(&old).await.map_err(|error| CommandError::Connect { error })
}

fn is_old_daemon(failure: &ServerError) -> bool {
    matches!(failure, ServerError::Refused { word, .. } if *word == "bad_request")
}

/// Who we are, and which command we run if others may know.
pub(super) fn introduction(note: Option<&str>, command: Option<&str>) -> Introduction {
    let process = introduction_of_this_process();
    let user = process.user.clone().unwrap_or_else(|| Uid::effective().to_string());
    Introduction {
        name: Some(one_line(&format!("{user}@{}", host()), HELLO_NAME_BYTES_MAX)),
        note: note.map(str::to_owned),
        command: command.map(|command| one_line(command, HELLO_COMMAND_BYTES_MAX)),
        ..process
    }
}

/// The name of this host.
pub(super) fn host() -> String {
    gethostname().map_or_else(|_| "unknown".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The words of a command as one text.
pub(super) fn command_line(words: &[OsString]) -> String {
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

/// The text on one line, cut to at most `bytes_max` bytes.
fn one_line(text: &str, bytes_max: usize) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    while line.len() > bytes_max {
        line.pop();
    }
    line
}
