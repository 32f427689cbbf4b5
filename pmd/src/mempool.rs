//! Packet buffers (mbufs) of one size, from huge pages if there are any.
//!
//! An [`Mbuf`] carries a frame that must outlive the burst it came in: to another worker. Its
//! `Drop` returns it to its [`Mempool`]. Taking and returning are lock-free and do not allocate.
//! This room knows no frames.

use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use thiserror::Error;
use vvu::memory::{Mapping, MemoryError, VolatileSlice};

/// Why there is no pool.
#[derive(Debug, Error)]
pub enum MempoolError {
    /// The pool's size overflows, or is zero.
    #[error("a pool of {count} buffers of {room} bytes is not possible")]
    Size {
        /// Buffers asked for.
        count: usize,
        /// Bytes of each.
        room: usize,
    },
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// A pool of buffers of one size.
#[derive(Debug)]
pub struct Mempool {
    storage: Mapping,
    huge: bool,
    room: usize,
    free: ArrayQueue<u32>,
}

impl Mempool {
    /// A pool of `count` buffers of at least `room` bytes.
    pub fn new(count: usize, room: usize) -> Result<Arc<Self>, MempoolError> {
        let bad = MempoolError::Size { count, room };
        // Whole cache lines, so that two workers never share one.
        let padded = room.checked_next_multiple_of(64);
        let len = padded.and_then(|padded| padded.checked_mul(count));
        let (Some(room), Some(len), Ok(last)) = (padded, len, u32::try_from(count)) else {
            return Err(bad);
        };
        if len == 0 {
            return Err(bad);
        }
        let (storage, huge) = match Mapping::huge(len) {
            Ok(mapping) => (mapping, true),
            Err(_) => (Mapping::anonymous(len)?, false),
        };
        let free = ArrayQueue::new(count);
        for index in 0..last {
            // Cannot be full: it holds `count`.
            let _ = free.push(index);
        }
        Ok(Arc::new(Self {
            storage,
            huge,
            room,
            free,
        }))
    }

    /// Takes an empty buffer; `None` if all are in use.
    pub fn alloc(self: &Arc<Self>) -> Option<Mbuf> {
        let index = self.free.pop()?;
        Some(Mbuf {
            pool: Arc::clone(self),
            index,
            len: 0,
        })
    }

    /// The memory of all buffers.
    pub fn memory(&self) -> VolatileSlice<'_> {
        self.storage.slice()
    }

    /// Buffers not in use.
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// Whether the memory is of huge pages.
    pub fn is_huge(&self) -> bool {
        self.huge
    }
}

/// A buffer of a [`Mempool`], owned.
#[derive(Debug)]
pub struct Mbuf {
    pool: Arc<Mempool>,
    index: u32,
    len: usize,
}

impl Mbuf {
    fn part(&self, from: usize, to: usize) -> Option<VolatileSlice<'_>> {
        let start = self.pool.room.checked_mul(self.index as usize)?;
        let all = self.pool.storage.slice();
        let len = to.checked_sub(from)?;
        all.subslice(start.checked_add(from)?, len).ok()
    }

    /// What was appended so far. `None` if it is nothing.
    #[inline]
    pub fn bytes(&self) -> Option<VolatileSlice<'_>> {
        self.part(0, self.len)
    }

    /// Room for `len` more bytes, which count from now on; `None` if there is not so much.
    #[inline]
    pub fn append(&mut self, len: usize) -> Option<VolatileSlice<'_>> {
        let (from, to) = (self.len, self.len.checked_add(len)?);
        if to > self.pool.room {
            return None;
        }
        self.len = to;
        self.part(from, to)
    }
}

impl Drop for Mbuf {
    fn drop(&mut self) {
        // Cannot be full: this index was taken from it.
        let _ = self.pool.free.push(self.index);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn buffers_are_distinct_and_come_back() {
        let pool = Mempool::new(3, 100).unwrap();
        let mut all: Vec<_> = (0..3).map(|_| pool.alloc().unwrap()).collect();
        assert!(pool.alloc().is_none());
        for (mbuf, value) in all.iter_mut().zip(1u8..) {
            mbuf.append(60).unwrap().copy_from(&[value; 60]);
            mbuf.append(40).unwrap().copy_from(&[value + 10; 40]);
            assert!(mbuf.append(29).is_none());
        }
        for (mbuf, value) in all.iter().zip(1u8..) {
            let mut bytes = [0; 100];
            assert_eq!(mbuf.bytes().unwrap().copy_to(&mut bytes[..]), 100);
            assert!(bytes[..60].iter().all(|&b| b == value));
            assert!(bytes[60..].iter().all(|&b| b == value + 10));
        }
        drop(all);
        assert_eq!(pool.available(), 3);
    }

    #[test]
    fn impossible_pools_are_refused() {
        assert!(Mempool::new(0, 64).is_err());
        assert!(Mempool::new(64, 0).is_err());
        assert!(Mempool::new(usize::MAX, 64).is_err());
    }
}
