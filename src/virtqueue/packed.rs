//! The driver side of one packed ring (VIRTIO 1.2, 2.8).
//!
//! Both sides write the same descriptors, round after round, and flags say whose turn it is. What
//! is kept in private: the chains by id, where the next one goes, where the device returns the
//! next one. The only things learnt from memory are the flags, id and length of a returned
//! descriptor, and the device's wishes.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use vm_memory::Bytes;

use super::ring::{Batch, Buffer, DESCRIPTOR_LEN, Format, Used, passed};
use super::{MAX_SIZE, QueueAddresses, QueueError};
use crate::memory::Area;
use crate::pci::DmaMemory;

/// The parts do not share a cache line: each has one writer.
const PART_ALIGN: usize = 64;
/// Offsets in a descriptor.
const ID: usize = 12;
const FLAGS: usize = 14;

/// Descriptor flag: the chain goes on in the next descriptor.
const NEXT: u16 = 1;
/// Descriptor flag: the device writes the buffer.
const WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors.
const INDIRECT: u16 = 4;
/// Descriptor flags that say whose turn it is.
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Flags of an event suppression structure: always, never, at a place (2.8.10).
const ENABLE: u32 = 0;
const DISABLE: u32 = 1;
const AT_PLACE: u32 = 2;
/// The wrap counter beside a place.
const WRAP: u16 = 1 << 15;

/// An entry of an indirect table: its order in the table is that of the chain (2.8.7).
pub(super) fn of_buffer(buffer: &Buffer) -> [u8; DESCRIPTOR_LEN] {
    Descriptor::from(buffer).bytes(0, 0)
}

/// What we want a descriptor to say, whoever's turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
}

impl From<&Buffer> for Descriptor {
    fn from(buffer: &Buffer) -> Self {
        Self {
            address: buffer.address,
            len: buffer.len,
            flags: if buffer.writable { WRITE } else { 0 },
        }
    }
}

impl Descriptor {
    fn bytes(self, id: u16, turn: u16) -> [u8; DESCRIPTOR_LEN] {
        let flags = self.flags | turn;
        let rest = u64::from(self.len) | u64::from(id) << 32 | u64::from(flags) << 48;
        (u128::from(rest) << 64 | u128::from(self.address)).to_le_bytes()
    }
}

/// A place in the ring, and in which of two alternating rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    slot: u16,
    wrap: bool,
}

impl Place {
    const START: Self = Self {
        slot: 0,
        wrap: true,
    };

    /// The place `count` descriptors, at most all of `size`, further on.
    fn plus(self, count: u16, size: u16) -> Self {
        let slot = u32::from(self.slot) + u32::from(count);
        match slot.checked_sub(size.into()) {
            None => Self {
                slot: slot as u16,
                ..self
            },
            Some(slot) => Self {
                slot: slot as u16,
                wrap: !self.wrap,
            },
        }
    }

    /// How many descriptors it is from `before` to here, of two rounds.
    fn since(self, before: Self, size: u16) -> u32 {
        let two = 2 * u32::from(size);
        let linear = |at: Self| u32::from(at.slot) + if at.wrap { 0 } else { u32::from(size) };
        (linear(self) + two - linear(before)) % two
    }

    /// As messages and event structures say it.
    fn encoded(self) -> u16 {
        self.slot | if self.wrap { WRAP } else { 0 }
    }

    fn decoded(value: u16) -> Self {
        Self {
            slot: value & !WRAP,
            wrap: value & WRAP != 0,
        }
    }

    /// Flags that make a descriptor here the device's.
    fn available(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }

    /// Whether flags found here say that the device has returned it.
    fn is_used(self, flags: u16) -> bool {
        (flags & AVAIL != 0) == self.wrap && (flags & USED != 0) == self.wrap
    }
}

/// What we know of the chain of one id.
#[derive(Debug, Clone, Default)]
struct Entry {
    /// Its descriptors; none if there is no such chain.
    chain: Vec<Descriptor>,
    /// Whether the device has it.
    held: bool,
    /// Bytes that the device may write into it.
    room: u32,
}

/// The driver side of a packed ring. See [`Ring`](super::Ring), which has the same functions.
#[derive(Debug)]
pub struct Packed {
    size: u16,
    format: Format,
    memory: Area,
    iova: u64,
    /// Where the next chain goes.
    next: Place,
    /// Where the device returns the next chain.
    used: Place,
    /// The first descriptor that is not published, and its flags: what comes after it is complete,
    /// and the device looks at nothing beyond.
    hidden: Option<(Place, u16)>,
    /// Where the first descriptor was that the device was not asked about yet.
    announced: Place,
    /// How many chains were pushed since the last publication.
    unpublished: u16,
    entries: Box<[Entry]>,
    /// Ids of no chain; the next to be used comes first.
    ids: VecDeque<u16>,
    /// Descriptors of no chain.
    free: u16,
    /// The chains that the device has or will have, the oldest first.
    order: VecDeque<u16>,
    batch: Batch,
}

