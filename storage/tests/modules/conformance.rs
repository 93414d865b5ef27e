//! The checks that every backend passes, on real files.

use std::cell::RefCell;

use betree_storage::{Backend, DiskStorage};
use betree_testkit::conformance::run_all;

fn run(backend: Backend) {
    let directories = RefCell::new(Vec::new());
    run_all(|| {
        let directory = tempfile::tempdir().unwrap();
        let storage = DiskStorage::open(directory.path(), backend).unwrap();
        directories.borrow_mut().push(directory);
        storage
    });
}

#[test]
fn the_portable_backend_conforms() {
    run(Backend::Portable);
}

#[test]
fn the_backend_chosen_by_itself_conforms() {
    run(Backend::Auto);
}

#[test]
fn the_io_uring_backend_conforms_where_it_can_be_set_up() {
    let directory = tempfile::tempdir().unwrap();
    match DiskStorage::open(directory.path(), Backend::IoUring) {
        Ok(storage) => {
            assert_eq!((storage.backend(), storage.notes()), ("io_uring", Vec::new()));
            run(Backend::IoUring);
        }
        Err(error) => {
            println!("not run: {error}");
            let auto = DiskStorage::open(directory.path(), Backend::Auto).unwrap();
            assert_eq!(auto.backend(), "portable");
            assert_eq!(auto.notes().len(), 1, "the fallback is said once");
        }
    }
}
