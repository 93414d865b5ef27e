//! The parent of a comparison: one engine after the other, one child process per phase, a report at the end.
//!
//! The parent measures nothing itself. It sets the stage (control group, dirty limits, empty page cache), follows the child's
//! events with a progress bar, and keeps going with the next engine when one has failed: the failure is
//! then in the report, and the exit status is not zero.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use crate::args::CompareArgs;
use crate::engine::EngineName;
use crate::host::{DirtyLimits, Dropped, Host, drop_page_cache};
use crate::limit::MemoryGroup;
use crate::phases::{Condition, Event, PhaseName, PhaseResult, RANGES, RunSpec};
use crate::report::{Comparison, EngineRun};
use crate::{plot, report};

/// Tells mimalloc not to ask for huge pages: they take memory that no engine asked for, and a small limit is over before it is used.
const NO_HUGE_PAGES: (&str, &str) = ("MIMALLOC_ALLOW_THP", "0");
/// Keeps the heap of the C libraries together: with an arena for each thread, RocksDB's cache outgrew the limit that it was set up for.
const FEW_ARENAS: (&str, &str) = ("MALLOC_ARENA_MAX", "2");

/// Set by the first interrupt; the loops end at the next child's death, and the guards put the machine back.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// The running child, for the interrupt to end; 0 if there is none.
static CHILD: AtomicI32 = AtomicI32::new(0);

/// Runs the comparison; true if every engine went through every phase with every record right.
///
/// # Errors
/// If the directory cannot be used or an engine is not built in. What goes wrong in an engine is reported, not returned.
pub fn run(args: &CompareArgs) -> Result<bool> {
    for engine in &args.engines {
        ensure!(engine.is_built_in(), "{engine} is not in this build: add `--features {engine}`");
    }
    ensure!(args.records > 0, "there is nothing to insert");
    check_order(&args.phases)?;
    fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let mut comparison = Comparison {
        host: Host::look(&args.out),
        records: args.records,
        value_bytes: args.value_bytes,
        memory: args.memory,
        max_seconds: args.max_seconds,
        seed: args.seed,
        order: args.order,
        rest_seconds: args.rest_seconds,
        limited: Err("no limit was asked for".into()),
        notes: Vec::new(),
        runs: Vec::new(),
    };
    if args.memory > 0 {
        comparison.limited =
            MemoryGroup::create("probe", args.memory).map(|_| ()).map_err(|e| format!("{e:#}"));
    }
    let _dirty = set_stage(args, &mut comparison);
    if args.warm {
        comparison.notes.push("The page cache was NOT dropped between the phases.".into());
    }
    // A second registration in one process fails, and then the first one does the same.
    let _ = ctrlc::set_handler(interrupt);

    let stage = Stage {
        args,
        limited: comparison.limited.is_ok(),
        bars: MultiProgress::new(),
        lines: results_file(args)?,
    };
    stage.write_line(
        &serde_json::json!({ "host": comparison.host, "records": args.records, "memory": args.memory,
        "value_bytes": args.value_bytes, "seed": args.seed, "limited": comparison.limited }),
    )?;
    for (index, &engine) in args.engines.iter().enumerate() {
        let run = stage.run_engine(index, engine);
        comparison.runs.push(run);
        // After each engine, so that a comparison that is broken off leaves what it has.
        write_report(args, &comparison)?;
        if INTERRUPTED.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
    }
    println!("{}", report::markdown(&comparison));
    Ok(comparison.runs.iter().all(|run| run.error.is_none()))
}

/// After delete-range the records that are left are no longer those below some number, which most phases rely on.
fn check_order(phases: &[PhaseName]) -> Result<()> {
    let after = phases.iter().skip_while(|p| **p != PhaseName::DeleteRange).skip(1);
    for phase in after {
        ensure!(
            phase.runs_on_slices(),
            "{phase} cannot follow {}: only {}, {} and {} can",
            PhaseName::DeleteRange,
            PhaseName::FullScan,
            PhaseName::Verify,
            PhaseName::Settle
        );
    }
    Ok(())
}

