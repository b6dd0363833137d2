//! The package: what an installation adds, what an upgrade keeps, and what removal and purge leave.

use std::collections::BTreeSet;

use serde_json::json;

use crate::guest::{self, SERVICE, SOCKETS, TCP, attempt, sh, state};
use crate::report::Report;
use crate::support::{V1, eventually};

/// The maximum exposure that `systemd-analyze security` may find, in tenths.
const EXPOSURE_MAX: u32 = 5;

/// Everything that an installation could leave, except for what dpkg, apt and systemd keep for
/// themselves.
fn everything() -> BTreeSet<String> {
    let places = "/etc /usr /var /opt /srv /run/distrilock /run/systemd/system /run/tmpfiles.d";
    let not = ["/var/lib/dpkg", "/var/lib/apt", "/var/log", "/var/cache", "/var/lib/systemd/catalog", "/var/tmp"];
    let prune: Vec<String> = not.iter().map(|path| format!("-path {path} -prune -o")).collect();
    let (_, said) = attempt(&format!("find {places} {} -print", prune.join(" ")));
    said.lines().map(str::to_owned).collect()
}

/// `apt-get install`, `remove` and `purge`.
pub(crate) fn comes_and_goes(report: &Report) {
    let before = everything();
    guest::install();
    for socket in SOCKETS {
        let (enabled, said) = attempt(&format!("systemctl is-enabled {socket}"));
        report.check("enabled by the installation", enabled, format!("{socket}: {said}"));
        report.check("started by the installation", state(socket) == "active", format!("{socket}: {}", state(socket)));
    }
    report.check("the daemon waits for its first connection", state(SERVICE) == "inactive", state(SERVICE));
    V1::connect(TCP).acquire("installed");
    report.check("it serves", state(SERVICE) == "active", state(SERVICE));
    let owner = sh(&format!("stat -c %U:%G {}", guest::DIRECTORY));
    report.check("the lock directory has its owner", owner == "distrilock:distrilock", &owner);
    units(report);
    let (passes, said) = attempt("sh /lab/autopkgtest");
    report.check("the package's own test passes", passes && said.ends_with("free again"), said);

    sh("apt-get remove -y -qq distrilock");
    let socket = V1::try_connect(TCP);
    report.check("removed: nobody listens", socket.is_err(), "");
    let (running, said) = attempt("pgrep -a distrilockd");
    report.check("removed: nothing runs", !running, said);
    let (_, units) = attempt("systemctl list-units --all --no-legend 'distrilock*'");
    report.check("removed: systemd knows no unit that is there", !units.contains("active running"), units);

    // Removed and installed again: it is as before.
    guest::install();
    report.check("installed again: the sockets listen", state(SOCKETS[0]) == "active", state(SOCKETS[0]));
    V1::connect(TCP).acquire("again");
    sh("apt-get purge -y -qq distrilock");
    // dpkg and the user tools keep copies beside their files.
    let left: Vec<String> = everything().difference(&before).filter(|path| !is_allowed(path)).cloned().collect();
    report.check("purged: nothing is left", left.is_empty(), left.join(" "));
    let (known, said) = attempt("dpkg-query -s distrilock");
    report.check("purged: dpkg does not know it", !known, said);
}

/// What systemd and the user tools leave.
fn is_allowed(path: &str) -> bool {
    let copies = ["/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-", "/etc/.pwd.lock"];
    copies.contains(&path) || path.starts_with("/var/lib/systemd/") || path.starts_with("/etc/systemd/system.control")
}

/// The units as this version of systemd sees them.
fn units(report: &Report) {
    let units = sh("dpkg -L distrilock | grep -E '/systemd/system/[^/]*[.](service|socket|timer)$'");
    report.check("the package has its units", units.lines().count() >= 8, units.lines().count());
    for path in units.lines() {
        let name = path.rsplit('/').next().expect("a path has a last part");
        // A template is checked as an instance.
        let instance = name.replace("@.", "@srv-locks.");
        let (holds, said) = attempt(&format!("systemd-analyze verify --man=no {instance}"));
        report.check("systemd-analyze verify", holds && said.is_empty(), format!("{instance} {said}"));
        if name.ends_with(".service") {
            exposure(report, path);
        }
    }
}

fn exposure(report: &Report, path: &str) {
    let threshold = format!("--threshold={EXPOSURE_MAX} --offline=true");
    let (holds, said) = attempt(&format!("systemd-analyze security --no-pager {threshold} {path}"));
    let overall = said.lines().rev().find(|line| line.contains("exposure level")).unwrap_or(&said).to_owned();
    report.check("systemd-analyze security, at most 0.5", holds && overall.contains("exposure"), overall);
}

/// An upgrade without sessions: the new version serves, and settings stay.
pub(crate) fn upgrade(report: &Report) {
    guest::installed();
    V1::connect(TCP).acquire("old");
    let version = || sh("dpkg-query -W -f '${Version}' distrilock");
    let (old, pid) = (version(), guest::main_pid(SERVICE));
    sh("echo 'DISTRILOCKD_OPTIONS=\"--dead-after 77\"' > /etc/default/distrilock");
    sh("apt-get install -y -qq /lab/next.deb");
    report.check("the version is the next one", version() != old, format!("{old} -> {}", version()));
    eventually("the service runs again", || state(SERVICE) == "active" && guest::main_pid(SERVICE) != pid);
    let reply = V1::connect(TCP).request(json!({"op": "hello", "version": 1}));
    report.check("settings stay, and are read", reply["dead_after_ms"] == 77_000, &reply);
    for socket in SOCKETS {
        report.check("the sockets live on", state(socket) == "active", socket);
    }
}
