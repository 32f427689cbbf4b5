//! A split ring as its driver has it, without manners: what is offered is what the case says, and
//! nothing is offered again by itself. Not the driver's own ring, so that a mistake there is not
//! agreed with here. (VIRTIO 1.2, 2.7.)

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use vm_memory::Bytes;
use vvu::memory::Area;
use vvu::mmio::{Reg, WriteOnly};
use vvu::pci::DmaMemory;

use crate::front_end::signal;

/// Entries.
pub(crate) const SIZE: u16 = 64;
/// Bytes of the buffer that belongs to each.
pub(crate) const BUFFER: u32 = 0x5000;
/// Bytes that a ring takes.
pub(crate) const BYTES: usize = 0x3000 + SIZE as usize * BUFFER as usize;

const AVAIL: usize = 0x1000;
const USED: usize = 0x2000;
const BUFFERS: usize = 0x3000;

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;

/// How the device hears of what was offered.
#[derive(Debug)]
pub(crate) enum Notify {
    /// The ring's number in a register.
    Register(Reg<u16, WriteOnly>),
    /// An eventfd.
    Event(OwnedFd),
}

/// A ring and its buffers.
#[derive(Debug)]
pub(crate) struct Ring {
    index: u16,
    memory: Area,
    iova: u64,
    notify: Notify,
    /// Entries ever offered, and descriptors in them.
    offered: u16,
    descriptors: u16,
    taken: u16,
}

impl Ring {
    /// Ring `index` of the function in the `nth` part of `memory`.
    pub(crate) fn new(index: u16, memory: &DmaMemory, notify: Notify) -> Self {
        let at = usize::from(index) * BYTES;
        let memory_of_ring = memory.bytes.sub(at, BYTES).unwrap();
        let zeroes = vec![0; BUFFERS];
        memory_of_ring.slice().write_slice(&zeroes, 0).unwrap();
        Self {
            index,
            memory: memory_of_ring,
            iova: memory.iova + at as u64,
            notify,
            offered: 0,
            descriptors: 0,
            taken: 0,
        }
    }

    /// The same ring as it goes on in a copy of its memory.
    pub(crate) fn moved(&self, memory: &DmaMemory, notify: Notify) -> Self {
        let at = usize::from(self.index) * BYTES;
        Self {
            index: self.index,
            memory: memory.bytes.sub(at, BYTES).unwrap(),
            iova: memory.iova + at as u64,
            notify,
            ..*self
        }
    }

    /// Descriptor table, available ring, used ring.
    pub(crate) fn addresses(&self) -> [u64; 3] {
        [0, AVAIL, USED].map(|at| self.iova + at as u64)
    }

    /// Offers one chain of buffers of these lengths, all for the device to write or all to read.
    /// The first has `data` in it, and so on.
    pub(crate) fn offer(&mut self, lengths: &[u32], device_writes: bool, mut data: &[u8]) {
        let head = self.descriptors % SIZE;
        for (nth, len) in lengths.iter().enumerate() {
            let id = self.descriptors % SIZE;
            self.descriptors = self.descriptors.wrapping_add(1);
            let at = BUFFERS + usize::from(id) * BUFFER as usize;
            let here;
            (here, data) = data.split_at(data.len().min(*len as usize));
            self.memory.slice().write_slice(here, at).unwrap();
            let last = nth + 1 == lengths.len();
            let flags =
                if last { 0 } else { DESC_NEXT } | if device_writes { DESC_WRITE } else { 0 };
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&(self.iova + at as u64).to_le_bytes());
            bytes[8..12].copy_from_slice(&len.to_le_bytes());
            bytes[12..14].copy_from_slice(&flags.to_le_bytes());
            bytes[14..].copy_from_slice(&((id + 1) % SIZE).to_le_bytes());
            self.memory
                .slice()
                .write_slice(&bytes, usize::from(id) * 16)
                .unwrap();
        }
        let slot = AVAIL + 4 + 2 * usize::from(self.offered % SIZE);
        self.memory
            .slice()
            .write_slice(&head.to_le_bytes(), slot)
            .unwrap();
        self.offered = self.offered.wrapping_add(1);
        self.set_available(self.offered);
    }

    /// Writes the available index, whatever it means.
    pub(crate) fn set_available(&self, index: u16) {
        let slice = self.memory.slice();
        slice
            .store(index.to_le(), AVAIL + 2, Ordering::Release)
            .unwrap();
    }

    /// Tells the device.
    pub(crate) fn notify(&self) {
        match &self.notify {
            Notify::Register(register) => register.write(self.index),
            Notify::Event(fd) => signal(fd),
        }
    }

    /// How many entries the device has ever given back, modulo 2^16.
    pub(crate) fn used_index(&self) -> u16 {
        let index: u16 = self
            .memory
            .slice()
            .load(USED + 2, Ordering::Acquire)
            .unwrap();
        u16::from_le(index)
    }

    /// The next chain that the device has used: its descriptor and the length that it claims.
    pub(crate) fn used(&mut self) -> Option<(u16, u32)> {
        if self.used_index() == self.taken {
            return None;
        }
        let slice = self.memory.slice();
        let slot = USED + 4 + 8 * usize::from(self.taken % SIZE);
        let [id, len]: [u32; 2] = [0, 4].map(|at| slice.read_obj(slot + at).unwrap());
        self.taken = self.taken.wrapping_add(1);
        Some((u16::try_from(id).unwrap(), len))
    }

    /// The bytes of a buffer that the device has used.
    pub(crate) fn bytes(&self, id: u16, len: u32) -> Vec<u8> {
        assert!(len <= BUFFER, "{len} bytes in a buffer of {BUFFER}");
        let mut bytes = vec![0; len as usize];
        let at = BUFFERS + usize::from(id) * BUFFER as usize;
        self.memory.slice().read_slice(&mut bytes, at).unwrap();
        bytes
    }
}
