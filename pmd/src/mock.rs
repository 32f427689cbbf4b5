//! Drivers for tests: the other side of a ring, in software, as well-behaved or as hostile as a
//! test wants.
//!
//! A [`MockGuest`] is memory with addresses, a [`MockQueue`] the driver side of one ring in it,
//! split or packed, and a [`MockNet`] a network card's driver that fills and drains the queues of any
//! [`VirtioDevice`]. Only the layouts are shared with the code under test. Mistakes of a test
//! panic: this is test code.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod blk;
mod net;
mod packed;
mod queue;
mod split;

pub use net::{Layout, MockNet};
pub use queue::{Buffer, MockQueue};

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use vm_memory::Bytes;
use vvu::memory::{Area, Mapping, MemTable, Region, VolatileSlice};
use vvu::notify::{Call, Kick};
#[allow(unused_imports)] // Named by the documentation.
use vvu::virtio::VirtioDevice;

/// Difference between a front-end's addresses and its guest's.
const USER: u64 = 0x7f00_0000_0000;

/// A guest's memory: regions that follow each other for the guest and are apart in this process.
#[derive(Debug, Clone)]
pub struct MockGuest {
    table: Arc<MemTable>,
    files: Arc<[OwnedFd]>,
    next: u64,
}

impl MockGuest {
    /// Memory of regions of these lengths, from guest address `start` on without gaps.
    pub fn new(start: u64, regions: &[usize]) -> Self {
        Self::with_pages(start, regions, MemfdFlags::empty()).unwrap()
    }

    /// The same in hugepages, of which there may be too few.
    pub fn huge(start: u64, regions: &[usize]) -> Option<Self> {
        Self::with_pages(start, regions, MemfdFlags::HUGETLB)
    }

    fn with_pages(start: u64, regions: &[usize], pages: MemfdFlags) -> Option<Self> {
        let file = |&len: &usize| {
            let file = memfd_create("mock-guest", MemfdFlags::CLOEXEC | pages).ok()?;
            ftruncate(&file, len as u64).ok()?;
            Some(file)
        };
        let files: Arc<[OwnedFd]> = regions.iter().map(file).collect::<Option<_>>()?;
        Some(Self {
            table: map(start, &files)?,
            files,
            next: start,
        })
    }

    /// The same memory, mapped at other places in this process.
    pub fn moved(&self) -> Self {
        Self {
            table: map(self.table.regions()[0].guest_addr, &self.files).unwrap(),
            ..self.clone()
        }
    }

    /// The files behind the regions, in order.
    pub fn files(&self) -> &[OwnedFd] {
        &self.files
    }

    /// What the back-end is told.
    pub fn table(&self) -> Arc<MemTable> {
        Arc::clone(&self.table)
    }

    /// Takes `len` bytes, aligned to `align`, that nobody has taken.
    pub fn alloc(&mut self, len: usize, align: u64) -> u64 {
        let at = self.next.next_multiple_of(align);
        self.next = at + len as u64;
        at
    }

    /// Like [`MockGuest::alloc`], within one region: what rings need.
    pub fn alloc_whole(&mut self, len: usize, align: u64) -> u64 {
        loop {
            let at = self.alloc(len, align);
            match self.table.guest(at, len) {
                Some(bytes) if bytes.len() == len => return at,
                Some(bytes) => self.next = at + bytes.len() as u64,
                None => panic!("the mock guest has no {len} bytes left"),
            }
        }
    }

    /// The bytes of a ring, as messages name them.
    pub fn area(&self, addr: u64, len: usize) -> Area {
        self.table.user(addr + USER, len).unwrap()
    }

    /// Writes `bytes` at guest address `addr`, over all regions.
    pub fn write(&self, addr: u64, bytes: &[u8]) {
        self.each(addr, bytes.len(), |at, part| {
            part.copy_from(&bytes[at..at + part.len()]);
        });
    }

    /// Reads `len` bytes at guest address `addr`.
    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.each(addr, len, |at, part| {
            part.copy_to(&mut bytes[at..]);
        });
        bytes
    }

    /// A number of a ring, stored at once.
    fn store(&self, addr: u64, value: u16) {
        let place = self.table.guest(addr, 2).unwrap();
        place.store(value.to_le(), 0, Ordering::Release).unwrap();
    }

    /// A number of a ring, read at once.
    fn load(&self, addr: u64) -> u16 {
        let place = self.table.guest(addr, 2).unwrap();
        u16::from_le(place.load(0, Ordering::Acquire).unwrap())
    }

    fn each(&self, addr: u64, len: usize, mut what: impl FnMut(usize, VolatileSlice<'_>)) {
        let mut done = 0;
        while done < len {
            let part = self.table.guest(addr + done as u64, len - done).unwrap();
            what(done, part);
            done += part.len();
        }
    }
}

/// Maps `files` one after the other from guest address `at` on.
fn map(mut at: u64, files: &[OwnedFd]) -> Option<Arc<MemTable>> {
    let regions = files.iter().map(|file| {
        let len = fstat(file).unwrap().st_size as u64;
        let region = Region {
            guest_addr: at,
            user_addr: at + USER,
            bytes: Mapping::of_file(file.as_fd(), 0, len).ok()?.into(),
        };
        at += len;
        Some(region)
    });
    let regions = regions.collect::<Option<_>>()?;
    Some(Arc::new(MemTable::new(regions).unwrap()))
}

/// An eventfd, non-blocking.
pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// A kick and the end to signal it by.
pub fn kick() -> (Kick, OwnedFd) {
    let fd = event();
    (Kick::Event(fd.try_clone().unwrap()), fd)
}

/// A call and the end to see it by.
pub fn call() -> (Call, OwnedFd) {
    let fd = event();
    (Call::Event(fd.try_clone().unwrap()), fd)
}

/// Signals an eventfd.
pub fn signal(fd: &OwnedFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
}

/// How often an eventfd was signalled since the last look.
pub fn signals(fd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(fd, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(_) => 0,
    }
}

/// A small generator of pseudo-random numbers (xorshift), the same for the same seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number from `low` to `high`, both possible.
    pub fn range(&mut self, low: usize, high: usize) -> usize {
        low + (self.number() >> 16) as usize % (high - low + 1)
    }
}
