//! The containers' results, shown and counted.

use std::collections::HashSet;
use std::sync::Mutex;

use crate::report::{self, Read};

/// A scenario on a suite.
pub(crate) type Run = (&'static str, &'static str);

/// The results of all of them.
pub(crate) struct Tally {
    counts: Mutex<Counts>,
}

struct Counts {
    passed: u32,
    failed: u32,
    /// Scenarios that have not yet reported their end. One that checks nothing stays here.
    missing: HashSet<Run>,
}

impl Tally {
    pub(crate) fn new(runs: &[Run]) -> Self {
        let missing = runs.iter().copied().collect();
        Self { counts: Mutex::new(Counts { passed: 0, failed: 0, missing }) }
    }

    /// Shows the lines of a run that has ended and, if it did not finish, the output of its
    /// console.
    pub(crate) fn add(&self, run: Run, said: &str, console: &str) {
        // The lines of one run stay together.
        let mut counts = self.counts.lock().expect("no container panics");
        said.lines().for_each(|line| counts.line(run, line));
        if counts.missing.remove(&run) {
            counts.failed += 1;
            println!("{} FAILED   {}: the container ended early", run.0, run.1);
            console.lines().for_each(|line| println!("{} console  {line}", run.0));
        }
    }

    /// The checks that passed and those that failed.
    pub(crate) fn sums(&self) -> (u32, u32) {
        let counts = self.counts.lock().expect("no container panics");
        assert!(counts.missing.is_empty(), "never run: {:?}", counts.missing);
        (counts.passed, counts.failed)
    }
}

impl Counts {
    fn line(&mut self, run: Run, line: &str) {
        let (suite, name) = run;
        match report::read(&suite, line) {
            Read::Passed => self.passed += 1,
            Read::Failed => self.failed += 1,
            Read::Done { scenario, checks: true } => self.missing.retain(|run| *run != (suite, scenario)),
            Read::Foreign if !line.is_empty() => println!("{suite} says     {name}: {line}"),
            Read::Done { .. } | Read::Other | Read::Foreign => {}
        }
    }
}
