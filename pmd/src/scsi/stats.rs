//! What the request queues of a SCSI device have done.

use std::sync::atomic::{AtomicU8, Ordering};

use super::target::{Answer, Key};
use crate::stats::{Counter, RingState};
use crate::vring::RingError;

/// What commands are counted as.
pub const KINDS: [&str; 3] = ["read", "write", "other"];

pub(super) const READ: usize = 0;
pub(super) const WRITE: usize = 1;
pub(super) const OTHER: usize = 2;

/// Counters of one queue, written by the worker that serves it.
#[derive(Debug, Default)]
pub struct QueueStats {
    /// Commands that ended with GOOD, by kind.
    pub(super) done: [Counter; KINDS.len()],
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
    /// Counts a command of this kind that moved so many bytes.
    #[inline]
    pub(super) fn moved(&self, write: bool, len: u32) {
        let (kind, bytes) = match write {
            false => (READ, &self.read),
            true => (WRITE, &self.written),
        };
        bytes.add(len.into());
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
    pub fn state(&self) -> RingState {
        RingState::from_u8(self.state.load(Ordering::Relaxed))
    }

    /// Commands that ended with GOOD, of each of [`KINDS`].
    pub fn done(&self) -> [u64; KINDS.len()] {
        self.done.each_ref().map(Counter::get)
    }

    /// Commands that were ended by task management.
    pub fn aborted(&self) -> u64 {
        self.aborted.get()
    }

    /// Chains that could not be answered.
    pub fn malformed(&self) -> u64 {
        self.malformed.get()
    }
}
