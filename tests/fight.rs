//! Two daemons on one directory fight over names, and a witness outside them watches. A client
//! that is granted a lock enters its name with the witness, stays for 0 to 100 microseconds,
//! leaves, and only then releases. Two clients in one name at once are an overlap; if the name has
//! slots, so are more clients than slots, or two in one slot; and so is a fence that is not higher
//! than all earlier ones. There must be no overlap, on tmpfs and on a disk, whatever is killed
//! meanwhile.
//!
//! The witness is a table in a mutex: in this process for fighters that are threads, behind a Unix
//! socket for those that are processes. These are this program started again, and are killed.
//! Before a kill, the killer records in the same table that the victim's grants are void: when a
//! lock dies with its daemon, the other daemon may grant it while the client does not know yet, and
//! that is not an overlap. A grant counts only if nothing about it is void.
//!
//! `DISTRILOCK_FIGHT_GRANTS` sets the grants of each configuration (3000); arguments select
//! configurations by parts of their names. The test has no harness, because it is also the program
//! of its fighters.

mod support;

use std::collections::{HashMap, HashSet};
use std::env;
use std::hint;
use std::io::{self, BufRead, BufReader, Write};
use std::iter;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use serde_json::{Value, json};
use support::{Daemon, Dice, PATIENCE, V1, eventually, files};
use tempfile::TempDir;

/// The environment variable that makes this program a fighter: its `Fighter` and the witness's
/// socket, as JSON.
const FIGHTER: &str = "DISTRILOCK_FIGHTER";

/// How many configurations fight at the same time: a single fight leaves part of two cores idle.
const TOGETHER: usize = 2;

/// Kills in each configuration with kills.
const KILLS: u64 = 24;

/// No configuration has fewer grants than this, unless fewer are requested for all.
const GRANTS_MIN: u64 = 750;

fn main() {
    if let Ok(order) = env::var(FIGHTER) {
        return fight_as_process(&order);
    }
    let wanted: Vec<String> = env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let matches = |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.contains(word));
    if env::args().any(|word| word == "--list") {
        configurations().iter().for_each(|configuration| println!("{}: test", configuration.name()));
        return;
    }
    the_witness_catches_overlaps();
    let grants = match env::var("DISTRILOCK_FIGHT_GRANTS") {
        Ok(number) => number.parse().expect("DISTRILOCK_FIGHT_GRANTS is a number"),
        Err(_) => 3000,
    };
    println!("{:<52} {:>8} {:>8} {:>6} {:>8}", "configuration", "grants", "overlaps", "kills", "seconds");
    let all = configurations();
    let chosen: Vec<&Configuration> = all.iter().filter(|configuration| matches(&configuration.name())).collect();
    // The arenas stay alive, so that all of their lock files linger at the same time.
    let arenas = fights(&chosen, grants);
    assert!(!arenas.is_empty(), "no configuration is called {wanted:?}");
    for arena in &arenas {
        eventually(&format!("{}: no lock file is left\n{}", arena.name, arena.said()), || {
            files(arena.directory.path()).is_empty()
        });
    }
    println!("{} configurations, no overlap, every directory is empty", arenas.len());
}

/// All configurations, several at a time.
fn fights(chosen: &[&Configuration], grants: u64) -> Vec<Arena> {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let work = || {
            let turns = iter::from_fn(|| chosen.get(next.fetch_add(1, Ordering::Relaxed)));
            turns.map(|configuration| configuration.run(grants)).collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..TOGETHER).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no overlap, and no other failure")).collect()
    })
}

/// Where the lock directory is.
#[derive(Clone, Copy)]
enum Place {
    Tmpfs,
    Disk,
}

impl Place {
    /// A fresh directory. Its file system is checked, because a fight on the wrong one would prove
    /// nothing.
    fn directory(self) -> TempDir {
        let is_tmpfs = |path: &Path| statfs(path).is_ok_and(|status| status.filesystem_type() == TMPFS_MAGIC);
        let place = match self {
            Self::Tmpfs => {
                let memory = PathBuf::from("/dev/shm");
                assert!(is_tmpfs(&memory), "/dev/shm is no tmpfs");
                memory
            }
            Self::Disk => [env!("CARGO_TARGET_TMPDIR"), "/var/tmp"]
                .map(PathBuf::from)
                .into_iter()
                .find(|place| place.is_dir() && !is_tmpfs(place))
                .expect("neither the target directory nor /var/tmp is on a disk"),
        };
        TempDir::with_prefix_in("fight-", place).expect("a lock directory")
    }
}

