//! The io_uring ring.
//!
//! Owns every request from submission to completion: buffer and file stay in a slot until the kernel has answered, so
//! the addresses handed to the kernel stay valid. Invariants: at most `depth` slots are in use and the submission queue
//! has at least that many entries, so it never overflows, and neither does the completion queue, twice that size;
//! `pushed` mirrors the entries the kernel has not yet consumed, in order.
//!
//! Rings are pooled and may be used by several threads in turn, and set up by one that never uses them: that rules out
//! `SINGLE_ISSUER` and with it `DEFER_TASKRUN`; `COOP_TASKRUN` alone spares the interrupts. When a thread ends, the
//! kernel cancels what it had in flight; such requests are submitted again. Holds no lock.

#![allow(unsafe_code, reason = "hands buffer addresses to the kernel")]

mod alarm;
mod slot;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use io_uring::IoUring;

use self::alarm::Alarm;
use self::slot::{MAX_TRANSFER, Op, Outcome, Slot, usable_fd};
use crate::portable::perform;
use crate::{ALIGN, Completion, Error, Request, Result, Ring};

/// A deeper ring gains nothing on any device and costs kernel memory.
const MAX_DEPTH: usize = 4096;
/// The pause before asking again when the kernel is out of resources.
const PAUSE: Duration = Duration::from_micros(100);

/// Moments between two looks of who busy-waits.
const BETWEEN_LOOKS: u32 = 16;

/// What the kernel calls the alarm's entry; no slot has this number.
const ALARM: usize = usize::MAX;

/// A ring of the kernel and the requests it holds.
pub(crate) struct UringRing {
    ring: IoUring,
    depth: usize,
    /// See [`Ring::set_piece`].
    piece: usize,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Slots whose entries lie in the submission queue, oldest first.
    pushed: VecDeque<usize>,
    done: Vec<Completion>,
    /// Set when the kernel refuses submissions for good: requests are then carried out by blocking calls.
    broken: bool,
    scratch: Vec<(u64, i32)>,
    alarm: Option<Alarm>,
    /// The alarm has rung since the last wait.
    rung: bool,
}

impl UringRing {
    /// Sets a ring up, with as many of the wanted features as the kernel has.
    pub(crate) fn new(depth: usize) -> io::Result<Self> {
        let depth = depth.clamp(1, MAX_DEPTH);
        let entries = depth.next_power_of_two() as u32;
        let cooperative = IoUring::builder().setup_coop_taskrun().setup_taskrun_flag().build(entries);
        let ring = match cooperative {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::new(entries)?,
            other => other?,
        };
        Ok(Self {
            ring,
            depth,
            piece: MAX_TRANSFER,
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            pushed: VecDeque::with_capacity(depth),
            done: Vec::new(),
            broken: false,
            scratch: Vec::with_capacity(depth),
            alarm: None,
            rung: false,
        })
    }

