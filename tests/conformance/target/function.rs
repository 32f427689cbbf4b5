//! The function in QEMU as the machine's processor would see it, over qtest: registers by loads and
//! stores, DMA in memory that is shared with the machine, interrupts as the stores that they are.

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use rustix::event::{EventfdFlags, eventfd};
use vm_memory::{Bytes, VolatileMemory};
use vvu::memory::{Area, Mapping};
use vvu::mmio::Window;
use vvu::pci::{
    COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY, ConfigSpace, DmaMemory, PciError, PciFunction,
};

use super::qtest::{Bar, Qtest};

/// The machine's memory.
pub(super) const MEMORY: u64 = 64 << 20;
/// Where in it interrupts arrive, one word for each vector; nothing is at the legacy addresses.
const INTERRUPTS: u64 = 1 << 20;
/// From here on it is for DMA.
const DMA: u64 = 16 << 20;

/// Slot of the function on the first bus.
pub(super) const SLOT: u8 = 4;

/// Where BARs go: those up to 256 MiB below 4 GiB, larger ones high up.
const LOW: u64 = 0xc000_0000;
const HIGH: u64 = 0x40_0000_0000;
const LARGE: u64 = 256 << 20;

/// Capability ids.
const CAP_EXPRESS: u8 = 0x10;
const CAP_MSIX: u8 = 0x11;
/// MSI-X message control: the function sends MSI-X.
pub(super) const MSIX_ENABLE: u8 = 0x80;
/// PCI Express device capabilities (bit 28) and device control (bit 15): function level reset.
const FLR_CAPABLE: u8 = 0x10;
const FLR: u8 = 0x80;

/// What an interrupt stores; never zero.
const INTERRUPT: u32 = 0xa500;

/// The memory of the machine, mapped here.
pub(super) fn machine_memory(file: &OwnedFd) -> Result<Area> {
    Ok(Mapping::of_file(file.as_fd(), 0, MEMORY)?.into())
}

/// The function as the machine's processor would see it.
pub(super) struct Function {
    qtest: Arc<Qtest>,
    memory: Area,
    used: u64,
    /// Address and size of each BAR.
    bars: [(u64, u64); 6],
    vectors: u16,
    interrupts: Option<Interrupts>,
}

impl Function {
    pub(super) fn new(qtest: &Arc<Qtest>, memory: &OwnedFd) -> Result<Self> {
        let mut function = Self {
            qtest: Arc::clone(qtest),
            memory: machine_memory(memory)?,
            used: DMA,
            bars: [(0, 0); 6],
            vectors: 0,
            interrupts: None,
        };
        function.measure();
        function.place();
        function.vectors = ConfigSpace::read(&function).msix_vectors();
        Ok(function)
    }

