//! The results of a scenario, as lines that leave the machine: tab-separated, one for each check or
//! figure; and how they are read outside.

use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

/// The results of one scenario.
pub(crate) struct Report {
    scenario: &'static str,
    start: Instant,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    checks: u32,
    failures: u32,
    logs: Vec<PathBuf>,
}

impl Report {
    pub(crate) fn new(scenario: &'static str) -> Self {
        Self { scenario, start: Instant::now(), counts: Mutex::default() }
    }

    /// Records a condition that must hold, and whether it does.
    pub(crate) fn check(&self, what: &str, holds: bool, detail: impl Display) {
        let mut counts = self.counts.lock().expect("no report panics");
        counts.checks += 1;
        counts.failures += u32::from(!holds);
        self.line(if holds { "ok" } else { "FAILED" }, what, &detail);
    }

    /// Records a measurement, which can be neither right nor wrong.
    pub(crate) fn figure(&self, what: &str, detail: impl Display) {
        self.line("figure", what, &detail);
    }

    fn line(&self, kind: &str, what: &str, detail: &dyn Display) {
        let detail = detail.to_string().replace(['\n', '\t'], " / ");
        println!("{kind}\t{}\t{what}\t{detail}\t{:.1}", self.scenario, self.start.elapsed().as_secs_f64());
    }

    /// Adds a daemon's log, which is shown if the scenario fails.
    pub(crate) fn show_if_failed(&self, log: PathBuf) {
        self.counts.lock().expect("no report panics").logs.push(log);
    }

    /// The failures, preceded by the daemons' logs if there are any.
    pub(crate) fn end(&self) -> u32 {
        let counts = self.counts.lock().expect("no report panics");
        if counts.failures > 0 {
            for log in &counts.logs {
                let text = std::fs::read(log).unwrap_or_default();
                for line in String::from_utf8_lossy(&text).lines() {
                    println!("log\t{}\t{}\t{line}\t", self.scenario, log.display());
                }
            }
        }
        self.line("done", &counts.checks.to_string(), &format!("{} failed", counts.failures));
        counts.failures
    }
}

/// The meaning of a line that has been shown.
pub(crate) enum Read<'a> {
    Passed,
    Failed,
    /// The end of a scenario. A scenario that checks nothing counts as missing.
    Done {
        scenario: &'a str,
        checks: bool,
    },
    /// A figure, or a daemon's log.
    Other,
    /// Not a line of a report.
    Foreign,
}

/// Reads a line and shows it as one of this machine, unless it does not belong to a report.
pub(crate) fn read<'a>(machine: &dyn Display, line: &'a str) -> Read<'a> {
    let parts: Vec<&str> = line.split('\t').collect();
    let [kind, scenario, what, detail, seconds] = parts[..] else { return Read::Foreign };
    if kind == "done" {
        println!("{machine} done     {scenario}: {what} checks, {detail}, {seconds} s");
        return Read::Done { scenario, checks: what != "0" };
    }
    println!("{machine} {kind:<8} {scenario}: {what}: {detail}");
    match kind {
        "ok" => Read::Passed,
        "FAILED" => Read::Failed,
        _ => Read::Other,
    }
}
