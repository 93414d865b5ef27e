//! A standalone server for `betree` that speaks the Redis protocol, as a library: the binary is a command line around it,
//! and tests start it in their own process.
//!
//! The path of a request: `connection` reads, `resp::parser` finds commands, `executor` groups and locks, `command`
//! handlers read and write through `command::Context`, `pending` collects the writes, `store` names the keyspaces, the engine
//! commits, `resp::reply` answers. Only the public API of `betree` is used.

#![warn(missing_docs)]

pub mod cli;
pub mod clients;
pub mod command;
pub mod config;
pub mod connection;
pub mod cursors;
pub mod durable;
pub mod executor;
pub mod expiry;
pub mod failure;
pub mod glob;
pub mod info;
pub mod load;
pub mod locks;
pub mod metrics;
pub mod number;
pub mod offline;
pub mod pending;
pub mod rescue;
pub mod resp;
pub mod server;
pub mod session;
pub mod shared;
pub mod store;
