//! What an ordered store can do and Redis cannot: RANGE, PREFIX, COUNTRANGE, DELRANGE.
//!
//! Ends are given as `-` (before all keys), `+` (behind all keys), `(key` (without this key), `[key` or just `key` (with this
//! key). A key that begins with one of these signs needs the `[`. `start` is always the lower end, also with REV.

use std::ops::Bound;

use betree::{Bytes, Iter, MAX_KEY_LEN};

use super::context::{Args, Context};
use super::table::Job;
use crate::failure::{Failure, NOT_AN_INTEGER, Outcome, SYNTAX};
use crate::resp::Reply;
use crate::store::Space;

/// Most bytes of one reply that walks over keys.
pub const MAX_REPLY: usize = 256 << 20;
/// Ranges up to this LIMIT are read on the connection's thread.
const SHORT: usize = 256;

type End = Bound<Vec<u8>>;

fn end(text: &[u8]) -> Outcome<End> {
    let bound = match text {
        [b'-'] | [b'+'] => Bound::Unbounded,
        [b'(', key @ ..] => Bound::Excluded(key.to_vec()),
        [b'[', key @ ..] => Bound::Included(key.to_vec()),
        key => Bound::Included(key.to_vec()),
    };
    match &bound {
        Bound::Included(key) | Bound::Excluded(key) if key.len() > MAX_KEY_LEN => {
            Err(Failure::Engine(betree::Error::KeyTooLong { len: key.len() }))
        }
        _ => Ok(bound),
    }
}

/// The two ends, or `None` for a range that is empty because it begins behind all keys or ends before them.
fn ends(args: Args<'_>) -> Outcome<Option<(End, End)>> {
    let (start, stop) = (end(args.get(1))?, end(args.get(2))?);
    let nothing = args.get(1) == b"+" || args.get(2) == b"-";
    Ok((!nothing).then_some((start, stop)))
}

struct Options {
    reverse: bool,
    keys_only: bool,
    limit: usize,
    bytes: usize,
}

fn options(args: Args<'_>, first: usize) -> Outcome<Options> {
    let mut options = Options { reverse: false, keys_only: false, limit: usize::MAX, bytes: usize::MAX };
    let mut i = first;
    let number = |i: usize| args.int(i).and_then(|n| usize::try_from(n).map_err(|_| NOT_AN_INTEGER));
    while i < args.len() {
        match () {
            () if args.is(i, "rev") => options.reverse = true,
            () if args.is(i, "keysonly") => options.keys_only = true,
            () if args.is(i, "limit") && i + 1 < args.len() => {
                i += 1;
                options.limit = number(i)?;
            }
            () if args.is(i, "bytes") && i + 1 < args.len() => {
                i += 1;
                options.bytes = number(i)?;
            }
            () => return Err(SYNTAX),
        }
        i += 1;
    }
    Ok(options)
}

type MakeIter = Box<dyn FnOnce(&betree::Keyspace) -> Iter + Send>;

/// Collects before it answers: the number of elements comes first on the wire.
fn walk(c: &Context<'_>, options: Options, iter: Option<MakeIter>) -> Job {
    let (shared, db, now) = (c.shared.clone(), c.session.db, c.now);
    let short = options.limit <= SHORT;
    let work = Box::new(move |reply: &mut Reply| {
        let keyspace = shared.store.keyspace(db, Space::Data);
        let (mut found, mut bytes): (Vec<(Bytes, Bytes)>, usize) = (Vec::new(), 0);
        if let (Some(keyspace), Some(iter)) = (keyspace, iter) {
            let mut iter = iter(keyspace);
            while found.len() < options.limit {
                let next = if options.reverse { iter.next_back() } else { iter.next() };
                let Some((key, value)) = next.transpose()? else { break };
                if shared.store.expired(db, &key, now)? {
                    continue;
                }
                bytes += key.len() + if options.keys_only { 0 } else { value.len() };
                // At least one record, so that a client always gets on.
                if bytes > options.bytes && !found.is_empty() {
                    break;
                }
                if bytes + 32 * found.len() > MAX_REPLY {
                    return Err("ERR the reply would exceed 256 MiB; use LIMIT or BYTES".into());
                }
                found.push((key, if options.keys_only { Bytes::new() } else { value }));
            }
        }
        reply.array(if options.keys_only { found.len() } else { 2 * found.len() });
        for (key, value) in &found {
            reply.bulk(key);
            if !options.keys_only {
                reply.bulk(value);
            }
        }
        Ok(())
    });
    if short { Job::Here(work) } else { Job::Aside(work) }
}

