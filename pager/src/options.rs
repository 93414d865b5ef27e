//! The options of a pager.

/// How to open the data file.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes of memory for cached pages, bookkeeping included. Default 64 MiB. Below 8 MiB the cache has fewer than
    /// 16 shards, so that its few pages still find room.
    pub cache_bytes: usize,
    /// Bytes of idle buffers kept for the next reads and writes. Default 4 MiB.
    pub idle_buffer_bytes: usize,
    /// Whether to create the file when it does not exist. Default true.
    pub create: bool,
    /// The least number of bytes by which the file grows; large files grow by 1/64 of their length, at most 256 MiB.
    /// Larger steps mean fewer metadata updates and longer contiguous extents, smaller ones less idle space.
    /// Default 16 MiB.
    pub min_growth: u64,
    /// Free space, allocated on the device, that only [`Pager::allocate_reserved`](crate::Pager::allocate_reserved)
    /// may use, so that deletes and compaction can still make room when the device is full. Default 8 MiB.
    pub reserve: u64,
    /// Whether a thread that waits for a page may keep its processor where that is measured to be faster than to sleep. Default true. With io_uring
    /// only, and two processors or more.
    pub busy_wait: bool,
    /// The new file's identity; none draws a random one. Set it where two runs must write the same bytes.
    pub uuid: Option<u128>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
            idle_buffer_bytes: 4 << 20,
            create: true,
            min_growth: 16 << 20,
            reserve: 8 << 20,
            busy_wait: true,
            uuid: None,
        }
    }
}
