//! Point reads for callers that do not wait: futures, and the thread that answers them.
//!
//! What memory can answer is answered in the call. The rest is queued here for one thread, which keeps the page reads of all of it in flight together: it
//! begins what is new, goes to the device for the pages that are missing, and goes on with each lookup when its page has come. Whoever queues
//! something wakes it, whether it sleeps or waits for the device, so nobody waits for the reads of others. The first read that needs the thread starts it,
//! and it stays until the database is closed. A database without background threads answers in the call.
//!
//! A lookup is begun anew with every page that has come for it, with what came before at hand: it borrows from the view, and this is cheap beside
//! a read. A read whose future was dropped is given up with its next page.
//!
//! Locks: the queue's and that of an answer, each for a moment and never together with another.

use std::collections::{HashMap, VecDeque};
use std::fmt::{Debug, Formatter};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use betree_pager::{IoCompletion, Page, PagerIo};
use betree_storage::primitives::{Condvar, Mutex};
use bytes::Bytes;

use crate::get::{self, Missing, Want};
use crate::shared::Shared;
use crate::state::State;
use crate::types::Seqno;
use crate::view::View;
use crate::{Error, Result};

/// Reads in flight.
const MOST: usize = 64;

/// A read that needs the device.
pub(crate) struct ColdRead {
    pub state: Arc<State>,
    pub view: Arc<View>,
    pub at: Seqno,
    pub key: Box<[u8]>,
    /// Gone if nobody waits any more.
    pub answer: Weak<Answer>,
    /// Whose of the answer's values it is.
    pub index: usize,
}

impl ColdRead {
    fn tell(mut self, value: Result<Option<Bytes>>) {
        self.tell_once(value);
    }

    fn tell_once(&mut self, value: Result<Option<Bytes>>) {
        if let Some(answer) = std::mem::take(&mut self.answer).upgrade() {
            answer.tell(self.index, value);
        }
    }
}

impl Drop for ColdRead {
    /// Nobody waits for ever: a read that was not carried out is refused.
    fn drop(&mut self) {
        self.tell_once(Err(Error::Closed));
    }
}

/// What a future waits for.
pub(crate) struct Answer {
    inner: Mutex<Partial>,
    /// Whether values are kept, or only wanted in the caches.
    keep: bool,
}

struct Partial {
    values: Vec<Option<Bytes>>,
    missing: usize,
    error: Option<Error>,
    waker: Option<Waker>,
}

impl Answer {
    /// With the values that are known, of which `missing` are not.
    pub(crate) fn new(values: Vec<Option<Bytes>>, missing: usize, keep: bool) -> Arc<Answer> {
        Arc::new(Answer { inner: Mutex::new(Partial { values, missing, error: None, waker: None }), keep })
    }

    fn tell(&self, index: usize, value: Result<Option<Bytes>>) {
        let mut inner = self.inner.lock();
        match value {
            Ok(value) if self.keep => inner.values[index] = value,
            Ok(_) => {}
            Err(error) => inner.error = Some(error),
        }
        inner.missing -= 1;
        let waker = if inner.missing == 0 { inner.waker.take() } else { None };
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll(&self, waker: &Waker) -> Poll<Result<Vec<Option<Bytes>>>> {
        let mut inner = self.inner.lock();
        if inner.missing > 0 {
            if !inner.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
                inner.waker = Some(waker.clone());
            }
            return Poll::Pending;
        }
        let values = std::mem::take(&mut inner.values);
        Poll::Ready(inner.error.take().map_or(Ok(values), Err))
    }
}

#[derive(Default)]
struct Queue {
    reads: VecDeque<ColdRead>,
    started: bool,
    stop: bool,
    /// The thread waits for reads, and for nothing else.
    asleep: bool,
    /// Ends the thread's wait for the device.
    waker: Option<Waker>,
    /// That was done since the thread last looked.
    woken: bool,
}

