//! What a model does wrong when a test tells it to, each fault by name, and what it sees of its
//! driver meanwhile. Production has none of this, see `no_faults.rs`.
//!
//! A fault lies where the device's inside meets the driver: configuration space, registers, used
//! rings, interrupts. What the device knows itself stays true, so that it serves again as soon as
//! the fault is taken back.

mod config;
mod queue;
mod register;
mod watch;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::layout::{Kind, Layout};
use super::link::LinkEvent;
use super::queues::{Buffer, DeviceQueue, Dma, QueueError};
use super::{Model, Shape, device_status as status};
use watch::Watcher;

pub use watch::Op;

/// Something that a device does wrong, for as long as it is told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The virtio capability of this type is not there.
    NoCapability(u8),
    /// All structures are where the common configuration is.
    SamePlace,
    /// The list of capabilities leads back to its beginning.
    Loop,
    /// A structure lies in a BAR that cannot exist.
    NoBar,
    /// The window lies behind the end of its BAR.
    BeyondBar,
    /// The common configuration is too short.
    ShortStructure,
    /// The window is shorter than what memory tables need.
    ShortWindow,

    /// This feature is not offered.
    NoFeature(u8),
    /// FEATURES_OK does not stay set.
    FeaturesRefused,
    /// A reset does not finish.
    StuckReset,
    /// Everything reads as ones, nothing can be written.
    Gone,
    /// Registers do after so many more were read; configuration space is there.
    GoneAfter(u32),
    /// max_vhost_queues.
    Rings(u32),
    /// Number of queues.
    Queues(u16),
    /// Size of rxq and txq.
    QueueSize(u16),
    /// No vector is granted.
    VectorsRefused,

    /// max_vhost_queues is another each time.
    RingsMove,
    /// The uuid is another each time.
    UuidMoves,
    /// conn_generation is another each time.
    GenerationMoves,
    /// config_generation is another each time.
    ConfigMoves,

    /// device_status reads as 0, whatever was written.
    StatusLost,
    /// The link's status is garbage.
    LinkGarbage,
    /// FRONTEND_UP without a front-end.
    Ghost,
    /// Both bits of the link's status change with each look.
    Flapping,
    /// DEVICE_NEEDS_RESET again whenever the driver is done.
    NeedsReset,

    /// This length for received messages.
    RxLength(u32),
    /// This descriptor for received messages.
    RxId(u32),
    /// Received messages are returned twice.
    RxTwice,
    /// rxq's used index moves by this much.
    RxAdvance(u16),
    /// A buffer of rxq is returned with what was in it before.
    RxStale,
    /// Messages reach the driver when their front-end is gone.
    RxLate,
    /// Messages never reach the driver.
    RxHeld,
    /// This length for sent messages.
    TxLength(u32),
    /// This descriptor for sent messages.
    TxId(u32),
    /// txq's used index moves by this much.
    TxAdvance(u16),
    /// Buffers of txq are returned before they are read.
    TxEarly,
    /// Sent messages are not taken.
    TxHeld,

    /// Interrupts without a cause.
    Storm,
    /// No interrupts of configuration and queues.
    Mute,
    /// The front-end is lost after so many messages.
    HangUp(u32),
}

