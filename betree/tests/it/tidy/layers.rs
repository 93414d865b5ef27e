//! Who may depend on whom, and which words a layer must not know: the section *Layers* of ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};

use super::{LAYERS, code, files, has_word, none, read};

/// Dependencies with one home, and their homes.
const HOMES: [(&str, &[&str]); 8] = [
    ("io-uring", &["storage"]),
    ("libc", &["storage"]),
    ("memmap2", &["storage"]),
    ("tokio", &["kvserver"]),
    ("redb", &["benches"]),
    ("heed", &["benches"]),
    ("rusqlite", &["benches"]),
    ("rocksdb", &["benches"]),
];

/// Words that code of a lower layer does not know, whatever it means by them.
const ABSENT: [(&[&str], &[&str]); 3] = [
    // Keys, messages and trees are the engine's.
    (
        &["storage/src", "wal/src", "pager/src"],
        &["Seqno", "Keyspace", "Memtable", "MessageRef", "MergeOperator"],
    ),
    // Only storage touches files; only the server touches sockets and has an async runtime.
    (&["wal/src", "pager/src", "betree/src"], &["std::fs", "std::net", "std::os", "tokio"]),
    (&["storage/src", "kvserver/src/resp"], &["std::net", "tokio"]),
];

/// Names of dependencies in a manifest by section (`dependencies`, `dev-dependencies`, `build-dependencies`).
fn dependencies(folder: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut section: Option<String> = None;
    for line in read(&format!("{folder}/Cargo.toml")).lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(header) = line.strip_prefix('[') {
            let header = header.trim_end_matches(']');
            // Also `target.'cfg(…)'.dependencies` and the long form `dependencies.name`.
            section =
                ["dev-dependencies", "build-dependencies", "dependencies"].into_iter().find_map(|kind| {
                    if header == kind || header.ends_with(&format!(".{kind}")) {
                        return Some(kind.to_string());
                    }
                    let name = header.strip_prefix(&format!("{kind}."))?;
                    found.entry(kind.to_string()).or_default().insert(name.to_string());
                    None
                });
        } else if let (Some(section), Some((name, value))) = (&section, line.split_once(['=', '.'])) {
            assert!(!value.contains("package ="), "{folder}/Cargo.toml: {name}: do not rename packages");
            found.entry(section.clone()).or_default().insert(name.trim().to_string());
        }
    }
    found
}

#[test]
fn crates_depend_only_on_the_layers_below_them() {
    let ours: BTreeSet<&str> = LAYERS.iter().map(|(_, package, ..)| *package).collect();
    let mut offences = Vec::new();
    for (folder, package, may, tests_may) in LAYERS {
        assert!(read(&format!("{folder}/Cargo.toml")).contains(&format!("name = \"{package}\"")), "{folder}");
        for (section, names) in dependencies(folder) {
            for name in names.iter().filter(|n| ours.contains(n.as_str())) {
                let allowed = may.contains(&name.as_str())
                    || (section == "dev-dependencies" && tests_may.contains(&name.as_str()));
                if !allowed {
                    offences.push(format!("{folder}/Cargo.toml: [{section}] names {name}"));
                }
            }
        }
    }
    let members = format!("members = [{}]", LAYERS.map(|(folder, ..)| format!("{folder:?}")).join(", "));
    if !read("Cargo.toml").contains(&members) {
        offences.push(format!("Cargo.toml: the members are not {members}"));
    }
    none(
        offences,
        "layers name only what is below them (ARCHITECTURE.md, Layers): move the code to the layer that owns the matter",
    );
}

#[test]
fn dependencies_stay_at_home() {
    let mut offences = Vec::new();
    let architecture = read("ARCHITECTURE.md");
    for (folder, ..) in LAYERS {
        for name in dependencies(folder).values().flatten() {
            if HOMES.iter().any(|(dependency, homes)| dependency == name && !homes.contains(&folder)) {
                offences.push(format!("{folder}/Cargo.toml names {name}, which belongs elsewhere"));
            }
            if !LAYERS.iter().any(|(_, package, ..)| package == name)
                && !architecture.contains(&format!("`{name}`"))
            {
                offences.push(format!("{folder}/Cargo.toml names {name}, ARCHITECTURE.md does not"));
            }
        }
    }
    none(offences, "every dependency has a home and its reason in one line of ARCHITECTURE.md, Dependencies");
}

#[test]
fn lower_layers_do_not_know_the_words_of_higher_ones() {
    let mut offences = Vec::new();
    for (folders, words) in ABSENT {
        for file in folders.iter().flat_map(|f| files(f, ".rs")) {
            let text = read(&file);
            // Unit tests may use what they like.
            let text = text.split("\nmod tests {").next().unwrap_or_default();
            for (number, line) in text.lines().enumerate() {
                let line = code(line);
                let known = |word: &&&str| {
                    if word.contains("::") { line.contains(**word) } else { has_word(line, word) }
                };
                if let Some(word) = words.iter().find(known) {
                    offences.push(format!("{file}:{}: {word}", number + 1));
                }
            }
        }
    }
    none(
        offences,
        "this layer must not know that (ARCHITECTURE.md, Absences); pass it in as bytes, or move it up",
    );
}
