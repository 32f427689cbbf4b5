//! A PCI function whose every answer comes from the fuzzer.
//!
//! Registers behave as memory, so that a bring-up gets somewhere, except where the input says
//! what a read shall return instead.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use vm_memory::Bytes;
use vvu::memory::{Area, Mapping};
use vvu::mmio::{RegisterAccess, Window};
use vvu::pci::{CONFIG_LEN, DmaMemory, PciError, PciFunction};

/// Where the function finds our memory.
pub(crate) const IOVA: u64 = 0x1_0000_0000;

/// Largest piece of a BAR that is mapped.
const MAX_MAPPED: u64 = 1 << 20;

/// What a function has besides its configuration space.
#[derive(Debug, Default)]
pub(crate) struct Inside {
    /// Size of each BAR.
    pub(crate) bars: [u64; 6],
    pub(crate) vectors: u16,
    /// Bytes of registers, by BAR and offset; others are zero.
    registers: HashMap<(u8, u64), u8>,
    /// Answers to the next reads of registers, the last one first: `None` is the truth.
    pub(crate) lies: Vec<Option<u32>>,
    dma: Option<Area>,
    fired: Vec<OwnedFd>,
}

impl Inside {
    pub(crate) fn set(&mut self, bar: u8, offset: u64, bytes: &[u8]) {
        for (byte, at) in bytes.iter().zip(offset..) {
            self.registers.insert((bar, at), *byte);
        }
    }

    pub(crate) fn get(&self, bar: u8, offset: u64, bytes: &mut [u8]) {
        for (byte, at) in bytes.iter_mut().zip(offset..) {
            *byte = self.registers.get(&(bar, at)).copied().unwrap_or(0);
        }
    }

    fn read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        match self.lies.pop().flatten() {
            Some(lie) => {
                for (byte, lied) in data.iter_mut().zip(lie.to_le_bytes()) {
                    *byte = lied;
                }
            }
            None => self.get(bar, offset, data),
        }
    }

    /// Writes the driver's DMA memory.
    pub(crate) fn dma_write(&self, iova: u64, bytes: &[u8]) {
        let offset = iova.checked_sub(IOVA);
        if let (Some(dma), Some(offset)) = (&self.dma, offset) {
            let _ = dma.slice().write(bytes, offset as usize);
        }
    }

    /// Two bytes of it.
    pub(crate) fn dma_u16(&self, iova: u64) -> u16 {
        let offset = iova.checked_sub(IOVA);
        let dma = self.dma.as_ref();
        let read = |(dma, offset): (&Area, u64)| dma.slice().read_obj(offset as usize).ok();
        dma.zip(offset).and_then(read).unwrap_or(0)
    }

    pub(crate) fn fire(&self, vector: u8) {
        if let Some(fd) = self.fired.get(usize::from(vector)) {
            let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
        }
    }
}

/// The function, and for whoever plays the device its inside.
#[derive(Debug)]
pub(crate) struct Function {
    config: [u8; CONFIG_LEN],
    inside: Arc<Mutex<Inside>>,
}

impl Function {
    pub(crate) fn new(config: [u8; CONFIG_LEN], inside: Inside) -> (Self, Arc<Mutex<Inside>>) {
        let inside = Arc::new(Mutex::new(inside));
        let function = Self {
            config,
            inside: Arc::clone(&inside),
        };
        (function, inside)
    }

    fn check(&self, bar: u8, offset: u64, len: u64) -> Result<(), PciError> {
        let size = self.bar_size(bar);
        match offset.checked_add(len) {
            Some(end) if end <= size && len > 0 => Ok(()),
            _ => Err(PciError::NoSuchBar {
                bar,
                offset,
                len,
                size,
            }),
        }
    }
}

pub(crate) fn lock(inside: &Mutex<Inside>) -> MutexGuard<'_, Inside> {
    inside.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(what: &str) -> PciError {
    PciError::Io {
        what: what.to_owned(),
        source: std::io::ErrorKind::OutOfMemory.into(),
    }
}

impl PciFunction for Function {
    fn name(&self) -> &str {
        "fuzzed"
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(usize::from(offset)..) {
            *byte = self.config.get(at).copied().unwrap_or(u8::MAX);
        }
    }

    fn write_config(&self, _offset: u16, _data: &[u8]) {}

    fn bar_size(&self, bar: u8) -> u64 {
        let inside = lock(&self.inside);
        inside.bars.get(usize::from(bar)).copied().unwrap_or(0)
    }

    fn registers(&self, bar: u8, offset: u64, len: u64) -> Result<Window, PciError> {
        self.check(bar, offset, len)?;
        let access = Arc::new(Bar {
            bar,
            inside: Arc::clone(&self.inside),
        });
        Ok(Window::trapped(access, offset, len))
    }

    fn map_bar(&self, bar: u8, offset: u64, len: u64) -> Result<Area, PciError> {
        self.check(bar, offset, len)?;
        if len > MAX_MAPPED {
            return Err(failed("the window"));
        }
        let mapping = Mapping::anonymous(len as usize).map_err(|_| failed("the window"))?;
        Ok(mapping.into())
    }

    fn alloc_dma(&mut self, len: usize) -> Result<DmaMemory, PciError> {
        let mapping = Mapping::anonymous(len).map_err(|_| failed("DMA memory"))?;
        let bytes = Area::from(mapping);
        lock(&self.inside).dma = Some(bytes.clone());
        Ok(DmaMemory { bytes, iova: IOVA })
    }

    fn vectors(&self) -> u16 {
        lock(&self.inside).vectors
    }

    fn enable_vectors(&mut self, count: u16) -> Result<Vec<OwnedFd>, PciError> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fds: Option<Vec<OwnedFd>> = (0..count).map(|_| eventfd(0, flags).ok()).collect();
        let fds = fds.ok_or_else(|| failed("vectors"))?;
        let ours = fds.iter().map(|fd| fd.try_clone().ok());
        let ours: Option<Vec<OwnedFd>> = ours.collect();
        lock(&self.inside).fired = ours.ok_or_else(|| failed("vectors"))?;
        Ok(fds)
    }

    fn reset(&mut self) -> Result<(), PciError> {
        Ok(())
    }
}

/// Registers of one BAR.
#[derive(Debug)]
struct Bar {
    bar: u8,
    inside: Arc<Mutex<Inside>>,
}

impl RegisterAccess for Bar {
    fn read(&self, offset: u64, data: &mut [u8]) {
        lock(&self.inside).read(self.bar, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        lock(&self.inside).set(self.bar, offset, data);
    }
}
