//! Requests about the buffer that outlives us: who took what and has not given it back.
//!
//! The front-end asks for a buffer once and hands it over before it starts its rings, to us or to
//! whoever comes after us. What it says of a ring counts if we vanished without a word. Where a
//! ring was stopped by the book, or the device reset, the front-end knows better.

use std::os::fd::OwnedFd;

use super::SessionError;
use super::connection::{Connection, Handled, Outcome};
use crate::memory::{Area, copy, page_size};
use crate::protocol::{Features, Inflight};
use crate::virtio::inflight::{SPLIT, needed, stride};

/// Largest number of descriptors (VIRTIO 1.2, 2.7 and 2.8).
const MAX_SIZE: u16 = 32768;

/// A buffer that the front-end handed over.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Area,
    queues: u16,
    queue_size: u16,
}

impl Buffer {
    /// Whether bytes of it vanished under us.
    pub(super) fn is_lost(&self) -> bool {
        self.bytes.is_lost()
    }

    /// The region of a ring, which may be smaller than the buffer foresees.
    fn region(&self, index: u16, size: u16, packed: bool) -> Result<Area, SessionError> {
        let start = usize::from(index) * stride(self.queue_size, packed);
        let room = index < self.queues && size <= self.queue_size;
        let region = self.bytes.sub(start, needed(size, packed));
        region.filter(|_| room).ok_or(SessionError::Inflight {
            index,
            size,
            len: self.bytes.len(),
            queues: self.queues,
            queue_size: self.queue_size,
        })
    }
}

impl Connection {
    /// A buffer for as many queues as asked for, in the format that was negotiated. Whole pages:
    /// who shows it in a window can show nothing less.
    pub(super) fn get_inflight_fd(&mut self, wanted: Inflight) -> Handled {
        let Inflight {
            queues, queue_size, ..
        } = wanted;
        check("GET_INFLIGHT_FD", &wanted, self.state.rings.len())?;
        let regions = usize::from(queues) * stride(queue_size, self.is_packed());
        Ok(Outcome::Buffer(Inflight {
            mmap_size: regions.next_multiple_of(page_size()) as u64,
            mmap_offset: 0,
            queues,
            queue_size,
        }))
    }

    pub(super) fn set_inflight_fd(&mut self, buffer: &Inflight, attached: Vec<OwnedFd>) -> Handled {
        check("SET_INFLIGHT_FD", buffer, self.state.rings.len())?;
        if buffer.mmap_size == 0 {
            return Err(SessionError::Value {
                name: "SET_INFLIGHT_FD",
                value: buffer.mmap_size,
            });
        }
        if self.state.rings.iter().any(|ring| ring.running) {
            return Err(SessionError::RingsRun {
                name: "SET_INFLIGHT_FD",
            });
        }
        let bytes = self
            .transport
            .map_inflight(buffer.mmap_offset, buffer.mmap_size, attached)?;
        self.state.inflight = Some(Buffer {
            bytes,
            queues: buffer.queues,
            queue_size: buffer.queue_size,
        });
        tracing::info!(
            bytes = buffer.mmap_size,
            queues = buffer.queues,
            "requests in flight are tracked"
        );
        Ok(Outcome::Done)
    }

    fn is_packed(&self) -> bool {
        self.state.features.contains(Features::RING_PACKED)
    }

    /// Where ring `index` keeps book; nowhere if the front-end has no buffer. What a ring that is
    /// `settled` left there is forgotten: nothing is in flight, and the base is right.
    pub(super) fn inflight_region(
        &self,
        index: u16,
        size: u16,
        settled: bool,
    ) -> Result<Option<Area>, SessionError> {
        let Some(buffer) = &self.state.inflight else {
            return Ok(None);
        };
        let packed = self.is_packed();
        let region = buffer.region(index, size, packed)?;
        if settled {
            // The version is among these bytes; without one it is a new region.
            copy::write(&[0; SPLIT], region.slice());
        }
        Ok(Some(region))
    }

    /// The rings begin anew: whatever their books say means nothing, now or in a buffer that is
    /// handed over again.
    pub(super) fn forget_inflight(&mut self) {
        self.state.inflight = None;
        for ring in &mut self.state.rings {
            ring.settled = true;
        }
    }
}

/// What a buffer is for: rings that there are, of a size that there is.
fn check(name: &'static str, buffer: &Inflight, rings: usize) -> Result<(), SessionError> {
    let Inflight {
        queues, queue_size, ..
    } = *buffer;
    if queues == 0 || usize::from(queues) > rings {
        return Err(SessionError::Value {
            name,
            value: queues.into(),
        });
    }
    match queue_size {
        1..=MAX_SIZE => Ok(()),
        _ => Err(SessionError::Value {
            name,
            value: queue_size.into(),
        }),
    }
}
