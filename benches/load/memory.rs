//! What idle sessions cost that hold a lock: resident memory, and CPU.

use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::dialect::{Dialect, Verb, numbered_name};
use crate::drive::{Names, connect};
use crate::report::{Table, figure, median, ratio};
use crate::server::{Server, Site};

const IDLE: Duration = Duration::from_secs(5);

/// How many threads open sessions at once.
const OPENERS: u8 = 8;

/// What an idle session with a lock may cost, in KiB.
const TCP_KIB_MAX: f64 = 3.0;
const WEBSOCKET_KIB_MAX: f64 = 4.0;

/// With fewer sessions, what the daemon has once counts for too much.
const BOUND_FROM_SESSIONS: u64 = 1000;

struct Point {
    bytes_per_session: f64,
    idle_cpu_ms: f64,
}

/// Opens `sessions` sessions of each dialect, each holding a lock, and prints a table of their
/// cost.
///
/// # Errors
/// If a session of the daemon costs more than it may.
pub(crate) fn compare(site: &Site, dialects: &[Dialect], sessions: u64, rounds: usize) -> Result<()> {
    let mut points: Vec<Vec<Point>> = dialects.iter().map(|_| Vec::new()).collect();
    for round in 1..=rounds {
        for (dialect, points) in dialects.iter().zip(&mut points) {
            let what = format!("{}, {sessions} idle sessions", dialect.label());
            eprintln!("{what}, round {round} of {rounds}");
            points.push(measure(site, *dialect, sessions).context(what)?);
        }
    }
    let reference = dialects.iter().position(|dialect| *dialect == Dialect::Redis).map(|at| &points[at]);
    let mut table = Table::new(&["sessions", "dialect", "KiB/session", "KiB : redis", "CPU ms in 5 idle s"]);
    let mut above = Vec::new();
    for (dialect, points) in dialects.iter().zip(&points) {
        let of_redis = reference.map_or(&[][..], Vec::as_slice);
        let ratios =
            points.iter().zip(of_redis).map(|(point, redis)| point.bytes_per_session / redis.bytes_per_session);
        let kib = median(points.iter().map(|point| point.bytes_per_session)) / 1024.0;
        let kib_max = if dialect.is_websocket() { WEBSOCKET_KIB_MAX } else { TCP_KIB_MAX };
        if dialect.is_daemon() && kib > kib_max {
            above.push(format!("{}: {} KiB, above {kib_max}", dialect.label(), figure(kib)));
        }
        table.row(&[
            sessions.to_string(),
            dialect.label().to_owned(),
            figure(kib),
            ratio(median(ratios)),
            figure(median(points.iter().map(|point| point.idle_cpu_ms))),
        ]);
    }
    println!("### Memory: idle sessions that each hold a lock\n\n{table}");
    ensure!(above.is_empty() || sessions < BOUND_FROM_SESSIONS, "a session costs too much: {}", above.join("; "));
    Ok(())
}

fn measure(site: &Site, dialect: Dialect, sessions: u64) -> Result<Point> {
    let server = Server::start(site, dialect, Names::Warm)?;
    let process = server.process();
    let resident_before = process.resident_bytes()?;
    let streams = burst(&server, dialect, sessions)?;
    let cpu_before = process.cpu()?;
    thread::sleep(IDLE);
    let idle_cpu = process.cpu()? - cpu_before;
    let resident = process.resident_bytes()?.saturating_sub(resident_before);
    drop(streams);
    Ok(Point { bytes_per_session: resident as f64 / sessions as f64, idle_cpu_ms: idle_cpu.as_secs_f64() * 1e3 })
}

/// Opens the sessions in a burst, as clients come back after an outage: several threads connect at
/// once, and no session waits for the one before it. What a connection takes only while it is
/// established must not stay.
fn burst(server: &Server, dialect: Dialect, sessions: u64) -> Result<Vec<TcpStream>> {
    thread::scope(|scope| {
        let openers: Vec<_> =
            (0..u64::from(OPENERS)).map(|first| scope.spawn(move || open(server, dialect, first, sessions))).collect();
        let mut streams = Vec::new();
        for opener in openers {
            streams.extend(opener.join().expect("an opener does not panic")?);
        }
        Ok(streams)
    })
}

/// Opens every [`OPENERS`]th session.
fn open(server: &Server, dialect: Dialect, first: u64, sessions: u64) -> Result<Vec<TcpStream>> {
    let numbers = || (first..sessions).step_by(usize::from(OPENERS));
    let connected = numbers().map(|number| {
        let stream = connect(dialect, server.address(dialect));
        stream.with_context(|| format!("session {number}"))
    });
    let mut streams: Vec<_> = connected.collect::<Result<_>>()?;
    for (number, stream) in numbers().zip(&mut streams) {
        let acquire = dialect.exchange(Verb::Acquire, &numbered_name(number), false);
        acquire.complete(stream).with_context(|| format!("session {number}"))?;
    }
    Ok(streams)
}
