//! The servers under test: started, watched through proc(5), and ended whatever happens.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use tempfile::TempDir;

use crate::dialect::Dialect;
use crate::drive::Names;

/// A server that is not ready after this time has failed.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// How servers are started.
#[derive(Clone)]
pub(crate) struct Site {
    /// The daemon's binary.
    pub(crate) daemon: PathBuf,
    /// Where each server gets a fresh directory.
    pub(crate) base: PathBuf,
    /// The daemon's `--linger`, if it is not the default.
    pub(crate) linger: Option<&'static str>,
}

/// A running server. Dropping it ends the process, then removes its directory.
pub(crate) struct Server {
    child: Child,
    tcp: SocketAddr,
    ws: Option<SocketAddr>,
    notify: Option<UnixDatagram>,
    home: TempDir,
}

impl Server {
    /// Starts the server that speaks the dialect, on a fresh directory, for these names.
    pub(crate) fn start(site: &Site, dialect: Dialect, names: Names) -> Result<Self> {
        match dialect {
            Dialect::Redis => Self::redis(site).context("start redis-server"),
            Dialect::Floor => Self::floor(site, names).context("start the floor"),
            _ => Self::daemon(site, None),
        }
    }

    /// Starts a daemon on the directory of another one, or on its own.
    pub(crate) fn daemon(site: &Site, beside: Option<&Self>) -> Result<Self> {
        let home = site.fresh_directory()?;
        fs::create_dir(home.path().join("locks"))?;
        let locks = beside.map_or(home.path(), |other| other.home.path()).join("locks");
        let notify_path = home.path().join("notify");
        let notify = UnixDatagram::bind(&notify_path).context("bind the notification socket")?;
        let child = Command::new(&site.daemon)
            .arg("-d")
            .arg(locks)
            .args(["--tcp", "127.0.0.1:0", "--ws", "127.0.0.1:0", "--log", "warn"])
            .args(site.linger.map(|linger| ["--linger", linger]).iter().flatten())
            .env("NOTIFY_SOCKET", &notify_path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", site.daemon.display()))?;
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self { child, tcp: unknown, ws: None, notify: None, home };
        server.await_ready(&notify)?;
        server.read_addresses()?;
        discard_notifications(notify.try_clone()?);
        server.notify = Some(notify);
        Ok(server)
    }

    fn redis(site: &Site) -> Result<Self> {
        let home = site.fresh_directory()?;
        let tcp = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &tcp.port().to_string(), "--save", "", "--appendonly", "no"])
            .args(["--maxclients", "65000", "--loglevel", "warning", "--dir"])
            .arg(home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let mut server = Self { child, tcp, ws: None, notify: None, home };
        let deadline = Instant::now() + READY_WITHIN;
        while TcpStream::connect(tcp).is_err() {
            server.still_starting(deadline)?;
            thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// Starts this program again, as the bare server.
    fn floor(site: &Site, names: Names) -> Result<Self> {
        let home = site.fresh_directory()?;
        let child = Command::new(env::current_exe()?)
            .arg("--floor")
            .arg(home.path())
            .args((names == Names::Cold).then_some("--floor-deletes"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self { child, tcp: unknown, ws: None, notify: None, home };
        let stdout = server.child.stdout.as_mut().context("the floor has no standard output")?;
        let mut address = String::new();
        BufReader::new(stdout).read_line(&mut address)?;
        server.tcp = address.trim_end().parse().context("the floor did not print its address")?;
        Ok(server)
    }

    /// Waits for `READY=1` (sd_notify(3)), unless the daemon has ended.
    fn await_ready(&mut self, notify: &UnixDatagram) -> Result<()> {
        notify.set_read_timeout(Some(Duration::from_millis(50)))?;
        let deadline = Instant::now() + READY_WITHIN;
        let mut message = [0; 4096];
        loop {
            match notify.recv(&mut message) {
                Ok(count) if message[..count].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") => {
                    return Ok(notify.set_read_timeout(None)?);
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).context("read the notification socket"),
            }
            self.still_starting(deadline)?;
        }
    }

    fn still_starting(&mut self, deadline: Instant) -> Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(ended.is_none(), "the server ended before it was ready: {}", ended.unwrap_or_default());
        ensure!(Instant::now() < deadline, "the server was not ready within {READY_WITHIN:?}");
        Ok(())
    }

    /// Reads `tcp ADDRESS` and `ws ADDRESS` from the daemon's standard output.
    fn read_addresses(&mut self) -> Result<()> {
        let stdout = self.child.stdout.as_mut().ok_or_else(|| anyhow!("the daemon has no standard output"))?;
        let mut lines = BufReader::new(stdout).lines();
        let (mut tcp, mut ws) = (None, None);
        while tcp.is_none() || ws.is_none() {
            let line = lines.next().context("the daemon did not print its addresses")??;
            match line.split_once(' ') {
                Some(("tcp", address)) => tcp = Some(address.parse()?),
                Some(("ws", address)) => ws = Some(address.parse()?),
                _ => {}
            }
        }
        self.tcp = tcp.unwrap_or(self.tcp);
        self.ws = ws;
        Ok(())
    }

    /// Where sessions of the dialect are opened.
    pub(crate) fn address(&self, dialect: Dialect) -> SocketAddr {
        self.ws.filter(|_| dialect.is_websocket()).unwrap_or(self.tcp)
    }

    /// The lock directory of a daemon that has its own.
    pub(crate) fn locks(&self) -> PathBuf {
        self.home.path().join("locks")
    }

    /// The server's process in proc(5).
    pub(crate) fn process(&self) -> Process {
        Process(PathBuf::from(format!("/proc/{}", self.child.id())))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only for a process that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(notify) = &self.notify {
            let _ = notify.shutdown(Shutdown::Both);
        }
    }
}

impl Site {
    fn fresh_directory(&self) -> Result<TempDir> {
        tempfile::Builder::new()
            .prefix("distrilock-load-")
            .tempdir_in(&self.base)
            .with_context(|| format!("create a directory in {}", self.base.display()))
    }
}

/// Reads the daemon's notifications until the socket is shut down. Otherwise the queue would fill
/// up, and the benchmark would measure a daemon that writes into a full socket.
fn discard_notifications(notify: UnixDatagram) {
    thread::spawn(move || {
        let mut message = [0; 4096];
        while notify.recv(&mut message).is_ok_and(|count| count > 0) {}
    });
}

/// A process, as proc(5) shows it.
pub(crate) struct Process(PathBuf);

impl Process {
    /// This process: the load generator.
    pub(crate) fn own() -> Self {
        Self(PathBuf::from("/proc/self"))
    }

    /// The CPU time of all threads together. `schedstat` counts nanoseconds, `stat` only ticks.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let mut total_ns = 0;
        for task in fs::read_dir(self.0.join("task"))? {
            let path = task?.path().join("schedstat");
            // A thread may end between the two calls.
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let first = text.split_whitespace().next().unwrap_or_default();
            total_ns += first.parse::<u64>().with_context(|| format!("parse {}", path.display()))?;
        }
        Ok(Duration::from_nanos(total_ns))
    }

    /// The number of threads.
    pub(crate) fn threads(&self) -> Result<usize> {
        Ok(fs::read_dir(self.0.join("task"))?.count())
    }

    /// Resident memory in bytes.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(self.0.join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS in status")?;
        let kib = line.trim().trim_end_matches(" kB").parse::<u64>()?;
        Ok(kib * 1024)
    }
}

/// The version of the installed redis-server, if there is one.
pub(crate) fn redis_version() -> Option<String> {
    let output = Command::new("redis-server").arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().find_map(|word| word.strip_prefix("v=")).map(str::to_owned)
}

/// The kind of file system at a path: that of the longest mount point above it in proc_mounts(5).
pub(crate) fn file_system(path: &Path) -> Result<String> {
    let path = path.canonicalize()?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let above = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        path.starts_with(point).then_some((point.len(), kind))
    });
    // Of two mounts on one point, the later one covers the earlier one, and max_by_key returns the
    // last of equals.
    let kind = above.max_by_key(|(length, _)| *length).map(|(_, kind)| kind);
    Ok(kind.unwrap_or("unknown").to_owned())
}
