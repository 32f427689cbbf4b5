//! The pieces of a front-end's memory that the chains of a burst name.
//!
//! An address is looked up and bounded once, when its piece is added; after that an access cannot
//! fail.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;

use vvu::memory::{MemTable, Scatter, VolatileSlice, copy};

/// Most pieces of the chains of one burst.
pub(super) const MAX_PIECES: usize = 2048;

/// Bytes of a line of a cache.
const LINE: usize = 64;

/// Says that what begins at `place` will be written soon: the header of a frame often has a line
/// by itself.
#[inline]
fn prefetch_write(place: *const u8) {
    copy::prefetch_write(place);
    copy::prefetch_write(place.wrapping_add(LINE));
}

/// A piece of a front-end's memory with its lifetime erased.
#[derive(Debug, Clone, Copy)]
struct Piece {
    start: NonNull<u8>,
    len: usize,
}

impl Piece {
    const NONE: Self = Self {
        start: NonNull::dangling(),
        len: 0,
    };
}

/// The region that an address was found in last: nearly always the next one's, too.
#[derive(Debug, Clone, Copy)]
struct Recent {
    guest_addr: u64,
    /// Zero before the first address.
    len: u64,
    start: NonNull<u8>,
}

impl Recent {
    const NONE: Self = Self {
        guest_addr: 0,
        len: 0,
        start: NonNull::dangling(),
    };
}

/// A front-end's memory, and the pieces of it that the chains of a burst name.
///
/// Each of the first `len` pieces was cut from `memory`, which leaves only through [`Pieces::replace`], and that
/// forgets the pieces and the recent region first: so both always point to mapped bytes.
#[derive(Debug)]
pub(super) struct Pieces {
    memory: Arc<MemTable>,
    recent: Recent,
    list: Box<[Piece; MAX_PIECES]>,
    /// How many of the list are there.
    len: usize,
}

// SAFETY: the pointers are addresses. Only `Segments` turns them into an access, on behalf of the
// `Pieces` that holds the mapping too and moves with it; there is no thread-bound state.
unsafe impl Send for Pieces {}

impl Pieces {
    /// No pieces of `memory`.
    pub(super) fn new(memory: Arc<MemTable>) -> Self {
        Self {
            memory,
            recent: Recent::NONE,
            list: Box::new([Piece::NONE; MAX_PIECES]),
            len: 0,
        }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(super) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Adds the bytes that `next` names, up to `most` times, as long as it does and they are where
    /// bytes were found last: addresses and lengths, the first of them for 0. Returns how many
    /// were added. Tells the processor that they will be wanted, for writing if `writable`.
    #[inline]
    pub(super) fn add_near(
        &mut self,
        most: usize,
        writable: bool,
        mut next: impl FnMut(usize) -> Option<(u64, u32)>,
    ) -> usize {
        let recent = self.recent;
        let end = self.list.len().min(self.len.saturating_add(most));
        let mut added = 0;
        for place in self.list.get_mut(self.len..end).unwrap_or(&mut []) {
            let Some((addr, len)) = next(added) else {
                break;
            };
            let offset = addr.wrapping_sub(recent.guest_addr);
            let Some(last) = recent.len.checked_sub(u64::from(len)) else {
                break;
            };
            if offset > last || len == 0 {
                break;
            }
            // SAFETY: offset + len is at most recent.len and len is not zero, so offset is less
            // than recent.len, the number of bytes mapped at recent.start.
            let start = unsafe { recent.start.add(offset as usize) };
            if writable {
                prefetch_write(start.as_ptr());
            } else {
                copy::prefetch(start.as_ptr());
            }
            let len = len as usize;
            *place = Piece { start, len };
            added += 1;
        }
        self.len += added;
        added
    }

    /// Says that the bytes at guest address `addr` will be written soon, if they are where bytes
    /// were found last.
    #[inline]
    pub(super) fn prefetch(&self, addr: u64) {
        let Recent {
            guest_addr,
            len,
            start,
        } = self.recent;
        let offset = addr.wrapping_sub(guest_addr);
        if offset < len {
            prefetch_write(start.as_ptr().wrapping_add(offset as usize));
        }
    }

    /// Adds as many of the `len` bytes at guest address `addr` as are in one region, and returns
    /// how many that were. `None` if nothing is mapped there or the list is full.
    pub(super) fn add(&mut self, addr: u64, len: usize) -> Option<usize> {
        let place = self.list.get_mut(self.len)?;
        let region = self.memory.region(addr)?;
        let start = NonNull::new(region.bytes.slice().ptr_guard_mut().as_ptr())?;
        self.recent = Recent {
            guest_addr: region.guest_addr,
            len: region.bytes.len() as u64,
            start,
        };
        let offset = (addr - region.guest_addr) as usize;
        let len = len.min(region.bytes.len() - offset);
        // SAFETY: the region holds `addr`, so offset is less than its length.
        let start = unsafe { start.add(offset) };
        *place = Piece { start, len };
        self.len += 1;
        Some(len)
    }

    /// Copies the bytes at guest address `addr`; `None` unless all of them are mapped.
    pub(super) fn read(&self, mut addr: u64, mut into: &mut [u8]) -> Option<()> {
        while !into.is_empty() {
            let copied = copy::read(self.memory.guest(addr, into.len())?, into);
            into = into.get_mut(copied..)?;
            if !into.is_empty() {
                addr = addr.checked_add(copied as u64)?;
            }
        }
        Some(())
    }

    /// The pieces in `range`.
    #[inline]
    pub(super) fn get(&self, range: std::ops::Range<usize>) -> Segments<'_> {
        Segments {
            pieces: self,
            rest: self.all().get(range).unwrap_or(&[]).iter(),
        }
    }

