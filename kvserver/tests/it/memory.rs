//! The memory budget, seen from outside.

use crate::harness::{Client, Server, request};

/// Beside the budget: the server's threads, the buffers of one connection, what the allocator keeps.
const BESIDE: u64 = 8 << 20;

const RECORDS: u64 = 900_000;
const PIPELINE: u64 = 3000;

fn key(number: u64) -> String {
    format!("{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Sends the commands for the numbers `from..from + PIPELINE` at once, and takes the replies.
fn exchange(
    client: &mut Client,
    from: u64,
    command: impl Fn(u64) -> Vec<u8>,
    is_right: impl Fn(&[u8]) -> bool,
) {
    let commands: Vec<u8> = (from..from + PIPELINE).flat_map(command).collect();
    client.send(&commands);
    for number in from..from + PIPELINE {
        let reply = client.raw();
        assert!(is_right(&reply), "record {number}: {}", String::from_utf8_lossy(&reply));
    }
}

#[test]
fn a_load_of_more_than_fits_and_reads_of_it_stay_within_the_budget() {
    let budget = 32 << 20;
    let dir = tempfile::tempdir().unwrap();
    let server = Server::at(dir.path(), &["--memory", "32MiB"]);
    let mut client = server.client();
    let value = "v".repeat(100);
    let mut most = 0;
    for from in (0..RECORDS).step_by(PIPELINE as usize) {
        exchange(
            &mut client,
            from,
            |number| request(&["SET", &key(number), &value]),
            |reply| reply == b"+OK\r\n",
        );
        most = most.max(server.anonymous());
    }
    assert!(most <= budget + BESIDE, "{} MiB while loading", most >> 20);
    let mut most = 0;
    for from in (0..RECORDS).step_by(RECORDS as usize / 30) {
        exchange(&mut client, from, |number| request(&["GET", &key(number)]), |reply| reply.len() == 108);
        most = most.max(server.anonymous());
    }
    assert!(most <= budget + BESIDE, "{} MiB while reading", most >> 20);
}
