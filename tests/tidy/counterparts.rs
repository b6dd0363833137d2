//! What exists in two places is in both.

use std::fs;
use std::process::Command;

use crate::sources::{files_under, mentions, none, root, sources, text};

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

/// A flag is added, and the documentation does not mention it.
#[test]
fn every_flag_is_documented() {
    let help = Command::new(env!("CARGO_BIN_EXE_distrilockd")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let mut pages = text("README.md");
    pages.extend(files_under("docs").iter().map(|path| text(path)));
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

/// A version is released without its changes in the changelog, or with them under another version.
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

/// A unit, an example or a page is written, and no package contains it; or it is gone, and packages
/// still list it.
#[test]
fn everything_is_installed() {
    let list = text("packaging/files");
    let lines = list.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let listed: Vec<&str> = lines.filter_map(|line| line.split_whitespace().next()).collect();
    let mut there = files_under("systemd");
    there.extend(files_under("docs"));
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
    let local = [["/wo", "rk/"], ["/ro", "ot/"], ["/ho", "me/"], ["/Use", "rs/"]].map(|halves| halves.concat());
    let mut paths: Vec<String> =
        ["Cargo.toml", "Cargo.lock", "clippy.toml", "deny.toml", "fuzz/Cargo.toml", "fuzz/run"]
            .map(str::to_owned)
            .to_vec();
    let top = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    paths.extend(top.filter(|name| name.ends_with(".md")));
    for folder in
        ["src", "crates", "tests", "benches", "docs", "examples", "systemd", "packaging", "debian", "fuzz/fuzz_targets"]
    {
        paths.extend(files_under(folder));
    }
    let mut offences = Vec::new();
    for path in paths {
        // What is no text has no path to read in it.
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for (n, line) in text.lines().enumerate() {
            if local.iter().any(|local| line.contains(local)) {
                offences.push(format!("{path}:{}: {line}", n + 1));
            }
        }
    }
    none(&offences, "paths of a machine");
}