fn set_stage(args: &CompareArgs, comparison: &mut Comparison) -> Option<DirtyLimits> {
    if let Err(reason) = &comparison.limited {
        let note = format!("Memory was NOT limited: {reason}.");
        eprintln!("{note}");
        comparison.notes.push(note);
        return None;
    }
    let dirty = DirtyLimits::set(args.memory);
    comparison.notes.push(match dirty {
        Some(_) => "Dirty pages limited to a fifth of the memory, write-back from a tenth on.".into(),
        None => "The kernel's limits for dirty pages could not be lowered.".into(),
    });
    dirty
}

fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
    let child = CHILD.load(Ordering::Relaxed);
    if child > 0 {
        // Gone already if the interrupt came from the terminal.
        let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
    }
}

fn results_file(args: &CompareArgs) -> Result<File> {
    let path = args.out.join("results.jsonl");
    File::create(&path).with_context(|| path.display().to_string())
}

fn write_report(args: &CompareArgs, comparison: &Comparison) -> Result<()> {
    let plots = plot::draw_all(&args.out, comparison)?;
    let mut text = report::markdown(comparison);
    for (title, file) in plots {
        text.push_str(&format!("\n![{title}]({file})\n"));
    }
    fs::write(args.out.join("report.md"), text)?;
    Ok(())
}

/// What all engines of one comparison have in common.
struct Stage<'a> {
    args: &'a CompareArgs,
    limited: bool,
    bars: MultiProgress,
    lines: File,
}

/// What the phases so far have left in a database.
#[derive(Debug, Clone, Copy, Default)]
struct Stock {
    /// Its records have the numbers below this.
    present: u64,
    condition: Condition,
}

/// A line of results.jsonl.
#[derive(Serialize)]
struct Line<'a> {
    run: usize,
    engine: EngineName,
    error: Option<&'a str>,
    result: Option<&'a PhaseResult>,
}

