//! A fuzzer that looks for long turns: hostile clients ask for whatever may take long, in random
//! mixes, and the daemon's stall meter says how long one of them has kept the others waiting. Mixes
//! with longer turns are changed a little and tried again. How fast the daemon is on a machine
//! without other work is for the benchmark `turns`: here, only a turn of seconds is an error.
//!
//! `DISTRILOCK_TURNS_ROUNDS=500 cargo test --release --test turns -- --nocapture`

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use support::{Daemon, Dice, V1, connect, eventually, reset};

/// Far above what a turn takes on a machine that has other work to do as well.
const TURN_MAX: Duration = Duration::from_secs(5);

/// How long the clients of a mix are at work.
const AT_WORK: Duration = Duration::from_millis(1000);

/// What a mix consists of. Each number is the share of a kind, or the size of something.
#[derive(Clone, Debug)]
struct Mix {
    clients: u64,
    names: u64,
    burst: u64,
    /// Shares of what a client does next.
    acquire: u64,
    several: u64,
    release: u64,
    cancel: u64,
    look: u64,
    list: u64,
    goodbye: u64,
    /// Of a hundred acquires, how many are for a shared lock, for slots, and how many wait.
    shared: u64,
    slots: u64,
    waits: u64,
    linger: bool,
}

impl Mix {
    fn of(dice: &mut Dice) -> Self {
        Self {
            clients: 1 + dice.below(40),
            names: 1 + dice.below(400),
            burst: 1 + dice.below(300),
            acquire: 1 + dice.below(20),
            several: dice.below(20),
            release: dice.below(20),
            cancel: dice.below(10),
            look: dice.below(5),
            list: dice.below(5),
            goodbye: dice.below(2),
            shared: dice.below(100),
            slots: dice.below(50),
            waits: dice.below(100),
            linger: dice.below(2) == 0,
        }
    }

    /// The same with one of its numbers changed.
    fn changed(&self, dice: &mut Dice) -> Self {
        let (mut next, other) = (self.clone(), Self::of(dice));
        match dice.below(14) {
            0 => next.clients = other.clients,
            1 => next.names = other.names,
            2 => next.burst = other.burst,
            3 => next.acquire = other.acquire,
            4 => next.several = other.several,
            5 => next.release = other.release,
            6 => next.cancel = other.cancel,
            7 => next.look = other.look,
            8 => next.list = other.list,
            9 => next.goodbye = other.goodbye,
            10 => next.shared = other.shared,
            11 => next.slots = other.slots,
            12 => next.waits = other.waits,
            _ => next.linger = other.linger,
        }
        next
    }