/// How a fighter wants a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Exclusively.
    Alone,
    /// Sometimes shared.
    Shared,
    /// Sometimes one or two of three slots.
    Slots,
    /// With a fence, exclusive or shared.
    Fences,
    /// Slots with fences.
    SlotFences,
}

const KINDS: [Kind; 5] = [Kind::Alone, Kind::Shared, Kind::Slots, Kind::Fences, Kind::SlotFences];

/// The number of slots of a name with slots.
const SLOTS: u64 = 3;

struct Configuration {
    place: Place,
    /// Connections to each daemon for each name.
    connections: usize,
    names: usize,
    /// How some of the grants are wanted.
    kind: Kind,
    linger: Option<&'static str>,
    kills: u64,
}

fn configurations() -> Vec<Configuration> {
    let mut all = Vec::new();
    for place in [Place::Tmpfs, Place::Disk] {
        for linger in [None, Some("0")] {
            for (connections, names) in [(1, 1), (4, 1), (1, 8), (4, 8)] {
                let plain = Configuration { place, connections, names, kind: Kind::Alone, linger, kills: 0 };
                all.push(plain);
            }
            let kinds = KINDS.into_iter().flat_map(|kind| [(kind, 0), (kind, KILLS)]);
            for (kind, kills) in kinds.filter(|with| *with != (Kind::Alone, 0)) {
                all.push(Configuration { place, connections: 4, names: 2, kind, linger, kills });
            }
        }
    }
    all
}

impl Configuration {
    fn name(&self) -> String {
        let place = match self.place {
            Place::Tmpfs => "tmpfs",
            Place::Disk => "disk",
        };
        let linger = self.linger.unwrap_or("default");
        let kind = match self.kind {
            Kind::Alone => "",
            Kind::Shared => " shared",
            Kind::Slots => " slots",
            Kind::Fences => " fences",
            Kind::SlotFences => " slots fences",
        };
        let kills = if self.kills > 0 { " kills" } else { "" };
        let (connections, names) = (self.connections, self.names);
        format!("{place} connections={connections} names={names} linger={linger}{kind}{kills}")
    }

    fn fighters(&self) -> impl Iterator<Item = Fighter> + '_ {
        let places = (0..2).flat_map(|side| (0..self.names).map(move |name| (side, name)));
        places.flat_map(move |(side, name)| {
            (0..self.connections).map(move |connection| Fighter {
                side,
                lock: format!("name{name}"),
                client: format!("c{side}-{name}-{connection}"),
                seed: u64::try_from(side * 1000 + name * 10 + connection).expect("it is small"),
                kind: self.kind,
            })
        })
    }

    fn run(&self, grants: u64) -> Arena {
        // Slots take more calls, and each fence is written to disk.
        let share = match self.kind {
            Kind::Alone | Kind::Shared => 1,
            Kind::Slots => 4,
            Kind::Fences | Kind::SlotFences => 20,
        };
        let grants = (grants / share).max(grants.min(GRANTS_MIN));
        let mut arena = Arena::open(self);
        let start = Instant::now();
        let kills = if self.kills > 0 { arena.fight_with_kills(self, grants) } else { arena.fight(self, grants) };
        let witness = arena.witness.table();
        let (granted, overlaps) = (witness.grants, witness.overlaps.len());
        let total = granted[0] + granted[1];
        let seconds = start.elapsed().as_secs_f64();
        println!("{:<52} {total:>8} {overlaps:>8} {kills:>6} {seconds:>8.2}", arena.name);
        assert_eq!(overlaps, 0, "{}: {:#?}\n{}", arena.name, witness.overlaps, arena.said());
        assert!(total >= grants && kills >= self.kills, "{}: it ended too early", arena.name);
        for side in granted {
            assert!(side * 100 >= total, "{}: no fair share: {granted:?}", arena.name);
        }
        drop(witness);
        arena
    }
}

