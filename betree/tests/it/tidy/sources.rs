//! Headers, lengths, leftovers, lints and unsafe code of the source files.

use std::collections::BTreeSet;

use super::{LAYERS, code, has_word, none, other_sources, read, sources};

/// The files that may contain unsafe code.
const UNSAFE: [&str; 10] = [
    "benches/src/engines/lmdb.rs",
    "betree/src/memtable/arena.rs",
    "fuzz/src/allocation.rs",
    "storage/src/buf.rs",
    "storage/src/frames.rs",
    "storage/src/prefetch.rs",
    "storage/src/slabs.rs",
    "storage/src/sys.rs",
    "storage/src/uring.rs",
    "storage/src/window.rs",
];

/// Lines after which a file is to be split by concept.
const LONGEST_FILE: usize = 600;

#[test]
fn every_source_file_opens_with_its_header_and_stays_readable() {
    let mut offences = Vec::new();
    for file in sources() {
        let text = read(&file);
        if !text.starts_with("//!") {
            offences.push(format!(
                "{file}: the first line is no `//!`: say what it owns, keeps, who calls it, which locks"
            ));
        }
        if text.lines().count() > LONGEST_FILE {
            offences.push(format!("{file}: more than {LONGEST_FILE} lines: split it by concept"));
        }
    }
    none(offences, "see CONTRIBUTING.md, Style");
}

#[test]
fn nothing_is_left_to_be_done() {
    let mut offences = Vec::new();
    for file in other_sources() {
        for (number, line) in read(&file).lines().enumerate() {
            let markers = ["todo!", "unimplemented!", "dbg!("].into_iter().find(|m| line.contains(m));
            let words = ["TODO", "FIXME", "XXX"].into_iter().find(|w| has_word(line, w));
            if let Some(mark) = markers.or(words) {
                offences.push(format!("{file}:{}: {mark}", number + 1));
            }
        }
    }
    none(offences, "finish it, or write what is missing into the README's status");
}

#[test]
fn lints_are_inherited_and_silenced_only_with_a_reason() {
    let mut offences = Vec::new();
    for (folder, ..) in LAYERS {
        if !read(&format!("{folder}/Cargo.toml")).contains("[lints]\nworkspace = true") {
            offences.push(format!("{folder}/Cargo.toml: does not inherit the workspace's lints"));
        }
    }
    for file in other_sources() {
        let text = read(&file);
        let starts: Vec<usize> = text
            .match_indices("allow(")
            .chain(text.match_indices("expect("))
            .map(|(at, _)| at)
            .filter(|&at| text[..at].ends_with("#[") || text[..at].ends_with("#!["))
            .collect();
        for at in starts {
            let end = text[at..].find(")]").map_or(text.len(), |len| at + len);
            if !text[at..end].contains("reason =") {
                let line = text[..at].lines().count();
                offences.push(format!("{file}:{line}: no reason"));
            }
        }
    }
    none(offences, "write #[expect(…, reason = \"…\")]");
}

#[test]
fn unsafe_code_lives_in_the_named_files_only() {
    let found: BTreeSet<String> = other_sources()
        .into_iter()
        .filter(|file| {
            read(file).lines().any(|line| has_word(code(line), "unsafe") && !code(line).contains("reason ="))
        })
        .collect();
    let listed: BTreeSet<String> = UNSAFE.map(String::from).into();
    let mut offences: Vec<String> = found
        .difference(&listed)
        .map(|file| format!("{file}: has unsafe code and is not in the list"))
        .collect();
    offences.extend(
        listed.difference(&found).map(|file| format!("{file}: is in the list and has no unsafe code")),
    );
    for file in &found {
        let text = read(file);
        let blocks = text.lines().filter(|l| code(l).contains("unsafe {")).count();
        let reasons = text.lines().filter(|l| l.trim_start().starts_with("// SAFETY:")).count();
        if reasons < blocks {
            offences.push(format!("{file}: {blocks} unsafe blocks, {reasons} SAFETY comments"));
        }
        let attribute = text.find("#![allow(").map(|at| &text[at..]);
        if !attribute.is_some_and(|a| a[..a.find(")]").unwrap_or(0)].contains("unsafe_code")) {
            offences.push(format!("{file}: no #![allow(unsafe_code, reason = …)] at its top"));
        }
    }
    none(
        offences,
        "put it behind a small safe face in one of the files of UNSAFE, or change that list in this test",
    );
}
