//! The host's side: builds the machines, puts this program and the two tested ones on a disk, boots
//! one machine for each kernel and version of NFS, and shows the results.

use std::collections::HashSet;
use std::env;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use tempfile::TempDir;

use crate::chosen;
use crate::hosts::Version;
use crate::report::{self, Read};

/// After this time a machine is switched off, whatever it does.
const MACHINE_SECONDS_MAX: u32 = 3600;

const MEMORY_MIB: u32 = 768;

/// Machines at the same time; each mostly waits for leases to expire.
const MACHINES_MAX: usize = 2;

/// The command `distrilock`, if this tree has it.
pub(crate) const COMMAND: Option<&str> = option_env!("CARGO_BIN_EXE_distrilock");

/// A release of Debian, whose kernel a machine boots, as its server and as its hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suite {
    /// Debian 12, Linux 6.1.
    Bookworm,
    /// Debian 13, Linux 6.12, whose server grants write delegations.
    Trixie,
}

impl FromStr for Suite {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Bookworm, Self::Trixie].into_iter().find(|suite| suite.to_string() == text).ok_or(())
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        })
    }
}

/// A machine: a kernel, and the version of NFS that its hosts mount with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) suite: Suite,
    pub(crate) version: Version,
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.suite, self.version)
    }
}

/// The machines; the slowest come first.
const MACHINES: &[Machine] = &[
    Machine { suite: Suite::Bookworm, version: Version::V42 },
    Machine { suite: Suite::Bookworm, version: Version::V41 },
    Machine { suite: Suite::Trixie, version: Version::V42 },
    Machine { suite: Suite::Bookworm, version: Version::V40 },
    Machine { suite: Suite::Trixie, version: Version::V41 },
];

/// The machines' results, counted.
#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
}

/// Runs the scenarios selected by words; returns whether everything holds.
pub(crate) fn run(words: &[String]) -> bool {
    let start = Instant::now();
    let wants = |machine: &&Machine| !chosen(**machine, words).is_empty();
    let machines: Vec<Machine> = MACHINES.iter().filter(wants).copied().collect();
    let images = images(&machines);
    let scratch = TempDir::with_prefix_in("nfs-", env!("CARGO_TARGET_TMPDIR")).expect("a place for disks");
    payload(scratch.path());
    if COMMAND.is_none() {
        println!("there is no command distrilock: the collector is the library's, and the doctor the daemon's alone");
    }
    let tally = Mutex::new(Tally::default());
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..MACHINES_MAX.min(machines.len()) {
            scope.spawn(|| {
                while let Some(machine) = machines.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (_, image) = images.iter().find(|(suite, _)| *suite == machine.suite).expect("it was built");
                    boot(*machine, words, image, scratch.path(), &tally);
                }
            });
        }
    });
    let Tally { passed, failed } = *tally.lock().expect("no machine panics");
    println!("NFS lab: {passed} checks passed, {failed} failed, {:.0} s", start.elapsed().as_secs_f64());
    passed > 0 && failed == 0
}

/// The images of the machines' suites; they are built if necessary.
fn images(machines: &[Machine]) -> Vec<(Suite, PathBuf)> {
    let suites: Vec<Suite> = [Suite::Bookworm, Suite::Trixie]
        .into_iter()
        .filter(|suite| machines.iter().any(|machine| machine.suite == *suite))
        .collect();
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nfs/build");
    let words = suites.iter().map(Suite::to_string);
    let output = Command::new(program).args(words).stderr(Stdio::inherit()).output().expect("the recipe runs");
    assert!(output.status.success(), "the virtual machines could not be built (it needs root)");
    let paths = String::from_utf8(output.stdout).expect("paths are text");
    suites.into_iter().zip(paths.lines().map(PathBuf::from)).collect()
}