/// Two daemons over one directory, and the witness.
struct Arena {
    name: String,
    directory: TempDir,
    linger: Option<&'static str>,
    witness: Witness,
    daemons: [Daemon; 2],
    /// How often each daemon was started; this is its epoch.
    starts: [u64; 2],
}

impl Arena {
    fn open(configuration: &Configuration) -> Self {
        let directory = configuration.place.directory();
        let linger = configuration.linger;
        let witness = Witness::default();
        let daemons = [0, 1].map(|side| start(directory.path(), linger, &witness, side, 1));
        Self { name: configuration.name(), directory, linger, witness, daemons, starts: [1, 1] }
    }

    fn said(&self) -> String {
        self.daemons.iter().map(Daemon::said).collect()
    }

    /// Waits until the witness has seen this many grants. The test requires more grants after each
    /// kill.
    fn await_grants(&self, grants: u64) {
        let (mut last, mut since) = (0, Instant::now());
        while !self.witness.table().overlapped() {
            let now = self.witness.total();
            if now >= grants {
                break;
            }
            if now != last {
                (last, since) = (now, Instant::now());
            }
            assert!(since.elapsed() < PATIENCE, "{}: no more grants\n{}", self.name, self.said());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The fighters are threads; nothing is killed.
    fn fight(&mut self, configuration: &Configuration, grants: u64) -> u64 {
        thread::scope(|scope| {
            let _end = End(&self.witness);
            for fighter in configuration.fighters() {
                let mut judge = self.witness.clone();
                scope.spawn(move || fighter.fight(&mut judge));
            }
            self.await_grants(grants);
        });
        0
    }

    /// The fighters are processes; one of them or a daemon is killed again and again, and replaced
    /// at once.
    fn fight_with_kills(&mut self, configuration: &Configuration, grants: u64) -> u64 {
        let scratch = TempDir::new().expect("a place for the witness's socket");
        let socket = scratch.path().join("witness");
        self.witness.serve(&UnixListener::bind(&socket).expect("a socket"));
        let mut fighters: Vec<Process> =
            configuration.fighters().map(|fighter| Process::start(fighter, &socket)).collect();
        let mut dice = Dice::new(configuration.kills + grants);
        for kill in 1..=configuration.kills {
            self.await_grants(grants * kill / (configuration.kills + 1));
            if kill % 2 == 0 {
                self.kill_daemon(if dice.below(2) == 0 { 0 } else { 1 });
            } else {
                let count = u64::try_from(fighters.len()).expect("64 bits");
                let victim = usize::try_from(dice.below(count)).expect("an index");
                let mut fighter = fighters.swap_remove(victim);
                self.witness.void(&fighter.fighter.client);
                fighter.kill();
                let client = format!("{}'", fighter.fighter.client);
                fighters.push(Process::start(Fighter { client, ..fighter.fighter.clone() }, &socket));
            }
        }
        self.await_grants(grants);
        for mut process in fighters {
            self.witness.void(&process.fighter.client);
            process.kill();
        }
        configuration.kills
    }

    fn kill_daemon(&mut self, side: usize) {
        self.witness.void(&epoch(side, self.starts[side]));
        self.daemons[side].kill();
        self.starts[side] += 1;
        self.daemons[side] = start(self.directory.path(), self.linger, &self.witness, side, self.starts[side]);
    }
}

fn epoch(side: usize, start: u64) -> String {
    format!("d{side}-{start}")
}

fn start(directory: &Path, linger: Option<&str>, witness: &Witness, side: usize, start: u64) -> Daemon {
    let mut setup = Daemon::setup().directory(directory).tcp("127.0.0.1:0");
    if let Some(linger) = linger {
        setup = setup.flag("--linger", linger);
    }
    let daemon = setup.start();
    witness.table().daemons[side] = Some((epoch(side, start), daemon.tcp()));
    daemon
}

/// The claimant of a name: a client, through one life of a daemon.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Claim {
    client: String,
    epoch: String,
}

/// What a claimant has of a name: all of it, a share, or slots; and the fence that came with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Share {
    shared: bool,
    slots: Vec<u64>,
    fence: Option<u64>,
}

