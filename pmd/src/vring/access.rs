//! The only raw access to the parts of a ring (VIRTIO 1.2, 2.7.5 to 2.7.8 and 2.8.13, 2.8.14), and
//! to its region of an in-flight buffer.
//!
//! Place and alignment are checked once, when a [`SplitMem`] or a [`PackedMem`] is made; after that
//! an access cannot fail and costs one load or store. This file knows layouts and orderings; it
//! does not know what any number means or whether it is sane.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use vvu::memory::{Area, copy};
use vvu::virtio::RingAreas;

use super::SetupError;
#[cfg(test)]
use super::inflight::killing::about_to_store;

/// Where a test may end us: before each store that others can see.
#[cfg(not(test))]
#[inline(always)]
fn about_to_store() {}

/// Size of a descriptor of either format.
pub(super) const DESC: usize = 16;

/// One part of a ring: checked bytes.
#[derive(Debug, Clone, Copy)]
struct Part(NonNull<u8>);

impl Part {
    /// Checks that `area` holds `needed` bytes aligned to `align`.
    fn new(
        part: &'static str,
        area: &Area,
        align: usize,
        needed: usize,
    ) -> Result<Self, SetupError> {
        let error = SetupError::Area {
            part,
            len: area.len(),
            needed,
            align,
        };
        if area.len() < needed || !area.address().is_multiple_of(align) {
            return Err(error);
        }
        NonNull::new(area.slice().ptr_guard_mut().as_ptr())
            .map(Self)
            .ok_or(error)
    }

    /// Says that what is at `offset` will be written soon.
    #[inline]
    fn prefetch_write(self, offset: usize) {
        copy::prefetch_write(self.at(offset));
    }

    /// A place in the part, as an atomic integer's address.
    #[inline]
    fn at<T>(self, offset: usize) -> *mut T {
        self.0.as_ptr().wrapping_add(offset).cast()
    }
}

/// The three parts of a split ring.
#[derive(Debug)]
pub(crate) struct SplitMem {
    desc: Part,
    avail: Part,
    used: Part,
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
        Ok(Self {
            desc: Part::new("descriptor table", &areas.desc, 16, DESC * entries)?,
            avail: Part::new("available ring", &areas.driver, 2, 4 + 2 * entries + event)?,
            used: Part::new("used ring", &areas.device, 4, 4 + 8 * entries + event)?,
            size,
            _areas: areas,
        })
    }

    /// Number of entries.
    #[inline]
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    #[inline]
    fn u16_at(&self, part: Part, offset: usize) -> &AtomicU16 {
        // SAFETY: every caller in this impl passes an even offset inside the part (`new` checked
        // the part's length for `size` entries and its alignment of at least 2), and `_areas`
        // keeps it mapped for the borrow. An atomic is the one kind of reference that tolerates
        // a peer's stores.
        unsafe { AtomicU16::from_ptr(part.at(offset)) }
    }

    #[inline]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// The two halves of descriptor `index`: its address, and the rest. `None` if the table has
    /// no such entry.
    #[inline]
    pub(super) fn desc(&self, index: u16) -> Option<(u64, u64)> {
        if index >= self.size {
            return None;
        }
        let offset = DESC * usize::from(index);
        // SAFETY: index < size and the table holds size * 16 bytes at an address aligned to 16
        // (`new`), so both halves are inside and aligned to 8; `_areas` keeps them mapped.
        let (addr, rest) = unsafe {
            (
                AtomicU64::from_ptr(self.desc.at(offset)),
                AtomicU64::from_ptr(self.desc.at(offset + 8)),
            )
        };
        Some((
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
        about_to_store();
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
        about_to_store();
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
                AtomicU32::from_ptr(self.used.at(offset)),
                AtomicU32::from_ptr(self.used.at(offset + 4)),
            )
        };
        about_to_store();
        id.store(u32::from(head).to_le(), Ordering::Relaxed);
        about_to_store();
        length.store(len.to_le(), Ordering::Relaxed);
    }

    /// Says that the entry in place `index` (modulo size) of the used ring will be written soon.
    #[inline]
    pub(super) fn prefetch_used(&self, index: u16) {
        self.used.prefetch_write(4 + 8 * self.slot(index));
    }

    /// Sets avail_event. Only for rings made with `event_idx`.
    pub(super) fn set_avail_event(&self, index: u16) {
        about_to_store();
        let offset = 4 + 8 * usize::from(self.size);
        self.u16_at(self.used, offset)
            .store(index.to_le(), Ordering::Relaxed);
    }
}

/// The three parts of a packed ring: descriptors, and the event suppression structures of driver
/// and device.
#[derive(Debug)]
pub(crate) struct PackedMem {
    desc: Part,
    driver: Part,
    device: Part,
    size: u16,
    /// Keeps the bytes mapped.
    _areas: RingAreas,
}

// SAFETY: as for `SplitMem`.
unsafe impl Send for PackedMem {}

impl PackedMem {
    /// Checks that `areas` hold a ring of `size` entries, aligned as 2.8.10 demands.
    pub(super) fn new(areas: RingAreas, size: u16) -> Result<Self, SetupError> {
        if size == 0 || size > super::MAX_SIZE {
            return Err(SetupError::Size(size));
        }
        let entries = usize::from(size);
        Ok(Self {
            desc: Part::new("descriptor ring", &areas.desc, 16, DESC * entries)?,
            driver: Part::new("driver event suppression", &areas.driver, 4, 4)?,
            device: Part::new("device event suppression", &areas.device, 4, 4)?,
            size,
            _areas: areas,
        })
    }

