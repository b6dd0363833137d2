//! The NFS lab: a virtual machine with a real NFS server and real NFS clients, each a host of its
//! own with its own distrilockd, for the versions 4.0, 4.1 and 4.2 and for two kernels. Hosts are
//! cut off, killed and reconnected, the server is restarted, and a witness outside of the daemons
//! checks that no two sessions have one lock at once. README.md beside this file explains more.
//!
//! Arguments select kernels (`trixie`), versions (`4.1`), and scenarios by parts of their names. On
//! the host this program builds and boots the machines (`machine`); inside, as `payload guest`, it
//! is the lab itself. This is why the test has no harness.

mod board;
mod booted;
mod command;
mod contention;
mod delegations;
mod hosts;
mod locker;
mod loss;
mod machine;
mod mounts;
mod partition;
mod readme;
mod relock;
mod report;
mod shipped;
#[path = "../support/mod.rs"]
mod support;
mod unlink;
mod witness;

use std::env;
use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use clap::Parser;
use distrilock::directory::Directory;
use distrilock::files::nfs4;
use distrilock::settings::Settings;
use hosts::{Server, Version};
use machine::{Machine, Suite};
use report::Report;

/// Scenarios at the same time: with more, the machine is too slow to measure times.
const TOGETHER_MAX: usize = 3;

/// What a scenario shows, and how.
struct Scenario {
    name: &'static str,
    /// Whether others may run at the same time: scenarios that mainly wait may, those that count or
    /// disturb the server may not.
    together: bool,
    machines: &'static [Machine],
    run: fn(&Server, &Report),
}

const fn on(suite: Suite, version: Version) -> Machine {
    Machine { suite, version }
}

const V40: Machine = on(Suite::Bookworm, Version::V40);
const V41: Machine = on(Suite::Bookworm, Version::V41);
const V42: Machine = on(Suite::Bookworm, Version::V42);
const NEW_V41: Machine = on(Suite::Trixie, Version::V41);
const NEW_V42: Machine = on(Suite::Trixie, Version::V42);

const OLD: &[Machine] = &[V40, V41, V42];
const WITH_SESSIONS: &[Machine] = &[V41, V42];
/// Scenarios about what exclusion rests on run on the newer kernel as well.
const BOTH: &[Machine] = &[V40, V41, V42, NEW_V42];
const BOTH_WITH_SESSIONS: &[Machine] = &[V41, V42, NEW_V42];
/// Delegations are granted only by the newer kernel.
const NEW: &[Machine] = &[NEW_V41, NEW_V42];

const SCENARIOS: &[Scenario] = &[
    Scenario { name: "witness", together: false, machines: OLD, run: witness::catches_overlaps },
    Scenario { name: "contention", together: false, machines: BOTH, run: contention::many_sessions },
    Scenario { name: "cost", together: false, machines: BOTH, run: contention::cost },
    Scenario { name: "waiting", together: false, machines: OLD, run: contention::waiting },
    Scenario { name: "relock", together: false, machines: OLD, run: relock::tight },
    Scenario { name: "command", together: false, machines: BOTH_WITH_SESSIONS, run: command::short_lease },
    Scenario { name: "unlink", together: true, machines: WITH_SESSIONS, run: unlink::in_flight },
    Scenario { name: "partition", together: true, machines: BOTH, run: partition::longer_than_the_lease },
    Scenario { name: "delegations", together: true, machines: NEW, run: delegations::none },
    Scenario { name: "gone", together: true, machines: OLD, run: loss::gone },
    Scenario { name: "hung", together: true, machines: OLD, run: loss::hung_server },
    Scenario { name: "board", together: true, machines: BOTH, run: board::who_holds },
    Scenario { name: "crowd", together: true, machines: BOTH_WITH_SESSIONS, run: loss::crowd },
    Scenario { name: "mounts", together: true, machines: OLD, run: mounts::refused },
    Scenario { name: "readme", together: true, machines: &[V42], run: readme::several_hosts },
    Scenario { name: "owners", together: true, machines: OLD, run: mounts::owners },
    Scenario { name: "twins", together: true, machines: WITH_SESSIONS, run: mounts::twins },
    Scenario { name: "blink", together: true, machines: OLD, run: partition::shorter_than_the_lease },
    Scenario { name: "collector", together: false, machines: WITH_SESSIONS, run: contention::collector },
    Scenario { name: "systemd", together: false, machines: &[V42], run: shipped::three_hosts },
    Scenario { name: "restart", together: false, machines: OLD, run: partition::server_restart },
];

