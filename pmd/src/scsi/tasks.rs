//! Commands under way on one request queue.

use std::sync::Arc;
use std::time::Instant;

use vvu::memory::{MemTable, Scatter};

use super::target::{Alone, Barrier, Job};
use super::wire::Code;
use crate::bdev::{Data, Request};
use crate::vring::Chain;

/// A command that was taken and not yet answered.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) chain: Chain,
    /// When it was taken.
    pub(super) at: Instant,
    /// What the driver calls it.
    pub(super) tag: u64,
    /// Number of its unit's seat.
    pub(super) seat: u32,
    /// Bytes of data that its buffers have room for...
    pub(super) room: u32,
    /// ...and bytes that are moved.
    pub(super) len: u32,
    /// It writes, as far as the gate is concerned: now, or in all if it is one transfer.
    pub(super) write: bool,
    /// It passed the gate, and has to leave it.
    pub(super) inside: bool,
    /// A request of it is with the disk.
    pub(super) in_flight: bool,
    /// How it must end, if it must.
    pub(super) ends: Option<Code>,
    /// What most have not.
    pub(super) extra: Option<Box<Extra>>,
}

/// What a command has that does more than to move its data, or waits for something.
#[derive(Debug, Default)]
pub(super) struct Extra {
    pub(super) job: Option<Job>,
    /// The job's buffer.
    pub(super) buffer: Vec<u8>,
    /// The driver's data, and behind them the place of the response.
    pub(super) sent: Data,
    /// The memory of the job's own transfer.
    pub(super) own: Data,
    /// What the buffer goes through to the disk.
    pub(super) bounce: Data,
    /// What is in flight.
    pub(super) moves: Moves,
    pub(super) alone: Option<Alone>,
    pub(super) waits: Waits,
    /// Who waits for its end.
    pub(super) barriers: Vec<Barrier>,
}

/// Whose memory a job's request in flight has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Moves {
    /// Nobody's.
    #[default]
    Nothing,
    /// The driver's.
    Own,
    /// The job's, to the disk...
    BufferOut,
    /// ...or from it.
    BufferIn,
}

/// What a command waits for, apart from the disk.
#[derive(Debug, Default)]
pub(super) enum Waits {
    #[default]
    Nothing,
    /// This request can be sent when the gate is open and there is a channel.
    Send(Request),
    /// The gate is closed, or not everybody is out yet.
    Alone,
    /// Other tasks.
    Barrier(Barrier),
    /// The store.
    Saved,
}

/// A place for a task.
#[derive(Debug, Default)]
struct Slot {
    /// Tells tasks in the same place apart.
    serial: u64,
    task: Option<Task>,
}

/// `count` empty lists for pieces of `memory`.
#[allow(clippy::vec_box)]
pub(super) fn lists(count: u16, memory: &Arc<MemTable>) -> Vec<Box<Scatter>> {
    let list = |_| Box::new(Scatter::of_table(Arc::clone(memory)));
    (0..count).map(list).collect()
}

/// All tasks of a queue. Nothing is allocated after they were made for those that only move data.
#[derive(Debug)]
pub(super) struct Tasks {
    slots: Vec<Slot>,
    free: Vec<u16>,
    // In boxes, because that is how requests carry them.
    #[allow(clippy::vec_box)]
    spare: Vec<Box<Scatter>>,
}

impl Tasks {
    /// Room for `count` tasks on a ring of `memory`.
    pub(super) fn new(count: u16, memory: &Arc<MemTable>) -> Self {
        Self {
            slots: (0..count).map(|_| Slot::default()).collect(),
            free: (0..count).rev().collect(),
            spare: lists(count, memory),
        }
    }

    /// Other lists for the memory of tasks, when there are none. Returns the old ones.
    #[allow(clippy::vec_box)]
    pub(super) fn renew(&mut self, lists: Vec<Box<Scatter>>) -> Vec<Box<Scatter>> {
        std::mem::replace(&mut self.spare, lists)
    }

    /// How many more there can be.
    #[inline]
    pub(super) fn room(&self) -> usize {
        self.free.len().min(self.spare.len())
    }

    /// How many there are.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// A list for the memory of a task. There must be room.
    #[inline]
    pub(super) fn list(&mut self) -> Option<Box<Scatter>> {
        self.spare.pop()
    }

    /// A list comes back.
    #[inline]
    pub(super) fn put_list(&mut self, list: Box<Scatter>) {
        if self.spare.len() < self.slots.len() {
            self.spare.push(list);
        }
    }

    /// Keeps `task`, and returns its number.
    #[inline]
    pub(super) fn put(&mut self, task: Task) -> Option<u16> {
        let number = self.free.pop()?;
        let slot = self.slots.get_mut(usize::from(number))?;
        slot.serial = slot.serial.wrapping_add(1);
        slot.task = Some(task);
        Some(number)
    }

    /// Task `number`.
    #[inline]
    pub(super) fn get(&mut self, number: u16) -> Option<&mut Task> {
        self.slots.get_mut(usize::from(number))?.task.as_mut()
    }

    /// Task `number`, if it only moves its data and need not end otherwise.
    #[inline]
    pub(super) fn plain(&self, number: u16) -> Option<&Task> {
        let task = self.slots.get(usize::from(number))?.task.as_ref()?;
        task.extra.is_none().then_some(task)
    }

    /// Task `number` has ended.
    #[inline]
    pub(super) fn end(&mut self, number: u16) {
        self.take(number);
    }

    /// What tells task `number` apart from those that had its place before.
    pub(super) fn serial(&self, number: u16) -> Option<u64> {
        let slot = self.slots.get(usize::from(number))?;
        slot.task.as_ref().map(|_| slot.serial)
    }

    /// Task `number` has ended, and is wanted.
    #[inline]
    pub(super) fn take(&mut self, number: u16) -> Option<Task> {
        let task = self.slots.get_mut(usize::from(number))?.task.take()?;
        self.free.push(number);
        Some(task)
    }

    /// Numbers of all tasks of the unit in this seat.
    pub(super) fn of_seat(&self, seat: u32) -> Vec<u16> {
        let slots = self.slots.iter().zip(0..);
        let of = |slot: &Slot| slot.task.as_ref().is_some_and(|task| task.seat == seat);
        slots
            .filter_map(|(slot, number)| of(slot).then_some(number))
            .collect()
    }
}

impl Task {
    /// What it has beside its data.
    pub(super) fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }
}
