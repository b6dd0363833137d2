//! The house rules that a compiler does not check: which module may know what, how long functions and modules are, and that
//! ids, flags and versions have their counterparts in catalog, documentation and changelog.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const FUNCTION_LINES_MAX: usize = 70;
const MODULE_LINES_MAX: usize = 400;

/// Modules that are longer than the rest may be, and why.
const LONG_MODULES: [(&str, &str); 0] = [];

/// What a module must not mention, and why. A place is a file or a folder under src.
const FORBIDDEN: [(&str, &[&str], &str); 7] = [
    (
        "engine",
        &[
            "crate::files",
            "crate::front",
            "crate::server",
            "crate::session",
            "crate::settings",
            "crate::systemd",
            "crate::wire",
            "std::fs",
            "std::net",
            "std::os",
            "std::sync",
            "std::thread",
            "std::time",
            "tokio",
            "tracing",
        ],
        "the engine decides, without I/O, clock or locks: it uses name, limits and fault",
    ),
    (
        "wire",
        &[
            "crate::files",
            "crate::front",
            "crate::server",
            "crate::session",
            "crate::settings",
            "crate::systemd",
            "std::fs",
            "std::net",
            "std::os",
            "tokio",
            "nix::",
            "hyper",
        ],
        "wire turns bytes into messages, without a socket",
    ),
    (
        "session",
        &["crate::front", "crate::systemd", "std::net", "std::os", "tokio", "hyper", "nix::sys", "TcpStream"],
        "a session knows no socket: it takes messages and letters, and appends to a buffer",
    ),
    (
        "files",
        &["crate::front", "crate::server", "crate::session", "crate::systemd", "crate::wire", "std::net", "tokio"],
        "files makes calls, and does not know for whom",
    ),
    (
        "command",
        &[
            "crate::engine",
            "crate::files",
            "crate::front",
            "crate::server",
            "crate::session",
            "crate::systemd",
            "crate::wire",
        ],
        "the command knows daemons through client alone",
    ),
    (
        "client",
        &["crate::engine", "crate::files", "crate::front", "crate::session", "crate::systemd"],
        "a client knows the daemon by its protocol",
    ),
    (
        "client/session",
        &["std::net", "tokio::net", "tokio::time", "Instant", "BootTime::now", "Mutex"],
        "a client's session decides, without a socket or a clock",
    ),
];

/// Words of file operations, which only `files` may use.
const FILE_WORDS: [&str; 7] = ["fcntl", "F_OFD", "unlink", "remove_file", "openat", "flock", "OpenOptions"];

/// What uses such a word all the same, and why.
const FILE_WORDS_ELSEWHERE: [(&str, &str, &str); 7] = [
    ("command/fence.rs", "fcntl", "where nix has the type for flock(2), by which records of fences are locked"),
    ("command/exec.rs", "fcntl", "leaves a descriptor open for the next program"),
    ("command/run/launcher.rs", "fcntl", "where nix has the flags of pipe2(2)"),
    ("systemd/journal.rs", "fcntl", "sets O_NONBLOCK on the journal's socket"),
    ("systemd/notify.rs", "fcntl", "where nix has the flags of pipe2(2)"),
    ("systemd/sockets.rs", "fcntl", "names the call in a fault of a socket"),
    ("daemon/listen.rs", "remove_file", "removes the Unix socket that a dead daemon left"),
];

/// A file of src, as far as it is no test.
struct Source {
    /// Its place under src.
    path: String,
    /// Its lines before the tests.
    lines: Vec<String>,
}

