//! A guest that scribbles over its own rings while they are served disturbs nobody else.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::*;
use vvu::virtio::VirtioDevice;
use vvu_pmd::mock::{Layout, MockGuest, MockNet, MockQueue, Random};
use vvu_pmd::stats::RingState;
use vvu_pmd::vring::feature as ring;
use vvu_pmd::{NetDevice, Workers};

const START: u64 = 0x10_0000;
const LEN: usize = 1 << 16;
/// More than the two rings take.
const RINGS: usize = 0x3000;

/// Starts both queues of the hostile card in memory that is scribbled over.
fn start(device: &mut NetDevice, random: &mut Random) -> MockGuest {
    let mut guest = MockGuest::new(START, &[LEN]);
    for index in 0..2 {
        let packed = ring::RING_PACKED * (random.number() >> 63);
        let features = device.features() & !ring::RING_PACKED | packed;
        let mut queue = MockQueue::new(&mut guest, 64, features, random.number() as u16);
        let (vring, _, _) = queue.vring(index);
        device.start_ring(vring).unwrap();
    }
    guest
}

/// Writes something anywhere in the rings: often a small change to a number that is there.
fn scribble(guest: &MockGuest, random: &mut Random) {
    let at = START + 2 * random.range(0, RINGS / 2) as u64;
    let old = guest.read(at, 2);
    let old = u16::from_le_bytes(old.try_into().unwrap());
    let new = match random.range(0, 3) {
        0 => random.number() as u16,
        1 => random.range(0, 70) as u16,
        _ => old.wrapping_add(random.range(0, 4) as u16),
    };
    guest.write(at, &new.to_le_bytes());
}

#[test]
fn a_guest_that_scribbles_hurts_only_itself() {
    let workers = Workers::start(&[0]).unwrap();
    let (mut a, mut b) = (device(&workers, "a", A), device(&workers, "b", B));
    let mut evil = device(&workers, "evil", [2, 0, 0, 0, 0, 0xe]);
    let mut one = MockNet::start(&mut a, memory(0x1000), Layout::default());
    let mut two = MockNet::start(&mut b, memory(0x1000), Layout::default());
    let random = &mut Random::new(3);
    let stop = AtomicBool::new(false);
    let begin = Instant::now();
    let mut restarts = 0;
    let mut number = 0;
    while begin.elapsed() < Duration::from_secs(2) {
        let guest = start(&mut evil, random);
        stop.store(false, Ordering::Relaxed);
        let seed = random.number();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let random = &mut Random::new(seed);
                while !stop.load(Ordering::Relaxed) {
                    scribble(&guest, random);
                }
            });
            for _ in 0..50 {
                number += 1;
                // Everybody gets it, if they can: the hostile ring is written to as well.
                // Its ring is full while the worker has not said what it is done with.
                let full = Instant::now();
                while !one.send(&frame([0xff; 6], A, number, 1000)) {
                    assert!(full.elapsed() < Duration::from_secs(10));
                }
                // Between the good guests nothing is lost, whatever else arrives.
                let expected = frame([0xff; 6], A, number, 1000);
                while receive(&mut two) != expected {}
                while one.receive().is_some() {}
            }
            stop.store(true, Ordering::Relaxed);
        });
        let rings = workers.stats().port("evil").unwrap().rings.clone();
        restarts += u32::from(rings.contains(&RingState::Broken));
        evil.reset();
    }
    assert!(restarts > 3, "the rings broke only {restarts} times");
    let stats = workers.stats();
    assert!(
        stats
            .port("evil")
            .unwrap()
            .faults
            .iter()
            .any(|(_, n)| *n > 0)
    );
    for name in ["a", "b"] {
        assert!(
            stats
                .port(name)
                .unwrap()
                .faults
                .iter()
                .all(|(_, n)| *n == 0)
        );
    }
}
