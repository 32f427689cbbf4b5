//! The only raw access to a split ring's three parts (VIRTIO 1.2, 2.7.5, 2.7.6, 2.7.8).
//!
//! Place and alignment are checked once, when a [`SplitMem`] is made or a piece is added to [`Pieces`]; after that
//! an access cannot fail and costs one load or store. This file knows layouts and orderings; it
//! does not know what any number means or whether it is sane.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use vvu::memory::{Area, MemTable, VolatileSlice};
use vvu::virtio::RingAreas;

use super::SetupError;

/// One descriptor, as a private copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Desc {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

impl Desc {
    /// Size in memory.
    pub(super) const SIZE: usize = 16;

    /// From the two little-endian halves that memory holds.
    fn from_halves(addr: u64, rest: u64) -> Self {
        Self {
            addr,
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }

    /// From the bytes of an indirect table's entry.
    pub(super) fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        let all = u128::from_le_bytes(bytes);
        Self::from_halves(all as u64, (all >> 64) as u64)
    }
}

/// The three parts of a split ring.
#[derive(Debug)]
pub(super) struct SplitMem {
    desc: NonNull<u8>,
    avail: NonNull<u8>,
    used: NonNull<u8>,
    size: u16,
    /// Keeps the bytes mapped.
    _areas: RingAreas,
}

// SAFETY: the pointers name memory that `_areas` keeps mapped wherever the value lives; there is
// no thread-bound state.
unsafe impl Send for SplitMem {}

impl SplitMem {
    /// Checks that `areas` hold a ring of `size` entries, aligned as 2.7 demands, with the event
    /// fields if `event_idx`.
    pub(super) fn new(areas: RingAreas, size: u16, event_idx: bool) -> Result<Self, SetupError> {
        if !size.is_power_of_two() || size > super::MAX_SIZE {
            return Err(SetupError::Size(size));
        }
        let (entries, event) = (usize::from(size), 2 * usize::from(event_idx));
        let part = |name, area: &Area, align: usize, needed: usize| {
            if area.len() < needed || !area.address().is_multiple_of(align) {
                return Err(SetupError::Area {
                    part: name,
                    len: area.len(),
                    needed,
                    align,
                });
            }
            NonNull::new(area.slice().ptr_guard_mut().as_ptr()).ok_or(SetupError::Size(size))
        };
        Ok(Self {
            desc: part("descriptor table", &areas.desc, 16, 16 * entries)?,
            avail: part("available ring", &areas.driver, 2, 4 + 2 * entries + event)?,
            used: part("used ring", &areas.device, 4, 4 + 8 * entries + event)?,
            size,
            _areas: areas,
        })
    }

    /// Number of entries.
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// A place in one of the parts, as an atomic integer's address.
    fn at<T>(part: NonNull<u8>, offset: usize) -> *mut T {
        part.as_ptr().wrapping_add(offset).cast()
    }

