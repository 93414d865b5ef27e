//! A server that is killed again and again, with pipelining clients and a model outside: no acknowledged write is lost, and of
//! those without a reply a prefix of each connection's may have taken effect.
//!
//! The model of a client is what its keys held after the last command whose reply came, and the commands behind that. A connection's
//! commands take effect in order, so after a kill the keys must be what some number of those makes of them.
//! `KILLS` and `KILL_SEED` in the environment set the number of kills per durability and the seed.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use betree_testkit::Rng;

use crate::harness::{BINARY, Server, request};

const CLIENTS: usize = 3;
const KEYS: u64 = 40;

/// One command.
#[derive(Debug, Clone)]
enum Order {
    Set(Vec<(String, String)>),
    Del(Vec<String>),
    Incr(String),
}

impl Order {
    fn draw(rng: &mut Rng, client: usize) -> Self {
        let key = |rng: &mut Rng| format!("c{client}:{}", rng.below(KEYS));
        let pair = |rng: &mut Rng| {
            let len = if rng.chance(0.03) { rng.below(40_000) } else { rng.below(400) };
            let fill = char::from(b'a' + rng.below(26) as u8);
            (key(rng), format!("{}{}", rng.next_u64(), fill.to_string().repeat(len as usize)))
        };
        match rng.below(10) {
            0..5 => Self::Set(vec![pair(rng)]),
            5 => {
                let count = rng.between(2, 8);
                Self::Set((0..count).map(|_| pair(rng)).collect())
            }
            6 | 7 => {
                let count = rng.between(1, 4);
                Self::Del((0..count).map(|_| key(rng)).collect())
            }
            _ => Self::Incr(format!("c{client}:n{}", rng.below(3))),
        }
    }

    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Set(pairs) => {
                let name = if pairs.len() == 1 { "SET" } else { "MSET" };
                let words = pairs.iter().flat_map(|(k, v)| [k.as_str(), v.as_str()]);
                request(&std::iter::once(name).chain(words).collect::<Vec<_>>())
            }
            Self::Del(keys) => {
                request(&std::iter::once("DEL").chain(keys.iter().map(String::as_str)).collect::<Vec<_>>())
            }
            Self::Incr(key) => request(&["INCR", key]),
        }
    }

    /// Applies it; the reply.
    fn apply(&self, model: &mut BTreeMap<String, String>) -> String {
        match self {
            Self::Set(pairs) => {
                pairs.iter().for_each(|(k, v)| drop(model.insert(k.clone(), v.clone())));
                "+OK".into()
            }
            Self::Del(keys) => format!(":{}", keys.iter().filter(|key| model.remove(*key).is_some()).count()),
            Self::Incr(key) => {
                let value = model.get(key).map_or(0, |v| v.parse::<i64>().unwrap()) + 1;
                model.insert(key.clone(), value.to_string());
                format!(":{value}")
            }
        }
    }
}

/// What the keys of one client must hold.
#[derive(Default)]
struct Model {
    acknowledged: BTreeMap<String, String>,
    in_flight: VecDeque<Order>,
    replies: u64,
}

/// Sends pipelines until the server is gone.
fn write_until_killed(port: u16, client: usize, seed: u64, model: &mut Model) {
    let mut rng = Rng::new(seed);
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) else { return };
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut stream = BufReader::new(stream);
    loop {
        let mut bytes = Vec::new();
        for _ in 0..rng.between(1, 30) {
            let write = Order::draw(&mut rng, client);
            bytes.extend(write.encode());
            model.in_flight.push_back(write);
        }
        if stream.get_mut().write_all(&bytes).is_err() {
            return;
        }
        while let Some(write) = model.in_flight.front() {
            let mut line = String::new();
            if stream.read_line(&mut line).unwrap_or(0) == 0 || !line.ends_with("\r\n") {
                return;
            }
            let expected = write.apply(&mut model.acknowledged);
            assert_eq!(line.trim_end(), expected, "the reply to {write:?}");
            model.in_flight.pop_front();
            model.replies += 1;
        }
    }
}

