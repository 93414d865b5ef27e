//! What only a real directory has: creation, the lock between processes, foreign entries, files without a descriptor.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use betree_storage::{AlignedBuf, Backend, Caching, DiskStorage, Error, OpenMode, Request};
use betree_testkit::SimStorage;

#[test]
fn missing_directories_are_created_and_an_existing_one_is_kept() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("a/b/c");
    let storage = DiskStorage::open(&path, Backend::Portable).unwrap();
    storage.open("f", OpenMode::CreateNew, Caching::Buffered).unwrap();
    let again = DiskStorage::open(&path, Backend::Portable).unwrap();
    assert_eq!(again.list().unwrap(), ["f"]);
    assert!(again.path().ends_with("a/b/c") && again.path().starts_with('/'));
}

#[test]
fn a_file_in_place_of_the_directory_is_a_located_error() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("file");
    fs::write(&path, b"").unwrap();
    let storage = DiskStorage::open(&path, Backend::Portable);
    let text = storage.and_then(|s| s.list()).unwrap_err().to_string();
    assert!(text.contains("file"), "{text}");
    assert_eq!(fs::read(&path).unwrap(), b"");
}

#[test]
fn two_storages_on_one_directory_exclude_each_other() {
    let base = tempfile::tempdir().unwrap();
    let first = DiskStorage::open(base.path(), Backend::Portable).unwrap();
    let second = DiskStorage::open(base.path(), Backend::Portable).unwrap();
    let held = first.lock().unwrap();
    let refused = second.lock().unwrap_err();
    assert!(matches!(refused, Error::Locked { .. }) && refused.to_string().contains("locked"));
    drop(held);
    let held = second.lock().unwrap();
    assert!(matches!(first.lock(), Err(Error::Locked { .. })));
    drop(held);
}

#[test]
fn a_lock_that_was_let_go_is_free_while_child_processes_are_being_started() {
    let base = tempfile::tempdir().unwrap();
    let storage = DiskStorage::open(base.path(), Backend::Portable).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::process::Command::new("true").status().unwrap();
            }
        });
        let refused = (0..20_000).find(|_| storage.lock().is_err());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(refused, None);
    });
}

#[test]
fn directories_and_foreign_names_are_not_listed() {
    let base = tempfile::tempdir().unwrap();
    fs::create_dir(base.path().join("sub")).unwrap();
    fs::write(base.path().join("f"), b"").unwrap();
    let storage = DiskStorage::open(base.path(), Backend::Portable).unwrap();
    assert_eq!(storage.list().unwrap(), ["f"]);
}

#[test]
fn created_files_are_not_writable_by_others() {
    let base = tempfile::tempdir().unwrap();
    let storage = DiskStorage::open(base.path(), Backend::Portable).unwrap();
    storage.open("f", OpenMode::CreateNew, Caching::Direct).unwrap();
    let mode = fs::metadata(base.path().join("f")).unwrap().permissions().mode();
    assert_eq!(mode & 0o002, 0);
}

#[test]
fn a_range_past_the_largest_file_is_an_error_everywhere() {
    let base = tempfile::tempdir().unwrap();
    let storage = DiskStorage::open(base.path(), Backend::Portable).unwrap();
    let file = storage.open("f", OpenMode::CreateNew, Caching::Buffered).unwrap();
    assert!(file.allocate(u64::MAX - 10, 100).is_err());
    assert!(file.punch_hole(u64::MAX, 1).is_err());
    assert!(file.write_at(u64::MAX, b"xy").is_err());
    assert!(file.read_at(u64::MAX, &mut [0]).is_err());
    assert!(file.set_len(u64::MAX).is_err());
    file.start_write_back(u64::MAX, u64::MAX);
    file.drop_cache(u64::MAX, u64::MAX);
}

#[test]
fn a_kernel_ring_refuses_a_file_without_descriptor_and_returns_its_buffer() {
    let base = tempfile::tempdir().unwrap();
    let Ok(storage) = DiskStorage::open(base.path(), Backend::IoUring) else { return };
    let simulated = SimStorage::new(1).as_storage();
    let file = simulated.open("f", OpenMode::CreateNew, Caching::Direct).unwrap();
    let mut ring = storage.ring(4).unwrap();
    ring.submit(&mut vec![
        (1, Request::Write { file: Arc::clone(&file), offset: 0, buf: AlignedBuf::zeroed(4096) }),
        (2, Request::Sync { file }),
    ]);
    let mut out = Vec::new();
    ring.wait(2, &mut out);
    assert_eq!(out.len(), 2);
    assert!(out.iter().all(|c| matches!(c.result, Err(Error::Io { .. }))));
    assert!(out.iter().any(|c| c.buf.is_some()));
}

#[test]
fn a_directory_opened_to_read_only_is_read_locked_and_never_changed() {
    let dir = tempfile::tempdir().unwrap();
    let missing = DiskStorage::open_read_only(dir.path().join("x"));
    assert!(missing.is_err() && !dir.path().join("x").exists());
    std::fs::write(dir.path().join("a"), [7; 8192]).unwrap();
    let storage = DiskStorage::open_read_only(dir.path()).unwrap();
    drop(storage.lock().unwrap());
    assert!(!dir.path().join("LOCK").exists(), "nobody has it open, so nothing is locked");
    let mut buf = AlignedBuf::zeroed(4096);
    let file = storage.open("a", OpenMode::Existing, Caching::Direct).unwrap();
    file.read_at(4096, &mut buf).unwrap();
    assert_eq!(buf[..], [7; 4096]);
    assert!(file.write_at(0, &buf).is_err() && file.set_len(0).is_err());
    assert!(storage.open("b", OpenMode::CreateNew, Caching::Buffered).is_err());
    assert!(storage.remove("a").is_err() && storage.rename("a", "b").is_err());
    let other = DiskStorage::open(dir.path(), Backend::Portable).unwrap();
    let held = other.lock().unwrap();
    assert!(matches!(storage.lock(), Err(Error::Locked { .. })));
    drop(held);
    let held = storage.lock().unwrap();
    assert!(matches!(other.lock(), Err(Error::Locked { .. })));
    drop(held);
    assert_eq!(std::fs::read(dir.path().join("a")).unwrap(), [7; 8192]);
}
