//! Expiry times: setting, reading and removing them, and the options of SET and GETEX.

use super::context::{Args, Context, Expiry};
use crate::failure::{Failure, Outcome, SYNTAX};

/// How a time is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit {
    millis: u64,
    absolute: bool,
}

impl Unit {
    /// From now, in seconds.
    pub const SECONDS: Unit = Unit { millis: 1000, absolute: false };
    /// From now, in milliseconds.
    pub const MILLISECONDS: Unit = Unit { millis: 1, absolute: false };
    const SECONDS_AT: Unit = Unit { millis: 1000, absolute: true };
    const MILLISECONDS_AT: Unit = Unit { millis: 1, absolute: true };

    /// EX, PX, EXAT or PXAT.
    pub fn parse(word: &[u8]) -> Option<Unit> {
        let all = [
            ("ex", Unit::SECONDS),
            ("px", Unit::MILLISECONDS),
            ("exat", Unit::SECONDS_AT),
            ("pxat", Unit::MILLISECONDS_AT),
        ];
        all.iter().find(|(name, _)| word.eq_ignore_ascii_case(name.as_bytes())).map(|(_, unit)| *unit)
    }

    /// Milliseconds since 1970, or `None` beyond what can be told.
    fn resolve(self, now: u64, n: i64) -> Option<i64> {
        let millis = n.checked_mul(self.millis as i64)?;
        if self.absolute { Some(millis) } else { millis.checked_add(now as i64) }
    }
}

fn invalid(name: &str) -> Failure {
    Failure::from(format!("ERR invalid expire time in '{name}' command"))
}

/// A time that has to be positive, as with SET.
pub fn positive_time(now: u64, args: Args<'_>, i: usize, unit: Unit, name: &str) -> Outcome<u64> {
    let n = args.int(i)?;
    if n <= 0 {
        return Err(invalid(name));
    }
    unit.resolve(now, n).map(|time| time as u64).ok_or_else(|| invalid(name))
}

#[derive(Default)]
struct Conditions {
    nx: bool,
    xx: bool,
    gt: bool,
    lt: bool,
}

fn conditions(args: Args<'_>) -> Outcome<Conditions> {
    let mut found = Conditions::default();
    for i in 3..args.len() {
        match () {
            () if args.is(i, "nx") => found.nx = true,
            () if args.is(i, "xx") => found.xx = true,
            () if args.is(i, "gt") => found.gt = true,
            () if args.is(i, "lt") => found.lt = true,
            () => return Err(Failure::from(format!("ERR Unsupported option {}", args.text(i)))),
        }
    }
    if found.nx && (found.xx || found.gt || found.lt) {
        return Err("ERR NX and XX, GT or LT options at the same time are not compatible".into());
    }
    if found.gt && found.lt {
        return Err("ERR GT and LT options at the same time are not compatible".into());
    }
    Ok(found)
}

fn set_time(c: &mut Context<'_>, args: Args<'_>, unit: Unit, name: &str) -> Outcome {
    let when = conditions(args)?;
    let n = args.int(2)?;
    let time = unit.resolve(c.now, n).ok_or_else(|| invalid(name))?;
    let (db, key) = (c.session.db, args.get(1));
    if !c.exists(key)? {
        c.reply.int(0);
        return Ok(());
    }
    let old = c.expiry_in(db, key)?;
    let time = time.max(0) as u64;
    let refused = when.nx && old.is_some()
        || when.xx && old.is_none()
        // No time is later than every time.
        || when.gt && old.is_none_or(|old| time <= old)
        || when.lt && old.is_some_and(|old| time >= old);
    if refused {
        c.reply.int(0);
        return Ok(());
    }
    if time <= c.now {
        c.remove(key)?;
    } else {
        c.set_expiry_in(db, key, Expiry::At(time))?;
    }
    c.reply.int(1);
    Ok(())
}

/// EXPIRE key seconds [NX | XX | GT | LT]
pub fn expire(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    set_time(c, args, Unit::SECONDS, "expire")
}

/// PEXPIRE key milliseconds [NX | XX | GT | LT]
pub fn pexpire(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    set_time(c, args, Unit::MILLISECONDS, "pexpire")
}

/// EXPIREAT key seconds [NX | XX | GT | LT]
pub fn expireat(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    set_time(c, args, Unit::SECONDS_AT, "expireat")
}

/// PEXPIREAT key milliseconds [NX | XX | GT | LT]
pub fn pexpireat(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    set_time(c, args, Unit::MILLISECONDS_AT, "pexpireat")
}

/// -2: no such key; -1: no time.
fn show_time(c: &mut Context<'_>, args: Args<'_>, show: impl Fn(u64, u64) -> u64) -> Outcome {
    let (db, key) = (c.session.db, args.get(1));
    if !c.exists(key)? {
        c.reply.int(-2);
        return Ok(());
    }
    match c.expiry_in(db, key)? {
        None => c.reply.int(-1),
        Some(time) => c.reply.count(show(time, c.now)),
    }
    Ok(())
}

/// TTL key
pub fn ttl(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    show_time(c, args, |time, now| (time.saturating_sub(now) + 500) / 1000)
}

/// PTTL key
pub fn pttl(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    show_time(c, args, u64::saturating_sub)
}

/// EXPIRETIME key
pub fn expiretime(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    show_time(c, args, |time, _| (time + 500) / 1000)
}

/// PEXPIRETIME key
pub fn pexpiretime(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    show_time(c, args, |time, _| time)
}

/// PERSIST key
pub fn persist(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let (db, key) = (c.session.db, args.get(1));
    let had = c.exists(key)? && c.expiry_in(db, key)?.is_some();
    if had {
        c.set_expiry_in(db, key, Expiry::Clear)?;
    }
    c.reply.int(i64::from(had));
    Ok(())
}

/// GETEX key [EX s | PX ms | EXAT s | PXAT ms | PERSIST]
pub fn getex(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let unit = match args.len() {
        2 => None,
        3 if args.is(2, "persist") => None,
        4 => Some(Unit::parse(args.get(2)).ok_or(SYNTAX)?),
        _ => return Err(SYNTAX),
    };
    let (db, key) = (c.session.db, args.get(1));
    let value = c.get(key)?;
    if value.is_some() {
        let change = match unit {
            Some(unit) => Some(Expiry::At(positive_time(c.now, args, 3, unit, "getex")?)),
            // Only if there is a time: a write of nothing would wake watchers.
            None if args.len() == 3 && c.expiry_in(db, key)?.is_some() => Some(Expiry::Clear),
            None => None,
        };
        match change {
            None => {}
            Some(Expiry::At(time)) if time <= c.now => c.remove(key)?,
            Some(change) => c.set_expiry_in(db, key, change)?,
        }
    }
    c.reply.bulk_or_null(value);
    Ok(())
}
