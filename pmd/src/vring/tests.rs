#![allow(clippy::unwrap_used)]
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use vvu::memory::Scatter;
use vvu::mmio::{RegisterAccess, Window};

use super::*;
use crate::mock::{Buffer, MockGuest, MockQueue, Random, signals};

const START: u64 = 0x1_0000;
const REGION: usize = 0x10_0000;
/// All that split rings have.
const ALL: u64 = feature::OFFERED & !feature::RING_PACKED & !feature::IN_ORDER;
const PLAIN: u64 = feature::VERSION_1;

struct Bench {
    guest: MockGuest,
    driver: MockQueue,
    ring: Ring,
    called: OwnedFd,
}

fn bench(size: u16, features: u64, base: u16) -> Bench {
    let mut guest = MockGuest::new(START, &[REGION, REGION]);
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

fn readable(addr: u64, len: u32) -> Buffer {
    Buffer {
        addr,
        len,
        writable: false,
    }
}

fn writable(addr: u64, len: u32) -> Buffer {
    Buffer {
        addr,
        len,
        writable: true,
    }
}

fn bytes(segments: Segments<'_>) -> Vec<u8> {
    let mut all = Vec::new();
    for segment in segments {
        let mut part = vec![0; segment.len()];
        segment.copy_to(&mut part[..]);
        all.extend(part);
    }
    all
}

/// Takes all there is and gives it back.
fn serve(ring: &mut Ring) -> usize {
    let taken = ring.take_burst(1000);
    for _ in 0..taken {
        ring.give_back(0);
    }
    ring.finish();
    taken
}

#[test]
fn chains_arrive_in_order_with_their_bytes() {
    let mut b = bench(8, ALL, 0);
    let at = START + 0x8000;
    b.guest.write(at, b"headbody");
    let first = b
        .driver
        .add(&[readable(at, 4), readable(at + 4, 4), writable(at + 100, 7)])
        .unwrap();
    let table = at + 0x1008;
    let second = b
        .driver
        .add_indirect(
            &[readable(at + 4, 4), writable(at, 1), writable(at, 2)],
            table,
            1,
        )
        .unwrap();
    // Nothing is seen before it is published.
    assert_eq!(b.ring.take_burst(10), 0);
    b.driver.publish();
    assert_eq!(b.ring.take_burst(10), 2);
    let chains = b.ring.chains().to_vec();
    assert_eq!(bytes(b.ring.readable(&chains[0])), b"headbody");
    assert_eq!((chains[0].read_len(), chains[0].write_len()), (8, 7));
    assert_eq!(bytes(b.ring.readable(&chains[1])), b"body");
    assert_eq!((chains[1].read_len(), chains[1].write_len()), (4, 3));
    b.ring.give_back(5);
    b.ring.give_back(0);
    assert_eq!(b.driver.used(), None, "published at the end of the burst");
    b.ring.finish();
    assert_eq!(b.driver.used(), Some((first, 5)));
    assert_eq!(b.driver.used(), Some((second, 0)));
    assert_eq!(b.ring.base(), 2);
}

#[test]
fn a_buffer_over_two_regions_is_two_segments() {
    let mut b = bench(8, ALL, 0);
    let at = START + REGION as u64 - 3;
    b.guest.write(at, b"abcdef");
    b.driver.add(&[readable(at, 6)]).unwrap();
    // So may an indirect table be.
    let table = START + REGION as u64 - 8;
    let inside = [readable(at, 3), readable(START + 0x9000, 2)];
    b.guest.write(START + 0x9000, b"xy");
    b.driver.publish();
    assert_eq!(b.ring.take_burst(1), 1);
    let chain = b.ring.chains()[0];
    assert_eq!(bytes(b.ring.readable(&chain)), b"abcdef");
    assert_eq!(b.ring.readable(&chain).count(), 2);
    b.ring.give_back(0);
    b.ring.finish();
    b.driver.add_indirect(&inside, table, 0).unwrap();
    b.driver.publish();
    assert_eq!(b.ring.take_burst(1), 1);
    assert_eq!(b.ring.chains()[0].read_len(), 5);
}

#[test]
fn indices_wrap_and_rings_fill() {
    for (size, features) in [(1, ALL), (4, PLAIN), (256, ALL), (32768, ALL)] {
        let mut b = bench(size, features, 65530);
        for _ in 0..3 {
            for _ in 0..size {
                b.driver.add(&[readable(START + 0x8000, 4)]).unwrap();
            }
            assert_eq!(b.driver.add(&[readable(START, 1)]), None);
            b.driver.publish();
            let mut served = 0;
            while served < usize::from(size) {
                let now = serve(&mut b.ring);
                assert!(now > 0, "{:?}", b.ring.failed());
                served += now;
            }
            assert_eq!(serve(&mut b.ring), 0);
            for _ in 0..size {
                b.driver.used().unwrap();
            }
            assert_eq!(b.driver.used(), None);
        }
        let end = 65530u16.wrapping_add(size.wrapping_mul(3));
        assert_eq!(b.driver.used_index(), end);
        assert_eq!(b.ring.base(), u32::from(end));
        assert_eq!(b.ring.failed(), None);
    }
}

#[test]
fn what_is_not_given_back_is_taken_again() {
    let mut b = bench(8, ALL, 65535);
    let heads: Vec<_> = (0..4)
        .map(|n| b.driver.add(&[writable(START + 0x8000, n + 1)]).unwrap())
        .collect();
    b.driver.publish();
    assert_eq!(b.ring.take_burst(3), 3);
    b.ring.give_back(1);
    b.ring.finish();
    assert_eq!(b.driver.used(), Some((heads[0], 1)));
    assert_eq!(b.driver.used(), None);
    assert_eq!(b.ring.base(), 0);
    assert_eq!(b.ring.take_burst(9), 3);
    assert_eq!(b.ring.chains()[0].id(), heads[1]);
}

#[test]
fn calls_by_flag() {
    let mut b = bench(8, PLAIN, 0);
    assert!(b.driver.no_notify(), "a polled ring wants no kicks");
    let once = |b: &mut Bench| {
        b.driver.add(&[readable(START + 0x8000, 1)]).unwrap();
        b.driver.publish();
        serve(&mut b.ring);
        b.driver.used().unwrap();
        signals(&b.called)
    };
    assert_eq!(once(&mut b), 1);
    b.driver.set_no_interrupt(true);
    assert_eq!(once(&mut b), 0);
    b.driver.set_no_interrupt(false);
    assert_eq!(once(&mut b), 1);
    // Nothing used, nothing to tell.
    b.ring.finish();
    assert_eq!(signals(&b.called), 0);
}

#[test]
fn a_driver_that_polls_costs_no_doorbells() {
    #[derive(Debug, Default)]
    struct Rung(AtomicU32);
    impl RegisterAccess for Rung {
        fn read(&self, _offset: u64, _data: &mut [u8]) {}
        fn write(&self, _offset: u64, _data: &[u8]) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    for features in [ALL, PLAIN] {
        let mut b = bench(8, features, 0);
        let rung = Arc::new(Rung::default());
        let window = Window::trapped(rung.clone(), 0, 4);
        let doorbell = Call::Doorbell(window.register(0).unwrap(), 0);
        drop(b.ring.set_call(doorbell));
        assert_eq!(
            rung.0.swap(0, Ordering::Relaxed),
            1,
            "the old one may be lost"
        );
        b.driver.set_no_interrupt(true);
        for number in 0..20 {
            // Behind everything that will be used.
            b.driver
                .set_used_event(b.driver.used_index().wrapping_sub(1));
            b.driver.add(&[readable(START + 0x8000, 1)]).unwrap();
            b.driver.publish();
            serve(&mut b.ring);
            b.driver.used().unwrap();
            // The first decision by event index is always in favour.
            let most = u32::from(number == 0 && features == ALL);
            assert!(rung.0.swap(0, Ordering::Relaxed) <= most);
        }
    }
}

#[test]
fn calls_by_event_index_at_the_wrap() {
    let mut b = bench(8, ALL, 65533);
    let mut use_some = |event: u16, n: u32| {
        b.driver.set_used_event(event);
        for _ in 0..n {
            b.driver.add(&[readable(START + 0x8000, 1)]).unwrap();
        }
        b.driver.publish();
        serve(&mut b.ring);
        while b.driver.used().is_some() {}
        signals(&b.called)
    };
    // The first decision is always in favour.
    assert_eq!(use_some(100, 1), 1);
    // Used goes 65534 -> 65535: event 65534 is passed, 65535 and 65533 are not.
    assert_eq!(use_some(65534, 1), 1);
    assert_eq!(use_some(0, 1), 0);
    // 0 -> 3 in one burst, event in the middle: one call.
    assert_eq!(use_some(1, 3), 1);
    assert_eq!(use_some(2, 3), 0);
}

#[test]
fn event_arithmetic() {
    use format::crossed;
    assert!(crossed(0, 1, 0));
    assert!(!crossed(1, 1, 0));
    assert!(crossed(65535, 0, 65535));
    assert!(!crossed(0, 0, 65535));
    assert!(crossed(65534, 2, 65530));
    assert!(!crossed(5, 5, 5));
    assert!(!crossed(65529, 2, 65530));
}

#[test]
fn kicks_are_enabled_without_losing_any() {
    for features in [ALL, PLAIN] {
        let mut b = bench(8, features, 65535);
        b.driver.add(&[readable(START + 0x8000, 1)]).unwrap();
        b.driver.publish();
        assert!(b.ring.enable_kicks(), "there is one already");
        b.ring.disable_kicks();
        assert_eq!(serve(&mut b.ring), 1);
        assert!(!b.ring.enable_kicks());
        b.driver.used().unwrap();
        b.driver.add(&[readable(START + 0x8000, 1)]).unwrap();
        assert!(b.driver.publish(), "asked for, so it comes");
        b.ring.disable_kicks();
        serve(&mut b.ring);
        b.driver.used().unwrap();
        b.driver.add(&[readable(START + 0x8000, 1)]).unwrap();
        assert!(!b.driver.publish(), "not asked for");
    }
}

#[test]
fn memory_moves_under_a_ring() {
    let mut b = bench(8, ALL, 0);
    let at = START + 0x8000;
    b.guest.write(at, b"old!");
    b.driver.add(&[readable(at, 4)]).unwrap();
    b.driver.publish();
    // Taken but not finished: forgotten, and taken again from the new memory.
    assert_eq!(b.ring.take_burst(1), 1);
    let guest = b.guest.moved();
    let areas = b.driver.move_to(&guest);
    guest.write(at, b"new!");
    let moved = Moved::new(guest.table(), areas, 8, ALL).unwrap();
    drop(b.ring.set_memory(moved));
    drop(b.guest);
    assert!(b.ring.chains().is_empty());
    assert_eq!(b.ring.take_burst(1), 1);
    let chain = b.ring.chains()[0];
    assert_eq!(bytes(b.ring.readable(&chain)), b"new!");
}

#[test]
fn rings_that_cannot_be() {
    let mut guest = MockGuest::new(START, &[REGION]);
    let mut driver = MockQueue::new(&mut guest, 8, ALL, 0);
    let refused = |change: fn(&mut Vring, &MockGuest)| {
        let (mut vring, _, _) = driver.vring(0);
        change(&mut vring, &guest);
        Ring::new(vring).is_err()
    };
    let mut refused = refused;
    assert!(!refused(|_, _| ()));
    assert!(refused(|ring, _| ring.size = 0));
    assert!(refused(|ring, _| ring.size = 6));
    assert!(refused(|ring, _| ring.size = 65535));
    assert!(refused(|ring, _| ring.size = 16));
    assert!(refused(
        |ring, guest| ring.areas.desc = guest.area(START + 8, 128)
    ));
    assert!(refused(
        |ring, guest| ring.areas.driver = guest.area(START + 1, 22)
    ));
    assert!(refused(
        |ring, guest| ring.areas.driver = guest.area(START, 21)
    ));
    assert!(refused(
        |ring, guest| ring.areas.device = guest.area(START + 2, 70)
    ));
    assert!(refused(
        |ring, guest| ring.areas.device = guest.area(START, 69)
    ));
}

/// A good chain, then whatever `evil` makes: the good one is served, and then the error found.
fn hostile(evil: impl FnOnce(&mut Bench)) -> RingError {
    let mut b = bench(16, ALL, 0);
    let good = b.driver.add(&[readable(START + 0x8000, 9)]).unwrap();
    evil(&mut b);
    b.driver.publish();
    assert_eq!(b.ring.take_burst(64), 1);
    let error = b.ring.failed().unwrap();
    assert_eq!(b.ring.chains().len(), 1);
    b.ring.give_back(0);
    b.ring.finish();
    assert_eq!(b.driver.used(), Some((good, 0)));
    assert_eq!(b.ring.take_burst(64), 0, "a broken ring takes nothing more");
    assert_eq!(b.ring.base(), 1, "and stands at what broke it");
    error
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Descriptor 8 of the table is as said, and a chain begins there.
fn hostile_desc(addr: u64, len: u32, flags: u16, next: u16) -> RingError {
    hostile(|b| {
        b.driver.write_desc(8, addr, len, flags, next);
        b.driver.push_head(8);
    })
}

#[test]
fn hostile_heads_and_links() {
    let error = hostile(|b| b.driver.push_head(16));
    assert!(matches!(
        error,
        RingError::OutOfRange {
            index: 16,
            size: 16
        }
    ));
    let error = hostile(|b| b.driver.push_head(65535));
    assert!(matches!(error, RingError::OutOfRange { .. }));
    let error = hostile_desc(START, 1, NEXT, 16);
    assert!(matches!(error, RingError::OutOfRange { index: 16, .. }));
    // A loop of one.
    let error = hostile_desc(START, 1, NEXT, 8);
    assert!(matches!(error, RingError::TooLong { head: 8, limit: 16 }));
    // And one without bytes.
    let error = hostile_desc(START, 0, NEXT, 8);
    assert!(matches!(error, RingError::TooLong { .. }));
}

#[test]
fn hostile_bytes() {
    let end = START + 2 * REGION as u64;
    for (addr, len) in [
        (0, 1),
        (START - 1, 1),
        (START - 1, 2),
        (end - 1, 2),
        (end, 1),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (START, u32::MAX),
    ] {
        let error = hostile_desc(addr, len, 0, 0);
        assert!(
            matches!(error, RingError::Unmapped { .. }),
            "{addr:#x} {error}"
        );
    }
    let error = hostile(|b| {
        b.driver.write_desc(8, START, 4, WRITE | NEXT, 9);
        b.driver.write_desc(9, START, 4, 0, 0);
        b.driver.push_head(8);
    });
    assert!(matches!(error, RingError::Order { head: 8 }));
}

#[test]
fn lengths_that_overflow_together() {
    // 4 GiB from 1 MiB: one region is used again and again.
    let mut guest = MockGuest::new(START, &[REGION, 1 << 29]);
    let mut driver = MockQueue::new(&mut guest, 16, ALL, 0);
    let (vring, _, _) = driver.vring(0);
    let (mut ring, _) = Ring::new(vring).unwrap();
    let big = START + REGION as u64;
    driver.add(&[readable(big, 1 << 29); 8]).unwrap();
    driver.publish();
    assert_eq!(ring.take_burst(1), 0);
    assert!(matches!(ring.failed(), Some(RingError::Bytes { .. })));
}

#[test]
fn hostile_indirect() {
    let table = START + 0x9000;
    for len in [0, 1, 15, 17, 65536 * 16, u32::MAX] {
        let error = hostile_desc(table, len, INDIRECT, 0);
        assert!(matches!(error, RingError::IndirectLength { .. }), "{error}");
    }
    let error = hostile_desc(table, 16, INDIRECT | NEXT, 1);
    assert!(matches!(error, RingError::Indirect { flags: 5 }));
    let error = hostile_desc(0, 16, INDIRECT, 0);
    assert!(matches!(error, RingError::Unmapped { addr: 0, .. }));
    let end = START + 2 * REGION as u64 - 8;
    let error = hostile_desc(end, 16, INDIRECT, 0);
    assert!(matches!(error, RingError::Unmapped { .. }));
    let nested = |entry: [u8; 16]| {
        hostile(|b| {
            b.guest.write(table, &entry);
            b.driver.write_desc(8, table, 32, INDIRECT, 0);
            b.driver.push_head(8);
        })
    };
    let entry = |flags: u16, next: u16| {
        let word = u128::from(START) | 1 << 64 | u128::from(flags) << 96 | u128::from(next) << 112;
        word.to_le_bytes()
    };
    let error = nested(entry(INDIRECT, 0));
    assert!(matches!(error, RingError::Indirect { flags: 4 }));
    let error = nested(entry(NEXT, 2));
    assert!(matches!(error, RingError::OutOfRange { index: 2, size: 2 }));
    let error = nested(entry(NEXT, 0));
    assert!(matches!(error, RingError::TooLong { limit: 2, .. }));
}

#[test]
fn indirect_only_if_negotiated() {
    let mut b = bench(8, PLAIN, 0);
    b.driver
        .add_indirect(&[readable(START, 1)], START + 0x9000, 0)
        .unwrap();
    b.driver.publish();
    assert_eq!(b.ring.take_burst(1), 0);
    assert!(matches!(b.ring.failed(), Some(RingError::Indirect { .. })));
}

#[test]
fn the_available_index_may_not_jump() {
    for (base, jump, fine) in [
        (0, 8, true),
        (0, 9, false),
        (65533, 8, true),
        (65533, 65535, false),
    ] {
        let mut b = bench(8, ALL, base);
        for n in 0..8 {
            b.driver.write_desc(n, START, 1, 0, 0);
            b.driver.push_head(n);
        }
        b.driver.publish_index(base.wrapping_add(jump));
        assert_eq!(b.ring.take_burst(64) == 8, fine);
        assert_eq!(b.ring.failed().is_none(), fine);
    }
}

#[test]
fn descriptors_without_bytes_are_skipped() {
    let mut b = bench(8, ALL, 0);
    b.guest.write(START + 0x8000, b"data");
    let chain = [readable(0, 0), readable(START + 0x8000, 4), writable(7, 0)];
    b.driver.add(&chain).unwrap();
    b.driver.publish();
    assert_eq!(b.ring.take_burst(1), 1);
    let chain = b.ring.chains()[0];
    assert_eq!(bytes(b.ring.readable(&chain)), b"data");
    assert_eq!(b.ring.writable(&chain).count(), 0);
}

#[test]
fn the_work_of_one_burst_is_bounded() {
    // A thousand empty descriptors in one table, named by every chain of a big ring.
    let mut b = bench(256, ALL, 0);
    let table = START + 0x9000;
    for n in 0..1000u16 {
        let word = u128::from(if n == 999 { 0 } else { NEXT }) << 96 | u128::from(n + 1) << 112;
        b.guest
            .write(table + 16 * u64::from(n), &word.to_le_bytes());
    }
    for n in 0..256 {
        b.driver.write_desc(n, table, 16000, INDIRECT, 0);
        b.driver.push_head(n);
    }
    b.driver.publish();
    assert_eq!(b.ring.take_burst(64), 2);
    assert_eq!(b.ring.failed(), None);
}

#[test]
fn reasons_are_numbered_in_order() {
    let errors = [
        RingError::AvailJump {
            from: 0,
            to: 0,
            size: 0,
        },
        RingError::OutOfRange { index: 0, size: 0 },
        RingError::TooLong { head: 0, limit: 0 },
        RingError::IndirectLength { len: 0 },
        RingError::Indirect { flags: 0 },
        RingError::Order { head: 0 },
        RingError::Bytes { head: 0 },
        RingError::Unmapped { addr: 0, len: 0 },
        RingError::Flying { id: 0 },
    ];
    assert_eq!(errors.len(), RingError::REASONS.len());
    for (number, error) in errors.iter().enumerate() {
        assert_eq!(error.reason(), number);
    }
}

#[test]
fn garbage_is_judged_and_nothing_else() {
    let random = &mut Random::new(7);
    let mut outcomes = [0; RingError::REASONS.len() + 1];
    for _ in 0..3000 {
        let mut b = bench(16, ALL, random.number() as u16);
        let table = START + 0x9000;
        for n in 0..24 {
            // Half of the numbers are nearly right, or all would fail at the first look.
            let addr = match random.range(0, 3) {
                0 => random.number(),
                1 => table,
                _ => START + random.range(0, 2 * REGION + 9) as u64,
            };
            let len = match random.range(0, 5) {
                0 => random.number() as u32,
                1 => 0,
                2 => 16 * random.range(0, 8) as u32,
                _ => random.range(0, 3000) as u32,
            };
            let flags = random.number() as u16 & if random.range(0, 9) == 0 { 0xffff } else { 7 };
            let next = random.range(0, 17) as u16;
            if n < 16 {
                b.driver.write_desc(n, addr, len, flags, next);
            } else {
                let rest = u128::from(len) << 64 | u128::from(flags) << 96;
                let word = u128::from(addr) | rest | u128::from(next % 8) << 112;
                let at = table + 16 * u64::from(n - 16);
                b.guest.write(at, &word.to_le_bytes());
            }
        }
        for _ in 0..random.range(0, 16) {
            b.driver.push_head(random.range(0, 16) as u16);
        }
        b.driver.publish();
        let taken = b.ring.take_burst(16);
        for place in 0..taken {
            let chain = b.ring.chains()[place];
            let sum = |segments: Segments<'_>| segments.map(|s| s.len() as u64).sum::<u64>();
            assert_eq!(sum(b.ring.readable(&chain)), u64::from(chain.read_len()));
            assert_eq!(sum(b.ring.writable(&chain)), u64::from(chain.write_len()));
        }
        for _ in 0..taken {
            b.ring.give_back(random.number() as u32);
        }
        b.ring.finish();
        outcomes[b.ring.failed().map_or(0, |error| error.reason() + 1)] += 1;
    }
    // The test is worth something only if it gets everywhere (but for jumps and huge sums).
    for (number, count) in outcomes.iter().enumerate() {
        assert!(*count > 0 || matches!(number, 1 | 7 | 9), "{outcomes:?}");
    }
}

#[test]
fn kept_chains_go_back_in_any_order_with_their_memory() {
    for features in [ALL, PLAIN, ALL | feature::RING_PACKED] {
        let mut b = bench(16, features, 0);
        let random = &mut Random::new(3);
        let mut kept: Vec<(Chain, Box<Scatter>, u8)> = Vec::new();
        let mut flying = std::collections::HashMap::new();
        for round in 0..400u32 {
            let value = round as u8;
            let at = START + 0x8000 + 256 * u64::from(round % 64);
            b.guest.write(at, &[value; 40]);
            let buffers = [
                readable(at, 17),
                readable(at + 17, 13),
                writable(at + 64, 9),
            ];
            if let Some(id) = b.driver.add(&buffers) {
                assert_eq!(flying.insert(id, value), None);
            }
            b.driver.submit();
            b.ring.take_burst(3);
            for place in 0..b.ring.chains().len() {
                let chain = b.ring.chains()[place];
                let mut scatter = Box::new(Scatter::of_table(Arc::default()));
                let keep = Keep {
                    read: 16..30,
                    write: 0..0,
                    tail: 8..9,
                };
                b.ring.taken().keep(&chain, keep, &mut scatter);
                assert_eq!((scatter.len(), scatter.pieces().len()), (14, 2));
                assert_eq!((scatter.tail().len(), chain.write_len()), (1, 9));
                let value = flying[&chain.id()];
                kept.push((chain, scatter, value));
            }
            b.ring.keep_all();
            if kept.len() == 5 || round % 7 == 0 {
                while kept.len() > random.range(0, 4) {
                    let (chain, scatter, value) = kept.remove(random.range(0, kept.len() - 1));
                    for piece in scatter.pieces() {
                        let mut bytes = [0; 16];
                        let len = piece.copy_to(&mut bytes[..]);
                        assert!(bytes[..len].iter().all(|&b| b == value));
                    }
                    b.ring.give_back_kept(&chain, 9);
                }
                b.ring.publish();
            }
            while let Some((id, len)) = b.driver.used() {
                assert!(flying.remove(&id).is_some() && len == 9);
            }
        }
        assert!(flying.len() < 16, "{} of 400 are left", flying.len());
    }
}
