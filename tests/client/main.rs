//! The client library against the real daemon over every transport, and against daemons that follow
//! a script.

#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::slice::from_ref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use distrilock_client::{
    AcquireError, BootTime, Builder, Client, ConnectError, DisconnectedError, Introduction, LostError, RequestError,
    Server, ServerError, Standing, Wanted, blocking, introduction_of_this_process,
};
use distrilock_testing::play;
use nix::sys::signal::Signal;
use serde_json::json;
use support::{Daemon, Dice, PATIENCE};
use tokio::time::{sleep, timeout};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn server(text: &str) -> Server {
    text.parse().expect("a server")
}

/// A daemon with one listener of each kind, and their addresses.
fn every_front() -> (Daemon, Vec<Server>, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder for the socket");
    let unix = format!("unix:{}", folder.path().join("socket").display());
    let daemon = Daemon::setup().tcp("127.0.0.1:0").ws("127.0.0.1:0").tcp(&unix).start();
    let servers = vec![server(&daemon.tcp()), server(&format!("ws://{}", daemon.ws())), server(&unix)];
    (daemon, servers, folder)
}

/// A client that soon notices that nobody answers.
fn quick() -> Builder {
    Client::builder().heartbeat(Duration::from_millis(100)).silence_max(Duration::from_secs(2))
}

/// Waits for something that must happen.
async fn due<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("never came: {what}"))
}

/// Waits for the end of a script and returns its result. The client's connection is driven
/// meanwhile.
async fn end_of<T: Send + 'static>(script: JoinHandle<T>) -> T {
    let joined = tokio::task::spawn_blocking(|| script.join());
    due("the end of the script", joined).await.expect("it is not cancelled").expect("the script does not panic")
}

async fn is_free(client: &Client, lock: &str) -> bool {
    !client.peek(lock).await.expect("the daemon answers").locked
}

/// Two clients over each pair of transports: one does not get what the other holds, until it is
/// released or dropped.
#[tokio::test]
async fn every_transport_locks() -> Outcome {
    let (_daemon, servers, _folder) = every_front();
    for one in &servers {
        for other in &servers {
            let (one, other) = (Client::connect(from_ref(one)).await?, Client::connect(from_ref(other)).await?);
            let held = one.lock("a").acquire().await?;
            held.verify().await?;
            let busy = other.lock("a").acquire().await;
            assert!(matches!(busy, Err(AcquireError::Busy { .. })), "{busy:?}");
            held.release().await?;
            let held = other.lock("a").acquire().await?;
            drop(held);
            let held = due("what was dropped", one.lock("a").wait().acquire()).await?;
            assert!(!held.is_lost() && held.valid_for() > Duration::from_secs(10));
            drop((held, one));
            let _held = due("what was dropped with its client", other.lock("a").wait().acquire()).await?;
            other.bye().await?;
        }
    }
    Ok(())
}

/// The same without async, and with a lock that outlives the handle of its client.
#[test]
fn the_blocking_twin_locks() -> Outcome {
    let (_daemon, servers, _folder) = every_front();
    for one in &servers {
        let (one, other) = (blocking::Client::connect(from_ref(one))?, blocking::Client::connect(&servers)?);
        let held = one.lock("a").acquire()?;
        drop(one);
        held.verify()?;
        assert!(matches!(other.lock("a").acquire(), Err(AcquireError::Busy { .. })));
        let timed_out = other.lock("a").wait_at_most(Duration::from_millis(20)).acquire();
        assert!(matches!(timed_out, Err(AcquireError::Timeout { .. })), "{timed_out:?}");
        assert_eq!(held.lost_within(Duration::from_millis(20)), None);
        drop(held);
        other.lock("a").wait().acquire()?.release()?;
        let (first, second) = (other.lock("s").shared().acquire()?, blocking::Client::connect(&servers)?);
        let _second = second.lock("s").shared().acquire()?;
        assert_eq!(other.list()?[0].holders.len(), 2);
        first.release()?;
        other.bye()?;
        assert_eq!(other.ended(), Some(DisconnectedError::Bye));
    }
    Ok(())
}