/// The queue of the thread that reads.
#[derive(Default)]
pub(crate) struct Readers {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Debug for Readers {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readers").finish_non_exhaustive()
    }
}

impl Readers {
    /// Queues reads. Whether the caller is to start the thread (and to say so if it cannot: [`Readers::not_started`]).
    pub(crate) fn push(&self, reads: Vec<ColdRead>) -> bool {
        let mut queue = self.queue.lock();
        if queue.stop {
            return false;
        }
        queue.reads.extend(reads);
        if !queue.started {
            queue.started = true;
            return true;
        }
        self.rouse(&mut queue);
        false
    }

    fn rouse(&self, queue: &mut Queue) {
        if queue.asleep {
            self.wake.notify_one();
        } else if !queue.woken
            && let Some(waker) = &queue.waker
        {
            waker.wake_by_ref();
            queue.woken = true;
        }
    }

    /// There is no thread: what is queued.
    pub(crate) fn not_started(&self) -> Vec<ColdRead> {
        let mut queue = self.queue.lock();
        queue.started = false;
        queue.reads.drain(..).collect()
    }

    /// Ends the thread with what is in flight; what is queued is answered with [`Error::Closed`].
    pub(crate) fn stop(&self) {
        let mut queue = self.queue.lock();
        queue.stop = true;
        let refused = std::mem::take(&mut queue.reads);
        self.rouse(&mut queue);
        drop(queue);
        drop(refused);
    }

    /// Takes reads, no more than can be in flight with the `flying`; waits for some if none is. `false`: there will be none, and none is in flight.
    fn take(&self, flying: usize, begun: &mut Vec<ColdRead>) -> bool {
        let mut queue = self.queue.lock();
        while queue.reads.is_empty() && flying == 0 && !queue.stop {
            queue.asleep = true;
            self.wake.wait(&mut queue);
            queue.asleep = false;
        }
        queue.woken = false;
        let many = queue.reads.len().min(MOST - flying);
        begun.extend(queue.reads.drain(..many));
        !(queue.stop && flying == 0 && begun.is_empty())
    }
}

/// A read, and the pages that have come for it.
struct Flight {
    read: ColdRead,
    pages: Vec<Page>,
}

/// What the thread works with.
struct Flights<'a> {
    shared: &'a Shared,
    io: PagerIo,
    /// By the token of the read for the page that is missing.
    flying: HashMap<u64, (Flight, Missing)>,
    tokens: u64,
}

impl Flights<'_> {
    /// Goes on as far as there are pages.
    fn go(&mut self, mut flight: Flight) {
        let pager = &self.shared.pager;
        loop {
            let Flight { read, pages } = &mut flight;
            if read.answer.strong_count() == 0 {
                return;
            }
            let fetch = |want: &Want<'_>| {
                let come = pages.iter().find(|page| want.is(page)).cloned();
                come.or_else(|| pager.cached(want.reference()))
            };
            let reader = self.shared.reader(read.state.id);
            let operator = || read.state.operator();
            match get::attempt(reader, operator, &read.view, &read.key, read.at, fetch) {
                Err(error) => return flight.read.tell(Err(error)),
                Ok(Ok(value)) => return flight.read.tell(Ok(value)),
                Ok(Err(missing)) => match pager.cached_or_missed(missing.want().reference()) {
                    Some(page) => pages.push(page),
                    None => {
                        let (extent, at, len) = missing.place();
                        self.tokens += 1;
                        self.io.submit_read(extent, at, len, self.tokens);
                        self.flying.insert(self.tokens, (flight, missing));
                        return;
                    }
                },
            }
        }
    }

    /// Takes what the device has answered.
    fn come(&mut self, completion: IoCompletion) {
        // Each was submitted with a flight.
        let Some((mut flight, missing)) = self.flying.remove(&completion.token) else { return };
        let accept = || self.shared.pager.accept(&missing.want().reference(), &completion.buf);
        let page = completion.result.and_then(|()| accept());
        self.io.recycle(completion.buf);
        match page {
            Ok(page) => {
                flight.pages.push(page);
                self.go(flight);
            }
            Err(error) => flight.read.tell(Err(error.into())),
        }
    }
}

