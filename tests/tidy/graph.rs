//! Which file of a crate uses which other one: by its `use` items, and by paths in its code that
//! begin with `crate`, `self`, `super` or the name of a child. A re-export (`pub use`) is no use,
//! and a name that came through one leads to the file that defines it.

use std::collections::{BTreeMap, BTreeSet};

use crate::sources::{Source, without_visibility};

type Module = Vec<String>;

/// What a file says about others.
#[derive(Default)]
struct File {
    path: String,
    uses: Vec<String>,
    /// The names that it re-exports, with where it has them from.
    exports: BTreeMap<String, String>,
}

/// The files of one crate.
pub(crate) struct Graph {
    files: BTreeMap<Module, File>,
}

impl Graph {
    pub(crate) fn new<'a>(sources: impl Iterator<Item = &'a Source>) -> Self {
        let files = sources.filter(|source| !source.is_in(&format!("{}/bin", source.root)));
        Self { files: files.map(|source| (source.module(), File::read(source))).collect() }
    }

    /// The pairs of a file and one that it uses, or also one from which it re-exports something.
    pub(crate) fn edges(&self, with_exports: bool) -> BTreeSet<(&str, &str)> {
        let mut edges = BTreeSet::new();
        for (module, file) in &self.files {
            let exported = file.exports.values().filter(|_| with_exports);
            let used = file.uses.iter().chain(exported).filter_map(|path| self.target(module, path));
            let used = used.map(|target| self.files[&target].path.as_str()).filter(|path| *path != file.path);
            edges.extend(used.map(|used| (file.path.as_str(), used)));
        }
        edges
    }

    /// The circles: sets of files each of which uses each other, directly or not.
    pub(crate) fn circles(&self, within: impl Fn(&str) -> bool) -> Vec<Vec<&str>> {
        let edges: BTreeSet<_> =
            self.edges(false).into_iter().filter(|(from, to)| within(from) && within(to)).collect();
        let reached: BTreeMap<&str, BTreeSet<&str>> =
            edges.iter().map(|(path, _)| (*path, reachable(&edges, path))).collect();
        let circle_of = |path: &&str| -> Vec<&str> {
            reached
                .keys()
                .filter(|other| reached[path].contains(*other) && reached[*other].contains(path))
                .copied()
                .collect()
        };
        let circles: BTreeSet<Vec<&str>> = reached.keys().map(circle_of).collect();
        circles.into_iter().filter(|circle| circle.len() > 1).collect()
    }

    /// The module in which a path, written in `from`, ends.
    fn target(&self, from: &Module, path: &str) -> Option<Module> {
        let mut at = from.clone();
        let mut segments = path.split("::").map(str::trim).peekable();
        match segments.peek().copied()? {
            "crate" => {
                segments.next();
                at.clear();
            }
            "self" => drop(segments.next()),
            "super" => {
                while segments.next_if_eq(&"super").is_some() {
                    at.pop()?;
                }
            }
            child => {
                at.push(child.to_owned());
                segments.next();
            }
        }
        if !self.files.contains_key(&at) {
            return None;
        }
        for segment in segments {
            at.push(segment.to_owned());
            if self.files.contains_key(&at) {
                continue;
            }
            at.pop();
            return match self.files[&at].exports.get(segment) {
                // What another crate defines is nobody's here.
                Some(origin) => self.target(&at, origin),
                None => Some(at),
            };
        }
        Some(at)
    }
}

/// The files that `start` uses, directly or not.
fn reachable<'a>(edges: &BTreeSet<(&'a str, &'a str)>, start: &'a str) -> BTreeSet<&'a str> {
    let (mut reached, mut open) = (BTreeSet::new(), vec![start]);
    while let Some(path) = open.pop() {
        let next = edges.iter().filter(|(from, _)| *from == path).map(|(_, to)| *to);
        open.extend(next.filter(|to| reached.insert(*to)));
    }
    reached
}

