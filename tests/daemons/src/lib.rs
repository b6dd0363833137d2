//! Daemons for the examples in the documentation: a real one in a thread, and one that says what it is told to.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use clap::Parser;

use distrilock::daemon;
use distrilock::settings::Settings;
use distrilock_client::Server;

/// A daemon over a directory of its own, which is deleted in the end.
#[derive(Debug)]
pub struct Daemon(PathBuf);

impl Daemon {
    /// Starts it: one in a process, since it is the daemon itself, with all its claims.
    #[must_use]
    pub fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("distrilock-example-{}", std::process::id()));
        std::fs::create_dir(&folder).expect("the folder of this process is new");
        let socket = folder.join("socket");
        let tcp = format!("unix:{}", socket.display());
        let arguments = ["distrilockd", "--log", "error", "--directory", &folder.to_string_lossy(), "--tcp", &tcp];
        let settings = Settings::parse_from(arguments);
        thread::spawn(|| daemon::run(settings).expect("the daemon of an example starts"));
        while UnixStream::connect(&socket).is_err() {
            thread::sleep(Duration::from_millis(1));
        }
        Self(folder)
    }

    /// Where it listens.
    #[must_use]
    pub fn servers(&self) -> Vec<Server> {
        vec![Server::Unix(self.0.join("socket"))]
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Nothing is left to be done about a folder that cannot be deleted.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Where a script is played.
#[derive(Debug)]
pub struct Scripted(Server);

impl Scripted {
    /// Where it listens.
    #[must_use]
    pub fn servers(&self) -> Vec<Server> {
        vec![self.0.clone()]
    }
}

/// Answers the hello, says `lines` at the second request, and after that only yes.
#[must_use]
pub fn scripted(lines: &str) -> Scripted {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port of the loopback");
    let address = listener.local_addr().expect("a bound socket has an address");
    let script = lines.to_owned();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let requests = BufReader::new(stream.try_clone()?).lines();
        let welcome =
            r#"{"id":1,"ok":true,"version":1,"session":"s","node":"n","directory":"local","dead_after_ms":45000}"#;
        for (id, _) in (1..).zip(requests.map_while(Result::ok)) {
            match id {
                1 => writeln!(stream, "{welcome}")?,
                2 => writeln!(stream, "{script}")?,
                _ => writeln!(stream, "{{\"id\":{id},\"ok\":true}}")?,
            }
        }
        std::io::Result::Ok(())
    });
    Scripted(Server::Tcp(address.to_string()))
}