/// All faults, by name.
pub const FAULTS: &[(&str, Fault)] = &[
    ("no common configuration", Fault::NoCapability(1)),
    ("no notifications", Fault::NoCapability(2)),
    ("no interrupt status", Fault::NoCapability(3)),
    ("no device configuration", Fault::NoCapability(4)),
    ("no doorbells", Fault::NoCapability(6)),
    ("no selector", Fault::NoCapability(7)),
    ("no memory", Fault::NoCapability(8)),
    ("structures in one place", Fault::SamePlace),
    ("capabilities in a circle", Fault::Loop),
    ("a structure in no BAR", Fault::NoBar),
    ("a window behind its BAR", Fault::BeyondBar),
    ("a structure too short", Fault::ShortStructure),
    ("a window too short", Fault::ShortWindow),
    ("no VERSION_1", Fault::NoFeature(32)),
    ("no ACCESS_PLATFORM", Fault::NoFeature(33)),
    ("features refused", Fault::FeaturesRefused),
    ("a reset without end", Fault::StuckReset),
    ("function gone", Fault::Gone),
    ("registers gone", Fault::GoneAfter(0)),
    ("gone after 1 register", Fault::GoneAfter(1)),
    ("gone after 2 registers", Fault::GoneAfter(2)),
    ("no rings", Fault::Rings(0)),
    ("2^32-1 rings", Fault::Rings(u32::MAX)),
    ("7 queues", Fault::Queues(7)),
    ("queues of size 0", Fault::QueueSize(0)),
    ("vectors refused", Fault::VectorsRefused),
    ("rings that change", Fault::RingsMove),
    ("a uuid that changes", Fault::UuidMoves),
    ("a generation that changes", Fault::GenerationMoves),
    ("a configuration that changes", Fault::ConfigMoves),
    ("device_status lost", Fault::StatusLost),
    ("link status garbage", Fault::LinkGarbage),
    ("a front-end that is not there", Fault::Ghost),
    ("link status flapping", Fault::Flapping),
    ("needs a reset each time", Fault::NeedsReset),
    ("rx: no bytes", Fault::RxLength(0)),
    ("rx: one byte too long", Fault::RxLength(8193)),
    ("rx: 2^32-1 bytes", Fault::RxLength(u32::MAX)),
    ("rx: a descriptor too high", Fault::RxId(64)),
    ("rx: descriptor 2^32-1", Fault::RxId(u32::MAX)),
    ("rx: a descriptor twice", Fault::RxTwice),
    ("rx: the index runs ahead", Fault::RxAdvance(65)),
    ("rx: the index jumps", Fault::RxAdvance(0x8000)),
    ("rx: early", Fault::RxStale),
    ("rx: late", Fault::RxLate),
    ("rx: never", Fault::RxHeld),
    ("tx: a length", Fault::TxLength(u32::MAX)),
    ("tx: a descriptor too high", Fault::TxId(64)),
    ("tx: descriptor 2^32-1", Fault::TxId(u32::MAX)),
    ("tx: the index runs ahead", Fault::TxAdvance(65)),
    ("tx: the index jumps", Fault::TxAdvance(0x8000)),
    ("tx: early", Fault::TxEarly),
    ("tx: never", Fault::TxHeld),
    ("interrupts without a cause", Fault::Storm),
    ("no interrupts", Fault::Mute),
    ("lost after message 1", Fault::HangUp(1)),
    ("lost after message 2", Fault::HangUp(2)),
    ("lost after message 3", Fault::HangUp(3)),
    ("lost after message 4", Fault::HangUp(4)),
    ("lost after message 5", Fault::HangUp(5)),
    ("lost after message 6", Fault::HangUp(6)),
    ("lost after message 7", Fault::HangUp(7)),
    ("lost after message 8", Fault::HangUp(8)),
    ("lost after message 9", Fault::HangUp(9)),
    ("lost after message 10", Fault::HangUp(10)),
    ("lost after message 11", Fault::HangUp(11)),
];

/// What is wrong, and what is watched.
#[derive(Debug, Default)]
struct Inner {
    fault: Option<Fault>,
    /// Messages delivered since the fault is there.
    messages: u32,
    /// Registers read since.
    reads: u32,
    /// See [`Model::be_cruel`].
    cruel: bool,
    /// Buffers of rxq that the cruel took and keeps for a while.
    pool: Vec<Buffer>,
    watcher: Option<Watcher>,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Faults {
    inner: Mutex<Inner>,
    /// Numbers that are another each time.
    looks: AtomicU32,
}

/// How far the cruel's notification offsets are from the queues' numbers.
const NOTIFY_SHIFT: u16 = 3;

impl Faults {
    pub(super) fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(&self, fault: Fault) -> bool {
        self.lock().fault == Some(fault)
    }

    /// Whether registers answer.
    fn answers(inner: &Inner) -> bool {
        match inner.fault {
            Some(Fault::Gone) => false,
            Some(Fault::GoneAfter(reads)) => inner.reads <= reads,
            _ => true,
        }
    }

