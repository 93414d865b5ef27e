//! Starting, stopping, being killed, being started twice.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::harness::{BINARY, Server, request, wait};

fn serve_fails(arguments: &[&str]) -> String {
    let output = Command::new(BINARY).arg("serve").args(arguments).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn sigterm_ends_in_good_order_and_the_data_is_there_again() {
    let server = Server::start();
    let mut c = server.client();
    c.run("MSET a 1 b 2");
    c.run("SELECT 5");
    c.run("SET c 3 EX 1000");
    // A pipeline under way when the signal comes is finished or not begun, but never half answered.
    c.send(&request(&["SET", "d", "4"]).repeat(1000));
    let (dir, status) = server.stop();
    assert_eq!(status.code(), Some(0));
    let answered = c.rest();
    assert_eq!(answered.len() % 5, 0, "{:?}", String::from_utf8_lossy(&answered));
    let server = Server::in_dir(dir, &[]);
    let mut c = server.client();
    c.script("MGET a b => [\"1\" \"2\"]\n SELECT 5 => +OK\n GET c => \"3\"");
    assert!(c.run("TTL c").starts_with(":9"));
}

#[test]
fn what_was_acknowledged_survives_sigkill() {
    let server = Server::start();
    let mut c = server.client();
    for i in 0..500 {
        assert_eq!(c.run(&format!("SET k{i} {i}")), "+OK");
    }
    server.signal("-KILL");
    let dir = server.take_dir();
    let server = Server::in_dir(dir, &[]);
    let mut c = server.client();
    for i in 0..500 {
        assert_eq!(c.run(&format!("GET k{i}")), format!("\"{i}\""));
    }
}

#[test]
fn sigint_and_shutdown_end_in_good_order_too() {
    let mut server = Server::start();
    server.signal("-INT");
    assert_eq!(server.wait().code(), Some(0));
    let mut server = Server::with(&["--durability", "sync"]);
    let mut c = server.client();
    c.run("SET a 1");
    assert_eq!(c.run("SHUTDOWN NONSENSE"), "-ERR syntax error");
    c.send(b"SHUTDOWN NOSAVE\r\n");
    assert!(c.rest().is_empty());
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_second_server_on_the_directory_is_refused() {
    let server = Server::start();
    let path = server.path();
    let error = serve_fails(&["--dir", path.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    assert!(error.contains("another process has this database open"), "{error}");
    let address = format!("127.0.0.1:{}", server.port);
    let dir = tempfile::tempdir().unwrap();
    let error = serve_fails(&["--dir", dir.path().join("x").to_str().unwrap(), "--listen", &address]);
    assert!(error.contains("cannot listen on"), "{error}");
    assert_eq!(server.client().run("PING"), "+PONG");
}

#[test]
fn listening_beyond_loopback_needs_a_password() {
    let dir = tempfile::tempdir().unwrap();
    let error = serve_fails(&["--dir", dir.path().to_str().unwrap(), "--listen", "0.0.0.0:0"]);
    assert!(error.contains("--requirepass"), "{error}");
}

#[test]
fn without_arguments_it_serves_and_says_how_to_try_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(BINARY)
        .current_dir(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        let last = line.starts_with("Ctrl-C");
        said.push(line);
        if last {
            let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
        }
    }
    let status = wait(&mut child);
    let error = child.wait_with_output().unwrap().stderr;
    let error = String::from_utf8_lossy(&error);
    if error.contains("cannot listen on") {
        println!("skipped: port 7379 is taken");
        return;
    }
    assert_eq!(status.code(), Some(0), "{error}");
    let text = said.join("\n");
    assert!(text.contains("127.0.0.1:7379") && text.contains("RANGE - +") && said.len() < 24, "{text}");
    assert!(dir.path().join("betree-data").is_dir());
}

#[test]
fn the_offline_commands_look_into_a_closed_database() {
    let server = Server::start();
    server.client().run("MSET a 1 ab 2 b 3");
    let (dir, _) = server.stop();
    let path = dir.path().join("db");
    let run = |arguments: &[&str]| {
        let (command, rest) = arguments.split_first().unwrap();
        let output = Command::new(BINARY).arg(command).arg("--dir").arg(&path).args(rest).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(run(&["get", "a"]), (Some(0), "1\n".into()));
    assert_eq!(run(&["get", "x"]), (Some(1), String::new()));
    assert_eq!(run(&["range", "-", "+"]), (Some(0), "a\t1\nab\t2\nb\t3\n".into()));
    assert_eq!(run(&["range", "--rev", "--limit", "1", "--keys-only", "-", "(b"]), (Some(0), "ab\n".into()));
    assert_eq!(run(&["prefix", "a"]), (Some(0), "a\t1\nab\t2\n".into()));
    let (code, text) = run(&["check"]);
    assert!(code == Some(0) && text.ends_with("clean\n"), "{text}");
    assert!(run(&["stats"]).1.contains("write_amplification"));
}

/// Names, bytes and times of change of everything in a directory.
fn contents(dir: &std::path::Path) -> Vec<(std::ffi::OsString, Vec<u8>, std::time::SystemTime)> {
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let changed = entry.metadata().unwrap().modified().unwrap();
            (entry.file_name(), std::fs::read(entry.path()).unwrap(), changed)
        })
        .collect();
    all.sort();
    all
}

/// Runs a command; its exit code, standard output and standard error.
fn run(arguments: &[&std::ffi::OsStr]) -> (Option<i32>, String, String) {
    let output = Command::new(BINARY).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn check_and_salvage_change_nothing_and_name_what_is_damaged() {
    let server = Server::start();
    let mut c = server.client();
    for i in 0..2000 {
        c.run(&format!("SET key{i:05} value{i}"));
    }
    c.run("SAVE");
    c.run("SET last one");
    let path = server.path();
    let check = |dir: &std::path::Path| run(&["check".as_ref(), "--dir".as_ref(), dir.as_os_str()]);
    let (code, _, error) = check(&path);
    assert!(code == Some(1) && error.contains("open elsewhere"), "{error}");

    // Killed: there is a log to replay.
    server.signal("-KILL");
    let dir = server.take_dir();
    let path = dir.path().join("db");
    let before = contents(&path);
    let (code, text, _) = check(&path);
    assert!(code == Some(0) && text.ends_with("clean\n"), "{text}");
    let into = dir.path().join("whole");
    let salvage = |into: &std::path::Path| {
        run(&["salvage".as_ref(), "--dir".as_ref(), path.as_os_str(), "--into".as_ref(), into.as_os_str()])
    };
    let (code, text, error) = salvage(&into);
    assert!(
        code == Some(0) && text.contains("2001 records") && text.ends_with("nothing is lost\n"),
        "{text}{error}"
    );
    assert!(contents(&path) == before, "a file was changed");
    let (code, _, error) = salvage(&into);
    assert!(code == Some(1) && error.contains("an empty directory is needed"), "{error}");

    // A data page and a superblock copy are hit.
    let data = path.join("data.betree");
    let mut bytes = std::fs::read(&data).unwrap();
    let page = bytes.chunks(4096).skip(16).position(|block| block[4] == 1 && block[8] == 5).unwrap() + 16;
    bytes[page * 4096 + 1000] ^= 1;
    bytes[100] ^= 1;
    std::fs::write(&data, bytes).unwrap();
    let before = contents(&path);
    let (code, text, _) = check(&path);
    let place = format!("data.betree at offset {}", page * 4096);
    assert!(code == Some(1) && text.contains(&place) && text.contains("superblock"), "{text}");
    let (code, text, _) = salvage(&dir.path().join("part"));
    assert!(code == Some(1) && text.contains(&format!("{place}, 4096 bytes: data page")), "{text}");
    assert!(text.contains("keys from \"key"), "{text}");
    assert!(contents(&path) == before, "a file was changed");
    assert_eq!(check(&dir.path().join("part")).0, Some(0));
    let (code, _, error) = check(&dir.path().join("nowhere"));
    assert!(code == Some(1) && error.contains("no database here"), "{error}");
}
