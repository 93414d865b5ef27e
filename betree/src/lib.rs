//! An embeddable, crash-safe, ordered key-value store built on a Bε-tree.

#![warn(missing_docs)]

mod batch;
mod check;
mod checkpoint;
mod commit;
mod cursor;
mod cuts;
mod db;
mod device;
mod error;
mod filter;
mod flush;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod garbage;
mod get;
mod hash;
mod headed;
mod iter;
mod keyspace;
mod memory;
mod memtable;
mod memtable_compaction;
mod merge;
mod message;
#[cfg(all(test, feature = "shuttle"))]
mod models;
mod node;
mod node_codec;
mod operands;
mod operator;
mod options;
mod page;
mod path;
mod pins;
mod poison;
mod pressure;
mod readahead;
mod readers;
mod recovery;
mod remember;
mod room;
mod rows;
mod run;
mod salvage;
mod scheduler;
mod segment;
mod shared;
mod snapshot;
mod spans;
mod state;
mod stats;
mod stored;
mod stream;
mod task_io;
mod tree;
mod turns;
mod types;
mod view;
mod walk;
mod writer;

pub use batch::{MAX_BATCH_LEN, WriteBatch};
pub use bytes::Bytes;
pub use check::{CheckReport, Progress};
pub use db::Db;
pub use error::{Error, Result};
pub use iter::Iter;
pub use keyspace::Keyspace;
pub use operator::{AddI64, Append, Max, MergeOperator, Min};
pub use options::{Builder, Durability, KeyspaceOptions, Options, TreeOptions};
pub use readers::{GetFuture, MultiGetFuture, PrefetchFuture};
pub use salvage::{Damage, KeyRange, SalvageReport, SalvagedKeyspace};
pub use snapshot::Snapshot;
pub use stats::Stats;
pub use types::{MAX_KEY_LEN, MAX_VALUE_LEN, Seqno};
