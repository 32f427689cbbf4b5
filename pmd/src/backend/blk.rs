//! A disk as a session sees it (VIRTIO 1.2, 5.2).

use std::sync::Arc;

use vvu::memory::MemTable;
use vvu::notify::Call;
use vvu::virtio::{DeviceError, Vring};

use super::common::setup;
use super::device::{self, Front, StorageDevice};
use super::shelf;
use super::storage::Storage;
use crate::blk::{Face, Lists, PrepareError, Prepared, Queue};
use crate::vring::Moved;
use crate::wake::{Kicks, Quiet, Waker, Watch};

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

impl shelf::Queue for Queue {
    #[inline]
    fn poll(&mut self) -> bool {
        Self::poll(self)
    }

    fn is_polled(&self) -> bool {
        Self::is_polled(self)
    }

    fn is_resting(&self) -> bool {
        Self::is_resting(self)
    }

    fn rest(&mut self) {
        Self::rest(self);
    }

    fn enable_kicks(&mut self) -> Quiet {
        Self::enable_kicks(self)
    }

    fn kicked(&mut self, kicks: &Kicks) {
        Self::kicked(self, kicks);
    }

    fn disable_kicks(&mut self) {
        Self::disable_kicks(self);
    }
}

impl device::Queue for Queue {
    type Spare = Lists;

    fn drain(&mut self) -> usize {
        Self::drain(self)
    }

    fn resume(&mut self) {
        Self::resume(self);
    }

    fn set_enabled(&mut self, enabled: bool) {
        Self::set_enabled(self, enabled);
    }

    fn set_kick(&mut self, watch: Watch) -> Watch {
        Self::set_kick(self, watch)
    }

    fn set_call(&mut self, call: Call) -> Call {
        Self::set_call(self, call)
    }

    fn set_err(&mut self, err: Call) -> Call {
        Self::set_err(self, err)
    }

    fn spare(size: u16, memory: &Arc<MemTable>) -> Self::Spare {
        Self::lists(size, memory)
    }

    fn set_memory(&mut self, moved: Moved, spare: Self::Spare) -> (Moved, Self::Spare) {
        Self::set_memory(self, moved, spare)
    }

    fn base(&self) -> u32 {
        Self::base(self)
    }

    fn stopped(&self) {
        Self::stopped(self);
    }
}
