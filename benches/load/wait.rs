//! Waiting for locks that another process holds, either another daemon on the same directory or a
//! program that is not a daemon: what the waiting costs, and how soon it ends.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_UNLCK, F_WRLCK, SEEK_SET, flock};

use crate::dialect::Dialect;
use crate::drive::connect;
use crate::report::{Table, figure, median};
use crate::server::{Server, Site};

const RELEASES: usize = 200;
const IDLE: Duration = Duration::from_secs(5);

/// The holder of the names.
#[derive(Clone, Copy)]
enum Holder {
    /// Another daemon on the directory.
    Daemon,
    /// A program that is not a daemon: this one. It locks the same files, and closes them to
    /// release them.
    Closer,
    /// The same, but it unlocks them and keeps them open.
    Unlocker,
}

/// Compares holders, numbers of names, and numbers of sessions that wait for them.
pub(crate) fn compare(site: &Site) -> Result<Table> {
    let mut table = Table::new(&[
        "names, held by",
        "waiting sessions",
        "waiting daemon CPU",
        "holding daemon CPU",
        "release to grant, p50 ms",
        "p99 ms",
    ]);
    let cases = [
        (Holder::Daemon, 1000, 1000),
        (Holder::Daemon, 1000, 10),
        (Holder::Daemon, 10, 10),
        (Holder::Closer, 1000, 1000),
        (Holder::Closer, 10, 10),
        (Holder::Unlocker, 1000, 1000),
        (Holder::Unlocker, 10, 10),
    ];
    for (holder, names, sessions) in cases {
        let title = match holder {
            Holder::Daemon => format!("{names}, a daemon"),
            Holder::Closer => format!("{names}, a program that closes"),
            Holder::Unlocker => format!("{names}, a program that only unlocks"),
        };
        eprintln!("waiting: {title}, {sessions} sessions");
        let cells = measure(site, holder, names, sessions).with_context(|| title.clone())?;
        table.row(&[vec![title, sessions.to_string()], cells].concat());
    }
    Ok(table)
}

