//! The server: opens the database, accepts connections, stops in good order.
//!
//! Threads: this one accepts; one current-thread runtime for each core serves connections, dealt out in turn (a
//! connection stays where it is); one thread syncs for `--durability sync`; one removes expired keys; the engine has its own.
//!
//! Commands call the engine on the thread of their connection. What is in memory is answered at once; for what is not, threads of the engine read
//! while other connections are served, all that is known of the pipeline together. A thread that serves one connection waits for the device
//! itself. So do EXEC and commands that hold all locks; long walks move to other threads.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::config::{Config, Durability, Settings};
use crate::connection;
use crate::metrics::Metrics;
use crate::shared::Shared;
use crate::store::Store;

/// Connections have so long to end before the database is closed.
const DRAIN: Duration = Duration::from_secs(10);
/// After accept failed (say: no descriptors), wait before trying again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Threads for long walks and checkpoints, for each serving thread.
const ASIDE: usize = 4;

/// A server that listens but does not serve yet.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    listeners: Vec<TcpListener>,
    /// Of the accepting thread.
    runtime: Runtime,
    signals: Signals,
}

/// Caught from [`Server::open`] on: whoever has seen the server's greeting may stop it in good order.
#[derive(Debug)]
struct Signals {
    term: Signal,
    int: Signal,
}

/// What keeps a server from starting or from ending well, for people.
pub type Error = String;

impl Server {
    /// Checks the settings, binds the addresses, and opens the database.
    pub fn open(mut settings: Settings) -> Result<Server, Error> {
        if let Some(open) = settings.listen.iter().find(|a| !a.ip().is_loopback())
            && settings.requirepass.as_deref().unwrap_or_default().is_empty()
        {
            return Err(format!(
                "{open} can be reached from other machines: give a password with --requirepass (or \
                 KVSERVER_PASSWORD), or listen on a loopback address"
            ));
        }
        if settings.threads == 0 {
            settings.threads = std::thread::available_parallelism().map_or(1, usize::from);
        }
        // First the database: to be told that the port is taken does not help whoever started the same server twice.
        let engine = open_engine(&settings)?;
        let listeners = settings.listen.iter().map(bind).collect::<Result<Vec<_>, _>>()?;
        // Port 0 has become a real one.
        settings.listen = listeners.iter().filter_map(|l| l.local_addr().ok()).collect();
        let store = Store::new(engine).map_err(|e| e.to_string())?;
        settings.maxclients = affordable_clients(settings.maxclients);
        let shared = Arc::new(Shared::new(Config::new(settings), store));
        let runtime = Builder::new_current_thread().enable_all().build().map_err(text)?;
        let signals = {
            let _inside = runtime.enter();
            Signals {
                term: signal(SignalKind::terminate()).map_err(text)?,
                int: signal(SignalKind::interrupt()).map_err(text)?,
            }
        };
        Ok(Server { shared, listeners, runtime, signals })
    }

    /// The addresses it listens on.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.shared.config.settings.listen
    }

    /// What its connections share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Serves until SIGTERM, SIGINT or SHUTDOWN; then lets connections finish what they have sent, and closes the
    /// database.
    pub fn run(self) -> Result<(), Error> {
        let Server { shared, listeners, runtime, signals } = self;
        let workers = Workers::start(shared.config.settings.threads).map_err(text)?;
        let syncer = {
            let (durable, engine) = (shared.durable.clone(), shared.store.engine.clone());
            thread("sync", move || durable.run(&engine)).map_err(text)?
        };
        let purger = {
            let shared = shared.clone();
            thread("expiry", move || crate::expiry::run(&shared)).map_err(text)?
        };
        let served = runtime.block_on(serve(&shared, listeners, &workers.handles, signals));
        shared.stop();
        runtime.block_on(drain(&shared));
        drop(runtime);
        workers.stop();
        shared.durable.stop();
        let _ = (syncer.join(), purger.join());
        let closed = shared.store.engine.clone().close();
        served.map_err(text)?;
        closed.map_err(|e| format!("closing the database: {e}"))
    }
}

