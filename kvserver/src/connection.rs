//! One connection: reads requests, has them executed, sends replies.
//!
//! The loop waits for the socket, reads once, executes every complete command that has arrived, and sends all their
//! replies with one write. An idle connection holds no buffers.
//!
//! Memory of a connection is bounded: the read buffer grows only with bytes that arrive and only while one
//! command is incomplete; replies that the client does not read stop the reading of its requests at the output limit
//! (32 MiB by default, 64 KiB while all clients together have 256 MiB waiting), and end the connection when none of them moves
//! for a minute. Up to the limit requests are read on, because a client may send a whole pipeline before it reads.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::clients::Client;
use crate::executor::Executor;
use crate::failure::Failure;
use crate::metrics::Metrics;
use crate::resp::{Limits, Parser, Pipeline, Reply};
use crate::session::Session;
use crate::shared::Shared;

const READ: usize = 32 << 10;
/// Commands parsed before they are executed.
const PARSED_AT_ONCE: usize = 4096;
/// Most bytes of one command, lengths included.
const LARGEST_COMMAND: usize = 1 << 30;
/// Replies that are sent before more commands are executed.
const REPLIES_AT_ONCE: usize = 1 << 20;
/// Waiting replies of all clients together, above which each gets little.
const ALL_OUTPUT: usize = 256 << 20;
const SMALL_OUTPUT: usize = 64 << 10;
/// A client that reads nothing for so long while it is over its limit is dropped.
const STALLED: Duration = Duration::from_secs(60);
/// A client that must authenticate has so long for it.
const AUTHENTICATION: Duration = Duration::from_secs(60);
/// Replies may take so long to leave when the connection ends.
const LINGER: Duration = Duration::from_secs(2);

thread_local! {
    /// Connections that this thread serves.
    static SERVED: Cell<usize> = const { Cell::new(0) };
}

/// Serves a client until it leaves, is killed, or the server stops.
pub async fn serve(stream: TcpStream, shared: Arc<Shared>, client: Arc<Client>) {
    let mut connection = Connection::new(stream, shared.clone(), client.clone());
    SERVED.set(SERVED.get() + 1);
    // A client that goes away without a word is not worth one.
    let _ = connection.run().await;
    SERVED.set(SERVED.get() - 1);
    shared.metrics.output_waiting.fetch_sub(connection.counted_output, Relaxed);
    shared.clients.remove(client.id);
}

struct Connection {
    stream: TcpStream,
    shared: Arc<Shared>,
    client: Arc<Client>,
    input: BytesMut,
    parser: Parser,
    pipeline: Pipeline,
    executor: Executor,
    reply: Reply,
    /// Bytes of `reply` that are in the sum of all clients.
    counted_output: usize,
}

impl Connection {
    fn new(stream: TcpStream, shared: Arc<Shared>, client: Arc<Client>) -> Self {
        let session = Session::new(client.clone(), shared.config.password().is_none());
        Connection {
            stream,
            executor: Executor::new(shared.clone(), session),
            shared,
            client,
            input: BytesMut::new(),
            parser: Parser::default(),
            pipeline: Pipeline::default(),
            reply: Reply::default(),
            counted_output: 0,
        }
    }

    async fn run(&mut self) -> io::Result<()> {
        let client = self.client.clone();
        loop {
            let ready = tokio::select! {
                ready = self.wait() => ready?,
                () = client.stopped() => break,
            };
            let arrived = if ready.read { self.read().await? } else { Arrived::Nothing };
            match arrived {
                Arrived::Nothing => {}
                Arrived::Bytes if self.execute().await? => {}
                Arrived::Bytes | Arrived::End => break,
            }
            self.send()?;
            if self.reply.is_empty() && self.input.is_empty() {
                self.reply.release();
                self.input = BytesMut::new();
            }
        }
        self.finish().await
    }

    fn output_limit(&self) -> usize {
        let own = self.shared.config.output_limit.load(Relaxed);
        if !self.executor.session.authenticated
            || self.shared.metrics.output_waiting.load(Relaxed) > ALL_OUTPUT
        {
            own.min(SMALL_OUTPUT)
        } else {
            own
        }
    }

    /// Waits until there is something to read, or replies can go on.
    async fn wait(&self) -> io::Result<Ready> {
        let blocked = self.reply.len() >= self.output_limit();
        let interest = match (blocked, self.reply.is_empty()) {
            (true, _) => Interest::WRITABLE,
            (false, false) => Interest::READABLE | Interest::WRITABLE,
            (false, true) => Interest::READABLE,
        };
        let idle = self.shared.config.timeout.load(Relaxed);
        let deadline = match () {
            () if blocked => Some(Instant::now() + STALLED),
            () if !self.executor.session.authenticated => {
                Some(Instant::from_std(self.client.since) + AUTHENTICATION)
            }
            () if idle > 0 => Some(Instant::now() + Duration::from_secs(idle)),
            () => None,
        };
        let ready = self.stream.ready(interest);
        let ready = match deadline {
            None => ready.await?,
            Some(deadline) => match timeout_at(deadline, ready).await {
                Ok(ready) => ready?,
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            },
        };
        Ok(Ready { read: ready.is_readable() || ready.is_read_closed() })
    }

