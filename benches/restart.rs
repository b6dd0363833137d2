//! Restarts with many sessions that each hold a lock. No lock may be lost, and the benchmark
//! measures how long a client waits. [`Manager`] stands in for the service manager.
//!
//! `cargo bench --bench restart [-- --sessions N]`

#[path = "../tests/support/manager.rs"]
mod manager;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::manager::Manager;

const ROUNDS: usize = 5;
const SESSIONS: usize = 9000;
const PATIENCE: Duration = Duration::from_secs(60);

fn say(session: &mut TcpStream, line: &str) {
    session.write_all(line.as_bytes()).and_then(|()| session.write_all(b"\n")).expect("the session lives");
}

fn hear(session: &mut TcpStream) -> String {
    let (mut line, mut byte) = (Vec::new(), [0; 256]);
    while !line.ends_with(b"\n") {
        let count = session.read(&mut byte).expect("the session lives");
        assert!(count > 0, "the session has ended");
        line.extend_from_slice(&byte[..count]);
    }
    String::from_utf8(line).expect("JSON is text")
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let wanted =
        words.iter().position(|word| word == "--sessions").and_then(|place| words.get(place + 1)?.parse().ok());
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map(|(_, hard)| hard).expect("there is a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit everybody may");
    // The daemon keeps an eighth of the descriptors for lock files.
    let most = usize::try_from((hard - hard / 8) / 2).unwrap_or(usize::MAX).saturating_sub(200);
    let count: usize = wanted.unwrap_or(SESSIONS).min(most);
    let mut manager = Manager::start();
    let address = manager.address();
    let mut sessions: Vec<TcpStream> = Vec::new();
    for number in 0..count {
        let mut session = TcpStream::connect(&address).expect("the daemon listens");
        session.set_read_timeout(Some(PATIENCE)).and_then(|()| session.set_nodelay(true)).expect("it is a socket");
        say(&mut session, &format!(r#"{{"op":"acquire","lock":"lock{number}"}}"#));
        assert!(hear(&mut session).contains(r#""ok":true"#), "lock{number} is free");
        sessions.push(session);
    }
    println!("{count} sessions, each with a lock; {ROUNDS} restarts");
    let mut waits = Vec::new();
    for round in 1..=ROUNDS {
        let begun = Instant::now();
        let took = std::thread::scope(|scope| {
            let restart = scope.spawn(|| {
                manager.leave();
                manager.run("");
                begun.elapsed()
            });
            let asked: Vec<Instant> = sessions
                .iter_mut()
                .map(|session| {
                    say(session, r#"{"op":"ping"}"#);
                    Instant::now()
                })
                .collect();
            for (session, asked) in sessions.iter_mut().zip(asked) {
                assert!(hear(session).contains(r#""ok":true"#), "a ping is answered");
                waits.push(asked.elapsed());
            }
            restart.join().expect("the restart succeeds")
        });
        let real = |(number, session): (usize, &mut TcpStream)| {
            say(session, &format!(r#"{{"op":"verify","lock":"lock{number}"}}"#));
            hear(session).contains(r#""ok":true"#)
        };
        let kept = sessions.iter_mut().enumerate().map(real).filter(|real| *real).count();
        println!("restart {round}: {took:.1?}; {kept} of {count} locks are real");
        assert_eq!(kept, count, "locks were lost");
    }
    waits.sort_unstable();
    let at = |share: usize| waits[(waits.len() - 1) * share / 100];
    println!("a ping through a restart: median {:.1?}, p99 {:.1?}, longest {:.1?}", at(50), at(99), at(100));
    manager.stop();
}
