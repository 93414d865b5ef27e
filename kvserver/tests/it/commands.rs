//! What each command answers.

use crate::harness::{Server, request};

#[test]
fn strings_are_set_read_and_changed() {
    let server = Server::start();
    let mut c = server.client();
    c.script(
        r#"
        GET a => nil
        SET a 1 => +OK
        GET a => "1"
        SET a 2 NX => nil
        SET b 2 XX => nil
        SET b 2 NX => +OK
        SET b 3 XX GET => "2"
        SET b 4 NX XX => -ERR syntax error
        SETNX a 9 => :0
        SETNX n 9 => :1
        GETSET a 5 => "1"
        GETDEL n => "9"
        GETDEL n => nil
        MSET a 1 b 2 c 3 => +OK
        MSET a 1 b => -ERR wrong number of arguments for 'mset' command
        MGET a x b a => ["1" nil "2" "1"]
        MSETNX x 1 x 2 => :1
        GET x => "2"
        MSETNX x 3 y 4 => :0
        EXISTS y => :0
        STRLEN a => :1
        STRLEN nothing => :0
        APPEND a 23 => :3
        APPEND fresh xyz => :3
        GET a => "123"
        GETRANGE a 0 -1 => "123"
        GETRANGE a -2 -1 => "23"
        GETRANGE a 5 9 => ""
        GETRANGE a -1 -2 => ""
        GETRANGE a -9223372036854775808 9223372036854775807 => "123"
        SUBSTR a 1 1 => "2"
        SETRANGE a 5 z => :6
        GET a => "123\x00\x00z"
        SETRANGE a -1 z => -ERR offset is out of range
        SETRANGE a 536870912 z => -ERR string exceeds maximum allowed size (proto-max-bulk-len)
        SETRANGE a 9223372036854775807 z => -ERR string exceeds maximum allowed size (proto-max-bulk-len)
        GET => -ERR wrong number of arguments for 'get' command
        "#,
    );
}

#[test]
fn counters_are_strict_about_what_a_number_is() {
    let server = Server::start();
    let mut c = server.client();
    c.script(
        r#"
        INCR n => :1
        INCRBY n 41 => :42
        DECR n => :41
        DECRBY n 1 => :40
        GET n => "40"
        SET n 012 => +OK
        INCR n => -ERR value is not an integer or out of range
        SET n +1 => +OK
        INCR n => -ERR value is not an integer or out of range
        SET n 9223372036854775807 => +OK
        INCR n => -ERR increment or decrement would overflow
        DECRBY n -9223372036854775808 => -ERR decrement would overflow
        INCRBY n 1.5 => -ERR value is not an integer or out of range
        SET f 10.5 => +OK
        INCRBYFLOAT f 0.1 => "10.6"
        INCRBYFLOAT f -10.6 => "0"
        INCRBYFLOAT f 5.0e3 => "5000"
        INCRBYFLOAT f nan => -ERR value is not a valid float
        INCRBYFLOAT f inf => -ERR increment would produce NaN or Infinity
        GET f => "5000"
        "#,
    );
    assert_eq!(c.call(&["SET", "n", " 1"]), "+OK");
    assert_eq!(c.run("INCR n"), "-ERR value is not an integer or out of range");
}

#[test]
fn keys_are_removed_counted_renamed_and_copied() {
    let server = Server::start();
    let mut c = server.client();
    c.script(
        r#"
        MSET a 1 b 2 c 3 => +OK
        EXISTS a b a x => :3
        DEL a a x => :1
        UNLINK b => :1
        UPDEL c x => +OK
        EXISTS a b c => :0
        SET a 1 => +OK
        DBSIZE => :1
        TYPE a => +string
        TYPE b => +none
        RENAME b a => -ERR no such key
        RENAME a a => +OK
        RENAME a b => +OK
        GET a => nil
        GET b => "1"
        SET c 2 => +OK
        RENAMENX b c => :0
        RENAMENX b d => :1
        COPY d d => -ERR source and destination objects are the same
        COPY d e => :1
        COPY d c => :0
        COPY d c REPLACE => :1
        GET c => "1"
        COPY d d DB 3 => :1
        MOVE d 3 => :0
        MOVE c 3 => :1
        SELECT 3 => +OK
        MGET c d => ["1" "1"]
        SELECT 16 => -ERR DB index is out of range
        SELECT 0 => +OK
        EXISTS c d e => :2
        FLUSHDB => +OK
        RANDOMKEY => nil
        EXISTS d e => :0
        SET only 1 => +OK
        RANDOMKEY => "only"
        SELECT 3 => +OK
        EXISTS c d => :2
        FLUSHALL ASYNC => +OK
        EXISTS c d => :0
        DBSIZE => :0
        "#,
    );
}