/// A disk that is a tar archive.
fn payload(scratch: &Path) {
    let folder = scratch.join("payload");
    fs::create_dir(&folder).expect("a fresh folder");
    let itself = env::current_exe().expect("this program");
    let programs = [
        (itself.as_path(), "payload"),
        (Path::new(env!("CARGO_BIN_EXE_distrilockd")), "distrilockd"),
        (Path::new(COMMAND.unwrap_or("/bin/false")), "distrilock"),
    ];
    for (program, name) in programs {
        fs::copy(program, folder.join(name)).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    }
    // They consist mostly of symbols.
    succeed(Command::new("strip").args(programs.map(|(_, name)| folder.join(name))));
    package(&folder, scratch);
    let disk = scratch.join("payload.tar");
    succeed(Command::new("tar").arg("cf").arg(&disk).arg("-C").arg(&folder).arg("."));
    let length = fs::metadata(&disk).expect("it is there").len().next_multiple_of(1 << 20);
    fs::File::options().write(true).open(&disk).and_then(|file| file.set_len(length)).expect("there is room");
}

/// The files that the package installs, for hosts with systemd: installed by the scripts of every
/// package, with the programs under test.
fn package(folder: &Path, scratch: &Path) {
    let build = format!("BUILD={}", scratch.join("build").display());
    let packaging = |script: &str| Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(script));
    succeed(packaging("build").arg(format!("PROGRAMS={}", folder.display())).arg(&build));
    succeed(packaging("install").arg(format!("DESTDIR={}", folder.join("package").display())).arg(&build));
}

fn succeed(command: &mut Command) {
    let status = command.status();
    assert!(status.as_ref().is_ok_and(std::process::ExitStatus::success), "{command:?}: {status:?}");
}

/// Boots one machine and waits until it ends.
fn boot(machine: Machine, words: &[String], image: &Path, scratch: &Path, tally: &Mutex<Tally>) {
    let Machine { suite, version } = machine;
    let console = scratch.join(format!("console-{suite}-{version}"));
    let drive = |file: &Path, rest: &str| format!("file={},if=virtio,format=raw,{rest}", file.display());
    let append = format!(
        "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off tsc=reliable random.trust_cpu=on audit=0 apparmor=0 \
         lab.suite={suite} lab.version={version} lab.words={}",
        words.join(",")
    );
    let mut child = Command::new("timeout")
        .args(["-k", "5", &MACHINE_SECONDS_MAX.to_string(), "qemu-system-x86_64"])
        .args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
        .args(["-m", &MEMORY_MIB.to_string(), "-nodefaults", "-display", "none", "-no-reboot", "-nic", "none"])
        .arg("-kernel")
        .arg(image.join("vmlinuz"))
        .arg("-initrd")
        .arg(image.join("initramfs.gz"))
        .args(["-append", &append])
        .args(["-drive", &drive(&image.join("disk"), "snapshot=on,cache=unsafe")])
        .args(["-drive", &drive(&scratch.join("payload.tar"), "readonly=on")])
        .args(["-device", "virtio-rng-pci", "-serial", &format!("file:{}", console.display())])
        .args(["-chardev", "stdio,id=out,signal=off", "-serial", "chardev:out"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("timeout(1) runs");
    let output = BufReader::new(child.stdout.take().expect("it is a pipe"));
    let mut missing: HashSet<&str> = chosen(machine, words).iter().map(|scenario| scenario.name).collect();
    let mut ended = false;
    for line in output.split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        ended |= line.starts_with("LAB-END");
        show(machine, line.trim_end(), &mut missing, tally);
    }
    let _ = child.wait();
    if !ended || !missing.is_empty() {
        tally.lock().expect("no machine panics").failed += 1;
        println!("{machine} FAILED   the machine ended before {missing:?}");
        let text = fs::read(&console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].iter().for_each(|line| println!("{machine} console  {line}"));
    }
}

/// Shows a line and counts it.
fn show(machine: Machine, line: &str, missing: &mut HashSet<&str>, tally: &Mutex<Tally>) {
    let mut tally = tally.lock().expect("no machine panics");
    match report::read(&machine, line) {
        Read::Passed => tally.passed += 1,
        Read::Failed => tally.failed += 1,
        Read::Done { scenario, checks: true } => {
            missing.remove(scenario);
        }
        Read::Foreign if !line.is_empty() => println!("{machine} says     {line}"),
        Read::Done { .. } | Read::Other | Read::Foreign => {}
    }
}
