//! Records of the formats: each finds a key and a value in a line.

use std::cell::Cell;
use std::io::{BufRead, Read};
use std::rc::Rc;

use super::lines::{LONGEST, Line, Lines};
use super::{Format, Options};
use crate::failure::Failure;

/// Why there is no record.
#[derive(Debug)]
pub enum Error {
    /// This line is bad; the next may be good.
    Line {
        /// Its number, from 1 on.
        number: u64,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing more can be read or written.
    Fatal(String),
}

/// Takes a key and a value.
pub type Sink<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<(), Failure>;

/// A stream of records.
pub trait Records {
    /// Hands the next record to `sink`; `false` at the end.
    fn next(&mut self, sink: Sink<'_>) -> Result<bool, Error>;
}

/// The records of an input.
pub fn open<'a>(options: &Options, input: impl BufRead + 'a) -> Result<Box<dyn Records + 'a>, String> {
    let need_key =
        || options.key.clone().ok_or("--key is needed: which column or field is the key?".to_string());
    match options.format {
        Format::Contents if options.key.is_some() || options.value.is_some() || options.header => {
            Err("--format contents knows its key and value: the path and the packages".into())
        }
        Format::Contents => Ok(Box::new(Contents(Lines::new(input)))),
        Format::Ndjson if options.header => Err("--header is for tsv and csv".into()),
        Format::Ndjson => {
            Ok(Box::new(Ndjson { lines: Lines::new(input), key: need_key()?, value: options.value.clone() }))
        }
        Format::Tsv => {
            let mut lines = Lines::new(input);
            let header = if options.header { tsv_header(&mut lines)? } else { None };
            let columns = Columns::new(&need_key()?, options.value.as_deref(), header)?;
            Ok(Box::new(Tsv { lines, columns, rest: Vec::new() }))
        }
        Format::Csv => {
            let since = Rc::new(Cell::new(0));
            let limited = Limited { input, since: since.clone() };
            let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(limited);
            let header = if options.header { csv_header(&mut reader)? } else { None };
            let columns = Columns::new(&need_key()?, options.value.as_deref(), header)?;
            Ok(Box::new(Csv { reader, columns, since, record: csv::ByteRecord::new() }))
        }
    }
}

fn at(number: u64, why: impl Into<String>) -> Error {
    Error::Line { number, why: why.into() }
}

/// What the database says to one record: over a limit is the line's fault, everything else is the end.
fn store(number: u64, result: Result<(), Failure>) -> Result<bool, Error> {
    match result {
        Ok(()) => Ok(true),
        Err(Failure::Engine(e @ (betree::Error::KeyTooLong { .. } | betree::Error::ValueTooLong { .. }))) => {
            Err(at(number, e.to_string()))
        }
        Err(other) => Err(Error::Fatal(super::explain(other))),
    }
}

fn fatal(error: std::io::Error) -> Error {
    Error::Fatal(format!("reading the input: {error}"))
}

/// Which columns are key and value, counted from 0.
struct Columns {
    key: usize,
    value: Option<usize>,
    /// How many there must be: as many as in the first record.
    count: Option<usize>,
}

impl Columns {
    fn new(key: &str, value: Option<&str>, header: Option<Vec<String>>) -> Result<Columns, String> {
        let find = |name: &str| -> Result<usize, String> {
            if let Some(i) = header.iter().flatten().position(|column| column == name) {
                return Ok(i);
            }
            match (name.parse::<usize>(), &header) {
                (Ok(n @ 1..), _) => Ok(n - 1),
                (_, Some(header)) => Err(format!("no column {name:?}; there are {}", header.join(", "))),
                (_, None) => {
                    Err(format!("column {name:?}: a number from 1 on, or a name together with --header"))
                }
            }
        };
        let count = header.as_ref().map(Vec::len);
        Ok(Columns { key: find(key)?, value: value.map(find).transpose()?, count })
    }

    fn check(&mut self, number: u64, found: usize) -> Result<(), Error> {
        let expected = *self.count.get_or_insert(found);
        if found != expected {
            return Err(at(number, format!("{found} columns, not {expected}")));
        }
        match [Some(self.key), self.value].into_iter().flatten().max() {
            Some(last) if last >= found => Err(at(number, format!("no column {}", last + 1))),
            _ => Ok(()),
        }
    }
}

struct Tsv<R> {
    lines: Lines<R>,
    columns: Columns,
    rest: Vec<u8>,
}

fn tsv_header(lines: &mut Lines<impl BufRead>) -> Result<Option<Vec<String>>, String> {
    match lines.next().map_err(|e| format!("reading the input: {e}"))? {
        Some(Line::Text(line)) => {
            let names = line.split(|&b| b == b'\t').map(|n| String::from_utf8_lossy(n).into_owned());
            Ok(Some(names.collect()))
        }
        Some(Line::TooLong) => Err("the header is longer than 64 MiB".into()),
        None => Ok(Some(Vec::new())),
    }
}

