//! Replies, appended to one buffer per connection in RESP2 or RESP3.
//!
//! Invariant: text that a client chose never ends a line. [`Reply::error`] replaces CR, LF and NUL, so a key name cannot
//! forge a second reply.

/// The output of a connection.
#[derive(Debug, Default)]
pub struct Reply {
    buf: Vec<u8>,
    resp3: bool,
}

impl Reply {
    /// An empty output in the given protocol.
    pub fn new(resp3: bool) -> Self {
        Reply { buf: Vec::new(), resp3 }
    }

    /// Chooses RESP3 or RESP2 for what follows.
    pub fn set_resp3(&mut self, resp3: bool) {
        self.resp3 = resp3;
    }

    /// Whether RESP3 is spoken.
    pub fn resp3(&self) -> bool {
        self.resp3
    }

    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// What waits.
    pub fn bytes(&self) -> &[u8] {
        &self.buf
    }

    /// Takes back everything behind position `len`.
    pub fn truncate(&mut self, len: usize) {
        self.buf.truncate(len);
    }

    /// Cuts off and returns everything behind position `at`.
    pub fn split_off(&mut self, at: usize) -> Vec<u8> {
        self.buf.split_off(at)
    }

    /// Drops what was sent, and memory that only a large reply needed.
    pub fn sent(&mut self, n: usize) {
        if n == self.buf.len() {
            self.buf.clear();
            self.buf.shrink_to(64 << 10);
        } else {
            self.buf.drain(..n);
        }
    }

    /// Gives the memory back while there is nothing to say.
    pub fn release(&mut self) {
        if self.buf.is_empty() {
            self.buf = Vec::new();
        }
    }

    /// Bytes that are a reply already.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    fn line(&mut self, kind: u8, n: i64) {
        self.buf.push(kind);
        self.buf.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
        self.buf.extend_from_slice(b"\r\n");
    }

    /// `+OK`.
    pub fn ok(&mut self) {
        self.buf.extend_from_slice(b"+OK\r\n");
    }

    /// A status line of our own wording.
    pub fn simple(&mut self, text: &'static str) {
        self.buf.push(b'+');
        self.buf.extend_from_slice(text.as_bytes());
        self.buf.extend_from_slice(b"\r\n");
    }

    /// An error; `text` begins with its prefix (`ERR`, `WRONGTYPE` …).
    pub fn error(&mut self, text: &str) {
        self.error_bytes(text.as_bytes());
    }

    /// An error whose text may hold bytes of the client that are not UTF-8.
    pub fn error_bytes(&mut self, text: &[u8]) {
        let end = text.iter().rposition(|b| !matches!(b, b'\r' | b'\n')).map_or(0, |last| last + 1);
        let text = &text[..end];
        self.buf.push(b'-');
        self.buf.extend(text.iter().map(|&b| if matches!(b, b'\r' | b'\n' | 0) { b' ' } else { b }));
        self.buf.extend_from_slice(b"\r\n");
    }

    /// An integer.
    pub fn int(&mut self, n: i64) {
        self.line(b':', n);
    }

    /// A count; counts beyond `i64` do not occur.
    pub fn count(&mut self, n: u64) {
        self.int(i64::try_from(n).unwrap_or(i64::MAX));
    }

    /// A bulk string.
    pub fn bulk(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        self.line(b'$', bytes.len() as i64);
        self.buf.extend_from_slice(bytes);
        self.buf.extend_from_slice(b"\r\n");
    }

    /// A bulk string, or null.
    pub fn bulk_or_null(&mut self, bytes: Option<impl AsRef<[u8]>>) {
        match bytes {
            Some(bytes) => self.bulk(bytes),
            None => self.null(),
        }
    }

    /// Null, where a bulk string could have been.
    pub fn null(&mut self) {
        self.buf.extend_from_slice(if self.resp3 { b"_\r\n" } else { b"$-1\r\n" });
    }

    /// Null, where an array could have been.
    pub fn null_array(&mut self) {
        self.buf.extend_from_slice(if self.resp3 { b"_\r\n" } else { b"*-1\r\n" });
    }

    /// The head of an array of `n` replies.
    pub fn array(&mut self, n: usize) {
        self.line(b'*', n as i64);
    }

    /// The head of a map of `n` pairs; in RESP2 a flat array.
    pub fn map(&mut self, n: usize) {
        if self.resp3 { self.line(b'%', n as i64) } else { self.line(b'*', 2 * n as i64) }
    }

    /// The head of a set of `n` replies; in RESP2 an array.
    pub fn set(&mut self, n: usize) {
        self.line(if self.resp3 { b'~' } else { b'*' }, n as i64);
    }

    /// A text for people; in RESP2 a bulk string.
    pub fn verbatim(&mut self, text: &str) {
        if !self.resp3 {
            return self.bulk(text);
        }
        self.line(b'=', text.len() as i64 + 4);
        self.buf.extend_from_slice(b"txt:");
        self.buf.extend_from_slice(text.as_bytes());
        self.buf.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_cannot_forge_a_second_reply() {
        let mut reply = Reply::default();
        reply.error("ERR unknown command 'x\r\n+OK\0'");
        assert_eq!(reply.bytes(), b"-ERR unknown command 'x  +OK '\r\n");
    }

    #[test]
    fn the_same_value_has_a_form_in_each_protocol() {
        let mut reply = Reply::default();
        reply.null();
        reply.map(1);
        reply.verbatim("hi");
        reply.set_resp3(true);
        reply.null();
        reply.map(1);
        reply.verbatim("hi");
        assert_eq!(reply.bytes(), b"$-1\r\n*2\r\n$2\r\nhi\r\n_\r\n%1\r\n=6\r\ntxt:hi\r\n");
    }
}