/// The scenarios of a machine that words select. Without words for suites, for versions or for
/// scenarios, all of these are selected.
fn chosen(machine: Machine, words: &[String]) -> Vec<&'static Scenario> {
    let suites: Vec<Suite> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let versions: Vec<Version> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let is_name = |word: &&String| word.parse::<Suite>().is_err() && word.parse::<Version>().is_err();
    let names: Vec<&String> = words.iter().filter(is_name).collect();
    if !(suites.is_empty() || suites.contains(&machine.suite)) {
        return Vec::new();
    }
    if !(versions.is_empty() || versions.contains(&machine.version)) {
        return Vec::new();
    }
    let matches = |name: &str| names.is_empty() || names.iter().any(|word| name.contains(word.as_str()));
    let all = SCENARIOS.iter();
    all.filter(|scenario| scenario.machines.contains(&machine) && matches(scenario.name)).collect()
}

fn main() -> ExitCode {
    // As a collector, this program starts itself for each deletion.
    if let Some(status) = nfs4::run_as_unlink_helper() {
        return status;
    }
    let words: Vec<String> = env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    if env::args().any(|word| word == "--list") {
        SCENARIOS.iter().for_each(|scenario| println!("{}: test", scenario.name));
        return ExitCode::SUCCESS;
    }
    let holds = match words.first().map(String::as_str) {
        Some("guest") => guest(),
        Some("gc") => sweep(&words[1]),
        Some("locker") => locker::run(&words[1..]),
        _ => machine::run(&words),
    };
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The library's collector, for a tree whose command has none: deletes unused files.
fn sweep(directory: &str) -> bool {
    let settings = Settings::parse_from(["distrilockd", "-d", directory]);
    let files = Directory::find(&settings).expect("a healthy mount").files().expect("a healthy mount");
    let swept = files.sweep(Duration::ZERO, false, |name, what| println!("{name}: {what:?}"));
    swept.inspect_err(|fault| println!("{fault}")).is_ok()
}

/// Inside the machine: the kernel's command line says which machine it is, and has the words.
fn guest() -> bool {
    let line = std::fs::read_to_string("/proc/cmdline").expect("proc is mounted");
    let setting = |name: &str| {
        let mut values = line.split_whitespace().filter_map(|word| word.strip_prefix("lab.")?.strip_prefix(name));
        values.next().and_then(|value| value.strip_prefix('=')).unwrap_or_default().to_owned()
    };
    let suite = setting("suite").parse().expect("the machine says the suite");
    let version = setting("version").parse().expect("the machine says the version");
    let words: Vec<String> = setting("words").split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect();
    let machine = Machine { suite, version };
    let server = Server::start(machine);
    let (together, alone): (Vec<_>, Vec<_>) = chosen(machine, &words).into_iter().partition(|one| one.together);
    let is_last = |one: &Scenario| one.name == "restart";
    let mut failures = 0;
    for scenario in alone.iter().filter(|one| !is_last(one)) {
        failures += perform(&server, scenario);
    }
    let next = AtomicUsize::new(0);
    failures += thread::scope(|scope| {
        let work = || {
            let turns = iter::from_fn(|| together.get(next.fetch_add(1, Ordering::Relaxed)));
            turns.map(|scenario| perform(&server, scenario)).sum::<u32>()
        };
        let threads: Vec<_> = (0..TOGETHER_MAX).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("panics are caught")).sum::<u32>()
    });
    for scenario in alone.iter().filter(|one| is_last(one)) {
        failures += perform(&server, scenario);
    }
    failures == 0
}

/// Runs one scenario and returns its failures. A panic is a failure.
fn perform(server: &Server, scenario: &Scenario) -> u32 {
    let report = Report::new(scenario.name);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (scenario.run)(server, &report))) {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        report.check("goes through", false, text.unwrap_or_default());
    }
    report.end()
}
