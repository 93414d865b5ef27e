//! The check of rows that come in key order (`phase.verified`): each belongs to a record that may be there, has a value that was
//! written for it, and follows the row before.

use anyhow::{Result, bail, ensure};

use crate::record::{Key, Records};

/// Checks the rows of one scan; `known` says which record numbers may be met.
#[derive(Debug)]
pub(super) struct Order<F> {
    records: Records,
    known: F,
    previous: Option<Key>,
    rows: u64,
}

impl<F: FnMut(u64) -> bool> Order<F> {
    pub(super) fn new(records: Records, known: F) -> Self {
        Order { records, known, previous: None, rows: 0 }
    }

    /// Rows that passed.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    pub(super) fn next(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let Some(number) = self.records.number(key) else {
            bail!("row {}: no record has this key", self.rows)
        };
        ensure!((self.known)(number), "row {}: record {number} was never written, or is deleted", self.rows);
        ensure!(self.records.value_matches(number, value), "record {number} has a wrong value");
        // As long as every key, or it would have no number.
        let key: Key = key.try_into()?;
        ensure!(self.previous.is_none_or(|previous| previous < key), "row {}: keys do not rise", self.rows);
        self.previous = Some(key);
        self.rows += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(records: &Records, number: u64) -> (Key, Vec<u8>) {
        let mut value = Vec::new();
        records.append_value(number, 0, &mut value);
        (records.key(number), value)
    }

    #[test]
    fn rows_in_order_pass_and_a_repeated_one_does_not() {
        let records = Records::new(5, 40);
        let mut rows: Vec<_> = (0..50).map(|n| row(&records, n)).collect();
        rows.sort();
        let mut order = Order::new(records, |number| number < 50);
        for (key, value) in &rows {
            order.next(key, value).unwrap();
        }
        let (key, value) = &rows[49];
        assert!(order.next(key, value).unwrap_err().to_string().contains("do not rise"));
    }

    #[test]
    fn foreign_keys_unwritten_records_and_wrong_values_are_told_apart() {
        let records = Records::new(5, 40);
        let mut order = Order::new(records, |number| number < 50);
        let (key, value) = row(&records, 50);
        assert!(order.next(&key, &value).unwrap_err().to_string().contains("never written"));
        let (key, _) = row(&records, 3);
        assert!(order.next(&key, &value).unwrap_err().to_string().contains("wrong value"));
        assert!(order.next(b"something else!!", &value).unwrap_err().to_string().contains("no record"));
    }
}