impl Shared {
    /// What the thread of [`Readers`] does. Should an assert fail on the way, what was asked for is refused, and so is what will be, and writing ends as well.
    pub(crate) fn keep_reading(&self) {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.read_until_stopped())).is_err() {
            self.poison.set_panicked();
            self.readers.stop();
        }
    }

    fn read_until_stopped(&self) {
        let (mut begun, mut done) = (Vec::new(), Vec::new());
        let Ok(mut io) = self.pager.io() else {
            // The system has no room for another ring. One after the other, then.
            while self.readers.take(0, &mut begun) {
                self.answer(std::mem::take(&mut begun));
            }
            return;
        };
        self.readers.queue.lock().waker = Some(io.waker());
        let mut flights = Flights { shared: self, io, flying: HashMap::new(), tokens: 0 };
        while self.readers.take(flights.flying.len(), &mut begun) {
            begun.drain(..).for_each(|read| flights.go(Flight { read, pages: Vec::new() }));
            if !flights.flying.is_empty() {
                flights.io.wait(1, &mut done);
                done.drain(..).for_each(|completion| flights.come(completion));
            }
        }
    }

    /// Answers reads in this thread.
    pub(crate) fn answer(&self, reads: Vec<ColdRead>) {
        for read in reads {
            let (reader, operator) = (self.reader(read.state.id), || read.state.operator());
            let found = get::get(reader, operator, &read.view, &read.key, read.at);
            read.tell(found);
        }
    }
}

/// What all futures here are: values that are known, or waited for.
pub(crate) enum Reading {
    Known(Result<Vec<Option<Bytes>>>),
    Waiting(Arc<Answer>),
    /// The future has completed.
    Over,
}

impl Reading {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Option<Bytes>>>> {
        if let Reading::Waiting(answer) = self {
            let values = std::task::ready!(answer.poll(cx.waker()));
            *self = Reading::Over;
            return Poll::Ready(values);
        }
        match std::mem::replace(self, Reading::Over) {
            Reading::Known(values) => Poll::Ready(values),
            // To be polled once more is a mistake of the caller's that would otherwise hang his task.
            Reading::Waiting(_) | Reading::Over => panic!("a read was polled after it had completed"),
        }
    }

    fn is_known(&self) -> bool {
        match self {
            Reading::Known(_) => true,
            Reading::Waiting(answer) => answer.inner.lock().missing == 0,
            Reading::Over => false,
        }
    }
}

macro_rules! future {
    ($(#[$text:meta])* $name:ident -> $output:ty, $make:expr) => {
        $(#[$text])*
        #[must_use = "the read is given up when this is dropped"]
        pub struct $name(pub(crate) Reading);

        impl $name {
            /// Whether it will complete without waiting.
            pub fn is_ready(&self) -> bool {
                self.0.is_known()
            }
        }

        impl Future for $name {
            type Output = Result<$output>;

            fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
                self.0.poll(cx).map(|values| values.map($make))
            }
        }

        impl Debug for $name {
            fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name)).field("is_ready", &self.is_ready()).finish()
            }
        }
    };
}

future! {
    /// The value of a key: what [`Keyspace::get_async`](crate::Keyspace::get_async) returns.
    GetFuture -> Option<Bytes>, |values| values.into_iter().next().flatten()
}

future! {
    /// The values of keys, in their order: what [`Keyspace::multi_get_async`](crate::Keyspace::multi_get_async) returns.
    MultiGetFuture -> Vec<Option<Bytes>>, |values| values
}

future! {
    /// Completes when everything was read: what [`Keyspace::prefetch`](crate::Keyspace::prefetch) returns.
    PrefetchFuture -> (), |_| ()
}