impl Packed {
    /// Where the driver's event structure is.
    fn driver_event(size: u16) -> usize {
        (usize::from(size) * DESCRIPTOR_LEN).next_multiple_of(PART_ALIGN)
    }

    fn device_event(size: u16) -> usize {
        Self::driver_event(size) + PART_ALIGN
    }

    /// Bytes of memory for a ring of `size` descriptors.
    pub fn bytes(size: u16) -> usize {
        Self::device_event(size) + 4
    }

    /// A ring of `size` descriptors in `memory` from `offset` on (a multiple of 16).
    pub fn new(
        memory: &DmaMemory,
        offset: usize,
        size: u16,
        format: Format,
    ) -> Result<Self, QueueError> {
        let iova = memory.iova.checked_add(offset as u64);
        let area = memory.bytes.sub(offset, Self::bytes(size));
        let (Some(iova), Some(area)) = (iova, area) else {
            return Err(QueueError::Memory);
        };
        let aligned = iova.is_multiple_of(16) && area.address().is_multiple_of(16);
        if !aligned || size == 0 || size > MAX_SIZE {
            return Err(QueueError::Memory);
        }
        let mut ring = Self {
            size,
            format,
            memory: area,
            iova,
            next: Place::START,
            used: Place::START,
            hidden: None,
            announced: Place::START,
            unpublished: 0,
            entries: vec![Entry::default(); usize::from(size)].into(),
            ids: VecDeque::with_capacity(usize::from(size)),
            free: size,
            order: VecDeque::with_capacity(usize::from(size)),
            batch: Batch::default(),
        };
        ring.reset();
        Ok(ring)
    }

