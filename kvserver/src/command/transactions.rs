//! MULTI, DISCARD, WATCH. EXEC itself is the executor's, since it takes locks.
//!
//! WATCH compares versions of key stripes, not of keys: a write to another key of the same stripe makes EXEC refuse once in a
//! while without need. Clients retry, as they must anyway.

use super::context::{Args, Context};
use super::table::Job;
use crate::failure::Outcome;
use crate::session::{Multi, Watched};

/// Most keys under WATCH.
const MOST_WATCHED: usize = 1 << 16;

/// MULTI
pub fn multi(c: &mut Context<'_>, _: Args<'_>) -> Outcome {
    if c.session.multi.is_some() {
        return Err("ERR MULTI calls can not be nested".into());
    }
    c.session.multi = Some(Multi::default());
    c.reply.ok();
    Ok(())
}

/// DISCARD
pub fn discard(c: &mut Context<'_>, _: Args<'_>) -> Outcome {
    if c.session.multi.take().is_none() {
        return Err("ERR DISCARD without MULTI".into());
    }
    c.session.watched.clear();
    c.reply.ok();
    Ok(())
}

/// WATCH key [key ...]. Alone, not in a group: the group could hold the very stripes that are read here.
pub fn watch(c: &mut Context<'_>, args: Args<'_>) -> Outcome<Job> {
    if c.session.multi.is_some() {
        return Err("ERR WATCH inside MULTI is not allowed".into());
    }
    if c.session.watched.len() + args.len() > MOST_WATCHED {
        return Err("ERR too many watched keys".into());
    }
    for key in args.from(1) {
        let stripe = c.shared.store.locks.stripe(key);
        let version = c.shared.store.locks.version(stripe);
        c.session.watched.push(Watched { stripe, version });
    }
    Ok(Job::Here(Box::new(|reply| {
        reply.ok();
        Ok(())
    })))
}

/// UNWATCH
pub fn unwatch(c: &mut Context<'_>, _: Args<'_>) -> Outcome {
    c.session.watched.clear();
    c.reply.ok();
    Ok(())
}
