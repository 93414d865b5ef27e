//! Locks, condition variables, atomics and threads as the layers above use them: those of the machine, or, under the
//! feature `shuttle`, those of a model checker that chooses at each of them which thread goes on.
//!
//! Without the feature [`point`] is nothing. With it nothing works outside of a
//! check; there is then no time: a wait with a limit waits until it is notified, so that a lost wake-up is a
//! deadlock that the checker reports and not a delay that nobody sees, and a sleep lets others go on.
//!
//! What a lock protects decides whether it comes from here: all whose order matters do; counters do not.

pub use crate::locks::{Condvar, Mutex, MutexGuard, RwLock};

#[cfg(not(feature = "shuttle"))]
mod real {
    pub use std::sync::atomic;
    pub use std::thread;

    /// A place at which the model checker may let another thread go on, where no lock and no atomic is one.
    #[inline(always)]
    pub fn point() {}

    /// The calling thread does background work: it gives way to others when there are more than cores. On Linux only.
    pub fn give_way() {
        crate::sys::give_way();
    }
}

#[cfg(not(feature = "shuttle"))]
pub use real::*;

#[cfg(feature = "shuttle")]
mod model {
    pub use shuttle::sync::atomic;
    pub use shuttle::thread;

    /// A place at which the model checker may let another thread go on, where no lock and no atomic is one.
    pub fn point() {
        atomic::AtomicBool::new(false).load(atomic::Ordering::SeqCst);
    }

    /// Nothing: the checker chooses.
    pub fn give_way() {}

    /// Runs `check` under `iterations` interleavings drawn at random, and as many in which few threads are preempted at few places.
    /// The seeds are fresh, or that of `SHUTTLE_RANDOM_SEED`; `SHUTTLE_SCHEDULE` names a file with one schedule, as a failure prints it.
    pub fn explore(iterations: usize, check: impl Fn() + Send + Sync + 'static) {
        use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler};
        let mut config = shuttle::Config::new();
        // Deep enough for a whole engine in a build that is not optimised.
        config.stack_size = 1 << 20;
        config.max_steps = shuttle::MaxSteps::FailAfter(2_000_000);
        config.silence_warnings = true;
        if let Ok(path) = std::env::var("SHUTTLE_SCHEDULE") {
            let schedule = ReplayScheduler::new_from_file(&path).expect("a file with a schedule");
            shuttle::Runner::new(schedule, config).run(check);
            return;
        }
        let check = std::sync::Arc::new(check);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = now.map_or(0, |time| time.as_nanos() as u64);
        println!("SHUTTLE_RANDOM_SEED={seed}");
        let again = check.clone();
        let random = RandomScheduler::new_from_seed(seed, iterations);
        let ran = shuttle::Runner::new(random, config.clone()).run(move || again());
        assert_eq!(ran, iterations, "the checker ended early");
        let few = PctScheduler::new_from_seed(seed, 3, iterations);
        let ran = shuttle::Runner::new(few, config).run(move || check());
        assert_eq!(ran, iterations, "the checker ended early");
    }
}

#[cfg(feature = "shuttle")]
pub use model::*;
