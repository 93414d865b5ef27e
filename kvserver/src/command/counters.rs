//! INCR and its relatives. Values are decimal texts, as in Redis.

use super::context::{Args, Context};
use super::strings::expiry_of_change;
use crate::failure::{NOT_A_FLOAT, NOT_AN_INTEGER, Outcome};
use crate::number::{Float, parse_i64};

fn add(c: &mut Context<'_>, key: &[u8], by: i64) -> Outcome {
    let old = c.get(key)?;
    let number = match &old {
        None => 0,
        Some(text) => parse_i64(text).ok_or(NOT_AN_INTEGER)?,
    };
    let Some(sum) = number.checked_add(by) else {
        return Err("ERR increment or decrement would overflow".into());
    };
    c.put(key, itoa::Buffer::new().format(sum).as_bytes(), expiry_of_change(old.is_some()))?;
    c.reply.int(sum);
    Ok(())
}

/// INCR key
pub fn incr(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    add(c, args.get(1), 1)
}

/// DECR key
pub fn decr(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    add(c, args.get(1), -1)
}

/// INCRBY key increment
pub fn incrby(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    add(c, args.get(1), args.int(2)?)
}

/// DECRBY key decrement
pub fn decrby(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    match args.int(2)?.checked_neg() {
        Some(by) => add(c, args.get(1), by),
        None => Err("ERR decrement would overflow".into()),
    }
}

/// INCRBYFLOAT key increment
pub fn incrbyfloat(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let key = args.get(1);
    let old = c.get(key)?;
    let number = match &old {
        None => Float::Exact(0),
        Some(text) => Float::parse(text).ok_or(NOT_A_FLOAT)?,
    };
    let by = Float::parse(args.get(2)).ok_or(NOT_A_FLOAT)?;
    let Some(sum) = number.plus(by) else {
        return Err("ERR increment would produce NaN or Infinity".into());
    };
    let text = sum.format();
    c.put(key, text.as_bytes(), expiry_of_change(old.is_some()))?;
    c.reply.bulk(&text);
    Ok(())
}
