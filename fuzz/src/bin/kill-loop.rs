//! Kills a writing process again and again: `kill-loop --kills N [--seed S] [--dir DIRECTORY]`. Exit status 0 only if every kill
//! lost nothing. As `kill-loop child DIRECTORY SEED` it is the process to be killed.

use betree_fuzz::kills::{Plan, run, write_until_killed};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    if let [_, child, directory, seed] = &words[..]
        && child == "child"
    {
        let result = write_until_killed(Path::new(directory), seed.parse().unwrap_or_default());
        println!("the writer ended: {result:?}");
        return ExitCode::FAILURE;
    }
    let value = |name: &str| words.iter().position(|w| w == name).and_then(|i| words.get(i + 1));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    let seed = value("--seed").and_then(|v| v.parse().ok()).unwrap_or(now >> 8);
    let kills = value("--kills").and_then(|v| v.parse().ok()).unwrap_or(1000);
    let directory = value("--dir").map_or_else(
        || std::env::temp_dir().join(format!("betree-kill-loop-{}", std::process::id())),
        PathBuf::from,
    );
    println!("kill-loop --kills {kills} --seed {seed} --dir {}", directory.display());
    let plan = std::env::current_exe()
        .and_then(|program| std::fs::create_dir_all(&directory).map(|()| program))
        .map(|program| Plan {
            program,
            directory: directory.clone(),
            seed,
            kills,
            check_every: 10,
            talk: true,
        });
    let result = plan.map_err(|e| e.to_string()).and_then(|plan| run(&plan));
    match result {
        Ok(totals) => {
            println!("held: {totals:?}");
            let _ = std::fs::remove_dir_all(&directory);
            ExitCode::SUCCESS
        }
        Err(text) => {
            println!("FAILED {text}\nwhat is left lies in {}", directory.display());
            ExitCode::FAILURE
        }
    }
}
