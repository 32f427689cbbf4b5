//! Pieces of memory that are used longer than they can be borrowed: the data of a request.
#![allow(unsafe_code)]

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::{Area, MemTable, VolatileSlice};

/// One piece, laid out as the kernel's `struct iovec`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Piece {
    start: NonNull<u8>,
    len: usize,
}

/// A list of pieces of one owner's memory, which lives as long as the list: a device may hand it
/// to whoever needs it after the ring that it came from was stopped.
///
/// The first pieces are the data; those behind them, the tail, are for the device alone, which
/// keeps there what it will answer. Lists are used again: [`Scatter::clear`] keeps owner and room.
pub struct Scatter {
    /// What keeps the bytes of all pieces mapped.
    owner: Arc<dyn Any + Send + Sync>,
    pinnable: bool,
    list: Vec<Piece>,
    /// How many of the list are data.
    data: usize,
    /// Bytes of the data.
    len: u64,
}

// SAFETY: the pointers are addresses. Only `slice` turns them into an access, through
// VolatileSlice, which is made for memory that others write at the same time; what they point to
// is kept by `owner`, which may be dropped by any thread.
unsafe impl Send for Scatter {}
// SAFETY: as above; there is no interior mutability.
unsafe impl Sync for Scatter {}

impl Scatter {
    /// No pieces yet, of a front-end's memory.
    pub fn of_table(table: Arc<MemTable>) -> Self {
        Self {
            pinnable: table.is_pinnable(),
            owner: table,
            list: Vec::new(),
            data: 0,
            len: 0,
        }
    }

    /// All bytes of `area`, which is ours.
    pub fn of_area(area: Area) -> Self {
        let (pinnable, len) = (area.is_pinnable(), area.len());
        let start = NonNull::new(area.slice().ptr_guard_mut().as_ptr());
        let list: Vec<_> = start
            .map(|start| Piece { start, len })
            .into_iter()
            .collect();
        Self {
            owner: Arc::new(area),
            pinnable,
            data: list.len(),
            list,
            len: len as u64,
        }
    }

    /// Forgets all pieces.
    #[inline]
    pub fn clear(&mut self) {
        self.list.clear();
        self.data = 0;
        self.len = 0;
    }

    /// Whether `table` is the owner: the list can be used again for it.
    #[inline]
    pub fn is_of(&self, table: &Arc<MemTable>) -> bool {
        Arc::as_ptr(&self.owner).cast::<()>() == Arc::as_ptr(table).cast::<()>()
    }

    /// Adds a piece to the data. There must be no tail yet.
    ///
    /// # Safety
    /// The bytes of `slice` stay mapped as long as the owner lives.
    #[inline]
    pub unsafe fn push(&mut self, slice: VolatileSlice<'_>) {
        // SAFETY: by our own contract.
        unsafe { self.push_tail(slice) };
        self.len += slice.len() as u64;
        self.data = self.list.len();
    }

    /// Adds a piece to the tail.
    ///
    /// # Safety
    /// As for [`Scatter::push`].
    #[inline]
    pub unsafe fn push_tail(&mut self, slice: VolatileSlice<'_>) {
        if let Some(start) = NonNull::new(slice.ptr_guard_mut().as_ptr()) {
            let len = slice.len();
            self.list.push(Piece { start, len });
        }
    }

    /// Bytes of the data.
    #[inline]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no data.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the kernel can pin the pages, as direct I/O and registered buffers need. What is
    /// behind the BAR of a device cannot be.
    #[inline]
    pub fn is_pinnable(&self) -> bool {
        self.pinnable
    }

    /// The data, piece by piece.
    #[inline]
    pub fn pieces(&self) -> impl ExactSizeIterator<Item = VolatileSlice<'_>> + Clone {
        let data = self.list.get(..self.data).unwrap_or(&[]);
        data.iter().map(|piece| self.slice(*piece))
    }

    /// The tail, piece by piece.
    #[inline]
    pub fn tail(&self) -> impl ExactSizeIterator<Item = VolatileSlice<'_>> + Clone {
        let tail = self.list.get(self.data..).unwrap_or(&[]);
        tail.iter().map(|piece| self.slice(*piece))
    }

    /// The data as the kernel takes it: the address of an array of `struct iovec`, and how many
    /// there are. Good until the list changes or goes; never to be dereferenced here.
    #[inline]
    pub fn iovecs(&self) -> (*const libc::iovec, u32) {
        (self.list.as_ptr().cast(), self.data as u32)
    }

    #[inline]
    fn slice(&self, piece: Piece) -> VolatileSlice<'_> {
        // SAFETY: who pushed the piece promised that `owner`, which outlives the borrow, keeps it.
        unsafe { VolatileSlice::new(piece.start.as_ptr(), piece.len) }
    }
}

impl fmt::Debug for Scatter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scatter")
            .field("pieces", &self.data)
            .field("tail", &(self.list.len() - self.data))
            .field("len", &self.len)
            .finish()
    }
}
