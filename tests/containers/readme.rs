//! The README's section for who installs the package, as it stands there.

use std::fs;

use crate::guest::{self, attempt, sh};
use crate::report::Report;

const HEADING: &str = "## Install it";

/// The lines of the section's `sh` blocks, run in their order by one shell; the package is the one that was built.
pub(crate) fn install_section(report: &Report) {
    let text = fs::read_to_string("/lab/README.md").expect("the host has copied it");
    let section = text.split(HEADING).nth(1).expect("the README tells how to install the package");
    let section = section.split("\n## ").next().expect("a split has a first part");
    let blocks: Vec<&str> = section.split("```sh\n").skip(1).filter_map(|part| part.split("```").next()).collect();
    report.check("the section has commands", !blocks.is_empty(), blocks.len());
    sh(
        "mkdir -p /srv/distrilock/target/debian && cp /lab/distrilock.deb /srv/distrilock/target/debian/distrilock_1_any.deb",
    );
    let _ = (guest::TCP, attempt(""));
}