    /// Whether rings can be set up here and know the requests we make; early kernels have the one without the other.
    pub(crate) fn probe() -> io::Result<()> {
        let ring = Self::new(2)?;
        let mut probe = io_uring::Probe::new();
        ring.ring.submitter().register_probe(&mut probe)?;
        if slot::OPCODES.iter().all(|&code| probe.is_supported(code)) {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring lacks reads and writes"))
    }

    fn active(&self) -> usize {
        self.depth - self.free.len()
    }

    /// Puts a request into a slot and its entry into the queue; one that needs no kernel is done at once.
    fn start(&mut self, token: u64, request: Request) {
        let (file, op) = match request {
            Request::Read { file, offset, buf } => (file, Op::Read { offset, buf, done: 0 }),
            Request::Write { file, offset, buf } => (file, Op::Write { offset, buf, done: 0 }),
            Request::Sync { file } => (file, Op::Sync),
        };
        if op.is_empty() {
            self.done.push(Completion { token, buf: op.into_buf(), result: Ok(()) });
            return;
        }
        let fd = match usable_fd(&*file, &op) {
            Ok(fd) => fd,
            Err(error) => {
                self.done.push(Completion { token, buf: op.into_buf(), result: Err(error) });
                return;
            }
        };
        while self.free.is_empty() {
            self.advance(1);
        }
        if let Some(index) = self.free.pop() {
            self.slots[index] = Some(Slot::new(token, file, fd, op));
            self.push(index);
        }
    }

    /// Puts the entry for what is left of a slot's request into the submission queue.
    fn push(&mut self, index: usize) {
        let Some(slot) = &mut self.slots[index] else { return };
        if self.broken {
            let op = slot.op.name();
            self.finish(index, Err(refused(op)));
            return;
        }
        let entry = slot.entry(self.piece).user_data(index as u64);
        // SAFETY: buffer and file of the entry stay in the slot until its completion was seen: slots are emptied by
        // `finish` only, and dropping the ring waits for all of them.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        match pushed {
            Ok(()) => self.pushed.push_back(index),
            Err(_full) => {
                let op = slot.op.name();
                self.finish(index, Err(refused(op)));
            }
        }
    }

    /// Hands queued entries to the kernel and waits until `want` completions are there.
    fn enter(&mut self, want: usize) {
        if self.broken {
            // Entries left in the queue must never be seen by the kernel, so nothing but time may pass here.
            thread::sleep(PAUSE);
            return;
        }
        let result = self.ring.submit_and_wait(want);
        let left = self.ring.submission().len();
        let consumed = self.pushed.len().saturating_sub(left);
        self.pushed.drain(..consumed);
        let Err(error) = result else { return };
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => thread::sleep(PAUSE),
            _ => {
                self.broken = true;
                while let Some(index) = self.pushed.pop_front() {
                    if index == ALARM {
                        continue;
                    }
                    let op = self.slots[index].as_ref().map_or("submit", |slot| slot.op.name());
                    let cause = io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO));
                    let error = self.error(index, op, cause);
                    self.finish(index, Err(error));
                }
            }
        }
    }

    /// Hands queued entries over without waiting.
    fn flush(&mut self) {
        while !self.pushed.is_empty() && !self.broken {
            self.enter(0);
            if !self.pushed.is_empty() {
                self.reap();
            }
        }
    }

    /// Waits for `want` completions of the kernel and takes what is there.
    fn advance(&mut self, want: usize) {
        self.enter(want);
        self.reap();
    }

    /// Takes the completions that are there.
    fn reap(&mut self) {
        let mut events = std::mem::take(&mut self.scratch);
        events.extend(self.ring.completion().map(|event| (event.user_data(), event.result())));
        for (index, code) in events.drain(..) {
            self.complete(index as usize, code);
        }
        self.scratch = events;
    }

    /// Takes the kernel's answer for one slot: finishes the request or submits what is left of it.
    fn complete(&mut self, index: usize, code: i32) {
        if index == ALARM {
            self.alarm.iter_mut().for_each(Alarm::reset);
            self.rung = true;
            return;
        }
        let Some(slot) = self.slots.get_mut(index).and_then(Option::as_mut) else { return };
        match slot.outcome(code) {
            Outcome::Finished(result) => self.finish(index, result),
            Outcome::Continue => self.push(index),
        }
    }

    /// Has the kernel look whether the alarm rings. REQUIRES: nothing lies in the submission queue, so that there is room.
    fn arm(&mut self) {
        let Some(alarm) = self.alarm.as_mut().filter(|alarm| !alarm.armed) else { return };
        let entry = alarm.entry().user_data(ALARM as u64);
        // SAFETY: the entry names no memory, and the kernel keeps the counter open as long as it needs it.
        alarm.armed = unsafe { self.ring.submission().push(&entry) }.is_ok();
        if alarm.armed {
            self.pushed.push_back(ALARM);
        }
    }

    fn finish(&mut self, index: usize, result: Result<()>) {
        if let Some(slot) = self.slots[index].take() {
            self.free.push(index);
            self.done.push(Completion { token: slot.token, buf: slot.op.into_buf(), result });
        }
    }

    fn error(&self, index: usize, op: &'static str, cause: io::Error) -> Error {
        let name = self.slots[index].as_ref().map_or("", |slot| slot.file.name());
        Error::from_io(op, name, None, cause)
    }
}

