//! Rows blocks: what decodes is laid out again to rows that decode to the same, and the checker names the first that no tree can have.

/// The bytes: as of which Seqno the only tree of keyspace 0 is, then the body of a block.
pub fn rows(bytes: &[u8]) {
    let mut source = super::Source(bytes);
    let flushed = u64::from(source.u16());
    let body = source.0;
    let mut block = vec![0; 16];
    block[4] = 5;
    block[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
    block.extend_from_slice(body);
    let Some(rows) = betree::fuzzing::rows(&block) else {
        assert!(betree::fuzzing::rows_fault(&block, flushed).is_some(), "what does not decode is a fault");
        return;
    };
    let again: Vec<_> = betree::fuzzing::rows_blocks(&rows)
        .iter()
        .flat_map(|block| betree::fuzzing::rows(block))
        .flatten()
        .collect();
    assert!(again == rows, "{} rows became {}", rows.len(), again.len());
    let all_fit = rows.iter().all(|row| row.0 == 0 && row.1 <= flushed);
    assert_eq!(betree::fuzzing::rows_fault(&block, flushed).is_none(), all_fit);
}
