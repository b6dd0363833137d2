//! `distrilock bench`: connections that acquire and release locks as fast as the daemon answers. It
//! speaks the protocol itself, since the client library's safeguards would be measured along with
//! the daemon.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use super::connect::servers_or_default;
use super::error::CommandError;
use super::options::{BenchOptions, ServerOptions};
use super::{output, status};
use crate::sync::locked;
use distrilock_client::{ConnectError, Server};

/// How long a reply may take before the bench gives up.
const REPLY_TIME_MAX: Duration = Duration::from_secs(30);

/// A connection that carries requests as lines or as WebSocket messages.
enum BenchConnection {
    Lines { input: BufReader<Box<dyn Read + Send>>, output: Box<dyn Write + Send>, line: String },
    WebSocket(Box<WebSocket<TcpStream>>),
}

impl BenchConnection {
    fn connect(server: &Server) -> io::Result<Self> {
        match server {
            Server::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(REPLY_TIME_MAX))?;
                Ok(Self::lines(Box::new(stream.try_clone()?), Box::new(stream)))
            }
            Server::Tcp(host) => {
                let stream = connect(host)?;
                Ok(Self::lines(Box::new(stream.try_clone()?), Box::new(stream)))
            }
            Server::WebSocket { host, .. } => {
                let handshake = tungstenite::client::client(server.to_string(), connect(host)?);
                let (socket, _) = handshake.map_err(|error| io::Error::other(error.to_string()))?;
                Ok(Self::WebSocket(Box::new(socket)))
            }
        }
    }

    fn lines(input: Box<dyn Read + Send>, output: Box<dyn Write + Send>) -> Self {
        Self::Lines { input: BufReader::new(input), output, line: String::new() }
    }

    /// Sends a request and fails unless the reply is ok.
    fn request(&mut self, request: &str) -> io::Result<()> {
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
        let message = reply["message"].as_str().unwrap_or("the server does not speak the protocol of distrilock");
        Err(io::Error::other(message.to_owned()))
    }

    /// Acquires and releases a lock until the time is over, and returns how long each pair took.
    fn run_pairs(&mut self, name: &str, until: Instant) -> io::Result<Vec<Duration>> {
        let acquire = format!("{}\n", json!({"op": "acquire", "lock": name, "wait_ms": null}));
        let release = format!("{}\n", json!({"op": "release", "lock": name}));
        let mut took = Vec::new();
        let mut began = Instant::now();
        while began < until {
            self.request(&acquire)?;
            self.request(&release)?;
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
    stream.set_read_timeout(Some(REPLY_TIME_MAX))?;
    Ok(stream)
}

/// Loads the first server, and prints the results.
pub(super) fn main(options: &BenchOptions, servers: &ServerOptions) -> Result<u8, CommandError> {
    let servers = servers_or_default(&servers.named)?;
    let Some(server) = servers.first() else { return Err(CommandError::Connect { error: ConnectError::NoServer }) };
    let failed = |error| CommandError::File { what: "load", path: server.to_string(), error };
    let connections: Result<Vec<BenchConnection>, _> =
        (0..options.connections).map(|_| BenchConnection::connect(server)).collect();
    let connections = connections.map_err(failed)?;
    let pid = std::process::id();
    // Locked until all threads are there.
    let begin = Mutex::new(());
    let results: io::Result<Vec<io::Result<Vec<Duration>>>> = thread::scope(|scope| {
        let waiting = locked(&begin);
        let running: io::Result<Vec<_>> = (0..)
            .zip(connections)
            .map(|(n, mut connection)| {
                let name = format!("distrilock-bench-{pid}-{}", if options.contended { 0 } else { n });
                let begin = &begin;
                thread::Builder::new().spawn_scoped(scope, move || {
                    drop(locked(begin));
                    connection.run_pairs(&name, Instant::now() + options.seconds)
                })
            })
            .collect();
        drop(waiting);
        Ok(running?.into_iter().map(|one| one.join().expect("a connection does not panic")).collect())
    });
    let mut took = Vec::new();
    for result in results.map_err(CommandError::system("start a thread for each connection"))? {
        took.extend(result.map_err(failed)?);
    }
    output::print(&summary(options, &mut took))?;
    Ok(status::DONE)
}

fn summary(options: &BenchOptions, took: &mut [Duration]) -> String {
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
