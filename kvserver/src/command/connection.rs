//! Commands about the connection itself: handshake, authentication, database, CLIENT.

use super::context::{Args, Context};
use crate::failure::{Failure, Outcome, SYNTAX};
use crate::session::ReplyMode;

const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";

/// The Redis version whose commands and error texts are followed.
pub const COMPATIBLE_VERSION: &str = "7.0.15";

/// PING [message]
pub fn ping(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    match args.len() {
        1 => c.reply.simple("PONG"),
        2 => c.reply.bulk(args.get(1)),
        _ => return Err("ERR wrong number of arguments for 'ping' command".into()),
    }
    Ok(())
}

/// ECHO message
pub fn echo(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    c.reply.bulk(args.get(1));
    Ok(())
}

/// There is one user.
fn authenticate(c: &mut Context<'_>, user: &[u8], password: &[u8]) -> Outcome {
    if user != b"default" || !c.shared.config.password_is(password) {
        return Err(WRONG_PASSWORD.into());
    }
    c.session.authenticated = true;
    Ok(())
}

/// AUTH [username] password
pub fn auth(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    match args.len() {
        2 if c.shared.config.password().is_none() => {
            return Err(
                "ERR AUTH <password> called without any password configured for the default user. Are \
                        you sure your configuration is correct?"
                    .into(),
            );
        }
        2 => authenticate(c, b"default", args.get(1))?,
        3 => authenticate(c, args.get(1), args.get(2))?,
        _ => return Err(SYNTAX),
    }
    c.reply.ok();
    Ok(())
}

fn check_name(name: &[u8]) -> Outcome<String> {
    match std::str::from_utf8(name) {
        Ok(name) if name.bytes().all(|b| b.is_ascii_graphic()) => Ok(name.to_string()),
        _ => Err("ERR Client names cannot contain spaces, newlines or special characters.".into()),
    }
}

/// HELLO [protover [AUTH username password] [SETNAME name]]
pub fn hello(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let mut resp3 = c.session.resp3;
    if args.len() > 1 {
        resp3 = match crate::number::parse_i64(args.get(1)) {
            Some(2) => false,
            Some(3) => true,
            Some(_) => return Err("NOPROTO unsupported protocol version".into()),
            None => return Err("ERR Protocol version is not an integer or out of range".into()),
        };
    }
    let (mut i, mut name, mut credentials) = (2, None, None);
    while i < args.len() {
        if args.is(i, "auth") && i + 2 < args.len() {
            credentials = Some((args.get(i + 1), args.get(i + 2)));
            i += 3;
        } else if args.is(i, "setname") && i + 1 < args.len() {
            name = Some(check_name(args.get(i + 1))?);
            i += 2;
        } else {
            return Err(Failure::from(format!("ERR Syntax error in HELLO option '{}'", args.text(i))));
        }
    }
    if let Some((user, password)) = credentials {
        authenticate(c, user, password)?;
    }
    if !c.session.authenticated {
        return Err("NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO \
                    <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP \
                    protocol version at the same time"
            .into());
    }
    if let Some(name) = name {
        *c.session.client.name.lock() = name;
    }
    c.session.resp3 = resp3;
    c.reply.set_resp3(resp3);
    c.session.publish();
    c.reply.map(7);
    c.reply.bulk("server");
    c.reply.bulk("redis");
    c.reply.bulk("version");
    c.reply.bulk(COMPATIBLE_VERSION);
    c.reply.bulk("proto");
    c.reply.int(if resp3 { 3 } else { 2 });
    c.reply.bulk("id");
    c.reply.count(c.session.client.id);
    c.reply.bulk("mode");
    c.reply.bulk("standalone");
    c.reply.bulk("role");
    c.reply.bulk("master");
    c.reply.bulk("modules");
    c.reply.array(0);
    Ok(())
}

/// SELECT index
pub fn select(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    c.session.db = c.database(&args, 1)?;
    c.session.publish();
    c.reply.ok();
    Ok(())
}

/// QUIT
pub fn quit(c: &mut Context<'_>, _: Args<'_>) -> Outcome {
    c.session.closing = true;
    c.reply.ok();
    Ok(())
}

/// RESET
pub fn reset(c: &mut Context<'_>, _: Args<'_>) -> Outcome {
    c.session.reset(c.shared.config.password().is_none());
    c.reply.set_resp3(false);
    c.reply.simple("RESET");
    Ok(())
}

