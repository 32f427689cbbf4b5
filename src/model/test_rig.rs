//! A model between a test's driver and a test's front-end.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::faults::Fault;
use super::{FrontEnd, LinkState, Model, Shape};
use crate::memory::Area;
use crate::mmio::Window;
use crate::pci::{DmaMemory, PciError, PciFunction};
use crate::protocol::HEADER_LEN;

/// The test's side of a device: the front-end at its socket, and its inside through `model`.
#[derive(Debug, Clone)]
pub(crate) struct Rig {
    pub(crate) model: Model,
    pub(crate) path: PathBuf,
    front_end: Arc<Mutex<Option<UnixStream>>>,
    provider: Arc<Mutex<Provider>>,
}

/// Who provides a function, and may go.
#[derive(Debug, Default)]
struct Provider {
    /// Closed when it goes.
    hangup: Option<UnixStream>,
    /// Its device, while it is there.
    model: Option<Model>,
}

impl Rig {
    /// A watched, cruel device, and the function through which it is driven.
    pub(crate) fn new(shape: Shape) -> (Self, Box<dyn PciFunction>) {
        let rig = Self::cruel(shape);
        rig.provider.lock().unwrap().model = Some(rig.model.clone());
        let function = Provided::new(&rig.provider).unwrap();
        (rig, Box::new(function))
    }

    fn cruel(shape: Shape) -> Self {
        let rig = Self::kind(shape);
        rig.model.watch();
        rig.model.be_cruel();
        rig
    }

    /// The device is gone, with everything that it held.
    pub(crate) fn go(&self) {
        self.model.fault(Some(Fault::Gone));
        *self.provider.lock().unwrap() = Provider::default();
    }

    /// There is a device again, of this shape.
    pub(crate) fn come_back(self, shape: Shape) -> Self {
        let rig = Self {
            provider: Arc::clone(&self.provider),
            ..Self::cruel(shape)
        };
        rig.provider.lock().unwrap().model = Some(rig.model.clone());
        rig
    }

    /// A device that is neither.
    pub(crate) fn kind(shape: Shape) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vvu-rig-{}-{number}.sock", std::process::id());
        let path = std::env::temp_dir().join(name);
        Self {
            model: Model::new(shape, FrontEnd::Listen(path.clone())).unwrap(),
            path,
            front_end: Arc::default(),
            provider: Arc::default(),
        }
    }

    fn has_front_end(&self) -> bool {
        matches!(
            self.model.status().link,
            LinkState::Open | LinkState::Connected
        )
    }

    /// A front-end takes the place of the one that is there; it is let in when the driver is.
    pub(crate) fn connect(&self) {
        self.disconnect();
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_nonblocking(true).unwrap();
        *self.front_end.lock().unwrap() = Some(stream);
        until("a front-end", || self.has_front_end());
    }

    /// The front-end goes away.
    pub(crate) fn disconnect(&self) {
        *self.front_end.lock().unwrap() = None;
        until("no front-end", || !self.has_front_end());
    }

    /// Whether a front-end is there and was let in.
    pub(crate) fn is_connected(&self) -> bool {
        self.model.status().link == LinkState::Connected
    }

    /// The front-end sends a message.
    pub(crate) fn push(&self, message: &[u8]) {
        let front_end = self.front_end.lock().unwrap();
        front_end.as_ref().unwrap().write_all(message).unwrap();
    }

    /// The messages that the front-end received since it was asked last.
    pub(crate) fn sent(&self) -> Vec<Vec<u8>> {
        let mut bytes = Vec::new();
        let front_end = self.front_end.lock().unwrap();
        if let Some(mut stream) = front_end.as_ref()
            && let Err(error) = stream.read_to_end(&mut bytes)
        {
            let kind = error.kind();
            assert!(
                matches!(kind, ErrorKind::WouldBlock | ErrorKind::ConnectionReset),
                "{error}"
            );
        }
        let mut messages = Vec::new();
        while !bytes.is_empty() {
            let size = u32::from_le_bytes(*bytes[8..].first_chunk().unwrap());
            let rest = bytes.split_off(HEADER_LEN + size as usize);
            messages.push(std::mem::replace(&mut bytes, rest));
        }
        messages
    }

    /// Whether the device is quiet: reset, with no driver behind it.
    pub(crate) fn is_quiet(&self) -> bool {
        let status = self.model.status();
        status.device_status == 0 && matches!(status.link, LinkState::Initial | LinkState::Open)
    }
}

/// A function whose provider can go and come back.
struct Provided {
    function: Box<dyn PciFunction>,
    hangup: UnixStream,
    provider: Arc<Mutex<Provider>>,
}

impl Provided {
    fn new(provider: &Arc<Mutex<Provider>>) -> Result<Self, PciError> {
        let mut there = provider.lock().unwrap();
        let Some(model) = &there.model else {
            return Err(PciError::Io {
                what: "model".to_owned(),
                source: ErrorKind::NotConnected.into(),
            });
        };
        let (ours, theirs) = UnixStream::pair().unwrap();
        let function = model.function();
        there.hangup = Some(ours);
        Ok(Self {
            function,
            hangup: theirs,
            provider: Arc::clone(provider),
        })
    }
}

impl PciFunction for Provided {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.function.read_config(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        self.function.write_config(offset, data);
    }

    fn bar_size(&self, bar: u8) -> u64 {
        self.function.bar_size(bar)
    }

    fn registers(&self, bar: u8, offset: u64, len: u64) -> Result<Window, PciError> {
        self.function.registers(bar, offset, len)
    }

    fn map_bar(&self, bar: u8, offset: u64, len: u64) -> Result<Area, PciError> {
        self.function.map_bar(bar, offset, len)
    }

    fn alloc_dma(&mut self, len: usize) -> Result<DmaMemory, PciError> {
        self.function.alloc_dma(len)
    }

    fn vectors(&self) -> u16 {
        self.function.vectors()
    }

    fn enable_vectors(&mut self, count: u16) -> Result<Vec<OwnedFd>, PciError> {
        self.function.enable_vectors(count)
    }

    fn reset(&mut self) -> Result<(), PciError> {
        self.function.reset()
    }

    fn hangup(&self) -> Option<BorrowedFd<'_>> {
        Some(self.hangup.as_fd())
    }

    fn reopen(&mut self) -> Result<bool, PciError> {
        *self = Self::new(&self.provider)?;
        Ok(true)
    }
}

pub(crate) fn until(what: &str, good: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !good() {
        assert!(Instant::now() < deadline, "it never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