/// RANGE start end [REV] [LIMIT n] [BYTES n] [KEYSONLY]
pub fn range(c: &mut Context<'_>, args: Args<'_>) -> Outcome<Job> {
    let (ends, options) = (ends(args)?, options(args, 3)?);
    let iter = ends.map(|ends| -> MakeIter { Box::new(move |keyspace| keyspace.range(ends)) });
    Ok(walk(c, options, iter))
}

/// PREFIX prefix [REV] [LIMIT n] [BYTES n] [KEYSONLY]
pub fn prefix(c: &mut Context<'_>, args: Args<'_>) -> Outcome<Job> {
    let (prefix, options) = (args.get(1).to_vec(), options(args, 2)?);
    Ok(walk(c, options, Some(Box::new(move |keyspace| keyspace.prefix(prefix)))))
}

/// COUNTRANGE start end [LIMIT n]: exact, by walking; counts to the limit.
pub fn countrange(c: &mut Context<'_>, args: Args<'_>) -> Outcome<Job> {
    let limit = match args.len() {
        3 => u64::MAX,
        5 if args.is(3, "limit") => u64::try_from(args.int(4)?).map_err(|_| NOT_AN_INTEGER)?,
        _ => return Err(SYNTAX),
    };
    let ends = ends(args)?;
    let (shared, db, now) = (c.shared.clone(), c.session.db, c.now);
    Ok(Job::Aside(Box::new(move |reply| {
        let mut count = 0;
        if let (Some(keyspace), Some(ends)) = (shared.store.keyspace(db, Space::Data), ends) {
            let mut iter = keyspace.range(ends);
            while count < limit {
                let Some((key, _)) = iter.next().transpose()? else { break };
                count += u64::from(!shared.store.expired(db, &key, now)?);
            }
        }
        reply.count(count);
        Ok(())
    })))
}

/// The first key that is not below an upper end; `None`: there is none.
fn upper(end: End) -> Option<Vec<u8>> {
    match end {
        Bound::Unbounded => None,
        Bound::Excluded(key) => Some(key),
        Bound::Included(key) => successor(key),
    }
}

/// The next key in byte order. A key of the greatest length is followed by its increment.
fn successor(mut key: Vec<u8>) -> Option<Vec<u8>> {
    if key.len() < MAX_KEY_LEN {
        key.push(0);
        return Some(key);
    }
    while key.pop_if(|last| *last == 0xff).is_some() {}
    *key.last_mut()? += 1;
    Some(key)
}

/// DELRANGE start end: one message each for data and expiry times, whatever lies between the ends.
pub fn delrange(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let Some((start, stop)) = ends(args)? else {
        c.reply.ok();
        return Ok(());
    };
    let db = c.session.db;
    let start = match start {
        Bound::Unbounded => Some(Vec::new()),
        Bound::Included(key) => Some(key),
        Bound::Excluded(key) => successor(key),
    };
    let store = &c.shared.store;
    match (start, upper(stop)) {
        (None, _) => {}
        (Some(start), None) if start.is_empty() => store.clear(db)?,
        (Some(start), None) => {
            // The greatest key there can be is not below any end that can be named.
            let greatest = vec![0xff; MAX_KEY_LEN];
            c.pending.remove_range(store, db, Space::Data, &start, &greatest)?;
            c.pending.remove(store, db, Space::Data, &greatest)?;
            c.pending.remove_range(store, db, Space::Expires, &tagged(&start), b"l")?;
        }
        (Some(start), Some(stop)) if start < stop => {
            c.pending.remove_range(store, db, Space::Data, &start, &stop)?;
            c.pending.remove_range(store, db, Space::Expires, &tagged(&start), &tagged(&stop))?;
        }
        _ => {}
    }
    c.reply.ok();
    Ok(())
}

/// As in the keyspace of expiry times, cut where only keys that cannot have a time lie.
fn tagged(key: &[u8]) -> Vec<u8> {
    let mut key = crate::store::expiry_key(key);
    key.truncate(MAX_KEY_LEN);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_successor_is_the_next_key_in_byte_order() {
        assert_eq!(successor(b"a".to_vec()), Some(b"a\0".to_vec()));
        let mut long = vec![0xff; MAX_KEY_LEN];
        assert_eq!(successor(long.clone()), None);
        long[0] = 7;
        assert_eq!(successor(long), Some(vec![8]));
    }
}
