//! Packed rings, and what is the same for all formats.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use super::*;
use crate::mock::{Buffer, MockGuest, MockQueue, Random, signals};

const START: u64 = 0x1_0000;
const REGION: usize = 0x40_0000;
/// Where buffers are, behind the rings.
const DATA: u64 = START + 0x20_0000;
const PACKED: u64 = feature::OFFERED & !feature::IN_ORDER;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

struct Bench {
    guest: MockGuest,
    driver: MockQueue,
    ring: Ring,
    called: OwnedFd,
}

fn bench(size: u16, features: u64, base: u16) -> Bench {
    let mut guest = MockGuest::new(START, &[REGION, 0x1000]);
    let mut driver = MockQueue::new(&mut guest, size, features, base);
    let (vring, called, _) = driver.vring(0);
    let (ring, _) = Ring::new(vring).unwrap();
    Bench {
        guest,
        driver,
        ring,
        called,
    }
}

fn buffer(addr: u64, len: u32, writable: bool) -> Buffer {
    Buffer {
        addr,
        len,
        writable,
    }
}

/// A chain of any shape: lengths in both directions, in a table or not.
fn add(b: &mut Bench, random: &mut Random, number: usize) -> Option<(u16, u32, u32)> {
    let mut chain = Vec::new();
    let mut lens = [0, 0];
    for (writable, len) in [(false, 0), (true, 1)] {
        for _ in 0..random.range(0, 3) {
            let bytes = random.range(0, 2000) as u32;
            chain.push(buffer(DATA + random.range(0, 4000) as u64, bytes, writable));
            lens[len] += bytes;
        }
    }
    if chain.is_empty() {
        chain.push(buffer(DATA, 1, false));
        lens[0] = 1;
    }
    // No other chain's, while they are in flight.
    let table = DATA + 0x1_0000 + 128 * (number % 0x3000) as u64;
    let id = match random.range(0, 2) {
        0 => b.driver.add_indirect(&chain, table, 0),
        _ => b.driver.add(&chain),
    }?;
    Some((id, lens[0], lens[1]))
}

#[test]
fn every_format_and_size_over_many_rounds() {
    let formats = [0, feature::IN_ORDER, feature::RING_PACKED];
    let all = feature::IN_ORDER | feature::RING_PACKED;
    for format in formats.into_iter().chain([all]) {
        for event_idx in [0, feature::EVENT_IDX] {
            for size in [2, 3, 7, 64, 100, 1000, 4096, 32767, 32768u16] {
                let packed = format & feature::RING_PACKED != 0;
                if packed || size.is_power_of_two() {
                    rounds(size, feature::INDIRECT_DESC | format | event_idx);
                }
            }
        }
    }
}

/// What the driver adds, the device takes in bursts, gives back in part, and the driver gets back.
fn rounds(size: u16, features: u64) {
    let random = &mut Random::new(u64::from(size));
    let mut b = bench(size, features, random.number() as u16);
    // Added and not taken for good; given back and not seen by the driver.
    let (mut waiting, mut done) = (VecDeque::new(), VecDeque::new());
    let mut total = 0;
    let goal = 3 * usize::from(size).min(1500) + 200;
    while total < goal || !waiting.is_empty() || !done.is_empty() {
        for _ in 0..random.range(0, 40) {
            if total < goal
                && let Some(chain) = add(&mut b, random, total)
            {
                waiting.push_back(chain);
                total += 1;
            }
        }
        b.driver.publish();
        let taken = b.ring.take_burst(random.range(0, 70));
        assert_eq!(b.ring.failed(), None);
        assert!(taken <= waiting.len());
        for (chain, (id, read, write)) in b.ring.chains().iter().zip(&waiting) {
            let found = (chain.id(), chain.read_len(), chain.write_len());
            assert_eq!(found, (*id, *read, *write), "ring of {size}");
        }
        if random.range(0, 2) == 0 {
            b.ring.give_back_read();
            done.extend(waiting.drain(..taken).map(|(id, ..)| (id, 0)));
            b.ring.publish();
        } else {
            for _ in 0..random.range(0, taken) {
                let (id, _, write) = waiting.pop_front().unwrap();
                b.ring.give_back(write);
                done.push_back((id, write));
            }
            b.ring.finish();
        }
        while let Some(used) = b.driver.used() {
            assert_eq!(done.pop_front(), Some(used), "ring of {size}");
        }
        assert!(done.is_empty(), "all is published");
    }
    assert_eq!(b.driver.free(), usize::from(size));
}

