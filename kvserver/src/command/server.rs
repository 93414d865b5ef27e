//! Commands about the server: INFO, CONFIG, COMMAND, checkpoints, stopping.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::context::{Args, Context};
use super::table::{Job, Spec, TABLE, find};
use crate::config::DATABASES;
use crate::failure::{Failure, Outcome, SYNTAX};
use crate::resp::Reply;
use crate::{glob, info};

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// TIME
pub fn time(c: &mut Context<'_>, _: Args<'_>) -> Outcome {
    let now = since_1970();
    c.reply.array(2);
    c.reply.bulk(now.as_secs().to_string());
    c.reply.bulk(now.subsec_micros().to_string());
    Ok(())
}

/// WAIT numreplicas timeout: there are no replicas, and none will come, so there is nothing to wait for.
pub fn wait(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    args.int(1)?;
    match args.int(2) {
        Err(_) => return Err("ERR timeout is not an integer or out of range".into()),
        Ok(n) if n < 0 => return Err("ERR timeout is negative".into()),
        Ok(_) => c.reply.int(0),
    }
    Ok(())
}

/// DBSIZE
pub fn dbsize(c: &mut Context<'_>, _: Args<'_>) -> Outcome<Job> {
    let (shared, db) = (c.shared.clone(), c.session.db);
    Ok(Job::Here(Box::new(move |reply| {
        reply.count(shared.store.estimated_keys(db));
        Ok(())
    })))
}

fn flush_options(args: Args<'_>) -> Outcome {
    match args.len() {
        1 => Ok(()),
        2 if args.is(1, "async") || args.is(1, "sync") => Ok(()),
        _ => Err(SYNTAX),
    }
}

/// FLUSHDB [ASYNC | SYNC]
pub fn flushdb(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    flush_options(args)?;
    c.shared.store.clear(c.session.db)?;
    c.reply.ok();
    Ok(())
}

/// FLUSHALL [ASYNC | SYNC]
pub fn flushall(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    flush_options(args)?;
    for db in 0..DATABASES {
        c.shared.store.clear(db as u8)?;
    }
    c.reply.ok();
    Ok(())
}

/// INFO [section ...]
pub fn info(c: &mut Context<'_>, args: Args<'_>) -> Outcome<Job> {
    let sections: Vec<String> =
        args.from(1).take(64).map(|section| String::from_utf8_lossy(section).to_ascii_lowercase()).collect();
    let shared = c.shared.clone();
    Ok(Job::Here(Box::new(move |reply| {
        reply.verbatim(&info::text(&shared, &sections));
        Ok(())
    })))
}

/// CONFIG GET pattern ... | SET name value ... | RESETSTAT
pub fn config(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let subcommand = args.text(1).to_ascii_lowercase();
    match (subcommand.as_str(), args.len()) {
        ("get", 3..) => {
            let patterns: Vec<Vec<u8>> = args.from(2).map(<[u8]>::to_ascii_lowercase).collect();
            let wanted = |name: &str| patterns.iter().any(|p| glob::matches(p, name.as_bytes()));
            let found: Vec<_> =
                c.shared.config.parameters().into_iter().filter(|(name, _)| wanted(name)).collect();
            c.reply.map(found.len());
            for (name, value) in found {
                c.reply.bulk(name);
                c.reply.bulk(value);
            }
        }
        ("set", _) if !args.len().is_multiple_of(2) => {
            return Err("ERR wrong number of arguments for 'config|set' command".into());
        }
        ("set", _) => config_set(c, args)?,
        ("resetstat", 2) => {
            c.shared.metrics.reset();
            c.reply.ok();
        }
        ("help", 2) => {
            let lines = [
                "CONFIG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
                "GET <pattern> ... | SET <name> <value> ... | RESETSTAT",
            ];
            c.reply.array(lines.len());
            lines.iter().for_each(|line| c.reply.bulk(line));
        }
        _ => return Err(SYNTAX),
    }
    Ok(())
}

fn config_set(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let known = c.shared.config.parameters();
    let pairs: Vec<(String, String)> =
        (2..args.len()).step_by(2).map(|i| (args.text(i).to_ascii_lowercase(), args.text(i + 1))).collect();
    let mut changes = Vec::new();
    for (i, (name, value)) in pairs.iter().enumerate() {
        if !known.iter().any(|(known, _)| known == name) {
            let text = format!("ERR Unknown option or number of arguments for CONFIG SET - '{name}'");
            return Err(Failure::from(text));
        }
        if pairs[..i].iter().any(|(before, _)| before == name) {
            return Err(failed(name, "duplicate parameter"));
        }
        changes.push(c.shared.config.plan(name, value).map_err(|why| failed(name, &why))?);
    }
    changes.into_iter().for_each(|change| change());
    c.reply.ok();
    Ok(())
}

fn failed(name: &str, why: &str) -> Failure {
    Failure::from(format!("ERR CONFIG SET failed (possibly related to argument '{name}') - {why}"))
}