    fn look(&self) -> u32 {
        1 + self.looks.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn is_gone(&self) -> bool {
        self.is(Fault::Gone)
    }

    /// Whether vectors fire now, for no reason.
    pub(super) fn storms(&self) -> bool {
        self.is(Fault::Storm)
    }

    pub(super) fn is_mute(&self) -> bool {
        self.is(Fault::Mute)
    }

    pub(super) fn holds_rx(&self) -> bool {
        matches!(self.lock().fault, Some(Fault::RxHeld | Fault::RxLate))
    }

    /// Whether a message that waited is delivered when it is too late.
    pub(super) fn is_late(&self) -> bool {
        self.is(Fault::RxLate)
    }

    pub(super) fn holds_tx(&self) -> bool {
        self.is(Fault::TxHeld)
    }

    pub(super) fn is_early(&self) -> bool {
        self.is(Fault::TxEarly)
    }

    pub(super) fn is_stale(&self) -> bool {
        self.is(Fault::RxStale)
    }

    /// A message was delivered; whether the front-end is lost now.
    pub(super) fn hangs_up(&self) -> bool {
        let mut inner = self.lock();
        inner.messages = inner.messages.wrapping_add(1);
        inner.fault == Some(Fault::HangUp(inner.messages))
    }

    /// The device was reset.
    pub(super) fn reset(&self) {
        self.lock().pool.clear();
    }

    /// The function was.
    pub(super) fn function_reset(&self) {
        if let Some(watcher) = &mut self.lock().watcher {
            watcher.reset();
        }
    }

    pub(super) fn wrote_config(&self, offset: u16, data: &[u8]) {
        if let Some(watcher) = &mut self.lock().watcher {
            watcher.ops.push(Op::Config(offset, data.to_vec()));
        }
    }
}

impl Shape {
    /// The configuration space of a function of this shape.
    pub fn config(&self) -> Vec<u8> {
        Layout::new(self).config(self)
    }
}

/// For tests.
impl Model {
    /// Does this wrong from now on, or nothing any more.
    pub fn fault(&self, fault: Option<Fault>) {
        let shared = self.shared();
        {
            let mut inner = shared.faults.lock();
            inner.fault = fault;
            (inner.messages, inner.reads) = (0, 0);
        }
        *self.config() = super::fresh_config(shared);
        let mut locked = shared.lock();
        // Who looks sees it, and what was held back goes its way.
        locked.config_changed();
        locked.deliver();
        locked.transmit();
    }

    /// From now on everything is done to a driver that the drafts allow: buffers come back in
    /// another order and poisoned, lengths of sent buffers are nonsense, notification offsets are
    /// not the queues' numbers.
    pub fn be_cruel(&self) {
        self.shared().faults.lock().cruel = true;
    }

    /// The device has an error.
    pub fn break_down(&self) {
        let mut locked = self.shared().lock();
        locked.state.device_status |= status::NEEDS_RESET;
        locked.on(LinkEvent::Broken);
        locked.config_changed();
    }

    /// Puts these bytes into a buffer of rxq, whatever they are; whether there was one.
    pub fn inject(&self, bytes: &[u8]) -> bool {
        let mut locked = self.shared().lock();
        locked.put(bytes).unwrap_or(false)
    }

    /// Raises the vector of a ring's kick, as if the front-end had kicked.
    pub fn kick(&self, ring: u8) {
        self.shared().kicks.raise(ring);
    }

    /// Remembers what the driver does from now on.
    pub fn watch(&self) {
        let shared = self.shared();
        shared.faults.lock().watcher = Some(Watcher::new(shared.shape.multiplier));
    }

    /// What the driver did since this was asked last, in order.
    pub fn ops(&self) -> Vec<Op> {
        let mut inner = self.shared().faults.lock();
        let watcher = inner.watcher.as_mut();
        watcher.map_or(Vec::new(), |watcher| std::mem::take(&mut watcher.ops))
    }

    /// Doorbells rung since this was asked last.
    pub fn rung(&self) -> Vec<u16> {
        let mut inner = self.shared().faults.lock();
        let watcher = inner.watcher.as_mut();
        watcher.map_or(Vec::new(), |watcher| std::mem::take(&mut watcher.rung))
    }

    /// What the driver must not have done.
    pub fn violations(&self) -> Vec<String> {
        let inner = self.shared().faults.lock();
        let watcher = inner.watcher.as_ref();
        watcher.map_or(Vec::new(), |watcher| watcher.violations.clone())
    }

    /// How often the function was reset while it was watched, and how many pieces of DMA memory it
    /// has.
    pub fn resets_and_maps(&self) -> (u32, usize) {
        use vm_memory::GuestMemoryBackend;
        let resets = {
            let inner = self.shared().faults.lock();
            inner.watcher.as_ref().map_or(0, |watcher| watcher.resets)
        };
        (resets, self.shared().lock().state.dma.num_regions())
    }
}
