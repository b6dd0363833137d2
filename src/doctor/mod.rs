//! The doctor: examines a lock directory as a daemon would use it, and says what is right, what is doubtful and what is wrong,
//! why it matters, and what to do. `distrilock doctor` and `distrilockd --check` are its callers. Beside it is the collector, which
//! cleans a directory.

mod collector;
mod locks;
mod storage;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use nix::sys::resource::{Resource, getrlimit};
use serde::Serialize;

use crate::files::nfs4;
use crate::limits::DESCRIPTORS_LOW;
use crate::server::directory::Directory;
use crate::settings::Settings;

pub use collector::{CollectFault, collect};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could.
    Warning,
    /// A lock could be granted twice, or not at all.
    Wrong,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// Why it matters.
    pub why: &'static str,
    /// What to do, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, why: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, found: found.into(), why, remedy: None }
    }

    fn warning(check: &'static str, why: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, level: Level::Warning, found: found.into(), why, remedy: Some(remedy.into()) }
    }

    fn wrong(check: &'static str, why: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, level: Level::Wrong, found: found.into(), why, remedy: Some(remedy.into()) }
    }
}

/// If this process was started by a daemon, a doctor or a collector, to be another process for one lock or one deletion, does that
/// and tells with what status to exit. Programs that use lock files call it first of all.
#[must_use]
pub fn take_over() -> Option<ExitCode> {
    nfs4::take_over().or_else(locks::take_over)
}

/// Examines the lock directory that the settings mean; `peer` is the address of another host's daemon on the same directory.
#[must_use]
pub fn examine(settings: &Settings, peer: Option<&str>) -> Vec<Finding> {
    let mut findings = vec![descriptors()];
    match Directory::find(settings) {
        Ok(directory) => {
            storage::examine(&directory, &mut findings);
            locks::examine(&directory, peer, &mut findings);
        }
        Err(fault) => {
            let remedy = "the finding says it; then run this again";
            findings.push(Finding::wrong("directory", "a daemon does not start on it", fault.to_string(), remedy));
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
        Err(errno) => Finding::warning("descriptors", WHY, errno.desc(), "look at getrlimit(2)"),
    }
}

/// Tells the findings, a line each and more where something is to be done, or as one JSON object; gives the exit status: 0 all is
/// well, 1 with warnings, 2 unsafe.
///
/// # Errors
/// If `out` does not take them.
pub fn tell(directory: Option<&Path>, findings: &[Finding], json: bool, out: &mut impl Write) -> io::Result<u8> {
    let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    if json {
        let directory = directory.map(|path| path.to_string_lossy());
        let report = serde_json::json!({ "directory": directory, "level": worst, "findings": findings });
        writeln!(out, "{report}")?;
    } else {
        for Finding { check, level, found, why, remedy } in findings {
            let word = match level {
                Level::Ok => "ok",
                Level::Warning => "warning",
                Level::Wrong => "wrong",
            };
            writeln!(out, "{word:<8} {check}: {found}")?;
            if let Some(remedy) = remedy {
                writeln!(out, "         why: {why}\n         do:  {remedy}")?;
            }
        }
    }
    Ok(match worst {
        Level::Ok => 0,
        Level::Warning => 1,
        Level::Wrong => 2,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn told(findings: &[Finding], json: bool) -> String {
        let mut out = Vec::new();
        tell(None, findings, json, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// A finding that asks for something says why and what; one that does not is a line.
    #[test]
    fn findings_are_told() {
        let findings =
            [Finding::ok("version", "why", "4.2"), Finding::wrong("lease", "holders overlap", "5 s", "raise it")];
        let text = told(&findings, false);
        assert_eq!(
            text,
            "ok       version: 4.2\nwrong    lease: 5 s\n         why: holders overlap\n         do:  raise it\n"
        );
        let json: serde_json::Value = serde_json::from_str(&told(&findings, true)).unwrap();
        assert_eq!((&json["level"], &json["findings"][1]["remedy"]), (&"wrong".into(), &"raise it".into()));
    }

    /// A directory that is not there is found wrong, and nothing else is tried on it.
    #[test]
    fn a_missing_directory_is_wrong() {
        let settings = Settings::parse_from(["distrilockd", "-d", "/nowhere/at/all"]);
        let findings = examine(&settings, None);
        let last = findings.last().unwrap();
        assert_eq!((last.check, last.level), ("directory", Level::Wrong));
        assert!(last.found.contains("install -d"), "{}", last.found);
    }
}
