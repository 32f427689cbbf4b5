//! Descriptor chains (VIRTIO 1.2, 2.7.4, 2.7.5 and 2.8.6): from descriptors to checked pieces of
//! memory.
//!
//! What both ring formats have in common of it: what a chain may be made of. How one descriptor
//! leads to the next is the format's. Every descriptor is read once; a chain is good as a whole or
//! leaves no trace.

use std::ops::Range;
use std::sync::Arc;

use vvu::memory::{MemTable, Scatter, VolatileSlice};

use super::RingError;
use super::access::DESC;
use super::pieces::{MAX_PIECES, Pieces, Segments};

/// Most descriptors, and most pieces of memory, of one chain. Linux drivers stay far below; it is
/// the number that other back-ends and the kernel's iovec use.
pub const MAX_CHAIN: usize = 1024;

/// Descriptors read and segments kept for one burst: a chain is only begun while a longest one
/// would still fit. So what a driver can make of us per burst is bounded, whatever its chains
/// look like.
const MAX_WALKED: usize = MAX_PIECES;
/// Chains kept for one burst.
const MAX_CHAINS: usize = 1024;

/// VIRTQ_DESC_F_NEXT (2.7.5, 2.8.13).
pub(super) const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE.
pub(super) const WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT.
pub(super) const INDIRECT: u16 = 4;

/// What makes a descriptor one of several, or not the bytes themselves.
pub(super) const LINKED: u16 = NEXT | INDIRECT;

/// One descriptor of either format, as a private copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Desc {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    /// Index of the next descriptor (split) or id of the buffer (packed).
    pub(super) link: u16,
}

impl Desc {
    /// From the halves that a split ring or its indirect table holds (2.7.5).
    #[inline]
    pub(super) fn split((addr, rest): (u64, u64)) -> Self {
        Self {
            addr,
            len: rest as u32,
            flags: (rest >> 32) as u16,
            link: (rest >> 48) as u16,
        }
    }

    /// From the halves that a packed ring or its indirect table holds (2.8.13).
    #[inline]
    pub(super) fn packed((addr, rest): (u64, u64)) -> Self {
        Self {
            addr,
            len: rest as u32,
            link: (rest >> 32) as u16,
            flags: (rest >> 48) as u16,
        }
    }
}

/// A chain taken from a ring, all of it checked.
#[derive(Debug, Clone, Copy)]
pub struct Chain {
    id: u16,
    /// Descriptors of the ring itself: what a packed ring skips.
    slots: u16,
    readable: u16,
    writable: u16,
    first: u32,
    read_len: u32,
    write_len: u32,
}

impl Chain {
    const NONE: Self = Self {
        id: 0,
        slots: 0,
        readable: 0,
        writable: 0,
        first: 0,
        read_len: 0,
        write_len: 0,
    };

    /// Index of the first descriptor (split) or id of the buffer (packed).
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Descriptors of the ring itself that it takes.
    pub(super) fn slots(&self) -> u16 {
        self.slots
    }

    /// Bytes that the driver gives us.
    #[inline]
    pub fn read_len(&self) -> u32 {
        self.read_len
    }

    /// Bytes that we may write.
    #[inline]
    pub fn write_len(&self) -> u32 {
        self.write_len
    }
}

/// Which bytes of a chain are kept beyond its burst.
#[derive(Debug, Clone, Default)]
pub struct Keep {
    /// Of the device-readable ones: data.
    pub read: Range<u32>,
    /// Of the device-writable ones: data.
    pub write: Range<u32>,
    /// Of the device-writable ones: tail.
    pub tail: Range<u32>,
}

/// The chains of a burst and their pieces. Never grows: allocated once.
#[derive(Debug)]
pub struct Taken {
    list: Box<[Chain; MAX_CHAINS]>,
    /// How many of the list are there.
    len: usize,
    /// How many of them were given back.
    used: usize,
    pieces: Pieces,
    /// Descriptors read for those that have more than one.
    walked: usize,
}

impl Taken {
    pub(super) fn new(memory: Arc<MemTable>) -> Self {
        Self {
            list: Box::new([Chain::NONE; MAX_CHAINS]),
            len: 0,
            used: 0,
            pieces: Pieces::new(memory),
            walked: 0,
        }
    }

    /// Chains not yet given back, oldest first.
    #[inline]
    pub fn chains(&self) -> &[Chain] {
        self.list.get(self.used..self.len).unwrap_or(&[])
    }

