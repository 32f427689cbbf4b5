//! A storage device as a session sees it, whatever its kind: rings that are started, changed,
//! moved and stopped at workers.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

use vvu::memory::MemTable;
use vvu::virtio::{DeviceError, RingAreas, RingChange, VirtioDevice, Vring};

use super::common::{self, setup};
use super::shelf::{Key, Shelf};
use super::storage::{Storage, deadline};
use crate::queue::StorageQueue;
use crate::vring::{Moved, SetupError};
use crate::wake::Waker;
use crate::worker::Sender;

/// What a storage device looks like to its driver.
pub trait Front: Debug + Send + Sync + 'static {
    /// What serves its rings.
    type Queue: StorageQueue;

    /// VIRTIO device id (VIRTIO 1.2, section 5).
    const DEVICE_ID: u16;

    /// What it is called in logs.
    fn name(&self) -> &str;

    /// Feature bits to offer.
    fn features(&self) -> u64;

    /// Number of queues.
    fn queues(&self) -> u16;

    /// The configuration space now.
    fn space(&self) -> Vec<u8>;

    /// The driver writes to it. False if there is nothing that it may write so.
    fn write(&self, offset: u32, data: &[u8]) -> bool;

    /// How often its configuration space has changed by itself; `None` if it never does.
    fn config_changes(&self) -> Option<u64> {
        None
    }

    /// A queue for `ring`, at the worker that `waker` wakes.
    fn prepare(
        face: &Arc<Self>,
        ring: Vring,
        waker: &Arc<Waker>,
    ) -> Result<Self::Queue, DeviceError>;

    /// Queue `index` is about to be served, and can be reached; or it is not any more.
    fn connect(&self, _index: u16, _place: Option<Place<Self::Queue>>) {}

    /// The driver is gone, or begins anew.
    fn reset(&self);
}

/// Where a queue is served.
pub struct Place<Q> {
    sender: Sender<Shelf<Q>>,
    key: Key,
}

impl<Q: StorageQueue> Place<Q> {
    /// Runs `what` on the queue between two rounds; not at all if it is not served any more.
    pub fn post(&self, what: impl FnOnce(&mut Q) + Send + 'static) {
        let key = self.key;
        self.sender.post(move |shelf| {
            if let Some(queue) = shelf.get(key) {
                what(queue);
            }
        });
    }
}

/// What must be known of a running ring.
#[derive(Debug, Clone, Copy)]
struct Running {
    size: u16,
    features: u64,
    worker: usize,
}

/// A storage device. What is behind it outlives its connections.
#[derive(Debug)]
pub struct StorageDevice<F: Front> {
    face: Arc<F>,
    workers: Arc<Storage<F::Queue>>,
    number: u32,
    running: BTreeMap<u16, Running>,
}

impl<F: Front> StorageDevice<F> {
    /// The device with this face, its queues served by `workers`.
    pub fn new(face: Arc<F>, workers: Arc<Storage<F::Queue>>) -> Self {
        Self {
            face,
            number: workers.number(),
            workers,
            running: BTreeMap::new(),
        }
    }

    fn key(&self, queue: u16) -> Key {
        Key {
            device: self.number,
            queue,
        }
    }

    fn running(&self, index: u16) -> Result<Running, DeviceError> {
        let queues = self.face.queues();
        if index >= queues {
            return Err(DeviceError::NoQueue { index, queues });
        }
        let running = self.running.get(&index).copied();
        running.ok_or(DeviceError::RingState {
            index,
            state: "not running",
        })
    }

    /// Runs `what` on queue `index`, at its worker.
    fn with<R: Send + 'static>(
        &self,
        index: u16,
        what: impl FnOnce(&mut F::Queue) -> R + Send + 'static,
    ) -> Result<R, DeviceError> {
        let worker = self.running(index)?.worker;
        self.workers.with(worker, self.key(index), what)
    }

    /// Waits until nothing of queue `index` is in flight, and says so if it takes too long.
    fn drain(&self, index: u16, deadline: Instant) -> Result<usize, DeviceError> {
        let (worker, key) = (self.running(index)?.worker, self.key(index));
        let drain = <F::Queue as StorageQueue>::drain;
        let left = self.workers.drain(worker, key, deadline, drain)?;
        if left > 0 {
            let device = self.face.name();
            tracing::error!(device, ring = index, left, "requests do not end");
        }
        Ok(left)
    }

    fn stop(&mut self, index: u16, deadline: Instant) -> Result<u32, DeviceError> {
        let worker = self.running(index)?.worker;
        let drained = self.drain(index, deadline);
        self.running.remove(&index);
        let queue = self.workers.remove(worker, self.key(index))?;
        self.face.connect(index, None);
        let queue = queue.ok_or(DeviceError::RingState {
            index,
            state: "not running",
        })?;
        queue.stopped();
        match drained? {
            0 => Ok(queue.base()),
            _ => Err(DeviceError::RingState {
                index,
                state: "waiting for a disk that does not answer",
            }),
        }
    }
}

