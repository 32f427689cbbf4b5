//! rxq and txq, as a device serves them: the driver's DMA memory, and rings in it that anybody may
//! have scribbled on.

use std::sync::Arc;

use rustix::io::Errno;
use thiserror::Error;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::guest_memory::Error as AccessError;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryRegion, GuestMemoryRegionBytes, GuestRegionCollection,
    GuestUsize, MemoryRegionAddress, VolatileSlice,
};

use super::ModelError;
use crate::memory::Area;

/// A range of the driver's memory that the function may reach.
#[derive(Debug)]
pub(super) struct DmaRegion {
    iova: u64,
    bytes: Area,
}

impl GuestMemoryRegion for DmaRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.bytes.len() as u64
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.iova)
    }

    fn bitmap(&self) {}

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_>, AccessError> {
        let offset = usize::try_from(offset.raw_value());
        let offset = offset.map_err(|_| AccessError::InvalidBackendAddress)?;
        Ok(self.bytes.slice().subslice(offset, count)?)
    }
}

impl GuestMemoryRegionBytes for DmaRegion {}

/// All of the driver's memory that the function may reach.
pub(super) type Dma = GuestRegionCollection<DmaRegion>;

/// Ranges that a driver may have mapped at a time: vfio's own limit.
const MAX_RANGES: usize = 65535;

/// `dma` with one more range.
pub(super) fn map(dma: &Dma, iova: u64, bytes: Area) -> Result<Dma, ModelError> {
    use vm_memory::GuestMemoryBackend;
    let len = bytes.len() as u64;
    let refused = |errno: Errno| ModelError::Dma {
        iova,
        len,
        source: errno,
    };
    if len == 0 || iova.checked_add(len).is_none() {
        return Err(refused(Errno::INVAL));
    }
    if dma.num_regions() >= MAX_RANGES {
        return Err(refused(Errno::NOSPC));
    }
    let region = Arc::new(DmaRegion { iova, bytes });
    dma.insert_region(region).map_err(|_| refused(Errno::EXIST))
}

/// `dma` without the ranges that lie in `iova..iova + len`. A range that lies there in part is an
/// error.
pub(super) fn unmap(dma: &Dma, iova: u64, len: u64) -> Result<Dma, ModelError> {
    use vm_memory::GuestMemoryBackend;
    let refused = |errno: Errno| ModelError::Dma {
        iova,
        len,
        source: errno,
    };
    let end = iova.checked_add(len).ok_or(refused(Errno::INVAL))?;
    let mut next = dma.clone();
    for region in dma.iter() {
        let (start, stop) = (region.iova, region.iova + region.bytes.len() as u64);
        if start >= iova && stop <= end {
            let removed = next.remove_region(GuestAddress(start), stop - start);
            next = removed.map_err(|_| refused(Errno::INVAL))?.0;
        } else if start < end && stop > iova {
            return Err(refused(Errno::INVAL));
        }
    }
    Ok(next)
}

/// What the driver did to a queue that cannot be served any more.
#[derive(Debug, Error)]
pub(super) enum QueueError {
    #[error("its rings are not in DMA memory")]
    Unmapped,
    #[error("its rings are corrupt: {0}")]
    Ring(#[from] virtio_queue::Error),
    #[error("a descriptor chain is broken")]
    Chain,
    #[error("a buffer is not in DMA memory: {0}")]
    Buffer(#[from] AccessError),
    #[error("a buffer of {found} bytes where {needed} are needed")]
    Small { found: u64, needed: u64 },
}

/// A queue and its interrupt vector.
#[derive(Debug)]
pub(super) struct DeviceQueue {
    pub(super) queue: Queue,
    pub(super) vector: u16,
}

/// A buffer of the driver's.
#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) head: u16,
    /// Address and length of the pieces of the kind that was asked for.
    pieces: Vec<(GuestAddress, usize)>,
    pub(super) len: u64,
}

impl DeviceQueue {
    pub(super) fn new(size: u16) -> Result<Self, ModelError> {
        let queue = Queue::new(size).map_err(|_| ModelError::Shape {
            what: "queue size",
            found: size.into(),
            least: 1,
            most: 1 << 15,
        })?;
        Ok(Self {
            queue,
            vector: super::NO_VECTOR,
        })
    }

    pub(super) fn reset(&mut self) {
        self.queue.reset();
        self.vector = super::NO_VECTOR;
    }

    /// The next buffer, with its writable or readable pieces; and asks to be told of more when
    /// there is none.
    pub(super) fn take(&mut self, dma: &Dma, writable: bool) -> Result<Option<Buffer>, QueueError> {
        if !self.queue.ready() {
            return Ok(None);
        }
        if !self.queue.is_valid(dma) {
            return Err(QueueError::Unmapped);
        }
        loop {
            let next = self.queue.iter(dma)?.next();
            if let Some(chain) = next {
                return Self::walk(chain, writable).map(Some);
            }
            if !self.queue.enable_notification(dma)? {
                return Ok(None);
            }
        }
    }

    fn walk(
        chain: virtio_queue::DescriptorChain<&Dma>,
        writable: bool,
    ) -> Result<Buffer, QueueError> {
        let mut buffer = Buffer {
            head: chain.head_index(),
            pieces: Vec::new(),
            len: 0,
        };
        // A chain that ends while it says that it goes on is one that the iterator gave up.
        let mut complete = false;
        for descriptor in chain {
            complete = !descriptor.has_next();
            if descriptor.is_write_only() == writable {
                let len = descriptor.len();
                buffer.pieces.push((descriptor.addr(), len as usize));
                buffer.len += u64::from(len);
            }
        }
        match complete {
            true => Ok(buffer),
            false => Err(QueueError::Chain),
        }
    }

    /// Gives a buffer back; whether the driver wants to be interrupted.
    pub(super) fn give(&mut self, dma: &Dma, head: u16, len: u32) -> Result<bool, QueueError> {
        self.queue.add_used(dma, head, len)?;
        Ok(self.queue.needs_notification(dma)?)
    }
}

impl Buffer {
    /// Writes `bytes`, which must fit.
    pub(super) fn write(&self, dma: &Dma, mut bytes: &[u8]) -> Result<(), QueueError> {
        let needed = bytes.len() as u64;
        let found = self.len;
        for (address, len) in &self.pieces {
            let (now, rest) = bytes.split_at_checked(*len).unwrap_or((bytes, &[]));
            dma.write_slice(now, *address)?;
            bytes = rest;
        }
        match bytes {
            [] => Ok(()),
            _ => Err(QueueError::Small { found, needed }),
        }
    }

    /// All bytes; the caller has looked at `len`.
    pub(super) fn read(&self, dma: &Dma) -> Result<Vec<u8>, QueueError> {
        let mut bytes = vec![0; self.len as usize];
        let mut rest = bytes.as_mut_slice();
        for (address, len) in &self.pieces {
            let (now, next) = rest.split_at_mut_checked(*len).ok_or(QueueError::Chain)?;
            dma.read_slice(now, *address)?;
            rest = next;
        }
        Ok(bytes)
    }
}
