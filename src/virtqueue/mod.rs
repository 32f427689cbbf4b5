//! The driver side of a split virtqueue (VIRTIO 1.2, 2.7), as rxq and txq need it.
//!
//! Descriptor `i` belongs to buffer `i` for ever, one descriptor per chain, so that nothing has to
//! be learnt from memory that the device can write: which descriptors the device holds, and where
//! the indices stand, is kept in private. What the device does write, used ids and lengths, is
//! checked against that. Received bytes are copied out before their buffer is offered again.
//!
//! All access goes through [`Area`]; this room knows nothing of registers, interrupts or of what
//! the buffers contain.

use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use vm_memory::Bytes;

use crate::memory::Area;
use crate::pci::DmaMemory;

/// Largest queue that VIRTIO allows (2.7).
pub const MAX_SIZE: u16 = 1 << 15;

const DESCRIPTOR_LEN: usize = 16;
const USED_ELEMENT_LEN: usize = 8;
/// Flags and index in front of the available and used rings.
const RING_HEAD: usize = 4;
const RING_INDEX: usize = 2;

/// Descriptor flag: the device writes the buffer.
const DESC_WRITE: u16 = 2;
/// Used ring flag: the device does not want to be notified.
const USED_NO_NOTIFY: u16 = 1;

/// What the device did wrong, or what cannot be done now.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum QueueError {
    /// The device returned a descriptor that does not exist or that it did not hold.
    #[error("the device returned descriptor {0}, which it does not hold")]
    NotHeld(u32),
    /// The device says it wrote more than there is room for.
    #[error("the device claims to have written {len} bytes into a buffer of {room}")]
    TooLong {
        /// Its claim.
        len: u32,
        /// The buffer's size.
        room: u32,
    },
    /// The device returned more buffers than it holds.
    #[error("the device's used index went from {from} to {to}")]
    Index {
        /// Where we had read up to.
        from: u16,
        /// What the device says.
        to: u16,
    },
    /// All buffers are with the device.
    #[error("the queue is full")]
    Full,
    /// The bytes do not fit a buffer.
    #[error("{len} bytes do not fit a buffer of {room}")]
    NoRoom {
        /// How many bytes.
        len: usize,
        /// The buffer's size.
        room: usize,
    },
    /// The DMA memory is too small or not aligned for the queue.
    #[error("queue memory is too small or not aligned")]
    Memory,
}

/// Which way the buffers travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The device fills them.
    FromDevice,
    /// We fill them.
    ToDevice,
}

/// Where the parts of a queue are, as the device addresses them (VIRTIO 1.2, 4.1.4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueAddresses {
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub driver: u64,
    /// Used ring.
    pub device: u64,
}

/// Offsets of the parts of a queue in its memory.
#[derive(Debug, Clone, Copy)]
struct Layout {
    avail: usize,
    used: usize,
    buffers: usize,
    end: usize,
}

impl Layout {
    /// Alignments are those of VIRTIO 1.2, 2.7: 16, 2 and 4; buffers start on a page of 4 KiB.
    fn new(size: u16, buffer_len: u32) -> Self {
        let size = usize::from(size);
        let avail = size * DESCRIPTOR_LEN;
        let used = (avail + RING_HEAD + 2 * size + 2).next_multiple_of(4);
        let buffers = (used + RING_HEAD + size * USED_ELEMENT_LEN + 2).next_multiple_of(4096);
        Self {
            avail,
            used,
            buffers,
            end: buffers + size * buffer_len as usize,
        }
    }
}

/// A virtqueue with its buffers.
#[derive(Debug)]
pub struct Virtqueue {
    size: u16,
    direction: Direction,
    buffer_len: u32,
    layout: Layout,
    memory: Area,
    iova: u64,
    /// Our available index: how many buffers were ever offered, modulo 2^16.
    offered: u16,
    /// How many used elements were ever taken, modulo 2^16.
    taken: u16,
    /// Which descriptors the device holds.
    held: Box<[bool]>,
    /// Those that it does not hold.
    free: Vec<u16>,
}

