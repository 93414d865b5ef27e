//! The machine around a run: what it is, its page cache, its limits for dirty pages.
//!
//! Everything changed here is put back when the guard is dropped, also after an error or an interrupt. Called by the parent
//! only; nothing here is needed where it is not permitted, and then the report says so.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde::{Deserialize, Serialize};

const DIRTY_BYTES: &str = "/proc/sys/vm/dirty_bytes";
const DIRTY_RATIO: &str = "/proc/sys/vm/dirty_ratio";
const BACKGROUND_BYTES: &str = "/proc/sys/vm/dirty_background_bytes";
const BACKGROUND_RATIO: &str = "/proc/sys/vm/dirty_background_ratio";
const LOCK_FILE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock"));

/// What the report says about the machine and the build.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Host {
    /// The processor.
    pub cpu: String,
    /// Processors that may be used.
    pub cores: usize,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// The kernel's version.
    pub kernel: String,
    /// Type of the file system that the databases lie on, with its device.
    pub file_system: String,
    /// The allocator of the Rust engines.
    pub allocator: String,
    /// Whether the build is optimised.
    pub release: bool,
}

impl Host {
    /// Looks at the machine; `dir` is where the databases will lie.
    pub fn look(dir: &Path) -> Host {
        let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let after = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_string())
        };
        let memory_kib = after(&memory, "MemTotal").and_then(|v| v.split(' ').next()?.parse::<u64>().ok());
        Host {
            cpu: after(&cpu_info, "model name").unwrap_or_else(|| std::env::consts::ARCH.into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_kib.unwrap_or(0) << 10,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_string(),
            file_system: file_system(dir).unwrap_or_else(|| "unknown".into()),
            allocator: crate::ALLOCATOR.into(),
            release: !cfg!(debug_assertions),
        }
    }

    /// One paragraph for the report.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let gib = self.memory_bytes as f64 / f64::from(1 << 30);
        let _ = write!(
            text,
            "{}, {} cores, {gib:.1} GiB, Linux {}, {}, allocator of the Rust engines: {}{}",
            self.cpu,
            self.cores,
            self.kernel,
            self.file_system,
            self.allocator,
            if self.release { "" } else { ", **debug build: the figures mean nothing**" }
        );
        text
    }
}

/// The version of a package that this build contains.
pub fn package_version(name: &str) -> Option<&'static str> {
    let start = LOCK_FILE.find(&format!("name = \"{name}\"\n"))?;
    let line = LOCK_FILE[start..].lines().nth(1)?;
    line.strip_prefix("version = \"")?.strip_suffix('"')
}

/// The longest mount point that `dir` lies below, as `type on device`.
fn file_system(dir: &Path) -> Option<String> {
    let dir = dir.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let found = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (device, point, kind) = (words.next()?, words.next()?, words.next()?);
        dir.starts_with(point).then_some((point.len(), kind, device))
    });
    found.max_by_key(|(len, ..)| *len).map(|(_, kind, device)| format!("{kind} on {device}"))
}

/// How the page cache was emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// The whole machine's.
    All,
    /// That of the database's files, by advice.
    Files,
}

/// Writes everything back and empties the page cache, so that the next reads are cold.
///
/// # Errors
/// If the files cannot be read.
pub fn drop_page_cache(dir: &Path) -> Result<Dropped> {
    nix::unistd::sync();
    if fs::write("/proc/sys/vm/drop_caches", "3").is_ok() {
        return Ok(Dropped::All);
    }
    advise_files(dir)?;
    Ok(Dropped::Files)
}

fn advise_files(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            advise_files(&path)?;
        } else {
            let file = File::open(&path).with_context(|| path.display().to_string())?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
    }
    Ok(())
}

/// Lowered limits for dirty pages; the old ones are back when this is dropped.
///
/// The kernel's defaults are shares of the whole machine's memory, so a process in a small group would be stopped by its own
/// group's limit long before write-back begins, in a way that no machine of that size would show.
#[derive(Debug)]
pub struct DirtyLimits {
    old: Vec<(&'static str, String)>,
}

impl DirtyLimits {
    /// Sets a fifth of `memory` as the most, and a tenth as the start of write-back. `None` if that is not permitted.
    pub fn set(memory: u64) -> Option<Self> {
        // Writing a ratio zeroes the bytes and the other way round, so whichever is not zero is what has to be put back.
        let mut old = Vec::new();
        for pair in [[DIRTY_BYTES, DIRTY_RATIO], [BACKGROUND_BYTES, BACKGROUND_RATIO]] {
            for file in pair {
                let value = fs::read_to_string(file).ok()?.trim().to_string();
                if value != "0" {
                    old.push((file, value));
                }
            }
        }
        let guard = DirtyLimits { old };
        // The background limit first, as the kernel wants it to be below the other.
        fs::write(BACKGROUND_BYTES, (memory / 10).to_string()).ok()?;
        fs::write(DIRTY_BYTES, (memory / 5).to_string()).ok()?;
        Some(guard)
    }
}

impl Drop for DirtyLimits {
    fn drop(&mut self) {
        for (file, value) in &self.old {
            // Not permitted means it was not changed either.
            let _ = fs::write(file, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_of_a_directory_is_named() {
        assert!(file_system(Path::new("/")).unwrap().contains(" on "));
    }

    #[test]
    fn versions_of_packages_come_from_the_lock_file() {
        assert!(package_version("hdrhistogram").unwrap().starts_with(|c: char| c.is_ascii_digit()));
        assert_eq!(package_version("no such package"), None);
    }

    #[test]
    fn dropping_the_cache_of_files_leaves_them_readable() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), b"abc").unwrap();
        advise_files(dir.path()).unwrap();
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"abc");
    }
}
