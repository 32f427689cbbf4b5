//! What the queues of a block device have done.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

use crossbeam_utils::CachePadded;

use crate::bdev::{IoError, Op};
use crate::stats::latency::{Latency, LatencySnapshot};
use crate::stats::{Counter, RingState};
use crate::vring::RingError;

/// What requests are counted as.
pub const KINDS: [&str; 6] = ["read", "write", "flush", "discard", "zero", "id"];

/// What is timed separately.
pub const TIMED: [&str; 3] = ["read", "write", "other"];

const READ: usize = 0;
const WRITE: usize = 1;

/// Place of an operation among [`KINDS`].
pub(super) fn kind(op: Op) -> usize {
    match op {
        Op::Read => READ,
        Op::Write => WRITE,
        Op::Flush => 2,
        Op::Discard => 3,
        Op::WriteZeroes { .. } => 4,
    }
}

/// Place of GET_ID among [`KINDS`].
pub(super) const ID: usize = 5;

/// Counters of one queue, written by the worker that serves it.
#[derive(Debug, Default)]
pub(super) struct QueueStats {
    /// Requests answered without an error, by kind.
    pub(super) done: [Counter; KINDS.len()],
    /// How long reads, writes and all others took that were done, from the ring to the ring.
    took: [Latency; TIMED.len()],
    /// Bytes read from the disk...
    pub(super) read: Counter,
    /// ...and written to it.
    pub(super) written: Counter,
    /// Requests that the disk refused or failed, by reason.
    pub(super) errors: [Counter; IoError::REASONS.len()],
    /// Requests refused before they reached the disk.
    pub(super) refused: Counter,
    /// Chains without a whole header or a status byte: given back unanswered.
    pub(super) malformed: Counter,
    /// Times that the ring broke, by reason.
    pub(super) faults: [Counter; RingError::REASONS.len()],
    state: AtomicU8,
}

/// Counters of all queues of a device.
pub(super) type Stats = Box<[CachePadded<QueueStats>]>;

impl QueueStats {
    /// Counts a request of this kind that was done after so many nanoseconds.
    #[inline]
    pub(super) fn done(&self, kind: usize, len: u32, nanos: u64) {
        if let Some(took) = self.took.get(kind.min(TIMED.len() - 1)) {
            took.add(nanos);
        }
        if let Some(counter) = self.done.get(kind) {
            counter.add(1);
        }
        match kind {
            READ => self.read.add(len.into()),
            WRITE => self.written.add(len.into()),
            _ => {}
        }
    }

    /// Counts a request that the disk did not do.
    #[cold]
    pub(super) fn failed(&self, error: IoError) {
        if let Some(counter) = self.errors.get(error.reason()) {
            counter.add(1);
        }
    }

    pub(super) fn set_state(&self, state: RingState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// What the ring does.
    fn state(&self) -> RingState {
        RingState::from_u8(self.state.load(Ordering::Relaxed))
    }
}

/// Counters of one queue, or of several together, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueSnapshot {
    /// Requests answered without an error, by [`KINDS`].
    pub done: [u64; KINDS.len()],
    /// How long they took, by [`TIMED`].
    pub took: [LatencySnapshot; TIMED.len()],
    /// Bytes read from the disk.
    pub read: u64,
    /// Bytes written to it.
    pub written: u64,
    /// Requests that the disk refused or failed, by [`IoError::REASONS`].
    pub errors: [u64; IoError::REASONS.len()],
    /// Requests refused before they reached the disk.
    pub refused: u64,
    /// Chains given back unanswered.
    pub malformed: u64,
    /// Times that a ring broke, by [`RingError::REASONS`].
    pub faults: [u64; RingError::REASONS.len()],
}

impl QueueSnapshot {
    /// Adds what `stats` has.
    fn add(&mut self, stats: &QueueStats) {
        let add = |sums: &mut [u64], counters: &[Counter]| {
            for (sum, counter) in sums.iter_mut().zip(counters) {
                *sum += counter.get();
            }
        };
        add(&mut self.done, &stats.done);
        add(&mut self.errors, &stats.errors);
        add(&mut self.faults, &stats.faults);
        for (sum, took) in self.took.iter_mut().zip(&stats.took) {
            sum.add(took);
        }
        self.read += stats.read.get();
        self.written += stats.written.get();
        self.refused += stats.refused.get();
        self.malformed += stats.malformed.get();
    }

    /// Requests answered without an error.
    pub fn done_all(&self) -> u64 {
        self.done.iter().sum()
    }

    /// What went wrong, by name, and how often; all reasons.
    pub fn wrong(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let named = |names: &'static [&'static str], counts: &[u64]| {
            let counts = names.iter().copied().zip(counts.iter().copied());
            counts.collect::<Vec<_>>()
        };
        let mut all = named(&IoError::REASONS, &self.errors);
        all.extend(named(&RingError::REASONS, &self.faults));
        all.extend([("refused", self.refused), ("malformed", self.malformed)]);
        all.into_iter()
    }
}

/// Counters of a device at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The device's name.
    pub name: String,
    /// The disk's.
    pub disk: String,
    /// Its size in bytes.
    pub size: u64,
    /// All queues together.
    pub all: QueueSnapshot,
    /// Each queue, and the state of its ring.
    pub queues: Vec<(RingState, QueueSnapshot)>,
}

impl Snapshot {
    /// Reads the counters.
    pub(super) fn of(name: &str, disk: &str, size: u64, stats: &Stats) -> Self {
        let mut all = QueueSnapshot::default();
        let queues = stats.iter().map(|stats| {
            let mut queue = QueueSnapshot::default();
            queue.add(stats);
            all.add(stats);
            (stats.state(), queue)
        });
        Self {
            queues: queues.collect(),
            name: name.to_owned(),
            disk: disk.to_owned(),
            size,
            all,
        }
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name, disk, size, ..
        } = self;
        let rings: String = self
            .queues
            .iter()
            .map(|(state, _)| state.letter())
            .collect();
        writeln!(f, "{name}: {disk}, {} MiB, rings {rings}", size >> 20)?;
        writeln!(
            f,
            "  {:<8} {:<6} {:>14} {:>16} {:>9} {:>9} {:>9} {:>9}",
            "queue", "what", "requests", "bytes", "p50 us", "p99 us", "p99.9", "max us"
        )?;
        line(f, "all", &self.all)?;
        if self.queues.len() > 1 {
            for (number, (_, queue)) in self.queues.iter().enumerate() {
                line(f, &number.to_string(), queue)?;
            }
        }
        for (reason, count) in self.all.wrong().filter(|(_, count)| *count > 0) {
            writeln!(f, "    {reason:<22} {count}")?;
        }
        Ok(())
    }
}

/// A line for each kind that there was.
fn line(f: &mut fmt::Formatter<'_>, queue: &str, counts: &QueueSnapshot) -> fmt::Result {
    let bytes = [counts.read, counts.written, 0];
    for ((what, took), bytes) in TIMED.iter().zip(&counts.took).zip(bytes) {
        let total = took.total();
        if total == 0 {
            continue;
        }
        let micros = |nanos: u64| nanos as f64 / 1000.0;
        writeln!(
            f,
            "  {queue:<8} {what:<6} {total:>14} {bytes:>16} {:>9.1} {:>9.1} {:>9.1} {:>9.1}",
            micros(took.percentile(50.0)),
            micros(took.percentile(99.0)),
            micros(took.percentile(99.9)),
            micros(took.max()),
        )?;
    }
    Ok(())
}