impl Virtqueue {
    /// Bytes of DMA memory for a queue of `size` buffers of `buffer_len` bytes.
    pub fn bytes(size: u16, buffer_len: u32) -> usize {
        Layout::new(size, buffer_len).end
    }

    /// A queue of `size` buffers, a power of two, in `memory` from `offset` on (a multiple of 16).
    pub fn new(
        memory: &DmaMemory,
        offset: usize,
        size: u16,
        buffer_len: u32,
        direction: Direction,
    ) -> Result<Self, QueueError> {
        let layout = Layout::new(size, buffer_len);
        let iova = memory.iova.checked_add(offset as u64);
        let area = memory.bytes.sub(offset, layout.end);
        let (Some(iova), Some(area)) = (iova, area) else {
            return Err(QueueError::Memory);
        };
        let aligned = iova.is_multiple_of(16) && area.address().is_multiple_of(16);
        if !aligned || !size.is_power_of_two() || size > MAX_SIZE {
            return Err(QueueError::Memory);
        }
        let mut queue = Self {
            size,
            direction,
            buffer_len,
            layout,
            memory: area,
            iova,
            offered: 0,
            taken: 0,
            held: vec![false; usize::from(size)].into(),
            free: Vec::with_capacity(usize::from(size)),
        };
        queue.reset();
        Ok(queue)
    }

    /// Back to the state of a new queue. The device must have been reset.
    pub fn reset(&mut self) {
        let zeroes = vec![0; self.layout.buffers];
        self.put(0, &zeroes);
        self.offered = 0;
        self.taken = 0;
        self.held.fill(false);
        self.free.clear();
        self.free.extend((0..self.size).rev());
    }

    /// Number of buffers.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where the queue is.
    pub fn addresses(&self) -> QueueAddresses {
        QueueAddresses {
            desc: self.iova,
            driver: self.iova + self.layout.avail as u64,
            device: self.iova + self.layout.used as u64,
        }
    }

    /// How many buffers the device holds.
    pub fn in_flight(&self) -> u16 {
        self.offered.wrapping_sub(self.taken)
    }

    /// Offers every buffer that the device does not hold, for it to fill.
    pub fn offer_all(&mut self) {
        debug_assert_eq!(self.direction, Direction::FromDevice);
        while let Some(id) = self.free.pop() {
            self.offer(id, self.buffer_len);
        }
    }

    /// Copies `parts`, one after the other, into one buffer and offers it.
    pub fn send(&mut self, parts: &[&[u8]]) -> Result<(), QueueError> {
        debug_assert_eq!(self.direction, Direction::ToDevice);
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let room = self.buffer_len as usize;
        if len > room {
            return Err(QueueError::NoRoom { len, room });
        }
        let id = self.free.pop().ok_or(QueueError::Full)?;
        let mut at = self.buffer_offset(id);
        for part in parts {
            self.put(at, part);
            at += part.len();
        }
        self.offer(id, len as u32);
        Ok(())
    }

    /// Takes the next buffer that the device filled: a copy of its bytes. The buffer is offered
    /// again. Afterwards the device should be notified (see [`Virtqueue::wants_notify`]).
    pub fn receive(&mut self) -> Result<Option<Vec<u8>>, QueueError> {
        let Some((id, len)) = self.take()? else {
            return Ok(None);
        };
        if len > self.buffer_len {
            return Err(QueueError::TooLong {
                len,
                room: self.buffer_len,
            });
        }
        let mut bytes = vec![0; len as usize];
        self.get(self.buffer_offset(id), &mut bytes);
        self.offer(id, self.buffer_len);
        Ok(Some(bytes))
    }

    /// Whether the device has returned a buffer that was not taken yet.
    pub fn has_used(&self) -> bool {
        self.used_index() != self.taken
    }