#[test]
fn a_packed_ring_goes_on_where_it_stopped() {
    let mut b = bench(5, PACKED, 0);
    for round in 1..=7u32 {
        b.driver.add(&[buffer(DATA, 1, false)]).unwrap();
        b.driver.add(&[buffer(DATA, 1, false); 2]).unwrap();
        b.driver.publish();
        assert_eq!(b.ring.take_burst(9), 2);
        b.ring.give_back(0);
        b.ring.finish();
        // The second counts as not taken.
        assert_eq!(b.ring.take_burst(9), 1);
        b.ring.give_back(0);
        b.ring.finish();
        while b.driver.used().is_some() {}
        let slots = 3 * round;
        let half = (slots % 5) | u32::from((slots / 5).is_multiple_of(2)) << 15;
        assert_eq!(b.ring.base(), half | half << 16);
        // A new ring at that place finds what is added next.
        let (mut vring, _, _) = b.driver.vring(0);
        vring.base = half;
        b.ring = Ring::new(vring).unwrap().0;
    }
}

#[test]
fn bases_outside_the_ring_are_refused() {
    let mut guest = MockGuest::new(START, &[REGION]);
    let mut driver = MockQueue::new(&mut guest, 5, PACKED, 0);
    for (base, fine) in [(4, true), (5, false), (0x7fff, false), (0x8004, true)] {
        let (mut vring, _, _) = driver.vring(0);
        vring.base = base;
        assert_eq!(Ring::new(vring).is_ok(), fine, "{base:#x}");
    }
    let mut refused = |change: fn(&mut Vring, &MockGuest)| {
        let (mut vring, _, _) = driver.vring(0);
        change(&mut vring, &guest);
        Ring::new(vring).is_err()
    };
    assert!(refused(|ring, _| ring.size = 0));
    assert!(refused(|ring, _| ring.size = 6));
    assert!(refused(|ring, _| ring.size = 32769));
    let places: [fn(&mut Vring, &MockGuest); 4] = [
        |ring, guest| ring.areas.desc = guest.area(START + 8, 80),
        |ring, guest| ring.areas.driver = guest.area(START + 2, 4),
        |ring, guest| ring.areas.driver = guest.area(START, 3),
        |ring, guest| ring.areas.device = guest.area(START, 3),
    ];
    for place in places {
        assert!(refused(place));
    }
}

#[test]
fn calls_by_flag_and_by_event() {
    let mut b = bench(8, PACKED, 0);
    assert!(b.driver.no_notify(), "a polled ring wants no kicks");
    let use_some = |b: &mut Bench, n: usize| {
        for _ in 0..n {
            b.driver.add(&[buffer(DATA, 1, false)]).unwrap();
        }
        b.driver.publish();
        assert_eq!(b.ring.take_burst(n), n);
        b.ring.give_back_read();
        b.ring.publish();
        while b.driver.used().is_some() {}
        signals(&b.called)
    };
    assert_eq!(use_some(&mut b, 1), 1, "the first decision is in favour");
    b.driver.set_no_interrupt(true);
    assert_eq!(use_some(&mut b, 1), 0);
    b.driver.set_no_interrupt(false);
    assert_eq!(use_some(&mut b, 1), 1);
    const FIRST: u16 = 0x8000;
    // Slots 3 to 5: the event in the middle, and behind them.
    b.driver.set_used_event(FIRST | 4);
    assert_eq!(use_some(&mut b, 3), 1);
    b.driver.set_used_event(FIRST | 7);
    assert_eq!(use_some(&mut b, 1), 0);
    // Slots 7, 0, 1, over the wrap.
    assert_eq!(use_some(&mut b, 3), 1);
    b.driver.set_used_event(2);
    assert_eq!(use_some(&mut b, 1), 1);
    // The slot is right, the round is not.
    b.driver.set_used_event(FIRST | 3);
    assert_eq!(use_some(&mut b, 1), 0);
    // An event in the round before is behind.
    b.driver.set_used_event(FIRST | 6);
    assert_eq!(use_some(&mut b, 2), 0);
    // Nothing used, nothing to tell.
    b.ring.finish();
    assert_eq!(signals(&b.called), 0);
}