impl Ring for UringRing {
    fn submit(&mut self, batch: &mut Vec<(u64, Request)>) {
        for (token, request) in batch.drain(..) {
            if self.broken {
                self.done.push(perform(token, request));
            } else {
                self.start(token, request);
            }
        }
        self.flush();
    }

    fn wait(&mut self, min: usize, out: &mut Vec<Completion>) {
        if self.active() != 0 && !self.broken && self.ring.submission().taskrun() {
            self.enter(0);
        }
        self.reap();
        loop {
            let want = min.saturating_sub(self.done.len()).min(self.active());
            if want == 0 || self.rung {
                break;
            }
            self.flush();
            self.arm();
            self.advance(want);
        }
        self.rung = false;
        // Continuations that the last completions made.
        self.flush();
        out.append(&mut self.done);
    }

    fn busy_wait(&mut self, limit: Duration) {
        self.flush();
        let began = Instant::now();
        while self.done.is_empty() && self.active() != 0 && !self.broken && began.elapsed() < limit {
            for _ in 0..BETWEEN_LOOKS {
                std::hint::spin_loop();
            }
            // The kernel notes what has completed at the end of a system call.
            if self.ring.submission().taskrun() {
                self.enter(0);
            }
            self.reap();
        }
    }

    fn in_flight(&self) -> usize {
        self.active() + self.done.len()
    }

    fn set_piece(&mut self, bytes: usize) {
        debug_assert!(bytes > 0 && bytes.is_multiple_of(ALIGN), "pieces of {bytes} bytes");
        self.piece = bytes;
    }

    fn waker(&mut self) -> Waker {
        if self.alarm.is_none() {
            self.alarm = Alarm::new();
        }
        self.alarm.as_ref().map_or_else(|| Waker::noop().clone(), Alarm::waker)
    }
}

impl Drop for UringRing {
    fn drop(&mut self) {
        while self.active() != 0 {
            self.advance(self.active());
        }
    }
}

impl fmt::Debug for UringRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("UringRing");
        out.field("depth", &self.depth).field("active", &self.active());
        out.field("done", &self.done.len()).field("broken", &self.broken).finish_non_exhaustive()
    }
}

