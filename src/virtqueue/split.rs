//! The driver side of one split ring: its descriptors, and what the device may do to them.
//!
//! What is kept in private: which descriptors are free, which chains the device holds, where the
//! indices stand. What the device writes, the used index, ids and its wishes, is read once and
//! checked against that.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use vm_memory::Bytes;

use super::ring::{Batch, Buffer, DESCRIPTOR_LEN, Format, Used, passed};
use super::{MAX_SIZE, QueueAddresses, QueueError};
use crate::memory::Area;
use crate::pci::DmaMemory;

const USED_ELEMENT_LEN: usize = 8;
/// Flags and index in front of the available and used rings.
const RING_HEAD: usize = 4;
const RING_INDEX: usize = 2;
/// The parts do not share a cache line: each has one writer.
const PART_ALIGN: usize = 64;

/// Descriptor flag: the chain goes on.
const DESC_NEXT: u16 = 1;
/// Descriptor flag: the device writes the buffer.
const DESC_WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors.
const DESC_INDIRECT: u16 = 4;
/// Used ring flag: the device does not want to be notified.
const USED_NO_NOTIFY: u16 = 1;
/// Available ring flag: we do not want to be notified.
const AVAIL_NO_INTERRUPT: u16 = 1;

/// The descriptor of a buffer, as memory has it; it leads to `next`, if that is some.
pub(super) fn of_buffer(buffer: &Buffer, next: Option<u16>) -> [u8; DESCRIPTOR_LEN] {
    let write = if buffer.writable { DESC_WRITE } else { 0 };
    let flags = write | if next.is_some() { DESC_NEXT } else { 0 };
    descriptor(buffer.address, buffer.len, flags, next.unwrap_or(0))
}

/// A descriptor as memory has it (VIRTIO 1.2, 2.7.5).
fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; DESCRIPTOR_LEN] {
    let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
    (u128::from(rest) << 64 | u128::from(address)).to_le_bytes()
}

/// Offsets of the parts of a ring in its memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) avail: usize,
    pub(super) used: usize,
    pub(super) end: usize,
}

impl Layout {
    /// Alignments are at least those of VIRTIO 1.2, 2.7: 16, 2 and 4. Both rings have room for
    /// their event field.
    fn new(size: u16) -> Self {
        let size = usize::from(size);
        let avail = (size * DESCRIPTOR_LEN).next_multiple_of(PART_ALIGN);
        let used = (avail + RING_HEAD + 2 * size + 2).next_multiple_of(PART_ALIGN);
        Self {
            avail,
            used,
            end: used + RING_HEAD + size * USED_ELEMENT_LEN + 2,
        }
    }
}

/// What we know of one descriptor.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// Descriptors of the chain that begins here; 0 if none does.
    count: u16,
    /// The descriptor after this one, in a chain.
    next: u16,
    /// Whether the device has the chain that begins here.
    held: bool,
    /// Bytes that the device may write into that chain.
    room: u32,
}

/// The driver side of a split ring. See [`Ring`](super::Ring), which has the same functions.
#[derive(Debug)]
pub struct Split {
    size: u16,
    event_idx: bool,
    in_order: bool,
    layout: Layout,
    memory: Area,
    iova: u64,
    /// How many chains were ever pushed, modulo 2^16.
    pushed: u16,
    /// How many of them the device knows of: our available index.
    published: u16,
    /// How many used elements were ever taken, modulo 2^16.
    taken: u16,
    /// The used index as last read.
    used: u16,
    entries: Box<[Entry]>,
    /// Descriptors of no chain; the next to be used comes first. So, where chains come back in
    /// order, they are used in the order of the table.
    free: VecDeque<u16>,
    /// With IN_ORDER, the heads that the device has, the oldest first, and what it returned.
    order: VecDeque<u16>,
    batch: Batch,
}

impl Split {
    /// Bytes of memory for a ring of `size` descriptors.
    pub fn bytes(size: u16) -> usize {
        Layout::new(size).end
    }

