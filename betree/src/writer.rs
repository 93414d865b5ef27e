//! Writes runs: entries in key order become pages, pages become segments, segments one large write each.
//!
//! Called by flush and compaction, from one thread. Nothing is synced here: a run becomes durable by the checkpoint that
//! publishes it. Cost per entry: one hash and two copies; per segment: one allocation of an extent and one write of
//! up to `segment_bytes`, submitted without waiting.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use betree_pager::{IoCompletion, PageKind, Pager, PagerIo};
use betree_storage::AlignedBuf;

use crate::Result;
use crate::filter;
use crate::hash::hash;
use crate::headed::Headed;
use crate::message::MessageRef;
use crate::options::TreeOptions;
use crate::page::{PageBuilder, Spread};
use crate::pins::{Pin, Pins};
use crate::room::Charge;
use crate::segment::{META_HEADER, META_ROW, SAMPLE_BYTES, Segment, TYPE_META, separator};
use crate::stats::Counter;

/// Segment writes in flight before the writer waits for one.
const WRITES_IN_FLIGHT: usize = 3;

/// What a run is written for.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Purpose<'a> {
    /// Messages from a memtable: their space was promised when they were accepted, and this is what is left of it.
    NewData(&'a Charge),
    /// Runs that replace others: may use most of the space held in reserve, since they make room.
    Rewrite,
}

/// Lays out one run after the other. See the module's text.
pub(crate) struct RunWriter<'a> {
    pager: &'a Pager,
    pins: &'a Pins,
    io: &'a mut PagerIo,
    options: TreeOptions,
    filter_room: u64,
    purpose: Purpose<'a>,
    /// Bytes of the promise that were redeemed.
    redeemed: u64,
    written: &'a Counter,
    page: PageBuilder,
    buf: AlignedBuf,
    /// Bytes of data pages laid out in `buf`.
    used: usize,
    /// Per page: first block, end of its separator. The checksum is known when the extent is.
    rows: Vec<(u32, u32)>,
    separators: Vec<u8>,
    samples: Vec<Box<[u8]>>,
    /// Bits of filter per key of the segment.
    filter_bits: usize,
    /// Hashes of all keys of the segment, those of the page in the making last.
    hashes: Vec<u64>,
    /// How many of them belong to pages laid out.
    hashes_laid: usize,
    min: Vec<u8>,
    last: Vec<u8>,
    /// Segments since the last cut.
    segments: Vec<Arc<Segment>>,
    /// Bytes of data pages since the last cut, those in the making not counted.
    run_bytes: u64,
    done: Vec<IoCompletion>,
    /// See [`RunWriter::leave`].
    left: bool,
}

impl<'a> RunWriter<'a> {
    /// `filter_room` is what all filters of the database may take, in bytes; `written` counts the bytes written.
    pub(crate) fn new(
        pager: &'a Pager,
        pins: &'a Pins,
        io: &'a mut PagerIo,
        options: TreeOptions,
        filter_room: u64,
        purpose: Purpose<'a>,
        written: &'a Counter,
    ) -> Self {
        RunWriter {
            pager,
            pins,
            io,
            options,
            filter_room,
            purpose,
            redeemed: 0,
            written,
            page: PageBuilder::new(options.page_bytes),
            buf: AlignedBuf::empty(),
            used: 0,
            rows: Vec::new(),
            separators: Vec::new(),
            samples: Vec::new(),
            filter_bits: options.filter_bits,
            hashes: Vec::new(),
            hashes_laid: 0,
            min: Vec::new(),
            last: Vec::new(),
            segments: Vec::new(),
            run_bytes: 0,
            done: Vec::new(),
            left: false,
        }
    }

    /// Appends an entry, and returns the hash of its key. REQUIRES: its key is above the last one's; its kind is not RangeDelete.
    #[inline]
    pub(crate) fn push(&mut self, message: MessageRef<'_>) -> Result<u64> {
        if !self.page.push(message) {
            self.lay_page()?;
            self.page.push(message);
        }
        let hash = hash(message.key);
        self.hashes.push(hash);
        Ok(hash)
    }

    /// Bytes of data pages since the last cut, about.
    pub(crate) fn run_bytes(&self) -> u64 {
        self.run_bytes
    }

    /// The last key of the run that [`RunWriter::cut`] ended.
    pub(crate) fn last_key(&self) -> &[u8] {
        &self.last
    }

    /// Ends the run here: its segments.
    pub(crate) fn cut(&mut self) -> Result<Vec<Arc<Segment>>> {
        if !self.page.is_empty() {
            self.lay_page()?;
        }
        if self.used > 0 {
            self.end_segment()?;
        }
        self.run_bytes = 0;
        Ok(std::mem::take(&mut self.segments))
    }

    /// Ends the segment here without ending the run, if it has `at_least` bytes.
    pub(crate) fn cut_segment(&mut self, at_least: usize) -> Result<()> {
        if self.used >= at_least {
            if !self.page.is_empty() {
                self.lay_page()?;
            }
            self.end_segment()?;
        }
        Ok(())
    }

    /// Leaves the writes in flight: the owner of the channel waits for them.
    pub(crate) fn leave(mut self) {
        self.left = true;
    }

