//! Descriptor chains (VIRTIO 1.2, 2.7.4, 2.7.5): from a head to checked pieces of memory.
//!
//! Knows nothing of cursors or of what the bytes mean. Every descriptor is read once; a chain is
//! good as a whole or leaves no trace.

use std::sync::Arc;

use vvu::memory::MemTable;

use super::RingError;
use super::access::{Desc, Pieces, Segments, SplitMem};

/// Most descriptors, and most pieces of memory, of one chain. Linux drivers stay far below; it is
/// the number that other back-ends and the kernel's iovec use.
pub const MAX_CHAIN: usize = 1024;

/// Descriptors read and segments kept for one burst: a chain is only begun while a longest one
/// would still fit. So what a driver can make of us per burst is bounded, whatever its chains
/// look like.
const MAX_SEGMENTS: usize = 2 * MAX_CHAIN;
/// Chains kept for one burst.
const MAX_CHAINS: usize = 1024;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A chain taken from a ring, all of it checked.
#[derive(Debug, Clone, Copy)]
pub struct Chain {
    head: u16,
    readable: u16,
    writable: u16,
    first: u32,
    read_len: u32,
    write_len: u32,
}

impl Chain {
    /// Index of the first descriptor.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that the driver gives us.
    pub fn read_len(&self) -> u32 {
        self.read_len
    }

    /// Bytes that we may write.
    pub fn write_len(&self) -> u32 {
        self.write_len
    }

    pub(super) fn readable(&self) -> std::ops::Range<usize> {
        let start = self.first as usize;
        start..start + usize::from(self.readable)
    }

    pub(super) fn writable(&self) -> std::ops::Range<usize> {
        let start = self.first as usize + usize::from(self.readable);
        start..start + usize::from(self.writable)
    }
}

/// The chains of a burst and their segments. Never grows: allocated once.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) chains: Vec<Chain>,
    pieces: Pieces,
    /// Descriptors read for them.
    walked: usize,
}

impl Taken {
    pub(super) fn new(memory: Arc<MemTable>) -> Self {
        Self {
            chains: Vec::with_capacity(MAX_CHAINS),
            pieces: Pieces::new(memory, MAX_SEGMENTS),
            walked: 0,
        }
    }

    /// Whether another chain, as long as it may be, fits.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        let most = self.pieces.len().max(self.walked);
        self.chains.len() < MAX_CHAINS && most <= MAX_SEGMENTS - MAX_CHAIN
    }

    #[inline]
    pub(super) fn clear(&mut self) {
        self.chains.clear();
        self.walked = 0;
        self.pieces.truncate(0);
    }

    /// Another memory; the chains are forgotten. Returns the old memory.
    pub(super) fn set_memory(&mut self, memory: Arc<MemTable>) -> Arc<MemTable> {
        self.clear();
        self.pieces.replace(memory)
    }

    #[inline]
    pub(super) fn segments(&self, range: std::ops::Range<usize>) -> Segments<'_> {
        self.pieces.get(range)
    }
}

/// What a walk needs to know of its ring.
#[derive(Debug, Clone, Copy)]
pub(super) struct Walk<'a> {
    pub(super) table: &'a SplitMem,
    /// Whether indirect descriptors were negotiated.
    pub(super) indirect: bool,
}

