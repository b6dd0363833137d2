//! A model of [`Steps`]: hosts take them for one name, on a server with its inodes, locks and
//! leases. Every interleaving is visited, with processes killed and leases running out anywhere.
//!
//! - **N1** No two hosts hold the name at once, unless both share it. A host that has been silent
//!   for so long that the server may give its locks away does not hold the name (the watch has told
//!   its sessions, docs/safety.md).
//! - **N2** A refusal is true: another host locked byte 0 of the name's file at some time since the
//!   try began.
//! - **N3** Whatever a killed process left behind, the next host that tries alone gets the lock.
//!
//! The model takes for granted that a deletion has no effect once the lease has run out, because
//! its process is killed before that (measured, docs/safety.md), and that a lease does not run out
//! while it is relied on.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::fault::Operation;
use crate::model::explore;

/// The parts of a file that locks differ on: byte 0, the rest of [0, 2^61), and byte 2^61.
const PARTS: [u8; 3] = [0, 1, 2];
const ANCHOR: u8 = 2;

const EAGAIN: i32 = 11;

type Inode = u8;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Server {
    named: Option<Inode>,
    dead: BTreeSet<Inode>,
    /// Which host locks which part of its file, and how.
    locks: BTreeMap<(usize, u8), Mode>,
    /// Which hosts lock the name's byte of the gate, and how.
    gate: BTreeMap<usize, Mode>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Open {
    inode: Inode,
    locked: Option<Mode>,
    /// A probe or a try has found that the locks are gone.
    lost: bool,
    /// The server has dropped the locks of this descriptor.
    dropped: bool,
    /// Whether the locks were proven since the lease last ran out.
    recent: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Host {
    file: Option<Open>,
    under_way: Option<(Steps, Next)>,
    holds: Option<Mode>,
    /// Whether another host has held the name at some time since the try began.
    rival: bool,
    /// Whether the lease has run out since the file's lock was last proven: it is too late to
    /// delete.
    late: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    server: Server,
    hosts: Vec<Host>,
    /// How many more leases run out, and processes die.
    mishaps: u8,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Begin(usize, FileOp),
    Step(usize),
    /// The deletion under way fails with this error: its process takes too long and is killed, or
    /// the system refuses the process.
    CutShort(usize, i32),
    Die(usize),
    /// The lease of a host runs out, and the server drops its locks.
    Expire(usize),
}

impl World {
    fn new(hosts: usize, mishaps: u8) -> Self {
        Self { server: Server::default(), hosts: vec![Host::default(); hosts], mishaps }
    }

    fn actions(&self, modes: &[Mode]) -> Vec<Action> {
        let mut actions = Vec::new();
        for (n, host) in self.hosts.iter().enumerate() {
            match &host.under_way {
                Some((_, next)) => {
                    actions.push(Action::Step(n));
                    if *next == Next::Call(Call::Unlink) {
                        actions.extend([ETIMEDOUT, EAGAIN].map(|errno| Action::CutShort(n, errno)));
                    }
                }
                None if host.holds.is_some() => {
                    actions.extend([FileOp::Unlock, FileOp::Retire].map(|op| Action::Begin(n, op)));
                }
                None => {
                    actions.extend(modes.iter().map(|mode| Action::Begin(n, FileOp::Try(*mode))));
                    if host.file.is_some() {
                        actions.push(Action::Begin(n, FileOp::Retire));
                    }
                }
            }
            if self.mishaps > 0 && *host != Host::default() {
                actions.extend([Action::Die(n), Action::Expire(n)]);
            }
        }
        actions
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Begin(n, op) => self.begin(*n, *op),
            Action::Step(n) => self.step(*n, None),
            Action::CutShort(n, errno) => self.step(*n, Some(*errno)),
            Action::Die(n) => {
                self.mishaps -= 1;
                self.forget(*n);
                self.hosts[*n] = Host::default();
            }
            Action::Expire(n) => {
                self.mishaps -= 1;
                self.forget(*n);
                let host = &mut self.hosts[*n];
                (host.holds, host.late) = (None, true);
                if let Some(file) = &mut host.file {
                    (file.dropped, file.recent) = (true, false);
                }
            }
        }
        self.renumber();
        for n in 0..self.hosts.len() {
            let rival = self.hosts.iter().enumerate().any(|(other, _)| other != n && self.locks_byte_0(other));
            self.hosts[n].rival |= rival;
            if self.hosts[n].under_way.is_none() {
                self.hosts[n].rival = false;
            }
        }
    }

    /// The server drops everything that a host locks.
    fn forget(&mut self, n: usize) {
        self.server.locks.retain(|(who, _), _| *who != n);
        self.server.gate.remove(&n);
    }

    /// Renumbers the inodes: their numbers only have to differ.
    fn renumber(&mut self) {
        let mut known: Vec<Inode> = Vec::new();
        let files = self.hosts.iter().filter_map(|host| host.file.as_ref().map(|file| file.inode));
        for inode in self.server.named.into_iter().chain(files) {
            if !known.contains(&inode) {
                known.push(inode);
            }
        }
        let place = |inode: Inode| {
            u8::try_from(known.iter().position(|seen| *seen == inode).expect("it is known")).expect("there are few")
        };
        self.server.dead =
            self.server.dead.iter().filter(|dead| known.contains(dead)).map(|dead| place(*dead)).collect();
        self.server.named = self.server.named.map(place);
        for file in self.hosts.iter_mut().filter_map(|host| host.file.as_mut()) {
            file.inode = place(file.inode);
        }
    }

    fn locks_byte_0(&self, n: usize) -> bool {
        let named = self.hosts[n].file.as_ref().is_some_and(|file| Some(file.inode) == self.server.named);
        named && self.server.locks.contains_key(&(n, 0))
    }

    fn begin(&mut self, n: usize, op: FileOp) {
        let host = &mut self.hosts[n];
        host.holds = None;
        let file = host.file.as_ref();
        let start = Start {
            open: file.is_some(),
            locked: file.and_then(|file| file.locked),
            lost: file.is_some_and(|file| file.lost),
            deletes: true,
        };
        host.under_way = Some(Steps::begin(op, start));
    }

    fn step(&mut self, n: usize, cut_short: Option<i32>) {
        let (mut steps, next) = self.hosts[n].under_way.take().expect("an operation is under way");
        let Next::Call(call) = next else { unreachable!("an operation that has ended is not under way") };
        let too_late = (call == Call::Unlink && self.hosts[n].late).then_some(ETIMEDOUT);
        let result = match cut_short.or(too_late) {
            Some(errno) => CallResult::Failed(Fault::system(Operation::Remove, "", errno)),
            None => self.make(n, call),
        };
        let proves = matches!(call, Call::LockToDelete | Call::Prove | Call::MarkDead);
        self.hosts[n].late &= !(proves && result == CallResult::Yes);
        let next = steps.returned(result);
        match next {
            Next::Call(_) => self.hosts[n].under_way = Some((steps, next)),
            Next::End(outcome) => self.ended(n, &outcome),
        }
    }

    fn ended(&mut self, n: usize, outcome: &Outcome) {
        match outcome {
            Outcome::Locked => {
                let file = self.hosts[n].file.as_ref().expect("a locked file is open");
                self.hosts[n].holds = file.locked;
            }
            Outcome::Refused => assert!(self.hosts[n].rival, "N2: refused, but nobody held it"),
            _ => {}
        }
    }

    fn lock(&mut self, n: usize, parts: &[u8], mode: Mode) -> CallResult {
        let file = self.hosts[n].file.clone().expect("the steps use a file only while it is open");
        let conflicts = self.server.locks.iter().any(|((other, part), held)| {
            let inode = self.hosts[*other].file.as_ref().map(|file| file.inode);
            let excludes = *held == Mode::Exclusive || mode == Mode::Exclusive;
            *other != n && parts.contains(part) && inode == Some(file.inode) && excludes
        });
        if conflicts {
            return CallResult::No;
        }
        self.server.locks.extend(parts.iter().map(|part| ((n, *part), mode)));
        CallResult::Yes
    }

    fn make(&mut self, n: usize, call: Call) -> CallResult {
        let yes = |done: bool| if done { CallResult::Yes } else { CallResult::No };
        match call {
            Call::Gate(None) => {
                self.server.gate.remove(&n);
                return CallResult::Yes;
            }
            Call::Gate(Some(mode)) => {
                let excludes = |held: &Mode| *held == Mode::Exclusive || mode == Mode::Exclusive;
                if self.server.gate.iter().any(|(who, held)| *who != n && excludes(held)) {
                    return CallResult::No;
                }
                self.server.gate.insert(n, mode);
                return CallResult::Yes;
            }
            Call::Gated => return yes(self.server.gate.contains_key(&n)),
            Call::Unlink => {
                self.server.named = None;
                return CallResult::Yes;
            }
            Call::OpenOld if self.server.named.is_none() => return CallResult::Gone,
            _ => {}
        }
        if let Call::Open { .. } | Call::OpenOld = call {
            let used: BTreeSet<Inode> = self.hosts.iter().filter_map(|host| Some(host.file.as_ref()?.inode)).collect();
            let fresh = (0..)
                .find(|inode| !used.contains(inode) && !self.server.dead.contains(inode))
                .expect("there are enough");
            let inode = *self.server.named.get_or_insert(fresh);
            self.hosts[n].file = Some(Open { inode, recent: true, ..Open::default() });
            return CallResult::Yes;
        }
        let file = self.hosts[n].file.clone().expect("the steps use a file only while it is open");
        let named = self.server.named == Some(file.inode);
        match call {
            Call::LockTurn
            | Call::UnlockTurn
            | Call::LockHeld
            | Call::LockNumber(_)
            | Call::LockSlots(..)
            | Call::UnlockSlots(..)
            | Call::Fence(_)
            | Call::Stamp(_)
            | Call::Gate(_)
            | Call::Gated
            | Call::Unlink
            | Call::Open { .. }
            | Call::OpenOld
            | Call::OpenToRead
            | Call::Check => {
                unreachable!("{call:?} is not part of the model")
            }
            Call::Anchor => return self.lock(n, &[ANCHOR], Mode::Shared),
            Call::Alive if self.server.dead.contains(&file.inode) && named => return CallResult::No,
            Call::Alive => return if named { CallResult::Yes } else { CallResult::Gone },
            Call::Lock(mode) => {
                let result = self.lock(n, &[0, 1], mode);
                if result == CallResult::Yes {
                    self.open(n).locked = Some(mode);
                }
                return result;
            }
            Call::Recent => return yes(file.recent),
            Call::Prove if file.dropped => return CallResult::No,
            Call::Prove => self.open(n).recent = true,
            Call::Held(mode) => {
                let inode = file.inode;
                return yes(self.server.locks.iter().any(|((other, part), held)| {
                    let same = self.hosts[*other].file.as_ref().is_some_and(|file| file.inode == inode);
                    *other != n && *part == 0 && same && (*held == Mode::Exclusive || mode == Mode::Exclusive)
                }));
            }
            Call::Yield | Call::Pause => {}
            // Nobody takes slots here.
            Call::Uses => return CallResult::No,
            Call::LockToDelete => return self.lock(n, &PARTS[1..], Mode::Exclusive),
            Call::Named => return yes(named),
            Call::MarkDead if file.dropped => return CallResult::No,
            // A file that is marked dead stays so after its last user has closed it, as long as it
            // has its name.
            Call::MarkDead => drop(self.server.dead.insert(file.inode)),
            Call::Unlock => {
                self.server.locks.retain(|(who, part), _| *who != n || *part == ANCHOR);
                self.open(n).locked = None;
            }
            Call::Close => {
                self.server.locks.retain(|(who, _), _| *who != n);
                self.hosts[n].file = None;
            }
        }
        CallResult::Yes
    }

    fn open(&mut self, n: usize) -> &mut Open {
        self.hosts[n].file.as_mut().expect("the steps use a file only while it is open")
    }

    fn check(&self) {
        let holders: Vec<Mode> = self.hosts.iter().filter_map(|host| host.holds).collect();
        let alone = holders.len() < 2 || holders.iter().all(|mode| *mode == Mode::Shared);
        assert!(alone, "N1: two hosts hold the name");
        if self.hosts.iter().all(|host| *host == Host::default()) {
            self.check_next_try();
        }
    }

    fn check_next_try(&self) {
        const STEPS_MAX: usize = 100;
        let mut world = self.clone();
        world.begin(0, FileOp::Try(Mode::Exclusive));
        for _ in 0..STEPS_MAX {
            if world.hosts[0].under_way.is_none() {
                break;
            }
            world.act(&Action::Step(0));
        }
        assert!(world.hosts[0].holds.is_some(), "N3: what was left behind is in the way");
    }
}

fn explored(hosts: usize, mishaps: u8, modes: &[Mode]) {
    let start = std::time::Instant::now();
    let states = explore(World::new(hosts, mishaps), |world| world.actions(modes), World::act, World::check);
    println!("{states} states in {:?}", start.elapsed());
    assert!(states > 1000, "the model explores next to nothing");
}

/// Two hosts compete for a name, delete its file, are killed and lose their leases.
#[test]
fn two_hosts_with_mishaps() {
    explored(2, 2, &[Mode::Exclusive]);
}

/// Two hosts that share or exclude; one of them is killed or loses its lease.
#[test]
fn shared_and_exclusive() {
    explored(2, 1, &[Mode::Shared, Mode::Exclusive]);
}