#[test]
fn ranges_are_read_in_byte_order_from_either_end() {
    let server = Server::start();
    let mut c = server.client();
    c.script(
        r#"
        MSET a 1 b 2 ba 3 c 4 => +OK
        RANGE - + => ["a" "1" "b" "2" "ba" "3" "c" "4"]
        RANGE - + REV LIMIT 2 => ["c" "4" "ba" "3"]
        RANGE a b => ["a" "1" "b" "2"]
        RANGE (a (c => ["b" "2" "ba" "3"]
        RANGE [a [b KEYSONLY => ["a" "b"]
        RANGE a + LIMIT 0 => []
        RANGE - + BYTES 4 => ["a" "1" "b" "2"]
        RANGE - + BYTES 0 => ["a" "1"]
        RANGE c a => []
        RANGE + - => []
        RANGE a b LIMIT -1 => -ERR value is not an integer or out of range
        RANGE a b NONSENSE => -ERR syntax error
        RANGE a => -ERR wrong number of arguments for 'range' command
        PREFIX b => ["b" "2" "ba" "3"]
        PREFIX b REV KEYSONLY LIMIT 1 => ["ba"]
        COUNTRANGE - + => :4
        COUNTRANGE - + LIMIT 3 => :3
        COUNTRANGE b c => :3
        DELRANGE (a (c => +OK
        RANGE - + KEYSONLY => ["a" "c"]
        DELRANGE c a => +OK
        DELRANGE b + => +OK
        RANGE - + KEYSONLY => ["a"]
        DELRANGE - + => +OK
        COUNTRANGE - + => :0
        "#,
    );
    assert_eq!(c.call(&["SET", "\u{0}\r\n", "x"]), "+OK");
    assert_eq!(c.run("RANGE - + KEYSONLY"), r#"["\x00\r\n"]"#);
}

#[test]
fn a_scan_meets_every_key_that_stays_while_others_come_and_go() {
    let server = Server::start();
    let mut c = server.client();
    for i in 0..500 {
        c.run(&format!("SET stays:{i:03} x"));
    }
    let (mut cursor, mut seen) = ("0".to_string(), std::collections::BTreeSet::new());
    for round in 0.. {
        let reply = c.run(&format!("SCAN {cursor} COUNT 7"));
        let words: Vec<&str> = reply.trim_matches(['[', ']']).split(' ').collect();
        cursor = words[0].trim_matches('"').to_string();
        seen.extend(words[1..].iter().map(|w| w.trim_matches(['[', ']', '"']).to_string()));
        if cursor == "0" {
            break;
        }
        // Cursors are numbers, and writes around the position do not disturb them.
        cursor.parse::<i64>().unwrap();
        c.run(&format!("SET goes:{round} x"));
        c.run(&format!("DEL goes:{}", round - 1));
    }
    assert_eq!(seen.iter().filter(|key| key.starts_with("stays:")).count(), 500);
    c.script(
        r#"
        SCAN 0 MATCH stays:00[12] COUNT 1000 => ["0" ["stays:001" "stays:002"]]
        SCAN 0 MATCH stays:001 TYPE hash COUNT 1000 => ["0" []]
        SCAN x => -ERR invalid cursor
        SCAN 12345 => -ERR invalid cursor: not known (any more), start again at 0
        SCAN 0 COUNT 0 => -ERR syntax error
        SCAN 0 COUNT x => -ERR value is not an integer or out of range
        SCAN 0 MATCH => -ERR syntax error
        KEYS stays:49? => ["stays:490" "stays:491" "stays:492" "stays:493" "stays:494" "stays:495" "stays:496" "stays:497" "stays:498" "stays:499"]
        KEYS nothing* => []
        "#,
    );
    assert!(c.run("SCAN 0 COUNT 9223372036854775807").starts_with("[\"0\" ["));
}

#[test]
fn keys_expire_for_every_way_of_reading() {
    let server = Server::start();
    let mut c = server.client();
    c.script(
        r#"
        SET k v PX 60 => +OK
        SET l v EX 1000 => +OK
        SETEX m 1000 v => +OK
        TTL l => :1000
        TTL nothing => :-2
        SET p v => +OK
        TTL p => :-1
        EXPIRE p 100 => :1
        EXPIRE p 200 LT => :0
        EXPIRE p 200 GT => :1
        EXPIRE p 300 NX => :0
        EXPIRE nothing 300 => :0
        EXPIRE p 1 NX XX => -ERR NX and XX, GT or LT options at the same time are not compatible
        TTL p => :200
        PERSIST p => :1
        PERSIST p => :0
        TTL p => :-1
        SET q v EX 0 => -ERR invalid expire time in 'set' command
        SET q v EX -1 => -ERR invalid expire time in 'set' command
        SET q v EX 9223372036854775807 => -ERR invalid expire time in 'set' command
        SET q v EX x => -ERR value is not an integer or out of range
        SET q v EX 1 KEEPTTL => -ERR syntax error
        SET l w KEEPTTL => +OK
        TTL l => :1000
        RENAME l l2 => +OK
        TTL l2 => :1000
        APPEND l2 x => :2
        TTL l2 => :1000
        SET l2 plain => +OK
        TTL l2 => :-1
        GETEX l2 EX 500 => "plain"
        TTL l2 => :500
        GETEX l2 PERSIST => "plain"
        TTL l2 => :-1
        EXPIRE l2 -1 => :1
        EXISTS l2 => :0
        "#,
    );
    std::thread::sleep(std::time::Duration::from_millis(80));
    c.script(
        r#"
        GET k => nil
        EXISTS k => :0
        RANGE k k => []
        KEYS k => []
        SCAN 0 MATCH k COUNT 100 => ["0" []]
        PTTL k => :-2
        INCR k => :1
        TTL k => :-1
        "#,
    );
}

#[test]
fn the_purge_removes_expired_keys_and_only_those() {
    let server = Server::start();
    let mut c = server.client();
    c.script(
        "SET gone v PX 1 => +OK\n SET kept v PX 1 => +OK\n SET kept w => +OK\n SET later v EX 1000 => +OK",
    );
    for _ in 0..500 {
        if c.run("INFO stats").contains("expired_keys:1\\r\\n") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(c.run("INFO stats").contains("expired_keys:1\\r\\n"));
    assert_eq!(c.run("MGET gone kept later"), r#"[nil "w" "v"]"#);
}

#[test]
fn the_handshakes_of_clients_are_answered() {
    let server = Server::start();
    let mut c = server.client();
    c.script(
        r#"
        PING => +PONG
        PING hi => "hi"
        ECHO hi => "hi"
        HELLO 4 => -NOPROTO unsupported protocol version
        HELLO x => -ERR Protocol version is not an integer or out of range
        CLIENT SETNAME me => +OK
        CLIENT GETNAME => "me"
        CLIENT SETINFO lib-name x => +OK
        CLIENT SETINFO nonsense x => -ERR Unrecognized option 'nonsense'
        CLIENT NO-EVICT on => +OK
        CLIENT NO-TOUCH off => +OK
        CLIENT NONSENSE => -ERR unknown subcommand 'NONSENSE'. Try CLIENT HELP.
        CLIENT GETNAME x => -ERR wrong number of arguments for 'client|getname' command
        CONFIG GET save => ["save" ""]
        CONFIG GET appendonly => ["appendonly" "yes"]
        CONFIG GET max*s => ["maxclients" "10000"]
        CONFIG SET maxclients 500 => +OK
        CONFIG GET maxclients => ["maxclients" "500"]
        CONFIG SET maxclients 0 => -ERR CONFIG SET failed (possibly related to argument 'maxclients') - argument must be between 1 and 1000000 inclusive
        CONFIG SET nonsense 1 => -ERR Unknown option or number of arguments for CONFIG SET - 'nonsense'
        CONFIG RESETSTAT => +OK
        COMMAND GETKEYS MSET a 1 b 2 => ["a" "b"]
        COMMAND GETKEYS PING => -ERR The command has no key arguments
        COMMAND GETKEYS NONSENSE => -ERR Invalid command specified
        COMMAND INFO nonsense => [nil]
        COMMAND DOCS get => ["get" ["summary" "Returns the value of a key." "group" "string"]]
        WAIT 1 0 => :0
        NONSENSE a b => -ERR unknown command 'NONSENSE', with args beginning with: 'a' 'b'
        AUTH x => -ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?
        SAVE => +OK
        RESET => +RESET
        CLIENT GETNAME => nil
        QUIT => +OK
        "#,
    );
    assert!(c.rest().is_empty());
    let mut c = server.client();
    let hello = c.run("HELLO 3 SETNAME three");
    assert!(hello.starts_with("{\"server\" \"redis\"") && hello.contains("\"proto\" :3"), "{hello}");
    assert_eq!(c.run("GET nothing"), "nil");
    c.send(&request(&["GET", "nothing"]));
    assert_eq!(c.raw(), b"_\r\n");
    assert!(c.run("CLIENT LIST").contains("name=three"));
    assert!(c.run("INFO server").contains("redis_version:7"));
    assert!(c.run("INFO keyspace").contains("# Keyspace"));
    assert!(c.run("TIME").starts_with('['));
    assert!(c.run("LASTSAVE").starts_with(':'));
    assert_eq!(c.run("BGSAVE"), "+Background saving started");
}

#[test]
fn replies_can_be_turned_off_and_skipped() {
    let server = Server::start();
    let mut c = server.client();
    c.send(b"CLIENT REPLY OFF\r\nSET a 1\r\nGET a\r\nCLIENT REPLY ON\r\n");
    assert_eq!(c.reply(), "+OK");
    c.send(b"CLIENT REPLY SKIP\r\nSET a 2\r\nGET a\r\n");
    assert_eq!(c.reply(), "\"2\"");
}

#[test]
fn clients_can_be_killed_also_oneself() {
    let server = Server::start();
    let (mut a, mut b) = (server.client(), server.client());
    let id = b.run("CLIENT ID")[1..].to_string();
    assert_eq!(a.run(&format!("CLIENT KILL ID {id}")), ":1");
    assert!(b.rest().is_empty());
    let own = a.run("CLIENT ID")[1..].to_string();
    a.send(format!("CLIENT KILL ID {own} SKIPME no\r\nPING\r\n").as_bytes());
    assert_eq!(a.rest(), b":1\r\n");
    assert_eq!(server.client().run("PING"), "+PONG");
}

#[test]
fn a_password_stands_before_everything_else() {
    let server = Server::with(&["--requirepass", "secret"]);
    let mut c = server.client();
    c.script(
        r#"
        GET a => -NOAUTH Authentication required.
        PING => -NOAUTH Authentication required.
        AUTH wrong => -WRONGPASS invalid username-password pair or user is disabled.
        AUTH someone secret => -WRONGPASS invalid username-password pair or user is disabled.
        NONSENSE => -ERR unknown command 'NONSENSE', with args beginning with:
        AUTH secret => +OK
        GET a => nil
        RESET => +RESET
        GET a => -NOAUTH Authentication required.
        "#,
    );
    assert!(c.run("HELLO 3").starts_with("-NOAUTH HELLO must be called"));
    assert!(c.run("HELLO 3 AUTH default secret").starts_with('{'));
    assert_eq!(c.run("GET a"), "nil");
    // AUTH and what it allows, in one packet.
    let mut c = server.client();
    let large = "x".repeat(100_000);
    c.send(
        &[request(&["AUTH", "secret"]), request(&["SET", "a", &large]), request(&["STRLEN", "a"])].concat(),
    );
    assert_eq!([c.reply(), c.reply(), c.reply()], ["+OK", "+OK", ":100000"]);
}

#[test]
fn transactions_are_all_or_nothing_and_see_watched_keys_change() {
    let server = Server::start();
    let (mut c, mut other) = (server.client(), server.client());
    c.script(
        r#"
        EXEC => -ERR EXEC without MULTI
        DISCARD => -ERR DISCARD without MULTI
        MULTI => +OK
        MULTI => -ERR MULTI calls can not be nested
        SET a 1 => +QUEUED
        INCR a => +QUEUED
        GET a => +QUEUED
        RANGE - + => +QUEUED
        EXEC => [+OK :2 "2" ["a" "2"]]
        MULTI => +OK
        SET a 5 => +QUEUED
        NONSENSE => -ERR unknown command 'NONSENSE', with args beginning with:
        EXEC => -EXECABORT Transaction discarded because of previous errors.
        GET a => "2"
        MULTI => +OK
        SET a text => +QUEUED
        INCR a => +QUEUED
        SET b 1 => +QUEUED
        EXEC => [+OK -ERR value is not an integer or out of range +OK]
        MULTI => +OK
        FLUSHDB => +QUEUED
        SET b 1 => +QUEUED
        EXEC => [+OK +OK]
        MULTI => +OK
        WATCH a => -ERR WATCH inside MULTI is not allowed
        DISCARD => +OK
        WATCH a => +OK
        "#,
    );
    other.run("SET a 7");
    c.script("MULTI => +OK\n SET a 8 => +QUEUED\n EXEC => nil\n GET a => \"7\"\n WATCH a => +OK");
    c.script("MULTI => +OK\n SET a 8 => +QUEUED\n EXEC => [+OK]\n WATCH a => +OK\n UNWATCH => +OK");
    other.run("SET a 9");
    c.script("MULTI => +OK\n GET a => +QUEUED\n EXEC => [\"9\"]");
}
