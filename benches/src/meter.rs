//! What a phase costs, as the kernel counts it: CPU time, bytes of the process and of the device, memory, space.
//!
//! All counters are read as differences between two readings in the child that runs the phase. The device's counters include
//! whatever else uses the device, which is why the report shows the process's beside them.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::stat::{major, minor};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};

const SECTOR: u64 = 512;

/// Counters that only grow, or the difference of two readings of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// CPU seconds of the process in user mode, all threads.
    pub cpu_user: f64,
    /// CPU seconds of the process in the kernel. Write-back done by kernel threads is not in it.
    pub cpu_system: f64,
    /// Bytes the process caused to be read from the device.
    pub process_read_bytes: u64,
    /// Bytes the process caused to be written to the device, counted when a page becomes dirty; pages that were dropped
    /// before they were written are taken off.
    pub process_write_bytes: u64,
    /// The device's counters, if the directory lies on a block device.
    pub device: Option<DeviceCounters>,
}

/// Counters of a block device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceCounters {
    /// Completed reads, after merging.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Completed writes, after merging.
    pub writes: u64,
    /// Bytes written.
    pub write_bytes: u64,
}

impl Counters {
    /// What was counted since `earlier`.
    pub fn since(&self, earlier: &Counters) -> Counters {
        Counters {
            cpu_user: self.cpu_user - earlier.cpu_user,
            cpu_system: self.cpu_system - earlier.cpu_system,
            process_read_bytes: self.process_read_bytes.saturating_sub(earlier.process_read_bytes),
            process_write_bytes: self.process_write_bytes.saturating_sub(earlier.process_write_bytes),
            device: self.device.zip(earlier.device).map(|(now, then)| DeviceCounters {
                reads: now.reads.saturating_sub(then.reads),
                read_bytes: now.read_bytes.saturating_sub(then.read_bytes),
                writes: now.writes.saturating_sub(then.writes),
                write_bytes: now.write_bytes.saturating_sub(then.write_bytes),
            }),
        }
    }

    /// CPU seconds, user and system.
    pub fn cpu(&self) -> f64 {
        self.cpu_user + self.cpu_system
    }
}

/// Reads the counters for one directory's device.
#[derive(Debug, Clone)]
pub struct Meter {
    device_stat: Option<PathBuf>,
}

impl Meter {
    /// A meter for the device that `dir` lies on.
    ///
    /// # Errors
    /// If the directory cannot be looked at.
    pub fn new(dir: &Path) -> Result<Self> {
        let device = fs::metadata(dir).with_context(|| dir.display().to_string())?.dev();
        let stat = PathBuf::from(format!("/sys/dev/block/{}:{}/stat", major(device), minor(device)));
        Ok(Meter { device_stat: stat.exists().then_some(stat) })
    }

    /// The counters now.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn read(&self) -> Result<Counters> {
        let usage = getrusage(UsageWho::RUSAGE_SELF)?;
        // Not readable in some containers; then the device's counters are all there is.
        let text = fs::read_to_string("/proc/self/io").unwrap_or_default();
        let io = fields(&text);
        let io = |name: &str| io.get(name).copied().unwrap_or(0);
        Ok(Counters {
            cpu_user: usage.user_time().num_microseconds() as f64 / 1e6,
            cpu_system: usage.system_time().num_microseconds() as f64 / 1e6,
            process_read_bytes: io("read_bytes"),
            process_write_bytes: io("write_bytes").saturating_sub(io("cancelled_write_bytes")),
            device: match &self.device_stat {
                Some(path) => parse_device_stat(&fs::read_to_string(path)?),
                None => None,
            },
        })
    }
}

/// Bytes of memory of this process that no file backs, and of all its resident pages.
pub fn resident_bytes() -> (u64, u64) {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let status = fields(&text);
    let kib = |name: &str| status.get(name).copied().unwrap_or(0) << 10;
    (kib("RssAnon"), kib("VmRSS"))
}

/// Bytes that the files below `dir` occupy on the device.
///
/// # Errors
/// If a directory cannot be read. Files that vanish meanwhile do not count.
pub fn space_bytes(dir: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => total += space_bytes(&entry.path())?,
            Ok(metadata) => total += metadata.blocks() * SECTOR,
            Err(_) => {}
        }
    }
    Ok(total)
}

/// `name: number ...` lines of a file of /proc.
fn fields(text: &str) -> HashMap<&str, u64> {
    text.lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            Some((name.trim(), rest.split_whitespace().next()?.parse().ok()?))
        })
        .collect()
}

fn parse_device_stat(text: &str) -> Option<DeviceCounters> {
    let numbers: Vec<u64> = text.split_whitespace().map_while(|word| word.parse().ok()).collect();
    match numbers[..] {
        [reads, _, read_sectors, _, writes, _, write_sectors, ..] => Some(DeviceCounters {
            reads,
            read_bytes: read_sectors * SECTOR,
            writes,
            write_bytes: write_sectors * SECTOR,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_stat_line_is_read_in_bytes() {
        let line = "  10  1  80  5  20  2  160  9  0  11  14 0 0 0 0 0 0\n";
        let expected = DeviceCounters { reads: 10, read_bytes: 40_960, writes: 20, write_bytes: 81_920 };
        assert_eq!(parse_device_stat(line), Some(expected));
        assert_eq!(parse_device_stat("1 2 3"), None);
        assert_eq!(parse_device_stat(""), None);
    }

    #[test]
    fn differences_are_taken_field_by_field() {
        let then = Counters { cpu_user: 1.0, process_write_bytes: 10, ..Counters::default() };
        let device = Some(DeviceCounters { reads: 1, read_bytes: 2, writes: 3, write_bytes: 4 });
        let now = Counters { cpu_user: 1.5, cpu_system: 0.25, process_write_bytes: 30, device, ..then };
        let spent = now.since(&then);
        assert_eq!((spent.cpu(), spent.process_write_bytes, spent.device), (0.75, 20, None));
    }

    #[test]
    fn fields_of_proc_are_found_by_name() {
        let found = fields("VmRSS:\t  1234 kB\nread_bytes: 7\nName:\tx\n");
        assert_eq!(
            (found.get("VmRSS"), found.get("read_bytes"), found.get("Name")),
            (Some(&1234), Some(&7), None)
        );
    }

    #[test]
    fn space_counts_the_blocks_of_files_in_subdirectories() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/file"), vec![1; 100_000]).unwrap();
        assert!(space_bytes(dir.path()).unwrap() >= 100_000 / SECTOR * SECTOR);
    }
}