/// Opens the engine with the server's settings.
pub fn open_engine(settings: &Settings) -> Result<betree::Db, Error> {
    let builder = betree::Db::builder().memory(settings.memory).durability(betree::Durability::Buffered);
    let interval = match settings.durability {
        Durability::Interval => settings.sync_interval,
        Durability::Buffered | Durability::Sync => Duration::from_secs(1),
    };
    builder.sync_interval(Some(interval)).open(&settings.dir).map_err(|e| match e {
        betree::Error::Locked { path } => format!("{path}: another process has this database open"),
        other => other.to_string(),
    })
}

fn text(error: io::Error) -> Error {
    error.to_string()
}

fn bind(address: &SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .map_err(|e| format!("cannot listen on {address}: {e}"))
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(run)
}

/// No more clients than there are descriptors for, with some left to the database.
fn affordable_clients(wanted: usize) -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    match line.split_whitespace().nth(3).and_then(|soft| soft.parse::<usize>().ok()) {
        Some(soft) if soft < wanted + 256 => {
            let clients = soft.saturating_sub(256).max(16);
            eprintln!("kvserver: {soft} descriptors allow {clients} clients, not {wanted} (see ulimit -n)");
            clients
        }
        _ => wanted,
    }
}

/// The threads that serve connections.
struct Workers {
    handles: Vec<Handle>,
    stops: Vec<oneshot::Sender<()>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Workers {
    fn start(count: usize) -> io::Result<Workers> {
        let mut workers = Workers { handles: Vec::new(), stops: Vec::new(), threads: Vec::new() };
        for i in 0..count {
            let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(ASIDE).build()?;
            let (stop, stopped) = oneshot::channel();
            workers.handles.push(runtime.handle().clone());
            workers.stops.push(stop);
            workers.threads.push(thread(&format!("serve-{i}"), move || {
                let _ = runtime.block_on(stopped);
                // Long walks of clients that are gone end by themselves; nobody waits for them.
                runtime.shutdown_background();
            })?);
        }
        Ok(workers)
    }

    fn stop(self) {
        for stop in self.stops {
            let _ = stop.send(());
        }
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

async fn serve(
    shared: &Arc<Shared>,
    listeners: Vec<TcpListener>,
    workers: &[Handle],
    signals: Signals,
) -> io::Result<()> {
    let Signals { mut term, mut int } = signals;
    let mut accepting = tokio::task::JoinSet::new();
    for listener in listeners {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        accepting.spawn(accept(shared.clone(), listener, workers.to_vec()));
    }
    tokio::select! {
        _ = term.recv() => eprintln!("kvserver: SIGTERM: stopping"),
        _ = int.recv() => eprintln!("kvserver: SIGINT: stopping"),
        () = shared.stopped() => eprintln!("kvserver: SHUTDOWN: stopping"),
    }
    // A second signal means: at once. What was acknowledged is in the log.
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        eprintln!("kvserver: second signal: leaving without a checkpoint");
        std::process::exit(130);
    });
    accepting.shutdown().await;
    Ok(())
}

async fn accept(shared: Arc<Shared>, listener: tokio::net::TcpListener, workers: Vec<Handle>) {
    let mut turn = 0;
    let mut failing = false;
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Said once, not for every attempt.
                if !std::mem::replace(&mut failing, true) {
                    eprintln!("kvserver: accept: {error}");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        failing = false;
        Metrics::add(&shared.metrics.connections, 1);
        if shared.clients.len() >= shared.config.maxclients.load(Relaxed) {
            Metrics::add(&shared.metrics.rejected, 1);
            let _ = stream.try_write(b"-ERR max number of clients reached\r\n");
            continue;
        }
        // The socket moves to another runtime, so it leaves this one first.
        let Ok(stream) = stream.into_std() else { continue };
        let _ = stream.set_nodelay(true);
        let local = stream.local_addr().unwrap_or(peer);
        let client = shared.clients.add(peer, local);
        let shared = shared.clone();
        turn = (turn + 1) % workers.len();
        workers[turn].spawn(async move {
            match tokio::net::TcpStream::from_std(stream) {
                Ok(stream) => connection::serve(stream, shared, client).await,
                Err(_) => shared.clients.remove(client.id),
            }
        });
    }
}

/// Asks every connection to end, and waits until all have (or have had their time).
async fn drain(shared: &Shared) {
    let deadline = tokio::time::Instant::now() + DRAIN;
    shared.clients.all().iter().for_each(|client| client.stop());
    while !shared.clients.is_empty() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