/// COMMAND [COUNT | LIST | INFO name ... | DOCS name ... | GETKEYS command ...]
pub fn command(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let subcommand = args.text(1).to_ascii_lowercase();
    let all_or_named = |describe: fn(&mut Reply, &Spec), reply: &mut Reply| {
        let names = args.from(2);
        if names.len() == 0 {
            reply.array(TABLE.len());
            TABLE.iter().for_each(|spec| describe(reply, spec));
        } else {
            reply.array(names.len());
            names.for_each(|name| match find(name) {
                Some(spec) => describe(reply, spec),
                None => reply.null_array(),
            });
        }
    };
    match (subcommand.as_str(), args.len()) {
        ("", 1) => {
            c.reply.array(TABLE.len());
            TABLE.iter().for_each(|spec| describe(c.reply, spec));
        }
        ("count", 2) => c.reply.count(TABLE.len() as u64),
        ("list", 2) => {
            c.reply.array(TABLE.len());
            TABLE.iter().for_each(|spec| c.reply.bulk(spec.name));
        }
        ("info", _) => all_or_named(describe, c.reply),
        ("docs", _) => {
            let named: Vec<&Spec> = match args.len() {
                2 => TABLE.iter().collect(),
                _ => args.from(2).filter_map(find).collect(),
            };
            c.reply.map(named.len());
            named.into_iter().for_each(|spec| document(c.reply, spec));
        }
        ("getkeys", 3..) => get_keys(c, args)?,
        ("help", 2) => {
            let lines = [
                "COMMAND <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
                "(no subcommand) | COUNT | LIST | INFO [name ...] | DOCS [name ...] | GETKEYS <command>",
            ];
            c.reply.array(lines.len());
            lines.iter().for_each(|line| c.reply.bulk(line));
        }
        _ => return Err(SYNTAX),
    }
    Ok(())
}

fn describe(reply: &mut Reply, spec: &Spec) {
    reply.array(10);
    reply.bulk(spec.name);
    reply.int(i64::from(spec.arity));
    let flags = spec.flags.names();
    reply.set(flags.len());
    flags.iter().for_each(|flag| reply.raw(format!("+{flag}\r\n").as_bytes()));
    reply.count(spec.keys.first as u64);
    reply.int(i64::from(spec.keys.last));
    reply.count(spec.keys.step as u64);
    // ACL categories, tips, key specifications, subcommands: none.
    reply.set(0);
    reply.array(0);
    reply.array(0);
    reply.array(0);
}

fn document(reply: &mut Reply, spec: &Spec) {
    reply.bulk(spec.name);
    reply.map(2);
    reply.bulk("summary");
    reply.bulk(spec.summary);
    reply.bulk("group");
    reply.bulk(spec.group);
}

fn get_keys(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let spec = find(args.get(2)).ok_or(Failure::from("ERR Invalid command specified"))?;
    let len = args.len() - 2;
    if !spec.takes(len) {
        return Err("ERR Invalid number of arguments specified for command".into());
    }
    let keys: Vec<usize> = spec.keys.positions(len).collect();
    if keys.is_empty() {
        return Err("ERR The command has no key arguments".into());
    }
    c.reply.array(keys.len());
    keys.iter().for_each(|&i| c.reply.bulk(args.get(i + 2)));
    Ok(())
}

/// SAVE
pub fn save(c: &mut Context<'_>, _: Args<'_>) -> Outcome<Job> {
    let shared = c.shared.clone();
    Ok(Job::Aside(Box::new(move |reply| {
        shared.store.engine.checkpoint()?;
        shared.last_save.store(since_1970().as_secs(), Relaxed);
        reply.ok();
        Ok(())
    })))
}

/// BGSAVE [SCHEDULE]
pub fn bgsave(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    if args.len() > 2 || args.len() == 2 && !args.is(1, "schedule") {
        return Err(SYNTAX);
    }
    if c.shared.saving.swap(true, SeqCst) {
        return Err("ERR Background save already in progress".into());
    }
    let shared = c.shared.clone();
    let spawned = std::thread::Builder::new().name("bgsave".into()).spawn(move || {
        match shared.store.engine.checkpoint() {
            Ok(()) => shared.last_save.store(since_1970().as_secs(), Relaxed),
            Err(error) => eprintln!("kvserver: checkpoint asked for by BGSAVE: {error}"),
        }
        shared.saving.store(false, SeqCst);
    });
    if let Err(error) = spawned {
        c.shared.saving.store(false, SeqCst);
        return Err(Failure::from(format!("ERR no thread for the checkpoint: {error}")));
    }
    c.reply.simple("Background saving started");
    Ok(())
}

/// LASTSAVE
pub fn lastsave(c: &mut Context<'_>, _: Args<'_>) -> Outcome {
    c.reply.count(c.shared.last_save.load(Relaxed));
    Ok(())
}

/// SHUTDOWN [NOSAVE | SAVE] [NOW] [FORCE]: always in good order. No reply; the connection closes.
pub fn shutdown(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let known = ["nosave", "save", "now", "force"];
    if !(1..args.len()).all(|i| known.iter().any(|word| args.is(i, word))) {
        return Err(SYNTAX);
    }
    c.session.closing = true;
    c.shared.stop();
    Ok(())
}
