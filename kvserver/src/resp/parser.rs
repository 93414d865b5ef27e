//! Incremental parser for requests: arrays of bulk strings, and inline commands.
//!
//! Owns no bytes. It walks over the connection's read buffer and leaves positions ([`Span`]) in a [`Pipeline`], so a
//! command costs no allocation and no copy. What was understood of a half-arrived command is kept between calls:
//! a command that comes one byte per packet is not parsed anew each time.
//!
//! Invariants:
//! - Nothing is allocated for a length that was announced: memory grows only with bytes that arrived.
//! - `begin <= scan <= buffer length`; every span lies within the buffer, spans of one command do not overlap.
//! - After an error the parser must not be used again; the connection answers the text and closes.
//!
//! The texts are those of Redis 7, which clients and test suites compare.

use std::borrow::Cow;

/// Longest announced bulk string.
pub const MAX_BULK: usize = 512 << 20;
/// Most arguments of one command.
pub const MAX_ARGUMENTS: i64 = 1_048_576;
/// Longest inline command.
pub const MAX_INLINE: usize = 64 << 10;
/// Longest line that can hold a length; a number of 64 bits needs 20 digits.
const MAX_HEADER: usize = 64;
/// Before authentication: most arguments, and longest argument.
const MAX_ARGUMENTS_BEFORE_AUTH: i64 = 10;
const MAX_BULK_BEFORE_AUTH: usize = 16 << 10;

/// Where an argument lies in the read buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// What a connection may send at this moment.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Whether the client has authenticated (or need not).
    pub authenticated: bool,
    /// Commands to take at most from one call.
    pub commands: usize,
}

/// The request cannot be understood; the text goes to the client behind `-ERR Protocol error: `.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtocolError(pub Cow<'static, str>);

/// Complete commands found in the buffer, in order.
#[derive(Debug, Default)]
pub struct Pipeline {
    spans: Vec<Span>,
    ends: Vec<usize>,
}

impl Pipeline {
    /// Number of commands.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no command.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The arguments of command `index`, its name first. Never empty.
    pub fn command(&self, index: usize) -> &[Span] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.spans[start..self.ends[index]]
    }

    /// Forgets the commands, and memory that only a very large command needed.
    pub fn clear(&mut self) {
        self.spans.clear();
        self.ends.clear();
        self.spans.shrink_to(4096);
    }

    fn push(&mut self, spans: &mut Vec<Span>) {
        self.spans.append(spans);
        spans.shrink_to(4096);
        self.ends.push(self.spans.len());
    }
}

/// The state between two reads.
#[derive(Debug, Default)]
pub struct Parser {
    /// Where the command being parsed begins; everything before it is done with.
    begin: usize,
    /// Everything before it has been understood.
    scan: usize,
    /// Everything before it was searched for a line end in vain.
    searched: usize,
    /// Bulk strings of the current command still to come.
    remaining: usize,
    /// Announced length of the bulk string at `scan`.
    bulk: Option<usize>,
    spans: Vec<Span>,
}

fn fail<T>(text: &'static str) -> Result<T, ProtocolError> {
    Err(ProtocolError(Cow::Borrowed(text)))
}

impl Parser {
    /// Takes complete commands from `buf` until there is none left or `limits.commands` are found.
    ///
    /// Inline arguments are unquoted in place, hence `&mut`. Commands found before an error are in `into`.
    pub fn parse(
        &mut self,
        buf: &mut [u8],
        limits: Limits,
        into: &mut Pipeline,
    ) -> Result<(), ProtocolError> {
        while into.len() < limits.commands {
            if !self.step(buf, limits.authenticated)? {
                break;
            }
            if !self.spans.is_empty() {
                into.push(&mut self.spans);
            }
            self.begin = self.scan;
        }
        Ok(())
    }

    /// Bytes of the buffer that complete commands took; the caller drops them once the commands have been executed.
    pub fn consumed(&self) -> usize {
        self.begin
    }

    /// The first `n` bytes were dropped from the buffer.
    pub fn advance(&mut self, n: usize) {
        self.begin -= n;
        self.scan -= n;
        self.searched = self.searched.saturating_sub(n);
        for span in &mut self.spans {
            span.start -= n;
            span.end -= n;
        }
    }

    /// Bytes that are known to be missing, to size the next read with.
    pub fn missing(&self, len: usize) -> usize {
        self.bulk.map_or(0, |bulk| (self.scan + bulk + 2).saturating_sub(len))
    }

