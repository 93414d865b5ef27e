//! The documents say what the code does: names of invariants, the format, defaults, links.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{ENGINE, LAYERS, code, files, none, read, root};

/// `word.words_with_underscores`: the form of an invariant's name.
fn is_invariant(text: &str) -> bool {
    let is_name = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    match text.split_once('.') {
        Some((_, "rs" | "md" | "toml" | "betree" | "new")) | Some(("self", _)) | None => false,
        Some((subject, rest)) => is_name(subject) && !subject.contains('_') && is_name(rest),
    }
}

/// Names in backticks in the comments of the engine, and those that messages of its checks begin with; with their files.
fn invariants_in_code() -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in ENGINE.iter().flat_map(|f| files(&format!("{f}/src"), ".rs")) {
        for line in read(&file).lines() {
            let comment = line.find("//").map_or("", |at| &line[at..]);
            let in_comment = comment.split('`').skip(1).step_by(2);
            let in_string =
                code(line).split('"').skip(1).step_by(2).filter_map(|s| Some(s.split_once(": ")?.0));
            for name in in_comment.chain(in_string).filter(|name| is_invariant(name)) {
                found.entry(name.to_string()).or_default().insert(file.clone());
            }
        }
    }
    found
}

/// The rows of the table of invariants: name and file.
fn invariants_in_docs() -> BTreeMap<String, String> {
    let text = read("ARCHITECTURE.md");
    let rows = text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('`');
        let (name, file) = (cells.next()?, cells.nth(1)?);
        is_invariant(name).then(|| (name.to_string(), file.to_string()))
    });
    rows.collect()
}

#[test]
fn invariants_have_the_same_names_in_code_and_documents() {
    let (code, docs) = (invariants_in_code(), invariants_in_docs());
    assert!(docs.len() > 30, "the table of invariants in ARCHITECTURE.md has only {} rows", docs.len());
    let mut offences = Vec::new();
    for (name, files) in &code {
        match docs.get(name) {
            None => offences.push(format!("{name}: named in {files:?}, no row in ARCHITECTURE.md")),
            Some(file) if !files.contains(file) => {
                offences.push(format!("{name}: ARCHITECTURE.md says {file}, named in {files:?}"));
            }
            Some(_) => {}
        }
    }
    for name in docs.keys().filter(|name| !code.contains_key(*name)) {
        offences.push(format!("{name}: has a row in ARCHITECTURE.md, and no code names it"));
    }
    none(offences, "rename both together; a row is | `name` | `file that keeps it` | meaning |");
}

/// The names given to `Storage::reached`, with the files that give them; literals in the same statement count.
fn named_states_in_code() -> BTreeMap<String, String> {
    let is_name = |s: &str| s.contains('-') && s.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    let mut found = BTreeMap::new();
    for file in ENGINE.iter().flat_map(|f| files(&format!("{f}/src"), ".rs")) {
        let text = read(&file);
        if !text.contains("reached(") {
            continue;
        }
        // A constant is the name of something else.
        for line in text.lines().map(code).filter(|line| !line.contains("const ")) {
            for name in line.split('"').skip(1).step_by(2).filter(|name| is_name(name)) {
                found.insert(name.to_string(), file.clone());
            }
        }
    }
    found
}

#[test]
fn named_states_are_the_same_in_code_simulator_and_documents() {
    let code = named_states_in_code();
    let table = read("testkit/src/sim/states.rs");
    let listed: BTreeSet<String> = table
        .lines()
        .filter_map(|line| line.strip_prefix("    \"")?.strip_suffix("\","))
        .map(str::to_string)
        .collect();
    let architecture = read("ARCHITECTURE.md");
    assert!(listed.len() >= 20, "only {} names found: has the form of their table changed?", listed.len());
    let mut offences = Vec::new();
    for (name, file) in &code {
        if !listed.contains(name) {
            offences.push(format!("{file}: {name} is not in testkit/src/sim/states.rs"));
        }
        if !architecture.contains(&format!("| `{name}` | `{file}` |")) {
            offences.push(format!("ARCHITECTURE.md: no row | `{name}` | `{file}` | …"));
        }
    }
    for name in listed.iter().filter(|name| !code.contains_key(*name)) {
        offences.push(format!("testkit/src/sim/states.rs: nothing reaches {name}"));
    }
    none(offences, "name a state in code, in the simulator's table and in ARCHITECTURE.md alike");
}

