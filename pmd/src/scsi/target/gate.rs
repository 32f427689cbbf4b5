//! What makes COMPARE AND WRITE atomic among everybody who uses a unit.
//!
//! Whoever writes passes the unit's [`Gate`], through a [`Lane`] of its own, and says on that lane
//! that it is writing: two stores a burst that nobody else touches. Who wants to be alone closes
//! the gate, waits until no lane is written on, and has the unit to itself until it opens the gate
//! again. Nobody blocks: who finds the gate closed tries again later.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crossbeam_utils::CachePadded;

/// A unit's gate.
#[derive(Debug, Default)]
pub struct Gate {
    closed: AtomicBool,
    lanes: Mutex<Vec<Weak<CachePadded<AtomicBool>>>>,
}

/// One worker's way through a gate.
#[derive(Debug)]
pub struct Lane {
    gate: Arc<Gate>,
    /// Whether something is being written on this lane.
    busy: Arc<CachePadded<AtomicBool>>,
    /// How much.
    writing: u32,
}

/// To be alone behind a gate, or on the way to that. Dropping it opens the gate.
#[derive(Debug)]
pub struct Alone {
    gate: Arc<Gate>,
}

impl Gate {
    /// A lane of its own for a worker.
    pub fn lane(self: &Arc<Self>) -> Lane {
        let busy = Arc::new(CachePadded::new(AtomicBool::new(false)));
        let mut lanes = self.lanes();
        lanes.retain(|lane| lane.strong_count() > 0);
        lanes.push(Arc::downgrade(&busy));
        Lane {
            gate: Arc::clone(self),
            busy,
            writing: 0,
        }
    }

    /// Closes the gate. `None` if it is closed already.
    pub fn close(self: &Arc<Self>) -> Option<Alone> {
        let was = self.closed.swap(true, Ordering::SeqCst);
        (!was).then(|| Alone {
            gate: Arc::clone(self),
        })
    }

    fn lanes(&self) -> MutexGuard<'_, Vec<Weak<CachePadded<AtomicBool>>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Alone {
    /// Whether nothing is being written any more. Once true, it stays so.
    pub fn is_alone(&self) -> bool {
        // Pairs with the fence in `Lane::enter`: either it sees the gate closed, or we see it busy.
        fence(Ordering::SeqCst);
        let lanes = self.gate.lanes();
        let busy = |lane: &Weak<CachePadded<AtomicBool>>| {
            lane.upgrade()
                .is_some_and(|busy| busy.load(Ordering::Acquire))
        };
        !lanes.iter().any(busy)
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.gate.closed.store(false, Ordering::Release);
    }
}

impl Lane {
    /// Something is about to be written. False if the gate is closed: try again later.
    #[inline]
    pub fn enter(&mut self) -> bool {
        if self.writing == 0 {
            self.busy.store(true, Ordering::Relaxed);
            // Pairs with the fence in `Alone::is_alone`.
            fence(Ordering::SeqCst);
        }
        if self.gate.closed.load(Ordering::Acquire) {
            if self.writing == 0 {
                self.busy.store(false, Ordering::Release);
            }
            return false;
        }
        self.writing += 1;
        true
    }

    /// It was written.
    #[inline]
    pub fn leave(&mut self) {
        self.writing = self.writing.saturating_sub(1);
        if self.writing == 0 {
            self.busy.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn a_closed_gate_lets_nobody_in_and_waits_for_who_is() {
        let gate = Arc::new(Gate::default());
        let mut lane = gate.lane();
        assert!(lane.enter() && lane.enter());
        let alone = gate.close().unwrap();
        assert!(gate.close().is_none(), "only one at a time");
        assert!(!lane.enter() && !alone.is_alone());
        lane.leave();
        assert!(!alone.is_alone());
        lane.leave();
        assert!(alone.is_alone() && !lane.enter() && alone.is_alone());
        drop(alone);
        assert!(lane.enter());
        // A lane that is gone writes no more.
        drop(lane);
        assert!(gate.close().unwrap().is_alone());
    }

    #[test]
    fn increments_by_many_that_are_alone_are_not_lost() {
        // Each adds one by reading and writing, apart: only who is alone may.
        let (gate, sum) = (Arc::new(Gate::default()), Arc::new(AtomicU64::new(0)));
        let others = std::array::from_fn::<_, 4, _>(|n| {
            let (gate, sum) = (Arc::clone(&gate), Arc::clone(&sum));
            std::thread::spawn(move || {
                let mut lane = gate.lane();
                for round in 0..2000 {
                    if (round + n) % 4 == 0 {
                        let alone = loop {
                            match gate.close() {
                                Some(alone) => break alone,
                                None => std::thread::yield_now(),
                            }
                        };
                        while !alone.is_alone() {
                            std::thread::yield_now();
                        }
                        let was = sum.load(Ordering::Relaxed);
                        std::thread::yield_now();
                        sum.store(was + 1, Ordering::Relaxed);
                    } else {
                        while !lane.enter() {
                            std::thread::yield_now();
                        }
                        sum.fetch_add(1, Ordering::Relaxed);
                        lane.leave();
                    }
                }
            })
        });
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(sum.load(Ordering::Relaxed), 8000);
    }
}
