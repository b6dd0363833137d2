//! The README's section on installing the package, unchanged.

use std::fs;

use crate::guest::{self, SERVICE, SOCKETS, attempt, sh, state};
use crate::report::Report;

const HEADING: &str = "## Install it\n";

/// Stands for the clone of the project: a container has no compiler and no network, so the command
/// that builds the package only copies the built one to where the real command puts it, and its
/// build dependencies are not installed; the host has done both. The other commands are real.
const CLONE: &str = r#"mkdir -p /srv/distrilock/packaging && cd /srv/distrilock && cat > packaging/deb <<'SCRIPT'
#!/bin/sh
set -e
mkdir -p target/debian
deb=$PWD/target/debian/distrilock_$(dpkg-deb -f /lab/distrilock.deb Version)_$(dpkg --print-architecture).deb
cp /lab/distrilock.deb "$deb"
echo "$deb"
SCRIPT
printf '#!/bin/sh\ncase $* in *debhelper*) exit;; esac\nexec "$@"\n' > /usr/local/bin/sudo
chmod +x packaging/deb /usr/local/bin/sudo"#;

/// The lines of the section's `sh` blocks, run in order by one shell.
pub(crate) fn install_section(report: &Report) {
    let text = fs::read_to_string("/lab/README.md").expect("the host has copied it");
    let section = text.split(HEADING).nth(1).expect("the README says how to install the package");
    let section = section.split("\n## ").next().expect("a split has a first part");
    let blocks: Vec<&str> = section.split("```sh\n").skip(1).filter_map(|part| part.split("```").next()).collect();
    let script = blocks.concat();
    let told = ["packaging/deb", "apt", "distrilock.socket", "distrilock run"].iter().all(|word| script.contains(word));
    report.check("the section builds, installs, starts, and takes a lock", told, script.trim().lines().count());
    sh(CLONE);
    fs::write("/srv/distrilock/lines", format!("set -ex\n{script}")).expect("our own folder");
    let (done, said) = attempt("cd /srv/distrilock && bash lines");
    report.check("its lines do what they say", done, said);
    let active = SOCKETS.iter().all(|socket| state(socket) == "active") && state(SERVICE) == "active";
    report.check("in the end the daemon serves", active, guest::property(SERVICE, "StatusText"));
}
