//! The host's side: the trees to boot from, the package in two versions, and a container for each
//! scenario and suite.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use nix::unistd::Uid;
use tempfile::TempDir;

use crate::tally::{Run, Tally};
use crate::{SUITES, chosen};

/// After this time a container is ended, whatever it does; its service has ended by itself before.
const CONTAINER_SECONDS_MAX: u32 = 300;

/// Containers at the same time: most of them wait for something.
const CONTAINERS_MAX: usize = 3;

/// The suffix of the second version of the package.
const NEXT_SUFFIX: &str = "+next1";

/// `$1` and the words up to `--` are control groups, one of each hierarchy; then comes the command.
const IN_GROUPS: &str =
    r#"while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || exit 1; shift; done; shift; exec "$@""#;

/// Runs the scenarios selected by words; returns whether everything holds.
pub(crate) fn run(words: &[String]) -> bool {
    assert!(Uid::effective().is_root(), "containers need root: run this test as root");
    let start = Instant::now();
    let suites: Vec<&str> = SUITES.into_iter().filter(|suite| words.iter().any(|word| word == suite)).collect();
    let suites = if suites.is_empty() { SUITES.to_vec() } else { suites };
    let trees = trees(&suites);
    let scratch = TempDir::with_prefix_in("containers-", env!("CARGO_TARGET_TMPDIR")).expect("a place for containers");
    payload(&scratch.path().join("lab"));
    let prepared = start.elapsed();
    let runs: Vec<Run> =
        chosen(words).iter().flat_map(|scenario| suites.iter().map(|suite| (*suite, scenario.name))).collect();
    let tally = Tally::new(&runs);
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..CONTAINERS_MAX.min(runs.len()) {
            scope.spawn(|| {
                while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let tree = suites.iter().position(|suite| *suite == run.0).expect("it is one of them");
                    boot(*run, &trees[tree], scratch.path(), &tally);
                }
            });
        }
    });
    let (passed, failed) = tally.sums();
    println!(
        "containers: {passed} checks passed, {failed} failed, {:.0} s, of which {:.0} s to prepare",
        start.elapsed().as_secs_f64(),
        prepared.as_secs_f64()
    );
    passed > 0 && failed == 0
}

/// The trees of the suites; they are built if necessary.
fn trees(suites: &[&str]) -> Vec<PathBuf> {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/containers/build");
    let output = Command::new(program).args(suites).stderr(Stdio::inherit()).output().expect("the recipe runs");
    assert!(output.status.success(), "the containers could not be built (it needs root)");
    let paths = String::from_utf8(output.stdout).expect("paths are text");
    paths.lines().map(PathBuf::from).collect()
}

/// The contents of /lab in a container: this program, the package, its next version, and the
/// documentation.
fn payload(folder: &Path) {
    fs::create_dir(folder).expect("a fresh folder");
    let copy = |from: &Path, to: &str| {
        fs::copy(from, folder.join(to)).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    };
    copy(&env::current_exe().expect("this program"), "payload");
    // They consist mostly of symbols.
    success(Command::new("strip").arg(folder.join("payload")), "binutils are there");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    copy(&root.join("README.md"), "README.md");
    copy(&root.join("debian/tests/lock"), "autopkgtest");
    copy(&package(root), "distrilock.deb");
    next_version(folder);
}

/// Builds the package, unless `DISTRILOCK_DEB` names one.
fn package(root: &Path) -> PathBuf {
    if let Some(path) = env::var_os("DISTRILOCK_DEB") {
        return path.into();
    }
    let output = Command::new(root.join("packaging/deb")).current_dir(root).stderr(Stdio::inherit()).output();
    let output = output.expect("packaging/deb can be run");
    assert!(output.status.success(), "the package could not be built: {}", String::from_utf8_lossy(&output.stdout));
    let said = String::from_utf8_lossy(&output.stdout);
    let path = said.lines().last().expect("it says where the package is");
    assert!(path.ends_with(".deb"), "{path} is no package");
    root.join(path)
}