    /// Understands as much as has arrived of one command; `true` when it is complete (and empty if there was nothing in it).
    fn step(&mut self, buf: &mut [u8], authenticated: bool) -> Result<bool, ProtocolError> {
        if self.remaining == 0 {
            match buf.get(self.scan) {
                None => return Ok(false),
                Some(b'*') => {
                    match self.header(buf, "too big mbulk count string", "invalid multibulk length")? {
                        None => return Ok(false),
                        Some(n) if n > MAX_ARGUMENTS => return fail("invalid multibulk length"),
                        Some(n) if n > MAX_ARGUMENTS_BEFORE_AUTH && !authenticated => {
                            return fail("unauthenticated multibulk length");
                        }
                        Some(n) => self.remaining = n.max(0) as usize,
                    }
                }
                Some(_) => return self.inline(buf),
            }
        }
        while self.remaining > 0 {
            let len = match self.bulk {
                Some(len) => len,
                None => {
                    match buf.get(self.scan) {
                        None => return Ok(false),
                        Some(b'$') => {}
                        Some(&other) => return unexpected(other),
                    }
                    let Some(n) = self.header(buf, "too big bulk count string", "invalid bulk length")?
                    else {
                        return Ok(false);
                    };
                    let len = usize::try_from(n).ok().filter(|&n| n <= MAX_BULK);
                    let Some(len) = len else { return fail("invalid bulk length") };
                    if len > MAX_BULK_BEFORE_AUTH && !authenticated {
                        return fail("unauthenticated bulk length");
                    }
                    self.bulk = Some(len);
                    len
                }
            };
            let end = self.scan + len;
            let Some(line_end) = buf.get(end..end + 2) else { return Ok(false) };
            if line_end != b"\r\n" {
                return fail("invalid bulk length: the bulk string does not end where it should");
            }
            self.spans.push(Span { start: self.scan, end });
            self.scan = end + 2;
            self.searched = self.scan;
            self.bulk = None;
            self.remaining -= 1;
        }
        Ok(true)
    }

    /// The number on the line at `scan`, behind its type byte; moves past the line.
    fn header(
        &mut self,
        buf: &[u8],
        too_long: &'static str,
        invalid: &'static str,
    ) -> Result<Option<i64>, ProtocolError> {
        let line = &buf[self.scan..];
        let window = &line[..line.len().min(MAX_HEADER)];
        let Some(cr) = memchr::memchr(b'\r', window) else {
            return if line.len() >= MAX_HEADER { fail(too_long) } else { Ok(None) };
        };
        match line.get(cr + 1) {
            None => return Ok(None),
            Some(b'\n') => {}
            Some(_) => return fail(invalid),
        }
        let Some(n) = crate::number::parse_i64(&line[1..cr]) else { return fail(invalid) };
        self.scan += cr + 2;
        self.searched = self.scan;
        Ok(Some(n))
    }

    fn inline(&mut self, buf: &mut [u8]) -> Result<bool, ProtocolError> {
        let from = self.searched.max(self.scan);
        let Some(newline) = memchr::memchr(b'\n', &buf[from..]) else {
            self.searched = buf.len();
            return if buf.len() - self.scan > MAX_INLINE {
                fail("too big inline request")
            } else {
                Ok(false)
            };
        };
        let newline = from + newline;
        if newline - self.scan > MAX_INLINE {
            return fail("too big inline request");
        }
        let mut end = newline;
        if end > self.scan && buf[end - 1] == b'\r' {
            end -= 1;
        }
        split_inline(buf, self.scan, end, &mut self.spans)?;
        self.scan = newline + 1;
        self.searched = self.scan;
        Ok(true)
    }
}

fn unexpected<T>(byte: u8) -> Result<T, ProtocolError> {
    Err(ProtocolError(Cow::Owned(format!("expected '$', got '{}'", char::from(byte)))))
}

/// Splits a line into arguments, unquoting them in place: the text behind quotes and escapes is never longer than they are.
fn split_inline(
    buf: &mut [u8],
    mut at: usize,
    end: usize,
    spans: &mut Vec<Span>,
) -> Result<(), ProtocolError> {
    let is_space = |b: u8| b.is_ascii_whitespace() || b == 0x0b;
    loop {
        while at < end && is_space(buf[at]) {
            at += 1;
        }
        if at >= end {
            return Ok(());
        }
        let start = at;
        let mut out = at;
        let mut quote = None;
        while at < end {
            let byte = buf[at];
            at += 1;
            match quote {
                None if is_space(byte) => break,
                None if byte == b'"' || byte == b'\'' => {
                    quote = Some(byte);
                    continue;
                }
                Some(q) if byte == q => {
                    // A closing quote must end the argument.
                    if at < end && !is_space(buf[at]) {
                        return fail("unbalanced quotes in request");
                    }
                    quote = None;
                    break;
                }
                Some(b'"') if byte == b'\\' && at < end => {
                    let (value, used) = unescape(&buf[at..end]);
                    buf[out] = value;
                    at += used;
                }
                Some(b'\'') if byte == b'\\' && at < end && buf[at] == b'\'' => {
                    buf[out] = b'\'';
                    at += 1;
                }
                _ => buf[out] = byte,
            }
            out += 1;
        }
        if quote.is_some() {
            return fail("unbalanced quotes in request");
        }
        spans.push(Span { start, end: out });
    }
}

