//! Commands: the table of them, and what a handler gets.
//!
//! One file for each family. A handler reads its arguments, reads and writes through [`Context`], and appends exactly
//! one reply, or returns a [`Failure`] and has appended nothing. The executor has checked the number of arguments and
//! holds the locks of the keys that the table names.

mod connection;
mod context;
mod counters;
mod expire;
mod keys;
mod ranges;
mod scan;
mod server;
mod strings;
mod table;
mod transactions;

pub use connection::COMPATIBLE_VERSION;
pub use context::{Args, Context, Expiry, Waits};
pub use table::{Flags, Handler, Job, Keys, Kind, Spec, TABLE, Work, find, find_position};

pub use crate::failure::{Failure, Outcome};