/// The daemon dies: every lock is lost at once, and the client does not reconnect.
#[tokio::test]
async fn the_daemon_dies() -> Outcome {
    let (mut daemon, servers, _folder) = every_front();
    for server in &servers {
        let client = Client::connect(from_ref(server)).await?;
        let (held, other) = (client.lock("a").acquire().await?, client.lock("b").acquire().await?);
        let twin = blocking::Client::connect(from_ref(server))?;
        let twins = twin.lock("c").acquire()?;
        daemon.kill();
        let lost = due("the loss", held.lost()).await;
        assert!(
            matches!(lost, LostError::Disconnected(DisconnectedError::Closed | DisconnectedError::Broken { .. })),
            "{lost:?}"
        );
        assert!(held.is_lost() && other.is_lost() && held.valid_until().is_none());
        assert!(matches!(twins.lost(), LostError::Disconnected(_)));
        assert!(matches!(held.verify().await, Err(RequestError::Lost(_))));
        assert!(matches!(other.release().await, Err(RequestError::Lost(_))));
        let directory = daemon.directory().to_owned();
        let (tcp, ws, unix) = (daemon.addresses("tcp"), daemon.ws(), servers[2].to_string());
        let next = Daemon::setup().directory(&directory).tcp(&tcp[0]).ws(&ws).tcp(&unix).start();
        assert!(matches!(client.lock("a").acquire().await, Err(AcquireError::Disconnected(_))));
        assert!(client.ended().is_some());
        let anew = Client::connect(from_ref(server)).await?;
        anew.lock("a").acquire().await?;
        let before = std::mem::replace(&mut daemon, next);
        // The next daemon uses its directory, so it must not be deleted.
        std::mem::forget(before);
    }
    Ok(())
}

