//! GET, SET and their relatives: whole values and parts of them.

use super::context::{Args, Context, Expiry};
use super::expire::{self, Unit};
use crate::failure::{Failure, Outcome, SYNTAX, TOO_LONG};
use crate::metrics::Metrics;
use crate::resp::parser::MAX_BULK;

/// GET key
pub fn get(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let value = c.get(args.get(1))?;
    count_lookup(c, value.is_some());
    c.reply.bulk_or_null(value);
    Ok(())
}

fn count_lookup(c: &Context<'_>, hit: bool) {
    let metrics = &c.shared.metrics;
    Metrics::add(if hit { &metrics.hits } else { &metrics.misses }, 1);
}

#[derive(Default)]
struct SetOptions {
    if_absent: bool,
    if_present: bool,
    get: bool,
    keep: bool,
    at: Option<u64>,
}

fn set_options(c: &Context<'_>, args: Args<'_>) -> Outcome<SetOptions> {
    let mut options = SetOptions::default();
    let mut time = None;
    let mut i = 3;
    while i < args.len() {
        let unit = Unit::parse(args.get(i));
        match unit {
            _ if args.is(i, "nx") && !options.if_present => options.if_absent = true,
            _ if args.is(i, "xx") && !options.if_absent => options.if_present = true,
            _ if args.is(i, "get") => options.get = true,
            _ if args.is(i, "keepttl") && time.is_none() => options.keep = true,
            Some(unit) if time.is_none() && !options.keep && i + 1 < args.len() => {
                i += 1;
                time = Some((unit, i));
            }
            _ => return Err(SYNTAX),
        }
        i += 1;
    }
    if let Some((unit, i)) = time {
        options.at = Some(expire::positive_time(c.now, args, i, unit, "set")?);
    }
    Ok(options)
}

/// SET key value [NX | XX] [GET] [EX s | PX ms | EXAT s | PXAT ms | KEEPTTL]
pub fn set(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let (key, value) = (args.get(1), args.get(2));
    if args.len() == 3 {
        c.put(key, value, Expiry::Clear)?;
        c.reply.ok();
        return Ok(());
    }
    let options = set_options(c, args)?;
    let old = if options.if_absent || options.if_present || options.get || options.keep {
        c.get(key)?
    } else {
        None
    };
    let write = !(options.if_absent && old.is_some() || options.if_present && old.is_none());
    if write {
        match options.at {
            Some(at) if at <= c.now => c.remove(key)?,
            Some(at) => c.put(key, value, Expiry::At(at))?,
            None if options.keep && old.is_some() => c.put(key, value, Expiry::Keep)?,
            None => c.put(key, value, Expiry::Clear)?,
        }
    }
    match () {
        () if options.get => c.reply.bulk_or_null(old),
        () if write => c.reply.ok(),
        () => c.reply.null(),
    }
    Ok(())
}

/// SETNX key value
pub fn setnx(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let free = !c.exists(args.get(1))?;
    if free {
        c.put(args.get(1), args.get(2), Expiry::Clear)?;
    }
    c.reply.int(i64::from(free));
    Ok(())
}

fn set_for(c: &mut Context<'_>, args: Args<'_>, unit: Unit, name: &'static str) -> Outcome {
    let at = expire::positive_time(c.now, args, 2, unit, name)?;
    c.put(args.get(1), args.get(3), Expiry::At(at))?;
    c.reply.ok();
    Ok(())
}

/// SETEX key seconds value
pub fn setex(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    set_for(c, args, Unit::SECONDS, "setex")
}

/// PSETEX key milliseconds value
pub fn psetex(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    set_for(c, args, Unit::MILLISECONDS, "psetex")
}

/// GETSET key value
pub fn getset(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let old = c.get(args.get(1))?;
    c.put(args.get(1), args.get(2), Expiry::Clear)?;
    c.reply.bulk_or_null(old);
    Ok(())
}