    /// Whether no burst has begun.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The last `chains` of them.
    pub(super) fn last(&self, chains: usize) -> &[Chain] {
        let all = self.chains();
        all.get(all.len().saturating_sub(chains)..).unwrap_or(&[])
    }

    /// The next `chains` count as given back.
    #[inline]
    pub(super) fn skip(&mut self, chains: usize) {
        self.used += chains;
    }

    /// How many were given back.
    #[inline]
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Forgets all chains.
    #[inline]
    pub(super) fn clear(&mut self) {
        self.len = 0;
        self.used = 0;
        self.walked = 0;
        self.pieces.truncate(0);
    }

    /// Another memory; the chains are forgotten. Returns the old memory.
    pub(super) fn set_memory(&mut self, memory: Arc<MemTable>) -> Arc<MemTable> {
        self.clear();
        self.pieces.replace(memory)
    }

    /// The device-readable bytes of `chain`.
    #[inline]
    pub fn readable(&self, chain: &Chain) -> Segments<'_> {
        let first = chain.first as usize;
        self.pieces.get(first..first + usize::from(chain.readable))
    }

    /// The device-writable bytes of `chain`.
    #[inline]
    pub fn writable(&self, chain: &Chain) -> Segments<'_> {
        let first = chain.first as usize + usize::from(chain.readable);
        self.pieces.get(first..first + usize::from(chain.writable))
    }

    /// The device-readable bytes of `chain`, if they are in one piece.
    #[inline]
    pub fn readable_whole(&self, chain: &Chain) -> Option<VolatileSlice<'_>> {
        if chain.readable != 1 {
            return None;
        }
        self.pieces.one(chain.first as usize)
    }

    /// The device-writable bytes of `chain`, if they are in one piece.
    #[inline]
    pub fn writable_whole(&self, chain: &Chain) -> Option<VolatileSlice<'_>> {
        if chain.writable != 1 {
            return None;
        }
        self.pieces
            .one(chain.first as usize + usize::from(chain.readable))
    }

    /// Puts bytes of `chain` into `into`, which forgets what it had, and keeps them mapped.
    #[inline]
    pub fn keep(&self, chain: &Chain, what: Keep, into: &mut Scatter) {
        let first = chain.first as usize;
        let middle = first + usize::from(chain.readable);
        let end = middle + usize::from(chain.writable);
        let pieces = &self.pieces;
        pieces.begin_keep(into);
        pieces.keep(first..middle, what.read, false, into);
        pieces.keep(middle..end, what.write, false, into);
        pieces.keep(middle..end, what.tail, true, into);
    }

    /// The last `chains` were not taken, after all.
    pub(super) fn drop_last(&mut self, chains: usize) {
        self.len = self.len.saturating_sub(chains).max(self.used);
    }

    /// Says that the bytes at guest address `addr` will be written soon.
    #[inline]
    pub(super) fn prefetch(&self, addr: u64) {
        self.pieces.prefetch(addr);
    }

    /// How many more chains may be begun.
    #[inline]
    pub(super) fn room(&self) -> usize {
        MAX_CHAINS - self.len
    }

    /// Adds up to `most` chains of one descriptor of the ring itself, all `writable` or none:
    /// `next` has their ids, addresses and lengths, the first of them for 0. Returns how many
    /// there were before the end, or before one whose bytes are elsewhere than the last ones.
    #[inline]
    pub(super) fn add_simple(
        &mut self,
        most: usize,
        writable: bool,
        mut next: impl FnMut(usize) -> Option<(u16, u64, u32)>,
    ) -> usize {
        let first = self.pieces.len() as u32;
        let places = self.list.get_mut(self.len..).unwrap_or(&mut []);
        let most = most.min(places.len());
        let added = self.pieces.add_near(most, writable, |n| {
            let (id, addr, len) = next(n)?;
            *places.get_mut(n)? = Chain {
                id,
                slots: 1,
                readable: u16::from(!writable),
                writable: u16::from(writable),
                first: first + n as u32,
                read_len: if writable { 0 } else { len },
                write_len: if writable { len } else { 0 },
            };
            Some((addr, len))
        });
        self.len += added;
        added
    }

    /// Begins a chain, if the longest one possible still fits.
    pub(super) fn begin(&mut self, head: u16) -> Option<Walk<'_>> {
        let most = self.pieces.len().max(self.len + self.walked);
        if self.room() == 0 || most > MAX_WALKED - MAX_CHAIN {
            return None;
        }
        let first = self.pieces.len();
        Some(Walk {
            chain: Chain {
                id: head,
                first: first as u32,
                ..Chain::NONE
            },
            taken: self,
            walked: 0,
        })
    }
}

