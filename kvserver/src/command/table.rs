//! The command table: what exists, how many arguments it takes, which of them are keys, who handles it.
//!
//! COMMAND answers from it, the executor takes locks by it, and `docs/server.md` lists it.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::context::{Args, Context};
use super::{Outcome, connection, counters, expire, keys, ranges, scan, server, strings, transactions};
use crate::resp::Reply;

/// A handler that runs on the connection's thread, with the locks of its keys held if it writes.
pub type Handler = fn(&mut Context<'_>, Args<'_>) -> Outcome;
/// Work that walks over many keys; it owns what it needs and may run on another thread.
pub type Work = Box<dyn FnOnce(&mut Reply) -> Outcome + Send>;
/// Looks at the arguments and says what to do.
pub type JobHandler = fn(&mut Context<'_>, Args<'_>) -> Outcome<Job>;

/// Where work is done.
pub enum Job {
    /// Here: it is short.
    Here(Work),
    /// On a thread that may block, so that other connections of this thread are served meanwhile.
    Aside(Work),
}

/// How a command is executed.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// In a group with its neighbours in the pipeline.
    Plain(Handler),
    /// Alone, with every key lock held.
    Exclusive(Handler),
    /// Alone, without locks, behind the writes before it.
    Job(JobHandler),
    /// EXEC: runs a queue.
    Exec,
}

/// Properties of a command, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(u16);

impl Flags {
    /// Whether all bits of `other` are set.
    pub const fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    const fn and(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }

    /// No property.
    pub const NONE: Flags = Flags(0);
    /// It writes keys.
    pub const WRITE: Flags = Flags(1);
    /// It reads keys and writes none.
    pub const READ: Flags = Flags(2);
    /// Its work does not grow with the data.
    pub const FAST: Flags = Flags(4);
    /// It is for operators.
    pub const ADMIN: Flags = Flags(8);
    /// It is allowed before authentication.
    pub const NO_AUTH: Flags = Flags(16);
    /// In its shortest form it writes without reading.
    pub const BLIND: Flags = Flags(32);
    /// It is executed at once inside MULTI.
    pub const NOT_QUEUED: Flags = Flags(64);
    /// It cannot stand inside MULTI.
    pub const NO_MULTI: Flags = Flags(128);

    /// The names that COMMAND INFO shows.
    pub fn names(self) -> Vec<&'static str> {
        let all = [
            (Flags::WRITE, "write"),
            (Flags::READ, "readonly"),
            (Flags::FAST, "fast"),
            (Flags::ADMIN, "admin"),
            (Flags::NO_AUTH, "no_auth"),
            (Flags::NO_MULTI, "no_multi"),
        ];
        all.iter().filter(|(flag, _)| self.has(*flag)).map(|(_, name)| *name).collect()
    }
}

/// Which arguments are keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keys {
    /// Position of the first; 0: there is none.
    pub first: usize,
    /// Position of the last; negative: counted from the end.
    pub last: i32,
    /// Distance between two.
    pub step: usize,
}

impl Keys {
    /// Positions of the keys among `len` arguments.
    pub fn positions(self, len: usize) -> impl Iterator<Item = usize> {
        let last = if self.last < 0 { len as i64 + i64::from(self.last) } else { i64::from(self.last) };
        let end = if self.first == 0 { 0 } else { (last + 1).clamp(0, len as i64) as usize };
        (self.first..end).step_by(self.step.max(1))
    }
}

/// A command.
#[derive(Debug)]
pub struct Spec {
    /// Its name in lower case.
    pub name: &'static str,
    /// Number of arguments with the name; negative: at least so many.
    pub arity: i32,
    /// Its properties.
    pub flags: Flags,
    /// Its keys.
    pub keys: Keys,
    /// How it is executed.
    pub kind: Kind,
    /// The group in which Redis documents it.
    pub group: &'static str,
    /// What it does.
    pub summary: &'static str,
}

fn fits(arity: i32, len: usize) -> bool {
    let least = arity.unsigned_abs() as usize;
    if arity < 0 { len >= least } else { len == least }
}

impl Spec {
    /// Whether `len` arguments are right.
    pub fn takes(&self, len: usize) -> bool {
        fits(self.arity, len)
    }

