//! `distrilock bench`: connections that take and release locks as fast as the daemon answers. It speaks the protocol by itself: the
//! library's safeguards would be measured along with the daemon.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use super::options::Bench;
use super::trouble::Trouble;
use super::{say, session, status};
use distrilock_client::{ConnectError, Server};

/// How long an answer may take before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection, and requests as lines or as messages.
enum Session {
    Lines { input: BufReader<Box<dyn Read + Send>>, output: Box<dyn Write + Send>, line: String },
    WebSocket(Box<WebSocket<TcpStream>>),
}

impl Session {
    fn connect(server: &Server) -> io::Result<Self> {
        match server {
            Server::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Ok(Self::lines(Box::new(stream.try_clone()?), Box::new(stream)))
            }
            Server::Tcp(host) => {
                let stream = connect(host)?;
                Ok(Self::lines(Box::new(stream.try_clone()?), Box::new(stream)))
            }
            Server::WebSocket { host, .. } => {
                let shaken = tungstenite::client::client(server.to_string(), connect(host)?);
                let (socket, _) = shaken.map_err(|error| io::Error::other(error.to_string()))?;
                Ok(Self::WebSocket(Box::new(socket)))
            }
        }
    }

    fn lines(input: Box<dyn Read + Send>, output: Box<dyn Write + Send>) -> Self {
        Self::Lines { input: BufReader::new(input), output, line: String::new() }
    }

    /// Sends a request and checks that it is answered with yes.
    fn ask(&mut self, request: &str) -> io::Result<()> {
        let reply: Value = match self {
            Self::Lines { input, output, line } => {
                output.write_all(request.as_bytes())?;
                line.clear();
                input.read_line(line)?;
                serde_json::from_str(line).unwrap_or_default()
            }
            Self::WebSocket(socket) => {
                let reply = socket.send(Message::text(request)).and_then(|()| socket.read());
                let reply = reply.map_err(|error| io::Error::other(error.to_string()))?;
                reply.to_text().ok().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
            }
        };
        if reply["ok"] == true {
            return Ok(());
        }
        let message = reply["message"].as_str().unwrap_or("what answers does not speak the protocol of distrilock");
        Err(io::Error::other(message.to_owned()))
    }

    /// Takes and releases a lock until the time is over, and gives how long each pair took.
    fn pairs(&mut self, name: &str, until: Instant) -> io::Result<Vec<Duration>> {
        let acquire = format!("{}\n", json!({"op": "acquire", "lock": name, "wait_ms": null}));
        let release = format!("{}\n", json!({"op": "release", "lock": name}));
        let mut took = Vec::new();
        let mut began = Instant::now();
        while began < until {
            self.ask(&acquire)?;
            self.ask(&release)?;
            let ended = Instant::now();
            took.push(ended - began);
            began = ended;
        }
        Ok(took)
    }
}

fn connect(host: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(host)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Loads the first server that is named, and prints what came of it.
pub(super) fn main(options: &Bench, servers: &[Server]) -> Result<u8, Trouble> {
    let servers = session::servers(servers)?;
    let Some(server) = servers.first() else { return Err(Trouble::Connect { error: ConnectError::NoServer }) };
    let failed = |error| Trouble::File { what: "load", path: server.to_string(), error };
    let sessions: Result<Vec<Session>, _> = (0..options.connections).map(|_| Session::connect(server)).collect();
    let sessions = sessions.map_err(failed)?;
    let us = std::process::id();
    let begin = Barrier::new(sessions.len());
    let results: Vec<io::Result<Vec<Duration>>> = thread::scope(|scope| {
        let running: Vec<_> = (0..)
            .zip(sessions)
            .map(|(n, mut session)| {
                let name = format!("distrilock-bench-{us}-{}", if options.contended { 0 } else { n });
                let begin = &begin;
                scope.spawn(move || {
                    begin.wait();
                    session.pairs(&name, Instant::now() + options.seconds)
                })
            })
            .collect();
        running.into_iter().map(|one| one.join().expect("a session does not panic")).collect()
    });
    let mut took = Vec::new();
    for result in results {
        took.extend(result.map_err(failed)?);
    }
    say::out(&summary(options, &mut took)).map_err(Trouble::system("write to stdout"))?;
    Ok(status::DONE)
}

fn summary(options: &Bench, took: &mut [Duration]) -> String {
    took.sort_unstable();
    let at = |per_mille: usize| {
        let place = took.len().saturating_sub(1) * per_mille / 1000;
        took.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    };
    let seconds = options.seconds.as_secs_f64();
    let count = u32::try_from(took.len()).map_or(f64::NAN, f64::from);
    format!(
        "{} connections, {}, {seconds} s: {:.0} pairs/s; a pair takes p50 {:.0} us, p90 {:.0} us, p99 {:.0} us, max {:.0} us\n",
        options.connections,
        if options.contended { "one lock" } else { "a lock each" },
        count / seconds,
        at(500),
        at(900),
        at(990),
        at(1000),
    )
}
