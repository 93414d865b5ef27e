//! Executes the commands of a pipeline: in groups, each group one engine batch.
//!
//! A group is as many neighbouring commands as know their keys beforehand. Its life: take the locks of every key that
//! one of them writes, run them in order (reads see the group's own writes), commit one batch, let the locks go, then
//! answer. Commands that write keys they do not name run alone under all locks; commands that walk over many keys run
//! alone without locks, the long ones on another thread.
//!
//! Invariant: a reply to a write exists only if its batch was committed. If the commit fails, the replies of the group
//! are taken back: writes get the error, reads are executed again without the lost writes.
//!
//! A command that reads what is not in memory does not wait for the device while others wait for the thread: its group ends before it, what the
//! rest of the group will read is read with nothing held, and the rest begins a new group.
//!
//! No lock is held across an await.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::command::{Args, Context, Flags, Job, Kind, Spec, Waits, find_position};
use crate::failure::Failure;
use crate::metrics::Metrics;
use crate::pending::Pending;
use crate::resp::{Pipeline, Reply, Span};
use crate::session::{Multi, Queued, ReplyMode, Session};
use crate::shared::Shared;
use crate::store::now_ms;

/// Most commands of one group.
const GROUP: usize = 1024;
/// Most bytes that MULTI may queue, and most commands.
const QUEUE_BYTES: usize = 64 << 20;
const QUEUE_COMMANDS: usize = 1 << 20;

/// Executes commands for one connection.
#[derive(Debug)]
pub struct Executor {
    shared: Arc<Shared>,
    /// What the connection remembers.
    pub session: Session,
    pending: Pending,
    stripes: Vec<u32>,
    marks: Vec<Mark>,
    /// For the latest write since [`Executor::take_ticket`]; see `durable`.
    ticket: Option<u64>,
}

/// How things stood before a command of a group.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// Where its reply begins.
    at: usize,
    db: u8,
    resp3: bool,
}

/// One command of a pipeline.
#[derive(Clone, Copy)]
struct Request<'a> {
    /// Its position in the command table, and what stands there.
    index: usize,
    spec: Option<&'static Spec>,
    args: Args<'a>,
}

impl Executor {
    /// For a new connection.
    pub fn new(shared: Arc<Shared>, session: Session) -> Self {
        let pending = Pending::new(&shared.store);
        Executor { shared, session, pending, stripes: Vec::new(), marks: Vec::new(), ticket: None }
    }

    /// The ticket of the latest write since the last call, if there was one.
    pub fn take_ticket(&mut self) -> Option<u64> {
        self.ticket.take()
    }

    /// Executes commands from number `next` on, appends their replies, and returns the number of the first command
    /// not yet executed: it stops early when the connection is to close or the output is `full` bytes long. `waits`: nobody else waits for the thread.
    pub async fn run(
        &mut self,
        bytes: &[u8],
        pipeline: &Pipeline,
        mut next: usize,
        reply: &mut Reply,
        full: usize,
        waits: bool,
    ) -> usize {
        let mut group = Vec::new();
        // What has been fetched may be gone again: the command for which it was waits for it, so that every group executes something.
        let mut fetched = false;
        while next < pipeline.len() && !self.session.closing && reply.len() < full {
            group.clear();
            let mut alone = None;
            for i in next..pipeline.len().min(next + GROUP) {
                let args = Args::new(bytes, pipeline.command(i));
                let (index, spec) = find_position(args.get(0)).unzip();
                let request = Request { index: index.unwrap_or(0), spec, args };
                if self.stands_alone(&request) {
                    alone = Some(request);
                    break;
                }
                group.push(request);
            }
            if !group.is_empty() {
                let done = self.run_group(&group, reply, waits, fetched);
                next += done;
                let rest = &group[done..];
                fetched = !rest.is_empty() && !self.session.closing;
                if fetched {
                    self.fetch(rest).await;
                }
            } else if let Some(request) = alone {
                next += 1;
                self.run_alone(&request, reply).await;
            }
        }
        next
    }

