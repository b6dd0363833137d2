//! The container tests: the Debian package on a real systemd, that of Debian 12 and that of Debian
//! 13, each the first process of a container. Sockets activate the daemon, the journal explains,
//! packages are upgraded, the daemon is restarted, stopped and killed, while clients of every
//! dialect hold locks and a process outside watches the lock files. README.md beside this file
//! explains more.
//!
//! Arguments select suites (`trixie`) and scenarios by parts of their names. On the host this
//! program builds what is needed and boots a container for each scenario (`machine`); inside, as
//! `payload guest`, it is the scenario. This is why the test has no harness.

mod activation;
mod deaths;
mod dialects;
mod guest;
mod halves;
mod journal;
mod leave;
mod load;
mod machine;
mod nodes;
mod outside;
mod package;
mod readme;
#[path = "../nfs/report.rs"]
mod report;
mod restarts;
#[path = "../support/mod.rs"]
mod support;
mod tally;
mod waiters;

use std::env;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::thread;

use report::Report;

/// The suites of Debian, the slowest first.
const SUITES: [&str; 2] = ["trixie", "bookworm"];

/// What a scenario shows.
struct Scenario {
    name: &'static str,
    run: fn(&Report),
}

/// The longest first.
const SCENARIOS: &[Scenario] = &[
    Scenario { name: "unnoticed", run: restarts::unnoticed },
    Scenario { name: "storm", run: restarts::storm },
    Scenario { name: "checker", run: restarts::checker },
    Scenario { name: "places", run: waiters::places },
    Scenario { name: "belongings", run: waiters::belongings },
    Scenario { name: "requests", run: halves::requests },
    Scenario { name: "replies", run: halves::replies },
    Scenario { name: "watchdog", run: deaths::watchdog },
    Scenario { name: "package", run: package::comes_and_goes },
    Scenario { name: "command", run: nodes::command },
    Scenario { name: "nodes", run: nodes::on_one_directory },
    Scenario { name: "hardened", run: nodes::hardened },
    Scenario { name: "killed", run: deaths::killed },
    Scenario { name: "garbled", run: deaths::garbled },
    Scenario { name: "leftovers", run: deaths::leftovers },
    Scenario { name: "journald", run: journal::stopped },
    Scenario { name: "explained", run: journal::explains },
    Scenario { name: "activation", run: activation::by_the_first_connection },
    Scenario { name: "stop", run: activation::stop },
    Scenario { name: "masks", run: activation::masks },
    Scenario { name: "network", run: activation::network },
    Scenario { name: "trouble", run: activation::trouble },
    Scenario { name: "upgrade", run: package::upgrade },
    Scenario { name: "readme", run: readme::install_section },
];

/// The scenarios that words select; all without words, or with suites only.
fn chosen(words: &[String]) -> Vec<&'static Scenario> {
    let names: Vec<&String> = words.iter().filter(|word| !SUITES.contains(&word.as_str())).collect();
    let matches = |name: &str| names.is_empty() || names.iter().any(|word| name.contains(word.as_str()));
    SCENARIOS.iter().filter(|scenario| matches(scenario.name)).collect()
}

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    if env::args().any(|word| word == "--list") {
        SCENARIOS.iter().for_each(|scenario| println!("{}: test", scenario.name));
        return ExitCode::SUCCESS;
    }
    let holds = match words.first().map(String::as_str) {
        Some("leave") => leave::in_the_store(),
        Some("guest") => perform(&guest::scenario()),
        _ => machine::run(&words),
    };
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Inside a container: runs the scenario of that name. A panic is a failure.
fn perform(name: &str) -> bool {
    let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name).expect("the host names a scenario");
    // If a thousand sessions fail, the load reports it.
    let speak = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if thread::current().name() == Some("main") {
            speak(info);
        }
    }));
    let report = Report::new(scenario.name);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (scenario.run)(&report))) {
        report.check("goes through", false, guest::reason(panic.as_ref()));
    }
    report.show_if_failed(guest::journal());
    report.end() == 0
}