impl<F: Front> VirtioDevice for StorageDevice<F> {
    fn device_id(&self) -> u16 {
        F::DEVICE_ID
    }

    fn features(&self) -> u64 {
        self.face.features()
    }

    fn queues(&self) -> u16 {
        self.face.queues()
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) -> Result<(), DeviceError> {
        let space = self.face.space();
        common::read_space(&space, offset, data)
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<(), DeviceError> {
        if self.face.write(offset, data) {
            return Ok(());
        }
        Err(DeviceError::Config {
            access: "write",
            offset,
            len: data.len(),
        })
    }

    fn set_features(&mut self, features: u64) -> Result<(), DeviceError> {
        // Every ring brings the features it is started with.
        common::check_features(features, self.features())
    }

    fn tracks_inflight(&self) -> bool {
        true
    }

    fn config_changes(&self) -> Option<u64> {
        self.face.config_changes()
    }

    fn start_ring(&mut self, ring: Vring) -> Result<(), DeviceError> {
        let index = ring.index;
        match self.running(index) {
            Ok(_) => {
                return Err(DeviceError::RingState {
                    index,
                    state: "running already",
                });
            }
            Err(error @ DeviceError::NoQueue { .. }) => return Err(error),
            Err(_) => {}
        }
        let worker = self.workers.choose();
        let running = Running {
            size: ring.size,
            features: ring.features,
            worker,
        };
        let waker = self.workers.waker(worker)?;
        let queue = F::prepare(&self.face, ring, waker)?;
        let place = Place {
            sender: self.workers.sender(worker)?,
            key: self.key(index),
        };
        self.face.connect(index, Some(place));
        self.workers.add(worker, self.key(index), queue)?;
        self.running.insert(index, running);
        Ok(())
    }

    fn change_ring(&mut self, index: u16, change: RingChange) -> Result<(), DeviceError> {
        // Old descriptors are closed on this side. The worker polls all rings after any request,
        // so a kick that went to the old descriptor is not missed.
        match change {
            RingChange::Kick(kick) => {
                let waker = self.workers.waker(self.running(index)?.worker)?;
                let watch = waker.watch(kick);
                let watch = watch.map_err(|error| setup(SetupError::Kick(error)))?;
                drop(self.with(index, move |queue| queue.set_kick(watch))?);
            }
            RingChange::Call(call) => {
                drop(self.with(index, move |queue| queue.set_call(call))?);
            }
            RingChange::Err(err) => {
                drop(self.with(index, move |queue| queue.set_err(err))?);
            }
            RingChange::Enabled(enabled) => {
                self.with(index, move |queue| queue.set_enabled(enabled))?;
            }
        }
        Ok(())
    }

    fn stop_ring(&mut self, index: u16) -> Result<u32, DeviceError> {
        self.stop(index, deadline())
    }

    fn set_memory(
        &mut self,
        memory: Arc<MemTable>,
        places: Vec<(u16, RingAreas)>,
    ) -> Result<(), DeviceError> {
        let mut moves = Vec::new();
        for (index, areas) in places {
            let Running { size, features, .. } = self.running(index)?;
            let moved = Moved::new(Arc::clone(&memory), areas, size, features);
            let spare = F::Queue::spare(size, &memory);
            moves.push((index, moved.map_err(setup)?, spare));
        }
        let moved = moves.iter().map(|(index, ..)| *index);
        common::check_moved(self.running.keys().copied(), moved)?;
        // What is in flight has the old memory.
        let (mut stuck, deadline) = (None, deadline());
        for &(index, ..) in &moves {
            if self.drain(index, deadline)? > 0 {
                stuck = Some(index);
            }
        }
        for (index, moved, spare) in moves {
            // The old memory is unmapped on this side.
            drop(self.with(index, move |queue| {
                let old = stuck.is_none().then(|| queue.set_memory(moved, spare));
                queue.resume();
                old
            })?);
        }
        match stuck {
            None => Ok(()),
            Some(index) => Err(DeviceError::RingState {
                index,
                state: "waiting for a disk that does not answer",
            }),
        }
    }

    fn reset(&mut self) {
        let all: Vec<u16> = self.running.keys().copied().collect();
        let deadline = deadline();
        // All begin to end before any is waited for.
        for &index in &all {
            let _ = self.with(index, <F::Queue as StorageQueue>::drain);
        }
        for index in all {
            if let Err(error) = self.stop(index, deadline) {
                tracing::error!(device = self.face.name(), ring = index, %error, "ring not stopped");
            }
        }
        self.running.clear();
        self.face.reset();
    }
}
