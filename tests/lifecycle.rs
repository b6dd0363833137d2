//! How a daemon starts, what it reports to its service manager, how sessions end, and how it stops.
//! A second daemon on the same directory sees from outside which locks the first one holds.

mod support;

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use support::{Daemon, Gob, V1, Ws, eventually, files, http, reset};
use tungstenite::Message;

/// A listener of the test's own, and its address.
fn listener() -> (OwnedFd, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    (listener.into(), address)
}

/// Another daemon on the directory of the first.
fn neighbour(daemon: &Daemon) -> Daemon {
    Daemon::setup().directory(daemon.directory()).start()
}

/// The lock becomes free for a session of `daemon`, which then releases it.
#[track_caller]
fn comes_free(daemon: &Daemon, lock: &str) {
    let mut client = V1::connect(&daemon.tcp());
    let reply = client.request(json!({"op": "acquire", "lock": lock, "wait_ms": 20000}));
    assert_eq!(reply["ok"], true, "{lock} did not come free: {reply}\n{}", daemon.said());
    client.release(lock);
}

#[track_caller]
fn is_empty_in_the_end(daemon: &Daemon) {
    let left = || files(daemon.directory());
    eventually("the directory is empty", || left().is_empty());
}

/// The stop: waiters get `closing`, connections end, the exit status is success, and no lock file
/// is left.
fn stops_at(signal: Signal) {
    let mut daemon = Daemon::start();
    let mut holder = V1::connect(&daemon.tcp());
    holder.acquire("stop");
    let mut waiter = V1::connect(&daemon.tcp());
    waiter.send(&json!({"id": 1, "op": "acquire", "lock": "stop", "wait_ms": null}));
    waiter.ping();
    let mut websocket = Ws::connect(&daemon.ws());
    websocket.acquire("websocket");
    websocket.send_text(r#"{"id":2,"op":"acquire","lock":"stop","wait_ms":null}"#);
    websocket.ping();
    let mut lingering = V1::connect(&daemon.tcp());
    lingering.acquire("released");
    lingering.release("released");

    daemon.signal(signal);
    let reply = waiter.receive();
    assert_eq!((&reply["id"], &reply["error"]), (&json!(1), &json!("closing")), "{reply}");
    let reply = websocket.receive_object();
    assert_eq!((&reply["id"], &reply["error"]), (&json!(2), &json!("closing")), "{reply}");
    waiter.closed();
    holder.closed();
    assert_eq!(websocket.close_code(), 1001, "going away (RFC 6455, section 7.4.1)");
    let status = daemon.wait();
    assert_eq!(status.code(), Some(0), "{status}\n{}", daemon.said());
    assert_eq!(files(daemon.directory()), [""; 0], "a lock file is left");
    assert!(daemon.notices().contains(&"STOPPING=1".to_owned()), "{:?}", daemon.notices());
}

/// SIGTERM stops the daemon in good order.
#[test]
fn stops_at_sigterm() {
    stops_at(Signal::SIGTERM);
}

/// SIGINT does the same as SIGTERM.
#[test]
fn stops_at_sigint() {
    stops_at(Signal::SIGINT);
}

/// A client that does not read cannot hold up the stop.
#[test]
fn stops_past_a_client_that_does_not_read() {
    let mut daemon = Daemon::start();
    let never = V1::connect(&daemon.tcp());
    never.stream().set_nonblocking(true).expect("a socket");
    let pings = "{\"op\":\"ping\"}\n".repeat(1000);
    let mut stream = never.stream();
    eventually("no more is taken", || stream.write_all(pings.as_bytes()).is_err());
    let half = V1::connect(&daemon.ws());
    assert_eq!(daemon.terminate().code(), Some(0), "{}", daemon.said());
    drop((never, half));
}

/// SIGHUP, which a terminal or a careless script sends, changes nothing.
#[test]
fn sighup_is_harmless() {
    let mut daemon = Daemon::start();
    let mut client = V1::connect(&daemon.tcp());
    client.acquire("hup");
    daemon.signal(Signal::SIGHUP);
    client.ping();
    V1::connect(&daemon.tcp()).ping();
    daemon.assert_alive();
    let reply = client.request(json!({"op": "verify", "lock": "hup"}));
    assert_eq!(reply["ok"], true, "{reply}");
}

/// A daemon is killed: the other one gets its locks, and its files are not left behind.
#[test]
fn a_killed_daemon_frees_its_locks() {
    let mut daemon = Daemon::start();
    let other = neighbour(&daemon);
    let mut holder = V1::connect(&daemon.tcp());
    holder.acquire("killed");
    let mut waiter = V1::connect(&other.tcp());
    assert!(!waiter.gets("killed"), "it is held next door");
    waiter.send(&json!({"id": 1, "op": "acquire", "lock": "killed", "wait_ms": 20000}));
    waiter.ping();
    daemon.kill();
    assert_eq!(waiter.receive(), json!({"id": 1, "ok": true, "lock": "killed"}));
    waiter.release("killed");
    is_empty_in_the_end(&other);
}

/// The next start removes what a crashed daemon left; locks that somebody holds stay.
#[test]
fn files_of_a_crash_are_cleared_at_start() {
    let mut crashed = Daemon::start();
    let living = neighbour(&crashed);
    let mut dead = V1::connect(&crashed.tcp());
    dead.acquire("dead");
    let mut holder = V1::connect(&living.tcp());
    holder.acquire("living");
    crashed.kill();
    let next = neighbour(&living);
    eventually("only the held lock's file stays", || files(next.directory()) == ["living.lck"]);
    let reply = holder.request(json!({"op": "verify", "lock": "living"}));
    assert_eq!(reply["ok"], true, "{reply}");
}

/// Each way in which a session can end frees its locks, on both fronts, as the other daemon sees.
#[test]
fn sessions_end_in_many_ways() {
    let daemon = Daemon::start();
    let other = neighbour(&daemon);
    let held = |lock: &str| {
        let mut client = V1::connect(&daemon.tcp());
        client.acquire(lock);
        let mut stranger = V1::connect(&other.tcp());
        assert!(!stranger.gets(lock), "{lock} is held");
        client
    };
    let websocket_held = |lock: &str| {
        let mut client = Ws::connect(&daemon.ws());
        client.acquire(lock);
        let mut stranger = V1::connect(&other.tcp());
        assert!(!stranger.gets(lock), "{lock} is held");
        client
    };
    drop(held("tcp-close"));
    let mut half_closed = held("tcp-fin");
    half_closed.finish();
    half_closed.closed();
    reset(held("tcp-rst").into_stream());
    let mut polite = held("tcp-bye");
    assert_eq!(polite.request(json!({"id": 1, "op": "bye"})), json!({"id": 1, "ok": true}));
    let mut stranger = V1::connect(&other.tcp());
    assert!(stranger.gets("tcp-bye"), "bye is answered when every lock is released");
    stranger.release("tcp-bye");
    polite.closed();
    let mut gob = Gob::connect(&daemon.tcp());
    assert!(gob.gets("gob-close"), "a free name");
    drop(gob);

    drop(websocket_held("ws-drop"));
    let fin = websocket_held("ws-fin").into_stream();
    fin.shutdown(std::net::Shutdown::Write).expect("a connected socket");
    reset(websocket_held("ws-rst").into_stream());
    let mut closing = websocket_held("ws-close");
    closing.send(Message::Close(None));
    let mut bye = websocket_held("ws-bye");
    assert_eq!(bye.request(json!({"op": "bye"}))["ok"], true);
    for lock in ["tcp-close", "tcp-fin", "tcp-rst", "gob-close", "ws-drop", "ws-fin", "ws-rst", "ws-close", "ws-bye"] {
        comes_free(&other, lock);
    }
    drop(fin);
}

/// However names were used, no file is left after the linger.
fn leaves_no_file(linger: Option<&str>) {
    let mut setup = Daemon::setup();
    if let Some(seconds) = linger {
        setup = setup.flag("--linger", seconds);
    }
    let daemon = setup.start();
    let mut client = V1::connect(&daemon.tcp());
    client.acquire("release");
    client.release("release");
    let mut fin = V1::connect(&daemon.tcp());
    fin.acquire("fin");
    drop(fin);
    let mut rst = V1::connect(&daemon.tcp());
    rst.acquire("rst");
    reset(rst.into_stream());
    let mut bye = V1::connect(&daemon.tcp());
    bye.acquire("bye");
    bye.request(json!({"op": "bye"}));
    // A cancelled wait and a refused try, also for a name that another daemon holds.
    let other = neighbour(&daemon);
    let mut holder = V1::connect(&other.tcp());
    holder.acquire("elsewhere");
    client.acquire("here");
    let mut waiter = V1::connect(&daemon.tcp());
    for lock in ["here", "elsewhere"] {
        assert!(!waiter.gets(lock), "{lock} is held");
        waiter.send(&json!({"id": lock, "op": "acquire", "lock": lock, "wait_ms": null}));
        waiter.request(json!({"op": "cancel", "request": lock}));
        assert_eq!(waiter.receive()["error"], "cancelled");
        let reply = waiter.request(json!({"op": "acquire", "lock": lock, "wait_ms": 10}));
        assert_eq!(reply["error"], "timeout", "{reply}");
    }
    for op in ["peek", "verify", "release"] {
        waiter.request(json!({"op": op, "lock": "never-held"}));
    }
    waiter.send(&json!({"op": "acquire", "lock": "here", "wait_ms": null}));
    waiter.send(&json!({"op": "acquire", "lock": "elsewhere", "wait_ms": null}));
    waiter.ping();
    reset(waiter.into_stream());
    client.release("here");
    holder.release("elsewhere");
    is_empty_in_the_end(&daemon);
}

/// After the default linger.
#[test]
fn no_file_is_left_after_the_linger() {
    leaves_no_file(None);
}

/// After a linger of a fraction of a second.
#[test]
fn no_file_is_left_after_a_short_linger() {
    leaves_no_file(Some("0.05"));
}

/// Without a linger.
#[test]
fn no_file_is_left_without_a_linger() {
    leaves_no_file(Some("0"));
}

/// `--linger 0` deletes the file at the release, not later; with a linger, the file stays and is
/// used again.
#[test]
fn the_file_goes_with_the_release_or_lingers() {
    let daemon = Daemon::setup().flag("--linger", "0").start();
    let mut client = V1::connect(&daemon.tcp());
    client.acquire("now");
    assert_eq!(files(daemon.directory()), ["now.lck"]);
    client.release("now");
    assert_eq!(files(daemon.directory()), [""; 0], "it is gone with the reply");

    let lingering = Daemon::setup().flag("--linger", "3600").start();
    let mut client = V1::connect(&lingering.tcp());
    client.acquire("later");
    client.release("later");
    assert_eq!(files(lingering.directory()), ["later.lck"]);
    let other = neighbour(&lingering);
    comes_free(&other, "later");
}

/// Passed sockets are recognized by their names, in any order.
#[test]
fn passed_sockets_go_by_name() {
    for names in ["tcp:ws", "ws:tcp"] {
        let ((first, one), (second, two)) = (listener(), listener());
        let daemon = Daemon::setup().passed(Some(names), vec![first, second]).start();
        let (tcp, ws) = if names == "tcp:ws" { (one, two) } else { (two, one) };
        V1::connect(&tcp).acquire("named");
        Ws::connect(&ws).ping();
        assert!(http(&ws, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").starts_with("HTTP/1.1 404"));
        drop(daemon);
    }
}

/// Several sockets of one kind are fine.
#[test]
fn passed_sockets_of_one_kind() {
    let ((first, one), (second, two)) = (listener(), listener());
    let _daemon = Daemon::setup().passed(Some("tcp:tcp"), vec![first, second]).start();
    V1::connect(&one).ping();
    V1::connect(&two).ping();
}

/// A single socket without a name is for TCP; systemd calls it `unknown` if its unit does not name
/// it.
#[test]
fn a_passed_socket_without_a_name() {
    let (socket, address) = listener();
    let _daemon = Daemon::setup().passed(None, vec![socket]).start();
    V1::connect(&address).ping();
    let (socket, address) = listener();
    let _daemon = Daemon::setup().passed(Some("unknown"), vec![socket]).start();
    V1::connect(&address).ping();
}

/// Meaningless names are refused, and so are missing names if there are two sockets; the message
/// says which.
#[test]
fn passed_sockets_with_wrong_names() {
    let two = || vec![listener().0, listener().0];
    let said = Daemon::setup().passed(Some("tcp:http"), two()).start_refused();
    assert!(said.contains("http"), "the wrong name is not told: {said}");
    let said = Daemon::setup().passed(None, two()).start_refused();
    assert!(!said.is_empty(), "a reason");
}

/// Anything but a listening stream socket is refused: a connection, a datagram socket, a file.
#[test]
fn passed_descriptors_that_do_not_listen() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let connection = TcpStream::connect(listener.local_addr().expect("bound")).expect("a connection");
    let unbound = UnixDatagram::unbound().expect("a socket");
    let datagrams = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let file = tempfile::tempfile().expect("a file");
    for wrong in [OwnedFd::from(connection), unbound.into(), datagrams.into(), file.into()] {
        let said = Daemon::setup().passed(Some("tcp"), vec![wrong]).start_refused();
        assert!(said.contains("tcp"), "the name of what is wrong: {said}");
    }
}

/// A passed Unix socket serves like any other socket.
#[test]
fn a_passed_unix_socket() {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("socket");
    let socket = UnixListener::bind(&path).expect("a socket");
    let daemon = Daemon::setup().passed(Some("tcp"), vec![socket.into()]).start();
    let mut client = V1::connect(&format!("unix:{}", path.display()));
    client.acquire("unix");
    drop(client);
    let other = neighbour(&daemon);
    comes_free(&other, "unix");
}

/// Several addresses on each front, IPv6 and Unix among them.
#[test]
fn listeners_of_all_kinds() {
    let place = tempfile::tempdir().expect("a directory");
    let unix = |name: &str| format!("unix:{}", place.path().join(name).display());
    let setup = Daemon::setup().tcp("127.0.0.1:0").tcp("[::1]:0").tcp(&unix("tcp"));
    let daemon = setup.ws("127.0.0.1:0").ws("[::1]:0").ws(&unix("ws")).start();
    let (tcp, ws) = (daemon.addresses("tcp"), daemon.addresses("ws"));
    assert_eq!((tcp.len(), ws.len()), (3, 3), "{}", daemon.said());
    assert_eq!((&tcp[2], &ws[2]), (&unix("tcp"), &unix("ws")));
    for (tcp, ws) in tcp.iter().zip(&ws) {
        assert!(!tcp.ends_with(":0") && !ws.ends_with(":0"), "real ports");
        V1::connect(tcp).ping();
        Gob::connect(tcp).gets("gob");
        Ws::connect(ws).ping();
    }
}

/// An address that is in use is refused, and the message names it.
#[test]
fn an_address_that_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let said = Daemon::setup().tcp(&address).start_refused();
    assert!(said.contains(&address), "{said}");
}

/// READY=1 is sent once, and from then on both fronts serve.
#[test]
fn ready_comes_last() {
    for _ in 0..10 {
        let daemon = Daemon::start();
        V1::connect(&daemon.tcp()).ping();
        Ws::connect(&daemon.ws()).ping();
        let ready = daemon.notices().iter().filter(|notice| *notice == "READY=1").count();
        assert_eq!(ready, 1, "{:?}", daemon.notices());
    }
}

/// STATUS= reports the sessions and the locks, at most once a second, however busy the daemon is.
#[test]
fn the_status_follows_slowly() {
    let daemon = Daemon::start();
    let numbers = |status: &str| -> Vec<u64> {
        status.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
    };
    let statuses = || -> Vec<(Instant, String)> {
        let notices = daemon.timed_notices().into_iter();
        notices.filter(|(_, notice)| notice.starts_with("STATUS=")).collect()
    };
    let tells = |expected: &[u64]| statuses().last().is_some_and(|(_, status)| numbers(status).starts_with(expected));
    let mut clients: Vec<V1> = (0..7).map(|_| V1::connect(&daemon.tcp())).collect();
    for lock in ["a", "b", "c"] {
        clients[0].acquire(lock);
    }
    eventually("7 sessions and 3 locks", || tells(&[7, 3]));
    for _ in 0..500 {
        clients[0].acquire("d");
        clients[0].release("d");
        drop(V1::connect(&daemon.tcp()));
    }
    drop(clients);
    eventually("nobody", || tells(&[0, 0]));
    // This counts messages rather than measuring intervals, because a loaded machine delivers late.
    let all = statuses();
    let (first, last) = (all[0].0, all[all.len() - 1].0);
    let seconds = usize::try_from((last - first).as_secs()).expect("not long");
    assert!(all.len() <= seconds + 2, "{} in {seconds} s\n{}", all.len(), daemon.said());
}

fn watchdog_pings(daemon: &Daemon) -> usize {
    daemon.notices().iter().filter(|notice| *notice == "WATCHDOG=1").count()
}

/// Watchdog pings arrive while the daemon makes progress, and end when it is stopped.
#[test]
fn the_watchdog_is_fed() {
    let daemon = Daemon::setup().script("export WATCHDOG_PID=$$").environment("WATCHDOG_USEC", "400000").start();
    eventually("pings", || watchdog_pings(&daemon) >= 3);
    daemon.signal(Signal::SIGSTOP);
    let state = || fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).expect("it lives");
    eventually("it is stopped", || state().contains(") T "));
    // Pings that it sent before may still be on their way to the list.
    let mut pings = 0;
    eventually("no ping for a second", || {
        pings = watchdog_pings(&daemon);
        thread::sleep(Duration::from_secs(1));
        watchdog_pings(&daemon) == pings
    });
    daemon.signal(Signal::SIGCONT);
    eventually("pings again", || watchdog_pings(&daemon) > pings);
}

