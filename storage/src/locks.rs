//! Locks without poisoning: those of the standard library, or those of the model checker.
//!
//! Who waits for one sleeps after some spinning, and does not yield. With more busy threads than cores a yield gives the core away for a time slice, however short the lock is
//! held: `parking_lot` yields up to ten times before it sleeps, and gets beside a load at full speed on two cores, which meet the writer in the memtable's lock, spent a
//! third of their time so; they were half as many, with twice the p99 (19 to 10 ms).

use std::fmt::{Debug, Formatter};
use std::ops::{Deref, DerefMut};
#[cfg(not(feature = "shuttle"))]
use std::sync;
use std::sync::{PoisonError, TryLockError};
use std::time::{Duration, Instant};

#[cfg(feature = "shuttle")]
use shuttle::sync;

/// A mutex without poisoning.
#[derive(Default)]
pub struct Mutex<T>(sync::Mutex<T>);

/// Releases the lock when dropped.
pub struct MutexGuard<'a, T> {
    lock: &'a Mutex<T>,
    /// Absent only while a wait or [`MutexGuard::unlocked`] has released it.
    held: Option<sync::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    /// An unlocked mutex.
    pub fn new(value: T) -> Self {
        Self(sync::Mutex::new(value))
    }

    /// Waits for the lock.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard { lock: self, held: Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)) }
    }

    /// The lock, if it is free.
    #[inline]
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

    #[inline]
    fn deref(&self) -> &T {
        self.held.as_ref().expect("the lock is held")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        self.held.as_mut().expect("the lock is held")
    }
}

/// A condition variable.
#[derive(Debug, Default)]
pub struct Condvar(sync::Condvar);

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

    /// Releases the lock until notified or for so long. Under the model checker there is no time.
    pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, limit: Duration) {
        if let Some(held) = guard.held.take() {
            let woken = self.0.wait_timeout(held, limit);
            guard.held = Some(woken.unwrap_or_else(PoisonError::into_inner).0);
        }
    }

    /// Releases the lock until notified or until then.
    pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, limit: Instant) {
        self.wait_for(guard, limit.saturating_duration_since(Instant::now()));
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
pub struct RwLock<T>(sync::RwLock<T>);

impl<T> RwLock<T> {
    /// An unlocked one.
    pub fn new(value: T) -> Self {
        Self(sync::RwLock::new(value))
    }

    /// Waits until nobody writes.
    #[inline]
    pub fn read(&self) -> sync::RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody reads or writes.
    #[inline]
    pub fn write(&self) -> sync::RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Debug for RwLock<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str("RwLock")
    }
}
