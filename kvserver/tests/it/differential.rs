//! The same random commands to a stock redis-server and to ours: replies compared byte for byte.
//!
//! Left out is what cannot be equal: times that pass, sizes that we estimate, the order and cursors of SCAN and KEYS, and sums of
//! floats that differ in the last digits (they have a key of their own, with small values).

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Client, Server, request};

struct Redis {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A stock server of version 7.0, whose texts are followed; `None` if this machine has none.
fn redis() -> Option<Redis> {
    let version = Command::new("redis-server").arg("--version").output().ok()?;
    if !String::from_utf8_lossy(&version.stdout).contains("v=7.0.") {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let child = Command::new("redis-server")
        .args(["--port", &port.to_string(), "--save", "", "--dir"])
        .arg(dir.path())
        .stdout(Stdio::null())
        .spawn()
        .ok()?;
    let redis = Redis { child, port, _dir: dir };
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "redis-server does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(redis)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[(self.next() % from.len() as u64) as usize]
    }
}

const TEMPLATES: &[&str] = &[
    "GET k",
    "GET k",
    "SET k v",
    "SET k v",
    "SET k v NX",
    "SET k v XX",
    "SET k v GET",
    "SET k v NX GET",
    "SET k v XX KEEPTTL",
    "SET k v NX XX",
    "SET k v EX t",
    "SET k v PX t",
    "SET k v EX i",
    "SET k v w",
    "SET k v EXAT 99999999999",
    "SETNX k v",
    "SETEX k t v",
    "PSETEX k t v",
    "SETEX k i v",
    "GETSET k v",
    "GETDEL k",
    "GETEX k",
    "GETEX k PERSIST",
    "GETEX k EX t",
    "GETEX k w",
    "MGET k k k",
    "MSET k v k v",
    "MSET k v k",
    "MSETNX k v k v",
    "STRLEN k",
    "APPEND k v",
    "APPEND k n",
    "GETRANGE k i i",
    "SUBSTR k i i",
    "SETRANGE k i v",
    "SETRANGE k i i",
    "INCR k",
    "INCR k",
    "DECR k",
    "INCRBY k n",
    "DECRBY k n",
    "INCRBY k i",
    "INCRBYFLOAT F f",
    "SET F f",
    "DEL k",
    "DEL k k",
    "UNLINK k k k",
    "EXISTS k",
    "EXISTS k k k",
    "TOUCH k k",
    "TYPE k",
    "RENAME k k",
    "RENAMENX k k",
    "COPY k k",
    "COPY k k REPLACE",
    "COPY k k DB d",
    "COPY k k DB i REPLACE",
    "MOVE k d",
    "EXPIRE k t",
    "EXPIRE k u c",
    "EXPIRE k i",
    "PEXPIRE k u c",
    "EXPIREAT k 99999999999 c",
    "EXPIRE k t NX XX",
    "EXPIRE k t GT LT",
    "EXPIRE k t w",
    "PERSIST k",
    "SELECT d",
    "SELECT i",
    "SELECT w",
    "FLUSHDB",
    "PING",
    "PING v",
    "PING v v",
    "ECHO v",
    "ECHO",
    "NONSENSE k v",
    "GET",
    "GET k k",
    "MULTI",
    "EXEC",
    "EXEC",
    "DISCARD",
    "WATCH k",
    "UNWATCH",
    "CLIENT GETNAME",
    "CLIENT SETNAME v",
    "CLIENT NONSENSE",
    "CLIENT REPLY ON",
    "CONFIG NONSENSE",
    "CONFIG GET",
    "COMMAND GETKEYS MSET k v k v",
    "COMMAND GETKEYS GET k",
    "HELLO 2 w",
    "WAIT 0 0",
    "SCAN w",
    "SCAN 0 COUNT 0",
    "SCAN 0 w",
    "SCAN 0 MATCH",
    "LASTSAVE w",
    "AUTH v",
    "AUTH v v v",
    "QUIT w w",
    "RESET w",
    "HELLO 9",
    "HELLO w",
    "FLUSHALL w",
    "FLUSHDB ASYNC",
    "DBSIZE w",
    "TIME w",
    "KEYS nothing*",
    "KEYS k",
];

fn fill(random: &mut Random, template: &str) -> Vec<String> {
    let n = random.next();
    let integers = [
        "0",
        "1",
        "-1",
        "2",
        "3",
        "-3",
        "7",
        "-7",
        "100",
        "9223372036854775807",
        "-9223372036854775808",
        "9223372036854775808",
        "01",
        "+1",
        "1.5",
        "",
        "x",
    ];
    let values = [
        "",
        "a",
        "hello",
        "0",
        "10",
        "-5",
        "9223372036854775807",
        "3.5",
        "012",
        "a b",
        "x\r\ny\u{0}",
        "long long value",
    ];
    let fill = |random: &mut Random, word: &str| match word {
        "k" => random.pick(&["a", "b", "c", "d", "e", "key with blanks", ""]).to_string(),
        "v" => random.pick(&values).to_string(),
        "i" => random.pick(&integers).to_string(),
        "n" => ((random.next() % 2001) as i64 - 1000).to_string(),
        "f" => random
            .pick(&["1", "-1", "0.5", "1.25", "-0.125", "3e2", "nan", "inf", "x", "", "0x", "1.0"])
            .to_string(),
        "t" => random.pick(&["1000", "100000", "5000000", "0", "-1", "x"]).to_string(),
        // Never twice the same: which of two times is the later one must not hang on a millisecond.
        "u" => (100_000 + random.next() % 1_000_000_000).to_string(),
        "c" => random.pick(&["NX", "XX", "GT", "LT", "w"]).to_string(),
        "d" => random.pick(&["0", "0", "1", "15", "16", "-1"]).to_string(),
        "w" => random.pick(&["w", "NX", "\r\n"]).to_string(),
        other if n.is_multiple_of(3) => other.to_lowercase(),
        other => other.to_string(),
    };
    template.split(' ').map(|word| fill(random, word)).collect()
}

/// Ours wake watchers of a key in every database; what they watch is forgotten before it can matter.
fn crosses_databases(command: &[String]) -> bool {
    let name = command[0].to_ascii_uppercase();
    ["FLUSHDB", "FLUSHALL", "SELECT", "MOVE", "COPY"].contains(&name.as_str())
}

#[test]
fn random_commands_get_the_same_replies_from_redis() {
    let Some(redis) = redis() else {
        println!("skipped: no redis-server 7.0 on PATH");
        return;
    };
    let seed = std::env::var("KVSERVER_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    println!("KVSERVER_SEED={seed}");
    let server = Server::start();
    let mut random = Random(seed);
    let (mut ours, mut theirs) = (server.client(), Client::connect(redis.port));
    let mut history: Vec<Vec<String>> = Vec::new();
    for _ in 0..1500 {
        // Pipelines of different lengths: the group's own writes must be seen like committed ones.
        let depth = 1 + random.next() % 40;
        let mut commands: Vec<Vec<String>> = Vec::new();
        for _ in 0..depth {
            let template = random.pick(TEMPLATES);
            let command = fill(&mut random, template);
            if crosses_databases(&command) {
                commands.push(vec!["UNWATCH".into()]);
            }
            commands.push(command);
        }
        let bytes: Vec<u8> = commands.iter().flat_map(|command| request(command)).collect();
        ours.send(&bytes);
        theirs.send(&bytes);
        let mut closed = false;
        for command in &commands {
            history.push(command.clone());
            let (our, their) = (ours.raw(), theirs.raw());
            if our != their {
                let from = history.len().saturating_sub(60);
                panic!(
                    "KVSERVER_SEED={seed}\n{:#?}\n  ours: {:?}\n  redis: {:?}",
                    history[from..].iter().map(|c| c.join(" ")).collect::<Vec<_>>(),
                    String::from_utf8_lossy(&our),
                    String::from_utf8_lossy(&their),
                );
            }
            if command[0].eq_ignore_ascii_case("quit") {
                closed = true;
                break;
            }
        }
        if closed {
            (ours, theirs) = (server.client(), Client::connect(redis.port));
        }
    }
}

#[test]
fn every_reply_is_the_same_in_the_third_protocol() {
    let Some(redis) = redis() else {
        println!("skipped: no redis-server 7.0 on PATH");
        return;
    };
    let server = Server::start();
    let (mut ours, mut theirs) = (server.client(), Client::connect(redis.port));
    for client in [&mut ours, &mut theirs] {
        client.send(b"HELLO 3\r\n");
        client.raw();
    }
    for command in [
        "GET x",
        "SET x 1",
        "GET x",
        "MGET x y",
        "SET x 1 NX",
        "SET x 2 GET",
        "INCRBYFLOAT x 0.5",
        "MULTI",
        "GET x",
        "EXEC",
        "WATCH x",
        "SET x 1",
        "MULTI",
        "EXEC",
        "CONFIG GET save",
        "GETDEL y",
        "SCAN 0",
        "RANDOMKEY",
        "EXISTS x",
        "CLIENT GETNAME",
        "COMMAND INFO nonsense",
        "RESET",
        "GET y",
    ] {
        for client in [&mut ours, &mut theirs] {
            client.send(format!("{command}\r\n").as_bytes());
        }
        let (our, their) = (ours.raw(), theirs.raw());
        assert_eq!(String::from_utf8_lossy(&our), String::from_utf8_lossy(&their), "{command}");
    }
}
