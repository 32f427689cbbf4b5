//! Owned mappings and ranges of them.
#![allow(unsafe_code)]

use std::alloc::Layout;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::VolatileSlice;

use super::MemoryError;
use super::fault::{self, Guard};

/// Size of a page, in bytes.
pub fn page_size() -> usize {
    rustix::param::page_size()
}

/// Size of the pages that a file is mapped in: hugetlbfs has its own.
pub fn file_page_size(fd: BorrowedFd<'_>) -> rustix::io::Result<u64> {
    let filesystem = rustix::fs::fstatfs(fd)?;
    let block = u64::try_from(filesystem.f_bsize).unwrap_or(0);
    let page = page_size() as u64;
    match filesystem.f_type == libc::HUGETLBFS_MAGIC {
        true => Ok(block.max(page)),
        false => Ok(page),
    }
}

/// Size of a hugepage of the default size, in bytes; `None` if the kernel has none.
pub fn hugepage_size() -> Option<usize> {
    // The same as long as a kernel runs.
    static SIZE: OnceLock<usize> = OnceLock::new();
    if let Some(size) = SIZE.get() {
        return Some(*size);
    }
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("Hugepagesize:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let size = kib.checked_mul(1024)?;
    Some(*SIZE.get_or_init(|| size))
}

/// Address space that this process owns and another party may write.
///
/// The mapping is undone when the last [`Area`] on it is gone.
#[derive(Debug)]
pub struct Mapping {
    /// First byte asked for; `pages` starts at or below it.
    base: NonNull<u8>,
    /// Bytes asked for, from `base`.
    len: usize,
    /// What the kernel mapped: page-aligned start and length.
    pages: (NonNull<u8>, usize),
    /// For a mapping of a file or device whose bytes may vanish.
    guard: Option<Guard>,
    /// How the hugepage allocator was asked for it, if it was.
    huge: Option<Layout>,
    /// Whether it is behind the BAR of a device, where there are no pages to pin.
    device: bool,
}

// SAFETY: the pointers name address space owned by this value alone and unmapped only by its
// Drop. All access goes through VolatileSlice, which is itself made for memory that others write
// at the same time, so neither moving nor sharing the owner adds a data race.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` from `offset` on, shared, readable and writable. Neither needs to
    /// be page-aligned. The file's size is not looked at: see [`Mapping::of_file`].
    pub fn shared(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<Self, MemoryError> {
        Self::map(fd, offset, len, page_size() as u64, MapFlags::SHARED)
    }

    /// Like [`Mapping::shared`], for a device. Should the device be removed, its bytes turn into
    /// zeroes, as those of a file that shrinks.
    pub fn of_device(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<Self, MemoryError> {
        let mut mapping = Self::shared(fd, offset, len)?;
        mapping.device = true;
        mapping.watch(page_size());
        Ok(mapping)
    }

    /// Outlives the loss of pages of `page` bytes, which the whole mapping consists of.
    fn watch(&mut self, page: usize) {
        let (start, total) = self.pages;
        self.guard = Some(fault::guard(start.as_ptr().addr(), total, page));
    }

    /// Maps whole pages of `page` bytes around the bytes asked for.
    fn map(
        fd: BorrowedFd<'_>,
        offset: u64,
        len: u64,
        page: u64,
        flags: MapFlags,
    ) -> Result<Self, MemoryError> {
        let lead = offset % page;
        let overflow = || MemoryError::Overflow { start: offset, len };
        let total = lead
            .checked_add(len)
            .and_then(|total| total.checked_next_multiple_of(page))
            .and_then(|total| usize::try_from(total).ok())
            .ok_or_else(overflow)?;
        offset.checked_add(len).ok_or_else(overflow)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of ours.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                total,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
                fd,
                offset - lead,
            )
        }
        .map_err(|errno| MemoryError::Map {
            offset,
            len,
            source: errno.into(),
        })?;
        // SAFETY: mmap returned `total` bytes at `start`, and lead + len <= total.
        Ok(unsafe { Self::from_raw(start.cast(), total, lead as usize, len as usize) })
    }

    /// Like [`Mapping::shared`], for a regular or memory file: refuses a range that the file does
    /// not cover, because touching such bytes would raise SIGBUS. Should the file shrink later,
    /// the missing bytes turn into zeroes that nobody else sees, and [`Mapping::is_lost`] says so.
    pub fn of_file(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<Self, MemoryError> {
        Self::file(fd, offset, len, MapFlags::SHARED)
    }

    /// Like [`Mapping::of_file`], for a file that may be read and not written: what is written
    /// here stays here, and from then on hides what others write to the same page.
    pub fn copy_of_file(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<Self, MemoryError> {
        Self::file(fd, offset, len, MapFlags::PRIVATE)
    }

    fn file(
        fd: BorrowedFd<'_>,
        offset: u64,
        len: u64,
        flags: MapFlags,
    ) -> Result<Self, MemoryError> {
        let needed = offset
            .checked_add(len)
            .ok_or(MemoryError::Overflow { start: offset, len })?;
        let failed = |errno: rustix::io::Errno| MemoryError::Map {
            offset,
            len,
            source: errno.into(),
        };
        let file = rustix::fs::fstat(fd).map_err(failed)?.st_size as u64;
        if file < needed {
            return Err(MemoryError::ShortFile { file, needed });
        }
        let page = file_page_size(fd).map_err(failed)?;
        let mut mapping = Self::map(fd, offset, len, page, flags)?;
        mapping.watch(page as usize);
        Ok(mapping)
    }

    /// Maps `len` bytes of zeroed private memory.
    pub fn anonymous(len: usize) -> Result<Self, MemoryError> {
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of ours.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .map_err(|errno| MemoryError::Map {
            offset: 0,
            len: len as u64,
            source: errno.into(),
        })?;
        // SAFETY: mmap returned `len` bytes at `start`.
        Ok(unsafe { Self::from_raw(start.cast(), len, 0, len) })
    }

    /// Reserves address space for `len` bytes, aligned to `align` (a power of two, at least a
    /// page). It holds zeroes, and costs no memory until it is written.
    pub(super) fn reserve(len: usize, align: usize) -> Result<Self, MemoryError> {
        let total = len.checked_add(align).ok_or(MemoryError::Overflow {
            start: 0,
            len: len as u64,
        })?;
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of ours.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                total,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .map_err(|errno| MemoryError::Map {
            offset: 0,
            len: len as u64,
            source: errno.into(),
        })?;
        let lead = start.addr().wrapping_neg() & (align - 1);
        // SAFETY: mmap returned `total` bytes at `start`, and lead < align.
        Ok(unsafe { Self::from_raw(start.cast(), total, lead, len) })
    }

    /// Maps `len` bytes of zeroed private memory in hugepages. There may be none left.
    pub fn huge(len: usize) -> Result<Self, MemoryError> {
        let none = || MemoryError::NoHugepages(len);
        // The allocator panics where the kernel has no hugepages, and rounds up to whole ones.
        let size = hugepage_size().ok_or_else(none)?;
        let total = len.checked_next_multiple_of(size).ok_or_else(none)?;
        let layout = Layout::from_size_align(total, page_size()).map_err(|_| none())?;
        if total == 0 {
            return Err(none());
        }
        // SAFETY: the layout is not empty.
        let start = unsafe { hugepage_rs::alloc(layout) };
        if start.is_null() {
            return Err(none());
        }
        // SAFETY: the allocator returned a fresh mapping of `total` bytes at `start`; who undoes
        // it is said by `huge`.
        let mut mapping = unsafe { Self::from_raw(start, total, 0, len) };
        mapping.huge = Some(layout);
        Ok(mapping)
    }

    /// # Safety
    /// `start` must be a mapping of `total` bytes that nobody else unmaps, `lead + len <= total`.
    unsafe fn from_raw(start: *mut u8, total: usize, lead: usize, len: usize) -> Self {
        // SAFETY: a successful mmap without MAP_FIXED at address 0 never returns null, and
        // lead <= total keeps the sum inside the mapping (both by contract).
        let (pages, base) = unsafe {
            (
                NonNull::new_unchecked(start),
                NonNull::new_unchecked(start.add(lead)),
            )
        };
        Self {
            base,
            len,
            pages: (pages, total),
            guard: None,
            huge: None,
            device: false,
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the mapping has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether bytes went missing because the file behind the mapping shrank.
    pub fn is_lost(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::is_lost)
    }

    /// Whether the kernel can pin its pages, as direct I/O needs. What is behind a BAR cannot be.
    pub fn is_pinnable(&self) -> bool {
        !self.device
    }

    /// Address of the first byte in this process: an identity for the kernel (a DMA map, a
    /// registered buffer), never to be dereferenced.
    pub fn address(&self) -> usize {
        self.base.as_ptr().addr()
    }

    /// All bytes.
    pub fn slice(&self) -> VolatileSlice<'_> {
        // SAFETY: base and len lie inside a mapping that lives as long as `self`, and everybody
        // reaches it through VolatileSlice or from outside this process.
        unsafe { VolatileSlice::new(self.base.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // First, so that nothing is put in the place of what comes here next.
        self.guard = None;
        let (start, len) = self.pages;
        if let Some(layout) = self.huge {
            // SAFETY: the pointer and the layout are those of the allocation, which is undone
            // only here; nobody can reach the bytes any more, as below.
            unsafe { hugepage_rs::dealloc(start.as_ptr(), layout) };
            return;
        }
        // SAFETY: these are the values mmap gave us; slices borrow `self`, areas hold an Arc, so
        // nobody can reach the bytes any more.
        let _ = unsafe { rustix::mm::munmap(start.as_ptr().cast(), len) };
    }
}

/// A range of a [`Mapping`] that keeps the mapping alive.
#[derive(Debug, Clone)]
pub struct Area {
    mapping: Arc<Mapping>,
    offset: usize,
    len: usize,
}

impl Area {
    /// `len` bytes of `mapping` from `offset` on; `None` if they are not all inside.
    pub fn new(mapping: Arc<Mapping>, offset: usize, len: usize) -> Option<Self> {
        let end = offset.checked_add(len)?;
        (end <= mapping.len()).then_some(Self {
            mapping,
            offset,
            len,
        })
    }

    /// The whole of a mapping.
    pub fn whole(mapping: Mapping) -> Self {
        let len = mapping.len();
        Self {
            mapping: Arc::new(mapping),
            offset: 0,
            len,
        }
    }

    /// A range of this range; `None` if it is not all inside.
    pub fn sub(&self, offset: usize, len: usize) -> Option<Self> {
        let end = offset.checked_add(len)?;
        (end <= self.len).then(|| Self {
            mapping: Arc::clone(&self.mapping),
            offset: self.offset + offset,
            len,
        })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the range has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the mapping that the range is in lost bytes: see [`Mapping::is_lost`].
    pub fn is_lost(&self) -> bool {
        self.mapping.is_lost()
    }

    /// Whether the kernel can pin its pages: see [`Mapping::is_pinnable`].
    pub fn is_pinnable(&self) -> bool {
        self.mapping.is_pinnable()
    }

    /// Address of the first byte in this process, for the kernel only (see
    /// [`Mapping::address`]).
    pub fn address(&self) -> usize {
        self.mapping.address() + self.offset
    }

    /// The bytes.
    pub fn slice(&self) -> VolatileSlice<'_> {
        // SAFETY: offset + len <= mapping.len() since construction, and the Arc keeps the mapping
        // for the borrow's lifetime.
        unsafe { VolatileSlice::new(self.mapping.base.as_ptr().add(self.offset), self.len) }
    }
}

impl From<Mapping> for Area {
    fn from(mapping: Mapping) -> Self {
        Self::whole(mapping)
    }
}
