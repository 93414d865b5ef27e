//! Where the segments of a run in a buffer end: at the first low key of a leaf at which they are large enough. A segment keeps its space until
//! the last leaf in its range has taken its part, which is long after the first did if there are many of them. Made by `flush` for one run, in one
//! thread.

use std::iter::Peekable;
use std::sync::Arc;

use crate::Result;
use crate::node::Node;
use crate::options::TreeOptions;
use crate::writer::RunWriter;

/// Segments in buffers end where a leaf does once they have this fraction of their largest size.
pub(crate) const CUT_FRACTION: usize = 8;

/// See the module's text.
pub(crate) struct Cuts<'a> {
    lows: Peekable<std::vec::IntoIter<&'a [u8]>>,
    at_least: usize,
}

impl<'a> Cuts<'a> {
    /// The cuts of a run for the buffer of `node`. Cost: a look at every leaf below.
    pub(crate) fn new(node: &'a Arc<Node>, options: &TreeOptions) -> Cuts<'a> {
        let mut lows = Vec::new();
        node.visit_nodes(&mut |node| {
            if node.level == 1 {
                lows.extend(node.children.iter().map(|child| &child.low[..]));
            }
        });
        Cuts { lows: lows.into_iter().peekable(), at_least: options.segment_bytes / CUT_FRACTION }
    }

    /// Ends the segment before `key` if it should.
    #[inline]
    pub(crate) fn before(&mut self, key: &[u8], writer: &mut RunWriter<'_>) -> Result<()> {
        if self.lows.peek().is_some_and(|low| *low <= key) {
            while self.lows.next_if(|low| *low <= key).is_some() {}
            writer.cut_segment(self.at_least)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::CUT_FRACTION;
    use crate::{Db, Result, TreeOptions};

    /// Segments that wait for several leaves keep their space until the last of them had its turn: they should be few.
    #[test]
    fn segments_of_a_buffer_end_where_leaves_do() -> Result<()> {
        let least: u32 = 16 << 10;
        let tree = TreeOptions {
            leaf_bytes: 64 << 10,
            segment_bytes: CUT_FRACTION * least as usize,
            fanout: 128,
            ..TreeOptions::default()
        };
        let disk = betree_testkit::SimStorage::new(1);
        let builder =
            Db::builder().memory(8 << 20).memtable_bytes(512 << 10).background_threads(0).tree(tree);
        let db = builder.open_on(disk.as_storage())?;
        let keyspace = db.keyspace("records")?;
        let mut next = 0u64;
        let mut insert = |count: u64| -> Result<()> {
            for _ in 0..count {
                next += 1;
                keyspace.insert(next.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes(), [7; 100])?;
            }
            Ok(())
        };
        insert(20_000)?;
        db.compact()?;
        insert(3_000)?;
        keyspace.state.freeze();
        assert!(db.run_background()?, "the flush of the memtable");

        let root = keyspace.state.view().root.clone();
        let lows: Vec<&[u8]> = root.children.iter().map(|child| &child.low[..]).collect();
        let run = &root.queue.last().expect("the run that was just written").run;
        assert!(lows.len() > 20 && run.segments.len() > 5, "{} leaves, {}", lows.len(), run.segments.len());
        for pair in run.segments.windows(2) {
            let between = |low: &&[u8]| pair[0].max[..] < **low && **low <= pair[1].min[..];
            assert!(lows.iter().any(between), "{:?}", pair[0]);
            assert!(pair[0].data_len >= least && pair[0].data_len < 3 * least, "{:?}", pair[0]);
        }
        db.check().map(drop)
    }
}
