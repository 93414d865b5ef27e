//! Many commands in one packet: order, effects on each other, limits.

use crate::harness::{Server, request};

#[test]
fn a_pipeline_sees_its_own_writes() {
    let server = Server::start();
    let mut c = server.client();
    let mut bytes = Vec::new();
    let mut expected = Vec::new();
    let mut add = |command: &str, reply: &str| {
        bytes.extend(request(&command.split(' ').collect::<Vec<_>>()));
        expected.push(reply.to_string());
    };
    for i in 1..=300 {
        add(&format!("SET a {i}"), "+OK");
        add("INCR a", &format!(":{}", i + 1));
        add("GET a", &format!("\"{}\"", i + 1));
        add("APPEND b x", &format!(":{i}"));
        add("DEL a a", ":1");
        add("EXISTS a", ":0");
    }
    add("RANGE - + KEYSONLY", "[\"b\"]");
    add("SET a 1", "+OK");
    add("DELRANGE - +", "+OK");
    add("GET a", "nil");
    add("WATCH a", "+OK");
    add("SET a 2", "+OK");
    add("SELECT 1", "+OK");
    add("GET a", "nil");
    add("SET a 3", "+OK");
    add("SELECT 0", "+OK");
    add("GET a", "\"2\"");
    c.send(&bytes);
    for (i, expected) in expected.iter().enumerate() {
        assert_eq!(c.reply(), *expected, "command {i}");
    }
}

#[test]
fn neighbouring_writes_share_one_batch() {
    let server = Server::start();
    let mut c = server.client();
    c.run("CONFIG RESETSTAT");
    let bytes: Vec<u8> = (0..1000).flat_map(|i| request(&["SET", &format!("k{i}"), "v"])).collect();
    c.send(&bytes);
    (0..1000).for_each(|_| assert_eq!(c.reply(), "+OK"));
    let info = c.run("INFO stats");
    let batches: u64 =
        info.split("write_batches:").nth(1).unwrap().split('\\').next().unwrap().parse().unwrap();
    assert!(batches < 100, "{batches} batches for 1000 writes");
}

#[test]
fn a_client_that_sends_everything_before_it_reads_gets_every_reply() {
    let server = Server::start();
    let mut c = server.client();
    c.call(&["SET", "k", &"v".repeat(1000)]);
    let bytes = request(&["GET", "k"]).repeat(20_000);
    c.send(&bytes);
    for _ in 0..20_000 {
        assert_eq!(c.raw().len(), 1009);
    }
}

#[test]
fn a_client_that_never_reads_is_held_back_and_others_are_served() {
    let server = Server::with(&["--output-limit", "64KiB"]);
    let mut deaf = server.client();
    deaf.call(&["SET", "k", &"v".repeat(100_000)]);
    deaf.stream.get_ref().set_nonblocking(true).unwrap();
    let bytes = request(&["GET", "k"]).repeat(50_000);
    let _ = std::io::Write::write(deaf.stream.get_mut(), &bytes);
    let mut c = server.client();
    for _ in 0..200 {
        assert_eq!(c.run("PING"), "+PONG");
    }
    // 5 GB were asked for.
    assert!(server.resident() < 400 << 20, "{} MiB", server.resident() >> 20);
}

#[test]
fn values_may_be_large_and_then_changed() {
    let server = Server::start();
    let mut c = server.client();
    let large = vec![b'x'; 20 << 20];
    assert_eq!(c.call(&[b"SET".as_slice(), b"k", &large]), "+OK");
    assert_eq!(c.run("STRLEN k"), format!(":{}", large.len()));
    // Too large to be kept beside the batch, so the read has to commit first.
    c.send(&[request(&[b"SET".as_slice(), b"l", &large]), request(&["APPEND", "l", "y"])].concat());
    assert_eq!([c.reply(), c.reply()], ["+OK".to_string(), format!(":{}", large.len() + 1)]);
    assert_eq!(c.run("GETRANGE l -2 -1"), "\"xy\"");
}