/// The daemon does not ping a watchdog that is meant for another process, or one that is not set.
#[test]
fn the_watchdog_of_another() {
    let others = Daemon::setup().environment("WATCHDOG_USEC", "100000").environment("WATCHDOG_PID", "1").start();
    let none = Daemon::start();
    let fed = Daemon::setup().environment("WATCHDOG_USEC", "100000").start();
    eventually("the third is fed", || watchdog_pings(&fed) >= 5);
    assert_eq!((watchdog_pings(&others), watchdog_pings(&none)), (0, 0));
}

/// A waiter in one daemon gets the name when it is released in the other one, again and again and
/// without a busy loop.
#[test]
fn a_waiter_across_daemons() {
    let daemon = Daemon::start();
    let other = neighbour(&daemon);
    let mut holder = V1::connect(&daemon.tcp());
    let mut waiter = V1::connect(&other.tcp());
    holder.acquire("across");
    for id in 0..20 {
        waiter.send(&json!({"id": id, "op": "acquire", "lock": "across", "wait_ms": null}));
        waiter.ping();
        holder.release("across");
        assert_eq!(waiter.receive(), json!({"id": id, "ok": true, "lock": "across"}));
        std::mem::swap(&mut holder, &mut waiter);
    }
    waiter.send(&json!({"id": "last", "op": "acquire", "lock": "across", "wait_ms": null}));
    waiter.ping();
    daemon.becomes_idle();
    other.becomes_idle();
}

