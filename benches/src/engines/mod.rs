//! One adapter per engine, each in its own file, each with the settings that a user who knows the engine would choose for
//! this memory limit. Nothing outside `engine.rs` names them.

pub(crate) mod betree;
#[cfg(feature = "fjall")]
pub(crate) mod fjall;
#[cfg(feature = "lmdb")]
pub(crate) mod lmdb;
#[cfg(feature = "redb")]
pub(crate) mod redb;
#[cfg(feature = "rocksdb")]
pub(crate) mod rocksdb;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;
