//! A VVU function in this process, for tests, and a cruel one.
//!
//! It obeys the drafts where a driver may rely on them and nowhere else: buffers come back in
//! another order, their rests are poisoned, returned lengths of sent buffers are nonsense. What a
//! test can make it do wrong is in [`Faults`]; what the driver does wrong is in
//! [`Fake::violations`].

mod model;
mod ring;
mod shape;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::memory::{Area, Mapping};
use crate::mmio::{RegisterAccess, Window};
use crate::pci::{DmaMemory, PciError, PciFunction};

use model::Model;
pub use model::Op;
pub use shape::Shape;

/// What the device does wrong.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Vectors read back as refused.
    pub refuse_vectors: bool,
    /// FEATURES_OK does not stay set.
    pub refuse_features: bool,
    /// A reset does not finish.
    pub stuck_reset: bool,
    /// Everything reads as ones.
    pub gone: bool,
    /// Sent messages are not taken.
    pub hold_tx: bool,
    /// How the next received message is returned.
    pub lie: Option<Lie>,
}

/// A wrong entry in a used ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// This length, whatever was written.
    Length(u32),
    /// This descriptor.
    Id(u32),
    /// The used index moves by this much.
    Advance(u16),
}

/// The test's side of the device: the front-end and the device's inside.
#[derive(Debug, Clone)]
pub struct Fake {
    model: Arc<Mutex<Model>>,
}

impl Fake {
    /// A device of this shape, and the function through which it is driven.
    ///
    /// # Panics
    /// When the system has no memory for its window.
    pub fn new(shape: Shape) -> (Self, Box<dyn PciFunction>) {
        let fake = Self {
            model: Arc::new(Mutex::new(Model::new(shape))),
        };
        let function = Box::new(fake.function());
        (fake, function)
    }

    /// A new function for the same device, as a program that starts later finds it.
    ///
    /// # Panics
    /// When the system has no memory for its window.
    pub fn function(&self) -> FakeFunction {
        let mut model = self.lock();
        #[allow(clippy::expect_used)]
        let (memory, hangup) = {
            let memory = memfd_create("vvu-fake", MemfdFlags::CLOEXEC).expect("memfd");
            ftruncate(&memory, model.shape.window).expect("memfd size");
            let (ours, theirs) = UnixStream::pair().expect("socket pair");
            model.hangup = Some(ours);
            (memory, theirs)
        };
        FakeFunction {
            config: model.shape.config(),
            memory,
            hangup,
            model: self.model.clone(),
        }
    }

    /// The device is gone, with everything that it held.
    pub fn go(&self) {
        let mut model = self.lock();
        model.faults.gone = true;
        model.hangup = None;
    }

    /// There is a device again, of this shape.
    pub fn come_back(&self, shape: Shape) {
        *self.lock() = Model::new(shape);
    }

    fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the device do wrong.
    pub fn fault(&self, change: impl FnOnce(&mut Faults)) {
        let mut model = self.lock();
        change(&mut model.faults);
        model.work();
    }

    /// A front-end connects; it is let in when the driver is there.
    pub fn connect(&self) {
        self.lock().connect();
    }

    /// The front-end goes away.
    pub fn disconnect(&self) {
        self.lock().disconnect();
    }

    /// Another front-end takes the place of the one that is there, and the device forgets to say
    /// so in its status.
    pub fn swap(&self) {
        self.lock().generation += 1;
    }

    /// Whether a front-end is there and was let in.
    pub fn is_connected(&self) -> bool {
        self.lock().connected
    }

    /// The front-end sends a message.
    pub fn push(&self, message: &[u8]) {
        let mut model = self.lock();
        model.inbox.push_back(message.to_vec());
        model.work();
    }

    /// What the front-end received since it was asked last.
    pub fn sent(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.lock().outbox)
    }

    /// The front-end kicks a ring.
    pub fn kick(&self, ring: u16) {
        self.lock().kick(ring);
    }

    /// Doorbells rung since this was asked last.
    pub fn rung(&self) -> Vec<u16> {
        std::mem::take(&mut self.lock().rung)
    }

    /// The device has an error.
    pub fn need_reset(&self) {
        self.lock().need_reset();
    }

    /// What the driver did since this was asked last, in order.
    pub fn ops(&self) -> Vec<Op> {
        std::mem::take(&mut self.lock().ops)
    }

    /// What it must not have done.
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// How often the function was reset, how much DMA memory it has been given (in pieces), and
    /// whether the device is quiet: reset, with no driver behind it.
    pub fn state(&self) -> (u32, usize, bool) {
        let model = self.lock();
        (model.flrs, model.dma.len(), model.is_quiet())
    }
}