impl Stage<'_> {
    fn run_engine(&self, index: usize, engine: EngineName) -> EngineRun {
        let dir = self.args.out.join("db").join(format!("{index}-{engine}"));
        let mut run = EngineRun::new(engine);
        if let Err(e) = self.run_phases(index, &dir, &mut run) {
            let text = format!("{e:#}");
            self.say(&format!("{engine}: {text}"));
            let line = Line { run: index, engine, error: Some(&text), result: None };
            if let Err(e) = self.write_line(&line) {
                eprintln!("results.jsonl: {e:#}");
            }
            run.error = Some(text);
        }
        if !self.args.keep {
            if let Err(e) = fs::remove_dir_all(&dir) {
                self.say(&format!("{}: {e}", dir.display()));
            }
            // Gone when the last engine was the only one in it.
            let _ = fs::remove_dir(self.args.out.join("db"));
        }
        run
    }

    fn run_phases(&self, index: usize, dir: &Path, run: &mut EngineRun) -> Result<()> {
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        fs::create_dir_all(dir)?;
        let mut stock = Stock::default();
        self.run_phase(index, dir, run, PhaseName::Load, &mut stock)?;
        let mut phases: Vec<_> = self
            .args
            .phases
            .iter()
            .copied()
            .filter(|p| !matches!(p, PhaseName::Load | PhaseName::Complete))
            .collect();
        if self.args.verify && !phases.contains(&PhaseName::Verify) {
            phases.insert(0, PhaseName::Verify);
        }
        // A check that is asked for first is one of what the random load left.
        if phases.first() == Some(&PhaseName::Verify) {
            phases.remove(0);
            self.run_phase(index, dir, run, PhaseName::Verify, &mut stock)?;
        }
        if stock.present < self.args.records && !self.args.no_complete && !phases.is_empty() {
            self.run_phase(index, dir, run, PhaseName::Complete, &mut stock)?;
        }
        for phase in phases {
            self.run_phase(index, dir, run, phase, &mut stock)?;
        }
        Ok(())
    }

    /// Runs a phase once for each number of threads that it is to have.
    fn run_phase(
        &self,
        index: usize,
        dir: &Path,
        run: &mut EngineRun,
        phase: PhaseName,
        stock: &mut Stock,
    ) -> Result<()> {
        let args = self.args;
        match phase {
            PhaseName::Load => self.run_child(index, dir, run, phase, args.load_threads, stock),
            PhaseName::GetThreads => self.run_child(index, dir, run, phase, args.threads, stock),
            // One that inserts and one that reads.
            PhaseName::IngestGets => self.run_child(index, dir, run, phase, 2, stock),
            _ if phase.is_ycsb() => args
                .ycsb_threads
                .iter()
                .try_for_each(|&threads| self.run_child(index, dir, run, phase, threads, stock)),
            _ => self.run_child(index, dir, run, phase, 1, stock),
        }
    }

    /// Runs a phase in a child, keeps its result, and brings `stock` up to date.
    fn run_child(
        &self,
        index: usize,
        dir: &Path,
        run: &mut EngineRun,
        phase: PhaseName,
        threads: u64,
        stock: &mut Stock,
    ) -> Result<()> {
        if phase == PhaseName::Load {
            // What the machine did before is not what an engine's first seconds are to be measured by.
            nix::unistd::sync();
        } else if !self.args.warm && drop_page_cache(dir)? == Dropped::Files {
            run.note("page cache dropped by advice on the files only");
        }
        // Completing is not measured, so it may take the memory it likes.
        let group = if self.limited && phase != PhaseName::Complete {
            Some(MemoryGroup::create(&format!("{index}-{phase}"), self.args.memory)?)
        } else {
            None
        };
        let spec = RunSpec {
            group: group.as_ref().map(MemoryGroup::entrance),
            threads: threads as usize,
            turn: run.phases.len() as u64,
            ..self.spec(dir, run.engine, phase, *stock)
        };
        let mut result = match self.follow_child(&spec) {
            Ok(result) => result,
            Err(e) if group.as_ref().is_some_and(MemoryGroup::ran_out) => {
                return Err(e.context(format!("{phase}: killed by the memory limit")));
            }
            Err(e) => return Err(e.context(phase.to_string())),
        };
        result.group_peak_bytes = group.as_ref().and_then(MemoryGroup::peak);
        self.write_line(&Line { run: index, engine: run.engine, error: None, result: Some(&result) })?;
        stock.condition = stock.condition.after(&result);
        // Slices are of the records that were there before: their numbers stay below the same one.
        if !stock.condition.sliced {
            stock.present = result.present;
        }
        run.phases.push(result);
        Ok(())
    }

    fn spec(&self, dir: &Path, engine: EngineName, phase: PhaseName, stock: Stock) -> RunSpec {
        let args = self.args;
        let batch = match phase {
            // One record at a time for everyone, as the workloads say.
            PhaseName::AsyncYcsbA => 1,
            _ if phase.is_ycsb() => 1,
            _ if engine.is_btree() => args.batch_btree,
            _ => args.batch,
        };
        RunSpec {
            engine,
            phase,
            dir: dir.to_path_buf(),
            group: None,
            // Without a limit the engines still need a size to be set up for.
            memory: if args.memory > 0 { args.memory } else { 512 << 20 },
            betree_memory: args.betree_memory,
            present: stock.present,
            condition: stock.condition,
            records: args.records,
            batch,
            rounds: args.rounds,
            order: args.order,
            durability: args.durability,
            operations: if phase == PhaseName::Scan { args.reads.div_ceil(10) } else { args.reads },
            max_seconds: match phase {
                PhaseName::Load | PhaseName::Overwrite => args.max_seconds,
                // What `delete-range` left is counted, so that all of it has to be seen.
                PhaseName::FullScan if !stock.condition.sliced => args.max_seconds,
                PhaseName::Delete | PhaseName::PutDelete | PhaseName::DeleteRange => 0,
                PhaseName::Complete | PhaseName::FullScan | PhaseName::Verify | PhaseName::Settle => 0,
                _ => args.read_seconds,
            },
            rest_seconds: args.rest_seconds,
            threads: 1,
            turn: 0,
            value_bytes: args.value_bytes,
            seed: args.seed,
        }
    }

    fn follow_child(&self, spec: &RunSpec) -> Result<PhaseResult> {
        let bar = self.bars.add(progress_bar(spec));
        let result = self.read_events(spec, &bar);
        match &result {
            Ok(result) if result.unsupported => bar.finish_with_message("not supported"),
            Ok(result) => {
                bar.set_position(result.operations);
                let stopped = if result.stopped { ", stopped" } else { "" };
                bar.finish_with_message(format!(
                    "{}/s in {:.1} s{stopped}",
                    report::count(result.rate()),
                    result.seconds
                ));
                if bar.is_hidden() {
                    eprintln!("{} {}: {}", spec.engine, spec.phase, bar.message());
                }
            }
            Err(_) => bar.abandon_with_message("failed"),
        }
        result
    }

    fn read_events(&self, spec: &RunSpec, bar: &ProgressBar) -> Result<PhaseResult> {
        let mut child = Command::new(std::env::current_exe()?)
            .envs([NO_HUGE_PAGES, FEW_ARENAS])
            .arg("run-one")
            .arg(serde_json::to_string(spec)?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting the child")?;
        CHILD.store(child.id() as i32, Ordering::Relaxed);
        let outcome = collect(&mut child, bar);
        let status = child.wait()?;
        CHILD.store(0, Ordering::Relaxed);
        ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
        let (result, complaints) = outcome?;
        match result {
            Some(result) if status.success() => Ok(*result),
            _ if complaints.is_empty() => bail!("the child ended with {status}"),
            _ => bail!("{}", complaints.trim()),
        }
    }

    fn say(&self, text: &str) {
        // Between the bars if they are drawn; `println` of hidden bars prints nothing.
        if self.bars.is_hidden() {
            eprintln!("{text}");
        } else {
            let _ = self.bars.println(text);
        }
    }

    fn write_line(&self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        (&self.lines).write_all(&text).context("results.jsonl")
    }
}