    /// Subcommands with their arity, counted as that of a command.
    fn subcommands(&self) -> &'static [(&'static str, i32)] {
        match self.name {
            "client" => CLIENT,
            "config" => CONFIG,
            "command" => COMMAND,
            _ => &[],
        }
    }

    /// Checks the number of arguments, and the subcommand where there is one. Before queueing, too.
    pub fn check(&self, args: Args<'_>) -> Outcome {
        if !self.takes(args.len()) {
            return Err(format!("ERR wrong number of arguments for '{}' command", self.name).into());
        }
        if self.subcommands().is_empty() || args.len() < 2 {
            return Ok(());
        }
        match self.subcommands().iter().find(|(name, _)| args.is(1, name)) {
            None => {
                let shown: String = args.text(1).chars().take(128).collect();
                let command = self.name.to_ascii_uppercase();
                Err(format!("ERR unknown subcommand '{shown}'. Try {command} HELP.").into())
            }
            Some((name, arity)) if !fits(*arity, args.len()) => {
                Err(format!("ERR wrong number of arguments for '{}|{name}' command", self.name).into())
            }
            Some(_) => Ok(()),
        }
    }
}

const CLIENT: &[(&str, i32)] = &[
    ("id", 2),
    ("info", 2),
    ("list", -2),
    ("getname", 2),
    ("setname", 3),
    ("setinfo", 4),
    ("reply", 3),
    ("kill", -3),
    ("no-evict", 3),
    ("no-touch", 3),
    ("getredir", 2),
    ("help", 2),
];
const CONFIG: &[(&str, i32)] = &[("get", -3), ("set", -4), ("resetstat", 2), ("help", 2)];
const COMMAND: &[(&str, i32)] =
    &[("count", 2), ("list", -2), ("info", -2), ("docs", -2), ("getkeys", -3), ("help", 2)];

const NO_KEY: Keys = Keys { first: 0, last: 0, step: 0 };
const ONE: Keys = Keys { first: 1, last: 1, step: 1 };
const TWO: Keys = Keys { first: 1, last: 2, step: 1 };
const ALL: Keys = Keys { first: 1, last: -1, step: 1 };
const PAIRS: Keys = Keys { first: 1, last: -1, step: 2 };

const W: Flags = Flags::WRITE;
const WF: Flags = W.and(Flags::FAST);
const WB: Flags = W.and(Flags::BLIND);
const R: Flags = Flags::READ;
const RF: Flags = R.and(Flags::FAST);
const F: Flags = Flags::FAST;
const A: Flags = Flags::ADMIN;
const NOW: Flags = Flags::FAST.and(Flags::NOT_QUEUED);
const HANDSHAKE: Flags = Flags::FAST.and(Flags::NO_AUTH);

const fn spec(
    name: &'static str,
    arity: i32,
    flags: Flags,
    keys: Keys,
    kind: Kind,
    group: &'static str,
    summary: &'static str,
) -> Spec {
    Spec { name, arity, flags, keys, kind, group, summary }
}

use Kind::{Exclusive, Plain};

