//! An appliance VM that switches between two neighbours.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vvu_tests::Trio;
use vvu_tests::traffic::{self, Transfer};
use vvu_tests::wire::{BlastReport, CpuReport, Task};

use crate::runner::Stage;

const MIB: u64 = 1 << 20;

/// Traffic resumes within this after `vvu` was started again.
const RESUME: Duration = Duration::from_secs(5);

/// A stream has got going after this.
const LOAD: Duration = Duration::from_millis(300);

/// Longest stream, interruptions included.
const STREAM: Duration = Duration::from_secs(90);

/// Small, as large as an ordinary frame takes, as large as a jumbo frame takes.
pub(crate) fn pings_of_every_size(stage: &mut Stage) -> Result<()> {
    ping_both_ways(stage.trio()?)
}

pub(crate) fn ping_both_ways(trio: &Trio) -> Result<()> {
    for size in [56, 1472, 8972] {
        for (from, to) in [(&trio.a, &trio.b), (&trio.b, &trio.a)] {
            let report = traffic::ping(from, to, size, 20)?;
            ensure!(
                report.lost() == 0,
                "{} of {} pings of {size} bytes were lost",
                report.lost(),
                report.sent
            );
        }
    }
    Ok(())
}

/// What arrives is what was sent, in both directions, one after the other and at once.
pub(crate) fn tcp_both_ways(stage: &mut Stage) -> Result<()> {
    stream_both_ways(stage.trio()?)
}

pub(crate) fn stream_both_ways(trio: &Trio) -> Result<()> {
    traffic::tcp(&trio.a, &trio.b, 64 * MIB)?;
    traffic::tcp(&trio.b, &trio.a, 64 * MIB)?;
    let there = Transfer::start(&trio.a, &trio.b, 32 * MIB)?;
    let back = Transfer::start(&trio.b, &trio.a, 32 * MIB)?;
    there.finish(STREAM)?;
    back.finish(STREAM)?;
    Ok(())
}

/// Both pairs exist in the guest, and frames sent on either of them arrive.
pub(crate) fn two_queue_pairs(stage: &mut Stage) -> Result<()> {
    queue_pairs_in_use(stage.trio()?)
}

pub(crate) fn queue_pairs_in_use(trio: &Trio) -> Result<()> {
    const TIME: Duration = Duration::from_millis(300);
    let queues = trio.a.run(&["ls", "/sys/class/net/eth0/queues"])?.stdout;
    for queue in ["rx-0", "rx-1", "tx-0", "tx-1"] {
        ensure!(queues.contains(queue), "a has no {queue}, only {queues}");
    }
    for processor in [0, 1] {
        let counter = trio.b.start_task(Task::Count {
            device: "eth0".into(),
            millis: 2 * TIME.as_millis() as u64,
        })?;
        counter.pid()?;
        // The kernel sends a packet socket's frames on the queue of the processor it runs on.
        let task = Task::Blast {
            device: "eth0".into(),
            to: trio.b.mac(),
            size: 60,
            millis: TIME.as_millis() as u64,
        };
        let sent: BlastReport = trio.a.start_task_on(processor, &task)?.report(RESUME)?;
        let counted: BlastReport = counter.report(RESUME)?;
        ensure!(
            sent.frames > 100,
            "a could send only {} frames on queue {processor}",
            sent.frames
        );
        ensure!(
            counted.frames > 100,
            "b got {} of {} frames of queue {processor}",
            counted.frames,
            sent.frames
        );
    }
    Ok(())
}

/// Without traffic `vvu` sleeps, and the first packet wakes it.
pub(crate) fn idle_and_wake(stage: &mut Stage) -> Result<()> {
    idle(stage.trio()?, 2.0)
}

