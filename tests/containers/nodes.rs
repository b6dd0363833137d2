//! Several nodes on one host, by the template units, and which features work under the hardening of
//! the units.

use std::path::Path;

use serde_json::{Value, json};

use crate::dialects::{Dialect, Verb};
use crate::guest::{self, SERVICE, TCP, UNIX, attempt, installed, property, sh, state};
use crate::outside::{is_free, is_free_in};
use crate::report::Report;
use crate::support::{V1, Ws, eventually};

const SHARED: &str = "/srv/locks";

/// Two nodes on one directory exclude each other.
pub(crate) fn on_one_directory(report: &Report) {
    guest::install();
    sh(&format!("install -d -o distrilock -g distrilock -m 0770 {SHARED}"));
    for (node, port) in [("a", 40_810), ("b", 40_820)] {
        sh(&format!("echo 'DISTRILOCKD_OPTIONS=\"-d {SHARED}\"' > /etc/default/distrilock-{node}"));
        let units = "/etc/systemd/system";
        sh(&format!("mkdir -p {units}/distrilock@{node}.service.d {units}/distrilock@{node}.socket.d"));
        sh(&format!(
            "printf '[Service]\\nReadWritePaths={SHARED}\\n' > {units}/distrilock@{node}.service.d/locks.conf"
        ));
        let example = "/usr/share/doc/distrilock/examples/node-port.conf";
        sh(&format!("sed s/40810/{port}/ {example} > {units}/distrilock@{node}.socket.d/port.conf"));
    }
    sh("systemctl daemon-reload && systemctl enable --now distrilock@a.socket distrilock@b.socket");
    let mut one = V1::connect("127.0.0.1:40810");
    let mut other = V1::connect("127.0.0.1:40820");
    one.ping();
    other.ping();
    let states = format!("{} {}", state("distrilock@a.service"), state("distrilock@b.service"));
    report.check("both run", states == "active active", states);
    one.acquire("shared");
    report.check("a lock of one is real", !is_free_in(SHARED, "shared"), "F_OFD_GETLK");
    let reply = other.request(json!({"op": "acquire", "lock": "shared"}));
    report.check("the other one refuses it", reply["error"] == "busy", &reply);
    for round in 0..20 {
        other.send(&json!({"id": round, "op": "acquire", "lock": "shared", "wait_ms": 20_000}));
        other.ping();
        one.release("shared");
        let reply = other.receive();
        assert_eq!(reply["ok"], true, "passed on: {reply}");
        std::mem::swap(&mut one, &mut other);
    }
    report.check("it goes from one to the other", true, "20 times");
    // The nodes send each other hints: both have a socket there.
    let hints = sh(&format!("ls {SHARED}/.distrilock"));
    report.check("both can be told at once", hints.matches(".sock").count() == 2, &hints);
    sh("systemctl stop distrilock@a.service distrilock@b.service");
    let unix = V1::connect("unix:/run/distrilock/a/distrilock.sock").gets("shared");
    report.check("each has a Unix socket of its own", unix, "/run/distrilock/a/distrilock.sock");
    collector(report);
}

/// The collector's service and timer.
fn collector(report: &Report) {
    sh(&format!(
        "systemctl stop distrilock@a.service && touch {SHARED}/left.lck && chown distrilock: {SHARED}/left.lck"
    ));
    // A file is deleted only when it is some minutes old, by a time that cannot be set.
    let folder = "/etc/systemd/system/distrilock-gc@.service.d";
    let lines = "[Service]\\nExecStart=\\nExecStart=/usr/bin/distrilock gc --idle 0 %%f\\n";
    sh(&format!("mkdir -p {folder} && printf '{lines}' > {folder}/young.conf && systemctl daemon-reload"));
    let unit = |kind: &str| sh(&format!("systemd-escape --path --template=distrilock-gc@.{kind} {SHARED}"));
    let (done, said) = attempt(&format!("systemctl start {}", unit("service")));
    report.check("the collector's service succeeds", done, said);
    let left = Path::new(SHARED).join("left.lck").exists();
    report.check("it deletes what nobody uses", !left, sh(&format!("ls -la {SHARED}")));
    let (_, log) = attempt(&format!("journalctl -b -q --no-pager -o cat -u {}", unit("service")));
    report.figure("the collector says", log);
    sh(&format!("systemctl enable --now {}", unit("timer")));
    let timers = sh("systemctl list-timers --no-pager --no-legend");
    report.check("its timer is set", timers.contains(&unit("timer")), timers.lines().count());
}

