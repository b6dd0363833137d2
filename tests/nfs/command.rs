//! The command with a lease so short that little time is left to stop what it runs.

use crate::hosts::{Host, Node, Server};
use crate::machine::COMMAND;
use crate::report::Report;

/// A command that runs for several heartbeats keeps its lock, with the default time to stop it and
/// with the longest that fits. A longer one is refused, and nothing is run.
pub(crate) fn short_lease(server: &Server, report: &Report) {
    if COMMAND.is_none() {
        return report.check("there is no command", true, "");
    }
    let [host] = server.hosts("command", ["cm"]);
    let node = host.daemon(report, &[]);
    let (status, said) = run(&host, &node, &["x", "--", "sleep", "6"]);
    report.check("a healthy command keeps its lock", status == Some(0), format!("{status:?} {said}"));
    let (status, said) = run(&host, &node, &["--kill-after", "5s", "x", "--", "touch", "/tmp/ran"]);
    let refused = status == Some(65) && said.contains("lease time") && !host.path("/tmp/ran").exists();
    report.check("a time to stop that does not fit is refused", refused, format!("{status:?} {said}"));
    let fitting = said.rsplit_once("--kill-after ").and_then(|(_, rest)| rest.split_once(" fits"));
    let Some((longest, _)) = fitting.filter(|(_, rest)| !rest.is_empty()) else {
        return report.check("the refusal says what fits", false, said);
    };
    let (status, said) = run(&host, &node, &["--kill-after", longest, "x", "--", "sleep", "6"]);
    report.check("what fits is enough", status == Some(0), format!("{longest}: {status:?} {said}"));
}

fn run(host: &Host, node: &Node, arguments: &[&str]) -> (Option<i32>, String) {
    host.distrilock(&[&["--server", &node.address, "run"], arguments].concat())
}