/// Several connections of one thread read and change what is not in memory: commands are given up and executed again, and nobody sees it.
#[test]
fn pipelines_on_cold_keys_are_answered_in_order_and_once() {
    const KEYS: usize = 4000;
    let dir = tempfile::tempdir().unwrap();
    let server = Server::at(dir.path(), &["--memory", "2MiB", "--threads", "1"]);
    let value = |client: usize, i: usize| format!("{client}:{i}:{}", "v".repeat(300 + i % 200));
    let mut clients: Vec<_> = (0..4).map(|_| server.client()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        let set = |i: usize| match i % 10 {
            0 => request(&["SET", &format!("{n}:{i}"), &i.to_string()]),
            _ => request(&["SET", &format!("{n}:{i}"), &value(n, i)]),
        };
        client.send(&(0..KEYS).flat_map(set).collect::<Vec<u8>>());
        (0..KEYS).for_each(|_| assert_eq!(client.reply(), "+OK"));
    }
    clients[0].run("CONFIG RESETSTAT");
    let work: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(n, mut client)| {
            std::thread::spawn(move || {
                let key = |i: usize| format!("{n}:{i}");
                let quoted = |i: usize| format!("\"{}\"", value(n, i));
                for round in 0..20 {
                    let (mut bytes, mut expected) = (Vec::new(), Vec::new());
                    let mut add = |command: &[&str], reply: String| {
                        bytes.extend(request(command));
                        expected.push(reply);
                    };
                    for at in 0..20 {
                        // Ten keys that nobody has asked for yet.
                        let first = (round * 20 + at) * 10;
                        let keys: Vec<_> = (first..first + 10).map(key).collect();
                        let k = |i: usize| keys[i].as_str();
                        add(&["INCR", k(0)], format!(":{}", first + 1));
                        add(&["GET", k(1)], quoted(first + 1));
                        add(&["GETDEL", k(1)], quoted(first + 1));
                        add(&["GET", k(1)], "nil".into());
                        add(&["SETNX", k(2), "other"], ":0".into());
                        add(&["SETNX", &format!("{n}:absent"), "x"], ":1".into());
                        add(&["DEL", &format!("{n}:absent")], ":1".into());
                        add(&["APPEND", k(3), "!"], format!(":{}", value(n, first + 3).len() + 1));
                        add(&["STRLEN", k(3)], format!(":{}", value(n, first + 3).len() + 1));
                        add(&["MGET", k(4), "none", k(5)], {
                            format!("[{} nil {}]", quoted(first + 4), quoted(first + 5))
                        });
                        add(&["EXISTS", k(6), k(6), "none"], ":2".into());
                        add(&["RENAME", k(6), k(1)], "+OK".into());
                        add(&["GET", k(1)], quoted(first + 6));
                        add(&["MULTI"], "+OK".into());
                        add(&["GET", k(7)], "+QUEUED".into());
                        add(&["SET", k(7), "new", "GET"], "+QUEUED".into());
                        add(&["EXEC"], format!("[{} {}]", quoted(first + 7), quoted(first + 7)));
                        add(&["SELECT", "1"], "+OK".into());
                        add(&["GET", k(8)], "nil".into());
                        add(&["SELECT", "0"], "+OK".into());
                        add(&["EXPIRE", k(8), "1000"], ":1".into());
                        add(&["GET", k(8)], quoted(first + 8));
                        add(&["INCR", k(9)], "-ERR value is not an integer or out of range".into());
                    }
                    client.send(&bytes);
                    for (i, expected) in expected.iter().enumerate() {
                        assert_eq!(client.reply(), *expected, "client {n}, round {round}, command {i}");
                    }
                }
            })
        })
        .collect();
    work.into_iter().for_each(|client| client.join().unwrap());
    let info = server.client().run("INFO all");
    let calls = |name: &str| {
        let text = info.split(&format!("cmdstat_{name}:calls=")).nth(1).expect("a line of its own");
        text.split([',', '\\']).next().unwrap().parse::<u64>().unwrap()
    };
    // Each counts once, however often it was begun.
    assert_eq!((calls("incr"), calls("get"), calls("mget")), (3200, 9600, 1600), "{info}");
}