impl Share {
    fn shared(shared: bool) -> Self {
        Self { shared, ..Self::default() }
    }

    fn goes_with(&self, other: &Self) -> bool {
        let apart = !self.slots.is_empty() && !other.slots.is_empty();
        let differ = self.slots.iter().all(|slot| !other.slots.contains(slot));
        self.shared && other.shared || apart && differ
    }

    fn to_json(&self) -> Value {
        json!({"shared": self.shared, "slots": self.slots, "fence": self.fence})
    }

    /// Parses a reply of the daemon (`slot`, `taken`), or the output of `to_json`.
    fn from_json(value: &Value) -> Self {
        let numbers = |member: &str| value[member].as_array().cloned().unwrap_or_default();
        let slots = [numbers("slots"), numbers("taken")].concat();
        let slots = if slots.is_empty() && value["slot"].is_u64() { vec![value["slot"].clone()] } else { slots };
        let slots = slots.iter().map(|slot| slot.as_u64().expect("a slot is a number")).collect();
        let shared = value["shared"] == true || value["mode"] == "shared";
        Self { shared, slots, fence: value["fence"].as_u64() }
    }
}

/// What the witness knows.
#[derive(Default)]
struct Table {
    /// The clients that are in a name, and what they have of it.
    inside: HashMap<String, Vec<(Claim, Share)>>,
    /// The highest fence of each name.
    fences: HashMap<String, u64>,
    /// All fences that were granted.
    seen: HashSet<(String, u64)>,
    /// Killed clients and epochs of killed daemons: their claims are void.
    void: HashSet<String>,
    /// The grants that counted, for each daemon.
    grants: [u64; 2],
    overlaps: Vec<String>,
    /// The epoch and the address of each daemon, for fighters that connect again.
    daemons: [Option<(String, String)>; 2],
    stopped: bool,
}

impl Table {
    fn is_void(&self, claim: &Claim) -> bool {
        self.void.contains(&claim.client) || self.void.contains(&claim.epoch)
    }

    fn overlapped(&self) -> bool {
        !self.overlaps.is_empty()
    }

    /// A claimant was granted a name: any other claimant in it is an overlap, unless one of the two
    /// is void or both are shared.
    fn enter(&mut self, side: usize, lock: &str, claim: &Claim, share: &Share) {
        if self.is_void(claim) {
            return;
        }
        self.fenced(lock, claim, share);
        let mut inside = self.inside.remove(lock).unwrap_or_default();
        inside.retain(|(other, _)| !self.is_void(other));
        for (other, other_share) in &inside {
            if !share.goes_with(other_share) {
                self.overlaps.push(format!("{lock}: {claim:?} {share:?} while {other:?} {other_share:?} is in"));
            }
        }
        if share.slots.iter().any(|slot| *slot >= SLOTS) {
            self.overlaps.push(format!("{lock}: {claim:?} {share:?}: there are {SLOTS} slots"));
        }
        inside.push((claim.clone(), share.clone()));
        self.inside.insert(lock.to_owned(), inside);
        self.grants[side] += 1;
    }

    /// Fences of exclusive grants are reported in the order of the grants. Others may be reported
    /// out of order, so for them only a repeated fence is wrong.
    fn fenced(&mut self, lock: &str, claim: &Claim, share: &Share) {
        let Some(fence) = share.fence else { return };
        let before = self.fences.get(lock).copied().unwrap_or_default();
        let alone = !share.shared && share.slots.is_empty();
        let seen = !self.seen.insert((lock.to_owned(), fence));
        if seen || alone && fence <= before {
            self.overlaps.push(format!("{lock}: {claim:?} has the fence {fence} after {before}"));
        }
        self.fences.insert(lock.to_owned(), fence.max(before));
    }

    fn leave(&mut self, lock: &str, claim: &Claim) {
        if let Some(inside) = self.inside.get_mut(lock) {
            inside.retain(|(other, _)| other != claim);
        }
    }
}

/// Ends the fight, even a failing one: otherwise the fighters that are threads would go on forever.
struct End<'a>(&'a Witness);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.table().stopped = true;
    }
}

