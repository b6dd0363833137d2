//! Who holds a lock, asked on other hosts: it is said while the lock is held, and not any longer
//! when it was released. After the daemon was killed, or its host was cut off for longer than the
//! lease, it is what was last known.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::hosts::{Host, LEASE_SECONDS, Node, Server, sh};
use crate::machine::COMMAND;
use crate::partition::works_again;
use crate::report::Report;
use crate::support::{PATIENCE, V1, eventually};

const FOLDER: &str = "board";

/// A lock takes up to three seconds to be shown; with every process of the lab on two emulated
/// processors, longer.
const SHOWN_WITHIN: Duration = PATIENCE;

/// The lease, counted from the last renewal, and the interval at which the server checks it.
const LEASE_ENDS_WITHIN: Duration = Duration::from_secs(3 * LEASE_SECONDS).saturating_add(SHOWN_WITHIN);

/// The parts, one after the other: each finds what the one before has left.
pub(crate) fn who_holds(server: &Server, report: &Report) {
    let [a, b, c] = server.hosts(FOLDER, ["wa", "wb", "wc"]);
    let [mut first, mut second, third] = [&a, &b, &c].map(|host| host.daemon(report, &[]));
    let mut holder = introduced(&first);
    holder.acquire("nightly");
    holder.acquire("weekly");
    let (mut asks, mut also_asks) = (second.session(), third.session());
    for session in [&mut asks, &mut also_asks] {
        let peeked = comes(session, "nightly", SHOWN_WITHIN, |it| is_held_at(it, "wa"));
        let right = is_held_at(&peeked, "wa") && peeked["holders"][0]["note"] == "nightly run";
        report.check("the holder is named on another host", right, peeked);
        let names = listed(session, |names| names.len() == 2);
        report.check("and in a list", names == ["nightly", "weekly"], format!("{names:?}"));
    }
    said_by_the_command(report, &[&b, &c], &[&second, &third], &first);
    of_the_file(server, report);

    holder.release("nightly");
    let peeked = [&mut asks, &mut also_asks].map(|session| peek(session, "nightly"));
    let free = peeked.iter().all(is_free);
    report.check("from a release on, nobody is named", free, format!("{peeked:?}"));
    let names = listed(&mut asks, |names| !names.contains(&"nightly".to_owned()));
    report.check("and a list has only what is held", names == ["weekly"], format!("{names:?}"));

    garbage(report, &mut holder, &mut asks);

    first.kill();
    for session in [&mut asks, &mut also_asks] {
        let peeked = comes(session, "weekly", LEASE_ENDS_WITHIN, |it| is_last_known_at(it, "wa"));
        report.check("a killed daemon's holder is what was last known", is_last_known_at(&peeked, "wa"), peeked);
    }
    if COMMAND.is_some() {
        let (status, said) = ask(&b, &second, &["who", "weekly"]);
        let right = status == Some(0) && said.contains("weekly was held by backup") && said.contains("wa said");
        report.check("who says so", right, format!("{status:?} {said}"));
    }
    let took = asks.gets("weekly");
    let peeked = comes(&mut also_asks, "weekly", SHOWN_WITHIN, |it| is_held_at(it, "wb"));
    report.check("the next holder is named", took && is_held_at(&peeked, "wb"), peeked);

    cut_off(report, &a, (&mut asks, &mut also_asks));
    stopped(report, &mut second, asks, &mut also_asks);
}

/// A session that has introduced itself.
fn introduced(node: &Node) -> V1 {
    let mut session = node.session();
    let hello =
        json!({"op": "hello", "version": 1, "name": "backup", "pid": 4711, "command": "dump", "note": "nightly run"});
    let reply = session.request(hello);
    assert_eq!(reply["ok"], true, "{reply}");
    session
}

fn peek(session: &mut V1, lock: &str) -> Value {
    session.request(json!({"op": "peek", "lock": lock, "all": true}))
}