    fn want(&self, dice: &mut Dice) -> String {
        let kind = dice.below(100);
        if kind < self.shared {
            r#""mode":"shared""#.into()
        } else if kind < self.shared + self.slots {
            format!(r#""slots":{}"#, 2 + dice.below(3))
        } else {
            r#""mode":"exclusive""#.into()
        }
    }

    fn wait(&self, dice: &mut Dice) -> &'static str {
        if dice.below(100) >= self.waits {
            return r#""wait_ms":0"#;
        }
        [r#""wait_ms":null"#, r#""wait_ms":300"#, r#""wait_ms":30"#][usize::try_from(dice.below(3)).expect("few")]
    }

    /// One request. `id` is its own, and those before it may still be unanswered.
    fn request(&self, id: u64, dice: &mut Dice) -> String {
        let name = |dice: &mut Dice| format!("lock-{}", dice.below(self.names));
        let several = |dice: &mut Dice| {
            let first = dice.below(self.names);
            let count = 2 + dice.below(63);
            (first..first + count).map(|number| format!(r#""lock-{number}""#)).collect::<Vec<_>>().join(",")
        };
        let shares =
            [self.acquire, self.several, self.release, self.release, self.cancel, self.look, self.look, self.list];
        let mut left = dice.below(shares.iter().sum());
        let kind = shares.iter().position(|share| left.checked_sub(*share).map(|rest| left = rest).is_none());
        match kind.expect("it is below the sum") {
            0 => format!(
                r#"{{"id":{id},"op":"acquire","lock":"{}",{},{}}}"#,
                name(dice),
                self.want(dice),
                self.wait(dice)
            ),
            1 => format!(r#"{{"id":{id},"op":"acquire","locks":[{}],{}}}"#, several(dice), self.wait(dice)),
            2 => format!(r#"{{"op":"release","lock":"{}"}}"#, name(dice)),
            3 => format!(r#"{{"op":"release","locks":[{}]}}"#, several(dice)),
            4 => format!(r#"{{"op":"cancel","request":{}}}"#, dice.below(id + 1)),
            5 => format!(r#"{{"op":"verify","lock":"{}"}}"#, name(dice)),
            6 => format!(r#"{{"op":"peek","lock":"{}"}}"#, name(dice)),
            _ => format!(r#"{{"op":"list","after":"{}"}}"#, name(dice)),
        }
    }
}

/// A client that sends what it likes, and reads what happens to be there.
struct Hostile {
    stream: TcpStream,
    id: u64,
    unsent: Vec<u8>,
}

impl Hostile {
    fn connect(address: &str) -> Self {
        let stream = connect(address);
        stream.set_nonblocking(true).expect("it is a socket");
        Self { stream, id: 0, unsent: Vec::new() }
    }

    /// Sends what the socket takes, and drops what has arrived. Returns whether the daemon has not
    /// closed.
    fn exchange(&mut self) -> bool {
        let mut bytes = [0; 65_536];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        match self.stream.write(&self.unsent) {
            Ok(count) => drop(self.unsent.drain(..count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
        true
    }

    fn act(&mut self, mix: &Mix, dice: &mut Dice) {
        for _ in 0..1 + dice.below(mix.burst) {
            self.id += 1;
            self.unsent.extend_from_slice(mix.request(self.id, dice).as_bytes());
            self.unsent.push(b'\n');
        }
    }
}

/// The longest turn that a daemon has reported.
fn longest_turn(daemon: &Daemon) -> Duration {
    let notices = daemon.notices();
    let reported = |line: &String| line.rsplit_once(", longest turn ")?.1.strip_suffix(" ms")?.parse::<f64>().ok();
    let longest_ms = notices.iter().filter_map(reported).fold(0.0, f64::max);
    Duration::from_secs_f64(longest_ms / 1000.0)
}

/// Plays a mix. Returns the longest turn.
fn play(mix: &Mix, seed: u64) -> Duration {
    let linger = if mix.linger { "2" } else { "0" };
    let daemon = Daemon::setup().flag("--threads", "1").flag("--linger", linger).start();
    let mut dice = Dice::new(seed);
    let mut bystander = V1::connect(&daemon.tcp());
    let mut clients: Vec<Hostile> = (0..mix.clients).map(|_| Hostile::connect(&daemon.tcp())).collect();
    let begun = Instant::now();
    while begun.elapsed() < AT_WORK {
        let place = usize::try_from(dice.below(mix.clients)).expect("few");
        let client = &mut clients[place];
        if client.unsent.len() < 100_000 {
            client.act(mix, &mut dice);
        }
        let leaves = dice.below(100) < mix.goodbye;
        if leaves && dice.below(2) == 0 {
            client.unsent.extend_from_slice(b"{\"op\":\"bye\"}\n");
        }
        if !client.exchange() || leaves {
            let ended = std::mem::replace(client, Hostile::connect(&daemon.tcp()));
            if dice.below(2) == 0 {
                reset(ended.stream);
            }
        }
        if dice.below(50) == 0 {
            bystander.ping();
        }
    }
    // All at once.
    drop(clients);
    eventually("everything is free again", || {
        let reply = bystander.request(serde_json::json!({"op": "list"}));
        reply["locks"].as_array().is_some_and(Vec::is_empty)
    });
    // What happened last is reported within a second, and the sessions have ended since.
    let reported = daemon.notices().len();
    eventually("the daemon reports", || daemon.notices().len() > reported || begun.elapsed() > 4 * AT_WORK);
    longest_turn(&daemon)
}

/// Whatever hostile clients do, and however much of it, nobody waits for long for another one's
/// turn, everything that they had is free in the end, and the others are served.
#[test]
fn no_turn_is_long() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let rounds = number("DISTRILOCK_TURNS_ROUNDS").unwrap_or(3);
    let seed = number("DISTRILOCK_TURNS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("DISTRILOCK_TURNS_SEED={seed}");
    let mut dice = Dice::new(seed);
    let mut worst: Option<(Duration, Mix)> = None;
    for round in 0..rounds {
        let mix = match &worst {
            Some((_, mix)) if dice.below(2) == 0 => mix.changed(&mut dice),
            _ => Mix::of(&mut dice),
        };
        let turn = play(&mix, seed.wrapping_add(round));
        assert!(turn < TURN_MAX, "a turn of {turn:.1?} with {mix:?}");
        if worst.as_ref().is_none_or(|(longest, _)| turn > *longest) {
            println!("round {round}: {turn:.1?} with {mix:?}");
            worst = Some((turn, mix));
        }
    }
}