    fn dword(&self, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        self.read_config(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Finds out how large the BARs are, and chooses addresses.
    fn measure(&mut self) {
        let (mut low, mut high) = (LOW, HIGH);
        let mut bar = 0;
        while bar < 6 {
            let register = 0x10 + 4 * bar as u16;
            self.write_config(register, &u32::MAX.to_le_bytes());
            let mask = self.dword(register);
            let wide = mask & 0b110 == 0b100;
            let mut writable = u64::from(mask & !0xf) | 0xffff_ffff << 32;
            if wide {
                self.write_config(register + 4, &u32::MAX.to_le_bytes());
                let upper = u64::from(self.dword(register + 4)) << 32;
                writable = upper | u64::from(mask & !0xf);
            }
            let size = writable.wrapping_neg();
            if mask != 0 {
                let next = if size > LARGE { &mut high } else { &mut low };
                let address = next.next_multiple_of(size);
                *next = address + size;
                self.bars[bar] = (address, size);
            }
            bar += if wide { 2 } else { 1 };
        }
    }

    /// Puts the BARs where they belong, and lets the function answer.
    fn place(&self) {
        for (bar, (address, size)) in self.bars.into_iter().enumerate() {
            let register = 0x10 + 4 * bar as u16;
            if size > 0 {
                let wide = self.dword(register) & 0b110 == 0b100;
                self.write_config(register, &(address as u32).to_le_bytes());
                if wide {
                    let upper = (address >> 32) as u32;
                    self.write_config(register + 4, &upper.to_le_bytes());
                }
            }
        }
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER;
        self.write_config(COMMAND, &command.to_le_bytes());
    }

    fn capability(&self, id: u8) -> Option<u16> {
        let space = ConfigSpace::read(self);
        let found = space.capabilities().find(|capability| capability.id == id);
        found.map(|capability| capability.offset.into())
    }

    /// Where MSI-X is turned on, and where its table is.
    pub(super) fn vector_table(&self) -> (u16, u64) {
        let at = self.capability(CAP_MSIX).expect("MSI-X");
        let table = self.dword(at + 4);
        let bar = self.bars[(table & 7) as usize].0;
        (at + 3, bar + u64::from(table & !7))
    }

    /// Lets each vector store its word, and the function send MSI-X.
    fn program_vectors(&self) {
        let (control, table) = self.vector_table();
        for vector in 0..u64::from(self.vectors) {
            let entry = table + 16 * vector;
            let address = INTERRUPTS + 4 * vector;
            let message = [address as u32, 0, INTERRUPT + vector as u32, 0];
            for (word, at) in message.into_iter().zip((entry..).step_by(4)) {
                self.qtest.store(at, &word.to_le_bytes());
            }
        }
        self.write_config(control, &[MSIX_ENABLE]);
    }

    fn check_range(&self, bar: u8, offset: u64, len: u64) -> Result<u64, PciError> {
        let (address, size) = self.bars.get(usize::from(bar)).copied().unwrap_or_default();
        match offset.checked_add(len) {
            Some(end) if len > 0 && end <= size => Ok(address),
            _ => Err(PciError::NoSuchBar {
                bar,
                offset,
                len,
                size,
            }),
        }
    }
}

fn failed(what: &str, source: impl Into<std::io::Error>) -> PciError {
    PciError::Io {
        what: what.to_owned(),
        source: source.into(),
    }
}

impl PciFunction for Function {
    fn name(&self) -> &str {
        "qemu"
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = match at {
                0..256 => self.qtest.config_byte(SLOT, at),
                _ => u8::MAX,
            };
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        self.qtest.set_config(SLOT, offset, data);
    }

    fn bar_size(&self, bar: u8) -> u64 {
        self.bars.get(usize::from(bar)).map_or(0, |(_, size)| *size)
    }

    fn registers(&self, bar: u8, offset: u64, len: u64) -> Result<Window, PciError> {
        let address = self.check_range(bar, offset, len)?;
        let access = Bar {
            qtest: Arc::clone(&self.qtest),
            address,
        };
        Ok(Window::trapped(Arc::new(access), offset, len))
    }

    fn map_bar(&self, bar: u8, _offset: u64, _len: u64) -> Result<Area, PciError> {
        let why = std::io::Error::from(ErrorKind::Unsupported);
        Err(failed(&format!("cannot map BAR {bar} through qtest"), why))
    }

    fn alloc_dma(&mut self, len: usize) -> Result<DmaMemory, PciError> {
        let iova = self.used;
        let bytes = usize::try_from(iova)
            .ok()
            .and_then(|at| self.memory.sub(at, len))
            .ok_or_else(|| failed("no memory is left", ErrorKind::OutOfMemory))?;
        self.used = (iova + len as u64).next_multiple_of(4096);
        let zeroed = bytes.slice().write_slice(&vec![0; len], 0);
        zeroed.map_err(|error| failed("clearing memory", std::io::Error::other(error)))?;
        Ok(DmaMemory { bytes, iova })
    }

    fn vectors(&self) -> u16 {
        self.vectors
    }

    fn enable_vectors(&mut self, count: u16) -> Result<Vec<OwnedFd>, PciError> {
        if count == 0 || count > self.vectors {
            return Err(PciError::Vectors {
                asked: count,
                available: self.vectors,
            });
        }
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fds: Vec<OwnedFd> = (0..count)
            .map(|_| eventfd(0, flags))
            .collect::<Result<_, _>>()
            .map_err(|error| failed("event descriptors", error))?;
        let signals = fds.iter().map(OwnedFd::try_clone);
        let signals = signals
            .collect::<Result<_, _>>()
            .map_err(|error| failed("event descriptors", error))?;
        self.interrupts = Some(Interrupts::start(self.memory.clone(), signals));
        self.program_vectors();
        Ok(fds)
    }

    fn reset(&mut self) -> Result<(), PciError> {
        if let Some(express) = self.capability(CAP_EXPRESS) {
            let mut capable = [0];
            self.read_config(express + 7, &mut capable);
            if capable[0] & FLR_CAPABLE != 0 {
                self.write_config(express + 9, &[FLR]);
                // What the system would put back.
                self.place();
                if self.interrupts.is_some() {
                    self.program_vectors();
                }
            }
        }
        Ok(())
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        self.interrupts = None;
    }
}

/// Turns what the function stores as interrupts into signals.
struct Interrupts {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Interrupts {
    fn start(memory: Area, signals: Vec<OwnedFd>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for (vector, signal) in signals.iter().enumerate() {
                        let at = INTERRUPTS as usize + 4 * vector;
                        let slice = memory.slice();
                        let word = slice.get_atomic_ref::<AtomicU32>(at).expect("memory");
                        if word.swap(0, Ordering::SeqCst) != 0 {
                            let _ = rustix::io::write(signal, &1u64.to_ne_bytes());
                        }
                    }
                    std::thread::sleep(Duration::from_micros(100));
                }
            })
        };
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
