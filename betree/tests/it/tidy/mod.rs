//! The house rules as tests: who may depend on whom, headers, unsafe code, names of invariants, documents in step.
//!
//! Reads the sources of the whole workspace as text; compiles and runs nothing. A failing test lists every offence and says
//! what to do about it. Lists of exceptions only shrink: an entry that is not needed any more fails as well.

mod documents;
mod layers;
mod sources;

use std::fs;
use std::path::{Path, PathBuf};

/// Folder, package, crates of the workspace that it may use, and those that only its tests may use.
const LAYERS: [(&str, &str, &[&str], &[&str]); 8] = [
    ("storage", "betree-storage", &[], &["betree-testkit"]),
    ("wal", "betree-wal", &["betree-storage"], &["betree-testkit"]),
    ("pager", "betree-pager", &["betree-storage"], &["betree-testkit"]),
    ("betree", "betree", &["betree-pager", "betree-storage", "betree-wal"], &["betree-testkit"]),
    // The server knows the public API of the engine and nothing below it.
    ("kvserver", "kvserver", &["betree"], &["betree-testkit"]),
    ("testkit", "betree-testkit", &["betree-storage"], &[]),
    // Leaves: nothing depends on them.
    (
        "fuzz",
        "betree-fuzz",
        &["betree", "betree-pager", "betree-storage", "betree-testkit", "betree-wal", "kvserver"],
        &[],
    ),
    ("benches", "betree-bench", &["betree"], &[]),
];

/// The crates that invariants are about.
const ENGINE: [&str; 4] = ["storage", "wal", "pager", "betree"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace").to_path_buf()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Files below `folder` (relative to the workspace) whose names end with `ending`, relative and sorted.
fn files(folder: &str, ending: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.expect("a directory entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && !["target", "corpus", "artifacts"].contains(&&*name)
            {
                folders.push(path);
            } else if name.ends_with(ending) {
                found.push(path.strip_prefix(root()).expect("below the root").display().to_string());
            }
        }
    }
    found.sort();
    found
}

/// All Rust files of the workspace.
fn sources() -> Vec<String> {
    LAYERS.iter().flat_map(|(folder, ..)| files(folder, ".rs")).collect()
}

/// The same without these tests, which have to spell what they look for.
fn other_sources() -> Vec<String> {
    sources().into_iter().filter(|file| !file.contains("/tests/it/tidy/")).collect()
}

/// The line without a `//` comment. Good enough for looking for words: a `//` in a string only hides what follows.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == word)
}

fn none(offences: Vec<String>, advice: &str) {
    assert!(offences.is_empty(), "{}\n→ {advice}", offences.join("\n"));
}