impl<R: BufRead> Records for Tsv<R> {
    fn next(&mut self, sink: Sink<'_>) -> Result<bool, Error> {
        let Tsv { lines, columns, rest } = self;
        loop {
            let number = lines.number() + 1;
            let Some(line) = lines.next().map_err(fatal)? else { return Ok(false) };
            let Line::Text(line) = line else { return Err(at(number, "longer than 64 MiB")) };
            if line.is_empty() {
                continue;
            }
            let count = memchr::memchr_iter(b'\t', line).count() + 1;
            columns.check(number, count)?;
            let column = |i: usize| line.split(|&b| b == b'\t').nth(i).unwrap_or_default();
            let value = match columns.value {
                Some(value) => column(value),
                None => {
                    rest.clear();
                    for (i, part) in line.split(|&b| b == b'\t').enumerate() {
                        if i != columns.key {
                            if i > usize::from(columns.key == 0) {
                                rest.push(b'\t');
                            }
                            rest.extend_from_slice(part);
                        }
                    }
                    rest
                }
            };
            return store(number, sink(column(columns.key), value));
        }
    }
}

/// Fails when one record takes more than [`LONGEST`]: an unclosed quote would swallow the whole input.
struct Limited<R> {
    input: R,
    since: Rc<Cell<usize>>,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.since.get() > LONGEST {
            return Err(std::io::Error::other("a record is longer than 64 MiB: is a quote not closed?"));
        }
        let n = self.input.read(buf)?;
        self.since.set(self.since.get() + n);
        Ok(n)
    }
}

struct Csv<R> {
    reader: csv::Reader<Limited<R>>,
    columns: Columns,
    since: Rc<Cell<usize>>,
    record: csv::ByteRecord,
}

fn csv_header<R: Read>(reader: &mut csv::Reader<R>) -> Result<Option<Vec<String>>, String> {
    let mut record = csv::ByteRecord::new();
    reader.read_byte_record(&mut record).map_err(|e| format!("reading the header: {e}"))?;
    Ok(Some(record.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()))
}

impl<R: Read> Records for Csv<R> {
    fn next(&mut self, sink: Sink<'_>) -> Result<bool, Error> {
        self.since.set(0);
        let begin = self.reader.position().line();
        match self.reader.read_byte_record(&mut self.record) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(e) => return Err(Error::Fatal(format!("the record that begins near line {begin}: {e}"))),
        }
        let record = &self.record;
        let number = record.position().map_or(begin, csv::Position::line);
        self.columns.check(number, record.len())?;
        let column = |i: usize| record.get(i).unwrap_or_default();
        let key = column(self.columns.key);
        let result = match self.columns.value {
            Some(value) => sink(key, column(value)),
            None => sink(key, &self.rest()?),
        };
        store(number, result)
    }
}

impl<R> Csv<R> {
    /// The columns but the key, quoted where they need to be.
    fn rest(&self) -> Result<Vec<u8>, Error> {
        let mut writer = csv::WriterBuilder::new().flexible(true).from_writer(Vec::new());
        let others = self.record.iter().enumerate().filter(|(i, _)| *i != self.columns.key);
        writer
            .write_record(others.map(|(_, column)| column))
            .map_err(|e| Error::Fatal(format!("writing a record: {e}")))?;
        let mut text = writer.into_inner().map_err(|e| Error::Fatal(e.to_string()))?;
        if text.last() == Some(&b'\n') {
            text.pop();
        }
        Ok(text)
    }
}

struct Ndjson<R> {
    lines: Lines<R>,
    key: String,
    value: Option<String>,
}

/// Strings as their text, everything else as JSON.
fn plain(value: &serde_json::Value) -> Vec<u8> {
    match value {
        serde_json::Value::String(text) => text.as_bytes().to_vec(),
        other => other.to_string().into_bytes(),
    }
}

impl<R: BufRead> Records for Ndjson<R> {
    fn next(&mut self, sink: Sink<'_>) -> Result<bool, Error> {
        loop {
            let number = self.lines.number() + 1;
            let Some(line) = self.lines.next().map_err(fatal)? else { return Ok(false) };
            let Line::Text(line) = line else { return Err(at(number, "longer than 64 MiB")) };
            if line.trim_ascii().is_empty() {
                continue;
            }
            let object: serde_json::Map<String, serde_json::Value> =
                serde_json::from_slice(line).map_err(|e| at(number, format!("not a JSON object: {e}")))?;
            let key = match object.get(&self.key) {
                Some(
                    serde_json::Value::Array(_) | serde_json::Value::Object(_) | serde_json::Value::Null,
                ) => {
                    return Err(at(number, format!("field {:?} is neither text nor number", self.key)));
                }
                Some(key) => plain(key),
                None => return Err(at(number, format!("no field {:?}", self.key))),
            };
            let result = match &self.value {
                None => sink(&key, line),
                Some(name) => match object.get(name) {
                    Some(value) => sink(&key, &plain(value)),
                    None => return Err(at(number, format!("no field {name:?}"))),
                },
            };
            return store(number, result);
        }
    }
}

struct Contents<R>(Lines<R>);

impl<R: BufRead> Records for Contents<R> {
    fn next(&mut self, sink: Sink<'_>) -> Result<bool, Error> {
        loop {
            let number = self.0.number() + 1;
            let Some(line) = self.0.next().map_err(fatal)? else { return Ok(false) };
            let Line::Text(line) = line else { return Err(at(number, "longer than 64 MiB")) };
            let line = line.trim_ascii_end();
            if line.is_empty() {
                continue;
            }
            let Some(blank) = line.iter().rposition(|b| matches!(b, b' ' | b'\t')) else {
                return Err(at(number, "no blank between a path and its packages"));
            };
            let (path, packages) = (line[..blank].trim_ascii_end(), &line[blank + 1..]);
            if path.is_empty() {
                return Err(at(number, "no path"));
            }
            return store(number, sink(path, packages));
        }
    }
}
