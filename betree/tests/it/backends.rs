//! Both I/O backends on a real disk, and kernels that refuse io_uring: the database opens, notes the fallback once, and works.
//!
//! Refusal is for a whole process and for good, so the test that works with the database is started once more as a process of its own: below `strace`,
//! which answers the system call that sets up a ring with an error, and below `prlimit`. Where those are missing the tests say
//! that they are skipped.

use std::process::Command;

use betree::{Db, Options, TreeOptions};

/// Says to the test in the child what it must find.
const EXPECT: &str = "BETREE_TEST_EXPECT_BACKEND";

/// Writes, reopens, compares, checks; the backend's name and the notes.
fn work(portable: bool) -> (String, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::default();
    options.memory = 4 << 20;
    options.portable_io = portable;
    options.log_file_bytes = 1 << 20;
    let mut tree = TreeOptions::default();
    (tree.leaf_bytes, tree.segment_bytes) = (128 << 10, 64 << 10);
    options.tree = tree;
    let open = || Db::builder().options(options.clone()).open(dir.path()).unwrap();
    for round in 0..2u64 {
        let db = open();
        let keyspace = db.keyspace("default").unwrap();
        for i in 0..8000 {
            keyspace.insert((i * 7 % 8000 + round).to_be_bytes(), vec![i as u8; 300]).unwrap();
        }
        db.persist().unwrap();
        if round == 0 {
            db.close().unwrap();
        }
    }
    let db = open();
    let keyspace = db.keyspace("default").unwrap();
    assert_eq!(keyspace.iter().map(Result::unwrap).count(), 8001);
    assert_eq!(keyspace.get(8000u64.to_be_bytes()).unwrap().map(|v| v.len()), Some(300));
    db.compact().unwrap();
    assert_eq!(db.check().unwrap().problems, Vec::<String>::new());
    (db.stats().backend, db.notes())
}

#[test]
fn the_database_works_on_whatever_backend_there_is() {
    let (backend, notes) = work(false);
    println!("backend {backend}, notes {notes:?}");
    let fallbacks = notes.iter().filter(|note| note.contains("io_uring cannot be set up")).count();
    assert_eq!(fallbacks, usize::from(backend == "portable"), "{notes:?}");
    if let Ok(expected) = std::env::var(EXPECT) {
        assert_eq!(backend, expected);
    }
    let (backend, notes) = work(true);
    assert_eq!(backend, "portable");
    assert!(!notes.iter().any(|note| note.contains("io_uring")), "it was asked for: {notes:?}");
}

/// Runs the test above below `wrapper`.
fn below(wrapper: &[&str], expected: Option<&str>) {
    let probe = Command::new(wrapper[0]).args(&wrapper[1..]).arg("true").output();
    if !probe.as_ref().is_ok_and(|output| output.status.success()) {
        println!("skipped: {wrapper:?} does not run: {probe:?}");
        return;
    }
    let mut command = Command::new(wrapper[0]);
    command.args(&wrapper[1..]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "backends::the_database_works_on_whatever_backend_there_is", "--nocapture"]);
    if let Some(expected) = expected {
        command.env(EXPECT, expected);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    println!("{wrapper:?}: {}", text.lines().find(|line| line.contains("backend ")).unwrap_or_default());
}

#[test]
fn a_kernel_that_refuses_io_uring_is_noted_once_and_does_no_harm() {
    for error in ["EPERM", "ENOSYS", "ENOMEM"] {
        let inject = format!("inject=io_uring_setup:error={error}");
        below(
            &["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=io_uring_setup", "-e", &inject],
            Some("portable"),
        );
    }
}

#[test]
fn a_kernel_that_refuses_the_second_ring_is_noted_once_and_does_no_harm() {
    // The first ring of each thread is the probe, or the thread's first channel.
    let inject = "inject=io_uring_setup:error=EMFILE:when=2+";
    below(&["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=io_uring_setup", "-e", inject], None);
}

#[test]
fn a_process_that_may_lock_no_memory_works() {
    below(&["prlimit", "--memlock=0:0"], None);
}
