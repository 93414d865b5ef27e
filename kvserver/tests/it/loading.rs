//! `kvserver load`.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::harness::BINARY;

/// Loads `input` from standard input and returns exit code, what was said, and what is in the database.
fn load(input: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let mut child = Command::new(BINARY)
        .args(["load", "--memory", "64MiB", "--dir"])
        .arg(&path)
        .args(arguments)
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A refused option closes the pipe before it is read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let range = Command::new(BINARY).args(["range", "--dir"]).arg(&path).args(["-", "+"]).output().unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
        String::from_utf8(range.stdout).unwrap(),
    )
}

#[test]
fn tsv_takes_a_column_as_key_and_the_rest_as_value() {
    let (code, said, data) = load("1\ta\tx\n2\tb\ty\nbad\n3\tc\tz\n", &["--format", "tsv", "--key", "2"]);
    assert_eq!((code, data.as_str()), (Some(0), "a\t1\tx\nb\t2\ty\nc\t3\tz\n"));
    assert!(said.contains("line 3: 1 columns, not 3") && said.contains("3 records loaded"), "{said}");
    assert!(said.contains("1 bad lines"), "{said}");
    let named = ["--format", "tsv", "--header", "--key", "name", "--value", "id"];
    let (_, _, data) = load("id\tname\n1\ta\n2\tb\n", &named);
    assert_eq!(data, "a\t1\nb\t2\n");
    let first = load("k1\tv1\tw1\n", &["--format", "tsv", "--key", "1"]).2;
    assert_eq!(first, "k1\tv1\tw1\n");
}

#[test]
fn csv_knows_quotes_and_reports_line_numbers() {
    let input = "id,name,note\n1,\"a,b\",\"two\nlines\"\n2,c\n3,d,plain\n";
    let (code, said, data) = load(input, &["--format", "csv", "--header", "--key", "name"]);
    assert_eq!((code, data.as_str()), (Some(0), "a,b\t1,\"two\nlines\"\nd\t3,plain\n"));
    assert!(said.contains("line 4: 2 columns, not 3"), "{said}");
    let (code, said, data) = load(input, &["--format", "csv", "--header", "--key", "name", "--strict"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("line 4") && data.starts_with("a,b"), "{said}");
    let (code, said, _) = load(input, &["--format", "csv", "--header", "--key", "nonsense"]);
    assert!(code == Some(1) && said.contains("id, name, note"), "{said}");
}

#[test]
fn ndjson_takes_a_field_as_key() {
    let input = "{\"id\":7,\"v\":\"x\"}\n\nnonsense\n{\"v\":1}\n{\"id\":\"a\",\"v\":{\"n\":1}}\n";
    let (code, said, data) = load(input, &["--format", "ndjson", "--key", "id"]);
    assert_eq!(code, Some(0));
    assert_eq!(data, "7\t{\"id\":7,\"v\":\"x\"}\na\t{\"id\":\"a\",\"v\":{\"n\":1}}\n");
    assert!(said.contains("line 3: not a JSON object") && said.contains("line 4: no field \"id\""), "{said}");
    let (_, _, data) = load(input, &["--format", "ndjson", "--key", "id", "--value", "v"]);
    assert_eq!(data, "7\tx\na\t{\"n\":1}\n");
}

#[test]
fn contents_splits_at_the_last_blank() {
    let input = "usr/bin/git                    vcs/git\nusr/share/a b/c d   x/y,z/w  \nnonsense\n";
    let (code, said, data) = load(input, &["--format", "contents"]);
    assert_eq!((code, data.as_str()), (Some(0), "usr/bin/git\tvcs/git\nusr/share/a b/c d\tx/y,z/w\n"));
    assert!(said.contains("line 3: no blank"), "{said}");
}

#[test]
fn only_the_first_bad_lines_are_shown_and_all_are_counted() {
    let (code, said, _) = load(&"nonsense\n".repeat(100), &["--format", "contents"]);
    assert_eq!(code, Some(0));
    assert!(
        said.contains("line 20:") && !said.contains("line 21:") && said.contains("100 bad lines"),
        "{said}"
    );
}

#[test]
fn many_records_are_loaded_in_batches() {
    let input: String = (0..30_000).map(|i| format!("{i:06}\tvalue {i}\n")).collect();
    let (code, said, data) = load(&input, &["--format", "tsv", "--key", "1"]);
    assert_eq!(code, Some(0));
    assert!(said.contains("30000 records loaded"), "{said}");
    assert_eq!(data, input);
}