/// The daemon is stopped and answers nothing: the client's own clock ends what it holds, and its
/// wait, with the reason.
#[tokio::test]
async fn the_daemon_falls_silent() -> Outcome {
    let (daemon, servers, _folder) = every_front();
    for server in &servers {
        let (one, other) = (quick().connect(from_ref(server)).await?, quick().connect(from_ref(server)).await?);
        let held = one.lock("a").acquire().await?;
        let waiting = tokio::spawn(other.lock("a").wait().acquire());
        let watch = Client::connect(&servers).await?;
        due("the other one waits", async {
            while watch.peek("a").await.expect("the daemon answers").waiters == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        drop(watch);
        let valid = held.valid_until().expect("it is held");
        due("a heartbeat makes it later", async {
            while held.valid_until() <= Some(valid) {
                sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        daemon.signal(Signal::SIGSTOP);
        let until = held.valid_until().expect("it is held");
        let lost = due("the loss", held.lost()).await;
        assert!(matches!(lost, LostError::Disconnected(DisconnectedError::Silent { .. })), "{lost:?}");
        assert!(BootTime::now() >= until, "given up before its time");
        let waited = due("the end of the wait", waiting).await?;
        assert!(matches!(waited, Err(AcquireError::Disconnected(DisconnectedError::Silent { .. }))), "{waited:?}");
        daemon.signal(Signal::SIGCONT);
        // Until then the daemon considers them alive: the work that the lock guards may not have
        // stopped.
        drop((held, one, other));
        let again = Client::connect(from_ref(server)).await?;
        due("what the silent clients left", again.lock("a").wait().acquire()).await?;
    }
    Ok(())
}

/// A program blocks the thread that should send heartbeats: the lock counts as lost by its own
/// clock, as soon as it looks.
#[tokio::test]
async fn a_runtime_that_stands_still() -> Outcome {
    let (_daemon, servers, _folder) = every_front();
    let client = quick().connect(&servers).await?;
    let held = client.lock("a").acquire().await?;
    let until = held.valid_until().expect("it is held");
    while BootTime::now() < until {
        assert!(!held.is_lost(), "lost before its time");
        thread::sleep(Duration::from_millis(5));
    }
    assert!(held.is_lost(), "nothing says held after its deadline");
    assert!(matches!(held.release().await, Err(RequestError::Lost(_))));
    Ok(())
}

/// Somebody deletes the file of a lock by hand: verify notices, and everybody who waits for the
/// loss hears of it.
#[tokio::test]
async fn the_lock_file_is_deleted() -> Outcome {
    let (daemon, servers, _folder) = every_front();
    let client = Client::connect(&servers).await?;
    let (held, other) = (client.lock("a").acquire().await?, client.lock("b").acquire().await?);
    fs::remove_file(daemon.file("a"))?;
    let verified = held.verify().await;
    assert!(matches!(verified, Err(RequestError::Lost(LostError::Told { .. }))), "{verified:?}");
    let lost = due("the loss", held.lost()).await;
    assert!(matches!(&lost, LostError::Told { lock, .. } if lock.as_str() == "a"), "{lost:?}");
    assert!(held.is_lost() && !other.is_lost());
    other.verify().await?;
    // The session can acquire it again, and the end of the first grant does not affect that.
    due("the end of the loss", async {
        while matches!(client.lock("a").acquire().await, Err(AcquireError::AlreadyHeld { .. })) {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let again = client.lock("a").wait().acquire().await?;
    assert!(matches!(held.release().await, Err(RequestError::Lost(_))));
    again.verify().await?;
    assert!(!is_free(&client, "a").await);
    Ok(())
}

/// A session holds a lock once. A dropped lock can be requested again at once.
#[tokio::test]
async fn a_client_holds_a_lock_once() -> Outcome {
    let (_daemon, servers, _folder) = every_front();
    let client = Client::connect(&servers).await?;
    let held = client.lock("a").acquire().await?;
    let again = client.lock("a").wait().acquire().await;
    assert!(matches!(&again, Err(AcquireError::AlreadyHeld { lock }) if lock.as_str() == "a"), "{again:?}");
    held.verify().await?;
    drop(held);
    for _ in 0..100 {
        drop(client.lock("a").acquire().await?);
    }
    let other = Client::connect(&servers).await?;
    let held = due("what was dropped", other.lock("a").wait().acquire()).await?;
    // An abandoned acquire makes room too.
    for _ in 0..100 {
        let waiting = tokio::spawn(client.lock("a").wait().acquire());
        tokio::task::yield_now().await;
        waiting.abort();
        // It is abandoned once its task has been dropped, which happens after the call.
        assert!(waiting.await.is_err_and(|error| error.is_cancelled()), "it was granted what another one holds");
    }
    drop(held);
    due("the last one", client.lock("a").wait().acquire()).await?;
    Ok(())
}

/// Others see what a client says of itself, whether it holds or waits. A new introduction replaces
/// the old one.
#[tokio::test]
async fn clients_are_introduced() -> Outcome {
    let (_daemon, servers, _folder) = every_front();
    for server in &servers {
        let builder =
            Client::builder().name("backup@db1").note("nightly").host("db1").pid(4711).command("b -v").user("joe");
        let client = builder.connect(from_ref(server)).await?;
        let _held = client.lock("a").acquire().await?;
        let other = Client::connect(&servers).await?;
        let peeked = other.peek("a").await?;
        let seen = &peeked.holders[0];
        let said = &seen.introduction;
        let texts = [&said.name, &said.note, &said.host, &said.command, &said.user];
        assert_eq!(texts.map(|text| text.as_deref()), ["backup@db1", "nightly", "db1", "b -v", "joe"].map(Some));
        assert_eq!((said.pid, seen.mode.as_str(), &seen.session), (Some(4711), "exclusive", &client.welcome().session));
        let waiting = tokio::spawn(other.lock("a").wait().acquire());
        client.hello(&Introduction { user: Some("jim".into()), ..Introduction::default() }).await?;
        let listed = due("the other one waits", async {
            loop {
                match client.list().await.expect("a list").remove(0) {
                    lock if lock.waiters.is_empty() => sleep(Duration::from_millis(1)).await,
                    lock => return lock,
                }
            }
        })
        .await;
        let said = &listed.holders[0].introduction;
        assert_eq!((&said.name, said.user.as_deref(), said.pid), (&None, Some("jim"), None));
        assert_eq!(listed.waiters[0].session, other.welcome().session);
        client.hello(&introduction_of_this_process()).await?;
        assert_eq!(client.peek("a").await?.holders[0].introduction.pid, Some(std::process::id()));
        waiting.abort();
    }
    Ok(())
}

/// A server that answers the hello with another version, which means another protocol, is refused.
#[tokio::test]
async fn another_version() -> Outcome {
    for version in [0, 2, 99] {
        let (server, _script) = play(move |mut peer| {
            let hello = peer.expect("hello");
            peer.yes(&hello, &json!({"version": version, "session": "s", "node": "n", "directory": "local", "dead_after_ms": 45_000}));
            peer.rest()
        });
        let Err(ConnectError::Unreachable(attempts)) = due("an answer", Client::connect(&[server])).await else {
            panic!("version {version} is not refused")
        };
        assert!(matches!(attempts[0].failure, ServerError::Version { version: said } if said == version));
        assert!(attempts[0].to_string().contains("upgrade"), "{}", attempts[0]);
    }
    Ok(())
}

/// A list that never ends does not fill the memory, and pages that go back or stand still are not
/// part of the protocol.
#[tokio::test]
async fn endless_lists() -> Outcome {
    let (server, script) = play(|mut peer| {
        peer.welcome("local");
        let mut pages = 0_u64;
        let note = "n".repeat(60_000);
        while let Some(request) = peer.request() {
            if request["op"] != "list" {
                peer.yes(&request, &json!({}));
                continue;
            }
            let holders = format!(r#"[{{"session":"s","note":"{note}","since_ms":0}}]"#);
            let lock = |n| format!(r#"{{"lock":"{pages:09}-{n}","holders":{holders}}}"#);
            let locks: Vec<String> = (0..8).map(lock).collect();
            let (id, locks) = (&request["id"], locks.join(","));
            peer.send_text(&format!(r#"{{"id":{id},"ok":true,"locks":[{locks}],"more":true}}"#));
            pages += 1;
        }
        pages
    });
    let client = Client::connect(&[server]).await?;
    // Reading 64 MiB takes a while on a busy machine.
    let error = timeout(4 * PATIENCE, client.list()).await.expect("the list ends").unwrap_err();
    assert!(matches!(error, RequestError::EndlessList { .. }), "{error}");
    drop(client);
    assert!(end_of(script).await > 100);

    let lock = |name: &str| json!({"lock": name});
    for page in [vec![lock("b"), lock("a")], vec![lock("a"), lock("a")], vec![]] {
        let (server, _script) = play(move |mut peer| {
            peer.welcome("local");
            let request = peer.expect("list");
            peer.yes(&request, &json!({"locks": page, "more": true}));
            peer.rest()
        });
        let client = Client::connect(&[server]).await?;
        let error = due("an answer", client.list()).await.unwrap_err();
        assert!(matches!(error, RequestError::Disconnected(DisconnectedError::Garbage { .. })), "{error}");
    }
    Ok(())
}

/// Servers that never answer share the time that there is for all; one behind them that does
/// answer gets its part.
#[tokio::test]
async fn the_time_for_all_servers() -> Outcome {
    let silent = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    let mut servers: Vec<Server> =
        silent.iter().map(|listener| server(&listener.local_addr().expect("it is bound").to_string())).collect();
    let builder = || Client::builder().connect_within_in_all(Duration::from_secs(3));
    let error = due("the end", builder().connect(&servers)).await.unwrap_err();
    let ConnectError::Unreachable(attempts) = error else { panic!("{error}") };
    assert_eq!(attempts.len(), 2);
    assert!(
        attempts
            .iter()
            .all(|one| matches!(one.failure, ServerError::TimedOut { after } if after <= Duration::from_secs(3)))
    );
    let daemon = Daemon::start();
    servers.push(server(&daemon.tcp()));
    let client = due(
        "the third server",
        Client::builder().connect_within_in_all(PATIENCE).connect_within(Duration::from_secs(1)).connect(&servers),
    )
    .await?;
    assert_eq!(client.server(), &servers[2]);
    Ok(())
}

/// A list has as many pages as it needs.
#[tokio::test]
async fn long_lists() -> Outcome {
    let (_daemon, servers, _folder) = every_front();
    let client = Client::builder().note("x".repeat(250)).connect(&servers[1..]).await?;
    let mut held = Vec::new();
    for n in 0..600 {
        held.push(client.lock(format!("lock-{n:03}")).acquire().await?);
    }
    let listed = client.list().await?;
    assert!(listed.iter().map(|lock| lock.lock.clone()).eq((0..600).map(|n| format!("lock-{n:03}"))));
    Ok(())
}

/// An invalid request is refused before it is sent, and the error names what it is about.
#[tokio::test]
async fn what_cannot_be_asked() -> Outcome {
    let (_daemon, servers, _folder) = every_front();
    let client = Client::connect(&servers).await?;
    assert!(matches!(client.lock("a/b").acquire().await, Err(AcquireError::BadName(_))));
    assert!(matches!(client.peek("").await, Err(RequestError::BadName(_))));
    let twice = client.locks(["a", "a"]).acquire().await;
    assert!(matches!(&twice, Err(AcquireError::BadRequest { lock: Some(lock), .. }) if lock.as_str() == "a"));
    let none: [&str; 0] = [];
    assert!(matches!(client.locks(none).acquire().await, Err(AcquireError::BadRequest { .. })));
    let many = (0..65).map(|n| n.to_string());
    assert!(matches!(client.locks(many).acquire().await, Err(AcquireError::BadRequest { .. })));
    let long = Introduction { note: Some("x".repeat(70_000)), ..Introduction::default() };
    assert!(matches!(client.hello(&long).await, Err(RequestError::TooLong { .. })));
    let connected = Client::builder().introduction(long).connect(&servers).await;
    assert!(matches!(connected, Err(ConnectError::TooLong { .. })));
    let refused = Client::builder().name("x".repeat(200)).connect(&servers[..1]).await.unwrap_err();
    assert!(
        matches!(&refused, ConnectError::Unreachable(attempts) if matches!(attempts[0].failure, ServerError::Refused { .. }))
    );
    client.ping().await?;
    Ok(())
}

/// Tasks drop their acquires at any moment, over every transport, on clients of their own and on
/// shared ones. No two ever hold the same lock, and in the end nothing is held, although every
/// client is still connected.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn acquires_are_dropped_at_any_moment() -> Outcome {
    const TASKS: usize = 24;
    const ROUNDS: usize = 4000;
    const NAMES: usize = 3;
    let (_daemon, servers, _folder) = every_front();
    let holders: Arc<[AtomicUsize; NAMES]> = Arc::default();
    let granted = Arc::new(AtomicUsize::new(0));
    let (mut clients, mut tasks) = (Vec::new(), Vec::new());
    for task in 0..TASKS {
        if task % 2 == 0 {
            clients.push(Client::connect(&servers[task / 2 % servers.len()..][..1]).await?);
        }
        let client = clients[clients.len() - 1].clone();
        let (holders, granted) = (Arc::clone(&holders), Arc::clone(&granted));
        tasks.push(tokio::spawn(async move {
            let mut dice = Dice::new(task as u64 + 1);
            for _ in 0..ROUNDS {
                let name = usize::try_from(dice.below(NAMES as u64)).expect("it is small");
                let acquire = client.lock(format!("n{name}"));
                let acquire = if dice.below(4) == 0 { acquire } else { acquire.wait() };
                let patience = Duration::from_micros(dice.below(1500));
                let result = tokio::select! {
                    biased;
                    () = sleep(patience) => continue,
                    result = acquire.acquire() => result,
                };
                match result {
                    Ok(held) => {
                        granted.fetch_add(1, Ordering::SeqCst);
                        assert_eq!(holders[name].fetch_add(1, Ordering::SeqCst), 0, "two hold n{name}");
                        if dice.below(2) == 0 {
                            tokio::task::yield_now().await;
                        }
                        assert_eq!(holders[name].fetch_sub(1, Ordering::SeqCst), 1);
                        match dice.below(3) {
                            0 => held.release().await.expect("a release"),
                            1 => drop(timeout(Duration::ZERO, held.release()).await),
                            _ => drop(held),
                        }
                    }
                    Err(
                        AcquireError::Busy { .. } | AcquireError::AlreadyHeld { .. } | AcquireError::Deadlock { .. },
                    ) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        }));
    }
    for task in tasks {
        due("the end of a task", task).await?;
    }
    assert!(granted.load(Ordering::SeqCst) > 100, "only {granted:?} grants: this test tests nothing");
    let watch = Client::connect(&servers).await?;
    due("nothing is held, and nobody waits", async {
        while !watch.list().await.expect("a list").is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(clients.iter().all(|client| client.ended().is_none()), "every client is still connected");
    Ok(())
}

/// A server that accepts connections, sends `bytes` (over and over if `endless`), and reads what
/// comes.
fn stranger(bytes: &'static [u8], endless: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            thread::spawn(move || {
                while stream.write_all(bytes).is_ok() && endless {}
                let mut sink = [0; 1024];
                while stream.read(&mut sink).is_ok_and(|count| count > 0) {}
            });
        }
    });
    address
}

/// The server is not a daemon: each kind of garbage causes an error in time, over TCP and
/// WebSocket.
#[tokio::test]
async fn strangers_are_told_apart() -> Outcome {
    let within = Duration::from_millis(500);
    let unanswered = |failure: &ServerError| matches!(failure, ServerError::TimedOut { .. });
    let strange = |failure: &ServerError| matches!(failure, ServerError::Stranger { .. });
    let deep: &[u8] = Box::leak(format!("{}\n", "[".repeat(100_000)).into_bytes().into_boxed_slice());
    let endless: &[u8] = Box::leak(vec![b'x'; 64 * 1024].into_boxed_slice());
    let cases: [(&str, &'static [u8], bool, bool); 10] = [
        ("HTTP", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", false, false),
        ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n", false, false),
        ("bytes", b"\x00\xff\xfe\x16\x03\x01\n\x00\n", false, false),
        ("nested", deep, false, false),
        ("a reply to nobody", b"{\"id\":77,\"ok\":true}\n", false, false),
        ("no object", b"[1,2,3]\n", false, false),
        ("a hello without members", b"{\"id\":1,\"ok\":true}\n", false, false),
        ("an endless line", endless, true, false),
        ("nothing", b"", false, true),
        ("half a line", b"{\"id\":1,", false, true),
    ];
    for (what, bytes, endless, silent) in cases {
        let address = stranger(bytes, endless);
        let start = Instant::now();
        let error = Client::builder().connect_within(within).connect(&[server(&address)]).await.unwrap_err();
        let ConnectError::Unreachable(attempts) = &error else { panic!("{what}: {error:?}") };
        let failure = &attempts[0].failure;
        assert!(if silent { unanswered(failure) } else { strange(failure) }, "{what}: {failure:?}");
        assert!(start.elapsed() < PATIENCE, "{what}");
        let shown = error.to_string();
        assert!(
            shown.contains(&address) && shown.len() < 1500 && !shown.contains(char::is_control),
            "{what}: {shown:?}"
        );
        let error = Client::builder().connect_within(within).connect(&[server(&format!("ws://{address}"))]).await;
        let Err(ConnectError::Unreachable(attempts)) = error else { panic!("{what}: {error:?}") };
        let failure = &attempts[0].failure;
        assert!(strange(failure) || unanswered(failure), "{what}, WebSocket: {failure:?}");
    }
    Ok(())
}

/// Nobody listens: the error names each address, the reason, and the remedy. The next server is
/// tried.
#[tokio::test]
async fn nobody_listens() -> Outcome {
    let (daemon, servers, folder) = every_front();
    let vacant = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let none = format!("unix:{}", folder.path().join("none").display());
    let away = [server(&vacant), server(&none)];
    let error = Client::connect(&away).await.unwrap_err().to_string();
    for part in [&vacant, &none, "refused", "systemctl start distrilock.socket"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let all = [&away[..], &servers[..]].concat();
    assert_eq!(Client::connect(&all).await?.server(), &server(&daemon.tcp()));
    assert!(matches!(Client::connect(&[]).await, Err(ConnectError::NoServer)));
    Ok(())
}

/// The daemon gives silent clients up early: the client's own deadline is even earlier, or it does
/// not connect at all.
#[tokio::test]
async fn the_deadline_fits_the_daemon() -> Outcome {
    let daemon = Daemon::setup().flag("--dead-after", "12").start();
    let servers = [server(&daemon.tcp())];
    let held = Client::connect(&servers).await?.lock("a").acquire().await?;
    assert!(held.valid_for() < Duration::from_secs(2), "{:?}", held.valid_for());
    held.verify().await?;
    let error = Client::builder().stop_within(Duration::from_secs(12)).connect(&servers).await.unwrap_err();
    assert!(
        matches!(&error, ConnectError::Unreachable(attempts) if matches!(attempts[0].failure, ServerError::NoTime { .. })),
        "{error}"
    );
    assert!(error.to_string().contains("--dead-after"), "{error}");
    Ok(())
}

/// Slots, fences and several locks: the requests, and the grants.
#[tokio::test]
async fn more_than_a_lock() -> Outcome {
    let (server, script) = play(|mut peer| {
        peer.welcome("local");
        let request = peer.expect("acquire");
        assert_eq!(
            request,
            json!({"id":request["id"],"op":"acquire","lock":"gpu","mode":"shared","slots":4,"take":2,"fence":true,"wait_ms":1500})
        );
        peer.yes(&request, &json!({"lock":"gpu","slot":2,"taken":[2,3],"fence":91,"news":{"from":"tomorrow"}}));
        let request = peer.expect("acquire");
        let locks = json!(["b", {"lock":"a","mode":"shared"}, {"lock":"gpu2","slots":8,"take":1}]);
        assert_eq!(request, json!({"id":request["id"],"op":"acquire","locks":locks,"wait_ms":null}));
        peer.yes(
            &request,
            &json!({"locks":[{"lock":"b","fence":7},{"lock":"a","mode":"shared"},{"lock":"gpu2","slot":5}]}),
        );
        assert_eq!(peer.expect("verify")["lock"], "b");
        peer.rest()
    });
    let client = Client::connect(&[server]).await?;
    let wait = Duration::from_micros(1_499_001);
    let held = client.lock("gpu").shared().slots(4).take(2).fence().wait_at_most(wait).acquire().await?;
    assert_eq!((held.slot(), held.slots(), held.fence()), (Some(2), &[2, 3][..], Some(91)));
    let wanted = [Wanted::new("b"), Wanted::new("a").shared(), Wanted::new("gpu2").slots(8).take(1)];
    let several = client.locks(wanted).wait().acquire().await?;
    assert!(several.names().map(|name| name.as_str()).eq(["b", "a", "gpu2"]));
    assert_eq!((several.fence(), several.locks()[2].slots.clone()), (Some(7), vec![5]));
    // The script does not answer the first of the three.
    assert!(timeout(Duration::from_millis(50), several.verify()).await.is_err());
    several.release().await?;
    drop((held, client));
    let rest = end_of(script).await;
    let releases: Vec<_> = rest.iter().filter(|request| request["op"] == "release").collect();
    assert_eq!(releases[0]["locks"], json!(["b", "a", "gpu2"]), "{rest:?}");
    Ok(())
}

/// Every word of the protocol has a variant, an unknown one is also an error, and unknown events
/// are harmless.
#[tokio::test]
async fn refusals_are_typed() -> Outcome {
    const WORDS: [&str; 11] = [
        "busy",
        "timeout",
        "cancelled",
        "mismatch",
        "deadlock",
        "limit",
        "bad_request",
        "storage",
        "denied",
        "closing",
        "unheard_of",
    ];
    let (server, script) = play(|mut peer| {
        peer.welcome("local");
        for word in WORDS {
            peer.send(&json!({"event":"eclipse","lock":"b","of":"the moon"}));
            let request = peer.expect("acquire");
            peer.no(&request, &json!({"error":word,"message":"a\u{1b}[2Jb","lock":"b","more":1}));
        }
    });
    let client = Client::connect(&[server]).await?;
    let mut seen = Vec::new();
    for word in WORDS {
        let error = client.locks(["a", "b"]).acquire().await.unwrap_err();
        assert_eq!(error.lock().map(|lock| lock.as_str()), Some("b"));
        assert!(!error.to_string().contains('\u{1b}'), "a message is fit for a terminal");
        match &error {
            AcquireError::Unexpected { word: unknown, .. } => {
                assert_eq!((unknown.as_str(), word), ("unheard_of", word))
            }
            error => seen.push(std::mem::discriminant(error)),
        }
    }
    seen.dedup();
    assert_eq!(seen.len(), WORDS.len() - 1, "each word has a variant of its own");
    end_of(script).await;
    Ok(())
}

/// The daemon cannot reach the storage: what is held becomes suspect, then held again, then suspect
/// until it is lost.
#[tokio::test]
async fn the_daemon_doubts() -> Outcome {
    let (server, script) = play(|mut peer| {
        peer.welcome("nfs4");
        for lock in ["a", "b"] {
            let request = peer.expect("acquire");
            peer.yes(&request, &json!({"lock":lock,"valid_ms":60000}));
        }
        for event in [
            json!({"event":"suspect","lock":"a","valid_ms":5000}),
            json!({"event":"held","lock":"a"}),
            json!({"event":"suspect","lock":"a","valid_ms":300}),
        ] {
            peer.send(&event);
            if event["valid_ms"] != 300 {
                let peek = peer.expect("peek");
                peer.yes(&peek, &json!({"lock":"a","locked":true}));
            }
        }
        peer.rest()
    });
    let client = Client::connect(&[server]).await?;
    let (held, other) = (client.lock("a").acquire().await?, client.lock("b").acquire().await?);
    let step = || {
        drop(tokio::spawn({
            let client = client.clone();
            async move { client.peek("a").await }
        }))
    };
    let suspect = due("the doubt", held.changed(&Standing::Held)).await;
    assert!(matches!(suspect, Standing::Suspect(_)) && held.is_suspected() && !held.is_lost());
    assert!(held.valid_for() <= Duration::from_secs(5) && other.valid_for() > Duration::from_secs(5));
    step();
    assert_eq!(due("its end", held.changed(&suspect)).await, Standing::Held);
    assert!(held.valid_for() > Duration::from_secs(5));
    step();
    assert_eq!(due("the loss", held.lost()).await, LostError::Unproven);
    assert!(!other.is_lost() && client.ended().is_none());
    // It is released nevertheless.
    drop((held, other, client));
    let rest = end_of(script).await;
    assert!(rest.iter().all(|request| request["op"] != "acquire"), "{rest:?}");
    Ok(())
}

/// The storage has a deadline: heartbeats extend it, and a grant after a wait gets a fresh one
/// before it is delivered.
#[tokio::test]
async fn the_storage_has_a_deadline() -> Outcome {
    let (server, script) = play(|mut peer| {
        peer.welcome("nfs4");
        let request = peer.expect("acquire");
        peer.yes(&request, &json!({"lock":"a","valid_ms":700}));
        // Three heartbeats are answered with a proof; together they outlast the first deadline.
        for _ in 0..3 {
            let ping = peer.request().expect("a heartbeat");
            assert_eq!(ping["op"], "ping");
            thread::sleep(Duration::from_millis(100));
            peer.yes(&ping, &json!({"valid_ms":700}));
        }
        let request = peer.expect("acquire");
        thread::sleep(Duration::from_millis(300));
        peer.yes(&request, &json!({"lock":"w","valid_ms":200}));
        let mut proofs = 2;
        while let Some(ping) = peer.request() {
            if ping["op"] == "ping" && proofs > 0 {
                peer.yes(&ping, &json!({"valid_ms":2000}));
                proofs -= 1;
            } else {
                peer.yes(&ping, &json!({}));
            }
        }
    });
    let client = quick().connect(&[server]).await?;
    let held = client.lock("a").acquire().await?;
    let first = held.valid_until().expect("it is held");
    due("later proofs", async {
        while held.valid_until().expect("it stays held") < first + Duration::from_millis(200) {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let waited = due("the grant", client.lock("w").wait().acquire()).await?;
    assert!(waited.valid_for() > Duration::from_millis(500), "{:?}", waited.valid_for());
    let until = waited.valid_until().expect("it is held");
    assert_eq!(due("the loss", waited.lost()).await, LostError::Unproven);
    assert!(BootTime::now() >= until);
    drop((held, waited, client));
    end_of(script).await;
    Ok(())
}

/// The daemon breaks the protocol in the middle of a session: everything is lost, with the reason.
#[tokio::test]
async fn a_daemon_goes_mad() -> Outcome {
    for nonsense in [
        "nonsense",
        "{}",
        "[]",
        "{\"id\":9999,\"ok\":true}",
        "{\"id\":\"x\",\"ok\":true}",
        "{\"id\":1e99,\"ok\":true}",
        "\u{7f}",
    ] {
        let (server, script) = play(move |mut peer| {
            peer.welcome("local");
            let request = peer.expect("acquire");
            peer.yes(&request, &json!({"lock":"a"}));
            peer.expect("peek");
            peer.send_text(nonsense);
            peer.rest()
        });
        let client = Client::connect(&[server]).await?;
        let held = client.lock("a").acquire().await?;
        let peeked = client.peek("a").await;
        assert!(
            matches!(peeked, Err(RequestError::Disconnected(DisconnectedError::Garbage { .. }))),
            "{nonsense}: {peeked:?}"
        );
        let lost = due("the loss", held.lost()).await;
        assert!(matches!(lost, LostError::Disconnected(DisconnectedError::Garbage { .. })), "{nonsense}: {lost:?}");
        drop((held, client));
        end_of(script).await;
    }
    // A grant of something else does not count.
    for grant in
        [json!({"lock":"b"}), json!({}), json!({"lock":"a","slot":-1}), json!({"lock":"a","slot":1,"taken":[1,1]})]
    {
        let shown = grant.to_string();
        let (server, script) = play(move |mut peer| {
            peer.welcome("local");
            let request = peer.expect("acquire");
            peer.yes(&request, &grant);
            peer.rest()
        });
        let client = Client::connect(&[server]).await?;
        let granted = client.lock("a").acquire().await;
        assert!(
            matches!(granted, Err(AcquireError::Disconnected(DisconnectedError::Garbage { .. }))),
            "{shown}: {granted:?}"
        );
        drop(client);
        end_of(script).await;
    }
    Ok(())
}

/// The daemon's last words before it closes are the reason.
#[tokio::test]
async fn last_words() -> Outcome {
    let (server, script) = play(|mut peer| {
        peer.welcome("local");
        let request = peer.expect("acquire");
        peer.yes(&request, &json!({"lock":"a"}));
        peer.expect("peek");
        peer.send(&json!({"ok":false,"error":"closing","message":"the daemon stops"}));
    });
    let client = Client::connect(&[server]).await?;
    let held = client.lock("a").acquire().await?;
    assert!(matches!(client.peek("a").await, Err(RequestError::Disconnected(DisconnectedError::Told { .. }))));
    let lost = due("the loss", held.lost()).await;
    assert!(
        matches!(&lost, LostError::Disconnected(DisconnectedError::Told { word, .. }) if word == "closing"),
        "{lost:?}"
    );
    end_of(script).await;
    let (server, script) = play(|mut peer| {
        peer.expect("hello");
        peer.send(&json!({"ok":false,"error":"limit","message":"too many sessions"}));
    });
    let error = Client::connect(&[server]).await.unwrap_err();
    assert!(error.to_string().contains("too many sessions"), "{error}");
    end_of(script).await;
    Ok(())
}

/// A lock that is granted while the session says goodbye is not held: the daemon releases it.
#[tokio::test]
async fn a_grant_behind_goodbye() -> Outcome {
    let (server, script) = play(|mut peer| {
        peer.welcome("local");
        let acquire = peer.expect("acquire");
        let bye = peer.expect("bye");
        peer.yes(&acquire, &json!({"lock":"a"}));
        peer.yes(&bye, &json!({}));
        peer.rest()
    });
    let client = Client::connect(&[server]).await?;
    let waiting = tokio::spawn(client.lock("a").wait().acquire());
    tokio::task::yield_now().await;
    client.bye().await?;
    let waited = due("the answer", waiting).await?;
    assert!(matches!(waited, Err(AcquireError::Disconnected(DisconnectedError::Bye))), "{waited:?}");
    assert!(matches!(client.bye().await, Err(RequestError::Disconnected(DisconnectedError::Bye))));
    drop(client);
    end_of(script).await;
    Ok(())
}

/// The runtime that drives the connection ends: what was held is lost, even as seen from outside
/// the runtime.
#[test]
fn the_runtime_ends() -> Outcome {
    let (_daemon, servers, _folder) = every_front();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (client, held) = runtime.block_on(async {
        let client = Client::connect(&servers).await.expect("a connection");
        let held = client.lock("a").acquire().await.expect("a lock");
        (client, held)
    });
    assert!(!held.is_lost());
    drop(runtime);
    assert!(held.is_lost());
    assert_eq!(client.ended(), Some(DisconnectedError::Dropped));
    drop((held, client));
    blocking::Client::connect(&servers)?.lock("a").wait().acquire()?;
    Ok(())
}
