//! Requests of a block device, from chains that a hostile driver makes.
//!
//! The ring itself is sound (what is not has a target of its own, [`ring`](crate::ring)); what
//! its chains are made of, and what lies in their buffers, is the input's.

use std::sync::Arc;

use vm_memory::Bytes;
use vvu::memory::{Area, Mapping, MemTable, Region};
use vvu::notify::{Call, Kick};
use vvu::virtio::{RingAreas, Vring};
use vvu_pmd::bdev::{Disk, Geometry, Mem};
use vvu_pmd::blk::{BlkConfig, Face, Prepared, Queue};
use vvu_pmd::queue::StorageQueue;
use vvu_pmd::vring::feature;
use vvu_pmd::wake::Waker;

use crate::Input;

/// Bytes of the guest's memory, and where it has them.
pub const MEMORY: usize = 0x8000;
const START: u64 = 0x10_0000;
/// Entries of the ring, which is at the beginning.
const SIZE: u16 = 32;
const AVAIL: usize = 0x400;
const USED: usize = 0x600;
/// Where the buffers are: up to the end, and a little beyond.
pub const DATA: usize = 0x1000;
/// Bytes of the disk.
pub const DISK: u64 = 0x1_0000;

/// What happens next; the numbers are those of the input.
pub mod op {
    /// The driver writes a request's header: u16 place, u8 kind, u64 sector.
    pub const HEADER: u8 = 0;
    /// The driver writes: u16 place, a part.
    pub const WRITE: u8 = 1;
    /// The driver offers a chain: u8 how many buffers, then for each u16 place, u16 length, of
    /// which the highest bit says that the device may write it.
    pub const OFFER: u8 = 2;
    /// The device works.
    pub const POLL: u8 = 3;
    /// The driver writes the one thing that it may write in the configuration space: u8.
    pub const CACHE: u8 = 4;
    /// The disk has another size: u8, in units of 512 bytes.
    pub const RESIZE: u8 = 5;
    /// Number of operations.
    pub const COUNT: u8 = 6;
}

/// The driver, and what it remembers.
struct Driver {
    memory: Area,
    /// Chains that were offered: their descriptors, and the length of what may be written.
    flying: Vec<(Vec<u16>, u32)>,
    free: Vec<u16>,
    avail: u16,
    used: u16,
    /// Which bytes the device may write.
    writable: Vec<bool>,
}

impl Driver {
    fn write(&self, place: usize, bytes: &[u8]) {
        let _ = self
            .memory
            .slice()
            .write(bytes, DATA + place % (MEMORY - DATA));
    }

    /// Offers a chain of at most as many buffers as there are descriptors.
    fn offer(&mut self, input: &mut Input) {
        let count = usize::from(input.u8() % 9).min(self.free.len());
        let Some(at) = self.free.len().checked_sub(count.max(1)) else {
            return;
        };
        let heads = self.free.split_off(at);
        let slice = self.memory.slice();
        let mut len = 0u32;
        for (number, head) in heads.iter().enumerate() {
            let (place, bits) = (usize::from(input.u16()), input.u16());
            let offset = DATA + place % (MEMORY - DATA);
            let size = u32::from(bits & 0x7fff);
            let write = bits & 0x8000 != 0;
            let next = heads.get(number + 1);
            let flags = u16::from(next.is_some()) | u16::from(write) << 1;
            let desc = u128::from(START + offset as u64)
                | u128::from(size) << 64
                | u128::from(flags) << 96
                | u128::from(next.copied().unwrap_or(0)) << 112;
            let _ = slice.write(&desc.to_le_bytes(), 16 * usize::from(*head));
            if write {
                len += size;
                let end = (offset + size as usize).min(MEMORY);
                self.writable[offset..end].fill(true);
            }
        }
        let head = heads[0];
        self.flying.push((heads, len));
        let slot = AVAIL + 4 + 2 * usize::from(self.avail % SIZE);
        let _ = slice.write_obj(head, slot);
        self.avail = self.avail.wrapping_add(1);
        let _ = slice.write_obj(self.avail, AVAIL + 2);
    }

