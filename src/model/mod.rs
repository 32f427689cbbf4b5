//! The whole VVU function as a device model in software: the other side of the tunnel.
//!
//! A [`Model`] has two sides. To a bus it is a PCI function: configuration space, BARs, DMA maps,
//! interrupt vectors; [`Model::function`] is that as a driver in this process uses it, and a
//! [`Server`] offers it to another process. To a neighbour's VMM it is a vhost-user back-end at an
//! AF_UNIX socket. What travels between the two it passes on by the rules of docs/device.md, and
//! knows no driver.
//!
//! Registers act on the thread that accesses them; one thread of each model's own waits for the
//! front-end's messages and kicks. Neither side is trusted: nothing that they write makes the model
//! panic, wait, or touch what is not theirs.

mod channel;
mod config;
mod device;
#[cfg(any(test, feature = "test-utils"))]
pub mod faults;
#[cfg(not(any(test, feature = "test-utils")))]
#[path = "no_faults.rs"]
mod faults;
mod function;
mod kicks;
mod layout;
mod link;
mod messages;
mod queues;
mod receive;
mod registers;
mod server;
mod shape;
mod status;
#[cfg(test)]
pub(crate) mod test_rig;
mod thread;
mod transmit;
mod window;

#[cfg(test)]
mod tests;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::epoll;
use rustix::io::Errno;
use thiserror::Error;

use crate::memory::{Area, MemoryError};
use crate::pci::PciFunction;
use crate::socket::{Endpoint, EndpointError};
use config::PciConfig;
use device::{Locked, State};
use faults::Faults;
use kicks::Kicks;
use layout::{Kind, Layout};
use queues::DeviceQueue;
use window::Window;

pub use link::LinkState;
pub use server::{Server, ServerStatus};
pub use shape::{Dialect, Shape};
pub use status::{Counters, ModelStatus};

/// No MSI-X vector (VIRTIO 1.2, 4.1.5.1.2).
const NO_VECTOR: u16 = 0xffff;

/// Tokens of what the thread waits for; those below are rings.
const WAKE: u64 = 1 << 32;
const ENDPOINT: u64 = WAKE + 1;
const SOCKET: u64 = WAKE + 2;
const CHANNEL: u64 = WAKE + 3;

/// Bits of `device_status` (VIRTIO 1.2, 2.1) that mean something to the device.
mod device_status {
    pub(super) const DRIVER_OK: u8 = 4;
    pub(super) const FEATURES_OK: u8 = 8;
    pub(super) const NEEDS_RESET: u8 = 64;
}

/// Feature bits.
mod feature {
    pub(super) const LAYOUT: u64 = 1;
    pub(super) const BACKEND_CH: u64 = 1 << 1;
    pub(super) const INFLIGHT: u64 = 1 << 3;
    pub(super) const INDIRECT_DESC: u64 = 1 << 28;
    pub(super) const EVENT_IDX: u64 = 1 << 29;
    pub(super) const VERSION_1: u64 = 1 << 32;
    pub(super) const ACCESS_PLATFORM: u64 = 1 << 33;
}

/// Where front-ends come from. Both ways survive that the other side starts anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrontEnd {
    /// They connect to a socket at this path.
    Listen(PathBuf),
    /// They listen at this path.
    Connect(PathBuf),
}

