//! Locks, condition variables, atomics and threads as the layers above use them: those of the machine, or, under the
//! feature `shuttle`, those of a model checker that chooses at each of them which thread goes on.
//!
//! Without the feature everything here is a re-export and [`point`] is nothing. With it nothing works outside of a
//! check; there is then no time: a wait with a limit waits until it is notified, so that a lost wake-up is a
//! deadlock that the checker reports and not a delay that nobody sees, and a sleep lets others go on. The names and
//! signatures under the feature are those of `parking_lot`, as far as they are needed.
//!
//! What a lock protects decides whether it comes from here: all whose order matters do; counters do not.

#[cfg(not(feature = "shuttle"))]
mod real {
    pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockWriteGuard};
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
    use std::fmt::{Debug, Formatter};
    use std::ops::{Deref, DerefMut};
    use std::sync::{PoisonError, TryLockError};
    use std::time::{Duration, Instant};

    pub use shuttle::sync::RwLockWriteGuard;
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

    /// A mutex without poisoning.
    #[derive(Default)]
    pub struct Mutex<T>(shuttle::sync::Mutex<T>);

    /// Releases the lock when dropped.
    pub struct MutexGuard<'a, T> {
        lock: &'a Mutex<T>,
        /// Absent only while a wait or [`MutexGuard::unlocked`] has released it.
        held: Option<shuttle::sync::MutexGuard<'a, T>>,
    }

    impl<T> Mutex<T> {
        /// An unlocked mutex.
        pub fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        /// Waits for the lock.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard { lock: self, held: Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)) }
        }

        /// The lock, if it is free.
        pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            let held = match self.0.try_lock() {
                Ok(held) => held,
                Err(TryLockError::Poisoned(held)) => held.into_inner(),
                Err(TryLockError::WouldBlock) => return None,
            };
            Some(MutexGuard { lock: self, held: Some(held) })
        }

        /// The value, of a mutex nobody else can have locked.
        pub fn get_mut(&mut self) -> &mut T {
            self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl<T> Debug for Mutex<T> {
        fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
            f.write_str("Mutex")
        }
    }

    impl<T> Debug for MutexGuard<'_, T> {
        fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
            f.write_str("MutexGuard")
        }
    }

    impl<'a, T> MutexGuard<'a, T> {
        /// Runs `f` with the lock released.
        pub fn unlocked<R>(guard: &mut Self, f: impl FnOnce() -> R) -> R {
            guard.held = None;
            let result = f();
            guard.held = guard.lock.lock().held;
            result
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.held.as_ref().expect("the lock is held")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.held.as_mut().expect("the lock is held")
        }
    }

    /// A condition variable.
    #[derive(Debug, Default)]
    pub struct Condvar(shuttle::sync::Condvar);

    impl Condvar {
        /// One that nobody waits for.
        pub fn new() -> Self {
            Self::default()
        }

        /// Releases the lock until notified.
        pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            if let Some(held) = guard.held.take() {
                guard.held = Some(self.0.wait(held).unwrap_or_else(PoisonError::into_inner));
            }
        }

        /// As [`Condvar::wait`]: there is no time.
        pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _limit: Duration) {
            self.wait(guard);
        }

        /// As [`Condvar::wait`]: there is no time.
        pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _limit: Instant) {
            self.wait(guard);
        }

        /// Wakes one of those that wait.
        pub fn notify_one(&self) {
            self.0.notify_one();
        }

        /// Wakes all that wait.
        pub fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    /// A lock for one writer or many readers, without poisoning.
    #[derive(Default)]
    pub struct RwLock<T>(shuttle::sync::RwLock<T>);

    impl<T> RwLock<T> {
        /// An unlocked one.
        pub fn new(value: T) -> Self {
            Self(shuttle::sync::RwLock::new(value))
        }

        /// Waits until nobody writes.
        pub fn read(&self) -> shuttle::sync::RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }

        /// Waits until nobody reads or writes.
        pub fn write(&self) -> shuttle::sync::RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl<T> Debug for RwLock<T> {
        fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
            f.write_str("RwLock")
        }
    }
}

#[cfg(feature = "shuttle")]
pub use model::*;