#[test]
fn kicks_of_packed_rings_are_not_lost() {
    for features in [PACKED, PACKED & !feature::EVENT_IDX] {
        let mut b = bench(3, features, 1);
        let one = |b: &mut Bench| {
            b.driver.add(&[buffer(DATA, 1, false)]).unwrap();
            b.driver.publish()
        };
        let serve = |b: &mut Bench| {
            assert_eq!(b.ring.take_burst(9), 1);
            b.ring.give_back_read();
            b.ring.publish();
            b.driver.used().unwrap();
        };
        for _ in 0..7 {
            one(&mut b);
            assert!(b.ring.enable_kicks(), "there is one already");
            b.ring.disable_kicks();
            serve(&mut b);
            assert!(!b.ring.enable_kicks());
            assert!(one(&mut b), "asked for, so it comes");
            b.ring.disable_kicks();
            serve(&mut b);
            assert!(!one(&mut b), "not asked for");
            serve(&mut b);
        }
    }
}

/// A good chain, then whatever `evil` makes: the good one is served, and then the error found.
fn hostile(evil: impl FnOnce(&mut Bench, u16, u16)) -> RingError {
    let mut b = bench(16, PACKED, 14);
    let good = b.driver.add(&[buffer(DATA, 9, false)]).unwrap();
    b.driver.publish();
    let (slot, available) = b.driver.next_slot();
    evil(&mut b, slot, available);
    assert_eq!(b.ring.take_burst(64), 1);
    let error = b.ring.failed().unwrap();
    b.ring.give_back(0);
    b.ring.finish();
    assert_eq!(b.driver.used(), Some((good, 0)));
    assert_eq!(b.ring.take_burst(64), 0, "a broken ring takes nothing more");
    assert_eq!(b.ring.base() & 0x7fff, 15, "and stands at what broke it");
    error
}

/// The next descriptor is as said.
fn hostile_desc(addr: u64, len: u32, flags: u16) -> RingError {
    hostile(|b, slot, available| b.driver.write_desc(slot, addr, len, flags | available, 3))
}

#[test]
fn hostile_packed_descriptors() {
    for (addr, len) in [(0, 1), (START - 1, 2), (u64::MAX, 1), (START, u32::MAX)] {
        let error = hostile_desc(addr, len, 0);
        assert!(matches!(error, RingError::Unmapped { .. }), "{error}");
    }
    // Every descriptor has a next one: once round, no further.
    let error = hostile(|b, _, available| {
        for slot in 0..16 {
            let flags = if slot == 15 {
                available
            } else {
                available ^ 0x8080
            };
            if slot != 14 {
                b.driver.write_desc(slot, DATA, 1, flags | NEXT, slot);
            }
        }
    });
    assert!(
        matches!(error, RingError::TooLong { limit: 15, .. }),
        "{error}"
    );
    // Readable behind writable.
    let error = hostile(|b, slot, available| {
        b.driver.write_desc(0, DATA, 1, available ^ 0x8080, 0);
        b.driver
            .write_desc(slot, DATA, 1, available | NEXT | WRITE, 0);
    });
    assert!(matches!(error, RingError::Order { .. }), "{error}");
}

#[test]
fn hostile_packed_tables() {
    for len in [0, 1, 15, 17, 65536 * 16, u32::MAX] {
        let error = hostile_desc(DATA, len, INDIRECT);
        assert!(matches!(error, RingError::IndirectLength { .. }), "{error}");
    }
    let error = hostile_desc(DATA, 16, INDIRECT | NEXT);
    assert!(matches!(error, RingError::Indirect { .. }), "{error}");
    let error = hostile_desc(0, 16, INDIRECT);
    assert!(
        matches!(error, RingError::Unmapped { addr: 0, .. }),
        "{error}"
    );
    // A table behind a buffer of the ring, and one in a table.
    let error = hostile(|b, slot, available| {
        b.driver
            .write_desc(0, DATA, 16, available ^ 0x8080 | INDIRECT, 0);
        b.driver.write_desc(slot, DATA, 1, available | NEXT, 0);
    });
    assert!(matches!(error, RingError::Indirect { .. }), "{error}");
    let error = hostile(|b, slot, available| {
        let entry = u128::from(DATA) | 16 << 64 | u128::from(INDIRECT) << 112;
        b.guest.write(DATA, &entry.to_le_bytes());
        b.driver.write_desc(slot, DATA, 16, available | INDIRECT, 0);
    });
    assert!(
        matches!(error, RingError::Indirect { flags: INDIRECT }),
        "{error}"
    );
    // More entries than a chain may have, all of them fine and without bytes.
    let error = hostile(|b, slot, available| {
        b.guest.write(DATA, &vec![0; 16 * (MAX_CHAIN + 1)]);
        let len = 16 * (MAX_CHAIN as u32 + 1);
        b.driver
            .write_desc(slot, DATA, len, available | INDIRECT, 0);
    });
    assert!(matches!(error, RingError::TooLong { .. }), "{error}");
}

