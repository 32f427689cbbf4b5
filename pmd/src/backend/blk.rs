//! A disk as a session sees it (VIRTIO 1.2, 5.2).

use std::sync::Arc;

use vvu::virtio::{DeviceError, Vring};

use super::common::setup;
use super::device::{Front, StorageDevice};
use super::storage::Storage;
use crate::blk::{Face, PrepareError, Prepared, Queue};
use crate::wake::Waker;

/// VIRTIO device id of a block device.
const BLOCK: u16 = 2;

/// Workers that serve block devices.
pub type BlkWorkers = Storage<Queue>;

/// A block device.
pub type BlkDevice = StorageDevice<Face>;

impl Front for Face {
    type Queue = Queue;

    const DEVICE_ID: u16 = BLOCK;

    fn name(&self) -> &str {
        Self::name(self)
    }

    fn features(&self) -> u64 {
        Self::features(self)
    }

    fn queues(&self) -> u16 {
        Self::queues(self)
    }

    fn space(&self) -> Vec<u8> {
        Self::space(self).to_vec()
    }

    fn write(&self, offset: u32, data: &[u8]) -> bool {
        Self::write(self, offset, data)
    }

    fn config_changes(&self) -> Option<u64> {
        Some(self.resizes())
    }

    fn prepare(face: &Arc<Self>, ring: Vring, waker: &Arc<Waker>) -> Result<Queue, DeviceError> {
        match Prepared::new(ring, Arc::clone(face), waker) {
            Ok(prepared) => Ok(prepared.start()),
            Err(PrepareError::Ring(error)) => Err(setup(error)),
            Err(PrepareError::Disk(error)) => {
                tracing::error!(%error, "ring refused");
                Err(DeviceError::Unsupported(
                    "a queue of a disk that cannot be opened",
                ))
            }
        }
    }

    fn reset(&self) {
        Self::reset(self);
    }
}
