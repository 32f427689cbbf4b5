#![allow(clippy::unwrap_used)]
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vvu::notify::Kick;

use super::offload::Accepts;
use super::{Heads, PreparedRing, RingKind, Rings, RxPort, VhostRx};
use crate::mock::{Buffer, MockGuest, MockQueue};
use crate::stats::PortStats;
use crate::vring::{RingError, feature};
use crate::wake::PATIENCE;
use crate::wake::{Kicks, Quiet, Waker};

const RINGS: usize = 3;

/// A port with rings, and their drivers.
struct Bench {
    port: RxPort,
    waker: Arc<Waker>,
    kicks: Kicks,
    queues: Vec<MockQueue>,
    heads: Heads,
    buffer: u64,
    _ends: Vec<[OwnedFd; 2]>,
}

impl Bench {
    fn new(features: u64, polled: bool) -> Self {
        let waker = Waker::new().unwrap();
        let stats = PortStats::new(8, &RingError::REASONS);
        let mut rings = Rings::new("test".into(), stats);
        let mut guest = MockGuest::new(0x1000, &[1 << 20]);
        let kind = RingKind {
            header: 12,
            mergeable: true,
            offloads: false,
            accepts: Accepts::default(),
        };
        let mut queues = Vec::new();
        let mut ends = Vec::new();
        for index in 0..RINGS as u16 {
            let mut queue = MockQueue::new(&mut guest, 64, features | feature::VERSION_1, 0);
            let (vring, called, failed) = match polled {
                true => queue.vring_with(index, Kick::Polled),
                false => queue.vring(index),
            };
            assert!(
                rings
                    .start(PreparedRing::new(vring, kind, &waker).unwrap())
                    .is_none()
            );
            queues.push(queue);
            ends.push([called, failed]);
        }
        Self {
            port: RxPort::Vhost(VhostRx::new(rings)),
            waker,
            kicks: Kicks::default(),
            queues,
            heads: Heads::default(),
            buffer: guest.alloc(256, 16),
            _ends: ends,
        }
    }

    /// A driver sends a frame. Returns whether it was asked to kick.
    fn send(&mut self, ring: usize) -> bool {
        let buffer = Buffer {
            addr: self.buffer,
            len: 80,
            writable: false,
        };
        let queue = &mut self.queues[ring];
        while queue.used().is_some() {}
        queue.add(&[buffer]).unwrap();
        queue.publish()
    }

    /// Frames that a round finds.
    fn poll(&mut self) -> usize {
        let mut frames = 0;
        self.port.rx_burst(&mut self.heads, |burst| {
            frames += burst.len();
            true
        });
        frames
    }

    /// Nothing happens for long.
    fn rest(&mut self) {
        for _ in 0..=PATIENCE {
            assert_eq!(self.poll(), 0);
            self.port.rest();
        }
    }

    fn look(&mut self) {
        self.waker.look(&mut self.kicks);
        self.port.kicked(&self.kicks);
    }
}

#[test]
fn a_ring_that_comes_round_is_busy() {
    let mut bench = Bench::new(feature::RING_PACKED, false);
    for _ in 0..3 * PATIENCE {
        // Twice round: slot and wrap counter are what they were at the last look.
        for _ in 0..128 {
            bench.send(0);
            assert_eq!(bench.poll(), 1);
        }
        bench.port.rest();
    }
    assert_eq!(bench.port.resting(), RINGS - 1);
}

