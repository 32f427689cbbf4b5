//! What the request queues of a SCSI device have done.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

use super::target::{Answer, Key};
use crate::stats::latency::{Latency, LatencySnapshot};
use crate::stats::{Counter, RingState};
use crate::vring::RingError;

/// What commands are counted as.
pub const KINDS: [&str; 3] = ["read", "write", "other"];

pub(super) const READ: usize = 0;
pub(super) const WRITE: usize = 1;
pub(super) const OTHER: usize = 2;

/// Counters of one queue, written by the worker that serves it.
#[derive(Debug, Default)]
pub(super) struct QueueStats {
    /// Commands that ended with GOOD, by kind.
    pub(super) done: [Counter; KINDS.len()],
    /// How long those took that came to their disk, from the ring to the ring.
    took: [Latency; KINDS.len()],
    /// Bytes read...
    pub(super) read: Counter,
    /// ...and written, by commands that only do that.
    pub(super) written: Counter,
    /// Commands that the disk failed: medium and hardware errors, not ready, write-protected.
    pub(super) errors: Counter,
    /// Commands that ended otherwise than with GOOD.
    pub(super) refused: Counter,
    /// Commands that were ended by task management.
    pub(super) aborted: Counter,
    /// Commands to where there is no target, or whose buffers are too short.
    pub(super) misdirected: Counter,
    /// Chains without a whole request or response: given back unanswered.
    pub(super) malformed: Counter,
    /// Times that the ring broke, by reason.
    pub(super) faults: [Counter; RingError::REASONS.len()],
    state: AtomicU8,
}

impl QueueStats {
    /// A command of this kind took so many nanoseconds.
    #[inline]
    pub(super) fn took(&self, kind: usize, nanos: u64) {
        if let Some(took) = self.took.get(kind) {
            took.add(nanos);
        }
    }

    /// Counts a command of this kind that moved so many bytes in so many nanoseconds.
    #[inline]
    pub(super) fn moved(&self, write: bool, len: u32, nanos: u64) {
        let (kind, bytes) = match write {
            false => (READ, &self.read),
            true => (WRITE, &self.written),
        };
        bytes.add(len.into());
        self.took(kind, nanos);
        if let Some(counter) = self.done.get(kind) {
            counter.add(1);
        }
    }

    /// Counts a command that ended like this.
    pub(super) fn answered(&self, answer: &Answer) {
        let key = answer.sense.map(|sense| sense.key);
        let counter = match key {
            None if *answer == Answer::GOOD || !answer.data.is_empty() => self.done.get(OTHER),
            Some(Key::MediumError | Key::HardwareError | Key::NotReady | Key::DataProtect) => {
                Some(&self.errors)
            }
            _ => Some(&self.refused),
        };
        if let Some(counter) = counter {
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

    /// The counters now.
    pub(super) fn snapshot(&self) -> QueueSnapshot {
        let mut reasons = vec![
            ("errors", self.errors.get()),
            ("refused", self.refused.get()),
            ("aborted", self.aborted.get()),
            ("misdirected", self.misdirected.get()),
            ("malformed", self.malformed.get()),
        ];
        let faults = self.faults.iter().map(Counter::get);
        reasons.extend(RingError::REASONS.into_iter().zip(faults));
        QueueSnapshot {
            state: self.state(),
            done: self.done.each_ref().map(Counter::get),
            took: self.took.each_ref().map(|took| {
                let mut sum = LatencySnapshot::default();
                sum.add(took);
                sum
            }),
            read: self.read.get(),
            written: self.written.get(),
            wrong: reasons,
        }
    }
}

/// Counters of one queue at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueSnapshot {
    /// What its ring does.
    pub state: RingState,
    /// Commands that ended with GOOD, of each of [`KINDS`].
    pub done: [u64; KINDS.len()],
    /// How long those took that came to their disk, likewise.
    pub took: [LatencySnapshot; KINDS.len()],
    /// Bytes read by commands that only do that.
    pub read: u64,
    /// Bytes written likewise.
    pub written: u64,
    /// What went otherwise, by name, and how often; all reasons.
    pub wrong: Vec<(&'static str, u64)>,
}

impl QueueSnapshot {
    /// How often something went otherwise for the reason of this name.
    pub fn wrong(&self, reason: &str) -> u64 {
        let named = self.wrong.iter().find(|(name, _)| *name == reason);
        named.map_or(0, |(_, count)| *count)
    }
}

/// Counters of a device at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The device's name.
    pub name: String,
    /// Number of units.
    pub units: usize,
    /// Its request queues.
    pub queues: Vec<QueueSnapshot>,
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rings: String = self
            .queues
            .iter()
            .map(|queue| queue.state.letter())
            .collect();
        writeln!(f, "{}: {} units, rings {rings}", self.name, self.units)?;
        writeln!(
            f,
            "  {:<8} {:<6} {:>14} {:>16} {:>9} {:>9} {:>9} {:>9}",
            "queue", "what", "commands", "bytes", "p50 us", "p99 us", "p99.9", "max us"
        )?;
        for (number, queue) in self.queues.iter().enumerate() {
            let bytes = [queue.read, queue.written, 0];
            let lines = KINDS.iter().zip(&queue.done).zip(&queue.took).zip(bytes);
            for (((what, done), took), bytes) in lines.filter(|(((_, done), _), _)| **done > 0) {
                let micros = |nanos: u64| nanos as f64 / 1000.0;
                writeln!(
                    f,
                    "  {number:<8} {what:<6} {done:>14} {bytes:>16} {:>9.1} {:>9.1} {:>9.1} {:>9.1}",
                    micros(took.percentile(50.0)),
                    micros(took.percentile(99.0)),
                    micros(took.percentile(99.9)),
                    micros(took.max()),
                )?;
            }
        }
        let Some(first) = self.queues.first() else {
            return Ok(());
        };
        for (reason, _) in &first.wrong {
            let count: u64 = self.queues.iter().map(|queue| queue.wrong(reason)).sum();
            if count > 0 {
                writeln!(f, "    {reason:<22} {count}")?;
            }
        }
        Ok(())
    }
}
