//! A directory on a real file system: opening, listing, renaming, the directory lock and the choice of ring.
//!
//! Invariants: a created directory is durable in its parent before `open` returns; the lock is an advisory lock on an
//! open file description, so it excludes other processes and other opens of this one alike; every choice made for the
//! caller (a fallback) leaves exactly one note. Called by the engine's open and by tools.
//! Locks: `notes`, briefly.

use std::fs::{self, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::file::DiskFile;
use crate::portable::PortableRing;
use crate::{Caching, DirLock, Error, File, OpenMode, Result, Ring, Storage, sys};

/// The name of the file that carries the directory lock. Never listed, never opened by name.
pub const LOCK_FILE: &str = "LOCK";

/// Which rings [`DiskStorage`] makes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Backend {
    /// `io_uring` where the kernel lets us set one up, portable otherwise, with a note.
    #[default]
    Auto,
    /// `io_uring`; opening fails where it cannot be set up.
    IoUring,
    /// Blocking reads and writes, everywhere.
    Portable,
}

/// A directory on a file system.
#[derive(Debug)]
pub struct DiskStorage {
    path: PathBuf,
    uring: bool,
    /// Whether a ring that cannot be made becomes a portable one.
    may_fall_back: bool,
    /// Nothing in the directory is changed, not even by the lock.
    read_only: bool,
    notes: Mutex<Vec<String>>,
}

impl DiskStorage {
    /// Opens a directory, creating it (durably, with its parents) when missing.
    pub fn open(path: impl AsRef<Path>, backend: Backend) -> Result<Arc<dyn Storage>> {
        let path = path.as_ref();
        create_directories(path).map_err(|e| directory_error("create directory", path, e))?;
        let path = path.canonicalize().map_err(|e| directory_error("open directory", path, e))?;
        let mut notes = Vec::new();
        let uring = match backend {
            Backend::Portable => false,
            Backend::IoUring | Backend::Auto => match probe_uring() {
                Ok(()) => true,
                Err(error) if backend == Backend::Auto => {
                    notes.push(fallback_note(&error));
                    false
                }
                Err(error) => return Err(directory_error("set up io_uring", &path, error)),
            },
        };
        let may_fall_back = backend == Backend::Auto;
        Ok(Arc::new(Self { path, uring, may_fall_back, read_only: false, notes: Mutex::new(notes) }))
    }

    /// Opens a directory that exists, to read only: files are opened for reading, the directory may be on a read-only
    /// file system, and what would change it is an error. Its lock is taken if its lock file is there and can be read: a
    /// process that has the directory in use has made it.
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Arc<dyn Storage>> {
        let path = path.as_ref();
        let path = path.canonicalize().map_err(|e| directory_error("open directory", path, e))?;
        let notes = Mutex::new(Vec::new());
        Ok(Arc::new(Self { path, uring: false, may_fall_back: true, read_only: true, notes }))
    }

    fn check_writable(&self, op: &'static str, name: &str) -> Result<()> {
        if !self.read_only {
            return Ok(());
        }
        Err(Error::from_io(op, name, None, io::Error::from(io::ErrorKind::ReadOnlyFilesystem)))
    }

    fn file_path(&self, op: &'static str, name: &str) -> Result<PathBuf> {
        let plain = !name.is_empty() && !name.contains(['/', '\\', '\0']) && name != "." && name != "..";
        if plain && name != LOCK_FILE {
            return Ok(self.path.join(name));
        }
        let cause = io::Error::new(io::ErrorKind::InvalidInput, "not a plain file name");
        Err(Error::from_io(op, name, None, cause))
    }

    fn note_once(&self, note: String) {
        let mut notes = self.notes.lock();
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
}

impl Storage for DiskStorage {
    fn open(&self, name: &str, mode: OpenMode, caching: Caching) -> Result<Arc<dyn File>> {
        let path = self.file_path("open", name)?;
        let located = |error| Error::from_io("open", name, None, error);
        let mut options = OpenOptions::new();
        if mode == OpenMode::CreateNew {
            self.check_writable("create", name)?;
        }
        options.read(true).write(!self.read_only).create_new(mode == OpenMode::CreateNew);
        let file = options.open(path).map_err(located)?;
        // Set after opening: some file systems refuse the flag at creation only after they have made the file.
        let direct = caching == Caching::Direct && sys::set_direct(&file).map_err(located)?;
        if caching == Caching::Direct && !direct {
            let path = self.path.display();
            self.note_once(format!("{path}: the file system has no direct I/O, data files are buffered"));
        }
        Ok(Arc::new(DiskFile::new(name.to_owned(), file, caching)))
    }

