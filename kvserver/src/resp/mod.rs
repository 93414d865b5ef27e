//! The wire: RESP2, RESP3 and inline commands in, RESP2 or RESP3 out.
//!
//! Knows bytes and nothing else: no command, no key, no socket. Called by `connection` (parser) and by every
//! command (reply).

pub mod parser;
pub mod reply;

pub use parser::{Limits, Parser, Pipeline, ProtocolError, Span};
pub use reply::Reply;
