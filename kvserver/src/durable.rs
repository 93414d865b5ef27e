//! Holding replies until what they say survives power loss (`--durability sync`).
//!
//! Writes go to the log buffered, the key locks are let go, and the connection waits here with its replies: one thread
//! syncs for everyone who waits, again and again, so a sync is shared by all connections that wrote while the one
//! before was running. Replies to reads wait too if they could show a write that is not yet durable.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

/// Tickets: a sync that starts after a ticket was drawn covers everything written before.
#[derive(Debug)]
pub struct Durable {
    drawn: AtomicU64,
    writing: AtomicU64,
    wanted: Mutex<Wanted>,
    wake: Condvar,
    done: watch::Sender<Done>,
}

#[derive(Debug, Default)]
struct Wanted {
    ticket: u64,
    stop: bool,
}

#[derive(Debug, Clone, Default)]
struct Done {
    ticket: u64,
    failure: Option<betree::Error>,
}

impl Default for Durable {
    fn default() -> Self {
        Durable {
            drawn: AtomicU64::new(0),
            writing: AtomicU64::new(0),
            wanted: Mutex::default(),
            wake: Condvar::new(),
            done: watch::channel(Done::default()).0,
        }
    }
}

impl Durable {
    /// Marks a group as writing until the returned guard is dropped; its ticket is drawn before that.
    pub fn writing(&self) -> impl Drop + '_ {
        struct Writing<'a>(&'a Durable);
        impl Drop for Writing<'_> {
            fn drop(&mut self) {
                self.0.writing.fetch_sub(1, SeqCst);
            }
        }
        self.writing.fetch_add(1, SeqCst);
        Writing(self)
    }

    /// Draws a ticket for something just written.
    pub fn draw(&self) -> u64 {
        self.drawn.fetch_add(1, SeqCst) + 1
    }

    /// A ticket for something just read, if it may not be durable. Draws a new one only if a group is writing just now (it
    /// has no ticket yet): otherwise readers alone would keep the syncing going for ever. None either once a sync has failed:
    /// no later one can succeed, writes are refused from then on, and reads are served with what the log took before.
    pub fn draw_for_read(&self) -> Option<u64> {
        let covered = {
            let done = self.done.borrow();
            if done.failure.is_some() {
                return None;
            }
            done.ticket
        };
        if self.writing.load(SeqCst) > 0 {
            return Some(self.draw());
        }
        let drawn = self.drawn.load(SeqCst);
        (drawn > covered).then_some(drawn)
    }

    /// Waits until a sync covers the ticket.
    pub async fn wait(&self, ticket: u64) -> Result<(), betree::Error> {
        {
            let mut wanted = self.wanted.lock();
            wanted.ticket = wanted.ticket.max(ticket);
        }
        self.wake.notify_one();
        let mut done = self.done.subscribe();
        match done.wait_for(|done| done.ticket >= ticket || done.failure.is_some()).await {
            Ok(done) => done.failure.clone().map_or(Ok(()), Err),
            Err(_) => Err(betree::Error::Closed),
        }
    }

    /// The syncing thread; returns after [`Durable::stop`].
    pub fn run(self: &Arc<Self>, engine: &betree::Db) {
        let mut synced = 0;
        loop {
            {
                let mut wanted = self.wanted.lock();
                while wanted.ticket <= synced && !wanted.stop {
                    self.wake.wait(&mut wanted);
                }
                if wanted.stop && wanted.ticket <= synced {
                    return;
                }
            }
            // Drawn tickets, not wanted ones: everyone who has written by now is covered.
            let covers = self.drawn.load(SeqCst);
            let failure = engine.persist().err();
            synced = covers;
            self.done.send_modify(|done| {
                done.ticket = covers;
                done.failure = failure;
            });
        }
    }

    /// Lets the thread end once nobody waits.
    pub fn stop(&self) {
        self.wanted.lock().stop = true;
        self.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_wait_for_writes_before_them_and_for_none_once_a_sync_has_failed() {
        let durable = Durable::default();
        assert_eq!(durable.draw_for_read(), None);
        let ticket = durable.draw();
        assert_eq!(durable.draw_for_read(), Some(ticket));
        durable.done.send_modify(|done| done.ticket = ticket);
        assert_eq!(durable.draw_for_read(), None);
        let writing = durable.writing();
        assert!(durable.draw_for_read() > Some(ticket));
        drop(writing);
        durable.done.send_modify(|done| done.failure = Some(betree::Error::Closed));
        // A write that is refused after that draws a ticket, too, and no sync will ever cover it.
        let writing = durable.writing();
        durable.draw();
        assert_eq!(durable.draw_for_read(), None);
        drop(writing);
        assert_eq!(durable.draw_for_read(), None);
    }
}