    /// Waits for every write.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.wait_until(0)?;
        self.redeemed = 0;
        Ok(())
    }

    fn meta_len(&self, keys: usize, pages: usize, separators: usize) -> usize {
        (META_HEADER + filter::filter_len(keys, self.filter_bits) + pages * META_ROW + separators)
            .next_multiple_of(4096)
    }

    fn lay_page(&mut self) -> Result<()> {
        let len = self.page.page_len();
        let key_len = self.page.first_key().len();
        let meta = self.meta_len(self.hashes.len(), self.rows.len() + 1, self.separators.len() + key_len);
        if self.used > 0 && self.used + len + meta > self.buf.len() {
            self.end_segment()?;
        }
        if self.used == 0 {
            let keys = self.hashes.len() - self.hashes_laid;
            // As if all that is stored were like this page.
            let all = self.pager.allocated_bytes().max(len as u64) / len as u64 * keys as u64;
            self.filter_bits = filter::bits_within(self.filter_room, all, self.options.filter_bits);
            let need = len + self.meta_len(keys, 1, key_len);
            self.buf = self.io.buffer(need.max(self.options.segment_bytes));
            self.min.clear();
            self.min.extend_from_slice(self.page.first_key());
        } else {
            self.separators.extend_from_slice(separator(&self.last, self.page.first_key()));
        }
        if self.used >= self.samples.len() * SAMPLE_BYTES {
            self.samples.push(self.page.first_key().into());
        }
        self.rows.push(((self.used / betree_pager::BLOCK) as u32, self.separators.len() as u32));
        self.page.last_key_into(&mut self.last);
        self.page.finish(&mut self.buf[self.used..self.used + len]);
        self.used += len;
        self.run_bytes += len as u64;
        self.hashes_laid = self.hashes.len();
        // What is in flight goes to the device in pieces while somebody reads: the next one is handed over here.
        self.collect(0)
    }

    /// Writes the pages laid out as one segment.
    fn end_segment(&mut self) -> Result<()> {
        let data_len = self.used;
        let messages = self.hashes_laid;
        let meta_len = self.meta_len(messages, self.rows.len(), self.separators.len());
        let mut buf = std::mem::take(&mut self.buf);
        buf.truncate(data_len + meta_len);
        let extent = Arc::new(match self.purpose {
            Purpose::NewData(charge) => {
                let extent = self.pager.allocate_promised(data_len + meta_len)?;
                self.redeemed += charge.redeem(self.pager, u64::from(extent.len()));
                extent
            }
            Purpose::Rewrite => self.pager.allocate_for_rewrite(data_len + meta_len)?,
        });
        let filter_len = filter::filter_len(messages, self.filter_bits);
        let (data, meta) = buf.split_at_mut(data_len);
        meta.fill(0);
        meta[4] = TYPE_META;
        let mut put =
            |at: usize, value: usize| meta[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
        put(8, self.rows.len());
        put(12, filter_len);
        put(16, self.separators.len());
        put(20, messages);
        let table = META_HEADER + filter_len;
        for (i, &(block, separator_end)) in self.rows.iter().enumerate() {
            let start = block as usize * betree_pager::BLOCK;
            let end = self.rows.get(i + 1).map_or(data_len, |r| r.0 as usize * betree_pager::BLOCK);
            let crc = self.pager.seal(&mut data[start..end], extent.offset() + start as u64);
            put(table + i * META_ROW, block as usize);
            put(table + i * META_ROW + 4, crc as usize);
            put(table + i * META_ROW + 8, separator_end as usize);
        }
        let keys = table + self.rows.len() * META_ROW;
        meta[keys..keys + self.separators.len()].copy_from_slice(&self.separators);
        let filter = &mut meta[META_HEADER..table];
        if !filter.is_empty() {
            self.hashes[..messages].iter().for_each(|&h| filter::add(filter, h));
        }
        let meta_crc = self.pager.seal(meta, extent.offset() + data_len as u64);
        let segment = Arc::new(Segment {
            extent,
            data_len: data_len as u32,
            meta_len: meta_len as u32,
            meta_crc,
            messages: messages as u32,
            min: Headed::new(self.min.as_slice().into()),
            max: Headed::new(self.last.as_slice().into()),
            spread: Spread::new(&self.min, &self.last),
            samples: std::mem::take(&mut self.samples).into(),
            pin: Pin::default(),
        });
        if !self.pins.pin_new(&segment, meta) {
            self.pager.insert(&segment.extent, data_len as u32, meta, PageKind::Meta);
        }
        self.written.fetch_add((data_len + meta_len) as u64, Relaxed);
        self.wait_until(WRITES_IN_FLIGHT - 1)?;
        self.io.submit_write(&segment.extent, 0, buf, 0);
        self.io.kick();
        self.segments.push(segment);
        self.hashes.drain(..messages);
        self.hashes_laid = 0;
        self.rows.clear();
        self.separators.clear();
        self.used = 0;
        Ok(())
    }

    /// Waits until at most `left` writes are in flight.
    fn wait_until(&mut self, left: usize) -> Result<()> {
        let mut result = Ok(());
        while self.io.pending() > left {
            result = result.and(self.collect(1));
        }
        result
    }

    /// Waits for `at_least` writes, and takes what is complete.
    fn collect(&mut self, at_least: usize) -> Result<()> {
        self.io.wait(at_least, &mut self.done);
        let mut result = Ok(());
        for done in self.done.drain(..) {
            self.io.recycle(done.buf);
            result = result.and(done.result);
        }
        Ok(result?)
    }
}

impl Drop for RunWriter<'_> {
    fn drop(&mut self) {
        if let Purpose::NewData(charge) = self.purpose {
            // Nothing came of it: before the segments are dropped.
            charge.renew(self.pager, self.redeemed);
        }
        // The channel goes to the next task: it must be idle.
        if !self.left {
            let _ = self.wait_until(0);
        }
    }
}
