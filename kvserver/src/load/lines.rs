//! Lines of an input, with numbers, and with a limit on their length.

use std::io::{self, BufRead};

/// Longest line that is taken in.
pub const LONGEST: usize = 64 << 20;

/// Reads lines one after the other into one buffer.
#[derive(Debug)]
pub struct Lines<R> {
    input: R,
    line: Vec<u8>,
    number: u64,
}

/// A line that was found.
#[derive(Debug)]
pub enum Line<'a> {
    /// Without its end.
    Text(&'a [u8]),
    /// Longer than [`LONGEST`]; it was passed over.
    TooLong,
}

impl<R: BufRead> Lines<R> {
    /// Lines of `input`.
    pub fn new(input: R) -> Self {
        Lines { input, line: Vec::new(), number: 0 }
    }

    /// The number of the line read last, from 1 on.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The next line.
    pub fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        let (mut any, mut too_long) = (false, false);
        loop {
            let chunk = self.input.fill_buf()?;
            if chunk.is_empty() {
                break;
            }
            any = true;
            let end = memchr::memchr(b'\n', chunk);
            let part = &chunk[..end.unwrap_or(chunk.len())];
            too_long |= self.line.len() + part.len() > LONGEST;
            if !too_long {
                self.line.extend_from_slice(part);
            }
            let used = end.map_or(chunk.len(), |end| end + 1);
            self.input.consume(used);
            if end.is_some() {
                break;
            }
        }
        if !any {
            return Ok(None);
        }
        self.number += 1;
        if too_long {
            return Ok(Some(Line::TooLong));
        }
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        Ok(Some(Line::Text(line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_in_either_way_and_the_last_may_have_no_end() {
        let mut lines = Lines::new(&b"a\r\n\nb"[..]);
        let mut found = Vec::new();
        while let Some(Line::Text(line)) = lines.next().unwrap() {
            found.push(line.to_vec());
        }
        assert_eq!(found, [b"a".to_vec(), b"".to_vec(), b"b".to_vec()]);
        assert_eq!(lines.number(), 3);
    }

    #[test]
    fn a_line_beyond_the_limit_is_passed_over() {
        let input = [vec![b'x'; LONGEST + 1], b"\nshort\n".to_vec()].concat();
        let mut lines = Lines::new(io::BufReader::new(&input[..]));
        assert!(matches!(lines.next().unwrap(), Some(Line::TooLong)));
        assert!(matches!(lines.next().unwrap(), Some(Line::Text(b"short"))));
    }
}
