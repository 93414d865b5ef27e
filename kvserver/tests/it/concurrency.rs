//! Many connections at once.

use crate::harness::{Server, request};

#[test]
fn increments_of_many_connections_sum_up() {
    for durability in ["buffered", "sync"] {
        let server = Server::with(&["--durability", durability, "--threads", "4"]);
        let (connections, rounds, depth) = if durability == "sync" { (8, 5, 20) } else { (8, 50, 20) };
        std::thread::scope(|scope| {
            for i in 0..connections {
                let mut c = server.client();
                scope.spawn(move || {
                    for _ in 0..rounds {
                        // In opposite orders, so that locks taken one by one would meet head on.
                        let pair = if i % 2 == 0 { ["x", "y"] } else { ["y", "x"] };
                        let bytes: Vec<u8> = (0..depth)
                            .flat_map(|_| {
                                [request(&["INCR", pair[0]]), request(&["INCRBY", pair[1], "2"])].concat()
                            })
                            .collect();
                        c.send(&bytes);
                        (0..2 * depth).for_each(|_| assert!(c.reply().starts_with(':')));
                    }
                });
            }
        });
        let each = connections * rounds * depth;
        let sum = each / 2 * 3;
        assert_eq!(server.client().run("MGET x y"), format!("[\"{sum}\" \"{sum}\"]"), "{durability}");
    }
}

#[test]
fn a_blind_set_takes_its_place_among_increments() {
    let server = Server::with(&["--threads", "4"]);
    let rounds = 2000;
    std::thread::scope(|scope| {
        let (mut a, mut b) = (server.client(), server.client());
        scope.spawn(move || (0..rounds).for_each(|_| assert!(a.run("INCR n").starts_with(':'))));
        scope.spawn(move || {
            for i in 0..rounds {
                // Only this connection raises the value by so much: were an INCR to overwrite a SET, it would fall.
                let base = i * 1_000_000;
                assert_eq!(b.run(&format!("SET n {base}")), "+OK");
                let seen: i64 = b.run("GET n").trim_matches('"').parse().unwrap();
                assert!((base..base + 1_000_000).contains(&seen), "{seen} after SET {base}");
            }
        });
    });
}

#[test]
fn only_one_of_many_takes_a_lock() {
    let server = Server::with(&["--threads", "4"]);
    let taken: usize = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..8)
            .map(|_| {
                let mut c = server.client();
                scope.spawn(move || {
                    (0..200).filter(|i| c.run(&format!("SET lock:{i} me NX")) == "+OK").count()
                })
            })
            .collect();
        tries.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(taken, 200);
}

#[test]
fn transactions_move_without_losing() {
    let server = Server::with(&["--threads", "4"]);
    server.client().run("MSET a 1000 b 1000");
    std::thread::scope(|scope| {
        for i in 0..4 {
            let mut c = server.client();
            scope.spawn(move || {
                for _ in 0..100 {
                    let (from, to) = if i % 2 == 0 { ("a", "b") } else { ("b", "a") };
                    c.send(format!("MULTI\r\nDECR {from}\r\nINCR {to}\r\nMGET a b\r\nEXEC\r\n").as_bytes());
                    (0..4).for_each(|_| drop(c.reply()));
                    let reply = c.reply();
                    let sum: i64 = reply.split('"').filter_map(|word| word.parse::<i64>().ok()).sum();
                    assert_eq!(sum, 2000, "{reply}");
                }
            });
        }
    });
}

#[test]
fn watched_counters_lose_nothing() {
    let server = Server::with(&["--threads", "4"]);
    server.client().run("SET n 0");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let mut c = server.client();
            scope.spawn(move || {
                let mut done = 0;
                while done < 50 {
                    c.run("WATCH n");
                    let n: i64 = c.run("GET n").trim_matches('"').parse().unwrap();
                    c.run("MULTI");
                    c.run(&format!("SET n {}", n + 1));
                    done += i32::from(c.run("EXEC") == "[+OK]");
                }
            });
        }
    });
    assert_eq!(server.client().run("GET n"), "\"200\"");
}

#[test]
fn clients_over_the_limit_are_told_so() {
    let server = Server::with(&["--maxclients", "500"]);
    let mut clients: Vec<_> = (0..500).map(|_| server.client()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.run("PING"), "+PONG"));
    let mut one_more = server.client();
    assert_eq!(one_more.rest(), b"-ERR max number of clients reached\r\n");
    drop(clients);
    for _ in 0..100 {
        let mut c = server.client();
        c.send(b"PING\r\n");
        if c.raw() == b"+PONG\r\n" {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("no room after the others left");
}