    /// Back to the state of a new ring. The device must not use it at the moment.
    pub fn reset(&mut self) {
        let zeroes = vec![0; Self::bytes(self.size)];
        let done = self.memory.slice().write_slice(&zeroes, 0);
        debug_assert!(done.is_ok());
        (self.next, self.used, self.announced) = (Place::START, Place::START, Place::START);
        (self.hidden, self.unpublished, self.free) = (None, 0, self.size);
        for entry in &mut self.entries {
            entry.chain.clear();
            entry.held = false;
        }
        self.ids.clear();
        self.ids.extend(0..self.size);
        self.order.clear();
        self.batch = Batch::default();
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where the ring is.
    pub fn addresses(&self) -> QueueAddresses {
        QueueAddresses {
            desc: self.iova,
            driver: self.iova + Self::driver_event(self.size) as u64,
            device: self.iova + Self::device_event(self.size) as u64,
        }
    }

    /// The ring's bytes: for those who want to spoil it.
    pub fn memory(&self) -> &Area {
        &self.memory
    }

    /// Chains that were published and not yet taken back.
    pub fn in_flight(&self) -> u16 {
        (self.order.len() as u16).saturating_sub(self.unpublished)
    }

    /// Descriptors of no chain.
    pub fn free(&self) -> usize {
        self.free.into()
    }

    /// Adds a chain and returns its id.
    pub fn push(&mut self, chain: &[Buffer]) -> Result<u16, QueueError> {
        if chain.is_empty() || chain.len() > self.free() {
            return Err(QueueError::Full);
        }
        let room = chain.iter().filter(|buffer| buffer.writable);
        let room = room.fold(0u32, |sum, buffer| sum.saturating_add(buffer.len));
        self.begin(room, chain.iter().map(Descriptor::from))
    }

    /// Adds a chain whose `count` descriptors are a table of their own at `address`, and returns
    /// its id.
    pub fn push_indirect(&mut self, address: u64, count: u16) -> Result<u16, QueueError> {
        if self.free == 0 {
            return Err(QueueError::Full);
        }
        let table = Descriptor {
            address,
            len: u32::from(count) * DESCRIPTOR_LEN as u32,
            flags: INDIRECT,
        };
        self.begin(0, std::iter::once(table))
    }

    /// A new chain, for whose descriptors there is room.
    fn begin(
        &mut self,
        room: u32,
        chain: impl Iterator<Item = Descriptor>,
    ) -> Result<u16, QueueError> {
        let id = self.ids.pop_front().ok_or(QueueError::Full)?;
        let Some(entry) = self.entries.get_mut(usize::from(id)) else {
            return Err(QueueError::Full);
        };
        entry.room = room;
        entry.chain.clear();
        entry.chain.extend(chain);
        self.free -= entry.chain.len() as u16;
        self.again(id);
        Ok(id)
    }

    /// Adds the chain of this id, which was taken back, once more as it is.
    pub fn again(&mut self, id: u16) {
        let Some(entry) = self.entries.get_mut(usize::from(id)) else {
            return;
        };
        debug_assert!(!entry.chain.is_empty() && !entry.held);
        entry.held = true;
        self.order.push_back(id);
        self.unpublished += 1;
        self.write(id);
    }

    /// Writes the chain of this id at the next place.
    fn write(&mut self, id: u16) {
        let chain = self.entries.get(usize::from(id));
        let chain = chain.map_or(&[][..], |entry| &entry.chain);
        let slice = self.memory.slice();
        let mut place = self.next;
        for (n, descriptor) in (1..).zip(chain) {
            let next = if n < chain.len() { NEXT } else { 0 };
            let turn = next | place.available();
            let bytes = descriptor.bytes(id, turn);
            let offset = usize::from(place.slot) * DESCRIPTOR_LEN;
            // The first one's flags stay as they are until all is to be seen.
            let (bytes, _) = match self.hidden {
                None => bytes.split_at(FLAGS),
                Some(_) => bytes.split_at(DESCRIPTOR_LEN),
            };
            let done = slice.write_slice(bytes, offset);
            debug_assert!(done.is_ok());
            self.hidden.get_or_insert((place, descriptor.flags | turn));
            place = place.plus(1, self.size);
        }
        self.next = place;
    }

    /// Forgets the chain of this id, which was taken back: its descriptors are free.
    pub fn release(&mut self, id: u16) {
        if let Some(entry) = self.entries.get_mut(usize::from(id))
            && !entry.chain.is_empty()
        {
            self.free += entry.chain.len() as u16;
            entry.chain.clear();
            self.ids.push_back(id);
        }
    }

    /// Publishes all that was pushed. Returns whether the device wants to be notified.
    pub fn publish(&mut self) -> bool {
        let Some((place, flags)) = self.hidden.take() else {
            return false;
        };
        self.unpublished = 0;
        // Release: descriptors and buffers are visible before the flags that show the first of
        // them. Pairs with the device's acquire load of these flags.
        let offset = usize::from(place.slot) * DESCRIPTOR_LEN + FLAGS;
        self.store(offset, flags, Ordering::Release);
        self.wants_notify()
    }

    /// Whether the device wants to hear of what was published since it was last asked.
    fn wants_notify(&mut self) -> bool {
        let before = std::mem::replace(&mut self.announced, self.next);
        // Pairs with the device's barrier between writing its wish and looking at the descriptor's
        // flags: either it sees the chain or we see that it wants to be told.
        fence(Ordering::SeqCst);
        let offset = Self::device_event(self.size);
        let event = self.memory.slice().load(offset, Ordering::Relaxed);
        let event = event.map_or(0, u32::from_le);
        match event >> 16 & 3 {
            ENABLE => true,
            AT_PLACE if self.format.event_idx => {
                let wanted = Place::decoded(event as u16);
                let count = self.next.since(before, self.size) as u16;
                // Places of the last round are before the first slot of this one.
                let lead = if wanted.wrap == self.next.wrap {
                    0
                } else {
                    self.size
                };
                let now = self.next.slot;
                passed(now.wrapping_sub(count), now, wanted.slot.wrapping_sub(lead))
            }
            _ => false,
        }
    }

    /// Whether the device has returned a chain that was not taken yet.
    pub fn has_used(&self) -> bool {
        self.batch.left > 0 || self.used.is_used(self.flags(self.used))
    }

    /// The next chain that the device is done with. It is ours until it is pushed again or
    /// released.
    #[inline]
    pub fn take(&mut self) -> Result<Option<Used>, QueueError> {
        if self.batch.left == 0 {
            let Some((id, len)) = self.returned_at(self.used) else {
                return Ok(None);
            };
            let batch = Batch::until(&self.order, id, len, self.in_flight())?;
            if !self.format.in_order {
                self.order.remove(usize::from(batch.left - 1));
                self.passed_on(id);
                return Ok(Some(Used { head: id, len }));
            }
            self.batch = batch;
        }
        let Some(head) = self.order.pop_front() else {
            return Ok(None);
        };
        let room = self.passed_on(head);
        let len = self.batch.next(room);
        Ok(Some(Used { head, len }))
    }

    /// The chain of this id is ours; returns how much room it has.
    fn passed_on(&mut self, id: u16) -> u32 {
        let Some(entry) = self.entries.get_mut(usize::from(id)) else {
            return 0;
        };
        entry.held = false;
        self.used = self.used.plus(entry.chain.len() as u16, self.size);
        entry.room
    }

    /// Id and length of what was returned at a place; `None` if nothing was.
    fn returned_at(&self, place: Place) -> Option<(u16, u32)> {
        // Acquire: what the device wrote before the flags is visible after them.
        if !place.is_used(self.flags(place)) {
            return None;
        }
        let offset = usize::from(place.slot) * DESCRIPTOR_LEN;
        let slice = self.memory.slice();
        let id = slice.load(offset + ID, Ordering::Relaxed);
        let len = slice.load(offset + 8, Ordering::Relaxed);
        Some((id.map_or(0, u16::from_le), len.map_or(0, u32::from_le)))
    }

    /// What the device returned and we have not taken, and where it returns the next chain.
    fn outlook(&self) -> Result<(Vec<u16>, Place), QueueError> {
        let mut left = self.order.clone();
        left.truncate(self.in_flight().into());
        let (mut back, mut place) = (Vec::new(), self.used);
        let mut batch = usize::from(self.batch.left);
        loop {
            let until = match std::mem::take(&mut batch) {
                0 => match self.returned_at(place) {
                    None => return Ok((back, place)),
                    Some((id, _)) => Batch::until(&left, id, 0, u16::MAX)?.left.into(),
                },
                some => some,
            };
            let first = if self.format.in_order { 0 } else { until - 1 };
            for id in left.drain(first..until) {
                let chain = self.entries.get(usize::from(id));
                let count = chain.map_or(0, |entry| entry.chain.len() as u16);
                place = place.plus(count, self.size);
                back.push(id);
            }
        }
    }

    /// Gets ready for a device that knows nothing of what happened before: where it goes on, in
    /// both halves of the number. What it finds there are the chains that were not returned, in
    /// order: a device that returns them out of order overwrites some.
    pub fn resume(&mut self) -> Result<u32, QueueError> {
        let (back, place) = self.outlook()?;
        let end = self.next;
        (self.next, self.hidden) = (place, None);
        let ids: Vec<u16> = self.order.iter().copied().collect();
        for id in ids.iter().filter(|id| !back.contains(id)) {
            self.write(*id);
        }
        debug_assert_eq!(self.next, end);
        // Nobody is there who could be told.
        self.publish();
        let base = u32::from(place.encoded());
        Ok(base | base << 16)
    }

    /// Where a device is that has kept its own notes of what it has: the ring stays as it is.
    pub fn stands_at(&self) -> Result<u32, QueueError> {
        let (_, place) = self.outlook()?;
        let base = u32::from(place.encoded());
        Ok(base | base << 16)
    }

    /// Where a device that stops can be: behind what it returned, up to what it was given.
    pub fn bounds(&self) -> Result<(u16, u16), QueueError> {
        let (_, low) = self.outlook()?;
        let high = self.hidden.map_or(self.next, |(place, _)| place);
        Ok((low.encoded(), high.encoded()))
    }

    /// Whether a device can have stopped at `base`, of which the lower half counts: where it looks
    /// for the next chain.
    pub fn can_stop_at(&self, base: u32) -> Result<bool, QueueError> {
        let (low, high) = self.bounds()?;
        let (low, high) = (Place::decoded(low), Place::decoded(high));
        let at = Place::decoded(base as u16);
        let span = high.since(low, self.size);
        Ok(at.slot < self.size && at.since(low, self.size) <= span)
    }

    /// Asks to be notified when the next chain is returned. Returns whether there is one already.
    pub fn enable_calls(&mut self) -> bool {
        let flags = if self.format.event_idx {
            AT_PLACE
        } else {
            ENABLE
        };
        self.ask(u32::from(self.used.encoded()) | flags << 16);
        // Pairs with the device's barrier between returning a chain and reading our wish.
        fence(Ordering::SeqCst);
        self.has_used()
    }

    /// Asks not to be notified.
    pub fn disable_calls(&mut self) {
        self.ask(u32::from(self.used.encoded()) | DISABLE << 16);
    }

    // Offsets are computed from the size alone, so these cannot fail.

    fn ask(&self, event: u32) {
        let offset = Self::driver_event(self.size);
        let slice = self.memory.slice();
        let done = slice.store(event.to_le(), offset, Ordering::Relaxed);
        debug_assert!(done.is_ok());
    }

    fn store(&self, offset: usize, value: u16, order: Ordering) {
        let done = self.memory.slice().store(value.to_le(), offset, order);
        debug_assert!(done.is_ok());
    }

    fn flags(&self, place: Place) -> u16 {
        let offset = usize::from(place.slot) * DESCRIPTOR_LEN + FLAGS;
        let value = self.memory.slice().load(offset, Ordering::Acquire);
        value.map_or(0, u16::from_le)
    }
}

#[cfg(test)]
#[path = "packed_tests.rs"]
mod tests;
