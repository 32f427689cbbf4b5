//! What the queues of a block device have done.

use std::sync::atomic::{AtomicU8, Ordering};

use crossbeam_utils::CachePadded;

use crate::bdev::{IoError, Op};
use crate::stats::{Counter, RingState};
use crate::vring::RingError;

/// What requests are counted as.
pub const KINDS: [&str; 6] = ["read", "write", "flush", "discard", "zero", "id"];

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
pub struct QueueStats {
    /// Requests answered without an error, by kind.
    pub(super) done: [Counter; KINDS.len()],
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
pub type Stats = Box<[CachePadded<QueueStats>]>;

impl QueueStats {
    /// Counts a request of this kind that was done.
    #[inline]
    pub(super) fn done(&self, kind: usize, len: u32) {
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
    pub fn state(&self) -> RingState {
        RingState::from_u8(self.state.load(Ordering::Relaxed))
    }
}
