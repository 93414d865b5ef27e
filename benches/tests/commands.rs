//! The commands from outside, on a few records: every engine of this build through every phase, and the kill test.
//!
//! Nothing of the machine is changed: no memory limit, and the page cache stays as it is.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use betree_bench::engine::EngineName;
use serde_json::Value;

const PHASES: &str = "verify,get,get-threads,miss,zipf,multi-get,multi-get-zipf,async-get,async-ycsb-a,scan,full-scan,ycsb-a,overwrite,put-delete,verify,delete,full-scan";

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
        assert_eq!(of_engine.len(), 18, "{engine}: the load and seventeen phases");
        let scan = of_engine.iter().find(|line| line["result"]["phase"] == "full-scan").unwrap();
        assert_eq!(scan["result"]["rows"], 3000, "{engine}");
        assert_eq!(of_engine[17]["result"]["rows"], 1500, "{engine}: half of them were deleted");
    }
    let report = fs::read_to_string(dir.path().join("report.md")).unwrap();
    assert!(report.contains("memory **not limited**") && report.contains("latency-insert.svg"));
    assert!(!dir.path().join("db").exists(), "the databases are removed");
}

/// The results of one phase, in order.
fn of_phase<'a>(results: &'a [Value], phase: &str) -> Vec<&'a Value> {
    results.iter().map(|line| &line["result"]).filter(|result| result["phase"] == phase).collect()
}

#[test]
fn workloads_of_several_threads_and_inserts_beside_gets_leave_exactly_the_records_they_count() {
    let dir = tempfile::tempdir().unwrap();
    let engines: Vec<_> =
        EngineName::ALL.into_iter().filter(|e| e.is_built_in()).map(EngineName::as_str).collect();
    let phases = "ycsb-a,ycsb-b,ycsb-c,ycsb-d,ycsb-e,ycsb-f,verify,ingest-gets,full-scan";
    let args = ["--engines", &engines.join(","), "--records", "20k", "--reads", "1000", "--phases", phases];
    let output =
        compare(dir.path(), &[&args[..], &["--ycsb-threads", "1,3", "--read-seconds", "2"]].concat());
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let results = results(dir.path());
    for engine in &engines {
        let of_engine: Vec<_> = results.iter().filter(|line| line["engine"] == *engine).cloned().collect();
        for workload in ["ycsb-a", "ycsb-b", "ycsb-c", "ycsb-d", "ycsb-e", "ycsb-f"] {
            let threads: Vec<_> =
                of_phase(&of_engine, workload).iter().map(|r| r["threads"].as_u64()).collect();
            assert_eq!(threads, [Some(1), Some(3)], "{engine}, {workload}");
        }
        let inserted = of_phase(&of_engine, "ycsb-f")[1]["present"].as_u64().unwrap() - 20_000;
        assert!((100..400).contains(&inserted), "{engine}: {inserted} records by 5 % of four times 1000");
        let before = &of_phase(&of_engine, "verify")[0]["rows"];
        assert_eq!(before.as_u64(), Some(20_000 + inserted), "{engine}");
        let ingest = of_phase(&of_engine, "ingest-gets")[0];
        let after = &of_phase(&of_engine, "full-scan")[0]["rows"];
        assert_eq!(after.as_u64(), Some(20_000 + inserted + ingest["operations"].as_u64().unwrap()));
        assert_eq!(ingest["latency"]["count"], ingest["ingest"]["gets"], "{engine}");
    }
    let report = fs::read_to_string(dir.path().join("report.md")).unwrap();
    assert!(report.contains("| **YCSB E**, 3 threads /s |") && report.contains("| kept of the rate alone |"));
}

#[test]
fn what_settling_and_deletes_by_range_leave_is_exactly_what_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let engines: Vec<_> =
        EngineName::ALL.into_iter().filter(|e| e.is_built_in()).map(EngineName::as_str).collect();
    let phases = "scan,settle,scan,delete-range,full-scan,settle,full-scan";
    let args = ["--engines", &engines.join(","), "--records", "20k", "--reads", "1000", "--phases", phases];
    let output = compare(dir.path(), &[&args[..], &["--rest-seconds", "1"]].concat());
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let results = results(dir.path());
    for engine in &engines {
        let of_engine: Vec<_> = results.iter().filter(|line| line["engine"] == *engine).cloned().collect();
        let settles = of_phase(&of_engine, "settle")[0]["unsupported"] == false;
        let settled: Vec<_> = of_phase(&of_engine, "scan").iter().map(|r| r["settled"].as_bool()).collect();
        assert_eq!(settled, [Some(false), Some(settles)], "{engine}");
        let deletion = of_phase(&of_engine, "delete-range")[0];
        let left = deletion["present"].as_u64().unwrap();
        if deletion["unsupported"] == true {
            assert_eq!(left, 20_000, "{engine}");
        } else {
            assert!((1_500..2_500).contains(&left), "{engine}: a tenth of 20000 is left, {left}");
            assert!(deletion["rested_space_bytes"].is_u64(), "{engine}");
        }
        let rows: Vec<_> = of_phase(&of_engine, "full-scan").iter().map(|r| r["rows"].as_u64()).collect();
        assert_eq!(rows, [Some(left); 2], "{engine}");
        assert!(of_phase(&of_engine, "load")[0]["rested_space_bytes"].is_u64(), "{engine}");
        assert!(of_phase(&of_engine, "scan")[0]["rested_space_bytes"].is_null(), "{engine}: nothing changed");
    }
    let report = fs::read_to_string(dir.path().join("report.md")).unwrap();
    for title in [
        "**scan of 100 rows** /s, settled",
        "space per byte inserted, after 1 s of rest",
        "**full scan** of what they left, rows/s, settled",
    ] {
        assert!(report.contains(&format!("| {title} |")), "{title}: {report}");
    }
}

#[test]
fn a_phase_that_cannot_follow_deletes_by_range_is_refused_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let output = compare(dir.path(), &["--engines", "betree", "--phases", "delete-range,full-scan,get"]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("get cannot follow delete-range"), "{}", text(&output.stderr));
    assert!(!dir.path().join("results.jsonl").exists());
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