/// The driver's side of the device.
#[derive(Debug)]
pub struct FakeFunction {
    /// Configuration space.
    pub config: Vec<u8>,
    memory: OwnedFd,
    hangup: UnixStream,
    model: Arc<Mutex<Model>>,
}

impl FakeFunction {
    fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
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

impl PciFunction for FakeFunction {
    fn name(&self) -> &str {
        "fake"
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(usize::from(offset)..) {
            *byte = self.config.get(at).copied().unwrap_or(u8::MAX);
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        self.lock().ops.push(Op::Config(offset, data.to_vec()));
    }

    fn bar_size(&self, bar: u8) -> u64 {
        self.lock().shape.bar_size(bar)
    }

    fn registers(&self, bar: u8, offset: u64, len: u64) -> Result<Window, PciError> {
        self.check(bar, offset, len)?;
        let access = Arc::new(Bar {
            bar,
            model: self.model.clone(),
        });
        Ok(Window::trapped(access, offset, len))
    }

    fn map_bar(&self, bar: u8, offset: u64, len: u64) -> Result<Area, PciError> {
        self.check(bar, offset, len)?;
        Mapping::of_file(self.memory.as_fd(), offset, len)
            .map(Area::from)
            .map_err(|error| PciError::Io {
                what: "fake window".to_owned(),
                source: std::io::Error::other(error),
            })
    }

    fn alloc_dma(&mut self, len: usize) -> Result<DmaMemory, PciError> {
        let mapping = Mapping::anonymous(len).map_err(|error| PciError::Io {
            what: "fake DMA memory".to_owned(),
            source: std::io::Error::other(error),
        })?;
        let bytes = Area::from(mapping);
        let iova = self.lock().add_dma(bytes.clone());
        Ok(DmaMemory { bytes, iova })
    }

    fn vectors(&self) -> u16 {
        self.lock().shape.vectors
    }

    fn enable_vectors(&mut self, count: u16) -> Result<Vec<OwnedFd>, PciError> {
        let available = self.vectors();
        if count > available {
            return Err(PciError::Vectors {
                asked: count,
                available,
            });
        }
        let failed = |source: std::io::Error| PciError::Io {
            what: "fake vectors".to_owned(),
            source,
        };
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fds: Vec<OwnedFd> = (0..count)
            .map(|_| Ok(eventfd(0, flags)?))
            .collect::<std::io::Result<_>>()
            .map_err(failed)?;
        self.lock().vectors = fds
            .iter()
            .map(OwnedFd::try_clone)
            .collect::<std::io::Result<_>>()
            .map_err(failed)?;
        Ok(fds)
    }

    fn reset(&mut self) -> Result<(), PciError> {
        let mut model = self.lock();
        model.flrs += 1;
        model.reset();
        Ok(())
    }

    fn hangup(&self) -> Option<BorrowedFd<'_>> {
        Some(self.hangup.as_fd())
    }

    fn reopen(&mut self) -> Result<bool, PciError> {
        let fake = Fake {
            model: self.model.clone(),
        };
        if self.lock().faults.gone {
            return Err(PciError::Io {
                what: "fake".to_owned(),
                source: std::io::ErrorKind::NotConnected.into(),
            });
        }
        *self = fake.function();
        Ok(true)
    }
}

impl Drop for FakeFunction {
    fn drop(&mut self) {
        let mut model = self.lock();
        model.reset();
        model.dma.clear();
        model.vectors.clear();
    }
}

/// Registers of one BAR.
#[derive(Debug)]
struct Bar {
    bar: u8,
    model: Arc<Mutex<Model>>,
}

impl RegisterAccess for Bar {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        let value = model.read(self.bar, offset, data.len());
        let bytes = value.to_le_bytes();
        for (to, from) in data.iter_mut().zip(bytes) {
            *to = from;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        let value = data
            .iter()
            .rev()
            .fold(0u32, |value, byte| value << 8 | u32::from(*byte));
        model.write(self.bar, offset, data.len(), value);
    }
}
