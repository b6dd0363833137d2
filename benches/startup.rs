//! The time from the start of `distrilock run NAME CMD` until CMD runs, and until the end of a CMD
//! that does nothing, compared with flock(1). The two alternate, so that other load on the machine
//! affects both alike. The goal: at most 5 ms more than flock for the whole run.

use std::io::Read;
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

/// The time from the start until the command's first byte, and until its end.
fn time(command: &mut Command) -> [Duration; 2] {
    let began = Instant::now();
    let mut child = command.args(["echo", "runs"]).stdout(Stdio::piped()).spawn().expect("it runs");
    let mut output = child.stdout.take().expect("a pipe");
    output.read_exact(&mut [0]).expect("CMD says something");
    let runs = began.elapsed();
    let status = child.wait().expect("our child");
    let took = began.elapsed();
    assert!(status.success(), "{command:?}: {status}");
    [runs, took]
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    let folder: PathBuf = std::env::temp_dir().join(format!("distrilock-startup-{}", std::process::id()));
    std::fs::create_dir(&folder).expect("a folder");
    let (daemon, server) = serve(&folder);
    let file = folder.join("flock").display().to_string();
    let ours = env!("CARGO_BIN_EXE_distrilock");
    let lines: [&[&str]; 3] =
        [&[ours, "--server", &server, "run", "x"], &[ours, "--server", &server, "run", "-F", "x"], &["flock", &file]];
    let mut times = lines.map(|_| [Vec::new(), Vec::new()]);
    for _ in 0..ROUNDS {
        for (line, times) in lines.iter().zip(&mut times) {
            for (time, times) in time(Command::new(line[0]).args(&line[1..])).into_iter().zip(times) {
                times.push(time);
            }
        }
    }
    drop(daemon);
    std::fs::remove_dir_all(&folder).expect("our own folder");
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let medians = times.map(|[mut runs, mut took]| [median(&mut runs), median(&mut took)]);
    println!("medians of {ROUNDS}, ms    until CMD runs    until its end");
    for (name, [runs, took]) in ["distrilock run", "distrilock run -F", "flock"].into_iter().zip(medians) {
        println!("{name:<22} {:>14.2} {:>16.2}", ms(runs), ms(took));
    }
    let [us, _, theirs] = medians;
    for (what, n) in [("until CMD runs", 0), ("until its end", 1)] {
        let more = us[n].saturating_sub(theirs[n]);
        println!("{what}: {:.2} times flock's, {:.2} ms more", ms(us[n]) / ms(theirs[n]), ms(more));
    }
    // This is a measurement, not a test: on a busy machine it would fail.
    let reached = us[1].saturating_sub(theirs[1]) <= GOAL;
    println!("the goal, at most {:.0} ms more: {}", ms(GOAL), if reached { "reached" } else { "not reached" });
}