/// The same package under a higher version.
fn next_version(folder: &Path) {
    let tree = folder.join("next");
    success(Command::new("dpkg-deb").arg("-R").arg(folder.join("distrilock.deb")).arg(&tree), "it is a package");
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control).expect("every package has it");
    let raised: Vec<String> = text.lines().map(raised).collect();
    fs::write(&control, raised.join("\n") + "\n").expect("our own folder");
    let mut pack = Command::new("dpkg-deb");
    pack.args(["-Zgzip", "-z1", "-b"]).arg(&tree).arg(folder.join("next.deb")).stdout(Stdio::null());
    success(&mut pack, "it is packed again");
    fs::remove_dir_all(&tree).expect("our own folder");
}

fn raised(line: &str) -> String {
    if line.starts_with("Version: ") { format!("{line}{NEXT_SUFFIX}") } else { line.to_owned() }
}

#[track_caller]
fn success(command: &mut Command, what: &str) {
    let status = command.status();
    assert!(status.as_ref().is_ok_and(|status| status.success()), "{what}: {command:?}: {status:?}");
}

/// A container's own control group in every hierarchy that a first process needs; removed with this
/// value.
struct Groups(Vec<PathBuf>);

impl Groups {
    fn new(name: &str) -> Self {
        let top = Path::new("/sys/fs/cgroup");
        let unified = top.join("cgroup.controllers").exists();
        // If the hierarchies of version 1 are mounted as well, systemd's own is among them.
        let hierarchies = if unified { vec![top.to_owned()] } else { vec![top.join("systemd"), top.join("unified")] };
        let present = hierarchies.into_iter().filter(|hierarchy| hierarchy.is_dir());
        let groups: Vec<PathBuf> = present.map(|hierarchy| hierarchy.join(name)).collect();
        assert!(!groups.is_empty(), "containers need cgroups: mount cgroup2 at /sys/fs/cgroup");
        for group in &groups {
            fs::create_dir(group).unwrap_or_else(|error| panic!("{}: {error}", group.display()));
        }
        Self(groups)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        // The groups that the container made inside are removed first.
        for group in &self.0 {
            let _ =
                Command::new("find").arg(group).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]).status();
        }
    }
}

/// Boots one container and waits until it ends.
fn boot((suite, scenario): Run, tree: &Path, scratch: &Path, tally: &Tally) {
    let name = format!("distrilock-{}-{suite}-{scenario}", std::process::id());
    let out = scratch.join(format!("{suite}-{scenario}"));
    fs::create_dir(&out).expect("a fresh folder");
    fs::write(out.join("scenario"), scenario).expect("our own folder");
    let groups = Groups::new(&name);
    let mut command = Command::new("sh");
    command.args(["-c", IN_GROUPS, "sh"]).args(&groups.0).arg("--");
    command.args(["timeout", "-k", "5", &CONTAINER_SECONDS_MAX.to_string(), "systemd-nspawn", "-q", "-b"]);
    command.arg("-D").arg(tree).args(["-M", &name, "--volatile=overlay", "--console=pipe", "--private-network"]);
    // The last one is for the scenario that takes the daemon's own descriptors.
    command.args(["--register=no", "--keep-unit", "--system-call-filter=pidfd_getfd"]);
    command.arg(format!("--bind-ro={}:/lab", scratch.join("lab").display()));
    command.arg(format!("--bind={}:/out", out.display()));
    command.arg("systemd.wants=guest.service").env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
    let output = command.stdin(Stdio::null()).output().expect("sh runs");
    drop(groups);
    let console = [output.stdout, output.stderr].concat();
    let said = fs::read(out.join("said")).unwrap_or_default();
    tally.add((suite, scenario), &String::from_utf8_lossy(&said), &String::from_utf8_lossy(&console));
}
