//! What a connection remembers between commands.

use std::sync::Arc;

use crate::clients::Client;
use crate::resp::Span;

/// A command kept for EXEC, with bytes of its own.
#[derive(Debug)]
pub struct Queued {
    /// Its position in the command table.
    pub spec: &'static crate::command::Spec,
    /// The bytes of its arguments.
    pub bytes: Vec<u8>,
    /// Where they lie.
    pub spans: Vec<Span>,
}

/// An open MULTI.
#[derive(Debug, Default)]
pub struct Multi {
    /// Commands in order.
    pub queue: Vec<Queued>,
    /// Bytes they take.
    pub bytes: usize,
    /// A command was refused while queueing: EXEC will refuse the whole.
    pub broken: bool,
}

/// A key under WATCH.
#[derive(Debug, Clone, Copy)]
pub struct Watched {
    /// Its stripe.
    pub stripe: u32,
    /// The stripe's version when it was watched.
    pub version: u64,
}

/// Which replies are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReplyMode {
    /// All.
    #[default]
    On,
    /// None.
    Off,
    /// Not this one; all from the next but one.
    SkipThis,
    /// Not the next one.
    SkipNext,
}

/// State of a connection.
#[derive(Debug)]
pub struct Session {
    /// Its entry in the registry.
    pub client: Arc<Client>,
    /// The selected database.
    pub db: u8,
    /// Whether the password was given, or none is needed.
    pub authenticated: bool,
    /// Whether RESP3 is spoken.
    pub resp3: bool,
    /// An open MULTI.
    pub multi: Option<Multi>,
    /// Keys under WATCH.
    pub watched: Vec<Watched>,
    /// CLIENT REPLY.
    pub reply_mode: ReplyMode,
    /// The connection ends after the replies so far.
    pub closing: bool,
}

impl Session {
    /// A fresh session.
    pub fn new(client: Arc<Client>, authenticated: bool) -> Self {
        Session {
            client,
            db: 0,
            authenticated,
            resp3: false,
            multi: None,
            watched: Vec::new(),
            reply_mode: ReplyMode::On,
            closing: false,
        }
    }

    /// RESET: as if newly connected.
    pub fn reset(&mut self, authenticated: bool) {
        *self = Session::new(self.client.clone(), authenticated);
        self.client.name.lock().clear();
        self.publish();
    }

    /// Shows the state in the registry.
    pub fn publish(&self) {
        use std::sync::atomic::Ordering::Relaxed;
        self.client.db.store(self.db, Relaxed);
        self.client.resp.store(if self.resp3 { 3 } else { 2 }, Relaxed);
        self.client.multi.store(self.multi.as_ref().map_or(-1, |m| m.queue.len() as i64), Relaxed);
    }
}
