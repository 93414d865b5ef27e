//! What the operator decides: settings of the command line, and those that CONFIG SET changes while serving.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::RwLock;

/// Number of numbered databases that SELECT knows.
pub const DATABASES: usize = 16;

/// What a write's reply promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Durability {
    /// It survives a killed process; the log is synced every second in the background.
    Buffered,
    /// It survives power loss: replies wait for a sync that all waiting connections share.
    Sync,
    /// As `buffered`, with the background sync every `--sync-interval` milliseconds.
    Interval,
}

/// How to start a server.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The database directory.
    pub dir: PathBuf,
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// Memory budget of the engine, in bytes.
    pub memory: usize,
    /// What a write's reply promises.
    pub durability: Durability,
    /// Period of the background sync with [`Durability::Interval`].
    pub sync_interval: Duration,
    /// The password that clients must give.
    pub requirepass: Option<String>,
    /// Most clients at a time.
    pub maxclients: usize,
    /// Threads that serve connections; 0: one for each core.
    pub threads: usize,
    /// Seconds after which an idle client is dropped; 0: never.
    pub timeout: u64,
    /// Replies that may wait for one client before its requests are no longer read, in bytes.
    pub output_limit: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            dir: PathBuf::from("betree-data"),
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 7379))],
            memory: 512 << 20,
            durability: Durability::Buffered,
            sync_interval: Duration::from_millis(100),
            requirepass: None,
            maxclients: 10_000,
            threads: 0,
            timeout: 0,
            output_limit: 32 << 20,
        }
    }
}

/// The settings in force.
#[derive(Debug)]
pub struct Config {
    /// As started.
    pub settings: Settings,
    /// See [`Settings::maxclients`].
    pub maxclients: AtomicUsize,
    /// See [`Settings::timeout`].
    pub timeout: AtomicU64,
    /// See [`Settings::output_limit`].
    pub output_limit: AtomicUsize,
    /// Whether replies wait for a sync.
    pub sync: AtomicBool,
    requirepass: RwLock<Option<Arc<str>>>,
}

impl Config {
    /// Takes over the settings of the command line.
    pub fn new(settings: Settings) -> Self {
        Config {
            maxclients: AtomicUsize::new(settings.maxclients),
            timeout: AtomicU64::new(settings.timeout),
            output_limit: AtomicUsize::new(settings.output_limit),
            sync: AtomicBool::new(settings.durability == Durability::Sync),
            requirepass: RwLock::new(settings.requirepass.as_deref().map(Arc::from)),
            settings,
        }
    }

    /// The password in force.
    pub fn password(&self) -> Option<Arc<str>> {
        self.requirepass.read().clone()
    }

    /// Whether `given` is the password. Takes the same time wherever the first difference is.
    pub fn password_is(&self, given: &[u8]) -> bool {
        let Some(password) = self.password() else { return true };
        let password = password.as_bytes();
        let difference = given.iter().zip(password).fold(0, |d, (a, b)| d | (a ^ b));
        given.len() == password.len() && difference == 0
    }

    /// All parameters that CONFIG GET knows, with their values.
    pub fn parameters(&self) -> Vec<(&'static str, String)> {
        let s = &self.settings;
        let first = s.listen.first();
        let bind: Vec<String> = s.listen.iter().map(|a| a.ip().to_string()).collect();
        let sync = self.sync.load(Relaxed);
        let appendfsync = if sync { "always" } else { "everysec" };
        let output_limit = self.output_limit.load(Relaxed);
        vec![
            ("appendfsync", appendfsync.into()),
            ("appendonly", "yes".into()),
            ("bind", bind.join(" ")),
            ("client-output-buffer-limit", format!("normal {output_limit} {output_limit} 0")),
            ("databases", DATABASES.to_string()),
            ("dir", s.dir.display().to_string()),
            ("io-threads", s.threads.to_string()),
            ("maxclients", self.maxclients.load(Relaxed).to_string()),
            ("maxmemory", s.memory.to_string()),
            ("maxmemory-policy", "noeviction".into()),
            ("port", first.map_or(0, SocketAddr::port).to_string()),
            ("proto-max-bulk-len", crate::resp::parser::MAX_BULK.to_string()),
            ("requirepass", self.password().map_or(String::new(), |p| p.to_string())),
            ("save", String::new()),
            ("timeout", self.timeout.load(Relaxed).to_string()),
        ]
    }

    /// Checks a new value for a parameter; the change itself is the returned closure, so that CONFIG SET with several
    /// parameters changes all of them or none.
    pub fn plan<'a>(&'a self, name: &str, value: &'a str) -> Result<Box<dyn FnOnce() + 'a>, String> {
        let number =
            || value.parse::<u64>().map_err(|_| "argument couldn't be parsed into an integer".to_string());
        match name {
            "maxclients" => match number()? {
                n @ 1..=1_000_000 => Ok(Box::new(move || self.maxclients.store(n as usize, Relaxed))),
                _ => Err("argument must be between 1 and 1000000 inclusive".into()),
            },
            "timeout" => {
                let n = number()?;
                Ok(Box::new(move || self.timeout.store(n, Relaxed)))
            }
            "client-output-buffer-limit" => {
                let mut words = value.split_whitespace();
                match (words.next(), words.next().map(str::parse::<usize>)) {
                    (Some("normal"), Some(Ok(n))) if n >= 1024 => {
                        Ok(Box::new(move || self.output_limit.store(n, Relaxed)))
                    }
                    _ => Err("expected 'normal <bytes>', at least 1024".into()),
                }
            }
            "requirepass" => {
                let open = self.settings.listen.iter().any(|a| !a.ip().is_loopback());
                if value.is_empty() && open {
                    return Err("a server that listens beyond loopback needs a password".into());
                }
                let password = (!value.is_empty()).then(|| Arc::from(value));
                Ok(Box::new(move || *self.requirepass.write() = password))
            }
            "appendfsync" => match value {
                "always" => Ok(Box::new(|| self.sync.store(true, Relaxed))),
                "everysec" => Ok(Box::new(|| self.sync.store(false, Relaxed))),
                _ => Err("argument must be one of the following: everysec, always".into()),
            },
            _ => Err("can't set immutable config".into()),
        }
    }
}

/// Reads a size such as `512MiB`, `64k`, `2gb` or a plain number of bytes. Units are powers of 1024.
pub fn parse_size(text: &str) -> Result<usize, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: usize = text[..digits].parse().map_err(|_| format!("{text:?} is not a size"))?;
    let shift = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        unit => return Err(format!("unknown unit {unit:?} (use KiB, MiB or GiB)")),
    };
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024() {
        assert_eq!(parse_size("512MiB"), Ok(512 << 20));
        assert_eq!(parse_size("1 gb"), Ok(1 << 30));
        assert_eq!(parse_size("77"), Ok(77));
        assert!(parse_size("12 parsecs").is_err());
        assert!(parse_size("99999999999GiB").is_err());
    }
}