/// Reads the child's events to their end, and what it complained of.
fn collect(child: &mut Child, bar: &ProgressBar) -> Result<(Option<Box<PhaseResult>>, String)> {
    let stdout = child.stdout.take().context("the child has no output")?;
    let mut stderr = child.stderr.take().context("the child has no error output")?;
    let complaints = std::thread::spawn(move || {
        let mut text = Vec::new();
        // Cut at 1 MiB: an engine that logs without end must not fill the parent.
        let _ = stderr.by_ref().take(1 << 20).read_to_end(&mut text);
        let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        String::from_utf8_lossy(&text).into_owned()
    });
    let mut finished = None;
    for line in BufReader::new(stdout).lines() {
        match serde_json::from_str(&line?) {
            Ok(Event::Progress { done }) => bar.set_position(done),
            Ok(Event::Doing(what)) => bar.set_message(what),
            Ok(Event::Finished(result)) => finished = Some(result),
            // Something an engine printed.
            Err(_) => {}
        }
    }
    Ok((finished, complaints.join().unwrap_or_default()))
}

fn progress_bar(spec: &RunSpec) -> ProgressBar {
    let total = match spec.phase {
        PhaseName::Load => spec.records,
        PhaseName::Complete => spec.records.saturating_sub(spec.present),
        PhaseName::FullScan | PhaseName::Verify | PhaseName::PutDelete => spec.present,
        PhaseName::Overwrite => spec.present * spec.rounds,
        PhaseName::Delete => spec.present.div_ceil(2),
        PhaseName::DeleteRange => RANGES,
        PhaseName::Settle => 1,
        _ => spec.operations,
    };
    let bar = ProgressBar::new(total);
    // The templates are constants that indicatif accepts; the default style would do as well.
    if let Ok(style) = ProgressStyle::with_template(
        "{prefix:20} {bar:30} {human_pos:>12}/{human_len} {per_sec:>16} {elapsed:>4} {msg}",
    ) {
        bar.set_style(style);
    }
    bar.set_prefix(format!("{} {}", spec.engine, spec.phase));
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}