    fn list(&self) -> Result<Vec<String>> {
        let located = |error| directory_error("list directory", &self.path, error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(located)? {
            let entry = entry.map_err(located)?;
            if !entry.file_type().map_err(located)?.is_file() {
                continue;
            }
            // A name that is not UTF-8 cannot be one of ours.
            if let Ok(name) = entry.file_name().into_string()
                && name != LOCK_FILE
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.check_writable("remove", name)?;
        let path = self.file_path("remove", name)?;
        fs::remove_file(path).map_err(|e| Error::from_io("remove", name, None, e))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.check_writable("rename", from)?;
        let source = self.file_path("rename", from)?;
        let target = self.file_path("rename", to)?;
        fs::rename(source, target).map_err(|e| Error::from_io("rename", from, None, e))
    }

    fn sync_dir(&self) -> Result<()> {
        sync_directory(&self.path).map_err(|e| directory_error("sync directory", &self.path, e))
    }

    fn lock(&self) -> Result<Box<dyn DirLock>> {
        let located = |error| directory_error("lock", &self.path, error);
        let path = self.path.join(LOCK_FILE);
        // Not truncated and never removed: a second opener must meet the same inode.
        let mut options = OpenOptions::new();
        let write = !self.read_only;
        let file = match options.read(true).write(write).create(write).truncate(false).open(path) {
            Ok(file) => file,
            // Whoever has the directory in use has made the file, so without it nobody has.
            Err(error) if self.read_only && error.kind() == io::ErrorKind::NotFound => {
                return Ok(Box::new(HeldLock { file: None }));
            }
            Err(error) => return Err(located(error)),
        };
        loop {
            return match file.try_lock() {
                Ok(()) => Ok(Box::new(HeldLock { file: Some(file) })),
                Err(TryLockError::WouldBlock) => Err(Error::Locked { path: self.path() }),
                Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(TryLockError::Error(e)) => Err(located(e)),
            };
        }
    }

    fn ring(&self, depth: usize) -> Result<Box<dyn Ring>> {
        if !self.uring {
            return Ok(Box::new(PortableRing::default()));
        }
        match make_uring(depth) {
            Ok(ring) => Ok(ring),
            Err(error) if self.may_fall_back => {
                self.note_once(fallback_note(&error));
                Ok(Box::new(PortableRing::default()))
            }
            Err(error) => Err(directory_error("set up io_uring", &self.path, error)),
        }
    }

    fn can_busy_wait(&self) -> bool {
        self.uring
    }

    fn path(&self) -> String {
        self.path.display().to_string()
    }

    fn backend(&self) -> &'static str {
        if self.uring { "io_uring" } else { "portable" }
    }

    fn notes(&self) -> Vec<String> {
        self.notes.lock().clone()
    }
}

/// Let go explicitly: the lock lives as long as the open file, and a child process that is just being started has that
/// open as well until it runs its program.
#[derive(Debug)]
struct HeldLock {
    file: Option<fs::File>,
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            // Closing does it otherwise.
            let _ = file.unlock();
        }
    }
}

impl DirLock for HeldLock {}

#[cfg(target_os = "linux")]
fn make_uring(depth: usize) -> io::Result<Box<dyn Ring>> {
    Ok(Box::new(crate::uring::UringRing::new(depth)?))
}

#[cfg(not(target_os = "linux"))]
fn make_uring(_depth: usize) -> io::Result<Box<dyn Ring>> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "io_uring exists on Linux only"))
}

/// Whether a ring can really be set up here: the system call may exist and still be refused by a sandbox.
#[cfg(target_os = "linux")]
fn probe_uring() -> io::Result<()> {
    crate::uring::UringRing::probe()
}

#[cfg(not(target_os = "linux"))]
fn probe_uring() -> io::Result<()> {
    make_uring(1).map(drop)
}

fn fallback_note(error: &io::Error) -> String {
    format!("io_uring cannot be set up ({error}); reads and writes go through the portable backend")
}

fn directory_error(op: &'static str, path: &Path, error: io::Error) -> Error {
    Error::from_io(op, &path.display().to_string(), None, error)
}

/// Creates a directory and its missing parents, each made durable in its parent.
fn create_directories(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(io::Error::from(io::ErrorKind::NotFound)),
    };
    create_directories(parent)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        other => other?,
    }
    sync_directory(parent)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}