    /// Takes back all buffers that the device is done with, whatever it says about their length;
    /// returns how many.
    pub fn reclaim(&mut self) -> Result<u16, QueueError> {
        let mut count = 0;
        // At most what it can hold: the index alone could keep us here for ever.
        while count < self.size
            && let Some((id, _)) = self.take()?
        {
            self.free.push(id);
            count += 1;
        }
        Ok(count)
    }

    /// Whether the device wants to hear of what was offered (VIRTIO 1.2, 2.7.10: without
    /// EVENT_IDX, which is not negotiated, a flag).
    pub fn wants_notify(&self) -> bool {
        // Pairs with the device's barrier between clearing the flag and reading our index: either
        // it sees the buffer or we see that it wants to be told.
        fence(Ordering::SeqCst);
        self.load(self.layout.used) & USED_NO_NOTIFY == 0
    }

    /// The next used element: its descriptor, no longer held, and the length it claims.
    fn take(&mut self) -> Result<Option<(u16, u32)>, QueueError> {
        let index = self.used_index();
        let ready = index.wrapping_sub(self.taken);
        if ready == 0 {
            return Ok(None);
        }
        if ready > self.in_flight() {
            return Err(QueueError::Index {
                from: self.taken,
                to: index,
            });
        }
        let slot = usize::from(self.taken % self.size);
        let mut element = [0; USED_ELEMENT_LEN];
        self.get(
            self.layout.used + RING_HEAD + slot * USED_ELEMENT_LEN,
            &mut element,
        );
        let [a, b, c, d, e, f, g, h] = element;
        let id = u32::from_le_bytes([a, b, c, d]);
        let len = u32::from_le_bytes([e, f, g, h]);
        let known = u16::try_from(id).ok();
        let held = known.and_then(|id| self.held.get_mut(usize::from(id)));
        let (Some(id), Some(held @ true)) = (known, held) else {
            return Err(QueueError::NotHeld(id));
        };
        *held = false;
        self.taken = self.taken.wrapping_add(1);
        Ok(Some((id, len)))
    }

    /// Gives descriptor `id`, which it does not hold, to the device.
    fn offer(&mut self, id: u16, len: u32) {
        let flags = match self.direction {
            Direction::FromDevice => DESC_WRITE,
            Direction::ToDevice => 0,
        };
        let address = self.iova + self.buffer_offset(id) as u64;
        let mut descriptor = [0; DESCRIPTOR_LEN];
        descriptor[..8].copy_from_slice(&address.to_le_bytes());
        descriptor[8..12].copy_from_slice(&len.to_le_bytes());
        descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
        self.put(usize::from(id) * DESCRIPTOR_LEN, &descriptor);

        let slot = usize::from(self.offered % self.size);
        self.put(self.layout.avail + RING_HEAD + 2 * slot, &id.to_le_bytes());
        if let Some(held) = self.held.get_mut(usize::from(id)) {
            *held = true;
        }
        self.offered = self.offered.wrapping_add(1);
        // Release: descriptor, buffer and ring slot are visible before the index that counts
        // them. Pairs with the device's acquire load of the index.
        let _ = self.memory.slice().store(
            self.offered.to_le(),
            self.layout.avail + RING_INDEX,
            Ordering::Release,
        );
    }

    fn used_index(&self) -> u16 {
        self.load(self.layout.used + RING_INDEX)
    }

    fn buffer_offset(&self, id: u16) -> usize {
        self.layout.buffers + usize::from(id) * self.buffer_len as usize
    }

    /// Acquire: what the device wrote before the index is visible after it.
    fn load(&self, offset: usize) -> u16 {
        self.memory
            .slice()
            .load(offset, Ordering::Acquire)
            .map_or(0, u16::from_le)
    }

    // Offsets below are computed from the size alone, so these two cannot fail.

    fn put(&self, offset: usize, bytes: &[u8]) {
        let done = self.memory.slice().write_slice(bytes, offset);
        debug_assert!(done.is_ok());
    }

    fn get(&self, offset: usize, bytes: &mut [u8]) {
        let done = self.memory.slice().read_slice(bytes, offset);
        debug_assert!(done.is_ok());
    }
}

#[cfg(test)]
mod tests;
