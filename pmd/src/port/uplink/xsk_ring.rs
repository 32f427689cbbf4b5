//! The four rings of an AF_XDP socket, which share one form: two counters that only grow, and
//! entries at their places modulo the size. One side moves the producer, the other the consumer.

use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use rustix::net::xdp::XdpRingOffset;
use vm_memory::Bytes;
use vvu::memory::{Mapping, MemoryError};

/// An entry of a receive or transmit ring (struct xdp_desc).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Desc {
    pub(super) address: u64,
    pub(super) len: u32,
}

impl Desc {
    /// Size in memory.
    pub(super) const SIZE: usize = 16;
}

/// Size of an entry of a fill or completion ring: an address.
pub(super) const ADDRESS: usize = 8;

/// XDP_RING_NEED_WAKEUP.
const NEED_WAKEUP: u32 = 1;

/// A ring, and how far we are.
#[derive(Debug)]
pub(super) struct Ring {
    memory: Mapping,
    /// Offsets of the counters, the flags and the entries.
    producer: usize,
    consumer: usize,
    flags: Option<usize>,
    entries: usize,
    entry: usize,
    size: u32,
    /// The counter that we move, ahead of what the kernel was told.
    ours: u32,
}

impl Ring {
    /// Maps the ring of `size` entries (a power of two) of `entry` bytes that `socket` has at
    /// `page`.
    pub(super) fn map(
        socket: BorrowedFd<'_>,
        page: u64,
        offsets: &XdpRingOffset,
        size: u32,
        entry: usize,
    ) -> Result<Self, MemoryError> {
        let len = offsets.desc + u64::from(size) * entry as u64;
        Ok(Self {
            memory: Mapping::shared(socket, page, len)?,
            producer: offsets.producer as usize,
            consumer: offsets.consumer as usize,
            flags: offsets.flags.map(|flags| flags as usize),
            entries: offsets.desc as usize,
            entry,
            size,
            ours: 0,
        })
    }

    /// A counter of the kernel's. Acquire: pairs with its release, so that the entries it counts
    /// are seen, or free.
    fn theirs(&self, counter: usize) -> u32 {
        let counter = self.memory.slice().load(counter, Ordering::Acquire);
        counter.unwrap_or(self.ours)
    }

    fn tell(&self, counter: usize) {
        // Release: the entries were written, or are not used any more.
        let memory = self.memory.slice();
        let _ = memory.store(self.ours, counter, Ordering::Release);
    }

    fn place(&self) -> usize {
        self.entries + (self.ours & (self.size - 1)) as usize * self.entry
    }

    /// Entries that the kernel has for us.
    pub(super) fn available(&self) -> usize {
        let waiting = self.theirs(self.producer).wrapping_sub(self.ours);
        waiting.min(self.size) as usize
    }

    /// Entries that we can fill.
    pub(super) fn room(&self) -> usize {
        let waiting = self.ours.wrapping_sub(self.theirs(self.consumer));
        self.size.saturating_sub(waiting) as usize
    }

    /// The next address that the kernel has for us.
    pub(super) fn take_address(&mut self) -> u64 {
        let address = self.memory.slice().read_obj(self.place());
        self.ours = self.ours.wrapping_add(1);
        address.unwrap_or(u64::MAX)
    }

    /// The next descriptor that the kernel has for us.
    pub(super) fn take(&mut self) -> Desc {
        let len = self.memory.slice().read_obj(self.place() + ADDRESS);
        Desc {
            address: self.take_address(),
            len: len.unwrap_or(0),
        }
    }

    /// Fills in the next address.
    pub(super) fn put_address(&mut self, address: u64) {
        let _ = self.memory.slice().write_obj(address, self.place());
        self.ours = self.ours.wrapping_add(1);
    }

    /// Fills in the next descriptor.
    pub(super) fn put(&mut self, desc: Desc) {
        // Length, then options: none.
        let rest = u64::from(desc.len);
        let place = self.place() + ADDRESS;
        let _ = self.memory.slice().write_obj(rest.to_le(), place);
        self.put_address(desc.address);
    }

    /// The kernel may have what was taken.
    pub(super) fn release(&self) {
        self.tell(self.consumer);
    }

    /// The kernel may use what was filled in.
    pub(super) fn publish(&self) {
        self.tell(self.producer);
    }

    /// Whether the kernel wants a system call before it looks.
    pub(super) fn needs_wakeup(&self) -> bool {
        let flags = self.flags.map(|flags| self.theirs_flags(flags));
        flags.is_none_or(|flags| flags & NEED_WAKEUP != 0)
    }

    fn theirs_flags(&self, at: usize) -> u32 {
        let flags = self.memory.slice().load(at, Ordering::Acquire);
        flags.unwrap_or(NEED_WAKEUP)
    }
}