    /// A ring of `size` descriptors, a power of two, in `memory` from `offset` on (a multiple of
    /// 16).
    pub fn new(
        memory: &DmaMemory,
        offset: usize,
        size: u16,
        format: Format,
    ) -> Result<Self, QueueError> {
        let layout = Layout::new(size);
        let iova = memory.iova.checked_add(offset as u64);
        let area = memory.bytes.sub(offset, layout.end);
        let (Some(iova), Some(area)) = (iova, area) else {
            return Err(QueueError::Memory);
        };
        let aligned = iova.is_multiple_of(16) && area.address().is_multiple_of(16);
        if !aligned || !size.is_power_of_two() || size > MAX_SIZE {
            return Err(QueueError::Memory);
        }
        let mut ring = Self {
            size,
            event_idx: format.event_idx,
            in_order: format.in_order,
            layout,
            memory: area,
            iova,
            pushed: 0,
            published: 0,
            taken: 0,
            used: 0,
            entries: vec![Entry::default(); usize::from(size)].into(),
            free: VecDeque::with_capacity(usize::from(size)),
            order: VecDeque::new(),
            batch: Batch::default(),
        };
        ring.reset();
        Ok(ring)
    }

    /// Back to the state of a new ring. The device must not use it at the moment.
    pub fn reset(&mut self) {
        let zeroes = vec![0; self.layout.end];
        let done = self.memory.slice().write_slice(&zeroes, 0);
        debug_assert!(done.is_ok());
        (self.pushed, self.published, self.taken, self.used) = (0, 0, 0, 0);
        self.entries.fill(Entry::default());
        self.free.clear();
        self.free.extend(0..self.size);
        self.order.clear();
        self.batch = Batch::default();
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    #[cfg(test)]
    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    /// Where the ring is.
    pub fn addresses(&self) -> QueueAddresses {
        QueueAddresses {
            desc: self.iova,
            driver: self.iova + self.layout.avail as u64,
            device: self.iova + self.layout.used as u64,
        }
    }

    /// The ring's bytes: for those who want to spoil it.
    pub fn memory(&self) -> &Area {
        &self.memory
    }

    /// How many chains the device returned so far, modulo 2^16.
    fn returned(&self) -> Result<u16, QueueError> {
        let index = self.used_index();
        if index.wrapping_sub(self.taken) > self.in_flight() {
            return Err(QueueError::Index {
                from: self.taken,
                to: index,
            });
        }
        Ok(index)
    }

    /// Chains that were published and not yet taken back.
    pub fn in_flight(&self) -> u16 {
        self.published.wrapping_sub(self.taken)
    }

    /// Descriptors of no chain.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// The head that the next chain will have; `None` if there is no free descriptor.
    pub fn next_head(&self) -> Option<u16> {
        self.free.front().copied()
    }

    /// Adds a chain and returns its head.
    pub fn push(&mut self, chain: &[Buffer]) -> Result<u16, QueueError> {
        if chain.is_empty() || chain.len() > self.free.len() {
            return Err(QueueError::Full);
        }
        let head = self.next_head().ok_or(QueueError::Full)?;
        let mut room = 0u32;
        for (n, buffer) in (1..).zip(chain) {
            let index = self.free.pop_front().ok_or(QueueError::Full)?;
            let next = self.next_head().filter(|_| n < chain.len());
            self.put_descriptor(index, of_buffer(buffer, next));
            room = room.saturating_add(if buffer.writable { buffer.len } else { 0 });
            if let Some(entry) = self.entry(index) {
                entry.next = next.unwrap_or(index);
            }
        }
        self.begin(head, chain.len() as u16, room);
        Ok(head)
    }

    /// Adds a chain whose `count` descriptors are a table of their own at `address`, and returns
    /// its head.
    pub fn push_indirect(&mut self, address: u64, count: u16) -> Result<u16, QueueError> {
        let head = self.free.pop_front().ok_or(QueueError::Full)?;
        let len = u32::from(count) * DESCRIPTOR_LEN as u32;
        self.put_descriptor(head, descriptor(address, len, DESC_INDIRECT, 0));
        self.begin(head, 1, 0);
        Ok(head)
    }

    /// Adds the chain that begins at `head`, which was taken back, once more as it is.
    pub fn again(&mut self, head: u16) {
        let Some(entry) = self.entry(head) else {
            return;
        };
        debug_assert!(entry.count > 0 && !entry.held);
        entry.held = true;
        if self.in_order {
            self.order.push_back(head);
        }
        self.store(self.avail_slot(self.pushed), head, Ordering::Relaxed);
        self.pushed = self.pushed.wrapping_add(1);
    }

    /// Forgets the chain that begins at `head`, which was taken back: its descriptors are free.
    pub fn release(&mut self, head: u16) {
        let count = self
            .entry(head)
            .map_or(0, |entry| std::mem::take(&mut entry.count));
        let mut index = head;
        for _ in 0..count {
            self.free.push_back(index);
            index = self.entry(index).map_or(index, |entry| entry.next);
        }
    }

    /// Publishes all that was pushed. Returns whether the device wants to be notified.
    pub fn publish(&mut self) -> bool {
        let before = std::mem::replace(&mut self.published, self.pushed);
        // Release: descriptors, buffers and ring slots are visible before the index that counts
        // them. Pairs with the device's acquire load of the index.
        let index = self.layout.avail + RING_INDEX;
        self.store(index, self.published, Ordering::Release);
        before != self.published && self.wants_notify(before)
    }

    /// Whether the device wants to hear of what was published since the index was `before`.
    pub(super) fn wants_notify(&self, before: u16) -> bool {
        // Pairs with the device's barrier between clearing its flag (or writing its event index)
        // and reading our index: either it sees the chain or we see that it wants to be told.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            return self.load(self.layout.used, Ordering::Relaxed) & USED_NO_NOTIFY == 0;
        }
        let event = self.layout.used + RING_HEAD + USED_ELEMENT_LEN * usize::from(self.size);
        passed(before, self.published, self.load(event, Ordering::Relaxed))
    }

