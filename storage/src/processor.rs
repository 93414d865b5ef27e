//! Where a thread wakes up.
//!
//! A thread wakes on the processor on which it fell asleep, or on an idle one. If it then works on what another thread just worked on, that is in the
//! other processor's caches. A thread that is about to wait for such a turn can ask for the other's processor.
//!
//! Only Linux is asked; elsewhere nothing is known and nothing changed. Called by who takes turns; no locks.

use crate::sys;

/// The number of the processor that runs this thread, which may be another one by the time it is used.
#[must_use]
pub fn current() -> Option<usize> {
    sys::processor()
}

/// While it lives, the thread that made it runs on one processor only. Then it may run where it might before.
#[derive(Debug)]
pub struct Stay {
    before: sys::Affinity,
    /// The thread's own.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Stay {
    /// Has this thread stay on a processor. `None`: it may not run there, or the system cannot.
    #[must_use]
    pub fn on(processor: usize) -> Option<Stay> {
        let before = sys::Affinity::get()?;
        before.has(processor).then(|| before.only(processor))?.set();
        Some(Stay { before, _not_send: std::marker::PhantomData })
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.before.set();
    }
}

#[cfg(all(test, target_os = "linux", not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_stays_where_it_was_told_to_and_may_go_anywhere_again() {
        let allowed = || -> Vec<usize> {
            let may = sys::Affinity::get().unwrap();
            (0..1024).filter(|&processor| may.has(processor)).collect()
        };
        let before = allowed();
        assert!(before.contains(&current().unwrap()));
        for &processor in &before {
            let stay = Stay::on(processor).unwrap();
            assert_eq!(allowed(), [processor]);
            std::thread::yield_now();
            assert_eq!(current(), Some(processor));
            drop(stay);
            assert_eq!(allowed(), before);
        }
        assert!(Stay::on(1023).is_none() && Stay::on(usize::MAX).is_none());
        assert_eq!(allowed(), before);
    }
}
