//! `distrilock lock` and `try`: a lock without a command, for scripts that talk to us through our streams.

use std::io::{BufRead, Read};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::contradiction::Contradiction;
use super::options::Hold;
use super::run::is_ignored;
use super::trouble::Trouble;
use super::{say, session, status};
use distrilock_client::{Client, Held, RequestError, Server};

/// What is read of a line: more than the longest word that is understood.
const LINE_BYTES_MAX: u64 = 64;

/// Takes the lock, prints it, and holds it until the end of the input or a signal.
pub(super) fn main(options: &Hold, servers: &[Server]) -> Result<u8, Trouble> {
    options.asking.check(&options.names)?;
    let busy = options.asking.busy_status();
    let ended = session::block_on(hold(options, servers));
    match ended {
        Err(trouble) if trouble.is_busy() && !options.asking.verbose => Ok(busy),
        Err(trouble) => Ok(trouble.tell(busy)),
        done => done,
    }
}

/// Like `main`, but without waiting.
pub(super) fn try_main(mut options: Hold, servers: &[Server]) -> Result<u8, Trouble> {
    if options.asking.wait.is_some() {
        return Err(Contradiction::TryWaits.into());
    }
    options.asking.nonblock = true;
    main(&options, servers)
}

async fn hold(options: &Hold, servers: &[Server]) -> Result<u8, Trouble> {
    let mut signals = Signals::new().map_err(Trouble::system("wait for signals"))?;
    let taken = async {
        let who = session::introduction(options.asking.note.as_deref(), None);
        let client = session::connect(Client::builder(), &who, servers).await?;
        let held = session::acquire(&client, &options.asking, &options.names).await?;
        Ok::<_, Trouble>((client, held))
    };
    let (client, held) = tokio::select! {
        number = signals.next() => return Ok(status::SIGNALLED + number),
        taken = taken => taken?,
    };
    print(&described(&client, &held))?;
    let mut lines = lines_of_input();
    loop {
        tokio::select! {
            biased;
            lost = held.lost() => {
                // Whoever reads our output may read it; what counts is the status.
                let _ = print(&json!({"event": "lost", "reason": lost.to_string()}));
                return Err(Trouble::Lost { server: client.server().clone(), lost });
            }
            _ = signals.next() => break,
            line = lines.recv() => match line.as_deref() {
                Some("verify") => print(&verified(&client, &held).await?)?,
                Some("") => {}
                Some(_) => print(&json!({"error": "the only word that is understood here is verify"}))?,
                None => break,
            },
        }
    }
    held.release().await.map_err(|error| Trouble::Request { server: client.server().clone(), error })?;
    Ok(status::DONE)
}

/// What is held, as JSON.
fn described(client: &Client, held: &Held) -> Value {
    let locks: Vec<Value> = held
        .locks()
        .iter()
        .map(|lock| {
            let mut described = json!({"lock": lock.name.as_str()});
            if !lock.slots.is_empty() {
                described["slots"] = json!(lock.slots);
            }
            if let Some(fence) = lock.fence {
                described["fence"] = json!(fence);
            }
            described
        })
        .collect();
    json!({"held": true, "session": client.welcome().session, "server": client.server().to_string(), "locks": locks})
}

async fn verified(client: &Client, held: &Held) -> Result<Value, Trouble> {
    match held.verify().await {
        Ok(()) => Ok(json!({"held": true})),
        Err(RequestError::Lost(lost)) => Err(Trouble::Lost { server: client.server().clone(), lost }),
        Err(error) => Ok(json!({"held": held.valid_until().is_some(), "error": error.to_string()})),
    }
}

fn print(object: &Value) -> Result<(), Trouble> {
    say::out(&format!("{object}\n")).map_err(Trouble::system("write to stdout; the lock is released: that ends"))
}

/// The lines of stdin, read by a thread of their own, since a read from a terminal cannot be given up.
fn lines_of_input() -> mpsc::Receiver<String> {
    let (to, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        while let Ok(Some(line)) = next_line(&mut input) {
            if to.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// A line, or the beginning of one that is too long for any word: an endless one takes no more memory. `None`: the input has ended.
fn next_line(input: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut line = Vec::new();
    if input.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if !line.ends_with(b"\n") {
        input.skip_until(b'\n')?;
    }
    Ok(Some(String::from_utf8_lossy(&line).trim().to_owned()))
}

/// The signals that end a hold, each with its number. One that was ignored when we began does not, as nohup(1) needs it.
struct Signals([Option<tokio::signal::unix::Signal>; 3]);

impl Signals {
    fn new() -> std::io::Result<Self> {
        let taken = |number: Signal| match is_ignored(number) {
            true => Ok(None),
            false => signal(SignalKind::from_raw(number as i32)).map(Some),
        };
        Ok(Self([taken(Signal::SIGINT)?, taken(Signal::SIGTERM)?, taken(Signal::SIGHUP)?]))
    }

    /// Waits for one, and gives its number.
    async fn next(&mut self) -> u8 {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            () = received(interrupt) => 2,
            () = received(terminate) => 15,
            () = received(hangup) => 1,
        }
    }
}

async fn received(signals: &mut Option<tokio::signal::unix::Signal>) {
    match signals {
        Some(signals) => drop(signals.recv().await),
        None => std::future::pending().await,
    }
}