impl File {
    fn read(source: &Source) -> Self {
        let mut file = Self { path: source.path.clone(), ..Self::default() };
        let mut item = String::new();
        let (mut children, mut for_tests) = (vec!["crate".to_owned(), "self".to_owned(), "super".to_owned()], false);
        for (_, line) in source.code() {
            let line = line.trim();
            let bare = without_visibility(line);
            if item.is_empty() && !bare.starts_with("use ") {
                children.extend(bare.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')).map(str::to_owned));
                file.uses.extend(paths(bare, &children));
                for_tests = line == "#[cfg(test)]";
                continue;
            }
            item.push_str(line);
            if line.ends_with(';') {
                if !for_tests {
                    file.take(&item);
                }
                item.clear();
                for_tests = false;
            }
        }
        file
    }

    /// Takes a whole `use` item.
    fn take(&mut self, item: &str) {
        let bare = without_visibility(item);
        let tree = bare.trim_start_matches("use ").trim_end_matches(';');
        let mut paths = Vec::new();
        flatten("", tree, &mut paths);
        for path in paths {
            let (path, alias) =
                path.split_once(" as ").map_or((path.as_str(), None), |(path, alias)| (path, Some(alias)));
            let path = path.trim_end_matches("::self");
            let name = alias.or(path.rsplit("::").next()).expect("a path has an end");
            if bare == item || name == "*" {
                self.uses.push(path.to_owned());
            } else {
                self.exports.insert(name.to_owned(), path.to_owned());
            }
        }
    }
}

/// The paths of a tree such as `a::{b, c::{self, d as e}}`.
fn flatten(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let (mut depth, mut start) = (0, 0);
    let ends = tree.char_indices().filter(|(_, c)| {
        depth += i32::from(*c == '{') - i32::from(*c == '}');
        *c == ',' && depth == 0
    });
    let ends: Vec<usize> = ends.map(|(at, _)| at).chain([tree.len()]).collect();
    for end in ends {
        let part = tree[start..end].trim();
        start = (end + 1).min(tree.len());
        match part.split_once('{') {
            Some((head, inner)) => flatten(&format!("{prefix}{head}"), inner.strip_suffix('}').unwrap_or(inner), paths),
            None if part.is_empty() => {}
            None => paths.push(format!("{prefix}{part}")),
        }
    }
}

/// The paths in a line of code that begin with one of these words.
fn paths(line: &str, beginnings: &[String]) -> Vec<String> {
    let in_path = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = line.split(|c| !in_path(c)).map(|word| word.trim_matches(':'));
    let begins =
        |word: &&str| word.split_once("::").is_some_and(|(first, _)| beginnings.iter().any(|known| known == first));
    words.filter(begins).map(str::to_owned).collect()
}

/// The forms in which files name each other: trees, re-exports, children, and plain paths in code.
#[test]
fn uses_are_found() {
    let source = |path: &str, lines: &[&str]| Source {
        path: path.to_owned(),
        root: "src",
        lines: lines.iter().map(|line| (*line).to_owned()).collect(),
    };
    let sources = [
        source("src/lib.rs", &["pub mod a;", "pub mod b;", "pub use b::{c::Deep, Shallow as Other};"]),
        source("src/a.rs", &["use crate::{", "    Deep, Other,", "    b::{self, c as see},", "};", "use std::b;"]),
        source("src/b/mod.rs", &["mod c;", "pub(in crate::a) struct Shallow;", "fn f() { c::g(); }"]),
        source("src/b/c.rs", &["// crate::a", "fn g() { super::super::a::h(); }", "#[cfg(test)]", "use super::f;"]),
    ];
    let graph = Graph::new(sources.iter());
    let edges = |with_exports| -> Vec<String> {
        graph.edges(with_exports).iter().map(|(from, to)| format!("{} {}", &from[4..], &to[4..])).collect()
    };
    assert_eq!(edges(false), ["a.rs b/c.rs", "a.rs b/mod.rs", "b/c.rs a.rs", "b/mod.rs b/c.rs"]);
    assert!(edges(true).contains(&"lib.rs b/c.rs".to_owned()));
    assert_eq!(graph.circles(|_| true), [["src/a.rs", "src/b/c.rs", "src/b/mod.rs"]]);
    assert_eq!(graph.circles(|path| path.starts_with("src/b")).len(), 0);
}