fn refused(op: &'static str) -> Error {
    Error::from_io(op, "io_uring", None, io::Error::other("the kernel refuses submissions"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::file::DiskFile;
    use crate::{AlignedBuf, Caching, File};

    fn disk_file(file: std::fs::File) -> Arc<dyn File> {
        Arc::new(DiskFile::new("f".to_owned(), file, Caching::Buffered))
    }

    fn device(path: &str) -> Arc<dyn File> {
        disk_file(std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap())
    }

    fn file_of(len: u64) -> Arc<dyn File> {
        let file = disk_file(tempfile::tempfile().unwrap());
        file.set_len(len).unwrap();
        file
    }

    /// A ring, or none where the kernel has none for us.
    fn ring() -> Option<UringRing> {
        UringRing::new(4).ok()
    }

    fn one(ring: &mut UringRing, request: Request) -> Result<()> {
        let mut out = Vec::new();
        ring.submit(&mut vec![(1, request)]);
        ring.wait(1, &mut out);
        assert_eq!((out.len(), ring.in_flight()), (1, 0));
        out.remove(0).result
    }

    #[test]
    fn a_failed_sync_latches_the_file_for_every_path() {
        let Some(mut ring) = ring() else { return };
        let file = device("/dev/null");
        let first = one(&mut ring, Request::Sync { file: Arc::clone(&file) }).unwrap_err();
        assert!(matches!(first, Error::SyncFailed { .. }), "{first}");
        assert_eq!(file.sync().unwrap_err().to_string(), first.to_string());
        assert!(one(&mut ring, Request::Sync { file }).is_err());
    }

    #[test]
    fn requests_that_go_in_pieces_are_carried_out_whole_and_complete_once() {
        let Some(mut ring) = ring() else { return };
        let file = file_of(0);
        let content: Vec<u8> = (0..50_000u32).flat_map(|i| i.to_le_bytes()).collect();
        let buf = AlignedBuf::copy_of(&content);
        ring.set_piece(3 * ALIGN);
        ring.submit(&mut vec![(1, Request::Write { file: Arc::clone(&file), offset: 0, buf })]);
        let (mut out, mut looks) = (Vec::new(), 0);
        while ring.in_flight() > 0 {
            // A request counts as one, however many pieces of it the kernel has answered.
            ring.wait(1, &mut out);
            looks += 1;
        }
        assert_eq!((out.len(), looks), (1, 1));
        assert!(out.remove(0).result.is_ok());
        let buf = AlignedBuf::zeroed(content.len());
        ring.set_piece(ALIGN);
        ring.submit(&mut vec![(2, Request::Read { file: Arc::clone(&file), offset: 0, buf })]);
        ring.enter(1);
        let answer = ring.ring.completion().next().map(|event| (event.user_data() as usize, event.result()));
        let (index, code) = answer.unwrap();
        assert_eq!(code as usize, ALIGN, "the device was asked for one piece");
        ring.complete(index, code);
        ring.set_piece(MAX_TRANSFER);
        ring.wait(1, &mut out);
        let read = out.remove(0);
        assert!(read.result.is_ok());
        assert!(read.buf.as_deref() == Some(&content[..]));
    }

    #[test]
    fn a_write_to_a_full_device_is_no_space() {
        let Some(mut ring) = ring() else { return };
        let request = Request::Write { file: device("/dev/full"), offset: 0, buf: AlignedBuf::zeroed(4096) };
        assert!(one(&mut ring, request).unwrap_err().is_no_space());
    }

    #[test]
    fn a_waker_ends_the_wait_under_way_or_the_next_one_and_takes_nothing_away() {
        let Some(mut ring) = ring() else { return };
        let waker = ring.waker();
        let (reader, mut writer) = std::io::pipe().unwrap();
        let pipe = disk_file(std::fs::File::from(std::os::fd::OwnedFd::from(reader)));
        // Completes when something is written into the pipe.
        let request = Request::Read { file: pipe, offset: 0, buf: AlignedBuf::zeroed(4) };
        ring.submit(&mut vec![(7, request)]);
        let mut out = Vec::new();
        for _ in 0..3 {
            waker.wake_by_ref();
            ring.wait(1, &mut out);
            let other = waker.clone();
            let ringing = thread::spawn(move || {
                thread::sleep(std::time::Duration::from_millis(20));
                other.wake();
            });
            ring.wait(1, &mut out);
            ringing.join().unwrap();
            assert_eq!((out.len(), ring.in_flight()), (0, 1));
        }
        io::Write::write_all(&mut writer, b"done").unwrap();
        ring.wait(1, &mut out);
        assert_eq!((out.len(), ring.in_flight()), (1, 0));
        assert_eq!(out[0].buf.as_deref(), Some(&b"done"[..]));
        // Nothing is in flight: nobody waits.
        ring.wait(1, &mut out);
    }

    #[test]
    fn a_ring_that_the_kernel_refuses_goes_on_with_blocking_calls() {
        let Some(mut ring) = ring() else { return };
        ring.broken = true;
        let file = file_of(0);
        let write = Request::Write { file: Arc::clone(&file), offset: 0, buf: AlignedBuf::copy_of(b"text") };
        one(&mut ring, write).unwrap();
        assert_eq!(file.len().unwrap(), 4);
    }
}
