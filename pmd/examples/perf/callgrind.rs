//! Counting instructions: this program once more, under callgrind.
//!
//! Only what [`measured_poll`] and [`measured_poll_queue`] call is counted; [`cell_done`] ends a part of the profile.

use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use vvu_pmd::net::Switch;
use vvu_pmd::queue::StorageQueue;

/// A round that is counted: callgrind knows this function by its name.
#[inline(never)]
pub(crate) fn measured_poll(switch: &mut Switch) -> bool {
    let worked = switch.poll(0);
    // No jump to the switch instead of a call, which would look like leaving this function.
    black_box(worked)
}

/// The same of a disk's queue.
#[inline(never)]
pub(crate) fn measured_poll_queue<Q: StorageQueue>(queue: &mut Q) -> bool {
    let worked = queue.poll();
    black_box(worked)
}

/// Ends a cell in which so many packets were forwarded, or requests served. Callgrind ends a part of its profile when
/// this returns.
#[inline(never)]
pub(crate) fn cell_done(packets: usize) {
    // The asking program reads this.
    println!("{}", black_box(packets));
}

/// Features that choose among the C library's copies: the plainest, whatever this processor has.
const TUNABLES: &str = "glibc.cpu.hwcaps=-AVX2,-AVX512F,-AVX512VL,-ERMS,-FSRM";

/// Runs this program with `args` under callgrind. Returns the instructions per packet (or
/// request) of each cell.
pub(crate) fn count(args: &[&str]) -> anyhow::Result<Vec<f64>> {
    let folder = std::env::temp_dir().join(format!("vvu-perf-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let counted = count_in(&folder, args);
    let _ = std::fs::remove_dir_all(&folder);
    counted
}

fn count_in(folder: &Path, args: &[&str]) -> anyhow::Result<Vec<f64>> {
    let out = folder.join("part");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg("--toggle-collect=*measured_poll*")
        .arg("--dump-after=*cell_done*")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args(args)
        .env("GLIBC_TUNABLES", TUNABLES)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run valgrind (Debian's package has that name)")?;
    ensure!(output.status.success(), "the measured program failed");
    let mut cells = Vec::new();
    for (part, packets) in (1..).zip(String::from_utf8(output.stdout)?.lines()) {
        let profile = std::fs::read_to_string(format!("{}.{part}", out.display()))
            .with_context(|| format!("callgrind wrote no part {part}"))?;
        let packets: f64 = packets.parse()?;
        ensure!(
            packets > 0.0,
            "cell {part}: nothing was forwarded or served"
        );
        cells.push(total(&profile)? / packets);
    }
    Ok(cells)
}

/// Instructions in a part of a profile.
fn total(profile: &str) -> anyhow::Result<f64> {
    let mut lines = profile.lines();
    let line = lines.find_map(|line| line.strip_prefix("totals: "));
    Ok(line.context("a profile without a total")?.trim().parse()?)
}