/// CLIENT subcommand
pub fn client(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let mut name = args.text(1);
    name.make_ascii_lowercase();
    match (name.as_str(), args.len()) {
        ("id", 2) => c.reply.count(c.session.client.id),
        ("info", 2) => {
            let line = c.session.client.line();
            c.reply.verbatim(&line);
        }
        ("list", _) => list(c, args)?,
        ("getname", 2) => {
            let name = c.session.client.name.lock().clone();
            c.reply.bulk_or_null(Some(name).filter(|name| !name.is_empty()));
        }
        ("setname", 3) => {
            *c.session.client.name.lock() = check_name(args.get(2))?;
            c.reply.ok();
        }
        ("setinfo", 4) => set_info(c, args)?,
        ("reply", 3) => reply(c, args)?,
        ("kill", 3..) => kill(c, args)?,
        ("no-evict" | "no-touch", 3) if args.is(2, "on") || args.is(2, "off") => c.reply.ok(),
        ("no-evict" | "no-touch", 3) => return Err(SYNTAX),
        ("getredir", 2) => c.reply.int(-1),
        ("help", 2) => {
            let lines = [
                "CLIENT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
                "ID | INFO | LIST [ID id ...] [TYPE normal] | GETNAME | SETNAME name | SETINFO lib-name|lib-ver value",
                "REPLY ON|OFF|SKIP | KILL addr | KILL [ID id] [ADDR a] [LADDR a] [SKIPME yes|no] | NO-EVICT on|off | \
                 NO-TOUCH on|off | GETREDIR",
            ];
            c.reply.array(lines.len());
            lines.iter().for_each(|line| c.reply.bulk(line));
        }
        _ => return Err(SYNTAX),
    }
    Ok(())
}

fn list(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let ids: Option<Vec<u64>> = match args.len() {
        2 => None,
        4 if args.is(2, "type") => {
            if !args.is(3, "normal") {
                c.reply.verbatim("");
                return Ok(());
            }
            None
        }
        4.. if args.is(2, "id") => Some(
            (3..args.len())
                .map(|i| args.int(i).map(|n| n as u64).map_err(|_| Failure::from("ERR Invalid client ID")))
                .collect::<Outcome<_>>()?,
        ),
        _ => return Err(SYNTAX),
    };
    let wanted = |id: u64| ids.as_ref().is_none_or(|ids| ids.contains(&id));
    let lines: String = c
        .shared
        .clients
        .all()
        .iter()
        .filter(|client| wanted(client.id))
        .map(|client| client.line())
        .collect();
    c.reply.verbatim(&lines);
    Ok(())
}

fn set_info(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let value = std::str::from_utf8(args.get(3)).ok().filter(|v| v.bytes().all(|b| b.is_ascii_graphic()));
    let option = args.text(2).to_ascii_lowercase();
    let mut library = c.session.client.library.lock();
    let place = match option.as_str() {
        "lib-name" => &mut library.0,
        "lib-ver" => &mut library.1,
        _ => return Err(Failure::from(format!("ERR Unrecognized option '{}'", args.text(2)))),
    };
    let Some(value) = value else {
        let text = format!("ERR {option} cannot contain spaces, newlines or special characters.");
        return Err(Failure::from(text));
    };
    *place = value.to_string();
    drop(library);
    c.reply.ok();
    Ok(())
}

fn reply(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    match () {
        () if args.is(2, "on") => {
            c.session.reply_mode = ReplyMode::On;
            c.reply.ok();
        }
        () if args.is(2, "off") => c.session.reply_mode = ReplyMode::Off,
        () if args.is(2, "skip") => {
            if c.session.reply_mode != ReplyMode::Off {
                c.session.reply_mode = ReplyMode::SkipThis;
            }
        }
        () => return Err(SYNTAX),
    }
    Ok(())
}

fn kill(c: &mut Context<'_>, args: Args<'_>) -> Outcome {
    let own = c.session.client.id;
    let clients = c.shared.clients.all();
    if args.len() == 3 {
        let address = args.text(2);
        let Some(client) = clients.iter().find(|client| client.peer.to_string() == address) else {
            return Err("ERR No such client".into());
        };
        stop(c, client);
        c.reply.ok();
        return Ok(());
    }
    if !args.len().is_multiple_of(2) {
        return Err(SYNTAX);
    }
    let (mut id, mut address, mut local, mut skip_me, mut normal) = (None, None, None, true, true);
    for i in (2..args.len()).step_by(2) {
        let value = args.text(i + 1);
        match () {
            () if args.is(i, "id") => match args.int(i + 1) {
                Ok(n) if n > 0 => id = Some(n as u64),
                _ => return Err("ERR client-id should be greater than 0".into()),
            },
            () if args.is(i, "addr") => address = Some(value),
            () if args.is(i, "laddr") => local = Some(value),
            () if args.is(i, "user") => normal &= value == "default",
            () if args.is(i, "type") => normal &= value.eq_ignore_ascii_case("normal"),
            () if args.is(i, "skipme") && value.eq_ignore_ascii_case("yes") => skip_me = true,
            () if args.is(i, "skipme") && value.eq_ignore_ascii_case("no") => skip_me = false,
            () => return Err(SYNTAX),
        }
    }
    let mut killed = 0;
    for client in &clients {
        let wanted = normal
            && id.is_none_or(|id| id == client.id)
            && address.as_ref().is_none_or(|a| *a == client.peer.to_string())
            && local.as_ref().is_none_or(|a| *a == client.local.to_string())
            && !(skip_me && client.id == own);
        if wanted {
            stop(c, client);
            killed += 1;
        }
    }
    c.reply.int(killed);
    Ok(())
}

/// One's own connection still gets its reply.
fn stop(c: &mut Context<'_>, client: &crate::clients::Client) {
    if client.id == c.session.client.id {
        c.session.closing = true;
    } else {
        client.stop();
    }
}
