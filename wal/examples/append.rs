//! Measures appending: `cargo run --release -p betree-wal --example append -- <directory> [megabytes] [payload]`.
//!
//! Prints nanoseconds per record when everything is prepared, then at full speed without and with a background thread that prepares windows, then at a
//! million records a second with that thread, without and with a sync every 100 ms; then microseconds per append made durable by one and by eight threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use betree_storage::{Backend, DiskStorage};
use betree_wal::{Lsn, Options, Wal};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let parent = args.next().ok_or("a directory is needed")?;
    let megabytes: u64 = args.next().map_or(Ok(256), |arg| arg.parse())?;
    let payload: usize = args.next().map_or(Ok(140), |arg| arg.parse())?;
    let payload = vec![7; payload.max(16)];
    let parts = [&payload[..16], &payload[16..]];

    {
        let (dir, wal, mut appender) = fresh(&parent)?;
        let records = (1 << 20) / (payload.len() + 16);
        let mut bursts = Vec::new();
        for _ in 0..64 {
            wal.prepare()?;
            let burst = Instant::now();
            for _ in 0..records {
                appender.append(&parts)?;
            }
            bursts.push(burst.elapsed().as_nanos() as f64 / records as f64);
        }
        bursts.sort_by(f64::total_cmp);
        println!("into prepared windows: median {:.1}, best {:.1} ns per record", bursts[32], bursts[0]);
        std::fs::remove_dir_all(dir)?;
    }

    let sync_every = Some(Duration::from_millis(100));
    for (name, background, interval, paced) in [
        ("full speed, alone", false, None, false),
        ("full speed, prepared", true, None, false),
        ("a million a second, prepared", true, None, true),
        ("a million a second, prepared, sync every 100 ms", true, sync_every, true),
    ] {
        let (dir, wal, mut appender) = fresh(&parent)?;
        let (stop, trim_to) = (AtomicBool::new(false), AtomicU64::new(0));
        let records = (megabytes << 20) / (payload.len() as u64 + 16);
        let (stop, wal) = (&stop, &wal);
        let elapsed = std::thread::scope(|scope| -> Result<Duration, Failure> {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    std::thread::sleep(Duration::from_millis(100));
                    if let Err(error) = wal.trim(Lsn(trim_to.load(Relaxed))) {
                        eprintln!("{error}");
                    }
                }
            });
            if background {
                scope.spawn(|| prepare_until(wal, stop));
            }
            if let Some(interval) = interval {
                scope.spawn(move || {
                    while !stop.load(Relaxed) {
                        std::thread::sleep(interval);
                        if let Err(error) = wal.sync(wal.end()) {
                            eprintln!("{error}");
                        }
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(50));
            let (begun, mut elapsed) = (Instant::now(), Duration::ZERO);
            for n in 0..records / 100 {
                let burst = Instant::now();
                for _ in 0..99 {
                    appender.append(&parts)?;
                }
                let end = appender.append(&parts)?;
                elapsed += burst.elapsed();
                while paced && begun.elapsed() < Duration::from_micros(100 * n) {
                    std::hint::spin_loop();
                }
                trim_to.store(end.0.saturating_sub(64 << 20), Relaxed);
            }
            stop.store(true, Relaxed);
            Ok(elapsed)
        })?;
        println!(
            "{name}: {:.1} ns per record; {:?}",
            elapsed.as_nanos() as f64 / records as f64,
            wal.stats()
        );
        std::fs::remove_dir_all(dir)?;
    }

    for threads in [1, 8] {
        let (dir, wal, appender) = fresh(&parent)?;
        let (appender, stop) = (Mutex::new(appender), AtomicBool::new(false));
        let each = 2000 / threads;
        let begun = Instant::now();
        let elapsed = std::thread::scope(|scope| {
            scope.spawn(|| prepare_until(&wal, &stop));
            let run = || -> betree_wal::Result<()> {
                for _ in 0..each {
                    let end = appender.lock().unwrap_or_else(|lock| lock.into_inner()).append(&parts)?;
                    wal.sync(end)?;
                }
                Ok(())
            };
            let handles: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
            for handle in handles {
                if !matches!(handle.join(), Ok(Ok(()))) {
                    eprintln!("a thread failed");
                }
            }
            let elapsed = begun.elapsed();
            stop.store(true, Relaxed);
            elapsed
        });
        let per = elapsed.as_micros() as f64 / f64::from(each * threads);
        println!("synced, {threads} threads: {per:.1} us per record; {:?}", wal.stats());
        std::fs::remove_dir_all(dir)?;
    }
    Ok(())
}

fn prepare_until(wal: &Wal, stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        if let Err(error) = wal.prepare() {
            eprintln!("{error}");
        }
        let _more = wal.wait_for_work(Duration::from_millis(20));
    }
}

fn fresh(parent: &str) -> Result<(std::path::PathBuf, Wal, betree_wal::Appender), Failure> {
    let dir = std::path::Path::new(parent).join("betree-wal-append");
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    std::fs::create_dir_all(&dir)?;
    let storage: Arc<dyn betree_storage::Storage> = DiskStorage::open(&dir, Backend::Portable)?;
    let (wal, appender) = Wal::create(storage, Options::default(), Lsn(0))?;
    Ok((dir, wal, appender))
}
