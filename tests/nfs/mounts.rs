//! Which mounts the daemon and the doctor recognize; daemons under different users on an export
//! that does not trust root; and two hosts that the server takes for one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use crate::hosts::{Host, Server, Version};
use crate::machine::COMMAND;
use crate::report::Report;
use crate::support::PATIENCE;

/// Every refused mount, with a word that the message must contain.
pub(crate) fn refused(server: &Server, report: &Report) {
    server.folder("mounts", "");
    let host = server.host("ma");
    let version = server.version;
    host.mount("mounts", version, "hard").expect("a healthy mount");
    let healthy = if version == Version::V40 { 1 } else { 0 };
    doctor(&host, report, "a healthy mount", healthy);
    drop(host.daemon(report, &[]));
    let missing = host.daemon_refuses(report, "/mnt/missing");
    report.check("a directory that is not there is refused", missing.is_ok(), short(&missing));
    host.unmount();
    for (options, word) in [
        (format!("vers={version},soft"), "soft"),
        (format!("vers={version},softerr"), "softerr"),
        (format!("vers={version},hard,ro"), "read-only"),
        ("vers=3,hard,nolock".to_owned(), "NFS version 3"),
        ("vers=3,hard,local_lock=all,nolock".to_owned(), "NFS version 3"),
        (format!("vers={version},hard,local_lock=all"), "local_lock"),
    ] {
        let mounted = host.mount_with("/export/mounts", &options);
        if let Err(error) = mounted {
            report.check(&format!("{options} can be mounted"), false, error);
            continue;
        }
        let shown = shown_options(&host);
        if word == "local_lock" && shown.contains("local_lock=none") {
            // Linux has this option only for NFSv3.
            report.figure(&format!("{options} is a healthy mount"), shown);
        } else {
            let said = host.daemon_refuses(report, "/mnt");
            let names_it = said.as_ref().is_ok_and(|said| said.to_lowercase().contains(&word.to_lowercase()));
            report.check(&format!("{options} is refused"), names_it, short(&said));
            doctor(&host, report, &options, 2);
        }
        host.unmount();
    }
}

/// The last lines are the message.
fn short(said: &Result<String, String>) -> String {
    let (kind, text) = match said {
        Ok(text) => ("refused", text),
        Err(text) => ("not refused", text),
    };
    let lines: Vec<&str> = text.lines().rev().take(2).collect();
    format!("{kind}: {}", lines.into_iter().rev().collect::<Vec<_>>().join(" / "))
}

fn shown_options(host: &Host) -> String {
    let mounts = host.output("cat /proc/self/mounts");
    mounts.lines().find(|line| line.contains(" /mnt nfs")).unwrap_or_default().to_owned()
}

/// The doctor of the daemon and that of the command return the same exit status.
fn doctor(host: &Host, report: &Report, what: &str, expected: i32) {
    let daemon = host.command("/lab/distrilockd").args(["--check", "-d", "/mnt"]).output().expect("nsenter is there");
    let said = String::from_utf8_lossy(&daemon.stdout).into_owned();
    let (status, _) = host.distrilock(&["doctor", "/mnt"]);
    let findings: Vec<&str> = said.lines().filter(|line| line.starts_with("w")).take(4).collect();
    let detail = format!("status {:?}, {status:?}: {}", daemon.status.code(), findings.join(" / "));
    let both = daemon.status.code() == Some(expected) && (COMMAND.is_none() || status == Some(expected));
    report.check(&format!("doctor gives {expected} for {what}"), both, detail);
}

/// Three daemons under three users: each can lock the files that another one has made. The export
/// maps root to nobody.
pub(crate) fn owners(server: &Server, report: &Report) {
    server.folder("owners", "root_squash");
    // With the sticky bit, as in /tmp, only a file's owner could delete it.
    fs::set_permissions("/export/owners", fs::Permissions::from_mode(0o777)).expect("our own folder");
    let hosts = ["oa", "ob", "oc"].map(|name| {
        let host = server.host(name);
        host.mount("owners", server.version, "hard").expect("a healthy mount");
        host
    });
    let users = [Some(2001), Some(2002), None];
    let nodes: Vec<_> =
        hosts.iter().zip(users).map(|(host, uid)| host.daemon_as(report, uid, "/mnt", &["--linger", "0.3"])).collect();
    for first in 0..nodes.len() {
        let lock = format!("by{first}");
        // Each daemon makes a file, then every other one uses it while the maker still has it open.
        let mut sessions: Vec<_> = nodes.iter().map(crate::hosts::Node::session).collect();
        let made = sessions[first].gets(&lock);
        sessions[first].release(&lock);
        let others = (0..nodes.len()).filter(|other| *other != first);
        let replies: Vec<_> = others
            .map(|other| {
                let reply = sessions[other].request(serde_json::json!({"op": "acquire", "lock": lock}));
                sessions[other].request(serde_json::json!({"op": "release", "lock": lock}));
                reply
            })
            .collect();
        let all = made && replies.iter().all(|reply| reply["ok"] == true);
        report.check(&format!("what user {:?} made, the others take", users[first]), all, format!("{replies:?}"));
        let file = fs::metadata(format!("/export/owners/{lock}.lck")).map(|file| format!("{:?}", file.permissions()));
        report.figure("its permissions", format!("{file:?}"));
    }
    if server.version != Version::V40 {
        crate::hosts::eventually_clean("owners");
        report.check("all of it can be retired", true, "");
    }
}

/// Two hosts with one name are one NFSv4 client to the server and wipe each other's locks: the
/// daemons and the doctor report it.
pub(crate) fn twins(server: &Server, report: &Report) {
    const WORDS: [&str; 2] = ["client identifier", "somebody else uses its name"];
    let hosts = server.hosts("twins", ["twin", "twin"]);
    let nodes = hosts.each_ref().map(|host| host.spawn(report, None, "/mnt", &[]));
    let start = Instant::now();
    let warning = || {
        let said = nodes.iter().map(|node| node.said()).collect::<String>();
        said.lines().find(|line| WORDS.iter().any(|word| line.contains(word))).map(str::to_owned)
    };
    while warning().is_none() && start.elapsed() < 2 * PATIENCE {
        thread::sleep(Duration::from_millis(50));
    }
    let line = warning();
    report.check("two hosts with one client identifier are warned about", line.is_some(), line.unwrap_or_default());
    // A daemon whose host is wiped while it starts gives up; the check then starts from there.
    let gave_up = nodes[1].said().contains("cannot make this daemon known");
    doctor(&hosts[usize::from(gave_up)], report, "two hosts with one client identifier", 2);
}
