//! Everything points down: no crate, module or file knows what stands above it.

use crate::graph::Graph;
use crate::sources::{Source, mentions, none, sources, text};

/// The modules of the daemon from the bottom. One may use those below, and on the lowest rung also
/// its neighbours.
const RUNGS: [&[&str]; 7] = [
    &["checksum", "clock", "host", "limits", "readiness", "settings", "shortage", "slice", "sync", "timing"],
    &["files", "systemd"],
    &["directory"],
    &["lock_table"],
    &["session"],
    &["front"],
    &["daemon"],
];

/// The modules that stand beside the daemon, and what they may use besides the lowest rung.
const BESIDE: [(&str, &[&str]); 2] = [
    // The doctor examines a directory without a daemon.
    ("doctor", &["files", "directory"]),
    // The command knows daemons only through distrilock-client, and their events by the ids.
    ("command", &["doctor", "systemd"]),
];

/// Where no file may use another one that uses it, directly or not.
const WITHOUT_CIRCLES: [&str; 6] = [
    "crates/distrilock-engine/src",
    "crates/distrilock-client/src",
    "src/command",
    "src/files",
    "src/front",
    "src/systemd",
];

/// What a place must not mention, and why. A place is a file or a folder of the project.
const FORBIDDEN: [(&str, &[&str], &str); 7] = [
    (
        "crates/distrilock-engine/src",
        &[
            "std::env",
            "std::fs",
            "std::net",
            "std::os",
            "std::process",
            "std::sync",
            "std::thread",
            "std::time",
            "tokio",
            "tracing",
            "Codec",
            "v0",
            "v1",
        ],
        "the engine decides, without I/O, clock or locks: of the protocol it knows names and limits",
    ),
    (
        "crates/distrilock-protocol/src",
        &[
            "std::env",
            "std::fs",
            "std::net",
            "std::os",
            "std::process",
            "std::thread",
            "Instant",
            "SystemTime",
            "tokio",
            "nix",
            "hyper",
        ],
        "the protocol turns bytes into messages, without a socket or a clock",
    ),
    (
        "crates/distrilock-client/src/session",
        &["std::net", "tokio::net", "tokio::time", "Instant", "BootTime::now", "Mutex"],
        "a client's session decides, without a socket or a clock",
    ),
    (
        "src/session",
        &["crate::systemd", "std::net", "std::os", "tokio", "hyper", "nix::sys", "TcpStream"],
        "a session knows no socket: it takes messages and notices, and appends to a buffer",
    ),
    (
        "src/files",
        &["std::net", "tokio", "Codec", "distrilock_protocol::v0", "distrilock_protocol::v1"],
        "files makes calls, and does not know for whom",
    ),
    ("src/command", &["distrilock_engine"], "the command knows daemons only through distrilock-client"),
    (
        "src/doctor",
        &["distrilock_protocol::v0", "distrilock_protocol::v1"],
        "the doctor examines a directory, and speaks with no client",
    ),
];

/// What a crate must not depend on, and why. Cargo keeps everything else.
const DEPENDENCIES_FORBIDDEN: [(&str, &[&str], &str); 2] = [
    (
        "distrilock-protocol",
        &[
            "distrilock-engine",
            "distrilock-client",
            "hyper",
            "libc",
            "nix",
            "rustix",
            "tokio",
            "tokio-tungstenite",
            "tracing",
        ],
        "the protocol turns bytes into messages, without sockets or a runtime",
    ),
    (
        "distrilock-client",
        &[
            "distrilock",
            "distrilock-engine",
            "clap",
            "hyper",
            "libsystemd",
            "listenfd",
            "sd-notify",
            "tracing-journald",
            "tracing-subscriber",
        ],
        "a client's program does not compile the daemon",
    ),
];

/// All that the engine may depend on.
const DEPENDENCIES_OF_ENGINE: [&str; 1] = ["distrilock-protocol"];

/// Words of file operations, which belong to `files` and to the engine's steps of such operations.
const FILE_WORDS: [&str; 7] = ["fcntl", "F_OFD", "unlink", "remove_file", "openat", "flock", "OpenOptions"];
const FILE_PLACES: [&str; 2] = ["src/files", "crates/distrilock-engine/src/steps"];

/// What uses such a word elsewhere, by the file's end, and why.
const FILE_WORDS_ELSEWHERE: [(&str, &str, &str); 11] = [
    ("command/fence.rs", "fcntl", "where nix has the type for flock(2), which locks the records of fences"),
    ("command/exec.rs", "fcntl", "leaves a descriptor open for the next program"),
    ("command/exec.rs", "OpenOptions", "opens an inherited descriptor anew, by /proc/self/fd"),
    ("command/run/launcher.rs", "fcntl", "where nix has the flags of pipe2(2)"),
    ("command/run/launcher_link.rs", "fcntl", "where nix has the flags of open(2)"),
    ("command/run/launcher_link.rs", "OpenOptions", "opens an inherited pipe anew, without blocking"),
    ("command/run/job.rs", "fcntl", "where nix has the flags of pipe2(2)"),
    ("systemd/notify.rs", "fcntl", "where nix has the flags of pipe2(2)"),
    ("systemd/sockets.rs", "fcntl", "names the call in an error of a socket"),
    ("daemon/mod.rs", "fcntl", "duplicates a descriptor to a high number, so that the table has room"),
    ("daemon/listen.rs", "remove_file", "removes the Unix socket that a dead daemon left"),
];