/// All commands.
#[rustfmt::skip]
pub static TABLE: &[Spec] = &[
    spec("ping", -1, F, NO_KEY, Plain(connection::ping), "connection", "Answers PONG, or the message given."),
    spec("echo", 2, F, NO_KEY, Plain(connection::echo), "connection", "Answers the message given."),
    spec("hello", -1, HANDSHAKE, NO_KEY, Plain(connection::hello), "connection", "Chooses the protocol; can authenticate and set a name."),
    spec("auth", -2, HANDSHAKE, NO_KEY, Plain(connection::auth), "connection", "Authenticates the connection."),
    spec("select", 2, F, NO_KEY, Plain(connection::select), "connection", "Chooses one of 16 databases."),
    spec("quit", -1, HANDSHAKE.and(Flags::NOT_QUEUED), NO_KEY, Plain(connection::quit), "connection", "Closes the connection."),
    spec("reset", 1, HANDSHAKE.and(Flags::NOT_QUEUED), NO_KEY, Plain(connection::reset), "connection", "Makes the connection as new."),
    spec("client", -2, Flags::NONE, NO_KEY, Plain(connection::client), "connection", "Looks at and manages connections."),

    spec("get", 2, RF, ONE, Plain(strings::get), "string", "Returns the value of a key."),
    spec("set", -3, WB, ONE, Plain(strings::set), "string", "Sets the value of a key."),
    spec("mget", -2, RF, ALL, Plain(strings::mget), "string", "Returns the values of several keys."),
    spec("mset", -3, WB, PAIRS, Plain(strings::mset), "string", "Sets several keys, atomically."),
    spec("msetnx", -3, W, PAIRS, Plain(strings::msetnx), "string", "Sets several keys if none of them exists."),
    spec("setnx", 3, WF, ONE, Plain(strings::setnx), "string", "Sets a key if it does not exist."),
    spec("setex", 4, WB, ONE, Plain(strings::setex), "string", "Sets a key and its time to live in seconds."),
    spec("psetex", 4, WB, ONE, Plain(strings::psetex), "string", "Sets a key and its time to live in milliseconds."),
    spec("getset", 3, WF, ONE, Plain(strings::getset), "string", "Sets a key and returns its old value."),
    spec("getdel", 2, WF, ONE, Plain(strings::getdel), "string", "Removes a key and returns its value."),
    spec("getex", -2, WF, ONE, Plain(expire::getex), "string", "Returns a value and changes its time to live."),
    spec("strlen", 2, RF, ONE, Plain(strings::strlen), "string", "Returns the length of a value."),
    spec("append", 3, WF, ONE, Plain(strings::append), "string", "Appends to a value."),
    spec("getrange", 4, R, ONE, Plain(strings::getrange), "string", "Returns a part of a value."),
    spec("substr", 4, R, ONE, Plain(strings::getrange), "string", "Returns a part of a value."),
    spec("setrange", 4, W, ONE, Plain(strings::setrange), "string", "Overwrites a part of a value."),
    spec("incr", 2, WF, ONE, Plain(counters::incr), "string", "Adds one to an integer."),
    spec("decr", 2, WF, ONE, Plain(counters::decr), "string", "Takes one from an integer."),
    spec("incrby", 3, WF, ONE, Plain(counters::incrby), "string", "Adds to an integer."),
    spec("decrby", 3, WF, ONE, Plain(counters::decrby), "string", "Takes from an integer."),
    spec("incrbyfloat", 3, WF, ONE, Plain(counters::incrbyfloat), "string", "Adds to a float."),

    spec("del", -2, W, ALL, Plain(keys::del), "generic", "Removes keys and counts those that existed."),
    spec("unlink", -2, WF, ALL, Plain(keys::del), "generic", "As DEL."),
    spec("updel", -2, WB, ALL, Plain(keys::updel), "generic", "Removes keys without looking whether they exist."),
    spec("exists", -2, RF, ALL, Plain(keys::exists), "generic", "Counts keys that exist."),
    spec("touch", -2, RF, ALL, Plain(keys::exists), "generic", "Counts keys that exist."),
    spec("type", 2, RF, ONE, Plain(keys::type_of), "generic", "Answers string, or none."),
    spec("rename", 3, W, TWO, Plain(keys::rename), "generic", "Renames a key."),
    spec("renamenx", 3, WF, TWO, Plain(keys::renamenx), "generic", "Renames a key if the new name is free."),
    spec("copy", -3, W, TWO, Plain(keys::copy), "generic", "Copies a key."),
    spec("move", 3, WF, ONE, Plain(keys::move_key), "generic", "Moves a key to another database."),
    spec("randomkey", 1, R, NO_KEY, Kind::Job(keys::randomkey), "generic", "Returns some key."),
    spec("expire", -3, WF, ONE, Plain(expire::expire), "generic", "Sets the time to live in seconds."),
    spec("pexpire", -3, WF, ONE, Plain(expire::pexpire), "generic", "Sets the time to live in milliseconds."),
    spec("expireat", -3, WF, ONE, Plain(expire::expireat), "generic", "Sets the expiry time in seconds since 1970."),
    spec("pexpireat", -3, WF, ONE, Plain(expire::pexpireat), "generic", "Sets the expiry time in milliseconds since 1970."),
    spec("ttl", 2, RF, ONE, Plain(expire::ttl), "generic", "Returns the time to live in seconds."),
    spec("pttl", 2, RF, ONE, Plain(expire::pttl), "generic", "Returns the time to live in milliseconds."),
    spec("expiretime", 2, RF, ONE, Plain(expire::expiretime), "generic", "Returns the expiry time in seconds since 1970."),
    spec("pexpiretime", 2, RF, ONE, Plain(expire::pexpiretime), "generic", "Returns the expiry time in milliseconds since 1970."),
    spec("persist", 2, WF, ONE, Plain(expire::persist), "generic", "Removes the expiry time."),
    spec("scan", -2, R, NO_KEY, Kind::Job(scan::scan), "generic", "Walks over the keys in steps."),
    spec("keys", 2, R, NO_KEY, Kind::Job(scan::keys), "generic", "Returns all keys that match a pattern."),
    spec("wait", 3, Flags::NONE, NO_KEY, Plain(server::wait), "generic", "Answers 0: there are no replicas."),

    spec("range", -3, R, NO_KEY, Kind::Job(ranges::range), "range", "Returns keys and values between two ends, in byte order."),
    spec("prefix", -2, R, NO_KEY, Kind::Job(ranges::prefix), "range", "Returns keys and values below a prefix, in byte order."),
    spec("countrange", -3, R, NO_KEY, Kind::Job(ranges::countrange), "range", "Counts the keys between two ends."),
    spec("delrange", 3, W, NO_KEY, Exclusive(ranges::delrange), "range", "Removes the keys between two ends without reading them."),

    spec("multi", 1, NOW, NO_KEY, Plain(transactions::multi), "transactions", "Starts to queue commands."),
    spec("exec", 1, NOW, NO_KEY, Kind::Exec, "transactions", "Executes the queued commands as one."),
    spec("discard", 1, NOW, NO_KEY, Plain(transactions::discard), "transactions", "Forgets the queued commands."),
    spec("watch", -2, NOW, ALL, Kind::Job(transactions::watch), "transactions", "Makes EXEC depend on keys staying as they are."),
    spec("unwatch", 1, F, NO_KEY, Plain(transactions::unwatch), "transactions", "Forgets the watched keys."),

    spec("dbsize", 1, RF, NO_KEY, Kind::Job(server::dbsize), "server", "Estimates the number of keys."),
    spec("flushdb", -1, W, NO_KEY, Exclusive(server::flushdb), "server", "Removes all keys of the database."),
    spec("flushall", -1, W, NO_KEY, Exclusive(server::flushall), "server", "Removes all keys of all databases."),
    spec("info", -1, Flags::NONE, NO_KEY, Kind::Job(server::info), "server", "Describes the server."),
    spec("config", -2, A, NO_KEY, Plain(server::config), "server", "Shows and changes settings."),
    spec("command", -1, Flags::NONE, NO_KEY, Plain(server::command), "server", "Describes the commands."),
    spec("time", 1, F, NO_KEY, Plain(server::time), "server", "Returns the time."),
    spec("save", 1, A.and(Flags::NO_MULTI), NO_KEY, Kind::Job(server::save), "server", "Makes a checkpoint."),
    spec("bgsave", -1, A, NO_KEY, Plain(server::bgsave), "server", "Starts a checkpoint."),
    spec("lastsave", 1, F, NO_KEY, Plain(server::lastsave), "server", "Returns the time of the last checkpoint that was asked for."),
    spec("shutdown", -1, A.and(Flags::NO_MULTI), NO_KEY, Plain(server::shutdown), "server", "Stops the server in good order."),
];