    fn u16_at(&self, part: NonNull<u8>, offset: usize) -> &AtomicU16 {
        // SAFETY: every caller in this file passes an even offset inside the part (`new` checked
        // the part's length for `size` entries and its alignment of at least 2), and `_areas`
        // keeps it mapped for the borrow. An atomic is the one kind of reference that tolerates
        // a peer's stores.
        unsafe { AtomicU16::from_ptr(Self::at(part, offset)) }
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// Descriptor `index`; `None` if the table has no such entry.
    #[inline]
    pub(super) fn desc(&self, index: u16) -> Option<Desc> {
        if index >= self.size {
            return None;
        }
        let offset = Desc::SIZE * usize::from(index);
        // SAFETY: index < size and the table holds size * 16 bytes at an address aligned to 16
        // (`new`), so both halves are inside and aligned to 8; `_areas` keeps them mapped.
        let (addr, rest) = unsafe {
            (
                AtomicU64::from_ptr(Self::at(self.desc, offset)),
                AtomicU64::from_ptr(Self::at(self.desc, offset + 8)),
            )
        };
        Some(Desc::from_halves(
            u64::from_le(addr.load(Ordering::Relaxed)),
            u64::from_le(rest.load(Ordering::Relaxed)),
        ))
    }

    /// The driver's flags.
    pub(super) fn avail_flags(&self) -> u16 {
        u16::from_le(self.u16_at(self.avail, 0).load(Ordering::Relaxed))
    }

    /// The driver's index. Acquire: pairs with the driver's barrier before its store, so that
    /// the entries and descriptors below the index are seen.
    #[inline]
    pub(super) fn avail_idx(&self) -> u16 {
        u16::from_le(self.u16_at(self.avail, 2).load(Ordering::Acquire))
    }

    /// The head that the driver put in place `index` (modulo size).
    #[inline]
    pub(super) fn avail_head(&self, index: u16) -> u16 {
        let offset = 4 + 2 * self.slot(index);
        u16::from_le(self.u16_at(self.avail, offset).load(Ordering::Relaxed))
    }

    /// The driver's used_event. Only for rings made with `event_idx`.
    pub(super) fn used_event(&self) -> u16 {
        let offset = 4 + 2 * usize::from(self.size);
        u16::from_le(self.u16_at(self.avail, offset).load(Ordering::Relaxed))
    }

    /// Our flags.
    pub(super) fn set_used_flags(&self, flags: u16) {
        self.u16_at(self.used, 0)
            .store(flags.to_le(), Ordering::Relaxed);
    }

    /// The used index as memory has it: where a restarted ring goes on.
    pub(super) fn used_idx(&self) -> u16 {
        u16::from_le(self.u16_at(self.used, 2).load(Ordering::Relaxed))
    }

    /// Publishes our index. Release: pairs with the driver's barrier after its load, so that the
    /// entries and the data in the buffers are seen.
    #[inline]
    pub(super) fn publish_used_idx(&self, index: u16) {
        self.u16_at(self.used, 2)
            .store(index.to_le(), Ordering::Release);
    }

    /// Writes the entry in place `index` (modulo size) of the used ring.
    #[inline]
    pub(super) fn set_used(&self, index: u16, head: u16, len: u32) {
        let offset = 4 + 8 * self.slot(index);
        // SAFETY: slot < size and the used ring holds 4 + size * 8 bytes at an address aligned
        // to 4 (`new`), so both words are inside and aligned; `_areas` keeps them mapped.
        let (id, length) = unsafe {
            (
                AtomicU32::from_ptr(Self::at(self.used, offset)),
                AtomicU32::from_ptr(Self::at(self.used, offset + 4)),
            )
        };
        id.store(u32::from(head).to_le(), Ordering::Relaxed);
        length.store(len.to_le(), Ordering::Relaxed);
    }

    /// Sets avail_event. Only for rings made with `event_idx`.
    pub(super) fn set_avail_event(&self, index: u16) {
        let offset = 4 + 8 * usize::from(self.size);
        self.u16_at(self.used, offset)
            .store(index.to_le(), Ordering::Relaxed);
    }
}

/// A piece of a front-end's memory with its lifetime erased.
#[derive(Debug, Clone, Copy)]
struct Piece {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: an address and a length. Only `Segments` turns them into an access, on behalf of the
// `Pieces` that holds the mapping too and moves with it.
unsafe impl Send for Piece {}

/// A front-end's memory, and the pieces of it that the chains of a burst name.
///
/// Every piece was cut from `memory`, which leaves only through [`Pieces::replace`], and that
/// forgets the pieces first: so a piece in the list always points to mapped bytes.
#[derive(Debug)]
pub(super) struct Pieces {
    memory: Arc<MemTable>,
    list: Vec<Piece>,
}

impl Pieces {
    /// Room for `capacity` pieces of `memory`. It never grows.
    pub(super) fn new(memory: Arc<MemTable>, capacity: usize) -> Self {
        Self {
            memory,
            list: Vec::with_capacity(capacity),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.list.truncate(len);
    }

    /// Adds as many of the `len` bytes at guest address `addr` as are in one region, and returns
    /// how many that were. `None` if nothing is mapped there or the list is full.
    #[inline]
    pub(super) fn add(&mut self, addr: u64, len: usize) -> Option<usize> {
        if self.list.len() == self.list.capacity() {
            return None;
        }
        let bytes = self.memory.guest(addr, len)?;
        self.list.push(Piece {
            start: NonNull::new(bytes.ptr_guard_mut().as_ptr())?,
            len: bytes.len(),
        });
        Some(bytes.len())
    }

    /// Copies the bytes at guest address `addr`; `None` unless all of them are mapped.
    pub(super) fn read(&self, mut addr: u64, mut into: &mut [u8]) -> Option<()> {
        while !into.is_empty() {
            let copied = self.memory.guest(addr, into.len())?.copy_to(into);
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
            rest: self.list.get(range).unwrap_or(&[]).iter(),
        }
    }

    /// Another memory; the pieces are forgotten. Returns the old memory.
    pub(super) fn replace(&mut self, memory: Arc<MemTable>) -> Arc<MemTable> {
        self.list.clear();
        std::mem::replace(&mut self.memory, memory)
    }
}

/// The bytes of one side of a chain, piece by piece.
#[derive(Debug, Clone)]
pub struct Segments<'m> {
    rest: std::slice::Iter<'m, Piece>,
}

impl<'m> Iterator for Segments<'m> {
    type Item = VolatileSlice<'m>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.rest.next()?;
        // SAFETY: the iterator borrows the list of a `Pieces` for 'm, so neither `replace` nor a
        // drop can happen meanwhile; by its invariant the bytes were cut from a mapping that it
        // keeps, and everybody reaches those through VolatileSlice.
        Some(unsafe { VolatileSlice::new(piece.start.as_ptr(), piece.len) })
    }
}