    /// Piece `index`.
    #[inline]
    pub(super) fn one(&self, index: usize) -> Option<VolatileSlice<'_>> {
        Some(self.slice(self.all().get(index)?))
    }

    #[inline]
    fn all(&self) -> &[Piece] {
        self.list.get(..self.len).unwrap_or(&[])
    }

    #[inline]
    fn slice(&self, piece: &Piece) -> VolatileSlice<'_> {
        // SAFETY: `piece` is one of the first `len` of our list, or a part of one (every caller has
        // it from `all` or has just put it there), so its bytes were cut from a mapping that
        // `memory` keeps, and neither `replace` nor a drop can happen while we are borrowed;
        // everybody reaches those bytes through VolatileSlice.
        unsafe { VolatileSlice::new(piece.start.as_ptr(), piece.len) }
    }

    /// Empties `into` for pieces of this memory.
    #[inline]
    pub(super) fn begin_keep(&self, into: &mut Scatter) {
        into.clear();
        if !into.is_of(&self.memory) {
            // Once for each list after a change of memory.
            *into = Scatter::of_table(Arc::clone(&self.memory));
        }
    }

    /// Adds `bytes` of the pieces in `range` to `into`, to its tail if `tail` says so. Nothing if
    /// [`Pieces::begin_keep`] was not there.
    #[inline]
    pub(super) fn keep(
        &self,
        range: std::ops::Range<usize>,
        bytes: std::ops::Range<u32>,
        tail: bool,
        into: &mut Scatter,
    ) {
        let (mut skip, mut left) = (bytes.start as usize, bytes.len());
        if left == 0 || !into.is_of(&self.memory) {
            return;
        }
        for piece in self.all().get(range).unwrap_or(&[]) {
            if skip >= piece.len {
                skip -= piece.len;
                continue;
            }
            let len = (piece.len - skip).min(left);
            let part = Piece {
                // SAFETY: skip < piece.len, the number of bytes at piece.start.
                start: unsafe { piece.start.add(skip) },
                len,
            };
            // SAFETY: `part` is inside a piece of our list, so `memory`, which is the owner of
            // `into`, keeps it.
            unsafe {
                if tail {
                    into.push_tail(self.slice(&part));
                } else {
                    into.push(self.slice(&part));
                }
            }
            skip = 0;
            left -= len;
            if left == 0 {
                break;
            }
        }
    }

    /// Another memory; the pieces are forgotten. Returns the old memory.
    pub(super) fn replace(&mut self, memory: Arc<MemTable>) -> Arc<MemTable> {
        self.len = 0;
        self.recent = Recent::NONE;
        std::mem::replace(&mut self.memory, memory)
    }
}

/// The bytes of one side of a chain, piece by piece.
#[derive(Debug, Clone)]
pub struct Segments<'m> {
    pieces: &'m Pieces,
    rest: std::slice::Iter<'m, Piece>,
}

impl<'m> Iterator for Segments<'m> {
    type Item = VolatileSlice<'m>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        Some(self.pieces.slice(self.rest.next()?))
    }
}
