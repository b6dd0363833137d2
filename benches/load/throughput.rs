//! Pairs per second, server CPU and latency, for each dialect in turn, round after round.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::dialect::Dialect;
use crate::drive::{Load, Names};
use crate::report::{Table, figure, median, ratio};
use crate::server::{Process, Server, Site};

/// How long a run warms up before it measures.
const WARM_UP: Duration = Duration::from_millis(200);

/// What one run of one dialect measured.
struct Point {
    pairs_per_s: f64,
    server_us: f64,
    p50_us: f64,
    p99_us: f64,
    generator_share: f64,
    retries_per_pair: f64,
}

/// Measures all dialects with one number of connections and adds a row for each. The dialects
/// alternate within a round, and each is compared with redis and the floor in the same round, so
/// that anything that slows the machine down for a while affects all of them.
pub(crate) fn compare(
    site: &Site,
    dialects: &[Dialect],
    names: Names,
    connections: u64,
    rounds: usize,
    time: Duration,
    table: &mut Table,
) -> Result<()> {
    let mut points: Vec<Vec<Point>> = dialects.iter().map(|_| Vec::new()).collect();
    for round in 1..=rounds {
        for (dialect, points) in dialects.iter().zip(&mut points) {
            let what = format!("{}, {names:?}, {connections} connections", dialect.label());
            eprintln!("{what}, round {round} of {rounds}");
            points.push(measure(site, *dialect, names, connections, time).context(what)?);
        }
    }
    let of = |wanted| dialects.iter().position(|dialect| *dialect == wanted).map_or(&[][..], |at| &points[at]);
    let references = [of(Dialect::Redis), of(Dialect::Floor)];
    for (dialect, points) in dialects.iter().zip(&points) {
        table.row(&row(connections, *dialect, points, references));
    }
    Ok(())
}

/// An empty table for the rows of [`compare`].
pub(crate) fn table() -> Table {
    Table::new(&[
        "connections",
        "dialect",
        "pairs/s",
        "server CPU us/pair",
        "p50 us",
        "p99 us",
        "pairs/s : redis",
        "CPU : redis",
        "p99 : redis",
        "pairs/s : floor",
        "CPU : floor",
        "p99 : floor",
        "retries/pair",
        "generator CPU",
    ])
}

fn measure(site: &Site, dialect: Dialect, names: Names, connections: u64, time: Duration) -> Result<Point> {
    let server = Server::start(site, dialect, names)?;
    let mut load = Load::connect(dialect, server.address(dialect), names, connections)?;
    load.run(WARM_UP)?;
    load.forget();
    let (server_before, own_before) = (server.process().cpu()?, Process::own().cpu()?);
    let started = Instant::now();
    load.run(time)?;
    let elapsed = started.elapsed().as_secs_f64();
    let server_cpu = server.process().cpu()? - server_before;
    let own_cpu = Process::own().cpu()? - own_before;

    load.latencies_ns.sort_unstable();
    let latencies = &load.latencies_ns;
    let pairs = latencies.len() as f64;
    let percentile = |percent: usize| {
        let at = (latencies.len() * percent / 100).min(latencies.len().saturating_sub(1));
        latencies.get(at).map_or(f64::NAN, |ns| *ns as f64 / 1e3)
    };
    Ok(Point {
        pairs_per_s: pairs / elapsed,
        server_us: server_cpu.as_secs_f64() * 1e6 / pairs,
        p50_us: percentile(50),
        p99_us: percentile(99),
        generator_share: own_cpu.as_secs_f64() / elapsed,
        retries_per_pair: load.retries as f64 / pairs,
    })
}

fn row(connections: u64, dialect: Dialect, points: &[Point], [redis, floor]: [&[Point]; 2]) -> Vec<String> {
    let of = |value: fn(&Point) -> f64| median(points.iter().map(value));
    let against = |reference: &[Point], value: fn(&Point) -> f64| {
        let ratios = points.iter().zip(reference).map(|(point, other)| value(point) / value(other));
        ratio(median(ratios))
    };
    vec![
        connections.to_string(),
        dialect.label().to_owned(),
        figure(of(|point| point.pairs_per_s)),
        figure(of(|point| point.server_us)),
        figure(of(|point| point.p50_us)),
        figure(of(|point| point.p99_us)),
        against(redis, |point| point.pairs_per_s),
        against(redis, |point| point.server_us),
        against(redis, |point| point.p99_us),
        against(floor, |point| point.pairs_per_s),
        against(floor, |point| point.server_us),
        against(floor, |point| point.p99_us),
        figure(of(|point| point.retries_per_pair)),
        format!("{:.0} %", of(|point| point.generator_share) * 100.0),
    ]
}
