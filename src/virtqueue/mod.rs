//! Virtqueues that we drive (VIRTIO 1.2, 2.7 and 2.8).
//!
//! A [`Ring`] is the driver side of one, split or packed: chains of buffers that live elsewhere. A
//! [`Virtqueue`] is a split one with buffers of its own, one descriptor per chain, as rxq and txq
//! need it. Nothing has to
//! be learnt from memory that the device can write: which descriptors the device holds, and where
//! the indices stand, is kept in private. What the device does write, used ids and lengths, is
//! checked against that. Received bytes are copied out before their buffer is offered again.
//!
//! All access goes through [`Area`]; this room knows nothing of registers, interrupts or of what
//! the buffers contain.

mod packed;
mod ring;
mod split;

pub use packed::Packed;
pub use ring::{Buffer, DESCRIPTOR_LEN, Format, Ring, Used};
pub use split::Split;

use thiserror::Error;
use vm_memory::Bytes;

use crate::memory::Area;
use crate::pci::DmaMemory;

/// Largest queue that VIRTIO allows (2.7).
pub const MAX_SIZE: u16 = 1 << 15;

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

/// A virtqueue with its buffers.
#[derive(Debug)]
pub struct Virtqueue {
    ring: Split,
    direction: Direction,
    buffer_len: u32,
    /// Buffer `i`, which descriptor `i` names for ever.
    buffers: Area,
    /// Where the buffers are for the device.
    iova: u64,
}

impl Virtqueue {
    /// Bytes of DMA memory for a queue of `size` buffers of `buffer_len` bytes.
    pub fn bytes(size: u16, buffer_len: u32) -> usize {
        Self::buffers_offset(size) + usize::from(size) * buffer_len as usize
    }

    /// Buffers start on a page of 4 KiB.
    fn buffers_offset(size: u16) -> usize {
        Split::bytes(size).next_multiple_of(4096)
    }

    /// A queue of `size` buffers, a power of two, in `memory` from `offset` on (a multiple of 16).
    pub fn new(
        memory: &DmaMemory,
        offset: usize,
        size: u16,
        buffer_len: u32,
        direction: Direction,
    ) -> Result<Self, QueueError> {
        let ring = Split::new(memory, offset, size, Format::default())?;
        let lead = Self::buffers_offset(size);
        let len = Self::bytes(size, buffer_len) - lead;
        let at = offset.checked_add(lead).ok_or(QueueError::Memory)?;
        Ok(Self {
            ring,
            direction,
            buffer_len,
            buffers: memory.bytes.sub(at, len).ok_or(QueueError::Memory)?,
            iova: memory.iova + at as u64,
        })
    }

    /// Back to the state of a new queue. The device must have been reset.
    pub fn reset(&mut self) {
        self.ring.reset();
    }

    /// Number of buffers.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Where the queue is.
    pub fn addresses(&self) -> QueueAddresses {
        self.ring.addresses()
    }

    /// How many buffers the device holds.
    pub fn in_flight(&self) -> u16 {
        self.ring.in_flight()
    }

    /// Offers every buffer that the device does not hold, for it to fill.
    pub fn offer_all(&mut self) {
        debug_assert_eq!(self.direction, Direction::FromDevice);
        while let Some(id) = self.ring.next_head() {
            let done = self.ring.push(&[self.buffer(id, self.buffer_len)]);
            debug_assert_eq!(done, Ok(id));
        }
        self.ring.publish();
    }

    /// Copies `parts`, one after the other, into one buffer and offers it.
    pub fn send(&mut self, parts: &[&[u8]]) -> Result<(), QueueError> {
        debug_assert_eq!(self.direction, Direction::ToDevice);
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let room = self.buffer_len as usize;
        if len > room {
            return Err(QueueError::NoRoom { len, room });
        }
        let id = self.ring.next_head().ok_or(QueueError::Full)?;
        let mut at = self.buffer_offset(id);
        for part in parts {
            let done = self.buffers.slice().write_slice(part, at);
            debug_assert!(done.is_ok());
            at += part.len();
        }
        self.ring.push(&[self.buffer(id, len as u32)])?;
        self.ring.publish();
        Ok(())
    }

    /// Takes the next buffer that the device filled: a copy of its bytes. The buffer is offered
    /// again. Afterwards the device should be notified (see [`Virtqueue::wants_notify`]).
    pub fn receive(&mut self) -> Result<Option<Vec<u8>>, QueueError> {
        let Some(Used { head, len }) = self.ring.take()? else {
            return Ok(None);
        };
        if len > self.buffer_len {
            return Err(QueueError::TooLong {
                len,
                room: self.buffer_len,
            });
        }
        let mut bytes = vec![0; len as usize];
        let buffers = self.buffers.slice();
        let done = buffers.read_slice(&mut bytes, self.buffer_offset(head));
        debug_assert!(done.is_ok());
        self.ring.again(head);
        self.ring.publish();
        Ok(Some(bytes))
    }

    /// Whether the device has returned a buffer that was not taken yet.
    pub fn has_used(&self) -> bool {
        self.ring.has_used()
    }

    /// Takes back all buffers that the device is done with, whatever it says about their length;
    /// returns how many.
    pub fn reclaim(&mut self) -> Result<u16, QueueError> {
        let mut count = 0;
        // At most what it can hold: the index alone could keep us here for ever.
        while count < self.size()
            && let Some(used) = self.ring.take()?
        {
            self.ring.release(used.head);
            count += 1;
        }
        Ok(count)
    }

    /// Whether the device wants to hear of what was offered (VIRTIO 1.2, 2.7.10: without
    /// EVENT_IDX, which is not negotiated, a flag).
    pub fn wants_notify(&self) -> bool {
        self.ring.wants_notify(0)
    }

    fn buffer(&self, id: u16, len: u32) -> Buffer {
        Buffer {
            address: self.iova + self.buffer_offset(id) as u64,
            len,
            writable: self.direction == Direction::FromDevice,
        }
    }

    fn buffer_offset(&self, id: u16) -> usize {
        usize::from(id) * self.buffer_len as usize
    }
}

#[cfg(test)]
mod tests;