/// A chain on its way into [`Taken`]; dropped before [`Walk::end`], it leaves no trace.
pub(super) struct Walk<'t> {
    taken: &'t mut Taken,
    chain: Chain,
    /// Descriptors read so far.
    walked: usize,
}

impl Walk<'_> {
    /// Adds a descriptor's bytes to the chain. One without bytes is allowed and adds nothing;
    /// the bound on the number of descriptors holds all the same.
    pub(super) fn push(&mut self, desc: Desc) -> Result<(), RingError> {
        let head = self.chain.id;
        let too_long = RingError::TooLong {
            head,
            limit: MAX_CHAIN,
        };
        if self.walked >= MAX_CHAIN {
            return Err(too_long);
        }
        self.walked += 1;
        let writable = desc.flags & WRITE != 0;
        if !writable && self.chain.writable > 0 {
            return Err(RingError::Order { head });
        }
        let (sum, count) = if writable {
            (&mut self.chain.write_len, &mut self.chain.writable)
        } else {
            (&mut self.chain.read_len, &mut self.chain.readable)
        };
        *sum = sum.checked_add(desc.len).ok_or(RingError::Bytes { head })?;
        let unmapped = RingError::Unmapped {
            addr: desc.addr,
            len: desc.len,
        };
        let pieces = &mut self.taken.pieces;
        let (mut addr, mut left) = (desc.addr, desc.len as usize);
        while left > 0 {
            if pieces.len() - self.chain.first as usize >= MAX_CHAIN {
                return Err(too_long);
            }
            let rest = (addr, left as u32);
            if pieces.add_near(1, writable, |_| Some(rest)) == 1 {
                *count += 1;
                return Ok(());
            }
            let added = pieces.add(addr, left).ok_or(unmapped)?;
            *count += 1;
            left -= added;
            if left > 0 {
                addr = addr.checked_add(added as u64).ok_or(unmapped)?;
            }
        }
        Ok(())
    }

    /// How many descriptors the indirect table has that `outer` names (2.7.5.3, 2.8.7).
    pub(super) fn entries(&self, outer: Desc) -> Result<usize, RingError> {
        let bytes = outer.len as usize;
        let entries = bytes / DESC;
        if entries == 0 || !bytes.is_multiple_of(DESC) || entries > usize::from(u16::MAX) {
            return Err(RingError::IndirectLength { len: outer.len });
        }
        Ok(entries)
    }

    /// A private copy of one entry of the indirect table that `outer` names, wherever its bytes
    /// are.
    pub(super) fn entry(&self, outer: Desc, index: u16) -> Result<(u64, u64), RingError> {
        let mut bytes = [0; DESC];
        outer
            .addr
            .checked_add(DESC as u64 * u64::from(index))
            .and_then(|addr| self.taken.pieces.read(addr, &mut bytes))
            .ok_or(RingError::Unmapped {
                addr: outer.addr,
                len: outer.len,
            })?;
        let all = u128::from_le_bytes(bytes);
        Ok((all as u64, (all >> 64) as u64))
    }

    /// The chain has an indirect table: one descriptor more was read for it.
    pub(super) fn count_table(&mut self) {
        self.taken.walked += 1;
    }

    /// Descriptors read so far.
    pub(super) fn walked(&self) -> usize {
        self.walked
    }

    /// The chain is good. `id` names it and `slots` descriptors of the ring are its.
    pub(super) fn end(mut self, id: u16, slots: usize) {
        self.chain.id = id;
        self.chain.slots = slots as u16;
        let taken = &mut *self.taken;
        taken.walked += self.walked;
        // There is a place: `begin` saw to it.
        if let Some(place) = taken.list.get_mut(taken.len) {
            *place = self.chain;
            taken.len += 1;
            // There is nothing to take back now.
            self.chain.first = taken.pieces.len() as u32;
        }
    }
}

impl Drop for Walk<'_> {
    fn drop(&mut self) {
        self.taken.pieces.truncate(self.chain.first as usize);
    }
}
