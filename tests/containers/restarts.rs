//! Restarts, upgrades and re-executions while sessions of all dialects are at work: nobody notices
//! more than a pause.

use std::time::Instant;

use crate::guest::{self, SERVICE, TCP, attempt, main_pid, property, sh, state};
use crate::load::{Load, Size};
use crate::outside::{Witness, is_free, lock_files};
use crate::report::Report;
use crate::support::{V1, eventually};

/// Nearly all of them hold one lock each.
const CROWD: Size = Size { holders: 800, rivals: 192, names: 16 };

const FEW: Size = Size { holders: 24, rivals: 32, names: 6 };

const STORM_RESTARTS: u32 = 100;

/// The number of grants that must be seen between two disturbances.
const GRANTS_BETWEEN: u64 = 20;

/// Every disturbance that a session must survive, with a thousand sessions.
pub(crate) fn unnoticed(report: &Report) {
    guest::installed();
    let load = Load::start(CROWD);
    progresses(&load);
    let disturb = |name: &str, line: &str, replaces: bool| disturbed(report, &load, name, line, replaces);
    disturb("restart", "systemctl restart distrilock.service", true);
    disturb("daemon-reexec", "systemctl daemon-reexec", false);
    disturb("restart after daemon-reexec", "systemctl restart distrilock.service", true);
    disturb("upgrade", "apt-get install -y -qq /lab/next.deb", true);
    disturb("restart of the sockets", "systemctl restart distrilock.socket", true);
    disturb("SIGUSR2 from outside", "systemctl kill --kill-whom=main -s USR2 distrilock.service", true);
    disturb("daemon-reload", "systemctl daemon-reload", false);
    if property(SERVICE, "CanReload") == "yes" {
        disturb("reload", "systemctl reload distrilock.service", false);
    }
    load.finish(report);
    nothing_stays(report);
}

/// Does something to the daemon, and checks the effect on the sessions.
fn disturbed(report: &Report, load: &Load, name: &str, line: &str, replaces: bool) {
    let (pid, before) = (main_pid(SERVICE), load.faults());
    load.longest_pause();
    let start = Instant::now();
    sh(line);
    eventually("a process serves", || {
        let now = main_pid(SERVICE);
        now != 0 && (!replaces || now != pid) && state(SERVICE) == "active"
    });
    let took = start.elapsed();
    progresses(load);
    let after = load.faults();
    report.check(&format!("{name}: nobody notices"), after == before, &after);
    report
        .figure(&format!("{name}: the longest pause of a session"), format!("{:?} of {took:?}", load.longest_pause()));
}

/// Waits until more has been granted and seen. Dead sessions do nothing; then this does not wait.
fn progresses(load: &Load) {
    let [grants, looks, requests] = load.progress();
    eventually("the load continues", || {
        let [more_grants, more_looks, more_requests] = load.progress();
        let goes_on = more_grants > grants + GRANTS_BETWEEN && more_looks > looks && more_requests > requests;
        goes_on || !load.faults().is_empty()
    });
}

/// When all have gone, no lock is left.
fn nothing_stays(report: &Report) {
    let mut left = Vec::new();
    eventually("released locks are free", || {
        left = lock_files().into_iter().filter(|file| !is_free(file.trim_end_matches(".lck"))).collect();
        left.is_empty()
    });
    report.check("in the end every lock is free", left.is_empty(), left.join(" "));
    let mut session = V1::connect(TCP);
    report.check("the daemon serves", session.gets("afterwards"), main_pid(SERVICE));
}

/// A hundred restarts in a row.
pub(crate) fn storm(report: &Report) {
    guest::installed();
    let load = Load::start(FEW);
    progresses(&load);
    load.longest_pause();
    let start = Instant::now();
    for round in 0..STORM_RESTARTS {
        sh("systemctl restart distrilock.service");
        // Without sessions, the rest would show nothing.
        if !load.faults().is_empty() {
            report.check("each restart of the storm", false, format!("after {round}"));
            break;
        }
    }
    report.figure("restarts in a row", format!("{STORM_RESTARTS} in {:?}", start.elapsed()));
    report.figure("the longest pause of a session", format!("{:?}", load.longest_pause()));
    progresses(&load);
    load.finish(report);
    let (_, log) = attempt(&format!("journalctl -b -q --no-pager -o cat -p warning -u {SERVICE}"));
    report.check("the journal has no complaint", log.is_empty(), log);
    nothing_stays(report);
}

/// The witness and the prober notice what they should.
pub(crate) fn checker(report: &Report) {
    guest::installed();
    let offences = |witness: &Witness| witness.offences().0;
    let witness = Witness::new(["twice".to_owned(), "free".to_owned()]);
    let first = witness.enters(0);
    report.check("a first grant is none", offences(&witness) == 0, "");
    witness.enters(0);
    report.check("a second grant is an offence", offences(&witness) == 1, witness.offences().1);
    witness.leaves(0, first);
    report.check("to be put out of a lock is one", offences(&witness) == 2, witness.offences().1);

    let witness = Witness::new(["free".to_owned()]);
    let mut session = V1::connect(TCP);
    session.acquire("free");
    witness.enters(0);
    witness.look_around();
    report.check("a held lock is seen", offences(&witness) == 0 && witness.seen() == 1, witness.seen());
    session.release("free");
    witness.look_around();
    report.check("a released one is seen free", offences(&witness) == 1, witness.offences().1);
    eventually("its file is deleted", || lock_files().is_empty());
    witness.look_around();
    report.check("so is one without a file", offences(&witness) == 2, witness.offences().1);

    // Ended sessions are noticed, every one of them, and all their locks are seen free.
    let load = Load::start(FEW);
    progresses(&load);
    report.check("a load alone has no faults", load.faults().is_empty(), load.faults());
    sh("systemctl kill --kill-whom=main -s KILL distrilock.service");
    eventually("ended sessions are noticed", || {
        let faults = load.faults();
        faults.starts_with(&format!("{} sessions", FEW.sessions())) && faults.contains("seen free")
    });
    report.check("the end of every session is noticed, and every free lock", true, load.faults());
    load.stop();
}