impl Walk<'_> {
    /// Walks the chain at `head` and adds it to `taken`; nothing is added if it is bad.
    #[inline]
    pub(super) fn take(self, head: u16, taken: &mut Taken) -> Result<(), RingError> {
        let first = taken.pieces.len();
        let mut chain = Chain {
            head,
            readable: 0,
            writable: 0,
            first: first as u32,
            read_len: 0,
            write_len: 0,
        };
        match self.direct(&mut chain, &mut taken.pieces) {
            Ok(walked) => {
                taken.walked += walked;
                taken.chains.push(chain);
                Ok(())
            }
            Err(error) => {
                taken.pieces.truncate(first);
                Err(error)
            }
        }
    }

    /// Descriptors of the ring's own table; the last may name an indirect table (2.7.5.3.2).
    /// Returns how many there were in all.
    #[inline]
    fn direct(self, chain: &mut Chain, pieces: &mut Pieces) -> Result<usize, RingError> {
        let size = self.table.size();
        let limit = usize::from(size).min(MAX_CHAIN);
        let mut index = chain.head;
        for seen in 0..limit {
            let out_of_range = RingError::OutOfRange { index, size };
            let desc = self.table.desc(index).ok_or(out_of_range)?;
            if desc.flags & INDIRECT != 0 {
                if !self.indirect || desc.flags & NEXT != 0 {
                    return Err(RingError::Indirect { flags: desc.flags });
                }
                return self.table_at(desc, seen, chain, pieces);
            }
            self.push(desc, chain, pieces)?;
            if desc.flags & NEXT == 0 {
                return Ok(seen + 1);
            }
            index = desc.next;
        }
        Err(RingError::TooLong {
            head: chain.head,
            limit,
        })
    }

    /// Descriptors of the indirect table that `outer` names; `seen` came before it.
    fn table_at(
        self,
        outer: Desc,
        seen: usize,
        chain: &mut Chain,
        pieces: &mut Pieces,
    ) -> Result<usize, RingError> {
        let bytes = outer.len as usize;
        let entries = bytes / Desc::SIZE;
        if entries == 0 || !bytes.is_multiple_of(Desc::SIZE) || entries > usize::from(u16::MAX) {
            return Err(RingError::IndirectLength { len: outer.len });
        }
        // The ring's size does not bound this: Linux fills tables larger than small rings.
        let limit = entries.min(MAX_CHAIN.saturating_sub(seen));
        let mut index = 0;
        for inside in 0..limit {
            let desc = entry(outer, index, pieces)?;
            if desc.flags & INDIRECT != 0 {
                return Err(RingError::Indirect { flags: desc.flags });
            }
            self.push(desc, chain, pieces)?;
            if desc.flags & NEXT == 0 {
                return Ok(seen + 1 + inside + 1);
            }
            index = desc.next;
            if usize::from(index) >= entries {
                return Err(RingError::OutOfRange {
                    index,
                    size: entries as u16,
                });
            }
        }
        Err(RingError::TooLong {
            head: chain.head,
            limit,
        })
    }

    /// Adds a descriptor's bytes to the chain. One without bytes is allowed and adds nothing;
    /// the bound on the number of descriptors holds all the same.
    #[inline]
    fn push(self, desc: Desc, chain: &mut Chain, pieces: &mut Pieces) -> Result<(), RingError> {
        let head = chain.head;
        let writable = desc.flags & WRITE != 0;
        if !writable && chain.writable > 0 {
            return Err(RingError::Order { head });
        }
        let (sum, count) = if writable {
            (&mut chain.write_len, &mut chain.writable)
        } else {
            (&mut chain.read_len, &mut chain.readable)
        };
        *sum = sum.checked_add(desc.len).ok_or(RingError::Bytes { head })?;
        let unmapped = RingError::Unmapped {
            addr: desc.addr,
            len: desc.len,
        };
        let (mut addr, mut left) = (desc.addr, desc.len as usize);
        while left > 0 {
            if pieces.len() - chain.first as usize >= MAX_CHAIN {
                return Err(RingError::TooLong {
                    head,
                    limit: MAX_CHAIN,
                });
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
}

/// A private copy of one entry of an indirect table, wherever its bytes are.
fn entry(table: Desc, index: u16, pieces: &Pieces) -> Result<Desc, RingError> {
    let mut bytes = [0; Desc::SIZE];
    table
        .addr
        .checked_add(Desc::SIZE as u64 * u64::from(index))
        .and_then(|addr| pieces.read(addr, &mut bytes))
        .ok_or(RingError::Unmapped {
            addr: table.addr,
            len: table.len,
        })?;
    Ok(Desc::from_bytes(bytes))
}
