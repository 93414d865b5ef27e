//! The command line: `serve`, `load`, `check`, `salvage`, and a look into a database without a server.

use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::{Durability, Settings, parse_size};
use crate::{load, offline, rescue, server};

/// A standalone server for betree that speaks the Redis protocol.
///
/// Without a subcommand: `serve` on 127.0.0.1:7379 with its data in ./betree-data.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a database to Redis clients.
    Serve(Serve),
    /// Load records from a file or standard input into a database that no server has open.
    Load(load::Options),
    /// Check everything in a database without changing it; exit code 1 if there are problems.
    Check(rescue::Check),
    /// Read everything that still verifies out of a damaged database into a new one, and say what was lost; exit code 1 if anything was.
    Salvage(rescue::Salvage),
    /// Print the value of a key.
    Get(offline::Get),
    /// Print keys and values between two ends (`-` and `+`: all; `(key`: without it), a tab between them.
    Range(offline::Range),
    /// Print keys and values below a prefix.
    Prefix(offline::Prefix),
    /// Print the engine's counters as JSON.
    Stats(offline::Place),
}

/// How to serve.
#[derive(Debug, Args)]
struct Serve {
    /// The database directory; created if missing.
    #[arg(long, default_value = "betree-data")]
    dir: PathBuf,
    /// HOST:PORT to listen on; may be given several times.
    #[arg(long, default_value = "127.0.0.1:7379")]
    listen: Vec<String>,
    /// Memory for write buffers and page cache, such as 512MiB or 4GiB.
    #[arg(long, default_value = "512MiB", value_parser = parse_size)]
    memory: usize,
    /// What a write's reply promises.
    #[arg(long, value_enum, default_value = "buffered")]
    durability: Durability,
    /// Milliseconds between background syncs with --durability interval.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    sync_interval: u64,
    /// The password clients must give; needed to listen beyond loopback.
    #[arg(long, env = "KVSERVER_PASSWORD", hide_env_values = true)]
    requirepass: Option<String>,
    /// Most clients at a time.
    #[arg(long, default_value_t = 10_000)]
    maxclients: usize,
    /// Threads that serve connections; 0: one for each core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Seconds after which an idle client is dropped; 0: never.
    #[arg(long, default_value_t = 0)]
    timeout: u64,
    /// Replies that may wait for one client before its requests are no longer read.
    #[arg(long, default_value = "32MiB", value_parser = parse_size)]
    output_limit: usize,
}

/// Parses the arguments and does what they say.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        None => serve(Settings::default()),
        Some(Command::Serve(arguments)) => settings(arguments).and_then(serve),
        Some(Command::Load(options)) => load::run(&options),
        Some(Command::Check(check)) => rescue::check(&check),
        Some(Command::Salvage(salvage)) => rescue::salvage(&salvage),
        Some(Command::Get(get)) => offline::get(&get),
        Some(Command::Range(range)) => offline::range(&range),
        Some(Command::Prefix(prefix)) => offline::prefix(&prefix),
        Some(Command::Stats(place)) => offline::stats(&place),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kvserver: {error}");
            ExitCode::FAILURE
        }
    }
}

fn settings(arguments: Serve) -> Result<Settings, String> {
    let mut listen: Vec<SocketAddr> = Vec::new();
    for text in &arguments.listen {
        let found = text.to_socket_addrs().map_err(|e| format!("--listen {text}: {e}"))?;
        // A name such as localhost may stand for an address that this machine does not have; the first is meant.
        listen.extend(found.take(1));
    }
    Ok(Settings {
        dir: arguments.dir,
        listen,
        memory: arguments.memory,
        durability: arguments.durability,
        sync_interval: Duration::from_millis(arguments.sync_interval),
        requirepass: arguments.requirepass.filter(|password| !password.is_empty()),
        maxclients: arguments.maxclients.max(1),
        threads: arguments.threads.min(1024),
        timeout: arguments.timeout,
        output_limit: arguments.output_limit.max(1024),
    })
}

fn serve(settings: Settings) -> Result<ExitCode, String> {
    let server = server::Server::open(settings)?;
    greet(&server);
    server.run()?;
    Ok(ExitCode::SUCCESS)
}

/// One screen: what is served, and how to try it.
fn greet(server: &server::Server) {
    let settings = &server.shared().config.settings;
    let dir = settings.dir.canonicalize().unwrap_or_else(|_| settings.dir.clone());
    let addresses: Vec<String> = server.addresses().iter().map(SocketAddr::to_string).collect();
    let Some(first) = server.addresses().first() else { return };
    let cli = format!("redis-cli -h {} -p {}", first.ip(), first.port());
    let durability = match settings.durability {
        Durability::Buffered => {
            "buffered: a write survives a killed process; power loss may take the last second".into()
        }
        Durability::Sync => "sync: a write survives power loss when it is answered".into(),
        Durability::Interval => {
            format!("interval: a write survives a killed process; synced every {:?}", settings.sync_interval)
        }
    };
    let text = format!(
        "kvserver {}, an ordered key-value store on a Bε-tree, speaking the Redis protocol\n\n  \
         listening on {}{}\n  data in      {} (about {} keys)\n  memory       {} MiB for write buffers and page cache; \
         {} serving threads\n  durability   {durability}\n\nTry it:\n  {cli} SET greeting hello\n  {cli} GET greeting\n  \
         {cli} RANGE - + LIMIT 10        keys and values in byte order\n  {cli} PREFIX gre\n  \
         redis-benchmark -p {} -t set,get -n 100000 -r 1000000 -P 16\n\nCtrl-C stops it in good order.\n",
        env!("CARGO_PKG_VERSION"),
        addresses.join(", "),
        if settings.requirepass.is_some() { " (password needed)" } else { "" },
        dir.display(),
        server.shared().store.estimated_keys(0),
        settings.memory >> 20,
        settings.threads,
        first.port(),
    );
    // Nobody may be reading; the server serves anyway.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
