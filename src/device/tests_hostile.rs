//! A function that is not a VVU device at all, or one that has gone mad: configuration spaces with
//! random mistakes, and registers that read as anything. Nothing may panic, hang or be reached
//! beyond its BAR.
#![allow(clippy::unwrap_used)]

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;
use crate::memory::{Area, Mapping};
use crate::mmio::{RegisterAccess, Window};
use crate::model::Shape;
use crate::pci::DmaMemory;

/// xorshift64: the rounds are the same on each run.
#[derive(Debug, Clone, Copy)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number that a driver may stumble over.
    fn nasty(&mut self) -> u64 {
        match self.next() % 8 {
            0..3 => 0,
            3 => u64::MAX,
            4 => 1 << (self.next() % 64),
            5 => (1u64 << (self.next() % 63)).wrapping_sub(1),
            6 => self.next() % 300,
            _ => self.next(),
        }
    }
}

#[derive(Debug)]
struct Noise {
    random: Mutex<Random>,
    bar_size: u64,
    /// What plausible registers read as, so that bring-up gets somewhere.
    memory: Mutex<[u8; 0x4000]>,
    /// One read in so many is noise.
    rate: u64,
}

impl RegisterAccess for Noise {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let end = offset.checked_add(data.len() as u64).unwrap();
        assert!(end <= self.bar_size, "read beyond the BAR");
        let mut random = self.random.lock().unwrap();
        let memory = self.memory.lock().unwrap();
        let there = memory.get(offset as usize..end as usize);
        match there {
            Some(bytes) if !random.next().is_multiple_of(self.rate) => data.copy_from_slice(bytes),
            _ => data.copy_from_slice(&random.nasty().to_le_bytes()[..data.len()]),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let end = offset.checked_add(data.len() as u64).unwrap();
        assert!(end <= self.bar_size, "write beyond the BAR");
        let mut memory = self.memory.lock().unwrap();
        if let Some(bytes) = memory.get_mut(offset as usize..end as usize) {
            bytes.copy_from_slice(data);
        }
    }
}

struct Mad {
    config: Vec<u8>,
    noise: Arc<Noise>,
    memory: Vec<Area>,
}

impl PciFunction for Mad {
    fn name(&self) -> &str {
        "mad"
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(usize::from(offset)..) {
            *byte = self.config.get(at).copied().unwrap_or(u8::MAX);
        }
    }

    fn write_config(&self, _offset: u16, _data: &[u8]) {}

    fn bar_size(&self, bar: u8) -> u64 {
        assert!(bar <= 5);
        self.noise.bar_size
    }

    fn registers(&self, bar: u8, offset: u64, len: u64) -> Result<Window, PciError> {
        let end = offset.checked_add(len).unwrap();
        assert!(bar <= 5 && len > 0 && end <= self.noise.bar_size);
        Ok(Window::trapped(self.noise.clone(), offset, len))
    }

    fn map_bar(&self, bar: u8, offset: u64, len: u64) -> Result<Area, PciError> {
        let end = offset.checked_add(len).unwrap();
        assert!(bar <= 5 && end <= self.noise.bar_size);
        Ok(Mapping::anonymous(0x1000).unwrap().into())
    }

    fn alloc_dma(&mut self, len: usize) -> Result<DmaMemory, PciError> {
        let bytes = Area::from(Mapping::anonymous(len).unwrap());
        self.memory.push(bytes.clone());
        Ok(DmaMemory {
            bytes,
            iova: 0x1_0000_0000,
        })
    }

    fn vectors(&self) -> u16 {
        0
    }

    fn enable_vectors(&mut self, count: u16) -> Result<Vec<OwnedFd>, PciError> {
        Err(PciError::Vectors {
            asked: count,
            available: 0,
        })
    }

    fn reset(&mut self) -> Result<(), PciError> {
        Ok(())
    }
}

/// What bring-up wants to read, of a function whose BARs are all alike.
fn plausible() -> [u8; 0x4000] {
    let mut memory = [0; 0x4000];
    memory[4..8].copy_from_slice(&3u32.to_le_bytes());
    memory[0x12] = 2;
    memory[0x18] = 64;
    memory[0x2004] = 8;
    memory
}

#[test]
fn whatever_the_device_says_nothing_panics_or_hangs() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let shape = Shape {
        window: 1 << 30,
        ..Shape::ours()
    };
    let options = Options {
        timeout: Duration::from_millis(1),
        ..Options::default()
    };
    let start = Instant::now();
    let mut opened = 0;
    for round in 0..4000u64 {
        let mut config = shape.config();
        // Half the rounds only the registers lie, in the others the capabilities do, too.
        for _ in 0..(round % 2) * (random.next() % 6) {
            let at = 0x34 + random.next() as usize % (256 - 0x34);
            config[at] = random.next() as u8;
        }
        let noise = Noise {
            random: Mutex::new(Random(random.next() | 1)),
            bar_size: [0x4000, 0x8000, 1 << 30, u64::MAX][random.next() as usize % 4],
            memory: Mutex::new(plausible()),
            rate: 1 + random.next() % 200,
        };
        let function = Mad {
            config,
            noise: Arc::new(noise),
            memory: Vec::new(),
        };
        if let Ok(mut device) = Device::open(Box::new(function), options.clone()) {
            opened += 1;
            drive(&mut device, &mut random);
        }
    }
    assert!(opened > 100, "only {opened} could be brought up");
    assert!(start.elapsed() < Duration::from_secs(120));
}

fn drive(device: &mut Device, random: &mut Random) {
    for _ in 0..8 {
        let _ = device.next_event();
        let _ = device.send(&[&[0; 12]]);
        let ring = random.nasty() as u16;
        if let Some((register, number)) = device.doorbell(ring) {
            register.write(number);
        }
        if let Some((register, number)) = device.error_doorbell(ring) {
            register.write(number);
        }
        assert!(device.kick(ring).unwrap().is_none());
        let extent = Extent {
            size: random.nasty(),
            mmap_offset: random.nasty(),
        };
        let _ = device.map(&[extent, extent]);
    }
}
