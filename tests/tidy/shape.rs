//! What sources look like.

use std::path::Path;

use crate::sources::{none, root, rust_files, sources, text, without_visibility};

/// Beyond this, functions and modules are printed.
const FUNCTION_LINES: usize = 70;
const MODULE_LINES: usize = 400;

/// Comments wrap here, except for the code and the diagrams in them.
const COMMENT_COLUMNS_MAX: usize = 100;
const CODE_COLUMNS_MAX: usize = 120;

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
        let mut in_example = false;
        for (n, line) in (1..).zip(text(&path).lines()) {
            let Some(comment) = line.trim_start().strip_prefix("//") else {
                in_example = false;
                continue;
            };
            let comment = comment.trim_start_matches(['/', '!']).trim();
            in_example ^= comment.starts_with("```");
            // A row of a table is one line, and a comment without a space, such as an address, is
            // one word.
            let wraps = !comment.starts_with('|') && comment.contains(' ');
            let columns_max = if in_example { CODE_COLUMNS_MAX } else { COMMENT_COLUMNS_MAX };
            if wraps && line.chars().count() > columns_max {
                offences.push(format!("{path}:{n}"));
            }
        }
    }
    none(&offences, &format!("comments of more than {COMMENT_COLUMNS_MAX} columns"));
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