/// The witness as a fighter sees it.
trait Judge {
    /// The epoch and address of the daemon of this side, or none if the fight is over.
    fn daemon(&mut self, side: usize) -> Option<(String, String)>;
    fn enter(&mut self, side: usize, lock: &str, claim: &Claim, share: &Share);
    fn leave(&mut self, lock: &str, claim: &Claim);
    fn stopped(&mut self) -> bool;
}

/// The witness; every fighter in this process has a handle to it.
#[derive(Clone, Default)]
struct Witness(Arc<Mutex<Table>>);

impl Witness {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().expect("no fighter panics in the table")
    }

    fn total(&self) -> u64 {
        self.table().grants.iter().sum()
    }

    fn void(&self, who: &str) {
        self.table().void.insert(who.to_owned());
    }

    /// Serves fighters that are processes: one line for each call, and one line back when it has
    /// been recorded.
    fn serve(&self, listener: &UnixListener) {
        let listener = listener.try_clone().expect("a descriptor");
        let witness = self.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let witness = witness.clone();
                thread::spawn(move || witness.serve_one(&stream));
            }
        });
    }

    fn serve_one(mut self, stream: &UnixStream) {
        // A killed fighter ends its stream, perhaps in the middle of a line, which then does not
        // count.
        let mut writer = stream;
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let Ok(call) = serde_json::from_str::<Value>(&line) else {
                return;
            };
            let text = |member: &str| call[member].as_str().unwrap_or_default().to_owned();
            let side = usize::from(call["side"] == 1);
            let claim = Claim { client: text("client"), epoch: text("epoch") };
            let reply = match &*text("call") {
                "daemon" => json!(self.daemon(side)),
                "enter" => json!(self.enter(side, &text("lock"), &claim, &Share::from_json(&call["share"]))),
                "leave" => json!(self.leave(&text("lock"), &claim)),
                other => panic!("no such call: {other}"),
            };
            if writer.write_all(format!("{reply}\n").as_bytes()).is_err() {
                return;
            }
        }
    }
}

impl Judge for Witness {
    fn daemon(&mut self, side: usize) -> Option<(String, String)> {
        let table = self.table();
        if table.stopped { None } else { table.daemons[side].clone() }
    }

    fn enter(&mut self, side: usize, lock: &str, claim: &Claim, share: &Share) {
        self.table().enter(side, lock, claim, share);
    }

    fn leave(&mut self, lock: &str, claim: &Claim) {
        self.table().leave(lock, claim);
    }

    fn stopped(&mut self) -> bool {
        self.table().stopped
    }
}

/// The witness as seen by a fighter in a process of its own. When the witness is gone, the fight is
/// over.
struct Distant(BufReader<UnixStream>);

impl Distant {
    fn call(&mut self, call: &Value) -> Value {
        let mut line = String::new();
        let asked = self.0.get_mut().write_all(format!("{call}\n").as_bytes());
        if asked.and_then(|()| self.0.read_line(&mut line)).is_ok_and(|count| count > 0) {
            return serde_json::from_str(&line).expect("the witness answers in JSON");
        }
        std::process::exit(0);
    }
}

impl Judge for Distant {
    fn daemon(&mut self, side: usize) -> Option<(String, String)> {
        let reply = self.call(&json!({"call": "daemon", "side": side}));
        Some((reply[0].as_str()?.to_owned(), reply[1].as_str()?.to_owned()))
    }

    fn enter(&mut self, side: usize, lock: &str, claim: &Claim, share: &Share) {
        let Claim { client, epoch } = claim;
        let call = json!({"call": "enter", "side": side, "lock": lock, "client": client, "epoch": epoch,
            "share": share.to_json()});
        self.call(&call);
    }

    fn leave(&mut self, lock: &str, claim: &Claim) {
        let Claim { client, epoch } = claim;
        self.call(&json!({"call": "leave", "lock": lock, "client": client, "epoch": epoch}));
    }

    /// Processes are killed when the fight is over.
    fn stopped(&mut self) -> bool {
        false
    }
}

/// A client that acquires one name through one daemon again and again.
#[derive(Clone, Debug)]
struct Fighter {
    side: usize,
    lock: String,
    client: String,
    seed: u64,
    kind: Kind,
}

