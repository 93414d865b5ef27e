//! What ends a ring's wait early: a counter of the kernel that the ring polls and other threads raise.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::task::{Wake, Waker};

use io_uring::{opcode, squeue, types};

use crate::sys;

/// The ring's end of it.
pub(super) struct Alarm {
    bell: Arc<Bell>,
    /// Whether the ring has a poll for it that the kernel has not answered.
    pub(super) armed: bool,
}

/// The other threads' end.
struct Bell(File);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Fails only when the counter is full, and has then been raised all the same.
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }
}

impl Alarm {
    /// `None` if the kernel has no counter left.
    pub(super) fn new() -> Option<Self> {
        let bell = Arc::new(Bell(File::from(sys::event_counter().ok()?)));
        Some(Self { bell, armed: false })
    }

    pub(super) fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.bell))
    }

    /// Completes when it has rung.
    pub(super) fn entry(&self) -> squeue::Entry {
        opcode::PollAdd::new(types::Fd(self.bell.0.as_raw_fd()), libc::POLLIN as u32).build()
    }

    /// Takes the kernel's answer: it can ring again.
    pub(super) fn reset(&mut self) {
        self.armed = false;
        let _ = (&self.bell.0).read(&mut [0; 8]);
    }
}