/// The byte that an escape sequence stands for, and the length of the sequence behind its backslash.
fn unescape(text: &[u8]) -> (u8, usize) {
    let hex = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
    if let [b'x', high, low, ..] = text
        && let (Some(high), Some(low)) = (hex(*high), hex(*low))
    {
        return (high << 4 | low, 3);
    }
    let byte = match text[0] {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        other => other,
    };
    (byte, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Limits = Limits { authenticated: true, commands: 1024 };

    fn commands(buf: &[u8], pipeline: &Pipeline) -> Vec<Vec<Vec<u8>>> {
        (0..pipeline.len())
            .map(|i| pipeline.command(i).iter().map(|s| buf[s.start..s.end].to_vec()).collect())
            .collect()
    }

    fn parse(input: &[u8]) -> (Vec<Vec<Vec<u8>>>, Result<(), ProtocolError>) {
        let mut buf = input.to_vec();
        let mut pipeline = Pipeline::default();
        let result = Parser::default().parse(&mut buf, OPEN, &mut pipeline);
        (commands(&buf, &pipeline), result)
    }

    fn error(input: &[u8]) -> String {
        parse(input).1.unwrap_err().0.into_owned()
    }

    #[test]
    fn one_byte_at_a_time_gives_the_same_commands_as_all_at_once() {
        let input = b"*2\r\n$3\r\nGET\r\n$3\r\na\r\n\r\nset x \"a\\x41 b\" 'c\\'d'\r\n\r\n*0\r\n*-1\r\n*1\r\n$0\r\n\r\n";
        let (expected, result) = parse(input);
        assert!(result.is_ok());
        assert_eq!(expected.len(), 3);
        assert_eq!(expected[1], [b"set".to_vec(), b"x".to_vec(), b"aA b".to_vec(), b"c'd".to_vec()]);
        let (mut parser, mut buf, mut got) = (Parser::default(), Vec::new(), Vec::new());
        for &byte in input {
            buf.push(byte);
            let mut pipeline = Pipeline::default();
            parser.parse(&mut buf, OPEN, &mut pipeline).unwrap();
            got.extend(commands(&buf, &pipeline));
            let consumed = parser.consumed();
            buf.drain(..consumed);
            parser.advance(consumed);
        }
        assert_eq!(got, expected);
        assert!(buf.is_empty());
    }

    #[test]
    fn malformed_lengths_are_named() {
        for n in ["9223372036854775808", "18446744073709551617", "+1", "01", "1e3", "0x10", "", "1048577"] {
            assert_eq!(error(format!("*{n}\r\n").as_bytes()), "invalid multibulk length", "{n}");
        }
        for n in ["-1", "+1", "01", "536870913", "9223372036854775808"] {
            assert_eq!(error(format!("*1\r\n${n}\r\n").as_bytes()), "invalid bulk length", "{n}");
        }
        assert_eq!(error(&[b"*".as_slice(), &[b'1'; 70_000]].concat()), "too big mbulk count string");
        assert_eq!(error(&[b"*1\r\n$".as_slice(), &[b'1'; 70_000]].concat()), "too big bulk count string");
        assert_eq!(error(&[b'a'; 70_000]), "too big inline request");
        assert_eq!(error(b"*1\r\n*1\r\n"), "expected '$', got '*'");
        assert_eq!(error(b"get \"a\r\n"), "unbalanced quotes in request");
        assert_eq!(error(b"get \"a\"b\r\n"), "unbalanced quotes in request");
        assert!(error(b"*1\r\n$1\r\nabc\r\n").starts_with("invalid bulk length"));
    }

    #[test]
    fn announced_lengths_allocate_nothing() {
        let mut parser = Parser::default();
        let mut pipeline = Pipeline::default();
        parser.parse(&mut b"*1048576\r\n$536870912\r\n".to_vec(), OPEN, &mut pipeline).unwrap();
        assert_eq!(parser.spans.capacity(), 0);
        assert!(pipeline.is_empty());
    }

    #[test]
    fn commands_before_an_error_are_kept() {
        let (commands, result) = parse(b"PING\r\n*1\r\n!\r\n");
        assert_eq!(commands, [[b"PING".to_vec()]]);
        assert_eq!(result.unwrap_err().0, "expected '$', got '!'");
    }

    #[test]
    fn limits_are_tighter_before_authentication() {
        let limits = Limits { authenticated: false, commands: 1 };
        let parse = |input: &[u8]| {
            Parser::default().parse(&mut input.to_vec(), limits, &mut Pipeline::default()).unwrap_err().0
        };
        assert_eq!(parse(b"*11\r\n"), "unauthenticated multibulk length");
        assert_eq!(parse(b"*1\r\n$16385\r\n"), "unauthenticated bulk length");
    }
}
