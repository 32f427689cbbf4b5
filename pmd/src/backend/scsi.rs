//! A SCSI device as a session sees it (VIRTIO 1.2, 5.6).

use std::sync::Arc;

use vvu::virtio::{DeviceError, Vring};

use super::common::setup;
use super::device::{Front, Place, StorageDevice};
use super::storage::Storage;
use crate::scsi::{Face, Letter, Mailbox, Prepared, Queue};
use crate::wake::Waker;

/// VIRTIO device id of a SCSI host.
const SCSI: u16 = 8;

/// Workers that serve SCSI devices.
pub type ScsiWorkers = Storage<Queue>;

/// A SCSI device.
pub type ScsiDevice = StorageDevice<Face>;

impl Mailbox for Place<Queue> {
    fn post(&self, letter: Letter) {
        Self::post(self, move |queue| queue.deliver(letter));
    }
}

impl Front for Face {
    type Queue = Queue;

    const DEVICE_ID: u16 = SCSI;

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

    fn prepare(face: &Arc<Self>, ring: Vring, waker: &Arc<Waker>) -> Result<Queue, DeviceError> {
        let prepared = Prepared::new(ring, Arc::clone(face), waker);
        Ok(prepared.map_err(setup)?.start())
    }

    fn connect(&self, index: u16, place: Option<Place<Queue>>) {
        let mailbox = place.map(|place| Arc::new(place) as Arc<dyn Mailbox>);
        Self::connect(self, index, mailbox);
    }

    fn reset(&self) {
        Self::reset(self);
    }
}
