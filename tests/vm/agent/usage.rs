//! Processor time of a process.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vvu_tests::wire::CpuReport;

/// Watches a process for some time.
pub(crate) fn watch(pid: u32, millis: u64) -> Result<CpuReport> {
    let (start, before) = (Instant::now(), run_time(pid)?);
    thread::sleep(Duration::from_millis(millis));
    let busy_nanos = run_time(pid)?.saturating_sub(before);
    Ok(CpuReport {
        busy_nanos,
        watched_nanos: start.elapsed().as_nanos() as u64,
    })
}

/// Nanoseconds on a processor, over all threads (`Documentation/scheduler/sched-stats.rst`).
fn run_time(pid: u32) -> Result<u64> {
    let mut total = 0;
    let tasks =
        fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid}"))?;
    for task in tasks {
        let file = task?.path().join("schedstat");
        let text =
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let nanos = text
            .split_whitespace()
            .next()
            .context("an empty schedstat")?;
        total += nanos.parse::<u64>()?;
    }
    Ok(total)
}