/// Every feature of the daemon works under the hardened unit.
pub(crate) fn hardened(report: &Report) {
    installed();
    for (number, dialect) in Dialect::ALL.into_iter().enumerate() {
        let lock = format!("dialect{number}");
        let mut session = dialect.session();
        let did = session.does(Verb::Acquire, &lock) && session.does(Verb::Verify, &lock);
        let freed = session.does(Verb::Release, &lock);
        report.check(&format!("{dialect}: acquire, verify, release"), did && freed, &lock);
    }
    for (property, wanted) in [("PrivateNetwork", "yes"), ("ProtectSystem", "strict"), ("NoNewPrivileges", "yes")] {
        report.check(property, guest::property(SERVICE, property) == wanted, guest::property(SERVICE, property));
    }
    let pid = guest::main_pid(SERVICE);
    let status = sh(&format!("grep -E 'CapEff|Seccomp:' /proc/{pid}/status"));
    report.check("no capability, and a filter", status.contains("0000000000000000") && status.contains('2'), status);
    features(report);
    let hints = sh(&format!("ls {}/.distrilock", guest::DIRECTORY));
    report.check("it can be told of releases", hints.contains(".sock"), &hints);
    let (_, complaints) = attempt(&format!("journalctl -b -q --no-pager -o cat -p warning -u {SERVICE}"));
    let denied = complaints.to_lowercase();
    report.check("nothing was denied", !denied.contains("permitted") && !denied.contains("denied"), complaints);
}

/// Fences, slots, several names, shared locks, waits with a limit.
fn features(report: &Report) {
    let mut session = V1::connect(TCP);
    let fence = |session: &mut V1| -> Value {
        let reply = session.request(json!({"op": "acquire", "lock": "disk", "fence": true}));
        session.release("disk");
        reply["fence"].clone()
    };
    let fences: Vec<Value> = (0..3).map(|_| fence(&mut session)).collect();
    report.check("fences rise", fences == [1, 2, 3], format!("{fences:?}"));
    sh(&format!("systemctl restart {SERVICE}"));
    let mut session = V1::connect(TCP);
    let after = fence(&mut session);
    report.check("fences rise over a restart", after.as_u64() > fences[2].as_u64(), &after);
    let slots = json!({"op": "acquire", "lock": "gpu", "slots": 3, "take": 2});
    let reply = session.request(slots.clone());
    report.check("slots", reply["taken"] == json!([0, 1]), &reply);
    let mut local = V1::connect(UNIX);
    let reply = local.request(slots);
    report.check("not more slots than there are", reply["error"] == "busy", &reply);
    let reply = local.request(json!({"op": "acquire", "locks": ["x", "y"], "mode": "shared"}));
    report.check("several names", reply["ok"] == true, &reply);
    let mut web = Ws::connect(guest::WS);
    let reply = web.request(json!({"op": "acquire", "lock": "y", "wait_ms": 50}));
    report.check("a wait ends", reply["error"] == "timeout", &reply);
    session.acquire("real");
    report.check("a lock is a lock of the kernel", !is_free("real"), "F_OFD_GETLK");
    sh(&format!("rm {}/real.lck", guest::DIRECTORY));
    let reply = session.request(json!({"op": "verify", "lock": "real"}));
    report.check("verify finds a file that was removed", reply["error"] == "lost", &reply);
    eventually("released files are deleted", || !Path::new(guest::DIRECTORY).join("dialect0.lck").exists());
    report.check("the linger ends", true, property(SERVICE, "StatusText"));
}

/// `distrilock run` needs no setting: it finds the local socket.
pub(crate) fn command(report: &Report) {
    installed();
    sh("useradd -m -G distrilock friend && useradd -m stranger");
    let as_user =
        |user: &str, line: &str| attempt(&format!("setpriv --reuid={user} --regid={user} --init-groups {line}"));
    let nested = "distrilock run nightly -- sh -c 'distrilock run -n nightly -- true; echo refused $?'";
    let (done, said) = attempt(nested);
    report.check("as root", done && said.contains("refused 1"), said);
    let (done, said) = as_user("friend", nested);
    report.check("as a user of the group", done && said.contains("refused 1"), said);
    let (_, said) = as_user("friend", "distrilock run listed -- distrilock ls");
    report.check("ls shows the holder", said.contains("listed") && said.contains("friend"), said);
    let (_, said) = as_user("stranger", "distrilock ping");
    report.figure("a user who is not in the group", said);
    // Without TCP there is only the local socket, which other users may not use.
    sh("systemctl mask --now distrilock.socket distrilock-ws.socket && systemctl stop distrilock.service");
    sh("systemctl start distrilock-local.socket");
    let (done, said) = as_user("friend", "distrilock run local -- echo done");
    report.check("with the local socket alone", done && said.contains("done"), said);
    let (done, said) = as_user("stranger", "distrilock run local -- echo done");
    report.check("nobody else may use it", !done && !said.contains("done"), said);
}
