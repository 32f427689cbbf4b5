//! The driver side of one ring, in either format.

use std::collections::VecDeque;

use super::packed::{self, Packed};
use super::split::{self, Split};
use super::{QueueAddresses, QueueError};
use crate::memory::Area;
use crate::pci::DmaMemory;

/// Bytes of a descriptor, in both formats.
pub const DESCRIPTOR_LEN: usize = 16;

/// What was negotiated of a ring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Format {
    /// RING_PACKED: one ring that both sides write.
    pub packed: bool,
    /// EVENT_IDX: wishes to be notified name a place.
    pub event_idx: bool,
    /// IN_ORDER: chains are used in the order in which they were made available.
    pub in_order: bool,
}

/// One piece of a chain, as the device addresses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Where it is.
    pub address: u64,
    /// Its length in bytes.
    pub len: u32,
    /// Whether the device may write it (else it may read it).
    pub writable: bool,
}

/// A chain that the device is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Its first descriptor, or in a packed ring its id.
    pub head: u16,
    /// How many bytes the device claims to have written.
    pub len: u32,
}

/// Chains that an IN_ORDER device returned with one element: the oldest ones (VIRTIO 1.2, 2.7.13).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Batch {
    pub(super) left: u16,
    /// What it wrote into the last one; the others are full.
    len: u32,
}

impl Batch {
    /// All of `order` up to `head`, which must be among the first `most`.
    pub(super) fn until(
        order: &VecDeque<u16>,
        head: u16,
        len: u32,
        most: u16,
    ) -> Result<Self, QueueError> {
        let place = order.iter().take(most.into()).position(|one| *one == head);
        let place = place.ok_or(QueueError::NotHeld(head.into()))?;
        Ok(Self {
            left: place as u16 + 1,
            len,
        })
    }

    /// Takes one, with room for `room` bytes; how many were written.
    pub(super) fn next(&mut self, room: u32) -> u32 {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 { self.len } else { room }
    }
}

/// Whether an index that went from `before` to `now` passed `event` (VIRTIO 1.2, 2.7.10).
pub(super) fn passed(before: u16, now: u16, event: u16) -> bool {
    now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
}

/// The driver side of a ring.
///
/// A chain is [pushed](Ring::push), [published](Ring::publish) with what else was pushed, [taken
/// back](Ring::take) when the device is done with it, and then either [pushed
/// again](Ring::again) as it is or [released](Ring::release).
#[derive(Debug)]
pub enum Ring {
    /// Descriptor table, available ring and used ring.
    Split(Split),
    /// All in one.
    Packed(Packed),
}

/// The same of whichever it is.
macro_rules! either {
    ($self:ident, $ring:ident => $does:expr) => {
        match $self {
            Ring::Split($ring) => $does,
            Ring::Packed($ring) => $does,
        }
    };
}

impl Ring {
    /// Bytes of memory for a ring of `size` descriptors, in either format.
    pub fn bytes(size: u16) -> usize {
        Split::bytes(size).max(Packed::bytes(size))
    }

    /// A ring of `size` descriptors in `memory` from `offset` on (a multiple of 16). A split ring
    /// has a power of two of them.
    pub fn new(
        memory: &DmaMemory,
        offset: usize,
        size: u16,
        format: Format,
    ) -> Result<Self, QueueError> {
        Ok(match format.packed {
            false => Self::Split(Split::new(memory, offset, size, format)?),
            true => Self::Packed(Packed::new(memory, offset, size, format)?),
        })
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        either!(self, ring => ring.size())
    }

    /// Where the ring is.
    pub fn addresses(&self) -> QueueAddresses {
        either!(self, ring => ring.addresses())
    }

    /// The ring's bytes: for those who want to spoil it.
    pub fn memory(&self) -> &Area {
        either!(self, ring => ring.memory())
    }

    /// Gets ready for a device that knows nothing of what happened before: where it goes on, as
    /// SET_VRING_BASE says it. Chains that were not returned may come to the device again.
    pub fn resume(&mut self) -> Result<u32, QueueError> {
        either!(self, ring => ring.resume())
    }

    /// Where a device goes on that has its predecessor's notes of what it has not returned: the
    /// ring stays as it is.
    pub fn stands_at(&mut self) -> Result<u32, QueueError> {
        match self {
            Self::Split(ring) => ring.resume(),
            Self::Packed(ring) => ring.stands_at(),
        }
    }

    /// Before [`Ring::resume`]: says once more what the device has, for one that learns it from
    /// the ring alone.
    pub fn offer_again(&mut self) -> Result<(), QueueError> {
        match self {
            Self::Split(ring) => ring.offer_again(),
            // There, resuming writes all anew.
            Self::Packed(_) => Ok(()),
        }
    }

    /// Where a device that stops can be, as GET_VRING_BASE says it: behind what it returned, up to
    /// what it was given.
    pub fn bounds(&self) -> Result<(u16, u16), QueueError> {
        either!(self, ring => ring.bounds())
    }

    /// Whether a device can have stopped at `base`.
    pub fn can_stop_at(&self, base: u32) -> Result<bool, QueueError> {
        either!(self, ring => ring.can_stop_at(base))
    }

    /// Chains that were published and not yet taken back.
    pub fn in_flight(&self) -> u16 {
        either!(self, ring => ring.in_flight())
    }

    /// Descriptors of no chain.
    pub fn free(&self) -> usize {
        either!(self, ring => ring.free())
    }

    /// An entry of an indirect table, as memory has it; in a split ring it leads to `next`.
    pub fn table_entry(&self, buffer: &Buffer, next: Option<u16>) -> [u8; DESCRIPTOR_LEN] {
        match self {
            Self::Split(_) => split::of_buffer(buffer, next),
            Self::Packed(_) => packed::of_buffer(buffer),
        }
    }

    /// Adds a chain and returns its head, or id.
    pub fn push(&mut self, chain: &[Buffer]) -> Result<u16, QueueError> {
        either!(self, ring => ring.push(chain))
    }

    /// Adds a chain whose `count` descriptors are a table of their own at `address`, and returns
    /// its head, or id.
    pub fn push_indirect(&mut self, address: u64, count: u16) -> Result<u16, QueueError> {
        either!(self, ring => ring.push_indirect(address, count))
    }

    /// Adds the chain `head`, which was taken back, once more as it is.
    pub fn again(&mut self, head: u16) {
        either!(self, ring => ring.again(head))
    }

    /// Forgets the chain `head`, which was taken back: its descriptors are free.
    pub fn release(&mut self, head: u16) {
        either!(self, ring => ring.release(head))
    }

    /// Publishes all that was pushed. Returns whether the device wants to be notified.
    pub fn publish(&mut self) -> bool {
        either!(self, ring => ring.publish())
    }

    /// Whether the device has returned a chain that was not taken yet.
    pub fn has_used(&self) -> bool {
        either!(self, ring => ring.has_used())
    }

    /// The next chain that the device is done with. It is ours until it is pushed again or
    /// released.
    #[inline]
    pub fn take(&mut self) -> Result<Option<Used>, QueueError> {
        either!(self, ring => ring.take())
    }

    /// Asks to be notified when the next chain is returned. Returns whether there is one already.
    pub fn enable_calls(&mut self) -> bool {
        either!(self, ring => ring.enable_calls())
    }

    /// Asks not to be notified. A split ring with event indices has no such wish: one
    /// notification may still come.
    pub fn disable_calls(&mut self) {
        either!(self, ring => ring.disable_calls())
    }
}
