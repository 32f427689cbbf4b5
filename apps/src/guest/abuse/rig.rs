//! An honest connection with running rings, for those who want to spoil it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vm_memory::Bytes;
use vvu::memory::Area;
use vvu::pci::DmaMemory;
use vvu::protocol::Features;
use vvu::virtqueue::Ring;

use super::{Device, Scene};
use crate::guest::error::GuestError;
use crate::guest::frames::ANYBODY;
use crate::guest::link::Link;
use crate::guest::memory::Memory;
use crate::guest::queues::{Format, Queue};
use crate::guest::tether::connected;

/// Descriptors in each ring.
pub(super) const SIZE: u16 = 64;
/// Bytes of the buffer of each descriptor.
pub(super) const BUFFER: u32 = 4096;
/// How long we look on.
const LOOK: Duration = Duration::from_millis(50);

/// Which ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Receive,
    Transmit,
    Request,
}

/// A descriptor: address, length, flags, next.
pub(super) type Desc = (u64, u32, u16, u16);

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

/// See the [module](self).
pub(super) struct Rig {
    pub(super) link: Link,
    pub(super) memory: Memory,
    /// A network card's rings, or a disk's first two.
    pub(super) receive: Queue,
    pub(super) transmit: Queue,
    /// A third ring, where the first two are not for a disk's requests.
    pub(super) request: Option<Queue>,
    /// `SIZE` pieces of `BUFFER` bytes for each ring.
    pub(super) buffers: DmaMemory,
    pub(super) header: usize,
}

impl Rig {
    /// Split rings that run and hold nothing; the memory can be shrunk.
    pub(super) fn new(scene: &mut Scene<'_>) -> Result<Self, GuestError> {
        Self::with(scene, false)
    }

    /// The same with packed rings; `None` if the back-end has none.
    pub(super) fn packed(scene: &mut Scene<'_>) -> Result<Option<Self>, GuestError> {
        match Self::with(scene, true) {
            Err(GuestError::Features { .. }) => Ok(None),
            outcome => outcome.map(Some),
        }
    }

    fn with(scene: &mut Scene<'_>, packed: bool) -> Result<Self, GuestError> {
        let timeout = Duration::from_secs(scene.options.timeout);
        let deadline = Instant::now() + timeout;
        scene.fresh()?;
        let (endpoint, options) = (&mut scene.endpoint, &scene.options);
        let socket = connected(endpoint, scene.socket, options, scene.shutdown, deadline)?;
        let mut wanted = scene.device.wanted(options);
        // Flags and indices are ours to lie with; notifications just have to arrive.
        wanted.features &= !Features::EVENT_IDX.bits();
        // The format is the deed's, not the options'.
        let bit = Features::RING_PACKED.bits();
        let with = |bits: u64| if packed { bits | bit } else { bits & !bit };
        (wanted.features, wanted.needed) = (with(wanted.features), with(wanted.needed));
        let mut link = Link::open(socket, wanted, timeout)?;
        let format = Format(link.features);
        let bytes = BUFFER as usize * usize::from(SIZE) * 2;
        let mut memory = match &scene.options.memory_file {
            Some(path) => Memory::in_file(path, 1)?,
            None => Memory::new((bytes + scene.device.more_memory()) as u64, 1, false)?,
        };
        let mut receive = Queue::new("receive", &mut memory, 0, SIZE, format)?;
        let mut transmit = Queue::new("transmit", &mut memory, 0, SIZE, format)?;
        let buffers = memory.alloc(0, bytes, 4096)?;
        let third = matches!(scene.device, Device::Disk(language, _) if language.others() > 0);
        let mut request = match third {
            true => Some(Queue::new("request", &mut memory, 0, SIZE, format)?),
            false => None,
        };
        let queues = [&mut receive, &mut transmit].into_iter();
        link.start(&memory, &mut None, queues.chain(request.as_mut()))?;
        let rig = Self {
            link,
            memory,
            receive,
            transmit,
            request,
            buffers,
            header: format.header(),
        };
        // Frames that a switch carries, so that there is something to receive if they come back.
        for index in 0..SIZE {
            let at = rig.buffer(Which::Transmit, index) + rig.header as u64;
            let addresses = [ANYBODY, [2, 0, 0, 0, 0, 2]].concat();
            rig.write(at, &addresses);
        }
        Ok(rig)
    }

