//! A closed-loop load generator that measures, in turn, the daemon and redis-server, where it is
//! installed, on the same machine.
//!
//! `cargo bench --bench load` prints the markdown tables of docs/benchmarks.md, with medians and
//! ratios; `cargo bench --bench load -- --help` lists the options. Progress goes to standard error.

mod dialect;
mod drive;
mod floor;
mod memory;
mod report;
mod server;
mod throughput;
mod wait;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::dialect::Dialect;
use crate::drive::Names;
use crate::server::{Server, Site, file_system, redis_version};

/// Measures distrilockd against redis-server.
#[derive(Parser)]
struct Arguments {
    /// Run one short round with 64 connections and warm names, to show that everything works.
    #[arg(long)]
    quick: bool,
    /// Measure only these dialects, besides redis and the floor.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Dialect>,
    /// Measure only these scenarios.
    #[arg(long, value_delimiter = ',')]
    scenario: Vec<Scenario>,
    /// Numbers of connections.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,1000",
        value_parser = clap::value_parser!(u64).range(1..))]
    connections: Vec<u64>,
    /// Seconds that each run measures.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Rounds; the tables show their medians (at most 3 for memory).
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Idle sessions of the memory scenario; fewer if the limit of descriptors is low.
    #[arg(long, default_value_t = 9000, value_parser = clap::value_parser!(u64).range(1..))]
    sessions: u64,
    /// Where to create the lock directories. Default: /dev/shm, or the temporary directory.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Daemon to measure in place of this project's.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_distrilockd"))]
    daemon: PathBuf,
    /// Be the floor, the bare server, on this directory.
    #[arg(long, hide = true)]
    floor: Option<PathBuf>,
    /// The floor deletes each lock file on release.
    #[arg(long, hide = true, requires = "floor")]
    floor_deletes: bool,
    /// `cargo bench` passes this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// One name per connection.
    Warm,
    /// A new name for each pair.
    Cold,
    /// A new name for each pair, with a daemon that deletes lock files on release.
    ColdNoLinger,
    /// All connections on one name.
    Contended,
    /// Idle sessions that each hold a lock.
    Memory,
    /// Waiters on names that another process holds.
    Wait,
}

fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    if let Some(directory) = &arguments.floor {
        return floor::serve(directory, arguments.floor_deletes);
    }
    ensure!(arguments.seconds > 0.0 && arguments.seconds.is_finite(), "--seconds must be above 0");
    if arguments.quick {
        arguments.scenario = vec![Scenario::Warm];
        arguments.connections = vec![64];
        arguments.seconds = 0.5;
        arguments.rounds = 1;
    }
    if arguments.scenario.is_empty() {
        arguments.scenario = Scenario::value_variants().to_vec();
    }
    let (_, descriptors_max) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, descriptors_max, descriptors_max)?;
    // In the daemon each session has a socket and a lock file.
    // The daemon keeps an eighth of the descriptors for lock files.
    let usable = descriptors_max - descriptors_max / 8;
    arguments.sessions = arguments.sessions.min(usable.saturating_sub(256) / 2).max(1);

    let redis = redis_version();
    let dialects = chosen_dialects(&arguments.only, redis.is_some());
    ensure!(redis.is_some() || !arguments.only.contains(&Dialect::Redis), "redis-server is not installed");
    let site = Site { daemon: arguments.daemon.clone(), base: base_directory(arguments.dir.as_deref()), linger: None };
    println!("{}\n", machine(&site, &dialects, redis.as_deref())?);
    for scenario in &arguments.scenario {
        run(*scenario, &arguments, &site, &dialects)?;
    }
    Ok(())
}

fn run(scenario: Scenario, arguments: &Arguments, site: &Site, dialects: &[Dialect]) -> Result<()> {
    let rounds = usize::from(arguments.rounds);
    let kept = |keeps: fn(&Dialect) -> bool| dialects.iter().copied().filter(keeps).collect::<Vec<_>>();
    let without_floor = kept(|dialect| *dialect != Dialect::Floor);
    match scenario {
        Scenario::Warm => throughput("Warm: one name per connection", Names::Warm, arguments, site, dialects),
        Scenario::Cold => throughput("Cold: a new name for each pair", Names::Cold, arguments, site, dialects),
        Scenario::ColdNoLinger => {
            let site = Site { linger: Some("0"), ..site.clone() };
            let compared = kept(|dialect| matches!(dialect, Dialect::Redis | Dialect::Floor | Dialect::V1Tcp));
            throughput("Cold with `--linger 0`", Names::Cold, arguments, &site, &compared)
        }
        Scenario::Contended => {
            throughput("Contended: all connections on one name", Names::Contended, arguments, site, &without_floor)
        }
        Scenario::Memory => memory::compare(site, &without_floor, arguments.sessions, rounds.min(3)),
        Scenario::Wait if dialects.contains(&Dialect::V1Tcp) => {
            println!("### Wait: names that another process holds\n\n{}", wait::compare(site)?);
            Ok(())
        }
        Scenario::Wait => Ok(()),
    }
}

fn throughput(title: &str, names: Names, arguments: &Arguments, site: &Site, dialects: &[Dialect]) -> Result<()> {
    let mut table = throughput::table();
    let rounds = usize::from(arguments.rounds);
    let time = Duration::from_secs_f64(arguments.seconds);
    for connections in &arguments.connections {
        throughput::compare(site, dialects, names, *connections, rounds, time, &mut table)?;
    }
    println!("### {title}\n\n{table}");
    Ok(())
}

/// Redis, if it is installed, and the floor come first, since the others are compared with them.
fn chosen_dialects(only: &[Dialect], redis_installed: bool) -> Vec<Dialect> {
    let chosen = |dialect: &Dialect| match dialect {
        Dialect::Redis => redis_installed,
        Dialect::Floor => true,
        other => only.is_empty() || only.contains(other),
    };
    Dialect::value_variants().iter().copied().filter(chosen).collect()
}

/// A file system in memory measures the daemon rather than a disk.
fn base_directory(asked: Option<&Path>) -> PathBuf {
    let shared_memory = Path::new("/dev/shm");
    match asked {
        Some(path) => path.to_owned(),
        None if tempfile::tempfile_in(shared_memory).is_ok() => shared_memory.to_owned(),
        None => std::env::temp_dir(),
    }
}

/// One line about the machine, on which the figures depend.
fn machine(site: &Site, dialects: &[Dialect], redis: Option<&str>) -> Result<String> {
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let threads = match dialects.iter().find(|dialect| dialect.is_daemon()) {
        Some(_) => Server::daemon(site, None).context("the daemon")?.process().threads()?.to_string(),
        None => "-".to_owned(),
    };
    Ok(format!(
        "{}, {} cores, Linux {}, lock directory on {}, redis {}, daemon threads: {threads}, \
         load average before: {}",
        model.map_or("unknown CPU", |(_, model)| model),
        thread::available_parallelism()?,
        kernel.trim(),
        file_system(&site.base)?,
        redis.unwrap_or("not installed"),
        load.split(' ').next().unwrap_or_default(),
    ))
}
