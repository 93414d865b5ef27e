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