    /// Whether the device has returned a chain that was not taken yet.
    pub fn has_used(&self) -> bool {
        self.used_index() != self.taken
    }

    /// Gets ready for a device that knows nothing of what happened before: where it goes on.
    pub fn resume(&mut self) -> Result<u32, QueueError> {
        Ok(self.returned()?.into())
    }

    /// Lets the ring say once more what the device has, for one that knows nothing of what happened
    /// before and goes on behind what was returned. Where chains came back in another order than
    /// they went, the places from there on name others by now.
    pub fn offer_again(&mut self) -> Result<(), QueueError> {
        let from = self.returned()?;
        if self.in_order {
            return Ok(());
        }
        let back: Vec<u16> = (0..from.wrapping_sub(self.taken))
            .map(|n| self.load_u32(self.used_slot(self.taken.wrapping_add(n))) as u16)
            .collect();
        let heads = (0..self.size).zip(self.entries.iter());
        let mut missing: Vec<u16> = heads
            .filter(|(head, entry)| entry.held && !back.contains(head))
            .map(|(head, _)| head)
            .collect();
        let mut free = Vec::new();
        for n in 0..self.pushed.wrapping_sub(from) {
            let offset = self.avail_slot(from.wrapping_add(n));
            let head = self.load(offset, Ordering::Relaxed);
            match missing.iter().position(|one| *one == head) {
                Some(at) => drop(missing.remove(at)),
                None => free.push(offset),
            }
        }
        for (offset, head) in free.into_iter().zip(missing) {
            self.store(offset, head, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Where a device that stops can be: behind what it returned, up to what it was given.
    pub fn bounds(&self) -> Result<(u16, u16), QueueError> {
        Ok((self.returned()?, self.published))
    }

    /// Whether a device can have stopped at `base`.
    pub fn can_stop_at(&self, base: u32) -> Result<bool, QueueError> {
        let (low, high) = self.bounds()?;
        let span = high.wrapping_sub(low);
        Ok(u16::try_from(base).is_ok_and(|at| at.wrapping_sub(low) <= span))
    }

    /// The next chain that the device is done with. It is ours until it is pushed again or
    /// released.
    #[inline]
    pub fn take(&mut self) -> Result<Option<Used>, QueueError> {
        if self.batch.left > 0 {
            return Ok(self.next_of_batch());
        }
        if self.used == self.taken {
            self.used = self.returned()?;
        }
        if self.used == self.taken {
            return Ok(None);
        }
        let offset = self.used_slot(self.taken);
        let (id, len) = (self.load_u32(offset), self.load_u32(offset + 4));
        let head = u16::try_from(id).map_err(|_| QueueError::NotHeld(id))?;
        if self.in_order {
            // One element stands for all chains up to its own.
            let most = self.used.wrapping_sub(self.taken);
            self.batch = Batch::until(&self.order, head, len, most)?;
            return Ok(self.next_of_batch());
        }
        match self.entry(head) {
            Some(Entry { held, .. }) if *held => *held = false,
            _ => return Err(QueueError::NotHeld(id)),
        }
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(Used { head, len }))
    }

    /// The oldest chain of those that the device returned together.
    fn next_of_batch(&mut self) -> Option<Used> {
        let head = self.order.pop_front()?;
        let room = self.entry(head).map_or(0, |entry| {
            entry.held = false;
            entry.room
        });
        self.taken = self.taken.wrapping_add(1);
        let len = self.batch.next(room);
        Some(Used { head, len })
    }

    /// Asks to be notified when the next chain is returned. Returns whether there is one already.
    pub fn enable_calls(&mut self) -> bool {
        self.ask(0, self.taken);
        // Pairs with the device's barrier between publishing its index and reading our wish.
        fence(Ordering::SeqCst);
        self.has_used()
    }

    /// Asks not to be notified. With event indices there is no such wish: one notification may
    /// still come.
    pub fn disable_calls(&mut self) {
        self.ask(AVAIL_NO_INTERRUPT, self.taken.wrapping_sub(1));
    }

    fn ask(&self, flags: u16, event: u16) {
        if self.event_idx {
            let offset = self.layout.avail + RING_HEAD + 2 * usize::from(self.size);
            self.store(offset, event, Ordering::Relaxed);
        } else {
            self.store(self.layout.avail, flags, Ordering::Relaxed);
        }
    }

    /// A new chain of `count` descriptors, `room` bytes for the device, begins at `head`.
    fn begin(&mut self, head: u16, count: u16, room: u32) {
        if let Some(entry) = self.entry(head) {
            (entry.count, entry.room) = (count, room);
        }
        self.again(head);
    }

    fn entry(&mut self, index: u16) -> Option<&mut Entry> {
        self.entries.get_mut(usize::from(index))
    }

    /// Acquire: what the device wrote before the index is visible after it.
    fn used_index(&self) -> u16 {
        self.load(self.layout.used + RING_INDEX, Ordering::Acquire)
    }

    fn put_descriptor(&self, index: u16, bytes: [u8; DESCRIPTOR_LEN]) {
        let offset = DESCRIPTOR_LEN * usize::from(index);
        let done = self.memory.slice().write_slice(&bytes, offset);
        debug_assert!(done.is_ok());
    }

    /// Where the available ring has the head of the chain `count`.
    fn avail_slot(&self, count: u16) -> usize {
        let slot = count & (self.size - 1);
        self.layout.avail + RING_HEAD + 2 * usize::from(slot)
    }

    /// Where the used ring has the element `count`.
    fn used_slot(&self, count: u16) -> usize {
        let slot = count & (self.size - 1);
        self.layout.used + RING_HEAD + USED_ELEMENT_LEN * usize::from(slot)
    }

    // Offsets are computed from the size alone, so these cannot fail.

    fn store(&self, offset: usize, value: u16, order: Ordering) {
        let done = self.memory.slice().store(value.to_le(), offset, order);
        debug_assert!(done.is_ok());
    }

    fn load(&self, offset: usize, order: Ordering) -> u16 {
        let value = self.memory.slice().load(offset, order);
        value.map_or(0, u16::from_le)
    }

    fn load_u32(&self, offset: usize) -> u32 {
        let value = self.memory.slice().load(offset, Ordering::Relaxed);
        value.map_or(0, u32::from_le)
    }
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