impl Source {
    /// The lines without what is a comment, numbered from 1.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.lines.iter().enumerate().map(|(n, line)| (n + 1, line.as_str()));
        lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn files_under(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let path = entry.expect("a folder of the project can be read").path();
        if path.is_dir() {
            files_under(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// The modules that their parent declares for tests alone: `#[cfg(test)]`, and `mod NAME;` below it.
fn test_modules(path: &Path, text: &str) -> Vec<PathBuf> {
    let folder = match path.file_stem().and_then(|stem| stem.to_str()) {
        Some("mod" | "lib" | "main") => path.with_file_name(""),
        _ => path.with_extension(""),
    };
    let lines: Vec<&str> = text.lines().collect();
    let declared = lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]");
    let bare = |line: &'_ str| line.strip_prefix("pub(crate) ").unwrap_or(line).to_owned();
    let names = declared.filter_map(|pair| Some(bare(pair[1]).strip_prefix("mod ")?.strip_suffix(';')?.to_owned()));
    names.map(|name| folder.join(name)).collect()
}

fn sources() -> Vec<Source> {
    let mut paths = Vec::new();
    files_under(&root().join("src"), &mut paths);
    let texts: Vec<(PathBuf, String)> =
        paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).expect("a source is text"))).collect();
    let tests: Vec<PathBuf> = texts.iter().flat_map(|(path, text)| test_modules(path, text)).collect();
    let is_test = |path: &Path| tests.iter().any(|test| path.starts_with(test) || path.with_extension("") == *test);
    let sources: Vec<Source> = texts
        .iter()
        .filter(|(path, _)| !is_test(path))
        .map(|(path, text)| {
            let path = path.strip_prefix(root().join("src")).expect("it was found there").display().to_string();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            let tests = lines.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && pair[1].ends_with('{'));
            Source { path, lines: lines[..tests.unwrap_or(lines.len())].to_vec() }
        })
        .collect();
    assert!(sources.len() > 20, "the sources are not where this test looks for them");
    sources
}

/// Fails with all offences at once.
fn none(offences: &[String], rule: &str) {
    assert!(offences.is_empty(), "{rule}:\n{}", offences.join("\n"));
}

/// Whether `word` stands in `line` as a word or a path of its own.
fn mentions(line: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| !line[..at].ends_with(part_of_word))
}

/// A module takes something from a neighbour that it must not know.
#[test]
fn modules_know_what_they_may() {
    let mut offences = Vec::new();
    for source in sources() {
        for (place, words, why) in FORBIDDEN {
            let within = source.path.starts_with(&format!("{place}/")) || source.path == format!("{place}.rs");
            for (n, line) in source.code().filter(|_| within) {
                let mentioned = words.iter().filter(|word| mentions(line, word));
                offences.extend(mentioned.map(|word| format!("src/{}:{n}: {word}: {why}", source.path)));
            }
        }
    }
    none(&offences, "the direction of modules");
}

/// Something outside `files` touches lock files, or an exception is there for what is gone.
#[test]
fn only_files_makes_file_calls() {
    let mut offences = Vec::new();
    let mut unused: Vec<_> = FILE_WORDS_ELSEWHERE.iter().map(|(path, word, _)| (*path, *word)).collect();
    for source in sources().iter().filter(|source| !source.path.starts_with("files/")) {
        for (n, line) in source.code() {
            for word in FILE_WORDS.into_iter().filter(|word| mentions(line, word)) {
                let known = (source.path.as_str(), word);
                unused.retain(|exception| *exception != known);
                if !FILE_WORDS_ELSEWHERE.iter().any(|(path, word, _)| (*path, *word) == known) {
                    offences.push(format!("src/{}:{n}: {word}", source.path));
                }
            }
        }
    }
    none(&offences, "file calls outside files");
    assert_eq!(unused, [], "exceptions that are not needed any more");
}

