//! Waiting for what another daemon on the same directory holds: what the waiting costs, and how
//! soon it ends.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::dialect::Dialect;
use crate::drive::connect;
use crate::report::{Table, figure, median};
use crate::server::{Server, Site};

const WAITERS: usize = 1000;
const RELEASES: usize = 200;
const IDLE: Duration = Duration::from_secs(5);

/// Compares 1000 sessions that wait for one lock each with 10 that wait for 100 each.
pub(crate) fn compare(site: &Site) -> Result<Table> {
    let mut table = Table::new(&[
        "waiters",
        "waiting sessions",
        "waiting daemon CPU",
        "holding daemon CPU",
        "release to grant, p50 ms",
        "p99 ms",
    ]);
    for sessions in [WAITERS, 10] {
        eprintln!("{WAITERS} waiters in {sessions} sessions");
        table.row(&measure(site, sessions).with_context(|| format!("{WAITERS} waiters in {sessions} sessions"))?);
    }
    Ok(table)
}

fn measure(site: &Site, sessions: usize) -> Result<Vec<String>> {
    let daemon = Server::daemon(site, None)?;
    let contender = Server::daemon(site, Some(&daemon))?;
    let mut holders = open(&contender, 10)?;
    for number in 0..WAITERS {
        holders[number % 10].ask(number, "acquire", "")?;
        holders[number % 10].expect_granted(number)?;
    }
    let mut waiters = open(&daemon, sessions)?;
    for number in 0..WAITERS {
        waiters[number % sessions].ask(number, "acquire", r#","wait_ms":null"#)?;
    }
    // Requests of a session are taken up in their order: after the pong all the others wait.
    for waiter in &mut waiters {
        waiter.ping()?;
    }
    let before = (daemon.process().cpu()?, contender.process().cpu()?);
    thread::sleep(IDLE);
    let share = |used: Duration| format!("{:.2} %", used.as_secs_f64() / IDLE.as_secs_f64() * 100.0);
    let shares = (share(daemon.process().cpu()? - before.0), share(contender.process().cpu()? - before.1));

    let mut latencies_ms = Vec::new();
    for number in 0..RELEASES {
        // Uneven pauses, so that releases do not keep step with a timer of the waiting daemon.
        thread::sleep(Duration::from_millis((number as u64 * 31) % 47));
        let released = Instant::now();
        holders[number % 10].ask(number, "release", "")?;
        waiters[number % sessions].expect_granted(number)?;
        latencies_ms.push(released.elapsed().as_secs_f64() * 1e3);
        holders[number % 10].expect_granted(number)?;
    }
    latencies_ms.sort_by(f64::total_cmp);
    let p99 = latencies_ms[RELEASES * 99 / 100];
    let p50 = median(latencies_ms.into_iter());
    Ok(vec![WAITERS.to_string(), sessions.to_string(), shares.0, shares.1, figure(p50), figure(p99)])
}

/// A session of version 1 that may have many requests under way; their ids and locks bear the same
/// numbers.
struct Session(BufReader<TcpStream>);

fn open(server: &Server, sessions: usize) -> Result<Vec<Session>> {
    let address = server.address(Dialect::V1Tcp);
    (0..sessions).map(|_| Ok(Session(BufReader::new(connect(Dialect::V1Tcp, address)?)))).collect()
}

impl Session {
    fn ask(&mut self, number: usize, op: &str, more: &str) -> Result<()> {
        let line = format!("{{\"id\":{number},\"op\":\"{op}\",\"lock\":\"wait-{number}\"{more}}}\n");
        Ok(self.0.get_mut().write_all(line.as_bytes())?)
    }

    /// The reply to a granted acquire and to a release that was carried out.
    fn expect_granted(&mut self, number: usize) -> Result<()> {
        self.expect(&format!("{{\"id\":{number},\"ok\":true,\"lock\":\"wait-{number}\"}}\n"))
    }

    fn ping(&mut self) -> Result<()> {
        self.0.get_mut().write_all(b"{\"id\":\"ping\",\"op\":\"ping\"}\n")?;
        self.expect("{\"id\":\"ping\",\"ok\":true}\n")
    }

    fn expect(&mut self, expected: &str) -> Result<()> {
        let mut line = String::new();
        self.0.read_line(&mut line).with_context(|| format!("no reply, expected {expected:?}"))?;
        ensure!(line == expected, "unexpected reply {line:?}, expected {expected:?}");
        Ok(())
    }
}