#[test]
fn the_format_document_knows_every_page_type_and_version() {
    let format = read("docs/format.md");
    let mut offences = Vec::new();
    let mut types = 0;
    for file in ENGINE.iter().flat_map(|f| files(&format!("{f}/src"), ".rs")) {
        for line in read(&file).lines() {
            let Some((_, constant)) = line.split_once("const TYPE_") else { continue };
            let Some((name, number)) = constant.split_once(": u8 = ") else { continue };
            let (name, number) = (name.to_lowercase(), number.trim_end_matches(';'));
            types += 1;
            if !format.lines().any(|l| l.starts_with(&format!("| {number} | {name} "))) {
                offences
                    .push(format!("{file}: no row `| {number} | {name} …` in docs/format.md, Page types"));
            }
        }
    }
    assert!(types >= 4, "only {types} page types found: has the form of their constants changed?");
    for (file, constant) in
        [("wal/src/format.rs", "const VERSION: u32 = "), ("pager/src/superblock.rs", "const VERSION: u16 = ")]
    {
        let text = read(file);
        let version =
            text.split_once(constant).and_then(|(_, rest)| rest.split_once(';')).map(|(v, _)| v.to_string());
        match version {
            Some(version) if format.contains(&format!("| `{file}` | {version} |")) => {}
            version => {
                offences.push(format!("{file}: version {version:?} is not in docs/format.md, Versions"))
            }
        }
    }
    // The constants of hash and filter decide whether keys are found.
    for file in ["betree/src/hash.rs", "betree/src/filter.rs"] {
        let text = read(file);
        let text = text.split("mod tests").next().unwrap_or_default();
        for constant in text.split("0x").skip(1) {
            let end = constant.find(|c: char| !c.is_ascii_hexdigit() && c != '_').unwrap_or(constant.len());
            let constant = constant[..end].replace('_', "");
            if constant.len() >= 8 && !format.contains(&constant) {
                offences.push(format!("{file}: the constant {constant} is not in docs/format.md"));
            }
        }
    }
    none(
        offences,
        "the format is written in the codec's header, in docs/format.md and in tests: change all three",
    );
}

#[test]
fn the_tuning_document_states_the_defaults_of_the_code() {
    let (options, tuning) = (read("betree/src/options.rs"), read("docs/tuning.md"));
    let defaults = options.split("impl Default for TreeOptions").nth(1).expect("the defaults of a tree");
    let defaults =
        defaults.split("TreeOptions {").nth(1).and_then(|d| d.split('}').next()).expect("their list");
    let mut offences = Vec::new();
    let mut rows = 0;
    for (name, value) in
        defaults.lines().filter_map(|line| line.trim().trim_end_matches(',').split_once(": "))
    {
        let value = value.replace(" << 20", " MiB").replace(" << 10", " KiB");
        rows += 1;
        if !tuning.contains(&format!("| `{name}` | {value} |")) {
            offences.push(format!("docs/tuning.md: no row | `{name}` | {value} |"));
        }
    }
    assert!(rows >= 7, "only {rows} defaults found: has the form of their list changed?");
    none(offences, "write the default of the code into the document");
}

#[test]
fn documents_name_files_that_exist() {
    let mut offences = Vec::new();
    for file in files("", ".md") {
        let text = read(&file);
        let folder = Path::new(&file).parent().unwrap_or(Path::new(""));
        for target in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(t, _)| t) {
            let target = target.split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !root().join(folder).join(target).exists() {
                offences.push(format!("{file}: links to {target}"));
            }
        }
    }
    for file in files("", ".md") {
        // Outside of code blocks; a path begins with a folder of ours.
        for line in read(&file).split("```").step_by(2).flat_map(str::lines) {
            for path in line.split('`').skip(1).step_by(2) {
                let ours = path.split_once('/').is_some_and(|(folder, rest)| {
                    rest.bytes().all(|b| b.is_ascii_graphic())
                        && (folder == "docs" || LAYERS.iter().any(|(layer, ..)| *layer == folder))
                });
                if ours && !root().join(path).exists() {
                    offences.push(format!("{file}: names {path}"));
                }
            }
        }
    }
    for command in ["cargo run --release -p kvserver\n", "cargo test --workspace\n"] {
        if !read("README.md").contains(command) {
            offences.push(format!("README.md: without the command {}", command.trim()));
        }
    }
    none(offences, "correct the link or path");
}