/// With `limit` percent of a processor.
pub(crate) fn idle(trio: &Trio, limit: f64) -> Result<()> {
    thread::sleep(Duration::from_secs(1));
    let task = Task::Cpu {
        pid: trio.vvu.pid()?,
        millis: 4000,
    };
    let usage: CpuReport = trio.appliance.task(task, RESUME * 4)?;
    ensure!(
        usage.percent() < limit,
        "idle, vvu takes {:.1} % of a processor",
        usage.percent()
    );
    let report = traffic::ping(&trio.a, &trio.b, 56, 1)?;
    ensure!(report.lost() == 0, "the first packet after a pause is lost");
    Ok(())
}

/// `vvu` dies without a word and is started again. The neighbours are not touched, and their
/// stream goes on.
pub(crate) fn vvu_killed(stage: &mut Stage) -> Result<()> {
    kill_vvu(stage.trio()?)
}

pub(crate) fn kill_vvu(trio: &mut Trio) -> Result<()> {
    let stream = Transfer::start(&trio.a, &trio.b, 96 * MIB)?;
    thread::sleep(LOAD);
    ensure!(stream.is_running(), "there is no load");
    trio.vvu.kill()?;
    let start = Instant::now();
    trio.restart_vvu()?;
    let left = RESUME.saturating_sub(start.elapsed());
    let resumed = traffic::answers_within(&trio.a, &trio.b, left)?;
    ensure!(
        resumed,
        "traffic has not resumed within {RESUME:?}; vvu says: {}",
        trio.vvu.printed()
    );
    stream.finish(STREAM).map(drop)
}

/// A neighbour's kernel reboots.
pub(crate) fn neighbour_reboots(stage: &mut Stage) -> Result<()> {
    let trio = stage.trio()?;
    trio.a.reboot()?;
    trio.settle()?;
    traffic::tcp(&trio.a, &trio.b, 16 * MIB)?;
    Ok(())
}

/// A neighbour's QEMU is killed under load and started again.
pub(crate) fn neighbour_killed(stage: &mut Stage) -> Result<()> {
    kill_neighbour(stage.trio()?)
}

pub(crate) fn kill_neighbour(trio: &mut Trio) -> Result<()> {
    let cut_off = Transfer::start(&trio.a, &trio.b, 4096 * MIB)?;
    thread::sleep(LOAD);
    ensure!(cut_off.is_running(), "there is no load");
    trio.a.kill_and_boot()?;
    trio.settle()?;
    traffic::tcp(&trio.b, &trio.a, 16 * MIB)?;
    Ok(())
}

/// The table of memory regions changes while a neighbour transmits.
pub(crate) fn memory_added_under_load(stage: &mut Stage) -> Result<()> {
    let trio = stage.trio()?;
    let before = total_memory(&trio.a.read("/proc/meminfo")?)?;
    let there = Transfer::start(&trio.a, &trio.b, 256 * MIB)?;
    thread::sleep(LOAD);
    trio.a.hot_add_memory(256)?;
    ensure!(
        there.is_running(),
        "the transfer was over before the memory was there"
    );
    there.finish(STREAM)?;
    let after = total_memory(&trio.a.read("/proc/meminfo")?)?;
    ensure!(
        after > before + 200 * 1024,
        "the guest has {after} KiB after {before} KiB"
    );
    // Buffers come from the new memory too once the old is full.
    traffic::tcp(&trio.b, &trio.a, 64 * MIB)?;
    Ok(())
}

fn total_memory(meminfo: &str) -> Result<u64> {
    let line = meminfo
        .lines()
        .find(|line| line.starts_with("MemTotal:"))
        .unwrap_or_default();
    Ok(line.split_whitespace().nth(1).unwrap_or_default().parse()?)
}

/// The appliance VM is reset. The neighbours stay, and so does their stream.
pub(crate) fn appliance_reset(stage: &mut Stage) -> Result<()> {
    let trio = stage.trio()?;
    let stream = Transfer::start(&trio.a, &trio.b, 64 * MIB)?;
    thread::sleep(LOAD);
    trio.appliance.reset()?;
    trio.restart_vvu()?;
    trio.settle()?;
    stream.finish(STREAM).map(drop)
}