    pub(super) fn queue(&self, which: Which) -> &Queue {
        match which {
            Which::Receive => &self.receive,
            Which::Transmit => &self.transmit,
            Which::Request => self.request.as_ref().unwrap_or(&self.transmit),
        }
    }

    /// The guest's address of a buffer.
    pub(super) fn buffer(&self, which: Which, index: u16) -> u64 {
        let lead = match which {
            Which::Receive => 0,
            Which::Transmit | Which::Request => SIZE,
        };
        self.buffers.iova + u64::from(BUFFER) * u64::from(lead + index % SIZE)
    }

    /// Writes into a buffer, by the guest's address.
    pub(super) fn write(&self, address: u64, bytes: &[u8]) {
        let offset = address.wrapping_sub(self.buffers.iova) as usize;
        put(&self.buffers.bytes, offset, bytes);
    }

    /// Reads from a buffer, by the guest's address.
    pub(super) fn read(&self, address: u64, bytes: &mut [u8]) {
        let offset = address.wrapping_sub(self.buffers.iova) as usize;
        let _ = self.buffers.bytes.slice().read_slice(bytes, offset);
    }

    /// Writes a descriptor.
    pub(super) fn desc(&self, which: Which, index: u16, desc: Desc) {
        let offset = 16 * usize::from(index);
        put(self.queue(which).ring.memory(), offset, &encode(desc));
    }

    /// A descriptor as it should be: of a whole buffer, or of a frame to send.
    pub(super) fn good(&self, which: Which, index: u16) -> Desc {
        let (len, flags) = match which {
            Which::Receive => (BUFFER, WRITE),
            Which::Transmit | Which::Request => (100, 0),
        };
        (self.buffer(which, index), len, flags, 0)
    }

    /// Where the driver's event structure is in a packed ring's memory.
    pub(super) fn event(ring: &Ring) -> usize {
        Self::avail(ring)
    }

    /// Where the available ring, or the used ring, begins in a ring's memory.
    pub(super) fn avail(ring: &Ring) -> usize {
        let at = ring.addresses();
        (at.driver - at.desc) as usize
    }

    pub(super) fn used(ring: &Ring) -> usize {
        let at = ring.addresses();
        (at.device - at.desc) as usize
    }

    /// Puts heads into the available ring from its beginning on.
    pub(super) fn offer(&self, which: Which, heads: impl IntoIterator<Item = u16>) {
        let ring = &self.queue(which).ring;
        let start = Self::avail(ring) + 4;
        for (n, head) in heads.into_iter().take(SIZE.into()).enumerate() {
            put(ring.memory(), start + 2 * n, &head.to_le_bytes());
        }
    }

    /// Publishes an available index, true or not, and kicks.
    pub(super) fn publish(&self, which: Which, index: u16) {
        let queue = self.queue(which);
        let at = Self::avail(&queue.ring) + 2;
        // Two bytes at an even address: stored at once, as the device must see them.
        let bytes = queue.ring.memory().slice();
        let _ = bytes.store(index.to_le(), at, Ordering::Release);
        queue.notify();
    }

    /// How many chains the back-end says to have used, modulo 2^16.
    pub(super) fn used_index(&self, which: Which) -> u16 {
        let ring = &self.queue(which).ring;
        let at = Self::used(ring) + 2;
        let index = ring.memory().slice().load(at, Ordering::Acquire);
        index.map_or(0, u16::from_le)
    }

    /// Looks on until the back-end has reacted, or had the time to.
    pub(super) fn look(&self) {
        self.look_until(|| false);
    }

    /// The same, or until something happened.
    pub(super) fn look_until(&self, happened: impl Fn() -> bool) {
        let queues = [Which::Receive, Which::Transmit, Which::Request].map(|one| self.queue(one));
        let end = Instant::now() + LOOK;
        while Instant::now() < end && !self.link.is_over() && !happened() {
            if queues.iter().any(|queue| queue.err.read().is_ok()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Writes bytes where they fit.
pub(super) fn put(area: &Area, offset: usize, bytes: &[u8]) {
    let _ = area.slice().write_slice(bytes, offset);
}

/// A descriptor as memory has it.
pub(super) fn encode((address, len, flags, next): Desc) -> [u8; 16] {
    let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
    (u128::from(rest) << 64 | u128::from(address)).to_le_bytes()
}