#[test]
fn what_is_taken_cannot_be_made_available_again() {
    let mut b = bench(4, PACKED, 0);
    for _ in 0..4 {
        b.driver.add(&[buffer(DATA, 1, true)]).unwrap();
    }
    b.driver.publish();
    assert_eq!(b.ring.take_burst(9), 4);
    // As if it were the next round already.
    for slot in 0..4 {
        b.driver.write_desc(slot, DATA, 1, WRITE | 0x8000, slot);
    }
    assert_eq!(b.ring.take_burst(9), 0);
    assert_eq!(b.ring.failed(), None);
    b.ring.finish();
    assert_eq!(b.ring.base(), 0x8000_8000, "nothing was given back");
}

#[test]
fn garbage_in_a_packed_ring_is_judged() {
    let random = &mut Random::new(11);
    let mut outcomes = [0; RingError::REASONS.len() + 1];
    for _ in 0..3000 {
        let features = PACKED | (random.number() & feature::IN_ORDER);
        let mut b = bench(16, features, random.number() as u16);
        for slot in 0..16 {
            let addr = match random.range(0, 3) {
                0 => random.number(),
                _ => DATA + random.range(0, 0x1000) as u64,
            };
            let len = match random.range(0, 5) {
                0 => random.number() as u32,
                1 => 0,
                2 => 16 * random.range(0, 8) as u32,
                _ => random.range(0, 3000) as u32,
            };
            let (_, available) = b.driver.next_slot();
            let wild = random.number() as u16;
            let flags = wild & if random.range(0, 9) == 0 { 0xffff } else { 7 } | available;
            b.driver.write_desc(slot, addr, len, flags, wild);
        }
        for word in 0..64u32 {
            let (addr, flags) = (DATA + u64::from(word), random.number() as u16 & 7);
            let entry = u128::from(addr) | u128::from(word) << 64 | u128::from(flags) << 112;
            b.guest
                .write(DATA + 16 * u64::from(word), &entry.to_le_bytes());
        }
        let taken = b.ring.take_burst(16);
        for chain in b.ring.chains() {
            let sum = |segments: Segments<'_>| segments.map(|s| s.len() as u64).sum::<u64>();
            assert_eq!(sum(b.ring.readable(chain)), u64::from(chain.read_len()));
            assert_eq!(sum(b.ring.writable(chain)), u64::from(chain.write_len()));
        }
        for _ in 0..taken {
            b.ring.give_back(random.number() as u32);
        }
        b.ring.finish();
        let base = b.ring.base();
        assert_eq!(base >> 16, base & 0xffff);
        outcomes[b.ring.failed().map_or(0, |error| error.reason() + 1)] += 1;
    }
    // The test is worth something only if it gets everywhere (but for what packed rings do not
    // have: indices that jump, heads and links; and chains all round and huge sums).
    for (number, count) in outcomes.iter().enumerate() {
        assert!(
            *count > 0 || matches!(number, 1 | 2 | 3 | 7 | 9),
            "{outcomes:?}"
        );
    }
}

#[test]
fn a_driver_that_waits_for_three_quarters_is_called() {
    for (size, seed) in [(256, 1), (256, 2), (64, 3), (100, 4), (33, 5)] {
        let random = &mut Random::new(seed);
        let mut b = bench(size, PACKED, 0);
        // Slots added and used, since ever; the driver is asleep until it is called.
        let (mut added, mut used, mut asleep) = (0u32, 0u32, false);
        for round in 0..4000 {
            if !asleep {
                while b.driver.used().is_some() {
                    used += 1;
                }
                let event = used + (added - used) * 3 / 4;
                let (at, turn) = (event % u32::from(size), event / u32::from(size));
                b.driver
                    .set_used_event(at as u16 | u16::from(turn.is_multiple_of(2)) << 15);
                for _ in 0..random.range(1, usize::from(size)) {
                    if b.driver.add(&[buffer(DATA, 60, false)]).is_some() {
                        added += 1;
                    }
                }
                b.driver.publish();
                asleep = b.driver.free() < 19;
            }
            b.ring.take_burst(random.range(1, 64));
            b.ring.give_back_read();
            if random.range(0, 3) == 0 {
                b.ring.publish();
            }
            if signals(&b.called) > 0 {
                asleep = false;
            }
            if b.ring.take_burst(1) == 0 {
                // All is taken: it is shown, too, and the driver must have heard of it.
                b.ring.publish();
                if signals(&b.called) > 0 {
                    asleep = false;
                }
                assert!(!asleep, "round {round}: {added} added, {used} seen");
            }
            b.ring.finish();
        }
    }
}