#[test]
fn an_idle_ring_rests_until_it_is_kicked() {
    for features in [0, feature::EVENT_IDX] {
        let mut bench = Bench::new(features, false);
        // One is busy all the time.
        for round in 0..3 * PATIENCE {
            // The first chain passes the event index of a new ring.
            let kicked = bench.send(0);
            assert!(!kicked || round == 0, "kicks are not asked for");
            assert_eq!(bench.poll(), 1);
            bench.port.rest();
        }
        assert_eq!(bench.port.resting(), RINGS - 1);
        assert!(!bench.port.is_asleep());
        bench.rest();
        assert_eq!(bench.port.resting(), RINGS);
        assert!(bench.port.is_asleep(), "no ring is looked at");
        assert!(bench.send(1), "a kick was asked for");
        assert_eq!(bench.poll(), 0, "nobody looks");
        bench.queues[1].kick_now();
        bench.look();
        assert_eq!(bench.port.resting(), RINGS - 1);
        assert_eq!(bench.poll(), 1);
        assert!(!bench.send(1), "kicks are not asked for any more");
        assert_eq!(bench.poll(), 1);
        // A kick for nothing does no harm, nor does one of a ring that is polled.
        bench.queues[2].kick_now();
        bench.queues[1].kick_now();
        bench.look();
        assert_eq!(bench.poll(), 0);
        bench.rest();
        assert_eq!(bench.port.resting(), RINGS);
    }
}

#[test]
fn a_frame_that_comes_as_the_ring_goes_to_rest_is_seen() {
    let mut bench = Bench::new(feature::EVENT_IDX, false);
    for _ in 1..PATIENCE {
        bench.poll();
        bench.port.rest();
    }
    assert_eq!(bench.port.resting(), 0);
    // Ring 1 has what the last look before it would rest finds.
    for _ in 0..2 {
        bench.send(1);
        bench.port.rest();
        assert_eq!(bench.poll(), 1);
    }
    assert_eq!(bench.port.resting(), RINGS - 1);
}

#[test]
fn a_ring_that_cannot_kick_is_looked_at_in_intervals() {
    let mut bench = Bench::new(feature::EVENT_IDX, true);
    bench.rest();
    assert_eq!(bench.port.resting(), RINGS);
    bench.send(2);
    assert_eq!(bench.poll(), 0);
    bench.port.rest();
    assert_eq!(bench.poll(), 1);
    // A worker that sleeps looks at it after each nap.
    bench.rest();
    assert_eq!(bench.port.enable_kicks(), Quiet::Polled);
    bench.send(1);
    bench.port.kicked(&Kicks::default());
    assert_eq!(bench.poll(), 1);
}

#[test]
fn a_sleep_disturbs_nobody_who_rests() {
    let mut bench = Bench::new(0, false);
    for _ in 0..3 * PATIENCE {
        bench.send(0);
        bench.poll();
        bench.port.rest();
    }
    assert_eq!(bench.port.resting(), RINGS - 1);
    assert_eq!(bench.port.enable_kicks(), Quiet::Kicked);
    assert!(bench.send(0), "the worker sleeps");
    bench.queues[0].kick_now();
    bench.look();
    assert_eq!(bench.port.resting(), RINGS - 1);
    assert_eq!(bench.poll(), 1);
    // Something came before the sleep.
    bench.send(0);
    assert_eq!(bench.port.enable_kicks(), Quiet::Busy);
    bench.port.kicked(&Kicks::default());
    assert_eq!(bench.poll(), 1);
    // After a request all are looked at, whatever they did.
    bench.port.disable_kicks();
    assert_eq!(bench.port.resting(), 0);
    assert!(!bench.send(1) && !bench.send(2));
    assert_eq!(bench.poll(), 2);
}

#[test]
fn rings_that_stop_or_break_rest_no_more() {
    let mut bench = Bench::new(0, false);
    bench.rest();
    let RxPort::Vhost(vhost) = &mut bench.port else {
        unreachable!()
    };
    drop(vhost.rings.stop(1));
    assert_eq!(bench.port.resting(), RINGS - 1);
    bench.queues[0].publish_index(30000);
    bench.queues[0].kick_now();
    bench.look();
    assert_eq!(bench.poll(), 0);
    assert_eq!(bench.port.resting(), 1, "one broke, one was stopped");
    // It is not looked at again.
    bench.port.disable_kicks();
    assert_eq!(bench.poll(), 0);
    assert!(bench.send(2) || bench.poll() == 1);
}