    /// Reads once, and does not wait: readiness may be an old one, and replies must go out meanwhile.
    async fn read(&mut self) -> io::Result<Arrived> {
        // Never more than twice what has arrived: an announced length alone reserves nothing.
        let expected = self.parser.missing(self.input.len()).min(self.input.len());
        self.input.reserve(expected.max(READ));
        let mut read = pin!(self.stream.read_buf(&mut self.input));
        let Poll::Ready(n) = poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx))).await else {
            return Ok(Arrived::Nothing);
        };
        let n = n?;
        Metrics::add(&self.shared.metrics.input_bytes, n as u64);
        let since = self.client.since.elapsed().as_millis() as u64;
        self.client.last_ms.store(since, Relaxed);
        Ok(if n > 0 { Arrived::Bytes } else { Arrived::End })
    }

    /// Executes what has arrived; `false` if the connection is to end.
    async fn execute(&mut self) -> io::Result<bool> {
        loop {
            self.pipeline.clear();
            let authenticated = self.executor.session.authenticated;
            // Until then one at a time: the next command may be AUTH, which changes the limits.
            let commands = if authenticated { PARSED_AT_ONCE } else { 1 };
            let parsed =
                self.parser.parse(&mut self.input, Limits { authenticated, commands }, &mut self.pipeline);
            if !self.run_pipeline().await? {
                return Ok(false);
            }
            if let Err(error) = parsed {
                Metrics::add(&self.shared.metrics.protocol_errors, 1);
                self.reply.error(&format!("ERR Protocol error: {}", error.0));
                return Ok(false);
            }
            let full = self.pipeline.len() == commands;
            let consumed = self.parser.consumed();
            self.input.advance(consumed);
            self.parser.advance(consumed);
            if self.input.len() > LARGEST_COMMAND {
                self.reply.error("ERR Protocol error: the command is larger than 1 GiB");
                return Ok(false);
            }
            if !full {
                break;
            }
            // Other connections of this thread get their turn.
            tokio::task::yield_now().await;
        }
        self.client.input.store(self.input.len(), Relaxed);
        Ok(true)
    }

    async fn run_pipeline(&mut self) -> io::Result<bool> {
        let mut next = 0;
        while next < self.pipeline.len() {
            let start = self.reply.len();
            let full = start + REPLIES_AT_ONCE;
            let alone = SERVED.get() == 1;
            next = self.executor.run(&self.input, &self.pipeline, next, &mut self.reply, full, alone).await;
            self.make_durable(start).await;
            if self.executor.session.closing {
                return Ok(false);
            }
            if next < self.pipeline.len() {
                self.send()?;
                self.unblock().await?;
                // Other connections of this thread get their turn.
                tokio::task::yield_now().await;
            }
            if self.client.stopping() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// With `--durability sync`: holds the replies behind `start` until what they say survives power loss.
    async fn make_durable(&mut self, start: usize) {
        let ticket = self.executor.take_ticket();
        if !self.shared.config.sync.load(Relaxed) {
            return;
        }
        let durable = &self.shared.durable;
        let Some(ticket) = ticket.or_else(|| durable.draw_for_read()) else { return };
        if let Err(error) = durable.wait(ticket).await {
            // Nobody can say which of the replies are true: the client gets one error and has to ask again.
            self.reply.truncate(start);
            Failure::Engine(error).write(&mut self.reply);
            self.executor.session.closing = true;
        }
    }

    /// Within one pipeline: waits until the client has read enough.
    async fn unblock(&mut self) -> io::Result<()> {
        while self.reply.len() >= self.output_limit() {
            match timeout(STALLED, self.stream.writable()).await {
                Ok(ready) => ready?,
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
            if self.client.stopping() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            self.send()?;
        }
        Ok(())
    }

    /// Sends what the socket takes now.
    fn send(&mut self) -> io::Result<()> {
        while !self.reply.is_empty() {
            match self.stream.try_write(self.reply.bytes()) {
                Ok(n) => {
                    Metrics::add(&self.shared.metrics.output_bytes, n as u64);
                    self.reply.sent(n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        let waiting = self.reply.len();
        if waiting != self.counted_output {
            let sum = &self.shared.metrics.output_waiting;
            sum.fetch_add(waiting, Relaxed);
            sum.fetch_sub(self.counted_output, Relaxed);
            self.counted_output = waiting;
            self.client.output.store(waiting, Relaxed);
        }
        Ok(())
    }

    /// Lets the last replies out, and the client see them: closing with unread input would reset the connection.
    async fn finish(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + LINGER;
        self.send()?;
        while !self.reply.is_empty() {
            match timeout_at(deadline, self.stream.writable()).await {
                Ok(ready) => ready?,
                Err(_) => return Ok(()),
            }
            self.send()?;
        }
        self.input = BytesMut::new();
        self.stream.shutdown().await?;
        let mut rest = [0; 4096];
        let mut left: usize = 1 << 20;
        while left > 0 {
            match timeout_at(deadline, self.stream.read(&mut rest)).await {
                Ok(Ok(n)) if n > 0 => left = left.saturating_sub(n),
                _ => break,
            }
        }
        Ok(())
    }
}

struct Ready {
    read: bool,
}

enum Arrived {
    Nothing,
    Bytes,
    End,
}