    /// Takes back what the device has used.
    fn take_back(&mut self) {
        let slice = self.memory.slice();
        let index: u16 = slice.read_obj(USED + 2).unwrap_or(0);
        while self.used != index {
            let slot = USED + 4 + 8 * usize::from(self.used % SIZE);
            let id: u32 = slice.read_obj(slot).unwrap_or(0);
            let len: u32 = slice.read_obj(slot + 4).unwrap_or(0);
            let found = self
                .flying
                .iter()
                .position(|(heads, _)| u32::from(heads[0]) == id);
            let (heads, room) = self
                .flying
                .remove(found.expect("nobody offered this chain"));
            assert!(len <= room, "more is written than there is room for");
            self.free.extend(heads);
            self.used = self.used.wrapping_add(1);
        }
    }
}

fn start(memory: &Area, face: &Arc<Face>) -> Option<Queue> {
    let region = Region {
        guest_addr: START,
        user_addr: START,
        bytes: memory.clone(),
    };
    let part = |at, len| memory.sub(at, len);
    let vring = Vring {
        inflight: None,
        index: 0,
        size: SIZE,
        areas: RingAreas {
            desc: part(0, 16 * usize::from(SIZE))?,
            driver: part(AVAIL, 6 + 2 * usize::from(SIZE))?,
            device: part(USED, 6 + 8 * usize::from(SIZE))?,
        },
        base: 0,
        features: face.features() & !(feature::RING_PACKED | feature::EVENT_IDX),
        enabled: true,
        kick: Kick::Polled,
        call: Call::Silent,
        err: Call::Silent,
        memory: Arc::new(MemTable::new(vec![region]).ok()?),
    };
    let waker = Waker::new().ok()?;
    let prepared = Prepared::new(vring, Arc::clone(face), &waker).ok()?;
    Some(prepared.start())
}

/// Serves the device.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let bits = input.u8();
    let geometry = Geometry {
        logical_block: if bits & 1 == 0 { 512 } else { 4096 },
        ..Geometry::default()
    };
    let config = BlkConfig {
        serial: "fuzz".into(),
        read_only: bits & 2 != 0,
        queues: 1,
    };
    let (Ok(disk), Ok(memory)) = (Mem::new("mem", DISK, geometry), Mapping::anonymous(MEMORY))
    else {
        return;
    };
    let (disk, memory): (Arc<dyn Disk>, Area) = (Arc::new(disk), memory.into());
    let face = Face::new("fuzz", Arc::clone(&disk), config);
    let Some(mut queue) = start(&memory, &face) else {
        return;
    };
    let mut driver = Driver {
        memory: memory.clone(),
        flying: Vec::new(),
        free: (0..SIZE).collect(),
        avail: 0,
        used: 0,
        writable: vec![false; MEMORY],
    };
    let mut before = vec![0u8; MEMORY];
    let mut after = vec![0u8; MEMORY];
    while !input.is_empty() {
        match input.u8() % op::COUNT {
            op::HEADER => {
                let place = input.u16().into();
                let header = u128::from(input.u8()) | u128::from(input.u64()) << 64;
                driver.write(place, &header.to_le_bytes());
            }
            op::WRITE => driver.write(input.u16().into(), &input.part()),
            op::OFFER => driver.offer(&mut input),
            op::POLL => {
                memory.slice().copy_to(&mut before[..]);
                queue.poll();
                memory.slice().copy_to(&mut after[..]);
                for at in DATA..MEMORY {
                    assert!(before[at] == after[at] || driver.writable[at], "{at:#x}");
                }
                driver.take_back();
            }
            op::CACHE => {
                let value = input.u8();
                assert_eq!(face.write(32, &[value]), value < 2 && bits & 2 == 0);
            }
            _ => {
                let size = u64::from(input.u8()) * 512;
                disk.size().set(size.min(DISK));
            }
        }
    }
    // Memory answers at once: nothing is left, unless a chain was none.
    while queue.poll() {}
    assert_eq!(queue.drain(), 0);
    driver.take_back();
    let broken = face.snapshot().all.faults.iter().any(|count| *count > 0);
    assert!(broken || driver.flying.is_empty());
}