/// The other daemon's holder is a contender, and a try is refused.
#[test]
fn a_contender_is_seen() {
    let daemon = Daemon::start();
    let other = neighbour(&daemon);
    let mut holder = V1::connect(&daemon.tcp());
    holder.acquire("seen");
    let mut client = V1::connect(&other.tcp());
    let reply = client.request(json!({"id": 1, "op": "peek", "lock": "seen"}));
    let expected = json!({"id": 1, "ok": true, "lock": "seen", "locked": true, "holders": [], "waiters": 0,
        "contender": true});
    assert_eq!(reply, expected);
    client.send(&json!({"VersionMinor": 1, "Command": 2, "LockName": "seen"}));
    assert_eq!(client.receive()["Reason"], "resource acquired by different process");
    client.send(&json!({"VersionMinor": 1, "Command": 3, "LockName": "seen"}));
    assert_eq!(client.receive()["Reason"], "lock not found");
    let mut second = V1::connect(&daemon.tcp());
    second.send(&json!({"VersionMinor": 1, "Command": 2, "LockName": "seen"}));
    assert_eq!(second.receive()["Reason"], "resource acquired through a different session");
}

/// Readers of two daemons share a name; a writer waits for both, and they wait for the writer.
#[test]
fn readers_and_a_writer_across_daemons() {
    let daemon = Daemon::start();
    let other = neighbour(&daemon);
    let shared = json!({"op": "acquire", "lock": "rw", "mode": "shared"});
    let mut here = V1::connect(&daemon.tcp());
    let mut there = V1::connect(&other.tcp());
    assert_eq!(here.request(shared.clone())["ok"], true);
    assert_eq!(there.request(shared.clone())["ok"], true, "two readers, two daemons");
    let mut writer = V1::connect(&other.tcp());
    writer.send(&json!({"id": 1, "op": "acquire", "lock": "rw", "wait_ms": null}));
    writer.ping();
    there.release("rw");
    assert_eq!(there.request(shared.clone())["error"], "busy", "the writer waits before");
    here.release("rw");
    assert_eq!(writer.receive(), json!({"id": 1, "ok": true, "lock": "rw"}));
    assert_eq!(here.request(shared.clone())["error"], "busy", "the writer is alone");
    assert_eq!(there.request(shared)["error"], "busy");
    here.send(&json!({"id": 2, "op": "acquire", "lock": "rw", "mode": "shared", "wait_ms": 20000}));
    here.ping();
    writer.release("rw");
    assert_eq!(here.receive()["ok"], true);
}

