//! The real daemon, in a thread of this process.

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
    /// Starts it. A process can have only one, since it is the daemon itself, with everything that
    /// it claims.
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
        // Nothing can be done about a folder that cannot be deleted.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