static BY_NAME: LazyLock<HashMap<&'static [u8], usize>> =
    LazyLock::new(|| TABLE.iter().enumerate().map(|(i, spec)| (spec.name.as_bytes(), i)).collect());

/// The command of a name, in whichever case.
pub fn find(name: &[u8]) -> Option<&'static Spec> {
    find_position(name).map(|(_, spec)| spec)
}

/// As [`find`], with the position in [`TABLE`].
pub fn find_position(name: &[u8]) -> Option<(usize, &'static Spec)> {
    let mut lower = [0; 16];
    let lower = lower.get_mut(..name.len())?;
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    let &position = BY_NAME.get(&*lower)?;
    Some((position, &TABLE[position]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_short_and_lower_case() {
        assert_eq!(BY_NAME.len(), TABLE.len());
        assert!(TABLE.iter().all(|s| s.name.len() <= 16 && s.name == s.name.to_ascii_lowercase()));
        assert_eq!(find(b"GeT").unwrap().name, "get");
        assert!(find(b"a name that is far too long").is_none());
    }

    #[test]
    fn key_positions_follow_the_spec() {
        let positions = |keys: Keys, len| keys.positions(len).collect::<Vec<_>>();
        assert_eq!(positions(PAIRS, 5), [1, 3]);
        assert_eq!(positions(ALL, 3), [1, 2]);
        assert_eq!(positions(TWO, 3), [1, 2]);
        assert!(positions(NO_KEY, 3).is_empty());
        assert!(positions(ONE, 1).is_empty());
    }
}
