//! Frames that are wrong: the right error or a clean close, and a server that lives on.

use std::net::Shutdown;

use crate::harness::{Server, request};

#[test]
fn each_malformed_frame_is_named_and_the_connection_closed() {
    let server = Server::start();
    let digits = "1".repeat(70_000);
    let cases: &[(&str, &str)] = &[
        ("*9223372036854775808\r\n", "invalid multibulk length"),
        ("*18446744073709551617\r\n", "invalid multibulk length"),
        ("*+1\r\n", "invalid multibulk length"),
        ("*01\r\n", "invalid multibulk length"),
        ("*1e3\r\n", "invalid multibulk length"),
        ("*0x10\r\n", "invalid multibulk length"),
        ("*2147483647\r\n", "invalid multibulk length"),
        ("*1\r\n$9223372036854775808\r\n", "invalid bulk length"),
        ("*1\r\n$-1\r\n", "invalid bulk length"),
        ("*1\r\n$536870913\r\n", "invalid bulk length"),
        ("*1\r\nPING\r\n", "expected '$', got 'P'"),
        ("*2\r\n$4\r\nECHO\r\n*1\r\n$1\r\na\r\n", "expected '$', got '*'"),
        ("*1\r\n$4\r\nPINGPONG\r\n", "invalid bulk length: the bulk string does not end where it should"),
        ("*1\r$4\r\nPING\r\n", "invalid multibulk length"),
        (&format!("*{digits}"), "too big mbulk count string"),
        (&format!("*1\r\n${digits}"), "too big bulk count string"),
        (&digits, "too big inline request"),
        ("SET a \"b\r\n", "unbalanced quotes in request"),
        ("SET a \"b\"c\r\n", "unbalanced quotes in request"),
        ("SET a 'b\r\n", "unbalanced quotes in request"),
    ];
    for (frame, expected) in cases {
        let mut c = server.client();
        c.send(frame.as_bytes());
        let _ = c.stream.get_ref().shutdown(Shutdown::Write);
        let answer = String::from_utf8(c.rest()).unwrap();
        let shown = &frame[..frame.len().min(40)];
        assert_eq!(answer, format!("-ERR Protocol error: {expected}\r\n"), "{shown:?}");
    }
    assert_eq!(server.client().run("PING"), "+PONG");
}

#[test]
fn empty_requests_are_passed_over_in_every_order() {
    let server = Server::start();
    let empty: [&[u8]; 4] = [b"\r\n", b"*0\r\n", b"*-1\r\n", b"   \r\n"];
    for a in empty {
        for b in empty {
            let mut c = server.client();
            c.send(&[a, b, b"PING\r\n", b, a, &request(&["ECHO", ""])].concat());
            assert_eq!([c.reply(), c.reply()], ["+PONG", "\"\""]);
        }
    }
}

#[test]
fn announced_lengths_followed_by_silence_cost_nothing() {
    let server = Server::start();
    let mut c = server.client();
    c.run("PING");
    let before = server.resident();
    let mut waiting = Vec::new();
    for _ in 0..50 {
        let mut client = server.client();
        client.send(b"*1048576\r\n$536870912\r\nx");
        waiting.push(client);
    }
    for _ in 0..50 {
        assert_eq!(c.run("PING"), "+PONG");
    }
    assert!(server.resident() < before + (32 << 20));
    // Half a command, then the end: from either side of the socket.
    drop(waiting);
    assert_eq!(c.run("PING"), "+PONG");
}

#[test]
fn other_protocols_on_the_port_are_shown_the_door() {
    let server = Server::start();
    let mut c = server.client();
    c.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let answer = String::from_utf8(c.rest()).unwrap();
    assert_eq!(answer, "-ERR wrong number of arguments for 'get' command\r\n");
    let mut c = server.client();
    c.send(b"POST / HTTP/1.1\r\nContent-Length: 12\r\n\r\nSET a hacked\r\n");
    assert!(c.rest().is_empty());
    let mut c = server.client();
    c.send(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03, b'\n']);
    assert!(c.reply().starts_with("-ERR unknown command"));
    assert_eq!(server.client().run("GET a"), "nil");
}

#[test]
fn names_in_errors_cannot_forge_replies() {
    let server = Server::start();
    let mut c = server.client();
    c.send(&request(&["no\r\n+OK", "a\r\n:1\0b"]));
    let raw = c.raw();
    assert_eq!(raw.iter().filter(|&&b| b == b'\n').count(), 1);
    assert_eq!(c.run("PING"), "+PONG");
    let long = "x".repeat(1000);
    assert!(c.call(&[&long, &long]).len() < 400);
}

#[test]
fn one_byte_for_each_packet_is_enough() {
    let server = Server::start();
    let mut c = server.client();
    let bytes = [request(&["SET", "a", "1\r\n2"]), b"GET a\r\n".to_vec()].concat();
    for byte in bytes {
        c.send(&[byte]);
    }
    assert_eq!([c.reply(), c.reply()], ["+OK", "\"1\\r\\n2\""]);
}

#[test]
fn frames_before_authentication_are_small() {
    let server = Server::with(&["--requirepass", "secret"]);
    for (frame, expected) in [
        ("*11\r\n", "unauthenticated multibulk length"),
        ("*2\r\n$4\r\nAUTH\r\n$16385\r\n", "unauthenticated bulk length"),
    ] {
        let mut c = server.client();
        c.send(frame.as_bytes());
        assert_eq!(String::from_utf8(c.rest()).unwrap(), format!("-ERR Protocol error: {expected}\r\n"));
    }
    let mut c = server.client();
    c.script("AUTH secret => +OK\n PING => +PONG");
}

#[test]
fn keys_over_the_limit_are_refused_by_name() {
    let server = Server::start();
    let mut c = server.client();
    let (longest, too_long) = ("k".repeat(65_535), "k".repeat(65_536));
    assert_eq!(c.call(&["SET", &longest, "v"]), "+OK");
    assert_eq!(c.call(&["GET", &longest]), "\"v\"");
    for command in
        [vec!["SET", &too_long, "v"], vec!["GET", &too_long], vec!["MSET", "a", "1", &too_long, "2"]]
    {
        assert_eq!(c.call(&command), "-ERR key of 65536 bytes is over the limit of 65535");
    }
    assert_eq!(c.run("EXISTS a"), ":0");
    assert_eq!(c.call(&["DELRANGE", "k", "+"]), "+OK");
    assert_eq!(c.call(&["EXISTS", &longest]), ":0");
    assert_eq!(c.call(&["SET", "", "empty key"]), "+OK");
    assert_eq!(c.call(&["GET", ""]), "\"empty key\"");
}

#[test]
fn a_large_transaction_is_bounded() {
    let server = Server::start();
    let mut c = server.client();
    c.run("MULTI");
    let value = "v".repeat(1 << 20);
    let replies: Vec<String> = (0..70).map(|_| c.call(&["SET", "k", &value])).collect();
    assert_eq!(replies[0], "+QUEUED");
    assert!(replies[69].starts_with("-ERR the transaction is too large"));
    assert!(c.run("EXEC").starts_with("-EXECABORT"));
    assert_eq!(c.run("EXISTS k"), ":0");
}