    /// Number of entries.
    #[inline]
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// The two halves of descriptor `index`; `None` if the ring has no such entry.
    #[inline]
    fn halves(&self, index: u16) -> Option<(&AtomicU64, &AtomicU64)> {
        if index >= self.size {
            return None;
        }
        let offset = DESC * usize::from(index);
        // SAFETY: index < size and the ring holds size * 16 bytes at an address aligned to 16
        // (`new`), so both halves are inside and aligned to 8; `_areas` keeps them mapped for the
        // borrow. An atomic is the one kind of reference that tolerates a peer's stores.
        Some(unsafe {
            (
                AtomicU64::from_ptr(self.desc.at(offset)),
                AtomicU64::from_ptr(self.desc.at(offset + 8)),
            )
        })
    }

    /// The two halves of descriptor `index`: its address; its length, id and flags, at one moment.
    /// Acquire: pairs with the driver's barrier before it writes the flags, so that the address
    /// and the rest of the chain are seen.
    #[inline]
    pub(super) fn desc(&self, index: u16) -> Option<(u64, u64)> {
        let (addr, rest) = self.halves(index)?;
        let rest = u64::from_le(rest.load(Ordering::Acquire));
        Some((u64::from_le(addr.load(Ordering::Relaxed)), rest))
    }

    /// Says that descriptor `index` will be written soon.
    #[inline]
    pub(super) fn prefetch(&self, index: u16) {
        self.desc.prefetch_write(DESC * usize::from(index));
    }

    /// Writes length, id and flags of descriptor `index`, which the driver does not look at yet.
    #[inline]
    pub(super) fn set_rest(&self, index: u16, value: u64) {
        about_to_store();
        if let Some((_, rest)) = self.halves(index) {
            rest.store(value.to_le(), Ordering::Relaxed);
        }
    }

    /// The same for the descriptor that the driver looks at. Release: pairs with the driver's
    /// barrier after it reads the flags, so that later descriptors and the data are seen.
    #[inline]
    pub(super) fn publish_rest(&self, index: u16, value: u64) {
        about_to_store();
        if let Some((_, rest)) = self.halves(index) {
            rest.store(value.to_le(), Ordering::Release);
        }
    }

    fn event(&self, part: Part) -> &AtomicU32 {
        // SAFETY: both event parts hold 4 bytes aligned to 4 (`new`); `_areas` keeps them mapped
        // for the borrow.
        unsafe { AtomicU32::from_ptr(part.at(0)) }
    }

    /// What the driver wants to be told: offset and wrap counter in the low half, flags above.
    pub(super) fn driver_event(&self) -> u32 {
        u32::from_le(self.event(self.driver).load(Ordering::Relaxed))
    }

    /// What we want to be told, in the same form.
    pub(super) fn set_device_event(&self, event: u32) {
        about_to_store();
        self.event(self.device)
            .store(event.to_le(), Ordering::Relaxed);
    }
}

/// A ring's region of an in-flight buffer: words of 64 bits, some of which are used in parts.
///
/// Each store is a Release: should this process be killed at one, all stores before it have been
/// made, and none behind it.
#[derive(Debug)]
pub(super) struct RegionMem {
    part: Part,
    len: usize,
    /// Keeps the bytes mapped.
    _area: Area,
}

// SAFETY: as for `SplitMem`.
unsafe impl Send for RegionMem {}

impl RegionMem {
    /// Checks that `area` holds `len` bytes, aligned to what is stored there at once.
    pub(super) fn new(area: Area, len: usize) -> Result<Self, SetupError> {
        Ok(Self {
            part: Part::new("in-flight region", &area, 8, len)?,
            len,
            _area: area,
        })
    }

    /// Where an integer of `T`'s size is; `None` if that is not inside, or not aligned.
    #[inline]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let end = offset.checked_add(size_of::<T>())?;
        let good = end <= self.len && offset.is_multiple_of(size_of::<T>());
        good.then(|| self.part.at(offset))
    }

    /// The word at `offset`; zero if there is none.
    #[inline]
    pub(super) fn word(&self, offset: usize) -> u64 {
        // SAFETY: `at` has checked place and alignment of 8 bytes in a part aligned to 8 (`new`),
        // which `_area` keeps mapped; an atomic tolerates a peer's stores.
        let word = self.at(offset).map(|at| unsafe { AtomicU64::from_ptr(at) });
        word.map_or(0, |word| u64::from_le(word.load(Ordering::Acquire)))
    }

    /// Writes the word at `offset`.
    #[inline]
    pub(super) fn set_word(&self, offset: usize, value: u64) {
        about_to_store();
        if let Some(at) = self.at(offset) {
            // SAFETY: as for `word`.
            let word = unsafe { AtomicU64::from_ptr(at) };
            word.store(value.to_le(), Ordering::Release);
        }
    }

    /// Writes 16 bits at `offset`.
    #[inline]
    pub(super) fn set_half(&self, offset: usize, value: u16) {
        about_to_store();
        if let Some(at) = self.at(offset) {
            // SAFETY: as for `word`, with 2 bytes.
            let half = unsafe { AtomicU16::from_ptr(at) };
            half.store(value.to_le(), Ordering::Release);
        }
    }

    /// Writes the byte at `offset`.
    #[inline]
    pub(super) fn set_byte(&self, offset: usize, value: u8) {
        about_to_store();
        if let Some(at) = self.at(offset) {
            // SAFETY: as for `word`, with 1 byte.
            let byte = unsafe { AtomicU8::from_ptr(at) };
            byte.store(value, Ordering::Release);
        }
    }
}
