//! The log: files made up by the fuzzer, checksums set where it says so, replayed by the engine's reader and by a second one.

use std::collections::BTreeMap;

use betree_testkit::SimStorage;
use betree_wal::{Lsn, Options, Wal};

use crate::corrupt::log::{Start, Verdict, checksum, replay};

const SALT: u64 = 7;

/// The bytes: beginning, durable end, then per file: number, flags, length, content.
pub fn log(bytes: &[u8]) {
    let mut source = super::Source(bytes);
    let from = u64::from(source.u16());
    let durable = u64::from(source.u16());
    let mut files = BTreeMap::new();
    while !source.is_over() && files.len() < 5 {
        let number = u64::from(source.u8());
        let flags = source.u8();
        let len = usize::from(source.u16()) % 4097;
        let mut content = source.bytes(len);
        if flags & 1 == 1 {
            // What a fuzzer will not guess: salt, number, checksums.
            seal(&mut content, number, flags);
        }
        if flags & 2 == 2 {
            content.resize(4096, 0);
        }
        files.insert(format!("log-{number:016}"), content);
    }
    let (verdict, expected) = replay(&files, Start { salt: SALT, from, durable });
    let disk = SimStorage::new(1);
    files.iter().for_each(|(name, bytes)| disk.put(name, bytes));
    let options = Options { file_bytes: 4096, spare_files: 1, reserve_file: false, salt: SALT };
    let open = |records: &mut Vec<Vec<u8>>| {
        Wal::reopen(disk.as_storage(), options.clone(), Lsn(from), Lsn(durable), &mut |_, record| {
            records.push(record.to_vec());
            Ok(())
        })
    };
    let mut records = Vec::new();
    let (wal, mut appender, _) = match open(&mut records) {
        Ok(opened) => opened,
        Err(error) => {
            assert!(matches!(verdict, Verdict::Refused(_)), "{verdict:?}, but: {error}");
            assert!(error.to_string().contains("log-"), "the error names no file: {error}");
            return;
        }
    };
    assert_eq!(verdict, Verdict::Records(expected.len()), "the log was opened");
    assert!(records == expected, "other records than the second reader's");
    // It goes on behind them.
    let end = appender.append(&[b"one more"]).expect("there is space");
    wal.sync(end).expect("nothing fails");
    drop((wal, appender));
    let mut again = Vec::new();
    open(&mut again).expect("what was opened opens again");
    records.push(b"one more".to_vec());
    assert!(again == records, "other records the second time");
}

fn seal(content: &mut [u8], number: u64, flags: u8) {
    if content.len() < 64 {
        return;
    }
    content[..8].copy_from_slice(b"betreLOG");
    if flags & 4 == 0 {
        content[8..12].copy_from_slice(&3u32.to_le_bytes());
        content[12..16].fill(0);
        content[48..60].fill(0);
        content[16..24].copy_from_slice(&SALT.to_le_bytes());
        content[24..32].copy_from_slice(&number.to_le_bytes());
    }
    let crc = crc32fast::hash(&content[..60]);
    content[60..64].copy_from_slice(&crc.to_le_bytes());
    let first = u64::from_le_bytes(content[32..40].try_into().expect("eight bytes"));
    let mut at = 64;
    while at + 16 <= content.len() {
        let lsn = first.wrapping_add(at as u64 - 64);
        let word = u16::from_le_bytes([content[at + 4], content[at + 5]]);
        let short = word & 1 == 1;
        if flags & 8 == 0 {
            content[at + 6..at + 8].copy_from_slice(&(lsn as u16).to_le_bytes());
            if !short {
                content[at + 8..at + 12].copy_from_slice(&((lsn >> 16) as u32).to_le_bytes());
            }
        }
        let payload = u32::from_le_bytes(content[at + 12..at + 16].try_into().expect("four bytes"));
        let len = match word {
            _ if short => 8 + usize::from(word >> 1),
            _ => 16 + payload as usize + if word & 16 == 16 { 8 } else { 0 },
        };
        let Some(frame) = content.get_mut(at..at + len) else { return };
        let crc = checksum(SALT, lsn, &frame[4..]);
        frame[..4].copy_from_slice(&crc.to_le_bytes());
        at += len;
    }
}
