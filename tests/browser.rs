//! The JavaScript client of docs/protocol.md, chapter 9, in a browser: a page contains it
//! unchanged, and reports the results to this test. (tests/clients.rs runs it in node and tests
//! more failures.)

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::json;
use support::{Daemon, PATIENCE, V1, client_of_the_manual, eventually};
use tempfile::TempDir;

/// What the page does with the client.
const MAIN: &str = r#"
  const say = (what) => fetch("/said", { method: "POST", body: what });
  const work = async ({ lost, release }) => {
    lost.then((reason) => say("lost: " + reason));
    await say("held");
    await fetch("/go");
    await release();
    await say("released");
  };
  say("loaded").then(() => new Session("ws://DAEMON/distrilock").acquire("a")).then(work).catch((error) => say("refused: " + error.message));
"#;

/// The server of one page, with an origin of its own.
struct Site {
    origin: String,
    page: Arc<Mutex<String>>,
    said: Receiver<String>,
    go: Sender<()>,
}

impl Site {
    fn serve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let origin = format!("http://{}", listener.local_addr().expect("it is bound"));
        let (to, said) = channel();
        let (go, gone) = channel();
        let (page, gone) = (Arc::new(Mutex::new(String::new())), Arc::new(Mutex::new(gone)));
        let its_page = Arc::clone(&page);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (page, to, gone) = (Arc::clone(&its_page), to.clone(), Arc::clone(&gone));
                // A browser opens connections in advance, which may end without a request.
                thread::spawn(move || answer(stream, &page, &to, &gone).unwrap_or_default());
            }
        });
        Self { origin, page, said, go }
    }

    /// Puts the client for this daemon on the page.
    fn show(&self, daemon: &Daemon) {
        let (client, main) = (client_of_the_manual("js"), MAIN.replace("DAEMON", &daemon.ws()));
        *self.page.lock().expect("no panic") =
            format!("<!doctype html><title>a lock</title><script>{client}{main}</script>");
    }

    #[track_caller]
    fn hears(&self, expected: &str) {
        let said = self.said.recv_timeout(PATIENCE);
        let said = said.unwrap_or_else(|_| panic!("the page does not say {expected:?}"));
        assert!(said.starts_with(expected), "expected {expected:?}, the page says {said:?}");
    }
}

/// Answers one request (RFC 9112) and closes the connection.
fn answer(
    mut stream: TcpStream,
    page: &Mutex<String>,
    said: &Sender<String>,
    go: &Mutex<Receiver<()>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut request, mut line, mut length) = (String::new(), String::new(), 0);
    reader.read_line(&mut request)?;
    while reader.read_line(&mut line)? > 2 {
        let header = line.to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        line.clear();
    }
    let body = match request.split(' ').take(2).collect::<Vec<_>>()[..] {
        ["GET", "/"] => page.lock().expect("no panic").clone(),
        ["GET", "/go"] => {
            let _ = go.lock().expect("no panic").recv_timeout(PATIENCE);
            String::new()
        }
        ["POST", "/said"] => {
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            let _ = said.send(String::from_utf8_lossy(&body).into_owned());
            String::new()
        }
        _ => String::new(),
    };
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nCache-Control: no-store\r\nConnection: close\r\n";
    write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// A browser without a window, with a fresh profile, that connects only to this host.
struct Browser {
    child: Child,
    _profile: TempDir,
}

impl Browser {
    fn open(page: &str) -> Self {
        let profile = TempDir::new().expect("a folder");
        let child = chromium(profile.path()).arg(page).spawn();
        let child =
            child.unwrap_or_else(|error| panic!("chromium: {error}: this test needs Debian's package chromium"));
        Self { child, _profile: profile }
    }
}

fn chromium(profile: &Path) -> Command {
    let mut command = Command::new("chromium");
    command
        .arg("--headless")
        // Its sandbox does not work for root, who runs the system tests; it only visits this test's
        // page.
        .args(["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-breakpad"])
        .arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
        .arg(format!("--user-data-dir={}", profile.display()))
        .env("HOME", profile)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

impl Drop for Browser {
    fn drop(&mut self) {
        // All of its processes are in the group in which it was started.
        let group = Pid::from_raw(self.child.id().cast_signed());
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// A page from an origin that `--allow-origin` names waits for a lock, holds it, releases it, and
/// must learn when it is lost.
#[test]
fn a_page_holds_a_lock() {
    let site = Site::serve();
    let mut daemon = Daemon::setup().flag("--allow-origin", &site.origin).start();
    site.show(&daemon);
    let mut other = V1::connect(&daemon.tcp());
    other.acquire("a");
    let browser = Browser::open(&site.origin);
    site.hears("loaded");
    eventually("the page waits", || other.request(json!({"op":"peek","lock":"a"}))["waiters"] == 1);
    assert!(site.said.try_recv().is_err(), "it works without the lock");
    other.release("a");
    site.hears("held");
    assert_eq!(other.request(json!({"op":"acquire","lock":"a"}))["error"], "busy");
    site.go.send(()).expect("the site is there");
    site.hears("released");
    assert_eq!(other.request(json!({"op":"acquire","lock":"a","wait_ms":30000}))["ok"], true);
    other.release("a");
    drop(browser);

    let again = Browser::open(&site.origin);
    site.hears("loaded");
    site.hears("held");
    daemon.kill();
    site.hears("lost: the connection ended");
    drop(again);
}

/// The page is closed, without any message: its lock is free.
#[test]
fn a_closed_page_holds_nothing() {
    let site = Site::serve();
    let daemon = Daemon::setup().flag("--allow-origin", &site.origin).start();
    site.show(&daemon);
    let browser = Browser::open(&site.origin);
    site.hears("loaded");
    site.hears("held");
    drop(browser);
    eventually("the lock is free", || V1::connect(&daemon.tcp()).gets("a"));
}

/// A page from another origin gets nothing: otherwise any site could use the locks of a visitor's
/// host.
#[test]
fn a_strange_page_is_refused() {
    let site = Site::serve();
    let daemon = Daemon::setup().flag("--allow-origin", "http://locks.example.com").start();
    site.show(&daemon);
    let _browser = Browser::open(&site.origin);
    site.hears("loaded");
    site.hears("refused: the connection ended");
    assert!(V1::connect(&daemon.tcp()).gets("a"));
}
