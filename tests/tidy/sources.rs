//! The Rust sources of the workspace, and small helpers for reading text.

use std::fs;
use std::path::{Path, PathBuf};

/// The crates of the workspace that are published, by the folders of their sources.
const CRATES: [&str; 4] =
    ["src", "crates/distrilock-protocol/src", "crates/distrilock-engine/src", "crates/distrilock-client/src"];

/// Where every Rust source of the project is.
const RUST_FOLDERS: [&str; 6] = ["src", "crates", "tests", "benches", "examples", "fuzz/fuzz_targets"];

/// A source of a crate, up to its tests.
pub(crate) struct Source {
    /// Its place in the project.
    pub(crate) path: String,
    /// The folder of its crate's sources, one of [`CRATES`].
    pub(crate) root: &'static str,
    /// Its lines before the tests.
    pub(crate) lines: Vec<String>,
}

impl Source {
    /// The lines that are not comments, numbered from 1.
    pub(crate) fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.lines.iter().enumerate().map(|(n, line)| (n + 1, line.as_str()));
        lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// Its module below the crate's root: `["files", "nfs4"]` for `src/files/nfs4/mod.rs`.
    pub(crate) fn module(&self) -> Vec<String> {
        let below = self.path[self.root.len() + 1..].strip_suffix(".rs").expect("sources end in .rs");
        let mut module: Vec<String> = below.split('/').map(str::to_owned).collect();
        if matches!(module.last().map(String::as_str), Some("mod" | "lib")) {
            module.pop();
        }
        module
    }

    /// Whether it is this file, or in this folder, of the project.
    pub(crate) fn is_in(&self, place: &str) -> bool {
        self.path == format!("{place}.rs") || self.path.starts_with(&format!("{place}/"))
    }
}

/// The sources of all published crates, without modules that only tests have.
pub(crate) fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    for crate_root in CRATES {
        let paths = files_under(crate_root);
        let texts: Vec<(String, String)> = paths.into_iter().map(|path| (path.clone(), text(&path))).collect();
        let tests: Vec<PathBuf> = texts.iter().flat_map(|(path, text)| test_modules(Path::new(path), text)).collect();
        let is_test = |path: &Path| tests.iter().any(|test| path.starts_with(test) || path.with_extension("") == *test);
        for (path, text) in texts.into_iter().filter(|(path, _)| !is_test(Path::new(path))) {
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            let tests = lines.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && pair[1].ends_with('{'));
            let lines = lines[..tests.unwrap_or(lines.len())].to_vec();
            sources.push(Source { path, root: crate_root, lines });
        }
        assert!(sources.iter().filter(|source| source.root == crate_root).count() > 8, "{crate_root} has moved");
    }
    sources
}

/// Every Rust file of the project, tests included.
pub(crate) fn rust_files() -> Vec<String> {
    let paths = RUST_FOLDERS.iter().flat_map(|folder| files_under(folder));
    paths.filter(|path| path.ends_with(".rs")).collect()
}

/// The modules that their parent declares only for tests: `#[cfg(test)]`, and `mod NAME;` below it.
fn test_modules(path: &Path, text: &str) -> Vec<PathBuf> {
    let folder = match path.file_stem().and_then(|stem| stem.to_str()) {
        Some("mod" | "lib" | "main") => path.with_file_name(""),
        _ => path.with_extension(""),
    };
    let lines: Vec<&str> = text.lines().collect();
    let declared = lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]");
    let names = declared.filter_map(|pair| without_visibility(pair[1]).strip_prefix("mod ")?.strip_suffix(';'));
    names.map(|name| folder.join(name)).collect()
}

/// A line without `pub`, `pub(crate)`, `pub(in crate::files)` and the like at its beginning.
pub(crate) fn without_visibility(line: &str) -> &str {
    let bare = line.strip_prefix("pub(").and_then(|rest| rest.split_once(") ")).map(|(_, bare)| bare);
    bare.or(line.strip_prefix("pub ")).unwrap_or(line)
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All files below a folder of the project, as paths in the project, sorted.
pub(crate) fn files_under(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(root().join(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.expect("a folder of the project can be read");
        let path = format!("{folder}/{}", entry.file_name().to_str().expect("names of the project are text"));
        if entry.path().is_dir() {
            found.extend(files_under(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Fails with all offences at once.
#[track_caller]
pub(crate) fn none(offences: &[String], rule: &str) {
    assert!(offences.is_empty(), "{rule}:\n{}", offences.join("\n"));
}

/// Whether `word` stands in `line` as a word or a path of its own.
pub(crate) fn mentions(line: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| !line[..at].ends_with(part_of_word))
}