/// A function does not fit a screen. rustfmt puts its last brace where its first line begins.
#[test]
fn functions_fit_a_screen() {
    let mut offences = Vec::new();
    let mut functions = 0;
    for source in sources() {
        for (n, line) in source.code() {
            let declaration = line.trim_start();
            let words = ["pub ", "pub(crate) ", "pub(super) ", "const ", "async ", "unsafe "];
            let bare = words.iter().fold(declaration, |rest, word| rest.strip_prefix(word).unwrap_or(rest));
            if !bare.starts_with("fn ") || declaration.ends_with(['}', ';']) {
                continue;
            }
            functions += 1;
            let end = format!("{}}}", &line[..line.len() - declaration.len()]);
            let lines = source.lines[n..].iter().position(|line| *line == end).map_or(usize::MAX, |more| more + 2);
            if lines > FUNCTION_LINES_MAX {
                offences.push(format!("src/{}:{n}: {lines} lines: {declaration}", source.path));
            }
        }
    }
    assert!(functions > 200, "this test finds only {functions} functions");
    none(&offences, &format!("functions of more than {FUNCTION_LINES_MAX} lines"));
}

/// A module grows beyond one idea. Its tests do not count.
#[test]
fn modules_are_short() {
    let offences: Vec<String> = sources()
        .iter()
        .filter(|source| source.lines.len() > MODULE_LINES_MAX)
        .filter(|source| !LONG_MODULES.iter().any(|(path, _)| *path == source.path))
        .map(|source| format!("src/{}: {} lines", source.path, source.lines.len()))
        .collect();
    none(&offences, &format!("modules of more than {MODULE_LINES_MAX} lines before their tests"));
}

/// An event's id is made up and then never logged, or never explained to `journalctl -x`.
#[test]
fn every_message_id_is_used_and_explained() {
    let ids = text("src/systemd/ids.rs");
    let catalog = text("systemd/distrilock.catalog");
    let code: String = sources()
        .iter()
        .flat_map(|source| source.code().map(|(_, line)| format!("{line}\n")).collect::<Vec<_>>())
        .collect();
    let mut offences = Vec::new();
    let constants: Vec<&str> = ids.lines().filter_map(|line| line.strip_prefix("pub const ")).collect();
    assert!(!constants.is_empty(), "there are no ids");
    for constant in constants {
        let (name, rest) = constant.split_once(':').expect("a constant has a type");
        let id = rest.split('"').nth(1).expect("an id is a text");
        if !catalog.lines().any(|line| line == format!("-- {id}")) {
            offences.push(format!("{name} has no entry in the catalog"));
        }
        if !mentions(&code, &format!("ids::{name}")) {
            offences.push(format!("{name} is never logged"));
        }
    }
    none(&offences, "message ids");
}