/// A module takes something from one that stands above or beside it.
#[test]
fn modules_point_down() {
    let sources = sources();
    let daemon = Graph::new(sources.iter().filter(|source| source.root == "src"));
    let mut offences = Vec::new();
    let edges = daemon.edges(true);
    assert!(edges.len() > 100, "this test finds only {edges:?}");
    for (from, to) in edges {
        let (user, used) = (module_of(from), module_of(to));
        let skipped = |module| matches!(module, "lib" | "bin");
        if user != used && !skipped(user) && !skipped(used) && !may_use(user, used) {
            offences.push(format!("{from} uses {to}"));
        }
    }
    none(&offences, "the direction of modules");
}

fn module_of(path: &str) -> &str {
    let below = path.strip_prefix("src/").expect("it is the daemon's");
    below.split('/').next().expect("there is a first").trim_end_matches(".rs")
}

fn may_use(user: &str, used: &str) -> bool {
    let rung = |module: &str| RUNGS.iter().position(|rung| rung.contains(&module));
    if rung(used) == Some(0) {
        return true;
    }
    if let Some((_, more)) = BESIDE.iter().find(|(module, _)| *module == user) {
        return more.contains(&used);
    }
    let user = rung(user).unwrap_or_else(|| panic!("{user} has no place in RUNGS"));
    rung(used).is_some_and(|used| used < user)
}

/// A file uses another one that uses it.
#[test]
fn no_circle_of_files() {
    let sources = sources();
    let mut offences = Vec::new();
    for place in WITHOUT_CIRCLES {
        let root = sources.iter().map(|source| source.root).find(|root| place.starts_with(root)).expect("a crate");
        let graph = Graph::new(sources.iter().filter(|source| source.root == root));
        let circles = graph.circles(|path| path.starts_with(place));
        let edges = graph.edges(true);
        for circle in circles {
            let within = edges.iter().filter(|(from, to)| circle.contains(from) && circle.contains(to));
            offences.extend(within.map(|(from, to)| format!("{from} uses {to}")));
        }
    }
    none(&offences, "circles of files");
}

/// A module mentions what it must not know.
#[test]
fn modules_know_what_they_may() {
    let mut offences = Vec::new();
    for source in sources() {
        for (_, words, why) in FORBIDDEN.iter().filter(|(place, ..)| source.is_in(place)) {
            for (n, line) in source.code() {
                let mentioned = words.iter().filter(|word| mentions(line, word));
                offences.extend(mentioned.map(|word| format!("{}:{n}: {word}: {why}", source.path)));
            }
        }
    }
    none(&offences, "what a module must not know");
    let moved = |place: &&str| !sources().iter().any(|source| source.is_in(place));
    let moved: Vec<&str> = FORBIDDEN.iter().map(|(place, ..)| *place).filter(moved).collect();
    assert_eq!(moved, [""; 0], "places that are not there any more");
}

/// A crate takes a dependency that it must not have.
#[test]
fn crates_stay_small() {
    let mut offences = Vec::new();
    for (name, forbidden, why) in DEPENDENCIES_FORBIDDEN {
        let dependencies = dependencies(name);
        assert!(!dependencies.is_empty(), "{name} depends on something");
        let found = dependencies.iter().filter(|dependency| forbidden.contains(&dependency.as_str()));
        offences.extend(found.map(|dependency| format!("{name} depends on {dependency}: {why}")));
    }
    let may = |dependency: &String| DEPENDENCIES_OF_ENGINE.contains(&dependency.as_str());
    let found = dependencies("distrilock-engine").into_iter().filter(|dependency| !may(dependency));
    offences
        .extend(found.map(|dependency| format!("distrilock-engine depends on {dependency}: it needs std and names")));
    none(&offences, "dependencies");
}

/// What a crate is built with: its manifest's `[dependencies]`, those of some targets too.
fn dependencies(name: &str) -> Vec<String> {
    let manifest = text(&format!("crates/{name}/Cargo.toml"));
    let (mut found, mut within) = (Vec::new(), false);
    for line in manifest.lines() {
        if let Some(heading) = line.strip_prefix('[') {
            let heading = heading.trim_end_matches(']');
            within = heading == "dependencies" || heading.ends_with(".dependencies");
            assert!(!heading.starts_with("dependencies."), "{name}: dependencies are lines of one table");
        } else if within {
            let key = line.split(['=', '.', ' ']).next().filter(|key| !key.is_empty() && !key.starts_with('#'));
            found.extend(key.map(str::to_owned));
        }
    }
    found
}

/// Something outside of `files` touches lock files, or an exception is there for what is gone.
#[test]
fn only_files_makes_file_calls() {
    let mut offences = Vec::new();
    let mut unused: Vec<_> = FILE_WORDS_ELSEWHERE.iter().map(|(path, word, _)| (*path, *word)).collect();
    let elsewhere = |source: &Source| !FILE_PLACES.iter().any(|place| source.is_in(place));
    for source in sources().iter().filter(|source| elsewhere(source)) {
        for (n, line) in source.code() {
            for word in FILE_WORDS.into_iter().filter(|word| mentions(line, word)) {
                let known = |(path, known): &(&str, &str)| source.path == format!("src/{path}") && *known == word;
                unused.retain(|exception| !known(exception));
                if !FILE_WORDS_ELSEWHERE.iter().any(|(path, word, _)| known(&(path, word))) {
                    offences.push(format!("{}:{n}: {word}", source.path));
                }
            }
        }
    }
    none(&offences, "file calls outside of files");
    assert_eq!(unused, [], "exceptions that are not needed any more");
}
