//! Requests in flight: which chain each belongs to, and what it is waited for.

use std::sync::Arc;
use std::time::Instant;

use vvu::memory::{MemTable, Scatter, copy};

use super::request::Status;
use crate::bdev::{Data, IoError};
use crate::vring::Chain;

/// A chain that was taken, and its request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Started {
    pub(super) chain: Chain,
    /// Place among the kinds of request.
    pub(super) kind: u8,
    /// Requests of it that are in flight.
    pub(super) parts: u8,
    pub(super) failed: Option<IoError>,
    /// Bytes on the disk.
    pub(super) len: u32,
    pub(super) at: Instant,
}

#[derive(Debug, Default)]
struct Slot {
    started: Option<Started>,
    /// The memory of a chain whose requests carry none.
    memory: Data,
}

/// Lists for the memory of requests, each in the box that it travels in.
#[allow(clippy::vec_box)]
pub type Lists = Vec<Box<Scatter>>;

/// As many empty lists as there are slots, for pieces of `memory`.
pub(super) fn lists(count: u16, memory: &Arc<MemTable>) -> Lists {
    let list = |_| Box::new(Scatter::of_table(Arc::clone(memory)));
    (0..count).map(list).collect()
}

/// All slots of a queue. Nothing is allocated after they were made, but what lists need that are
/// longer than any before.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u16>,
    spare: Lists,
}

impl Slots {
    /// `count` slots for a ring of `memory`.
    pub(super) fn new(count: u16, memory: &Arc<MemTable>) -> Self {
        Self {
            slots: (0..count).map(|_| Slot::default()).collect(),
            free: (0..count).rev().collect(),
            spare: lists(count, memory),
        }
    }

    /// Other lists for the memory of requests, when nothing is in flight. Returns the old ones.
    pub(super) fn renew(&mut self, lists: Lists) -> Lists {
        std::mem::replace(&mut self.spare, lists)
    }

    /// How many more requests can be in flight.
    #[inline]
    pub(super) fn room(&self) -> usize {
        self.free.len().min(self.spare.len())
    }

    /// Whether nothing is in flight.
    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// A list for the memory of the next request. There must be room.
    #[inline]
    pub(super) fn list(&mut self) -> Option<Box<Scatter>> {
        self.spare.pop()
    }

    /// Keeps `started`, and returns its token.
    #[inline]
    pub(super) fn put(&mut self, started: Started, memory: Data) -> Option<u64> {
        let token = self.free.pop()?;
        let slot = self.slots.get_mut(usize::from(token))?;
        slot.started = Some(started);
        slot.memory = memory;
        Some(token.into())
    }

    /// A request of `token` is done: `data` comes back from the disk. If it was the last of its
    /// chain, writes the status to where the driver waits for it, and returns what it was.
    #[inline]
    pub(super) fn done(
        &mut self,
        token: u64,
        result: Result<(), IoError>,
        data: Data,
    ) -> Option<Started> {
        let slot = self.slots.get_mut(usize::try_from(token).ok()?)?;
        let started = slot.started.as_mut()?;
        started.failed = started.failed.or(result.err());
        started.parts = started.parts.saturating_sub(1);
        if started.parts > 0 {
            return None;
        }
        let started = slot.started.take()?;
        if let Some(list) = data.or_else(|| slot.memory.take()) {
            let status = match started.failed {
                None => Status::Ok,
                Some(IoError::Unsupported) => Status::Unsupported,
                Some(_) => Status::IoErr,
            };
            if let Some(place) = list.tail().next() {
                copy::write_array([status as u8], place);
            }
            self.spare.push(list);
        }
        self.free.push(token as u16);
        Some(started)
    }
}