/// GETDEL key
pub fn getdel(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let old = c.get(args.get(1))?;
    if old.is_some() {
        c.remove(args.get(1))?;
    }
    c.reply.bulk_or_null(old);
    Ok(())
}

/// MGET key [key ...]
pub fn mget(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let keys: Vec<&[u8]> = args.from(1).collect();
    let values = c.multi_get(&keys)?;
    c.reply.array(values.len());
    for value in values {
        count_lookup(c, value.is_some());
        c.reply.bulk_or_null(value);
    }
    Ok(())
}

fn pairs<'a>(args: Args<'a>, name: &str) -> Outcome<impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a>> {
    if args.len().is_multiple_of(2) {
        return Err(Failure::from(format!("ERR wrong number of arguments for '{name}' command")));
    }
    Ok(args.from(1).step_by(2).zip(args.from(2).step_by(2)))
}

/// MSET key value [key value ...]
pub fn mset(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    for (key, value) in pairs(args, "mset")? {
        c.put(key, value, Expiry::Clear)?;
    }
    c.reply.ok();
    Ok(())
}

/// MSETNX key value [key value ...]
pub fn msetnx(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let keys: Vec<&[u8]> = pairs(args, "msetnx")?.map(|(key, _)| key).collect();
    let free = c.multi_get(&keys)?.iter().all(Option::is_none);
    if free {
        for (key, value) in pairs(args, "msetnx")? {
            c.put(key, value, Expiry::Clear)?;
        }
    }
    c.reply.int(i64::from(free));
    Ok(())
}

/// STRLEN key
pub fn strlen(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let value = c.get(args.get(1))?;
    count_lookup(c, value.is_some());
    c.reply.count(value.map_or(0, |v| v.len()) as u64);
    Ok(())
}

/// The expiry of a value that is changed: a key that was absent may have the time of an earlier life.
pub fn expiry_of_change(existed: bool) -> Expiry {
    if existed { Expiry::Keep } else { Expiry::Clear }
}

/// APPEND key value
pub fn append(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let (key, tail) = (args.get(1), args.get(2));
    let old = c.get(key)?;
    let existed = old.is_some();
    let old = old.unwrap_or_default();
    if old.len() + tail.len() > MAX_BULK {
        return Err(TOO_LONG);
    }
    let value = [&old[..], tail].concat();
    c.put(key, &value, expiry_of_change(existed))?;
    c.reply.count(value.len() as u64);
    Ok(())
}

/// GETRANGE key start end
pub fn getrange(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let (start, end) = (args.int(2)?, args.int(3)?);
    let value = c.get(args.get(1))?;
    count_lookup(c, value.is_some());
    let value = value.unwrap_or_default();
    let len = value.len() as i64;
    if start < 0 && end < 0 && start > end {
        c.reply.bulk(b"");
        return Ok(());
    }
    let from_end = |i: i64| if i < 0 { len.saturating_add(i).max(0) } else { i };
    let (start, end) = (from_end(start), from_end(end).min(len - 1));
    if start > end || len == 0 {
        c.reply.bulk(b"");
    } else {
        c.reply.bulk(&value[start as usize..=end as usize]);
    }
    Ok(())
}

/// SETRANGE key offset value
pub fn setrange(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let (key, offset, part) = (args.get(1), args.int(2)?, args.get(3));
    let Ok(offset) = usize::try_from(offset) else { return Err("ERR offset is out of range".into()) };
    let old = c.get(key)?;
    if part.is_empty() {
        c.reply.count(old.map_or(0, |v| v.len()) as u64);
        return Ok(());
    }
    let Some(end) = offset.checked_add(part.len()).filter(|&end| end <= MAX_BULK) else {
        return Err(TOO_LONG);
    };
    let existed = old.is_some();
    let mut value = Vec::from(old.unwrap_or_default());
    value.resize(value.len().max(end), 0);
    value[offset..end].copy_from_slice(part);
    c.put(key, &value, expiry_of_change(existed))?;
    c.reply.count(value.len() as u64);
    Ok(())
}