/// Peeks until the answer is right or it takes too long; returns the last answer.
fn comes(session: &mut V1, lock: &str, patience: Duration, is_right: impl Fn(&Value) -> bool) -> Value {
    let start = Instant::now();
    loop {
        let peeked = peek(session, lock);
        if is_right(&peeked) || start.elapsed() > patience {
            return peeked;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn is_held_at(peeked: &Value, host: &str) -> bool {
    let holders = peeked["holders"].as_array().map_or(0, Vec::len);
    peeked["locked"] == true && holders == 1 && peeked["holders"][0]["node"] == host
}

fn is_free(peeked: &Value) -> bool {
    peeked["locked"] == false && peeked["holders"] == json!([])
}

fn is_last_known_at(peeked: &Value, host: &str) -> bool {
    is_free(peeked) && peeked["last_known"][0]["node"] == host && peeked["last_known"][0]["seen_ms"].is_u64()
}

/// Lists the names that somebody holds, until they are right or it takes too long.
fn listed(session: &mut V1, is_right: impl Fn(&[String]) -> bool) -> Vec<String> {
    let start = Instant::now();
    loop {
        let reply = session.request(json!({"op": "list", "all": true}));
        let locks = reply["locks"].as_array().unwrap_or_else(|| panic!("{reply}"));
        let held = locks.iter().filter(|lock| lock["holders"].as_array().is_some_and(|holders| !holders.is_empty()));
        let names: Vec<String> = held.map(|lock| lock["lock"].as_str().expect("a name").to_owned()).collect();
        if is_right(&names) || start.elapsed() > SHOWN_WITHIN {
            return names;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn ask(host: &Host, node: &Node, arguments: &[&str]) -> (Option<i32>, String) {
    host.distrilock(&[&["--server", &node.address], arguments].concat())
}

/// What `who` and `ls` say on other hosts.
fn said_by_the_command(report: &Report, hosts: &[&Host], nodes: &[&Node], holder: &Node) {
    if COMMAND.is_none() {
        return;
    }
    let daemon = format!("of the daemon at wa (pid {})", holder.pid());
    for (host, node) in hosts.iter().zip(nodes) {
        let (status, said) = ask(host, node, &["who", "nightly"]);
        let name = said.contains("nightly is held by backup@wa (pid 4711, dump, nightly run) for ");
        let right = status == Some(1) && name && said.contains(&daemon);
        report.check("who names the holder", right, format!("{status:?} {said}"));
        let (status, said) = ask(host, node, &["ls"]);
        let right = status == Some(0) && ["nightly", "weekly", "backup@wa"].iter().all(|part| said.contains(part));
        report.check("ls lists the locks", right, format!("{status:?} {said}"));
    }
}

/// The boards, as the server has them.
fn boards() -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/export/{FOLDER}/.distrilock")).expect("the daemons have created it");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let is_file = |path: &PathBuf| path.symlink_metadata().is_ok_and(|metadata| metadata.is_file());
    paths.filter(|path| path.to_string_lossy().contains("/board-") && is_file(path)).collect()
}

/// The one board whose daemon has this text on it.
fn board_with(text: &str) -> Option<PathBuf> {
    boards().into_iter().find(|board| fs::read(board).is_ok_and(|is| String::from_utf8_lossy(&is).contains(text)))
}

/// How the server sees the only board.
fn of_the_file(server: &Server, report: &Report) {
    let (all, opened, delegated) = (boards(), server.opened(FOLDER), server.delegated(FOLDER));
    let [board] = &all[..] else { return report.check("there is one board", false, format!("{all:?}")) };
    report.check("the server has its lock", server.has_lock_on(board), board.display());
    let has = |files: &[String]| files.iter().any(|file| file.contains("board-"));
    let detail = format!("delegations: {delegated:?}; open: {opened:?}");
    report.check("and no delegation on it", has(&opened) && !has(&delegated), detail);
}

/// What is no board does no harm: beside the holder's board, in its text, and in its place.
fn garbage(report: &Report, holder: &mut V1, asks: &mut V1) {
    let board = board_with("weekly").expect("it was read");
    let text = fs::read(&board).expect("it is readable");
    let place = |name: &str| board.with_file_name(format!("board-{name}"));
    let fifo = |path: PathBuf| sh(&format!("mkfifo -m 666 {}", path.display()));
    fs::write(place("torn"), &text[..text.len() / 2]).expect("our own folder");
    fs::write(place("foreign"), "my notes").expect("our own folder");
    File::create(place("huge")).and_then(|file| file.set_len(1 << 30)).expect("our own folder");
    fs::create_dir(place("directory")).expect("our own folder");
    std::os::unix::fs::symlink("/etc/hostname", place("link")).expect("our own folder");
    fifo(place("fifo"));
    holder.acquire("beside");
    let peeked = comes(asks, "beside", SHOWN_WITHIN, |it| is_held_at(it, "wa"));
    report.check("garbage beside a board does no harm", is_held_at(&peeked, "wa"), peeked);
    let kept = ["torn", "foreign", "huge", "directory", "link", "fifo"].map(place);
    let gone: Vec<_> = kept.iter().filter(|path| path.symlink_metadata().is_err()).collect();
    report.check("and is left alone", gone.is_empty(), format!("{gone:?}"));

    fs::write(&board, &text[..text.len() / 2]).expect("our own folder");
    let peeked = peek(asks, "weekly");
    report.check("a torn board frees nothing", peeked["locked"] == true, peeked);
    holder.acquire("torn");
    let peeked = comes(asks, "torn", SHOWN_WITHIN, |it| is_held_at(it, "wa"));
    report.check("it is whole again with the next lock", is_held_at(&peeked, "wa"), peeked);

    fs::remove_file(&board).expect("it is there");
    fifo(board);
    let peeked = peek(asks, "weekly");
    report.check("a FIFO in its place frees nothing", peeked["locked"] == true, peeked);
    holder.acquire("fifo");
    // The host may still know for a minute that its file is there.
    let peeked = comes(asks, "fifo", 4 * SHOWN_WITHIN, |it| is_held_at(it, "wa"));
    report.check("the daemon makes itself another board", is_held_at(&peeked, "wa"), peeked);
    let peeked = comes(asks, "weekly", SHOWN_WITHIN, |it| is_held_at(it, "wa"));
    report.check("with all of its locks", is_held_at(&peeked, "wa"), peeked);
}

/// The holder's host is cut off for longer than the lease.
fn cut_off(report: &Report, a: &Host, (asks, also_asks): (&mut V1, &mut V1)) {
    let node = a.daemon(report, &[]);
    let mut holder = introduced(&node);
    holder.acquire("cut");
    let peeked = comes(asks, "cut", SHOWN_WITHIN, |it| is_held_at(it, "wa"));
    report.check("the next daemon of the host is named", is_held_at(&peeked, "wa"), peeked);
    a.cut();
    let peeked = comes(asks, "cut", LEASE_ENDS_WITHIN, |it| is_last_known_at(it, "wa"));
    report.check("so is it, as last known, when its lease has run out", is_last_known_at(&peeked, "wa"), peeked);
    let took = asks.gets("cut");
    let peeked = comes(also_asks, "cut", SHOWN_WITHIN, |it| is_held_at(it, "wb"));
    report.check("and then the next holder", took && is_held_at(&peeked, "wb"), peeked);
    a.heal();
    works_again(&node, report, Instant::now());
    holder.acquire("after");
    let peeked = comes(also_asks, "after", SHOWN_WITHIN, |it| is_held_at(it, "wa"));
    report.check("after the heal it is shown again", is_held_at(&peeked, "wa"), peeked);
    let peeked = comes(also_asks, "cut", SHOWN_WITHIN, |it| it["last_known"].is_null());
    let right = is_held_at(&peeked, "wb") && peeked["last_known"].is_null();
    report.check("and not what it has lost", right, peeked);
}

/// A daemon that stops leaves no board, and nothing is known of it.
fn stopped(report: &Report, node: &mut Node, holder: V1, asks: &mut V1) {
    let board = board_with("\"wb\"").expect("it was read");
    sh(&format!("kill -TERM {}", node.pid()));
    eventually("the daemon stops", || !node.runs());
    drop(holder);
    let peeked = comes(asks, "cut", SHOWN_WITHIN, is_free);
    let right = is_free(&peeked) && peeked["last_known"].is_null();
    report.check("a daemon that stops leaves no holder", right, peeked);
    let folder = board.parent().expect("it has one");
    let names: Vec<String> = fs::read_dir(folder)
        .expect("it is there")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    let left = board.exists() || names.iter().any(|name| name.starts_with(".nfs"));
    report.check("nor a board", !left, format!("{names:?}"));
}