/// The Unix socket of the command line goes at a stop, unless another one has taken its place.
#[test]
fn its_unix_socket_goes_at_a_stop() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s");
    let address = format!("unix:{}", path.display());
    let mut daemon = Daemon::setup().tcp(&address).start();
    V1::connect(&address).ping();
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(!path.exists(), "the socket is left");

    let mut daemon = Daemon::setup().tcp(&address).start();
    fs::remove_file(&path).expect("it is there");
    let _other = UnixListener::bind(&path).expect("the path is free");
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(path.exists(), "another one's socket is gone");
}

/// A connection that systemd has accepted (`Accept=yes`) is refused, not ignored.
#[test]
fn an_accepted_connection_is_refused() {
    for names in [None, Some("connection")] {
        let (listener, address) = listener();
        let connection = TcpStream::connect(address).expect("it listens");
        let said = Daemon::setup().passed(names, vec![connection.into()]).start_refused();
        assert!(said.contains("Accept=no"), "no remedy: {said}");
        drop(listener);
    }
}

/// `:PORT` is every address of the host, IPv4 included.
#[test]
fn every_address() {
    let daemon = Daemon::setup().tcp(":0").start();
    let address = daemon.tcp();
    let (_, port) = address.rsplit_once(':').expect("a port");
    V1::connect(&format!("127.0.0.1:{port}")).ping();
}

/// A byte order mark, as some editors write it, gets an answer.
#[test]
fn a_byte_order_mark_is_named() {
    let daemon = Daemon::start();
    let mut client = V1::connect(&daemon.tcp());
    client.stream().write_all(b"\xef\xbb\xbf{\"id\":1,\"op\":\"ping\"}\n").expect("the daemon reads");
    let reply = client.receive();
    assert_eq!(reply["error"], "bad_request", "{reply}");
    assert!(reply["message"].as_str().expect("a message").contains("byte order mark"), "{reply}");
    client.closed();
}
