//! One leaf's key range put together from its layers: per key the newest message that verifies decides.
//!
//! The rule where something is lost: a Put or Delete counts whatever is missing below it. Merge operands count only if nothing between them
//! and what they are folded onto is missing; else they are dropped with all that is newer than the gap, and the key has the value that it had
//! at the moment below the gap. So every value is one that the key once had. Called by salvage.

use std::sync::Arc;

use super::report::Losses;
use super::stream::{Source, Stream};
use super::trunk::Layer;
use crate::Result;
use crate::message::Kind;
use crate::operands;
use crate::operator::MergeOperator;

/// What takes the records: key and value.
pub(super) type Emit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<()> + 'a;

enum Level {
    Stream(Box<Stream>),
    Gap,
}

/// Hands the records with keys in `low..high` to `emit`, in order. Returns for how many keys operands were dropped.
pub(super) fn fold(
    source: &mut Source<'_>,
    operator: Option<&Arc<dyn MergeOperator>>,
    layers: &[Layer],
    low: &[u8],
    high: Option<&[u8]>,
    losses: &mut Losses,
    emit: &mut Emit<'_>,
) -> Result<u64> {
    let mut levels: Vec<Level> = Vec::with_capacity(layers.len());
    for layer in layers {
        levels.push(match layer {
            Layer::Gap => Level::Gap,
            Layer::Run(run, trust) => {
                let mut stream = Stream::new(run.clone(), *trust, low, high);
                stream.advance(source, losses);
                Level::Stream(Box::new(stream))
            }
        });
    }
    let mut dropped = 0;
    let mut key = Vec::new();
    loop {
        let streams = levels.iter().filter_map(|level| match level {
            Level::Stream(stream) if stream.valid => Some(&stream.key),
            _ => None,
        });
        let Some(least) = streams.min() else { return Ok(dropped) };
        key.clear();
        key.extend_from_slice(least);
        let (value, whole) = resolve(&levels, operator, &key);
        dropped += u64::from(!whole);
        if let Some(value) = value {
            emit(&key, &value)?;
        }
        for level in &mut levels {
            if let Level::Stream(stream) = level
                && stream.valid
                && stream.key == key
            {
                stream.advance(source, losses);
            }
        }
    }
}

/// The value of `key`, and whether no operand had to be dropped for it.
fn resolve(
    levels: &[Level],
    operator: Option<&Arc<dyn MergeOperator>>,
    key: &[u8],
) -> (Option<Vec<u8>>, bool) {
    // Newest first.
    let mut lists: Vec<&[u8]> = Vec::new();
    let mut whole = true;
    let mut base = None;
    for level in levels {
        let Level::Stream(stream) = level else {
            whole &= lists.is_empty();
            lists.clear();
            continue;
        };
        if stream.valid && stream.key == key {
            match (stream.kind, stream.value()) {
                (Kind::Put, value) => {
                    base = value;
                    break;
                }
                (Kind::Merge, Some(list)) => lists.push(list),
                _ => break,
            }
        } else if stream.may_have_lost(key) {
            whole &= lists.is_empty();
            lists.clear();
        }
        if stream.run().spans.contains(key) {
            break;
        }
    }
    if lists.is_empty() {
        return (base.map(<[u8]>::to_vec), whole);
    }
    let decoded: Option<Vec<Vec<&[u8]>>> = lists.iter().rev().map(|list| operands::decode(list)).collect();
    match (operator, decoded) {
        (Some(operator), Some(decoded)) => (Some(operator.full_merge(key, base, &decoded.concat())), whole),
        // No operator, or a list that is none: what the operands mean is not known.
        _ => (base.map(<[u8]>::to_vec), false),
    }
}
