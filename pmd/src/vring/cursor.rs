//! Places in a packed ring, and what its descriptors' flags say there (VIRTIO 1.2, 2.8.1).

use super::inflight::Place;

/// VIRTQ_DESC_F_AVAIL (2.8.1).
pub(super) const AVAIL: u16 = 1 << 7;
/// VIRTQ_DESC_F_USED (2.8.1).
pub(super) const USED: u16 = 1 << 15;

/// A place in the ring and its wrap counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) index: u16,
    pub(super) wrap: bool,
}

impl Cursor {
    /// From a base or an event's offset: index in bits 0 to 14, wrap counter in bit 15.
    pub(super) fn from_bits(bits: u16) -> Self {
        Self {
            index: bits & 0x7fff,
            wrap: bits & 0x8000 != 0,
        }
    }

    pub(super) fn bits(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    pub(super) fn place(self) -> Place {
        (self.index, self.wrap)
    }

    pub(super) fn from_place((index, wrap): Place) -> Self {
        Self { index, wrap }
    }

    /// `slots` further; at most once round.
    #[inline]
    pub(super) fn forward(&mut self, slots: u16, size: u16) {
        self.index += slots;
        if self.index >= size {
            self.index -= size;
            self.wrap = !self.wrap;
        }
    }

    /// `slots` back; at most once round.
    #[inline]
    pub(super) fn back(&mut self, slots: u16, size: u16) {
        if self.index < slots {
            self.index += size;
            self.wrap = !self.wrap;
        }
        self.index -= slots;
    }

    /// Slots from `behind` to here; at most once round.
    #[inline]
    pub(super) fn ahead_of(self, behind: Self, size: u16) -> u16 {
        let slots = self.index.wrapping_sub(behind.index);
        if self.wrap == behind.wrap {
            slots
        } else {
            slots.wrapping_add(size)
        }
    }

    /// Which of the flags [`AVAIL`] and [`USED`] the driver sets here to make a descriptor available.
    #[inline]
    pub(super) fn available(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }

    /// Whether flags found here mean that the driver made the descriptor available.
    #[inline]
    pub(super) fn is_available(self, flags: u16) -> bool {
        flags & (AVAIL | USED) == self.available()
    }
}
