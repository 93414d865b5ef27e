//! Encodings without a page of their own: batches, spans, operands, catalogs. What decodes is encoded again to an equal value, and from
//! there on to the same bytes.

use betree::fuzzing;

/// The first byte says which.
pub fn batch(bytes: &[u8]) {
    let Some((&which, bytes)) = bytes.split_first() else { return };
    match which % 4 {
        0 => batches(bytes),
        1 => spans(bytes),
        2 => operands(bytes),
        _ => catalog(bytes),
    }
}

fn batches(bytes: &[u8]) {
    let Some((first, messages)) = fuzzing::batch(bytes) else { return };
    let encoded = fuzzing::encode_batch(first, &messages);
    assert!(encoded.len() <= bytes.len(), "there is no shorter encoding");
    assert_eq!(fuzzing::batch(&encoded), Some((first, messages)));
    for cut in 0..encoded.len().min(200) {
        assert_eq!(fuzzing::batch(&encoded[..cut]), None, "a batch that is cut off");
    }
}

fn spans(bytes: &[u8]) {
    let Some((spans, encoded)) = fuzzing::spans(bytes) else { return };
    assert!(spans.iter().all(|(start, end)| start < end), "an empty span");
    assert!(spans.windows(2).all(|pair| pair[0].1 < pair[1].0), "spans that touch");
    assert_eq!(fuzzing::spans(&encoded), Some((spans, encoded)));
}

fn operands(bytes: &[u8]) {
    let Some((operands, encoded)) = fuzzing::operands(bytes) else { return };
    assert_eq!(fuzzing::operands(&encoded), Some((operands, encoded)));
}

fn catalog(bytes: &[u8]) {
    // The header of a page of type 4 with the right length: only the body is made up.
    let mut page = vec![0; 16];
    page[4] = 4;
    page[8..12].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    page.extend_from_slice(bytes);
    let Some(encoded) = fuzzing::catalog(&page) else { return };
    assert_eq!(encoded.len() % 4096, 0);
    assert_eq!(fuzzing::catalog(&encoded), Some(encoded));
}
