//! Whole keys: removing, counting, renaming, copying, and finding some key.

use std::hash::{BuildHasher, RandomState};

use betree::{Bytes, Keyspace};

use super::context::{Args, Context, Expiry};
use super::table::Job;
use crate::failure::{Failure, Outcome, SYNTAX};
use crate::store::Space;

const NO_SUCH_KEY: &str = "ERR no such key";

/// DEL key [key ...]
pub fn del(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let mut removed = 0;
    for key in args.from(1) {
        if c.exists(key)? {
            c.remove(key)?;
            removed += 1;
        }
    }
    c.reply.int(removed);
    Ok(())
}

/// UPDEL key [key ...]: blind, so it cannot say what existed.
pub fn updel(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    for key in args.from(1) {
        c.remove(key)?;
    }
    c.reply.ok();
    Ok(())
}

/// EXISTS key [key ...]
pub fn exists(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let mut found = 0;
    for key in args.from(1) {
        found += i64::from(c.exists(key)?);
    }
    c.reply.int(found);
    Ok(())
}

/// TYPE key
pub fn type_of(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let kind = if c.exists(args.get(1))? { "string" } else { "none" };
    c.reply.simple(kind);
    Ok(())
}

fn expiry_to_copy(c: &mut Context<'_>, db: u8, key: &[u8]) -> Outcome<Expiry> {
    Ok(c.expiry_in(db, key)?.map_or(Expiry::Clear, Expiry::At))
}

/// RENAME key newkey
pub fn rename(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let (from, to, db) = (args.get(1), args.get(2), c.session.db);
    let value = c.get(from)?.ok_or(Failure::from(NO_SUCH_KEY))?;
    if from != to {
        let expiry = expiry_to_copy(c, db, from)?;
        c.remove(from)?;
        c.put(to, &value, expiry)?;
    }
    c.reply.ok();
    Ok(())
}

/// RENAMENX key newkey
pub fn renamenx(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let (from, to, db) = (args.get(1), args.get(2), c.session.db);
    let value = c.get(from)?.ok_or(Failure::from(NO_SUCH_KEY))?;
    if from == to || c.exists(to)? {
        c.reply.int(0);
        return Ok(());
    }
    let expiry = expiry_to_copy(c, db, from)?;
    c.remove(from)?;
    c.put(to, &value, expiry)?;
    c.reply.int(1);
    Ok(())
}

/// COPY source destination [DB n] [REPLACE]
pub fn copy(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let (from, to) = (args.get(1), args.get(2));
    let (mut db, mut replace, mut i) = (c.session.db, false, 3);
    while i < args.len() {
        match () {
            () if args.is(i, "replace") => replace = true,
            () if args.is(i, "db") && i + 1 < args.len() => {
                db = c.database(&args, i + 1)?;
                i += 1;
            }
            () => return Err(SYNTAX),
        }
        i += 1;
    }
    if db == c.session.db && from == to {
        return Err("ERR source and destination objects are the same".into());
    }
    let Some(value) = c.get(from)? else {
        c.reply.int(0);
        return Ok(());
    };
    if !replace && c.get_in(db, to)?.is_some() {
        c.reply.int(0);
        return Ok(());
    }
    let expiry = expiry_to_copy(c, c.session.db, from)?;
    c.put_in(db, to, &value, expiry)?;
    c.reply.int(1);
    Ok(())
}

/// MOVE key db. One stripe stands for the key in every database, so one lock is enough.
pub fn move_key(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let key = args.get(1);
    let (from, to) = (c.session.db, c.database(&args, 2)?);
    if from == to {
        return Err("ERR source and destination objects are the same".into());
    }
    let value = c.get(key)?;
    let moved = match value {
        Some(value) if c.get_in(to, key)?.is_none() => {
            let expiry = expiry_to_copy(c, from, key)?;
            c.remove(key)?;
            c.put_in(to, key, &value, expiry)?;
            true
        }
        _ => false,
    };
    c.reply.int(i64::from(moved));
    Ok(())
}

/// RANDOMKEY: the key behind a random place between the first and the last. Not every key is equally likely.
pub fn randomkey(c: &mut Context<'_>, _: Args<'_>) -> Outcome<Job> {
    let (shared, db, now) = (c.shared.clone(), c.session.db, c.now);
    Ok(Job::Here(Box::new(move |reply| {
        let mut found = None;
        if let Some(keyspace) = shared.store.keyspace(db, Space::Data) {
            for _ in 0..16 {
                found = some_key(keyspace)?;
                match &found {
                    Some(key) if shared.store.expired(db, key, now)? => found = None,
                    _ => break,
                }
            }
        }
        reply.bulk_or_null(found);
        Ok(())
    })))
}

fn some_key(keyspace: &Keyspace) -> Outcome<Option<Bytes>> {
    let (Some((first, _)), Some((last, _))) = (keyspace.first_key_value()?, keyspace.last_key_value()?)
    else {
        return Ok(None);
    };
    let common = first.iter().zip(last.iter()).take_while(|(a, b)| a == b).count();
    let number = |key: &[u8]| {
        let mut eight = [0; 8];
        let tail = &key[common..key.len().min(common + 8)];
        eight[..tail.len()].copy_from_slice(tail);
        u64::from_be_bytes(eight)
    };
    let (low, high) = (number(&first), number(&last));
    let random = RandomState::new().hash_one(0);
    let place = match (high - low).checked_add(1) {
        Some(width) => low + random % width,
        None => random,
    };
    let from = [&first[..common], &place.to_be_bytes()].concat();
    let next = keyspace.range::<Vec<u8>>(from..).next().transpose()?;
    Ok(Some(next.map_or(first, |(key, _)| key)))
}
