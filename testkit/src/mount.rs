//! Small real file systems for tests: a tmpfs of a given size, an ext4 image mounted through a loop device.
//!
//! Both need root and a kernel that lets us mount. Where that is not so, [`Mount::new`] says why and the test prints that and is
//! skipped: [`Mount::or_skip`]. Unmounted when dropped; whatever still has files open there keeps it alive until then.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// In memory: no direct I/O on many kernels.
    Tmpfs,
    /// In an image file, with a journal of its own.
    Ext4,
}

impl FileSystem {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tmpfs, Self::Ext4];
}

/// A mounted file system.
#[derive(Debug)]
pub struct Mount {
    root: PathBuf,
    mounted: bool,
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("{program} {}: {}: {said}", arguments.join(" "), output.status))
}

impl Mount {
    /// Mounts an empty file system of about `bytes` bytes.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn new(kind: FileSystem, bytes: u64) -> Result<Self, String> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("betree-mount-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut mount = Self { root: std::env::temp_dir().join(name), mounted: false };
        std::fs::create_dir_all(mount.path()).map_err(|e| format!("{}: {e}", mount.root.display()))?;
        let at = mount.path().display().to_string();
        match kind {
            FileSystem::Tmpfs => {
                run("mount", &["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs", &at])?
            }
            FileSystem::Ext4 => {
                let image = mount.root.join("image").display().to_string();
                let file = std::fs::File::create(&image).map_err(|e| format!("{image}: {e}"))?;
                file.set_len(bytes).map_err(|e| format!("{image}: {e}"))?;
                // Without blocks that only root may use: the tests are root.
                run("mkfs.ext4", &["-q", "-m", "0", &image])?;
                run("mount", &["-o", "loop", &image, &at])?;
            }
        }
        mount.mounted = true;
        Ok(mount)
    }

    /// As [`Mount::new`]; where that fails the reason is printed, for a test to be skipped. With `REQUIRE_MOUNTS` in the environment
    /// it is a failure.
    ///
    /// # Panics
    /// When mounting is required and fails.
    #[must_use]
    pub fn or_skip(kind: FileSystem, bytes: u64) -> Option<Self> {
        match Self::new(kind, bytes) {
            Ok(mount) => Some(mount),
            Err(reason) => {
                assert!(std::env::var_os("REQUIRE_MOUNTS").is_none(), "cannot mount {kind:?}: {reason}");
                println!("skipped: cannot mount {kind:?}: {reason}");
                None
            }
        }
    }

    /// The file system's root directory.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.root.join("mounted")
    }

    /// Makes it read-only, or writable again.
    ///
    /// # Errors
    /// What mount says, for instance that a file is open for writing.
    pub fn set_read_only(&self, read_only: bool) -> Result<(), String> {
        let options = if read_only { "remount,ro" } else { "remount,rw" };
        run("mount", &["-o", options, &self.path().display().to_string()])
    }

    /// Fills what is free with a file `name`.
    ///
    /// # Panics
    /// When it cannot be written at all.
    pub fn fill(&self, name: &str) {
        let mut file =
            std::fs::File::create(self.path().join(name)).expect("a file in the mounted directory");
        for len in [1 << 20, 64 << 10, 4096] {
            let piece = vec![0x5a; len];
            while std::io::Write::write_all(&mut file, &piece).is_ok() {}
        }
        // Delayed allocation would find out later.
        let _ = file.sync_all();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let at = self.path();
        if self.mounted {
            let _ = run("umount", &["-l", &at.display().to_string()]);
        }
        let _ = std::fs::remove_dir(at);
        let _ = std::fs::remove_file(self.root.join("image"));
        let _ = std::fs::remove_dir(Path::new(&self.root));
    }
}
