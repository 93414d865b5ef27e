//! The simulated disk's one integration-test binary.

#[path = "modules/crash.rs"]
mod crash;
#[path = "modules/faults.rs"]
mod faults;
#[path = "modules/states.rs"]
mod states;

use betree_testkit::{SimStorage, conformance};

#[test]
fn the_simulated_disk_conforms() {
    for seed in 0..20 {
        conformance::run_all(|| SimStorage::new(seed).as_storage());
    }
}
