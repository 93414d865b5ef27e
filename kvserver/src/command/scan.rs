//! SCAN and KEYS.
//!
//! SCAN looks at a bounded number of keys for each call, whatever COUNT says, so it runs on the connection's thread. KEYS
//! walks over everything that begins like its pattern, on another thread, and over one snapshot.

use std::ops::Bound;

use betree::Bytes;

use super::context::{Args, Context};
use super::ranges::MAX_REPLY;
use super::table::Job;
use crate::failure::{NOT_AN_INTEGER, Outcome, SYNTAX};
use crate::glob;
use crate::store::Space;

/// Most keys that one SCAN looks at.
const MOST_LOOKED_AT: usize = 4096;

struct Options {
    pattern: Option<Vec<u8>>,
    count: usize,
    strings: bool,
}

fn options(args: Args<'_>) -> Outcome<Options> {
    let mut options = Options { pattern: None, count: 10, strings: true };
    let mut i = 2;
    while i < args.len() {
        if i + 1 >= args.len() {
            return Err(SYNTAX);
        }
        match () {
            () if args.is(i, "match") => {
                options.pattern = Some(args.get(i + 1).to_vec()).filter(|p| p != b"*");
            }
            () if args.is(i, "count") => match args.int(i + 1) {
                Ok(n) if n >= 1 => options.count = usize::try_from(n).unwrap_or(usize::MAX),
                Ok(_) => return Err(SYNTAX),
                Err(_) => return Err(NOT_AN_INTEGER),
            },
            () if args.is(i, "type") => options.strings = args.is(i + 1, "string"),
            () => return Err(SYNTAX),
        }
        i += 2;
    }
    options.count = options.count.min(MOST_LOOKED_AT);
    Ok(options)
}

/// SCAN cursor [MATCH pattern] [COUNT n] [TYPE type]
pub fn scan(c: &mut Context<'_>, args: Args<'_>) -> Outcome<Job> {
    let text = std::str::from_utf8(args.get(1)).unwrap_or_default();
    let Ok(cursor) = text.parse::<u64>() else { return Err("ERR invalid cursor".into()) };
    let options = options(args)?;
    let (shared, db, now) = (c.shared.clone(), c.session.db, c.now);
    Ok(Job::Here(Box::new(move |reply| {
        let last = match cursor {
            0 => None,
            _ => match shared.cursors.resume(db, cursor) {
                Some(last) => Some(last),
                None => return Err("ERR invalid cursor: not known (any more), start again at 0".into()),
            },
        };
        let prefix = options.pattern.as_deref().map(glob::literal_prefix).unwrap_or_default();
        let mut walk = Walk::default();
        if let Some(keyspace) = shared.store.keyspace(db, Space::Data) {
            let start = match &last {
                Some(last) if last[..] >= prefix[..] => Bound::Excluded(last.to_vec()),
                _ => Bound::Included(prefix.clone()),
            };
            for item in keyspace.range((start, Bound::Unbounded)) {
                let (key, _) = item?;
                if !key.starts_with(&prefix) {
                    break;
                }
                if walk.looked_at == options.count {
                    walk.more = true;
                    break;
                }
                walk.looked_at += 1;
                walk.last = key.clone();
                let wanted = options.strings
                    && options.pattern.as_deref().is_none_or(|p| glob::matches(p, &key))
                    && !shared.store.expired(db, &key, now)?;
                if wanted {
                    walk.keys.push(key);
                }
            }
        }
        let next = if walk.more { shared.cursors.save(db, walk.last, cursor) } else { 0 };
        reply.array(2);
        reply.bulk(next.to_string());
        reply.array(walk.keys.len());
        walk.keys.iter().for_each(|key| reply.bulk(key));
        Ok(())
    })))
}

#[derive(Default)]
struct Walk {
    keys: Vec<Bytes>,
    looked_at: usize,
    last: Bytes,
    more: bool,
}

/// KEYS pattern
pub fn keys(c: &mut Context<'_>, args: Args<'_>) -> Outcome<Job> {
    let pattern = args.get(1).to_vec();
    let (shared, db, now) = (c.shared.clone(), c.session.db, c.now);
    Ok(Job::Aside(Box::new(move |reply| {
        let (mut keys, mut bytes) = (Vec::new(), 0);
        if let Some(keyspace) = shared.store.keyspace(db, Space::Data) {
            for item in keyspace.prefix(glob::literal_prefix(&pattern)) {
                let (key, _) = item?;
                if !glob::matches(&pattern, &key) || shared.store.expired(db, &key, now)? {
                    continue;
                }
                bytes += key.len() + 16;
                if bytes > MAX_REPLY {
                    return Err("ERR the reply would exceed 256 MiB; use SCAN".into());
                }
                keys.push(key);
            }
        }
        reply.array(keys.len());
        keys.iter().for_each(|key| reply.bulk(key));
        Ok(())
    })))
}
