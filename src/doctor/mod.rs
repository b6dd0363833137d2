//! The doctor: examines a lock directory as a daemon would use it, and reports what is right,
//! doubtful or wrong, why it matters, and how to fix it. `distrilock doctor` and `distrilockd
//! --check` call it. The collector, which cleans a directory, is here as well.

mod collector;
mod finding;
mod locks;
mod storage;

use std::process::ExitCode;

use nix::sys::resource::{Resource, getrlimit};

use crate::directory::Directory;
use crate::files::nfs4;
use crate::limits::DESCRIPTORS_LOW;
use crate::settings::Settings;

pub use collector::{CollectError, collect};
pub use finding::{Finding, Level, report};

/// If a daemon, a doctor or a collector started this process as a helper for one lock or one
/// deletion, does that and returns the exit status. Programs that use lock files call this before
/// anything else.
#[must_use]
pub fn run_as_helper() -> Option<ExitCode> {
    nfs4::run_as_unlink_helper().or_else(locks::run_as_helper)
}

/// Examines the lock directory that the settings mean. `peer` is the address of another host's
/// daemon on the same directory.
#[must_use]
pub fn examine(settings: &Settings, peer: Option<&str>) -> Vec<Finding> {
    let mut findings = vec![descriptors()];
    match Directory::find(settings) {
        Ok(directory) => {
            storage::examine(&directory, &mut findings);
            locks::examine(&directory, peer, &mut findings);
        }
        Err(error) => {
            let remedy = "do what the message says, then run this again";
            findings.push(Finding::wrong("directory", "a daemon cannot start here", error.to_string(), remedy));
        }
    }
    findings
}

fn descriptors() -> Finding {
    const WHY: &str = "a session with one lock takes two descriptors";
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard < DESCRIPTORS_LOW => {
            let remedy = "raise LimitNOFILE= of the service, or ulimit -Hn";
            Finding::warning("descriptors", WHY, format!("at most {hard}"), remedy)
        }
        Ok((_, hard)) => Finding::ok("descriptors", WHY, format!("at most {hard}")),
        Err(errno) => Finding::warning("descriptors", WHY, errno.desc(), "see getrlimit(2)"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// A directory that does not exist is wrong, and nothing else is tried on it.
    #[test]
    fn a_missing_directory_is_wrong() {
        let settings = Settings::parse_from(["distrilockd", "-d", "/nowhere/at/all"]);
        let findings = examine(&settings, None);
        let last = findings.last().unwrap();
        assert_eq!((last.check, last.level), ("directory", Level::Wrong));
        assert!(last.found.contains("install -d"), "{}", last.found);
    }
}