fn measure(site: &Site, holder: Holder, names: usize, sessions: usize) -> Result<Vec<String>> {
    let daemon = Server::daemon(site, None)?;
    let contender = match holder {
        Holder::Daemon => Some(Server::daemon(site, Some(&daemon))?),
        Holder::Closer | Holder::Unlocker => None,
    };
    let mut held = match &contender {
        Some(contender) => Held::by_daemon(contender, names)?,
        None => Held::by_program(&daemon, names, matches!(holder, Holder::Closer))?,
    };
    let mut waiters = open(&daemon, sessions)?;
    for number in 0..names {
        waiters[number % sessions].ask(number, "acquire", r#","wait_ms":null"#)?;
    }
    // A session's requests are handled in order: after the pong all the others wait.
    for waiter in &mut waiters {
        waiter.ping()?;
    }
    // By then the waiting daemon has asked the other one.
    thread::sleep(Duration::from_secs(1));
    let contender_cpu = || contender.as_ref().map(|contender| contender.process().cpu()).transpose();
    let before = (daemon.process().cpu()?, contender_cpu()?);
    thread::sleep(IDLE);
    let share = |used: Duration| format!("{:.2} %", used.as_secs_f64() / IDLE.as_secs_f64() * 100.0);
    let waiting = share(daemon.process().cpu()? - before.0);
    let holding = contender_cpu()?.zip(before.1).map_or("-".to_owned(), |(now, before)| share(now - before));

    let mut latencies_ms = Vec::new();
    for release in 0..RELEASES {
        // Uneven pauses, so that releases do not keep step with a timer of the waiting daemon.
        thread::sleep(Duration::from_millis((release as u64 * 31) % 47));
        let number = release % names;
        let released = Instant::now();
        held.release(number)?;
        waiters[number % sessions].expect_granted(number)?;
        latencies_ms.push(released.elapsed().as_secs_f64() * 1e3);
        held.released(number)?;
        if names < RELEASES {
            // With few names, the same ones change hands again and again.
            let waiter = &mut waiters[number % sessions];
            waiter.ask(number, "release", "")?;
            waiter.expect_granted(number)?;
            held.again(number)?;
            waiter.ask(number, "acquire", r#","wait_ms":null"#)?;
            waiter.ping()?;
        }
    }
    latencies_ms.sort_by(f64::total_cmp);
    let p99 = latencies_ms[RELEASES * 99 / 100];
    let p50 = median(latencies_ms.into_iter());
    Ok(vec![waiting, holding, figure(p50), figure(p99)])
}

/// The names that are held.
enum Held {
    ByDaemon(Vec<Session>),
    ByProgram { paths: Vec<PathBuf>, files: Vec<Option<File>>, closes: bool },
}

impl Held {
    fn by_daemon(contender: &Server, names: usize) -> Result<Self> {
        let mut held = Self::ByDaemon(open(contender, 10)?);
        (0..names).try_for_each(|number| held.again(number))?;
        Ok(held)
    }

    fn by_program(daemon: &Server, names: usize, closes: bool) -> Result<Self> {
        let paths: Vec<PathBuf> = (0..names).map(|number| daemon.locks().join(format!("wait-{number}.lck"))).collect();
        // The daemon may still be deleting the empty files that nobody locks: these are never
        // empty.
        let new = daemon.locks().join("new");
        for path in &paths {
            fs::write(&new, "held by a program")?;
            fs::rename(&new, path)?;
        }
        let mut held = Self::ByProgram { files: paths.iter().map(|_| None).collect(), paths, closes };
        (0..names).try_for_each(|number| held.again(number))?;
        Ok(held)
    }

    /// Locks a name that is free.
    fn again(&mut self, number: usize) -> Result<()> {
        match self {
            Self::ByDaemon(sessions) => {
                let session = &mut sessions[number % 10];
                session.ask(number, "acquire", "")?;
                session.expect_granted(number)
            }
            Self::ByProgram { paths, files, .. } => {
                let file = match files[number].take() {
                    Some(file) => file,
                    None => File::options().read(true).write(true).open(&paths[number])?,
                };
                lock(files[number].insert(file), F_WRLCK)
            }
        }
    }

    fn release(&mut self, number: usize) -> Result<()> {
        match self {
            Self::ByDaemon(sessions) => sessions[number % 10].ask(number, "release", ""),
            Self::ByProgram { files, closes: true, .. } => {
                files[number] = None;
                Ok(())
            }
            Self::ByProgram { files, .. } => lock(files[number].as_ref().context("it is held")?, F_UNLCK),
        }
    }

    /// Reads the holder's reply to the release, if it sends one.
    fn released(&mut self, number: usize) -> Result<()> {
        match self {
            Self::ByDaemon(sessions) => sessions[number % 10].expect_granted(number),
            Self::ByProgram { .. } => Ok(()),
        }
    }
}

/// Locks or unlocks a whole file with fcntl_locking(2), as any program can.
pub(crate) fn lock(file: &File, kind: i32) -> Result<()> {
    let whence = i16::try_from(SEEK_SET)?;
    let range = flock { l_type: i16::try_from(kind)?, l_whence: whence, l_start: 0, l_len: 0, l_pid: 0 };
    fcntl(file, FcntlArg::F_OFD_SETLK(&range)).context("lock a file")?;
    Ok(())
}

/// A session of version 1 that may have many requests under way; their ids and locks have the same
/// numbers.
struct Session(BufReader<TcpStream>);

fn open(server: &Server, sessions: usize) -> Result<Vec<Session>> {
    let address = server.address(Dialect::V1Tcp);
    (0..sessions).map(|_| Ok(Session(BufReader::new(connect(Dialect::V1Tcp, address)?)))).collect()
}

impl Session {
    fn ask(&mut self, number: usize, op: &str, more: &str) -> Result<()> {
        let line = format!("{{\"id\":{number},\"op\":\"{op}\",\"lock\":\"wait-{number}\"{more}}}\n");
        Ok(self.0.get_mut().write_all(line.as_bytes())?)
    }

    /// The reply to a granted acquire and to a release that was carried out.
    fn expect_granted(&mut self, number: usize) -> Result<()> {
        self.expect(&format!("{{\"id\":{number},\"ok\":true,\"lock\":\"wait-{number}\"}}\n"))
    }

    fn ping(&mut self) -> Result<()> {
        self.0.get_mut().write_all(b"{\"id\":\"ping\",\"op\":\"ping\"}\n")?;
        self.expect("{\"id\":\"ping\",\"ok\":true}\n")
    }

    fn expect(&mut self, expected: &str) -> Result<()> {
        let mut line = String::new();
        self.0.read_line(&mut line).with_context(|| format!("no reply, expected {expected:?}"))?;
        ensure!(line == expected, "unexpected reply {line:?}, expected {expected:?}");
        Ok(())
    }
}
