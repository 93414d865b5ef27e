//! A memory limit for one child process: heap and page cache together, by a control group.
//!
//! The group is made by the parent, entered by the child before it does anything else, and removed by the parent when the
//! child is gone. Where that is not permitted, the reason is kept for the report instead: a run without a limit
//! never looks like one with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

const ROOT: &str = "/sys/fs/cgroup";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// Undoes what mimalloc does when it is told to keep off huge pages: it forbids them to the whole process, also to an engine that asks
/// for them for memory of its own.
pub fn let_engines_ask_for_huge_pages() {
    // An old kernel has no such switch, and then nothing was forbidden.
    let _unknown = nix::sys::prctl::set_thp_disable(false);
}

/// A control group with a memory limit. Removed when dropped.
#[derive(Debug)]
pub struct MemoryGroup {
    path: PathBuf,
    version: Version,
}

impl MemoryGroup {
    /// Makes a group limited to `bytes`.
    ///
    /// # Errors
    /// If there is no memory controller or it is not ours to use; the text says which.
    pub fn create(name: &str, bytes: u64) -> Result<Self> {
        let name = format!("betree-bench-{}-{name}", std::process::id());
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut last = None;
        for (version, base) in candidates(&own) {
            match Self::create_in(version, &base, &name, bytes) {
                Ok(group) => return Ok(group),
                Err(e) => last = Some(e),
            }
        }
        match last {
            Some(e) => Err(e),
            None => bail!("no memory control groups below {ROOT}"),
        }
    }

    fn create_in(version: Version, base: &Path, name: &str, bytes: u64) -> Result<Self> {
        if version == Version::V2 {
            let enabled = fs::read_to_string(base.join("cgroup.subtree_control")).unwrap_or_default();
            if !enabled.split_whitespace().any(|controller| controller == "memory") {
                fs::write(base.join("cgroup.subtree_control"), "+memory")
                    .with_context(|| format!("enabling the memory controller in {}", base.display()))?;
            }
        }
        let path = base.join(name);
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        let group = MemoryGroup { path, version };
        let (limit, swap) = match version {
            Version::V1 => ("memory.limit_in_bytes", ("memory.memsw.limit_in_bytes", bytes)),
            Version::V2 => ("memory.max", ("memory.swap.max", 0)),
        };
        fs::write(group.path.join(limit), bytes.to_string())
            .with_context(|| format!("setting {limit} in {}", group.path.display()))?;
        // Absent in kernels that do not count swap. Memory that is swapped out would escape the limit, but then shows as
        // device traffic.
        let _ = fs::write(group.path.join(swap.0), swap.1.to_string());
        Ok(group)
    }

    /// The file through which a process enters the group.
    pub fn entrance(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Most bytes ever in use, heap and page cache together.
    pub fn peak(&self) -> Option<u64> {
        let file = match self.version {
            Version::V1 => "memory.max_usage_in_bytes",
            Version::V2 => "memory.peak",
        };
        fs::read_to_string(self.path.join(file)).ok()?.trim().parse().ok()
    }

    /// Whether a process in it was killed for want of memory.
    pub fn ran_out(&self) -> bool {
        let file = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let text = fs::read_to_string(self.path.join(file)).unwrap_or_default();
        text.lines().any(|line| {
            line.strip_prefix("oom_kill ").is_some_and(|count| count.trim().parse().unwrap_or(0u64) > 0)
        })
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // The kernel lets go of the last process a moment after it was waited for.
        for _ in 0..50 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        eprintln!("could not remove {}", self.path.display());
    }
}

/// Moves this process into a group by its entrance.
///
/// # Errors
/// If the kernel refuses.
pub fn enter(entrance: &Path) -> Result<()> {
    fs::write(entrance, std::process::id().to_string())
        .with_context(|| format!("entering the control group at {}", entrance.display()))
}

/// Where a group could be made, best first: below the own group, then beside it (a group with processes in it cannot
/// hand controllers to its children in version 2), then at the root.
fn candidates(own: &str) -> Vec<(Version, PathBuf)> {
    let mut found = Vec::new();
    let root = Path::new(ROOT);
    let v1 = root.join("memory");
    if v1.join("memory.limit_in_bytes").exists() {
        if let Some(path) = own_path(own, "memory") {
            found.push((Version::V1, v1.join(path)));
        }
        found.push((Version::V1, v1));
    }
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    if controllers.split_whitespace().any(|controller| controller == "memory") {
        if let Some(path) = own_path(own, "") {
            let path = root.join(path);
            let parent = path.parent().map(Path::to_path_buf);
            found.push((Version::V2, path));
            found.extend(parent.filter(|p| p.starts_with(root)).map(|p| (Version::V2, p)));
        }
        found.push((Version::V2, root.to_path_buf()));
    }
    found.retain(|(_, path)| path.is_dir());
    found
}

/// The own group's path, relative, from a line `id:controllers:/path` of /proc/self/cgroup.
fn own_path<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        controllers.split(',').any(|c| c == controller).then(|| path.trim_start_matches('/'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_in_both_versions() {
        let text = "5:devices:/\n4:cpu,memory:/a/b\n0::/user.slice/x\n";
        assert_eq!(own_path(text, "memory"), Some("a/b"));
        assert_eq!(own_path(text, ""), Some("user.slice/x"));
        assert_eq!(own_path(text, "pids"), None);
        assert_eq!(own_path("garbage", ""), None);
    }
}