    fn stands_alone(&self, request: &Request<'_>) -> bool {
        request.spec.is_some_and(|spec| !matches!(spec.kind, Kind::Plain(_)))
    }

    /// Has the device read what these commands name.
    async fn fetch(&self, requests: &[Request<'_>]) {
        let mut keys = Vec::new();
        for request in requests {
            let Some(spec) = request.spec.filter(|spec| reads(spec, request.args.len())) else { continue };
            keys.extend(spec.keys.positions(request.args.len()).map(|i| request.args.get(i)));
        }
        self.shared.store.prefetch(self.session.db, &keys).await;
    }

    /// Runs a group under its locks up to a command that needs the device (unless it `waits` for that, as the first one does if it was `fetched` for) or ends the
    /// connection; returns how many were executed.
    fn run_group(&mut self, group: &[Request<'_>], reply: &mut Reply, waits: bool, fetched: bool) -> usize {
        let shared = self.shared.clone();
        let mut stripes = std::mem::take(&mut self.stripes);
        stripes.clear();
        let mut tracking = false;
        for request in group {
            let Some(spec) = request.spec else { continue };
            tracking |= reads(spec, request.args.len());
            if spec.flags.has(Flags::WRITE) {
                let keys = spec.keys.positions(request.args.len());
                stripes.extend(keys.map(|i| shared.store.locks.stripe(request.args.get(i))));
            }
        }
        let start = reply.len();
        let writing = (!stripes.is_empty()).then(|| shared.durable.writing());
        let mut held = shared.store.locks.hold(&mut stripes);
        self.pending.begin(tracking);
        self.marks.clear();
        let now = now_ms();
        let mut done = 0;
        for request in group {
            if self.session.closing {
                break;
            }
            let waits = if waits || (fetched && done == 0) {
                Waits::Always
            } else {
                Waits::Beyond(self.pending.position())
            };
            let mark = Mark { at: reply.len(), db: self.session.db, resp3: reply.resp3() };
            if !self.one(request, reply, now, waits) {
                break;
            }
            self.marks.push(mark);
            done += 1;
            if self.pending.is_full() {
                // Recorded in `pending`, and dealt with below.
                let _ = self.pending.commit(&shared.store);
            }
        }
        let _ = self.pending.commit(&shared.store);
        Metrics::add(&shared.metrics.commands, done as u64);
        if self.pending.has_written() {
            match self.pending.touched() {
                Some(touched) => held.bump_some(&stripes, touched),
                None => held.bump(),
            }
            self.ticket = Some(shared.durable.draw());
            Metrics::add(&shared.metrics.batches, 1);
        }
        drop(held);
        drop(writing);
        self.stripes = stripes;
        if let Some(error) = self.pending.failure() {
            self.take_back(&group[..done], reply, start, &Failure::Engine(error), now);
        }
        done
    }

    /// The group's batch was not written: answers again.
    fn take_back(
        &mut self,
        group: &[Request<'_>],
        reply: &mut Reply,
        start: usize,
        failure: &Failure,
        now: u64,
    ) {
        let old = reply.split_off(start);
        let marks = std::mem::take(&mut self.marks);
        let after = (self.session.db, reply.resp3());
        self.pending.begin(true);
        for (i, request) in group.iter().enumerate() {
            let from = marks[i].at - start;
            let to = marks.get(i + 1).map_or(old.len(), |mark| mark.at - start);
            let said = &old[from..to];
            // Not executed, or not to be answered: that stays.
            let settled = said.is_empty() || said[0] == b'-' || said == b"+QUEUED\r\n";
            self.session.db = marks[i].db;
            reply.set_resp3(marks[i].resp3);
            match request.spec {
                Some(spec) if spec.flags.has(Flags::WRITE) && !settled => failure.write(reply),
                Some(Spec { flags, kind: Kind::Plain(handler), .. })
                    if flags.has(Flags::READ) && !settled =>
                {
                    let begin = reply.len();
                    let result = handler(&mut self.context(reply, now, Waits::Always), request.args);
                    self.settle(result, reply, begin);
                }
                _ => reply.raw(said),
            }
        }
        self.session.db = after.0;
        reply.set_resp3(after.1);
        self.marks = marks;
    }

    fn context<'c>(&'c mut self, reply: &'c mut Reply, now: u64, waits: Waits) -> Context<'c> {
        Context {
            shared: &self.shared,
            session: &mut self.session,
            pending: &mut self.pending,
            reply,
            now,
            waits,
        }
    }

    /// Executes one plain command and answers it; `false` if it needs the device and was not to wait, and nothing has happened.
    fn one(&mut self, request: &Request<'_>, reply: &mut Reply, now: u64, waits: Waits) -> bool {
        let start = reply.len();
        if let Some(spec) = self.admit(request, reply)
            && let Kind::Plain(handler) = spec.kind
        {
            let result = handler(&mut self.context(reply, now, waits), request.args);
            if matches!(result, Err(Failure::Cold)) {
                reply.truncate(start);
                self.shared.metrics.calls[request.index].fetch_sub(1, Relaxed);
                return false;
            }
            self.settle(result, reply, start);
        }
        self.hush(reply, start);
        true
    }

    /// Answers a failure in place of whatever the handler may have appended.
    fn settle(&mut self, result: Result<(), Failure>, reply: &mut Reply, start: usize) {
        if let Err(failure) = result {
            reply.truncate(start);
            failure.write(reply);
            Metrics::add(&self.shared.metrics.errors, 1);
        }
    }

    /// CLIENT REPLY OFF and SKIP.
    fn hush(&mut self, reply: &mut Reply, start: usize) {
        match self.session.reply_mode {
            ReplyMode::On => {}
            ReplyMode::Off => reply.truncate(start),
            ReplyMode::SkipThis => {
                reply.truncate(start);
                self.session.reply_mode = ReplyMode::SkipNext;
            }
            ReplyMode::SkipNext => {
                reply.truncate(start);
                self.session.reply_mode = ReplyMode::On;
            }
        }
    }

    /// Everything that can be said before a handler runs; `None` if the command has been answered (or queued).
    fn admit(&mut self, request: &Request<'_>, reply: &mut Reply) -> Option<&'static Spec> {
        let metrics = &self.shared.metrics;
        if request.spec.is_none() && is_http(request.args.get(0)) {
            Metrics::add(&metrics.protocol_errors, 1);
            self.session.closing = true;
            return None;
        }
        if let Err(text) = self.check(request) {
            reply.error_bytes(&text);
            Metrics::add(&metrics.errors, 1);
            if let Some(multi) = &mut self.session.multi {
                multi.broken = true;
            }
            return None;
        }
        let spec = request.spec?;
        metrics.calls[request.index].fetch_add(1, Relaxed);
        let direct = spec.flags.has(Flags::NOT_QUEUED);
        match &mut self.session.multi {
            Some(multi) if !direct => {
                if spec.flags.has(Flags::NO_MULTI) {
                    multi.broken = true;
                    reply.error("ERR Command not allowed inside a transaction");
                } else if let Err(text) = enqueue(multi, spec, request.args) {
                    multi.broken = true;
                    reply.error(text);
                } else {
                    reply.simple("QUEUED");
                }
                None
            }
            _ => Some(spec),
        }
    }

    fn check(&self, request: &Request<'_>) -> Result<(), Vec<u8>> {
        let args = request.args;
        let Some(spec) = request.spec else { return Err(unknown(args)) };
        match spec.check(args) {
            Ok(()) => {}
            Err(Failure::Request(text)) => return Err(text.into_owned().into_bytes()),
            Err(Failure::Engine(error)) => return Err(format!("ERR {error}").into_bytes()),
            // To look at the arguments needs no device.
            Err(Failure::Cold) => {}
        }
        if !self.session.authenticated && !spec.flags.has(Flags::NO_AUTH) {
            return Err(b"NOAUTH Authentication required.".to_vec());
        }
        for i in spec.keys.positions(args.len()) {
            let len = args.get(i).len();
            if len > betree::MAX_KEY_LEN {
                return Err(format!("ERR {}", betree::Error::KeyTooLong { len }).into_bytes());
            }
        }
        Ok(())
    }

    async fn run_alone(&mut self, request: &Request<'_>, reply: &mut Reply) {
        let start = reply.len();
        Metrics::add(&self.shared.metrics.commands, 1);
        let Some(spec) = self.admit(request, reply) else { return self.hush(reply, start) };
        let now = now_ms();
        match spec.kind {
            Kind::Plain(_) => {}
            Kind::Exclusive(handler) => self.run_exclusive(handler, request.args, reply, now),
            Kind::Exec => self.exec(reply, now),
            Kind::Job(handler) => {
                self.pending.begin(true);
                let job = handler(&mut self.context(reply, now, Waits::Always), request.args);
                let result = match job {
                    Err(failure) => Err(failure),
                    Ok(Job::Here(work)) => work(reply),
                    Ok(Job::Aside(work)) => aside(work, reply).await,
                };
                self.settle(result, reply, start);
            }
        }
        self.hush(reply, start);
    }

    fn run_exclusive(
        &mut self,
        handler: crate::command::Handler,
        args: Args<'_>,
        reply: &mut Reply,
        now: u64,
    ) {
        let shared = self.shared.clone();
        let start = reply.len();
        let writing = shared.durable.writing();
        let mut held = shared.store.locks.hold_all();
        self.pending.begin(true);
        let result = handler(&mut self.context(reply, now, Waits::Always), args);
        let result = result.and_then(|()| self.pending.commit(&shared.store));
        self.pending.discard();
        held.bump();
        drop(held);
        self.ticket = Some(shared.durable.draw());
        drop(writing);
        self.settle(result, reply, start);
    }

    /// EXEC: the queue under the locks of all its keys, in one batch.
    fn exec(&mut self, reply: &mut Reply, now: u64) {
        let shared = self.shared.clone();
        let Some(multi) = self.session.multi.take() else {
            reply.error("ERR EXEC without MULTI");
            return;
        };
        let watched = std::mem::take(&mut self.session.watched);
        if multi.broken {
            reply.error("EXECABORT Transaction discarded because of previous errors.");
            return;
        }
        let start = reply.len();
        let mut stripes: Vec<u32> = watched.iter().map(|w| w.stripe).collect();
        let mut exclusive = false;
        for queued in &multi.queue {
            let args = Args::new(&queued.bytes, &queued.spans);
            exclusive |= matches!(queued.spec.kind, Kind::Exclusive(_));
            let keys = queued.spec.keys.positions(args.len());
            stripes.extend(keys.map(|i| shared.store.locks.stripe(args.get(i))));
        }
        let writing = shared.durable.writing();
        if exclusive {
            stripes = shared.store.locks.all_stripes();
        }
        let mut held = shared.store.locks.hold(&mut stripes);
        let unchanged = |w: &crate::session::Watched| {
            shared.store.locks.version_held(&held, &stripes, w.stripe) == Some(w.version)
        };
        if !watched.iter().all(unchanged) {
            reply.null_array();
            return;
        }
        self.pending.begin(true);
        reply.array(multi.queue.len());
        for queued in &multi.queue {
            self.one_queued(queued, reply, now);
        }
        let _ = self.pending.commit(&shared.store);
        if self.pending.has_written() || exclusive {
            match self.pending.touched() {
                Some(touched) if !exclusive => held.bump_some(&stripes, touched),
                _ => held.bump(),
            }
            self.ticket = Some(shared.durable.draw());
            Metrics::add(&shared.metrics.batches, 1);
        }
        drop(held);
        drop(writing);
        if let Some(error) = self.pending.failure() {
            // Which replies told the truth cannot be said in one array; the transaction failed as a whole.
            reply.truncate(start);
            Failure::Engine(error).write(reply);
        }
    }

    fn one_queued(&mut self, queued: &Queued, reply: &mut Reply, now: u64) {
        let args = Args::new(&queued.bytes, &queued.spans);
        let start = reply.len();
        let result = match queued.spec.kind {
            Kind::Plain(handler) => handler(&mut self.context(reply, now, Waits::Always), args),
            Kind::Exclusive(handler) => {
                let before = self.pending.commit(&self.shared.store);
                before.and_then(|()| handler(&mut self.context(reply, now, Waits::Always), args))
            }
            Kind::Job(handler) => {
                let before = self.pending.commit(&self.shared.store);
                before.and_then(|()| match handler(&mut self.context(reply, now, Waits::Always), args)? {
                    Job::Here(work) | Job::Aside(work) => work(reply),
                })
            }
            Kind::Exec => Ok(()),
        };
        self.settle(result, reply, start);
    }
}

/// Whether a command looks at what commands before it in its group may have written.
fn reads(spec: &Spec, args: usize) -> bool {
    let blind = spec.flags.has(Flags::BLIND) && (spec.name != "set" || args == 3);
    !blind && (spec.flags.has(Flags::WRITE) || spec.flags.has(Flags::READ))
}

fn enqueue(multi: &mut Multi, spec: &'static Spec, args: Args<'_>) -> Result<(), &'static str> {
    let mut bytes = Vec::with_capacity(args.from(0).map(<[u8]>::len).sum());
    let mut spans = Vec::with_capacity(args.len());
    for arg in args.from(0) {
        let start = bytes.len();
        bytes.extend_from_slice(arg);
        spans.push(Span { start, end: bytes.len() });
    }
    multi.bytes += bytes.len() + spans.len() * size_of::<Span>() + size_of::<Queued>();
    if multi.bytes > QUEUE_BYTES || multi.queue.len() >= QUEUE_COMMANDS {
        return Err("ERR the transaction is too large: more than 64 MiB or 1048576 commands");
    }
    multi.queue.push(Queued { spec, bytes, spans });
    Ok(())
}

/// Runs work on a thread that may block.
async fn aside(work: crate::command::Work, reply: &mut Reply) -> Result<(), Failure> {
    let mut own = Reply::new(reply.resp3());
    let joined = tokio::task::spawn_blocking(move || {
        let result = work(&mut own);
        (result, own)
    });
    match joined.await {
        Ok((result, own)) => {
            reply.raw(own.bytes());
            result
        }
        Err(_) => Err("ERR the command was interrupted".into()),
    }
}

/// The first words of lines that a browser sends which was led here by a hostile page: what follows may look like commands.
fn is_http(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"post") || name.eq_ignore_ascii_case(b"host:")
}

/// The text that Redis answers to a command it does not know.
fn unknown(args: Args<'_>) -> Vec<u8> {
    fn shown(arg: &[u8], limit: usize) -> &[u8] {
        let arg = &arg[..arg.len().min(limit)];
        &arg[..memchr::memchr(0, arg).unwrap_or(arg.len())]
    }
    let mut list = Vec::new();
    for arg in args.from(1) {
        if list.len() >= 128 {
            break;
        }
        let limit = 128 - list.len();
        list.push(b'\'');
        list.extend_from_slice(shown(arg, limit));
        list.extend_from_slice(b"' ");
    }
    let name = shown(args.get(0), 128);
    [b"ERR unknown command '", name, b"', with args beginning with: ", &list].concat()
}
