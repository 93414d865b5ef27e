//! What a command answers when it cannot do what was asked.

use std::borrow::Cow;

use crate::resp::Reply;

/// A command failed; nothing of it was written.
#[derive(Debug, Clone)]
pub enum Failure {
    /// The client asked for something that cannot be; the text has its prefix.
    Request(Cow<'static, str>),
    /// The engine failed.
    Engine(betree::Error),
    /// The device has to be read, and the command was not to wait for it. It is executed again when that has been done.
    Cold,
}

/// What handlers return.
pub type Outcome<T = ()> = Result<T, Failure>;

/// Options that contradict each other or are not known.
pub const SYNTAX: Failure = Failure::Request(Cow::Borrowed("ERR syntax error"));
/// Something that should have been an integer.
pub const NOT_AN_INTEGER: Failure =
    Failure::Request(Cow::Borrowed("ERR value is not an integer or out of range"));
/// Something that should have been a float.
pub const NOT_A_FLOAT: Failure = Failure::Request(Cow::Borrowed("ERR value is not a valid float"));
/// A value would become larger than a client can read.
pub const TOO_LONG: Failure =
    Failure::Request(Cow::Borrowed("ERR string exceeds maximum allowed size (proto-max-bulk-len)"));

impl From<betree::Error> for Failure {
    fn from(error: betree::Error) -> Self {
        Failure::Engine(error)
    }
}

impl From<&'static str> for Failure {
    fn from(text: &'static str) -> Self {
        Failure::Request(Cow::Borrowed(text))
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Failure::Request(Cow::Owned(text))
    }
}

impl Failure {
    /// Answers it. Prefixes are those that clients know: `MISCONF` for a server that cannot write any more, `OOM` for
    /// one without room.
    pub fn write(&self, reply: &mut Reply) {
        match self {
            Failure::Request(text) => reply.error(text),
            Failure::Cold => reply.error("TRYAGAIN the value is not in memory"),
            Failure::Engine(error) => match error {
                betree::Error::NoSpace { .. } => {
                    reply.error(&format!("OOM command not allowed: {error}; reads go on"));
                }
                // The log fails writes only, and is not written again after that.
                betree::Error::Poisoned { .. } | betree::Error::Log(_) | betree::Error::Closed => {
                    reply.error(&format!("MISCONF {error}"));
                }
                betree::Error::KeyTooLong { .. } | betree::Error::ValueTooLong { .. } => {
                    reply.error(&format!("ERR {error}"));
                }
                other => reply.error(&format!("ERR the database reports: {other}")),
            },
        }
    }
}
