//! A device that is full, and one that fails, under a running server: what clients are told, and what is there afterwards.
//!
//! The full device is a real file system and needs root; the failing one is made by `strace`, which injects errors into system
//! calls of the portable backend (io_uring's do not pass there). Without either the tests say that they are skipped.

use std::process::Command;
use std::time::Duration;

use betree_testkit::{FileSystem, Mount};

use crate::harness::{BINARY, Client, Server, request};

/// Sends SETs of 4 KiB in pipelines until one is refused; their number and the refusal.
fn fill(c: &mut Client) -> (u64, String) {
    let value = "v".repeat(4000);
    for first in (0..1_000_000).step_by(50) {
        let keys: Vec<String> = (first..first + 50).map(|i| format!("k{i:07}")).collect();
        keys.iter().for_each(|key| c.send(&request(&["SET", key, &value])));
        let replies: Vec<String> = keys.iter().map(|_| c.reply()).collect();
        if let Some(at) = replies.iter().position(|reply| reply != "+OK") {
            return (first + at as u64, replies[at].clone());
        }
    }
    panic!("the device does not fill up");
}

/// Sends the command until it is not refused for want of space any more.
fn insist(c: &mut Client, command: &str) -> String {
    for _ in 0..400 {
        let reply = c.run(command);
        if !reply.starts_with("-OOM") {
            return reply;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{command}: refused for want of space");
}

#[test]
fn on_a_full_device_sets_are_refused_reads_and_deletes_go_on_and_then_sets_again() {
    for kind in FileSystem::ALL {
        let Some(mount) = Mount::or_skip(kind, 160 << 20) else { return };
        let path = mount.path().join("db");
        let server = Server::at(&path, &["--memory", "32MiB"]);
        let mut c = server.client();
        let (there, refusal) = fill(&mut c);
        assert!(there > 1000, "{there} keys");
        assert!(
            refusal.starts_with("-OOM ") && refusal.contains("no space left on the device ("),
            "{refusal}"
        );
        let value = format!("\"{}\"", "v".repeat(4000));
        for i in (0..there).step_by(97) {
            assert_eq!(c.run(&format!("GET k{i:07}")), value);
        }
        for i in (0..there).step_by(10) {
            assert_eq!(insist(&mut c, &format!("DEL k{i:07}")), ":1");
        }
        assert_eq!(insist(&mut c, "DELRANGE [k0000100 [k9999999"), "+OK");
        drop(c);
        let mut c = server.client();
        assert_eq!(insist(&mut c, "SET again 1"), "+OK");
        let value = "w".repeat(4000);
        for i in 0..1000 {
            assert_eq!(insist(&mut c, &format!("SET again{i} {value}")), "+OK");
        }
        assert_eq!(c.run("GET k0000001"), format!("\"{}\"", "v".repeat(4000)));
        assert_eq!(c.run("GET k0000000"), "nil");
        drop(c);
        drop(server);
        let output = Command::new(BINARY).arg("check").arg("--dir").arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// A command that runs the server with errors injected into its system calls; none where `strace` cannot.
fn injecting(injections: &[&str]) -> Option<Command> {
    let works = Command::new("strace").args(["-D", "-f", "-qq", "-o", "/dev/null", "true"]).output();
    if let Some(reason) = match works {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_string()),
        Err(error) => Some(error.to_string()),
    } {
        assert!(std::env::var_os("REQUIRE_STRACE").is_none(), "strace: {reason}");
        println!("skipped: strace does not run: {reason}");
        return None;
    }
    // With -D the server is the child and strace is not its parent, so that signals reach the server.
    let mut command = Command::new("strace");
    command.args([
        "-D",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=io_uring_setup,fsync,fdatasync,pwrite64",
    ]);
    // io_uring would carry writes and syncs past the injection.
    command.args(["-e", "inject=io_uring_setup:error=EPERM"]);
    for injection in injections {
        command.args(["-e", injection]);
    }
    command.arg(BINARY);
    Some(command)
}

/// Writes until writing ends for good, reads, kills, starts anew and requires every acknowledged write.
fn fails_and_recovers(durability: &str, injections: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    // In good health first, so that opening meets no injected error.
    drop(Server::at(&path, &["--memory", "4MiB"]).client().run("SET first 1"));
    let Some(command) = injecting(injections) else { return };
    let server = Server::of(command, &path, &["--memory", "4MiB", "--durability", durability]);
    let mut c = server.client();
    assert!(c.run("INFO persistence").contains("aof_last_write_status:ok"));
    assert!(c.run("INFO betree").contains("betree_backend:portable"), "io_uring was not refused");
    let value = "v".repeat(2000);
    let mut acknowledged = 0;
    let refusal = loop {
        c.send(&request(&["SET", &format!("k{acknowledged}"), &value]));
        match c.reply().as_str() {
            "+OK" => acknowledged += 1,
            other => break other.to_string(),
        }
        assert!(acknowledged < 200_000, "no injected error shows");
    };
    assert!(refusal.starts_with("-MISCONF "), "{refusal}");
    // The connection may have been closed with that; the server is there, reads, and says what is the matter.
    let mut c = server.client();
    for i in (0..acknowledged).step_by(13) {
        assert_eq!(c.run(&format!("GET k{i}")), format!("\"{value}\""));
    }
    for command in ["SET more 1", "DEL k0", "INCR n"] {
        let reply = c.run(command);
        assert!(reply.starts_with("-MISCONF ") && reply.contains("Input/output error"), "{command}: {reply}");
        c = server.client();
    }
    let info = c.run("INFO persistence");
    assert!(info.contains("aof_last_write_status:err") && info.contains("writes_refused_since:"), "{info}");
    println!("{acknowledged} writes acknowledged, then {refusal}");
    server.signal("-KILL");
    drop(server);
    let server = Server::at(&path, &["--memory", "4MiB"]);
    let mut c = server.client();
    for i in 0..acknowledged {
        assert_eq!(c.run(&format!("GET k{i}")), format!("\"{value}\""), "k{i} of {acknowledged}");
    }
    assert_eq!(c.run("SET more 1"), "+OK");
    let (_, status) = (drop(c), {
        let mut server = server;
        server.signal("-TERM");
        server.wait()
    });
    assert_eq!(status.code(), Some(0));
    let output = Command::new(BINARY).arg("check").arg("--dir").arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn after_a_failed_sync_the_server_refuses_writes_and_says_so_and_a_restart_has_all_it_acknowledged() {
    // Counted by thread: some syncs succeed first.
    let failing = ["inject=fsync,fdatasync:error=EIO:when=9+"];
    fails_and_recovers("sync", &failing);
    fails_and_recovers("buffered", &failing);
}

#[test]
fn one_failed_sync_is_final_although_the_next_would_succeed() {
    fails_and_recovers("sync", &["inject=fsync,fdatasync:error=EIO:when=7"]);
}

#[test]
fn after_a_failed_write_of_data_the_server_refuses_writes_and_a_restart_has_all_it_acknowledged() {
    fails_and_recovers("buffered", &["inject=pwrite64:error=EIO:when=20+"]);
}

fn serve_fails(command: &mut Command, path: &std::path::Path) -> String {
    let output = command.args(["serve", "--listen", "127.0.0.1:0", "--dir"]).arg(path).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_directory_that_cannot_be_used_is_refused_with_its_path_and_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    let error = serve_fails(&mut Command::new(BINARY), &file);
    assert!(error.contains(file.to_str().unwrap()), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), b"not a directory");

    // What lies there and is not ours stays as it is, and does no harm.
    let foreign = dir.path().join("foreign");
    std::fs::create_dir_all(foreign.join("log-0000000000000001.d")).unwrap();
    for name in ["notes.txt", "log-1", "data.betree.bak", "log-00000000000000001"] {
        std::fs::write(foreign.join(name), "precious").unwrap();
    }
    let server = Server::at(&foreign, &[]);
    assert_eq!(server.client().run("SET a 1"), "+OK");
    drop(server);
    for name in ["notes.txt", "log-1", "data.betree.bak", "log-00000000000000001"] {
        assert_eq!(std::fs::read(foreign.join(name)).unwrap(), b"precious", "{name}");
    }
    // A foreign file under the name of ours is refused and not touched.
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("data.betree"), "x".repeat(100_000)).unwrap();
    let error = serve_fails(&mut Command::new(BINARY), &other);
    assert!(error.contains("data.betree"), "{error}");
    assert_eq!(std::fs::read(other.join("data.betree")).unwrap(), "x".repeat(100_000).as_bytes());
}

#[test]
fn a_read_only_file_system_is_refused_as_such_and_changes_nothing() {
    let Some(mount) = Mount::or_skip(FileSystem::Ext4, 96 << 20) else { return };
    let path = mount.path().join("db");
    let server = Server::at(&path, &["--memory", "4MiB"]);
    assert_eq!(server.client().run("SET a 1"), "+OK");
    server.signal("-TERM");
    let mut server = server;
    assert_eq!(server.wait().code(), Some(0));
    mount.set_read_only(true).unwrap();
    for place in [&path, &mount.path().join("new")] {
        let error = serve_fails(&mut Command::new(BINARY), place);
        assert!(
            error.contains("Read-only file system") && error.contains(place.to_str().unwrap()),
            "{error}"
        );
    }
    mount.set_read_only(false).unwrap();
    assert_eq!(Server::at(&path, &["--memory", "4MiB"]).client().run("GET a"), "\"1\"");
}

#[test]
fn a_directory_without_permission_is_refused_with_its_path() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    // Root may do everything: the server runs as nobody, from a place that nobody can read.
    let binary = dir.path().join("kvserver");
    std::fs::copy(BINARY, &binary).unwrap();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open.clone()).unwrap();
    std::fs::set_permissions(&binary, open).unwrap();
    let closed = dir.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).unwrap();
    let as_nobody = |program: &std::path::Path| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
        command
    };
    let mut command = match as_nobody("true".as_ref()).status() {
        Ok(status) if status.success() => as_nobody(&binary),
        // Not root: then the rules hold for us as well.
        _ => Command::new(&binary),
    };
    let error = serve_fails(&mut command, &closed);
    assert!(error.contains("Permission denied") && error.contains("closed"), "{error}");
}
