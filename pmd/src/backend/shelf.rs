//! What a worker of storage devices polls: queues, of whatever devices.

use crate::queue::StorageQueue;
use crate::wake::{Kicks, Quiet};
use crate::worker::Poller;

/// Which queue of which device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    /// The device's number in its process.
    pub(super) device: u32,
    /// The queue's index.
    pub(super) queue: u16,
}

/// The queues of one worker.
#[derive(Debug)]
pub(super) struct Shelf<Q> {
    queues: Vec<(Key, Q)>,
    /// Places of those that a round looks at.
    awake: Vec<u16>,
    resting: usize,
    /// Place in `awake` of the one to begin with.
    first: usize,
}

impl<Q> Default for Shelf<Q> {
    fn default() -> Self {
        Self {
            queues: Vec::new(),
            awake: Vec::new(),
            resting: 0,
            first: 0,
        }
    }
}

impl<Q: StorageQueue> Shelf<Q> {
    /// Serves `queue` from now on.
    pub(super) fn add(&mut self, key: Key, queue: Q) {
        self.queues.push((key, queue));
        self.refresh();
    }

    /// Serves a queue no longer.
    pub(super) fn remove(&mut self, key: Key) -> Option<Q> {
        let at = self.queues.iter().position(|(other, _)| *other == key)?;
        let (_, queue) = self.queues.remove(at);
        self.refresh();
        Some(queue)
    }

    /// A queue that is served.
    pub(super) fn get(&mut self, key: Key) -> Option<&mut Q> {
        let found = self.queues.iter_mut().find(|(other, _)| *other == key);
        found.map(|(_, queue)| queue)
    }

    fn refresh(&mut self) {
        let polled = |(queue, place): (&(Key, Q), u16)| queue.1.is_polled().then_some(place);
        self.awake.clear();
        self.awake
            .extend(self.queues.iter().zip(0..).filter_map(polled));
        let resting = |(_, queue): &&(Key, Q)| queue.is_resting();
        self.resting = self.queues.iter().filter(resting).count();
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Q> {
        self.queues.iter_mut().map(|(_, queue)| queue)
    }
}

impl<Q: StorageQueue> Poller for Shelf<Q> {
    fn poll(&mut self, _now: u32) -> bool {
        let count = self.awake.len();
        if self.first >= count {
            self.first = 0;
        }
        let (before, after) = self.awake.split_at(self.first);
        let mut worked = false;
        for place in after.iter().chain(before) {
            if let Some((_, queue)) = self.queues.get_mut(usize::from(*place)) {
                worked |= queue.poll();
            }
        }
        // Nobody is always the first.
        self.first += 1;
        worked
    }

    fn enable_kicks(&mut self) -> Quiet {
        let quiet = self
            .all()
            .map(StorageQueue::enable_kicks)
            .fold(Quiet::Kicked, Quiet::and);
        self.refresh();
        quiet
    }

    fn disable_kicks(&mut self) {
        self.all().for_each(StorageQueue::disable_kicks);
        self.refresh();
    }

    fn rest(&mut self) {
        self.all().for_each(StorageQueue::rest);
        self.refresh();
    }

    fn kicked(&mut self, kicks: &Kicks) {
        self.all().for_each(|queue| queue.kicked(kicks));
        self.refresh();
    }

    fn resting(&self) -> usize {
        self.resting
    }

    fn has_mail(&self) -> bool {
        false
    }
}
