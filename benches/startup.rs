//! How long it takes from the start of `distrilock run NAME CMD` to the end of a CMD that does nothing, against flock(1), in
//! alternation, so that whatever else the machine does hurts both alike. The goal: at most 5 ms more than flock.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 400;
const GOAL: Duration = Duration::from_millis(5);

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(folder: &Path) -> (Daemon, String) {
    let socket = folder.join("socket");
    let child = Command::new(env!("CARGO_BIN_EXE_distrilockd"))
        .arg("-d")
        .arg(folder)
        .arg(format!("--tcp=unix:{}", socket.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the daemon runs");
    let daemon = Daemon(child);
    while !socket.exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    (daemon, format!("unix:{}", socket.display()))
}

fn time(command: &mut Command) -> Duration {
    let began = Instant::now();
    let status = command.status().expect("it runs");
    let took = began.elapsed();
    assert!(status.success(), "{command:?}: {status}");
    took
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    let folder: PathBuf = std::env::temp_dir().join(format!("distrilock-startup-{}", std::process::id()));
    std::fs::create_dir(&folder).expect("a folder");
    let (daemon, server) = serve(&folder);
    let file = folder.join("flock");
    let mut ours = Command::new(env!("CARGO_BIN_EXE_distrilock"));
    ours.args(["--server", &server, "run", "x", "true"]);
    let mut plain = Command::new(env!("CARGO_BIN_EXE_distrilock"));
    plain.args(["--server", &server, "run", "-F", "x", "true"]);
    let mut flock = Command::new("flock");
    flock.arg(&file).arg("true");
    let (mut with_us, mut with_plain, mut with_flock) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        with_us.push(time(&mut ours));
        with_flock.push(time(&mut flock));
        with_plain.push(time(&mut plain));
    }
    drop(daemon);
    std::fs::remove_dir_all(&folder).expect("our own folder");
    let (us, without_fork, theirs) = (median(&mut with_us), median(&mut with_plain), median(&mut with_flock));
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let more = us.saturating_sub(theirs);
    println!(
        "medians of {ROUNDS}: distrilock run {:.2} ms, distrilock run -F {:.2} ms, flock {:.2} ms: ratio {:.2}, {:.2} ms more",
        ms(us),
        ms(without_fork),
        ms(theirs),
        ms(us) / ms(theirs),
        ms(more)
    );
    // A measurement, no test: a busy machine would fail it.
    println!("the goal, at most {:.0} ms more: {}", ms(GOAL), if more <= GOAL { "reached" } else { "not reached" });
}
