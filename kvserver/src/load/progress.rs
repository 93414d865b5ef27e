//! Progress of a load: a bar on a terminal, a line every few seconds otherwise; both on standard error.

use std::cell::Cell;
use std::io::{IsTerminal, Read};
use std::rc::Rc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

const LINE_EVERY: Duration = Duration::from_secs(5);

/// Bytes read from the input.
#[derive(Debug, Default)]
pub struct Meter(Cell<u64>);

impl Meter {
    /// Counts what is read from `input`.
    pub fn count<R: Read>(self: Rc<Self>, input: R) -> impl Read {
        struct Counting<R>(R, Rc<Meter>);
        impl<R: Read> Read for Counting<R> {
            fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
                let n = self.0.read(buf)?;
                self.1.0.set(self.1.0.get() + n as u64);
                Ok(n)
            }
        }
        Counting(input, self)
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.0.get()
    }
}

/// What is shown of a load.
#[derive(Debug)]
pub struct Progress {
    meter: Rc<Meter>,
    started: Instant,
    spoken: Instant,
    records: u64,
    size: Option<u64>,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Begins; `size` is the input's, if known.
    pub fn start(size: Option<u64>, meter: Rc<Meter>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let (bar, template) = match size {
                Some(size) => (
                    ProgressBar::new(size),
                    "{bar:30} {percent}% {bytes}/{total_bytes} {binary_bytes_per_sec}, {eta} left, {msg}",
                ),
                None => (ProgressBar::new_spinner(), "{spinner} {bytes} {binary_bytes_per_sec}, {msg}"),
            };
            // A template that does not parse leaves the default look.
            match ProgressStyle::with_template(template) {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        let now = Instant::now();
        Progress { meter, started: now, spoken: now, records: 0, size, bar }
    }

    /// Some records more are in the database.
    pub fn add(&mut self, records: u64) {
        self.records += records;
        if let Some(bar) = &self.bar {
            bar.set_position(self.meter.bytes());
            bar.set_message(format!("{} records, {}/s", self.records, self.rate()));
        } else if self.spoken.elapsed() >= LINE_EVERY {
            self.spoken = Instant::now();
            let share = match self.size {
                Some(size) if size > 0 => format!("{}%, ", 100 * self.meter.bytes() / size),
                _ => String::new(),
            };
            eprintln!("{share}{} records, {} records/s", self.records, self.rate());
        }
    }

    fn rate(&self) -> u64 {
        (self.records as f64 / self.started.elapsed().as_secs_f64().max(1e-3)) as u64
    }

    /// Something to be read.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// The end, with the number of bad lines.
    pub fn finish(&self, bad: u64) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.started.elapsed().as_secs_f64();
        println!(
            "{} records loaded from {} bytes in {seconds:.1} s ({} records/s); {bad} bad lines",
            self.records,
            self.meter.bytes(),
            self.rate(),
        );
    }
}
