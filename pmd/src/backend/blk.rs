//! A disk as a session sees it (VIRTIO 1.2, 5.2).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use vvu::memory::MemTable;
use vvu::virtio::{DeviceError, RingAreas, RingChange, VirtioDevice, Vring};

use super::net::setup;
use super::shelf::{self, Key};
use super::storage::{Storage, deadline};
use crate::blk::{Face, PrepareError, Prepared, Queue};
use crate::vring::{Moved, SetupError};
use crate::wake::{Kicks, Quiet};

/// VIRTIO device id of a block device.
const BLOCK: u16 = 2;

/// Workers that serve block devices.
pub type BlkWorkers = Storage<Queue>;

impl shelf::Queue for Queue {
    #[inline]
    fn poll(&mut self) -> bool {
        Queue::poll(self)
    }

    fn is_polled(&self) -> bool {
        Queue::is_polled(self)
    }

    fn is_resting(&self) -> bool {
        Queue::is_resting(self)
    }

    fn rest(&mut self) {
        Queue::rest(self);
    }

    fn enable_kicks(&mut self) -> Quiet {
        Queue::enable_kicks(self)
    }

    fn kicked(&mut self, kicks: &Kicks) {
        Queue::kicked(self, kicks);
    }

    fn disable_kicks(&mut self) {
        Queue::disable_kicks(self);
    }
}

/// What must be known of a running ring.
#[derive(Debug, Clone, Copy)]
struct Running {
    size: u16,
    features: u64,
    worker: usize,
}

/// A block device. The disk behind it outlives its connections.
#[derive(Debug)]
pub struct BlkDevice {
    face: Arc<Face>,
    workers: Arc<BlkWorkers>,
    number: u32,
    running: BTreeMap<u16, Running>,
}

fn prepare(error: PrepareError) -> DeviceError {
    match error {
        PrepareError::Ring(error) => setup(error),
        PrepareError::Disk(error) => {
            tracing::error!(%error, "ring refused");
            DeviceError::Unsupported("a queue of a disk that cannot be opened")
        }
    }
}

impl BlkDevice {
    /// The device with this face, its queues served by `workers`.
    pub fn new(face: Arc<Face>, workers: Arc<BlkWorkers>) -> Self {
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
        what: impl FnOnce(&mut Queue) -> R + Send + 'static,
    ) -> Result<R, DeviceError> {
        let worker = self.running(index)?.worker;
        self.workers.with(worker, self.key(index), what)
    }

    /// Waits until nothing of queue `index` is in flight, and says so if it takes too long.
    fn drain(&self, index: u16, deadline: Instant) -> Result<usize, DeviceError> {
        let worker = self.running(index)?.worker;
        let workers = &self.workers;
        let left = workers.drain(worker, self.key(index), deadline, Queue::drain)?;
        if left > 0 {
            let disk = self.face.name();
            tracing::error!(disk, ring = index, left, "requests do not end");
        }
        Ok(left)
    }

    fn stop(&mut self, index: u16, deadline: Instant) -> Result<u32, DeviceError> {
        let worker = self.running(index)?.worker;
        let drained = self.drain(index, deadline);
        self.running.remove(&index);
        let queue = self.workers.remove(worker, self.key(index))?;
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

impl VirtioDevice for BlkDevice {
    fn device_id(&self) -> u16 {
        BLOCK
    }

    fn features(&self) -> u64 {
        self.face.features()
    }

    fn queues(&self) -> u16 {
        self.face.queues()
    }

    fn tracks_inflight(&self) -> bool {
        true
    }

    fn config_changes(&self) -> Option<u64> {
        Some(self.face.resizes())
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) -> Result<(), DeviceError> {
        let space = self.face.space();
        let start = offset as usize;
        let bytes = start
            .checked_add(data.len())
            .and_then(|end| space.get(start..end))
            .ok_or(DeviceError::Config {
                access: "read",
                offset,
                len: data.len(),
            })?;
        data.copy_from_slice(bytes);
        Ok(())
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
        let offered = self.features();
        if features & !offered != 0 {
            return Err(DeviceError::Features {
                acked: features,
                offered,
            });
        }
        // Every ring brings the features it is started with.
        Ok(())
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
        let prepared = Prepared::new(ring, Arc::clone(&self.face), waker).map_err(prepare)?;
        let queue = prepared.start();
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
            let lists = Queue::lists(size, &memory);
            moves.push((index, moved.map_err(setup)?, lists));
        }
        // A running ring without a new place would go on with the old memory.
        let missing = |index: &&u16| !moves.iter().any(|(moved, ..)| moved == *index);
        if let Some(&index) = self.running.keys().find(missing) {
            return Err(DeviceError::RingState {
                index,
                state: "running but has no place in the new memory",
            });
        }
        // What is in flight has the old memory.
        let (mut stuck, deadline) = (None, deadline());
        for &(index, ..) in &moves {
            if self.drain(index, deadline)? > 0 {
                stuck = Some(index);
            }
        }
        for (index, moved, lists) in moves {
            // The old memory is unmapped on this side.
            drop(self.with(index, move |queue| {
                let old = stuck.is_none().then(|| queue.set_memory(moved, lists));
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
            let _ = self.with(index, Queue::drain);
        }
        for index in all {
            if let Err(error) = self.stop(index, deadline) {
                tracing::error!(disk = self.face.name(), ring = index, %error, "ring not stopped");
            }
        }
        self.running.clear();
        self.face.reset();
    }
}