/// A flag is added, and nobody who reads the documentation learns of it.
#[test]
fn every_flag_is_documented() {
    let help = Command::new(env!("CARGO_BIN_EXE_distrilockd")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let mut pages = vec![text("README.md")];
    let mut paths = Vec::new();
    files_under(&root().join("docs"), &mut paths);
    pages.extend(paths.iter().map(|path| fs::read_to_string(path).unwrap()));
    let pages = pages.concat();
    let flags = help.lines().filter_map(|line| line.trim_start().split([' ', '=']).find(|word| word.starts_with("--")));
    let flags: Vec<&str> = flags.collect();
    assert!(flags.len() > 10, "this test finds only the flags {flags:?}");
    let whole = |flag: &str| pages.match_indices(flag).any(|(at, _)| !pages[at + flag.len()..].starts_with(['-', '_']));
    let offences: Vec<String> = flags
        .into_iter()
        .filter(|flag| !matches!(*flag, "--help" | "--version") && !whole(flag))
        .map(str::to_owned)
        .collect();
    none(&offences, "flags that neither README.md nor docs mention");
}

/// A version is released, and its changes are not written down; or they are, under another version.
#[test]
fn the_changelog_is_at_the_version() {
    let changelog = text("CHANGELOG.md");
    let mut headings = changelog.lines().filter_map(|line| line.strip_prefix("## "));
    let top = headings.find(|heading| *heading != "Unreleased").expect("the changelog has a version");
    assert_eq!(top.split(' ').next(), Some(env!("CARGO_PKG_VERSION")), "CHANGELOG.md's top version");
    let debian = text("debian/changelog");
    let version = debian.split(['(', ')']).nth(1);
    assert_eq!(version, Some(env!("CARGO_PKG_VERSION")), "debian/changelog's top version");
}

/// A unit, an example or a page is written, and no package brings it; or it is gone, and packages still want it.
#[test]
fn everything_is_installed() {
    let list = text("packaging/files");
    let lines = list.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let listed: Vec<&str> = lines.filter_map(|line| line.split_whitespace().next()).collect();
    let mut paths = Vec::new();
    files_under(&root().join("systemd"), &mut paths);
    files_under(&root().join("docs"), &mut paths);
    let there: Vec<String> =
        paths.iter().map(|path| path.strip_prefix(root()).expect("found there").display().to_string()).collect();
    assert!(there.len() > 30, "this test finds only {there:?}");
    let missing = there.iter().filter(|path| !listed.contains(&path.as_str()));
    let mut offences: Vec<String> = missing.map(|path| format!("{path} is in no package")).collect();
    let gone = listed.iter().filter(|path| !path.starts_with("build:") && !root().join(path).is_file());
    offences.extend(gone.map(|path| format!("{path} is not there")));
    none(&offences, "packaging/files");
}

/// Something is changed in distrilock.service and forgotten in the template for further nodes.
#[test]
fn the_template_is_like_the_service() {
    let settings = |unit: &str, of_one: &[&str]| -> Vec<String> {
        let text = text(&format!("systemd/{unit}.service"));
        let text = of_one.iter().fold(text, |text, part| text.replace(part, ""));
        text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
    };
    let service = settings("distrilock", &[" distrilock-local.socket"]);
    assert!(service.len() > 30, "this test reads only {service:?}");
    assert_eq!(service, settings("distrilock@", &["@%i", "-%i", " of %I"]));
}

/// A path of the machine that something was written on slips into what is published.
#[test]
fn no_path_of_a_build_machine() {
    let strangers = [["/wo", "rk/"], ["/ro", "ot/"], ["/ho", "me/"], ["/Use", "rs/"]].map(|halves| halves.concat());
    let mut paths: Vec<PathBuf> =
        ["Cargo.toml", "Cargo.lock", "deny.toml", "CHANGELOG.md", "README.md", "fuzz/Cargo.toml", "fuzz/run"]
            .iter()
            .map(|path| root().join(path))
            .collect();
    for folder in ["src", "tests", "benches", "docs", "examples", "systemd", "packaging", "fuzz/fuzz_targets"] {
        files_under(&root().join(folder), &mut paths);
    }
    let mut offences = Vec::new();
    for path in paths {
        // What is no text has no path to read in it.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (n, line) in text.lines().enumerate() {
            if strangers.iter().any(|stranger| line.contains(stranger)) {
                offences.push(format!("{}:{}: {line}", path.strip_prefix(root()).unwrap().display(), n + 1));
            }
        }
    }
    none(&offences, "paths of a machine");
}

/// Something can panic without saying which invariant makes that impossible, or was never finished.
#[test]
fn what_can_panic_says_why_it_does_not() {
    const WORDS_MIN: usize = 3;
    let mut offences = Vec::new();
    for source in sources() {
        for (n, line) in source.code() {
            let unfinished =
                ["todo!", "unimplemented!", ".unwrap()", ".unwrap_err()"].iter().find(|word| line.contains(**word));
            offences.extend(unfinished.map(|word| format!("src/{}:{n}: {word}", source.path)));
            for (at, call) in line.match_indices(".expect(") {
                let reason = line[at + call.len()..].split('"').nth(1);
                if reason.is_none_or(|reason| reason.split(' ').count() < WORDS_MIN) {
                    offences.push(format!("src/{}:{n}: an expect without an invariant", source.path));
                }
            }
        }
    }
    none(&offences, "panics");
}
