//! The threads that serve storage devices, and what control does with the queues there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vvu::virtio::DeviceError;

use super::shelf::{Key, Shelf};
use crate::queue::StorageQueue;
use crate::stats::{WorkerSnapshot, WorkerStats};
use crate::wake::Waker;
use crate::worker::{Polling, Sender, Worker, WorkerError};

/// How long requests in flight may take to end when rings are stopped.
const PATIENCE: Duration = Duration::from_secs(30);

/// When whoever begins to wait now for requests in flight has waited for long enough.
pub(super) fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// Time between two looks at them.
const LOOK: Duration = Duration::from_micros(200);

/// Workers for queues of kind `Q`.
#[derive(Debug)]
pub struct Storage<Q: StorageQueue> {
    workers: Vec<Thread<Q>>,
    devices: AtomicU32,
}

#[derive(Debug)]
struct Thread<Q: StorageQueue> {
    worker: Worker<Shelf<Q>>,
    /// Queues that are there.
    queues: AtomicUsize,
}

impl<Q: StorageQueue> Storage<Q> {
    /// Starts a worker on each of `cpus`.
    pub fn new(cpus: &[usize], polling: Polling) -> Result<Arc<Self>, WorkerError> {
        if cpus.is_empty() {
            return Err(WorkerError::NoCpu);
        }
        let mut workers = Vec::new();
        for (number, cpu) in cpus.iter().enumerate() {
            if cpus.iter().take(number).any(|other| other == cpu) {
                return Err(WorkerError::Twice(*cpu));
            }
            let stats = Arc::<WorkerStats>::default();
            let worker = Worker::start(*cpu, Shelf::default(), Waker::new()?, stats, polling)?;
            workers.push(Thread {
                worker,
                queues: AtomicUsize::new(0),
            });
        }
        Ok(Arc::new(Self {
            workers,
            devices: AtomicU32::new(0),
        }))
    }

    /// The counters of the workers.
    pub fn stats(&self) -> Vec<WorkerSnapshot> {
        let workers = self.workers.iter();
        workers.map(|thread| thread.worker.stats()).collect()
    }

    /// A number for one more device.
    pub(super) fn number(&self) -> u32 {
        self.devices.fetch_add(1, Ordering::Relaxed)
    }

    /// The worker with the fewest queues.
    pub(super) fn choose(&self) -> usize {
        let workers = self.workers.iter().enumerate();
        let load = |(_, thread): &(usize, &Thread<Q>)| thread.queues.load(Ordering::Relaxed);
        workers.min_by_key(load).map_or(0, |(number, _)| number)
    }

    fn thread(&self, number: usize) -> Result<&Thread<Q>, DeviceError> {
        self.workers.get(number).ok_or(DeviceError::WorkerGone)
    }

    /// What wakes worker `number`.
    pub(super) fn waker(&self, number: usize) -> Result<&Arc<Waker>, DeviceError> {
        Ok(self.thread(number)?.worker.waker())
    }

    /// What leaves mail for worker `number`.
    pub(super) fn sender(&self, number: usize) -> Result<Sender<Shelf<Q>>, DeviceError> {
        Ok(self.thread(number)?.worker.sender())
    }

    /// Worker `number` serves `queue` from now on.
    pub(super) fn add(&self, number: usize, key: Key, queue: Q) -> Result<(), DeviceError> {
        let thread = self.thread(number)?;
        let added = thread.worker.call(move |shelf| shelf.add(key, queue));
        added.map_err(|_| DeviceError::WorkerGone)?;
        thread.queues.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Worker `number` serves a queue no longer.
    pub(super) fn remove(&self, number: usize, key: Key) -> Result<Option<Q>, DeviceError> {
        let thread = self.thread(number)?;
        let queue = thread.worker.call(move |shelf| shelf.remove(key));
        let queue = queue.map_err(|_| DeviceError::WorkerGone)?;
        if queue.is_some() {
            thread.queues.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(queue)
    }

    /// Runs `what` on a queue, at its worker.
    pub(super) fn with<R: Send + 'static>(
        &self,
        number: usize,
        key: Key,
        what: impl FnOnce(&mut Q) -> R + Send + 'static,
    ) -> Result<R, DeviceError> {
        let thread = self.thread(number)?;
        let result = thread.worker.call(move |shelf| shelf.get(key).map(what));
        result
            .map_err(|_| DeviceError::WorkerGone)?
            .ok_or(DeviceError::RingState {
                index: key.queue,
                state: "not there",
            })
    }

    /// Waits until `left`, asked at the worker, says that nothing of a queue is in flight. Returns
    /// what is left at `deadline`.
    pub(super) fn drain(
        &self,
        number: usize,
        key: Key,
        deadline: Instant,
        left: fn(&mut Q) -> usize,
    ) -> Result<usize, DeviceError> {
        loop {
            let left = self.with(number, key, left)?;
            if left == 0 || Instant::now() > deadline {
                return Ok(left);
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl<Q: StorageQueue> Drop for Storage<Q> {
    fn drop(&mut self) {
        for thread in &self.workers {
            thread.worker.stop();
        }
    }
}