impl Fighter {
    /// Fights until the fight is over; connects again whenever the daemon is gone.
    fn fight(&self, judge: &mut impl Judge) {
        let mut dice = Dice::new(self.seed);
        while let Some((epoch, address)) = judge.daemon(self.side) {
            let claim = Claim { client: self.client.clone(), epoch };
            if let Ok(mut session) = V1::try_connect(&address) {
                // When a killed daemon ends the connection, the next round begins.
                let _ = self.rounds(&mut session, judge, &claim, &mut dice);
            }
            judge.leave(&self.lock, &claim);
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Adds to a request how the name is wanted.
    fn want(&self, request: &mut Value, dice: &mut Dice) {
        let some = dice.below(4) != 0;
        if matches!(self.kind, Kind::Slots | Kind::SlotFences) && some {
            request["slots"] = SLOTS.into();
            request["take"] = (1 + dice.below(2)).into();
        } else if matches!(self.kind, Kind::Shared | Kind::Fences) && dice.below(2) == 0 {
            request["mode"] = "shared".into();
        }
        if matches!(self.kind, Kind::Fences | Kind::SlotFences) && some {
            request["fence"] = true.into();
        }
    }

    fn rounds(&self, session: &mut V1, judge: &mut impl Judge, claim: &Claim, dice: &mut Dice) -> io::Result<()> {
        while !judge.stopped() {
            let wait_ms = [0, 0, 5, 200][usize::try_from(dice.below(4)).expect("it is small")];
            let mut request = json!({"op": "acquire", "lock": self.lock, "wait_ms": wait_ms});
            self.want(&mut request, dice);
            let slots = request["slots"].is_u64();
            let reply = session.try_request(request)?;
            if reply["ok"] != true {
                assert!(reply["error"] == "busy" || reply["error"] == "timeout", "{self:?}: {reply}");
                // After a refusal it pauses for a moment: a storm of tries would leave no time for
                // the others.
                thread::sleep(Duration::from_micros(dice.below(500)));
                continue;
            }
            assert!(reply["already"].is_null(), "{self:?} had released: {reply}");
            let share = Share::from_json(&reply);
            assert_eq!(slots, !share.slots.is_empty(), "{self:?}: {reply}");
            judge.enter(self.side, &self.lock, claim, &share);
            let end = Instant::now() + Duration::from_micros(dice.below(101));
            while Instant::now() < end {
                hint::spin_loop();
            }
            judge.leave(&self.lock, claim);
            let reply = session.try_request(json!({"op": "release", "lock": self.lock}))?;
            assert_eq!(reply["ok"], true, "{self:?}: {reply}");
        }
        Ok(())
    }
}

/// A fighter in a process of its own.
struct Process {
    fighter: Fighter,
    child: Child,
}

impl Process {
    fn start(fighter: Fighter, socket: &Path) -> Self {
        let Fighter { side, lock, client, seed, kind } = &fighter;
        let kind = KINDS.iter().position(|other| other == kind);
        let order = json!({"side": side, "lock": lock, "client": client, "seed": seed, "kind": kind,
            "witness": socket});
        let program = env::current_exe().expect("this program");
        let child =
            Command::new(program).env(FIGHTER, order.to_string()).stdin(Stdio::null()).spawn().expect("a fighter");
        Self { fighter, child }
    }

    /// Sends SIGKILL; a fighter that has ended by itself has failed.
    fn kill(&mut self) {
        let ended = self.child.try_wait().expect("it is our child");
        assert!(ended.is_none(), "{:?} ended: {ended:?}", self.fighter);
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has been killed already, unless the test fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn fight_as_process(order: &str) {
    let order: Value = serde_json::from_str(order).expect("an order is JSON");
    let text = |member: &str| order[member].as_str().expect("a text").to_owned();
    let fighter = Fighter {
        side: usize::from(order["side"] == 1),
        lock: text("lock"),
        client: text("client"),
        seed: order["seed"].as_u64().expect("a number"),
        kind: KINDS[usize::try_from(order["kind"].as_u64().expect("a number")).expect("an index")],
    };
    let socket = UnixStream::connect(text("witness")).expect("the witness listens");
    fighter.fight(&mut Distant(BufReader::new(socket)));
}

/// Clients without any grant from a daemon report to a witness: it notices that they overlap where
/// they do, and only there, directly and through its socket.
fn the_witness_catches_overlaps() {
    let claim = |client: &str, epoch: &str| Claim { client: client.to_owned(), epoch: epoch.to_owned() };
    let (one, two) = (claim("c0", "d0-1"), claim("c1", "d1-1"));
    let overlaps = |acts: &dyn Fn(&mut dyn Judge, &Witness)| {
        let near = Witness::default();
        acts(&mut near.clone(), &near);
        let far = Witness::default();
        let scratch = TempDir::new().expect("a place for a socket");
        let socket = scratch.path().join("witness");
        far.serve(&UnixListener::bind(&socket).expect("a socket"));
        let stream = UnixStream::connect(&socket).expect("the witness listens");
        acts(&mut Distant(BufReader::new(stream)), &far);
        let counts = [near, far].map(|witness| witness.table().overlaps.len());
        assert_eq!(counts[0], counts[1], "near and far see the same");
        counts[0]
    };
    let both = |one_share: Share, two_share: Share| {
        overlaps(&|judge, _| {
            judge.enter(0, "a", &one, &one_share);
            judge.enter(1, "a", &two, &two_share);
        })
    };
    let pairs = [(false, false), (true, false), (false, true), (true, true)];
    let pairs = pairs.map(|(one, other)| both(Share::shared(one), Share::shared(other)));
    assert_eq!(pairs, [1, 1, 1, 0], "only shared claims go together");
    let slots = |slots: &[u64]| Share { slots: slots.into(), ..Share::default() };
    let pairs = [both(slots(&[0]), slots(&[1, 2])), both(slots(&[0, 1]), slots(&[1])), both(slots(&[0]), slots(&[3]))];
    assert_eq!(pairs, [0, 1, 1], "only different slots go together, and only those that there are");
    assert_eq!(both(slots(&[0]), Share::shared(true)), 1, "slots do not go with a share");
    let fence = |shared, fence| Share { shared, fence: Some(fence), ..Share::default() };
    let pairs = [both(fence(true, 1), fence(true, 2)), both(fence(true, 2), fence(true, 2))];
    assert_eq!(pairs, [0, 1], "a fence is granted once");
    assert_eq!(both(fence(true, 2), fence(false, 1)), 2, "an exclusive grant has a higher one than all before");
    let in_turn = overlaps(&|judge, _| {
        judge.enter(0, "a", &one, &Share::default());
        judge.enter(1, "b", &two, &Share::default());
        judge.leave("a", &one);
        judge.enter(1, "a", &two, &Share::default());
    });
    assert_eq!(in_turn, 0, "one after the other, or in two names");
    for victim in ["c0", "d0-1", "c1", "d1-1"] {
        let killed = overlaps(&|judge, witness| {
            judge.enter(0, "a", &one, &Share::default());
            witness.void(victim);
            judge.enter(1, "a", &two, &Share::default());
        });
        assert_eq!(killed, 0, "what is void counts for nothing: {victim}");
    }
    let stranger = overlaps(&|judge, witness| {
        judge.enter(0, "a", &one, &Share::default());
        witness.void("d0-2");
        judge.enter(1, "a", &two, &Share::default());
    });
    assert_eq!(stranger, 1, "somebody else's death excuses nothing");
    overlapping_fighters_are_caught();
}

/// Two fighters whose daemons do not know about each other, because they have different
/// directories, are caught.
fn overlapping_fighters_are_caught() {
    let witness = Witness::default();
    let directories = [Place::Tmpfs.directory(), Place::Tmpfs.directory()];
    let _daemons = [0, 1].map(|side| start(directories[side].path(), None, &witness, side, 1));
    thread::scope(|scope| {
        let _end = End(&witness);
        for side in [0, 1] {
            let mut judge = witness.clone();
            let (lock, client) = ("a".to_owned(), format!("c{side}"));
            let fighter = Fighter { side, lock, client, seed: 1, kind: Kind::Alone };
            scope.spawn(move || fighter.fight(&mut judge));
        }
        eventually("an overlap is seen", || witness.table().overlapped());
    });
}