/// What the server holds of a client's keys.
fn read(server: &Server, client: usize) -> BTreeMap<String, String> {
    let mut c = server.client();
    let keys = (0..KEYS).map(|k| format!("c{client}:{k}")).chain((0..3).map(|n| format!("c{client}:n{n}")));
    let mut found = BTreeMap::new();
    let keys: Vec<String> = keys.collect();
    keys.iter().for_each(|key| c.send(&request(&["GET", key])));
    for key in keys {
        let raw = c.raw();
        let text = String::from_utf8(raw).unwrap();
        if let Some((head, value)) = text.split_once("\r\n")
            && !head.starts_with("$-1")
            && !head.starts_with('_')
        {
            assert!(head.starts_with('$'), "{head}");
            found.insert(key, value.trim_end().to_string());
        }
    }
    found
}

/// Requires of a client's keys what is allowed, and takes it over.
fn verify(found: BTreeMap<String, String>, model: &mut Model, context: &str) {
    let mut state = model.acknowledged.clone();
    let in_flight = std::mem::take(&mut model.in_flight);
    let count = in_flight.len();
    for write in in_flight {
        if state == found {
            break;
        }
        write.apply(&mut state);
    }
    if state != found {
        let differs = |(k, v): &(&String, &String)| model.acknowledged.get(*k) != Some(v);
        let found: Vec<_> =
            found.iter().filter(differs).map(|(k, v)| (k, v.get(..30).unwrap_or(v))).collect();
        panic!("{context}: no prefix of the {count} commands in flight explains {found:?}");
    }
    model.acknowledged = state;
}

fn kill_loop(durability: &str) {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let kills = number("KILLS").unwrap_or(20);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = number("KILL_SEED").unwrap_or(now >> 10);
    println!("KILL_SEED={seed} KILLS={kills} {durability}");
    let mut rng = Rng::new(seed);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let arguments = ["--memory", "4MiB", "--durability", durability];
    let mut models: Vec<Model> = (0..CLIENTS).map(|_| Model::default()).collect();
    let started = Instant::now();
    let (mut early, mut checks) = (0, 0);
    for kill in 0..kills {
        let context = format!("KILL_SEED={seed}, kill {kill}");
        if rng.chance(0.3) {
            // On the way through recovery, or before it.
            let mut child = start_silently(&path, &arguments);
            std::thread::sleep(Duration::from_micros(rng.below(20_000)));
            child.kill().unwrap();
            child.wait().unwrap();
            early += 1;
            continue;
        }
        let server = Server::at(&path, &arguments);
        for (client, model) in models.iter_mut().enumerate() {
            verify(read(&server, client), model, &context);
        }
        let moment = Duration::from_micros(rng.below(40_000));
        let seeds: Vec<u64> = (0..CLIENTS).map(|_| rng.next_u64()).collect();
        std::thread::scope(|scope| {
            for ((client, model), seed) in models.iter_mut().enumerate().zip(seeds) {
                let port = server.port;
                scope.spawn(move || write_until_killed(port, client, seed, model));
            }
            std::thread::sleep(moment);
            server.signal("-KILL");
        });
        drop(server);
        if kill % 25 == 24 || kill + 1 == kills {
            let output = Command::new(BINARY).arg("check").arg("--dir").arg(&path).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && text.ends_with("clean\n"), "{context}: {text}");
            checks += 1;
        }
        if kill % 100 == 99 {
            let replies: u64 = models.iter().map(|m| m.replies).sum();
            println!("{:>5} s  {} kills, {replies} replies", started.elapsed().as_secs(), kill + 1);
        }
    }
    let server = Server::at(&path, &arguments);
    for (client, model) in models.iter_mut().enumerate() {
        verify(read(&server, client), model, &format!("KILL_SEED={seed}, after the last kill"));
    }
    let replies: u64 = models.iter().map(|m| m.replies).sum();
    println!("held: {kills} kills, {early} of them early, {replies} replies, {checks} checks");
    assert!(replies > 0);
}

fn start_silently(path: &Path, arguments: &[&str]) -> std::process::Child {
    Command::new(BINARY)
        .args(["serve", "--listen", "127.0.0.1:0", "--dir"])
        .arg(path)
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn no_kill_of_a_buffered_server_loses_what_it_acknowledged() {
    kill_loop("buffered");
}

#[test]
fn no_kill_of_a_syncing_server_loses_what_it_acknowledged() {
    kill_loop("sync");
}
