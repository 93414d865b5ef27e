//! The commands from outside, on a few records: every engine of this build through every phase, and the kill test.
//!
//! Nothing of the machine is changed: no memory limit, and the page cache stays as it is.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use betree_bench::engine::EngineName;
use serde_json::Value;

const PHASES: &str = "verify,get,get-threads,miss,zipf,multi-get,scan,full-scan,ycsb-a,overwrite,put-delete,verify,delete,full-scan";

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_betree-bench")).args(args).output().unwrap()
}

fn compare(out: &Path, more: &[&str]) -> Output {
    let out = out.to_str().unwrap();
    let mut args = vec!["compare", "--memory", "0", "--warm", "--out", out];
    args.extend(more);
    bench(&args)
}

fn results(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("results.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_engine_of_this_build_passes_every_phase_with_every_record_right() {
    let dir = tempfile::tempdir().unwrap();
    let engines: Vec<_> =
        EngineName::ALL.into_iter().filter(|e| e.is_built_in()).map(EngineName::as_str).collect();
    let args = ["--engines", &engines.join(","), "--records", "3000", "--reads", "500", "--phases", PHASES];
    let output = compare(dir.path(), &[&args[..], &["--batch", "7", "--threads", "3"]].concat());
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let results = results(dir.path());
    for engine in &engines {
        let of_engine: Vec<_> = results.iter().filter(|line| line["engine"] == *engine).collect();
        assert_eq!(of_engine.len(), 15, "{engine}: the load and fourteen phases");
        let scan = of_engine.iter().find(|line| line["result"]["phase"] == "full-scan").unwrap();
        assert_eq!(scan["result"]["rows"], 3000, "{engine}");
        assert_eq!(of_engine[14]["result"]["rows"], 1500, "{engine}: half of them were deleted");
    }
    let report = fs::read_to_string(dir.path().join("report.md")).unwrap();
    assert!(report.contains("memory **not limited**") && report.contains("latency-insert.svg"));
    assert!(!dir.path().join("db").exists(), "the databases are removed");
}

#[test]
fn ascending_and_synced_loads_are_right_too() {
    let dir = tempfile::tempdir().unwrap();
    let engines: Vec<_> =
        EngineName::ALL.into_iter().filter(|e| e.is_built_in()).map(EngineName::as_str).collect();
    let args = ["--engines", &engines.join(","), "--records", "300", "--order", "ascending"];
    let more = ["--durability", "sync", "--load-threads", "2", "--verify", "--phases", "scan"];
    let output = compare(dir.path(), &[&args[..], &more].concat());
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert!(fs::read_to_string(dir.path().join("report.md")).unwrap().contains("in ascending order"));
}

#[test]
fn an_engine_that_is_not_built_in_or_not_known_is_refused_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let output = compare(dir.path(), &["--engines", "betree,paper"]);
    assert!(!output.status.success() && text(&output.stderr).contains("no engine \"paper\""));
    if !EngineName::Rocksdb.is_built_in() {
        let output = compare(dir.path(), &["--engines", "rocksdb"]);
        assert!(!output.status.success() && text(&output.stderr).contains("--features rocksdb"));
    }
    assert!(!dir.path().join("results.jsonl").exists());
}

#[test]
fn nothing_acknowledged_is_lost_by_kills_at_random_moments() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("db");
    let path = database.to_str().unwrap();
    // How long reopening takes depends on the machine and the build, so it is no subject here.
    let args = ["--records", "20k", "--kills", "4", "--memory", "16MiB", "--max-reopen-seconds", "600"];
    let output = bench(&[&["kill-test", "--dir", path], &args[..]].concat());
    let stdout = text(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", text(&output.stderr));
    assert!(stdout.contains("Nothing was lost: 4 kills, 20.0 k records"), "{stdout}");
    assert!(!database.exists(), "removed after a pass");
}

#[test]
fn the_kill_test_refuses_a_directory_with_something_in_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("precious"), "x").unwrap();
    let output = bench(&["kill-test", "--dir", dir.path().to_str().unwrap()]);
    assert!(!output.status.success() && text(&output.stderr).contains("is not empty"));
    assert!(dir.path().join("precious").exists());
}
