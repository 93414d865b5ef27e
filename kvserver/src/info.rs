//! The text of INFO: sections of `name:value` lines under names that clients and exporters know.

use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;

use crate::command::{COMPATIBLE_VERSION, TABLE};
use crate::config::DATABASES;
use crate::shared::Shared;

type WriteSection = fn(&Shared, &mut String);

const SECTIONS: &[(&str, WriteSection)] = &[
    ("Server", server),
    ("Clients", clients),
    ("Memory", memory),
    ("Persistence", persistence),
    ("Stats", stats),
    ("Replication", replication),
    ("CPU", cpu),
    ("Commandstats", command_stats),
    ("Betree", engine),
    ("Keyspace", keyspace),
];

/// Sections that are not shown unless asked for.
const ON_REQUEST: &[&str] = &["commandstats"];

/// The sections of these names; of none: the default ones.
pub fn text(shared: &Shared, wanted: &[String]) -> String {
    let asked = |names: &[&str]| wanted.iter().any(|w| names.contains(&w.as_str()));
    let (all, default) = (asked(&["all", "everything"]), wanted.is_empty() || asked(&["default"]));
    let mut out = String::new();
    for (name, write) in SECTIONS {
        let lower = name.to_ascii_lowercase();
        if all || (default && !ON_REQUEST.contains(&lower.as_str())) || asked(&[&lower]) {
            if !out.is_empty() {
                out.push_str("\r\n");
            }
            let _ = write!(out, "# {name}\r\n");
            write(shared, &mut out);
        }
    }
    out
}

fn line(out: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = write!(out, "{name}:{value}\r\n");
}

fn server(shared: &Shared, out: &mut String) {
    let settings = &shared.config.settings;
    let uptime = shared.started.elapsed().as_secs();
    line(out, "redis_version", COMPATIBLE_VERSION);
    line(out, "redis_mode", "standalone");
    line(out, "server_name", "betree kvserver");
    line(out, "kvserver_version", env!("CARGO_PKG_VERSION"));
    line(out, "os", std::env::consts::OS);
    line(out, "arch_bits", usize::BITS);
    line(out, "process_id", std::process::id());
    line(out, "tcp_port", settings.listen.first().map_or(0, std::net::SocketAddr::port));
    line(out, "uptime_in_seconds", uptime);
    line(out, "uptime_in_days", uptime / 86_400);
    line(out, "io_threads", settings.threads);
}

fn clients(shared: &Shared, out: &mut String) {
    line(out, "connected_clients", shared.clients.len());
    line(out, "maxclients", shared.config.maxclients.load(Relaxed));
    line(out, "blocked_clients", 0);
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

fn memory(shared: &Shared, out: &mut String) {
    let engine = shared.store.engine.stats();
    let rss = resident();
    line(out, "used_memory", engine.memtable_bytes + engine.cache_bytes);
    line(out, "used_memory_rss", rss);
    line(out, "maxmemory", shared.config.settings.memory);
    line(out, "maxmemory_policy", "noeviction");
    line(out, "mem_clients_normal", shared.metrics.output_waiting.load(Relaxed));
    line(out, "mem_allocator", "mimalloc");
}

fn persistence(shared: &Shared, out: &mut String) {
    line(out, "loading", 0);
    line(out, "rdb_bgsave_in_progress", i32::from(shared.saving.load(Relaxed)));
    line(out, "rdb_last_save_time", shared.last_save.load(Relaxed));
    line(out, "aof_enabled", 1);
    let failure = shared.store.engine.failure();
    // The fields by which monitoring finds a server that takes no writes.
    line(out, "rdb_last_bgsave_status", if failure.is_some() { "err" } else { "ok" });
    line(out, "aof_last_write_status", if failure.is_some() { "err" } else { "ok" });
    if let Some(failure) = failure {
        line(out, "writes_refused_since", failure);
    }
    line(out, "durability", if shared.config.sync.load(Relaxed) { "sync" } else { "buffered" });
}

fn stats(shared: &Shared, out: &mut String) {
    let m = &shared.metrics;
    line(out, "total_connections_received", m.connections.load(Relaxed));
    line(out, "total_commands_processed", m.commands.load(Relaxed));
    line(out, "total_net_input_bytes", m.input_bytes.load(Relaxed));
    line(out, "total_net_output_bytes", m.output_bytes.load(Relaxed));
    line(out, "rejected_connections", m.rejected.load(Relaxed));
    line(out, "keyspace_hits", m.hits.load(Relaxed));
    line(out, "keyspace_misses", m.misses.load(Relaxed));
    line(out, "expired_keys", m.expired.load(Relaxed));
    line(out, "evicted_keys", 0);
    line(out, "total_error_replies", m.errors.load(Relaxed));
    line(out, "protocol_errors", m.protocol_errors.load(Relaxed));
    line(out, "write_batches", m.batches.load(Relaxed));
}

fn replication(_: &Shared, out: &mut String) {
    line(out, "role", "master");
    line(out, "connected_slaves", 0);
}

fn cpu(_: &Shared, out: &mut String) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which is in parentheses and may hold blanks; fields 14 and 15 of proc(5), in ticks of 1/100 s.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let seconds = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0) / 100.0;
    line(out, "used_cpu_sys", format!("{:.6}", seconds(12)));
    line(out, "used_cpu_user", format!("{:.6}", seconds(11)));
}

fn command_stats(shared: &Shared, out: &mut String) {
    for (spec, calls) in TABLE.iter().zip(&shared.metrics.calls) {
        let calls = calls.load(Relaxed);
        if calls > 0 {
            let _ = write!(out, "cmdstat_{}:calls={calls}\r\n", spec.name);
        }
    }
}

/// Every counter of the engine, under its own name.
fn engine(shared: &Shared, out: &mut String) {
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(shared.store.engine.stats()) else {
        return;
    };
    for (name, value) in fields {
        match value {
            serde_json::Value::String(text) => line(out, &format!("betree_{name}"), text),
            other => line(out, &format!("betree_{name}"), other),
        }
    }
}

fn keyspace(shared: &Shared, out: &mut String) {
    for db in 0..DATABASES as u8 {
        let keys = shared.store.estimated_keys(db);
        if keys > 0 {
            let expires = shared.store.estimated_expires(db);
            line(out, &format!("db{db}"), format!("keys={keys},expires={expires},avg_ttl=0"));
        }
    }
}
