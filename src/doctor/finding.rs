//! [`Finding`]: what the doctor found out, and how it is reported.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

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

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was checked.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// Why it matters.
    pub why: &'static str,
    /// How to fix it, if that is necessary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    pub(super) fn ok(check: &'static str, why: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, found: found.into(), why, remedy: None }
    }

    pub(super) fn warning(
        check: &'static str,
        why: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { check, level: Level::Warning, found: found.into(), why, remedy: Some(remedy.into()) }
    }

    pub(super) fn wrong(
        check: &'static str,
        why: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { check, level: Level::Wrong, found: found.into(), why, remedy: Some(remedy.into()) }
    }
}

/// Writes the findings as one JSON object, or as lines: one for each, and two more where something
/// has to be fixed. Returns the exit status: 0 if all is well, 1 with warnings, 2 if it is unsafe.
///
/// # Errors
/// If writing to `out` fails.
pub fn report(directory: Option<&Path>, findings: &[Finding], json: bool, out: &mut impl Write) -> io::Result<u8> {
    let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    if json {
        let directory = directory.map(|path| path.to_string_lossy());
        let object = serde_json::json!({ "directory": directory, "level": worst, "findings": findings });
        writeln!(out, "{object}")?;
    } else {
        for Finding { check, level, found, why, remedy } in findings {
            let word = match level {
                Level::Ok => "ok",
                Level::Warning => "warning",
                Level::Wrong => "wrong",
            };
            writeln!(out, "{word:<8} {check}: {found}")?;
            if let Some(remedy) = remedy {
                writeln!(out, "         why: {why}\n         fix: {remedy}")?;
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

    fn reported(findings: &[Finding], json: bool) -> String {
        let mut out = Vec::new();
        report(None, findings, json, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// A finding that has to be fixed says why and how; any other is one line.
    #[test]
    fn findings_are_reported() {
        let findings =
            [Finding::ok("version", "why", "4.2"), Finding::wrong("lease", "holders overlap", "5 s", "raise it")];
        let text = reported(&findings, false);
        assert_eq!(
            text,
            "ok       version: 4.2\nwrong    lease: 5 s\n         why: holders overlap\n         fix: raise it\n"
        );
        let json: serde_json::Value = serde_json::from_str(&reported(&findings, true)).unwrap();
        assert_eq!((&json["level"], &json["findings"][1]["remedy"]), (&"wrong".into(), &"raise it".into()));
    }
}
