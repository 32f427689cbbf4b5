//! What the formats of rings have to do in their own way: cursors, and who wants to be told what.

use super::chain::{Chain, Taken};
use super::{RingError, SetupError};
use vvu::memory::Area;
use vvu::virtio::RingAreas;

/// Chains taken before the driver's next mistake, and that mistake.
pub(crate) type Failed = (usize, RingError);

/// What is done the same way for all chains of a burst. The burst functions are written once and
/// compiled for each format.
pub(crate) trait Format: Sized {
    /// The places of a ring in memory, checked.
    type Mem;

    /// Checks that `areas` hold a ring of `size` entries with `features`.
    fn mem(areas: RingAreas, size: u16, features: u64) -> Result<Self::Mem, SetupError>;

    /// Begins at `base`, in the form of [`Vring::base`](vvu::virtio::Vring::base), or where
    /// `inflight` says that the ring was left.
    fn new(
        mem: Self::Mem,
        base: u32,
        features: u64,
        inflight: Option<Area>,
    ) -> Result<Self, SetupError>;

    /// Whether book is kept of what is in flight.
    fn keeps_book(&self) -> bool;

    /// As [`Format::take`], for rings that keep book: what was in flight when the ring was left
    /// comes first.
    fn take_noted(&mut self, max: usize, taken: &mut Taken) -> Result<usize, Failed>;

    /// Notes, if book is kept, that `chain` goes back when the driver is shown something next.
    fn note_used(&mut self, chain: &Chain);

    /// Says that the next `chains` will be taken, written and given back soon.
    fn expect(&self, chains: usize);

    /// Where the bytes of the next chain begin, if there is one and that can be told at once.
    fn next(&self) -> Option<u64>;

    /// Takes up to `max` chains more and returns how many.
    fn take(&mut self, max: usize, taken: &mut Taken) -> Result<usize, Failed>;

    /// Takes back that `chains`, the last ones, were taken.
    fn untake(&mut self, chains: &[Chain]);

    /// Gives back `chains`, unpublished, as long as `written` says how many bytes of one were
    /// written. Returns how many were given back.
    fn give_back(&mut self, chains: &[Chain], written: impl FnMut(&Chain) -> Option<u32>) -> usize;

    /// Gives back `chains`, nothing of them written, unpublished.
    fn give_back_read(&mut self, chains: &[Chain]);

    /// Entries of the ring that were given back since the driver was shown something.
    fn unpublished(&self) -> u16;

    /// Shows the driver what was given back. False if there was nothing.
    fn publish(&mut self) -> bool;

    /// Whether the driver wants to be told of what was published since the last time it was
    /// asked (2.7.7.2 and 2.8.10).
    fn needs_call(&mut self) -> bool;

    /// Asks the driver for no kicks.
    fn disable_kicks(&mut self);

    /// Asks the driver for a kick at the next chain. True if there is one already.
    fn enable_kicks(&mut self) -> bool;

    /// Number of entries.
    fn size(&self) -> u16;

    /// Where the ring would go on, in the form of [`Vring::base`](vvu::virtio::Vring::base).
    fn base(&self) -> u32;

    /// Whether chains that were in flight when the ring was left are still to be taken again.
    fn is_resuming(&self) -> bool;

    /// The same ring elsewhere in memory. Returns the old place.
    fn replace_mem(&mut self, mem: Self::Mem) -> Self::Mem;
}

/// Whether going from `old` to `new` passes `event` (vring_need_event, 2.7.7.2 and 2.7.10.1).
pub(super) fn crossed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
