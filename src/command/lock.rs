//! `distrilock lock` and `try`: a lock without a command, for scripts that use our input and
//! output.

use std::io::{self, BufRead, Read};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::acquire::{AcquiredLock, acquire};
use super::connect::{block_on, connect, introduction};
use super::error::CommandError;
use super::given_signals::GivenSignals;
use super::options::{LockOptions, ServerOptions};
use super::time_limit::TimeLimit;
use super::usage_error::UsageError;
use super::{output, status};
use distrilock_client::{Client, RequestError};

/// How much of an input line is kept: more than the longest command has.
const LINE_BYTES_MAX: u64 = 64;

/// Acquires the lock, prints it, and holds it until the end of the input or a signal.
pub(super) fn main(options: &LockOptions, servers: &ServerOptions) -> Result<u8, CommandError> {
    options.acquire.check()?;
    let busy = options.acquire.busy_status();
    let ended = block_on(hold(options, servers));
    match ended {
        Err(error) if error.is_busy() && !options.acquire.verbose => Ok(busy),
        Err(error) => Ok(output::report(&error, busy)),
        done => done,
    }
}

/// `try`: the same without waiting.
pub(super) fn main_of_try(mut options: LockOptions, servers: &ServerOptions) -> Result<u8, CommandError> {
    if options.acquire.wait.is_some() {
        return Err(UsageError::TryWaits.into());
    }
    options.acquire.nonblock = true;
    main(&options, servers)
}

async fn hold(options: &LockOptions, servers: &ServerOptions) -> Result<u8, CommandError> {
    let mut signals = EndSignals::new().map_err(CommandError::system("wait for signals"))?;
    let acquired = async {
        let introduction = introduction(options.acquire.note.as_deref(), None);
        let limit = TimeLimit::new(&options.acquire, servers);
        let client = connect(Client::builder(), &introduction, servers, &limit).await?;
        acquire(client, &options.acquire, &limit).await
    };
    let lock = tokio::select! {
        number = signals.next() => return Ok(status::SIGNALLED + number),
        acquired = acquired => acquired?,
    };
    print(&to_json(&lock))?;
    let mut lines = input_lines().map_err(CommandError::system("start a thread that reads stdin"))?;
    loop {
        tokio::select! {
            biased;
            lost = lock.held.lost() => {
                // The reader of our output may be gone; the exit status still reports it.
                let _ = print(&json!({"event": "lost", "reason": lost.to_string()}));
                return Err(CommandError::Lost { server: lock.client.server().clone(), lost });
            }
            _ = signals.next() => break,
            line = lines.recv() => match line.as_deref() {
                Some("verify") => print(&verify(&lock).await?)?,
                Some("") => {}
                Some(_) => print(&json!({"error": "the only word that is understood here is verify"}))?,
                None => break,
            },
        }
    }
    let AcquiredLock { client, held } = lock;
    held.release().await.map_err(CommandError::request(&client))?;
    Ok(status::DONE)
}

/// What is held, as JSON.
fn to_json(AcquiredLock { client, held }: &AcquiredLock) -> Value {
    let locks: Vec<Value> = held
        .locks()
        .iter()
        .map(|lock| {
            let mut object = json!({"lock": lock.name.as_str()});
            if !lock.slots.is_empty() {
                object["slots"] = json!(lock.slots);
            }
            if let Some(fence) = lock.fence {
                object["fence"] = json!(fence);
            }
            object
        })
        .collect();
    json!({"held": true, "session": client.welcome().session, "server": client.server().to_string(), "locks": locks})
}

async fn verify(AcquiredLock { client, held }: &AcquiredLock) -> Result<Value, CommandError> {
    match held.verify().await {
        Ok(()) => Ok(json!({"held": true})),
        Err(RequestError::Lost(lost)) => Err(CommandError::Lost { server: client.server().clone(), lost }),
        Err(error) => Ok(json!({"held": held.valid_until().is_some(), "error": error.to_string()})),
    }
}

fn print(object: &Value) -> Result<(), CommandError> {
    output::write(&output::json_line(object)).map_err(CommandError::system("write to stdout, so the lock is released"))
}

/// The lines of stdin. A thread reads them, since a read from a terminal cannot be cancelled.
fn input_lines() -> io::Result<mpsc::Receiver<String>> {
    let (sender, lines) = mpsc::channel(1);
    let read = move || {
        let mut input = io::stdin().lock();
        while let Ok(Some(line)) = next_line(&mut input) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().spawn(read)?;
    Ok(lines)
}

/// Reads a line, and returns the beginning of one that is too long for any command: an endless line
/// takes no more memory. `None` means that the input has ended.
fn next_line(input: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    if input.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if !line.ends_with(b"\n") {
        input.skip_until(b'\n')?;
    }
    Ok(Some(String::from_utf8_lossy(&line).trim().to_owned()))
}

/// The signals that end a hold. A signal that was ignored when we started stays ignored, as
/// nohup(1) needs it.
struct EndSignals {
    interrupt: SignalStream,
    terminate: SignalStream,
    hangup: SignalStream,
}

type SignalStream = Option<tokio::signal::unix::Signal>;

impl EndSignals {
    fn new() -> io::Result<Self> {
        let given = GivenSignals::of_this_process();
        let stream = |number: Signal| match given.is_ignored(number) {
            true => Ok(None),
            false => signal(SignalKind::from_raw(number as i32)).map(Some),
        };
        Ok(Self {
            interrupt: stream(Signal::SIGINT)?,
            terminate: stream(Signal::SIGTERM)?,
            hangup: stream(Signal::SIGHUP)?,
        })
    }

    /// Waits for one of them, and returns its number.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            () = received(&mut self.interrupt) => 2,
            () = received(&mut self.terminate) => 15,
            () = received(&mut self.hangup) => 1,
        }
    }
}

async fn received(stream: &mut SignalStream) {
    match stream {
        Some(stream) => drop(stream.recv().await),
        None => std::future::pending().await,
    }
}