/// What can go wrong with a model.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A shape that no device can have.
    #[error("{what} of {found} is not possible: {least} to {most}, where sizes are powers of two")]
    Shape {
        /// What of it.
        what: &'static str,
        /// The number found.
        found: u64,
        /// The least possible.
        least: u64,
        /// The most possible.
        most: u64,
    },
    /// The front-end's socket.
    #[error(transparent)]
    Socket(#[from] EndpointError),
    /// The memory window.
    #[error("the memory window: {0}")]
    Memory(#[from] MemoryError),
    /// The file that shall be the memory window.
    #[error("the peer's memory file cannot be the window: {0}")]
    PeerMemory(String),
    /// A DMA map or unmap that makes no sense.
    #[error("DMA addresses {iova:#x}+{len:#x}: {source}")]
    Dma {
        /// First address.
        iova: u64,
        /// Length in bytes.
        len: u64,
        /// Why not.
        source: Errno,
    },
    /// The operating system refused something.
    #[error("cannot set up the device: {0}")]
    System(#[from] std::io::Error),
}

/// What a model consists of, behind its handle.
#[derive(Debug)]
struct Shared {
    shape: Shape,
    layout: Layout,
    config: Mutex<PciConfig>,
    window: Window,
    kicks: Kicks,
    state: Mutex<State>,
    epoll: OwnedFd,
    wake: OwnedFd,
    stopping: AtomicBool,
    faults: Faults,
}

impl Shared {
    fn lock(&self) -> Locked<'_> {
        Locked {
            shared: self,
            state: self.state.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Feature bits offered.
    fn features(&self) -> u64 {
        let extended = match (self.shape.layout, self.window.peer()) {
            (false, _) => 0,
            // What the window shows cannot change.
            (true, Some(_)) => feature::LAYOUT | feature::BACKEND_CH,
            (true, None) => feature::LAYOUT | feature::BACKEND_CH | feature::INFLIGHT,
        };
        extended
            | feature::INDIRECT_DESC
            | feature::EVENT_IDX
            | feature::VERSION_1
            | feature::ACCESS_PLATFORM
    }
}

/// Configuration space as it is after a reset.
fn fresh_config(shared: &Shared) -> PciConfig {
    let mut config = PciConfig::new(&shared.shape, &shared.layout);
    shared.faults.config(config.bytes_mut());
    config
}

/// Ends the thread when the last handle is gone.
#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The work of a model that has no thread for it, for tests where one thing happens after the
/// other.
#[cfg(any(test, feature = "test-utils"))]
#[derive(Debug)]
pub struct ByHand {
    steps: thread::Steps,
}

#[cfg(any(test, feature = "test-utils"))]
impl ByHand {
    /// Does what there is to do, without waiting. Whether there was anything.
    pub fn work(&mut self) -> bool {
        let now = rustix::event::Timespec::default();
        self.steps.step(Some(&now)).unwrap_or(false)
    }
}

/// A VVU function in software. A cheap handle; the device ends with the last one. See the
/// [module](self).
#[derive(Debug, Clone)]
pub struct Model {
    owner: Arc<Owner>,
}

impl Model {
    /// A device of this shape for the front-ends that come from there.
    pub fn new(shape: Shape, front_end: FrontEnd) -> Result<Self, ModelError> {
        Self::build(shape, front_end, None)
    }

    /// A device whose memory window is this file from the start, byte for byte, for buses that
    /// cannot change what a BAR shows. Only a front-end whose memory this file is can be served;
    /// others are refused.
    pub fn with_peer_memory(
        shape: Shape,
        front_end: FrontEnd,
        file: OwnedFd,
    ) -> Result<Self, ModelError> {
        Self::build(shape, front_end, Some(file))
    }

    fn build(shape: Shape, front_end: FrontEnd, peer: Option<OwnedFd>) -> Result<Self, ModelError> {
        let (shared, endpoint) = Self::assemble(shape, front_end, peer)?;
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("vvu-model".to_owned())
                .spawn(move || thread::run(shared, endpoint))?
        };
        Ok(Self::owned(shared, Some(thread)))
    }

    /// The same without a thread: what that would do is done when [`ByHand::work`] is called.
    #[cfg(any(test, feature = "test-utils"))]
    pub fn by_hand(
        shape: Shape,
        front_end: FrontEnd,
        peer: Option<OwnedFd>,
    ) -> Result<(Self, ByHand), ModelError> {
        let (shared, endpoint) = Self::assemble(shape, front_end, peer)?;
        let steps = thread::Steps::new(Arc::clone(&shared), endpoint);
        Ok((Self::owned(shared, None), ByHand { steps }))
    }

    /// What a [`Server`] has of it, for a connection that is served by hand.
    #[cfg(any(test, feature = "test-utils"))]
    pub fn served(&self) -> impl crate::vfio_user::Served + use<> {
        server::Modelled::new(self.clone())
    }

    fn owned(shared: Arc<Shared>, thread: Option<JoinHandle<()>>) -> Self {
        Self {
            owner: Arc::new(Owner { shared, thread }),
        }
    }

    fn assemble(
        shape: Shape,
        front_end: FrontEnd,
        peer: Option<OwnedFd>,
    ) -> Result<(Arc<Shared>, Endpoint), ModelError> {
        shape.check()?;
        let layout = Layout::new(&shape);
        let endpoint = match &front_end {
            FrontEnd::Listen(path) => Endpoint::listen(path)?,
            FrontEnd::Connect(path) => Endpoint::connect(path)?,
        };
        let system = |errno: Errno| ModelError::System(errno.into());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(system)?;
        let wake = kicks::event().map_err(system)?;
        let data = epoll::EventData::new_u64(WAKE);
        epoll::add(&epoll, &wake, data, epoll::EventFlags::IN).map_err(system)?;
        let queue = || DeviceQueue::new(shape.queue_size);
        let shared = Arc::new(Shared {
            config: Mutex::new(PciConfig::new(&shape, &layout)),
            window: Window::new(layout.get(Kind::Memory).len, peer)?,
            kicks: Kicks::new(shape.usable_rings(), shape.vectors, epoll.try_clone()?),
            state: Mutex::new(State::new([queue()?, queue()?])),
            layout,
            epoll,
            wake,
            stopping: AtomicBool::new(false),
            faults: Faults::new(),
            shape,
        });
        Ok((shared, endpoint))
    }

    fn shared(&self) -> &Shared {
        &self.owner.shared
    }

    /// Reads configuration space; bytes beyond its end read as ones.
    pub fn read_config(&self, offset: u16, data: &mut [u8]) {
        let window = {
            let config = self.config();
            config.read(offset, data);
            if self.shared().faults.is_gone() {
                data.fill(u8::MAX);
            }
            config.window(offset)
        };
        if let Some((bar, at, len)) = window
            && let Some(data) = data.get_mut(..len)
        {
            self.read_bar(bar, at, data);
        }
    }

    /// Writes configuration space; bits that are fixed stay as they are.
    pub fn write_config(&self, offset: u16, data: &[u8]) {
        let window = {
            let mut config = self.config();
            config.write(offset, data);
            self.shared().faults.wrote_config(offset, data);
            config.window(offset)
        };
        if let Some((bar, at, len)) = window
            && let Some(data) = data.get(..len)
        {
            self.write_bar(bar, at, data);
        }
    }

    fn config(&self) -> std::sync::MutexGuard<'_, PciConfig> {
        let config = &self.shared().config;
        config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Size of a BAR in bytes, a power of two; 0 if there is none.
    pub fn bar_size(&self, bar: u8) -> u64 {
        self.shared().bar_size(bar)
    }

    /// Reads registers or memory: one access of the width of `data`.
    pub fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) {
        self.shared().read_bar(bar, offset, data);
    }

    /// Writes registers or memory: one access of the width of `data`.
    pub fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) {
        self.shared().write_bar(bar, offset, data);
    }

    /// Memory of the BAR that has some, mapped. What it shows changes with the front-end's memory
    /// table; nothing else is in it, and `None` is the answer for registers.
    pub fn map_bar(&self, bar: u8, offset: u64, len: u64) -> Option<Area> {
        let memory = self.shared().layout.get(Kind::Memory);
        let at = offset.checked_sub(memory.offset)?;
        (bar == memory.bar).then(|| self.shared().window.area(at, len))?
    }

    /// Lets the function reach `bytes` at the addresses from `iova` on.
    pub fn map_dma(&self, iova: u64, bytes: Area) -> Result<(), ModelError> {
        let mut locked = self.shared().lock();
        locked.state.dma = queues::map(&locked.state.dma, iova, bytes)?;
        Ok(())
    }

    /// Takes back what was mapped in `iova..iova + len`, whole maps only. The function does not
    /// touch it any more when this returns.
    pub fn unmap_dma(&self, iova: u64, len: u64) -> Result<(), ModelError> {
        let mut locked = self.shared().lock();
        locked.state.dma = queues::unmap(&locked.state.dma, iova, len)?;
        Ok(())
    }

    /// Number of MSI-X vectors.
    pub fn vectors(&self) -> u16 {
        self.shared().shape.vectors
    }

    /// Names the eventfd that is written when a vector fires, or none. What fired while there was
    /// none fires at the next one.
    pub fn set_vector(&self, vector: u16, fd: Option<OwnedFd>) {
        self.shared().kicks.set_vector(vector, fd);
    }

    /// Function reset: like the driver's own, and configuration space is as at first.
    pub fn reset(&self) {
        let shared = self.shared();
        shared.lock().reset();
        *self.config() = fresh_config(shared);
        shared.faults.function_reset();
    }

    /// The BAR with the memory window.
    pub fn memory_bar(&self) -> u8 {
        self.shared().layout.get(Kind::Memory).bar
    }

    /// The file that the window shows for good, and its length, if there is such a file.
    pub fn peer_memory(&self) -> Option<(BorrowedFd<'_>, u64)> {
        self.shared().window.peer()
    }

    /// The function, for a driver in this process. Dropping it resets the device.
    pub fn function(&self) -> Box<dyn PciFunction> {
        Box::new(function::ModelFunction::new(self.clone()))
    }

    /// How it is.
    pub fn status(&self) -> ModelStatus {
        let shared = self.shared();
        let locked = shared.lock();
        let state = &*locked.state;
        ModelStatus {
            link: state.link,
            device_status: state.device_status,
            generation: state.generation,
            counters: Counters {
                kicks: shared.kicks.relayed.load(Ordering::Relaxed),
                doorbells: shared.kicks.rung.load(Ordering::Relaxed),
                ..state.counters
            },
            last_refusal: state.last_refusal.clone(),
        }
    }
}
