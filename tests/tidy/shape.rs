//! What sources look like.

use std::path::Path;

use crate::sources::{none, root, rust_files, sources, text, without_visibility};

/// Beyond this, functions and modules are printed.
const FUNCTION_LINES: usize = 70;
const MODULE_LINES: usize = 400;

/// Comments wrap here.
const COMMENT_COLUMNS_MAX: usize = 100;

/// Prints the functions that do not fit a screen. rustfmt puts a function's last brace where its
/// first line begins.
#[test]
fn long_functions_are_printed() {
    let mut functions = 0;
    for source in sources() {
        for (n, line) in source.code() {
            let declaration = line.trim_start();
            let words = ["const ", "async "];
            let bare = without_visibility(declaration);
            let bare = words.iter().fold(bare, |rest, word| rest.strip_prefix(word).unwrap_or(rest));
            if !bare.starts_with("fn ") || declaration.ends_with(['}', ';']) {
                continue;
            }
            functions += 1;
            let end = format!("{}}}", &line[..line.len() - declaration.len()]);
            let lines = source.lines[n..].iter().position(|line| *line == end).map_or(usize::MAX, |more| more + 2);
            if lines > FUNCTION_LINES {
                println!("long: {}:{n}: {lines} lines: {declaration}", source.path);
            }
        }
    }
    assert!(functions > 200, "this test finds only {functions} functions");
}

/// Prints the modules that are long without their tests.
#[test]
fn long_modules_are_printed() {
    for source in sources().iter().filter(|source| source.lines.len() > MODULE_LINES) {
        println!("long: {}: {} lines", source.path, source.lines.len());
    }
}

/// A module is a file beside its own folder, or a test of several files is.
#[test]
fn a_folder_has_its_module_inside() {
    let beside = |path: &String| root().join(Path::new(path).with_extension("")).is_dir();
    let offences: Vec<String> = rust_files().into_iter().filter(beside).collect();
    none(&offences, "a module with a folder is its mod.rs (main.rs for a test)");
}

/// A comment is wider than a reader's column.
#[test]
fn comments_wrap() {
    let mut offences = Vec::new();
    for path in rust_files() {
        let text = text(&path);
        let long = |line: &&str| line.trim_start().starts_with("//") && line.chars().count() > COMMENT_COLUMNS_MAX;
        // What has no space, such as an address, cannot be wrapped.
        let lines: Vec<usize> =
            (1..).zip(text.lines()).filter(|(_, line)| long(line) && wraps(line)).map(|(n, _)| n).collect();
        if !lines.is_empty() {
            offences.push(format!("{path}: lines {lines:?}"));
        }
    }
    none(&offences, &format!("comments of more than {COMMENT_COLUMNS_MAX} columns"));
}

/// Whether a comment has more than one word.
fn wraps(line: &str) -> bool {
    line.trim_start().trim_start_matches(['/', '!']).trim().contains(' ')
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
            offences.extend(unfinished.map(|word| format!("{}:{n}: {word}", source.path)));
            for (at, call) in line.match_indices(".expect(") {
                let reason = line[at + call.len()..].split('"').nth(1);
                if reason.is_none_or(|reason| reason.split(' ').count() < WORDS_MIN) {
                    offences.push(format!("{}:{n}: an expect without an invariant", source.path));
                }
            }
        }
    }
    none(&offences, "panics");
}
