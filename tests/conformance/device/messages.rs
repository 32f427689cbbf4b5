//! Messages on their way: order, bounds, what is masked and what is refused.

use std::os::fd::OwnedFd;

use vvu::protocol::{MemRegion, Request};

use crate::bench::Bench;
use crate::driver::{BACKEND_UP, BOTH_UP, CONFIG, LAYOUT, NEEDS_RESET};
use crate::front_end::{
    FrontEnd, NEED_REPLY, NOFD, PLAIN, REPLY, eventfd, memory, message, region, request,
};
use crate::pause;
use crate::ring;
use crate::target::{Setup, Target};

/// Protocol features that need no descriptor from the back-end and no window but the first: MQ,
/// RARP, REPLY_ACK, MTU, CROSS_ENDIAN, CRYPTO_SESSION, CONFIG, RESET_DEVICE, STATUS,
/// GPA_ADDRESSES.
const ALLOWED: u64 =
    1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 9 | 1 << 13 | 1 << 16 | 1 << 21;
const REPLY_ACK: u64 = 1 << 3;
/// Virtio feature bit that promises IOTLB misses.
const ACCESS_PLATFORM: u64 = 1 << 33;

fn pair(first: u32, second: u32) -> Vec<u8> {
    [first.to_le_bytes(), second.to_le_bytes()].concat()
}

pub(super) fn c22_action_before_message(target: &dyn Target) {
    let mut bench = Bench::new(target, &Setup::default());
    bench.driver.start(0, 1, 8192);
    let mut front_end = bench.connect_up();
    for round in 0..20 {
        let file = memory("vvu-order", 0x10000, 0x1000 + round);
        front_end.memory(PLAIN, &[region(0, 0x10000, 0)], &[&file]);
        bench.driver.expect(request::SET_MEM_TABLE);
        assert_eq!(bench.driver.load(0), 0x1000 + round);
        let call = eventfd();
        front_end.number(request::SET_VRING_CALL, PLAIN, 2, &[&call]);
        bench.driver.expect(request::SET_VRING_CALL);
        bench.driver.ring(2);
        assert_eq!(crate::front_end::wait_signal(&call), 1);
    }
}

pub(super) fn c22_order(target: &dyn Target) {
    let mut bench = Bench::new(target, &Setup::default());
    bench.driver.start(0, 1, 8192);
    let mut front_end = bench.connect_up();
    // Everything without descriptors passes, whole and in order, one buffer at a time.
    let big: Vec<u8> = (0..8192 - 12).map(|at| (at % 251) as u8).collect();
    for round in 0..20 {
        let payload = pair(round % 8, round);
        front_end.send(request::SET_VRING_NUM, PLAIN, &payload, &[]);
    }
    front_end.send(request::UNKNOWN, PLAIN, &big, &[]);
    front_end.send(request::CREATE_CRYPTO_SESSION, PLAIN, &big[..1072], &[]);
    for round in 0..20 {
        let payload = bench.driver.expect(request::SET_VRING_NUM);
        assert_eq!(payload, pair(round % 8, round));
    }
    assert_eq!(bench.driver.expect(request::UNKNOWN), big);
    assert_eq!(
        bench.driver.expect(request::CREATE_CRYPTO_SESSION),
        big[..1072]
    );
    bench
        .driver
        .send(request::CREATE_CRYPTO_SESSION, REPLY, &big);
    assert_eq!(front_end.receive().payload, big);

    // A message in pieces on the socket is one message for the driver.
    let bytes = message(request::SET_FEATURES, PLAIN, &[7; 8]).to_bytes();
    for byte in bytes.chunks(1) {
        assert!(front_end.raw(byte, &[]));
        bench.driver.status();
    }
    assert_eq!(bench.driver.expect(request::SET_FEATURES), [7; 8]);
    // So are several at once.
    assert!(front_end.raw(&[bytes.as_slice(); 3].concat(), &[]));
    for _ in 0..3 {
        assert_eq!(bench.driver.expect(request::SET_FEATURES), [7; 8]);
    }

    // A chain of buffers is one buffer.
    bench.driver.start(0, 0, 8192);
    let mut front_end = bench.connect_up();
    bench.driver.rx.offer(&[1, 11, 100, 3], true, &[]);
    bench.driver.rx.notify();
    front_end.send(request::UNKNOWN, PLAIN, &big[..103], &[]);
    let (first, len) = loop {
        if let Some(used) = bench.driver.rx.used() {
            break used;
        }
        pause();
    };
    assert_eq!((first, len), (0, 115));
    assert_eq!(bench.driver.rx.bytes(2, 100), big[..100]);
    assert_eq!(bench.driver.rx.bytes(3, 3), big[100..103]);
    let bytes = message(request::GET_CONFIG, REPLY, &big[..500]).to_bytes();
    bench.driver.tx.offer(&[5, 20, 487], false, &bytes);
    bench.driver.tx.notify();
    bench.driver.wait_tx();
    assert_eq!(front_end.receive().payload, big[..500]);
}

pub(super) fn c22_front_end_that_does_not_read(target: &dyn Target) {
    const MESSAGES: u16 = 60;
    let mut bench = Bench::started(target);
    let mut front_end = bench.connect_up();
    let payload = vec![3; ring::BUFFER as usize - 12];
    let bytes = message(request::GET_CONFIG, REPLY, &payload).to_bytes();
    for _ in 0..MESSAGES {
        bench.driver.post_tx(&bytes);
    }
    // More than the socket takes: the device goes on, and holds the rest.
    bench.driver.status();
    let mut taken = 0;
    while bench.driver.tx.used().is_some() {
        taken += 1;
    }
    assert!(taken < MESSAGES);
    for _ in 0..MESSAGES {
        assert_eq!(front_end.receive().payload, payload);
    }
    for _ in taken..MESSAGES {
        bench.driver.wait_tx();
    }
    // It leaves in the middle.
    for _ in 0..MESSAGES {
        bench.driver.post_tx(&bytes);
    }
    drop(front_end);
    bench.driver.wait_status(0);
    for _ in 0..MESSAGES {
        bench.driver.wait_tx();
    }
    let front_end = bench.connect_up();
    front_end.hears_nothing();
}

pub(super) fn c24_buffer_too_small(target: &dyn Target) {
    let mut bench = Bench::new(target, &Setup::default());
    bench.driver.start(0, 16, 64);
    let mut front_end = bench.connect_up();
    front_end.send(request::GET_CONFIG, PLAIN, &[0; 52], &[]);
    bench.driver.expect(request::GET_CONFIG);
    front_end.send(request::GET_CONFIG, PLAIN, &[0; 53], &[]);
    needs_reset(&mut bench, front_end);
}

/// The device wants to be reset, nothing else helps, and afterwards everything works.
fn needs_reset(bench: &mut Bench, mut front_end: FrontEnd) {
    bench.driver.wait_interrupt(CONFIG);
    assert_ne!(bench.driver.device_status() & NEEDS_RESET, 0);
    assert_eq!(bench.driver.status(), 0);
    front_end.is_hung_up();
    // Nor is the next one let in.
    let mut front_end = bench.connect();
    bench.driver.set_status(BACKEND_UP);
    assert_eq!(bench.driver.status(), 0);

    bench.driver.start(0, 16, 8192);
    assert_eq!(bench.driver.device_status() & NEEDS_RESET, 0);
    bench.driver.set_status(BACKEND_UP);
    bench.driver.wait_status(BOTH_UP);
    front_end.send(request::GET_CONFIG, PLAIN, &[0; 256], &[]);
    bench.driver.expect(request::GET_CONFIG);
    front_end.plain(request::GET_FEATURES);
    bench.driver.expect(request::GET_FEATURES);
    bench.driver.answer(request::GET_FEATURES, 9);
    assert_eq!(front_end.answer(request::GET_FEATURES), 9);
}

pub(super) fn c24_corrupt_ring(target: &dyn Target) {
    for queue in 0..2 {
        let mut bench = Bench::new(target, &Setup::default());
        bench.driver.start(0, 0, 8192);
        let mut front_end = bench.connect_up();
        if queue == 0 {
            // There must be something to receive for the device to look.
            front_end.plain(request::GET_FEATURES);
        }
        let ring = [&bench.driver.rx, &bench.driver.tx][queue];
        ring.set_available(0x8000);
        ring.notify();
        needs_reset(&mut bench, front_end);
    }
}

pub(super) fn c29_masked_features(target: &dyn Target) {
    let mut bench = Bench::started(target);
    let mut front_end = bench.connect_up();
    // What a driver claims, what a front-end hears.
    for (number, claimed, heard) in [
        (request::GET_PROTOCOL_FEATURES, u64::MAX, ALLOWED),
        (request::GET_QUEUE_NUM, 1000, 8),
        (request::GET_QUEUE_NUM, 3, 3),
        (request::GET_FEATURES, u64::MAX, !ACCESS_PLATFORM),
        (40, u64::MAX, u64::MAX),
    ] {
        front_end.plain(number);
        bench.driver.expect(number);
        bench.driver.answer(number, claimed);
        assert_eq!(front_end.answer(number), heard, "request {number}");
    }
    front_end.number(request::SET_PROTOCOL_FEATURES, PLAIN, u64::MAX, &[]);
    assert_eq!(
        bench.driver.expect(request::SET_PROTOCOL_FEATURES),
        ALLOWED.to_le_bytes()
    );
}

/// A front-end that may ask for outcomes.
fn acknowledged(bench: &mut Bench) -> FrontEnd {
    let mut front_end = bench.connect_up();
    front_end.number(request::SET_PROTOCOL_FEATURES, PLAIN, REPLY_ACK, &[]);
    bench.driver.expect(request::SET_PROTOCOL_FEATURES);
    front_end
}

/// Announces memory that the device accepts.
fn good_memory(bench: &mut Bench, front_end: &mut FrontEnd, file: &OwnedFd) {
    front_end.memory(NEED_REPLY, &[region(0, 0x10000, 0)], &[file]);
    bench.driver.expect(request::SET_MEM_TABLE);
    front_end.hears_nothing();
    bench.driver.answer(request::SET_MEM_TABLE, 0);
    assert_eq!(front_end.answer(request::SET_MEM_TABLE), 0);
}

pub(super) fn c33_refusals(target: &dyn Target) {
    let setup = Setup {
        window: 2 << 20,
        ..Setup::default()
    };
    let mut bench = Bench::new(target, &setup);
    bench.driver.start(0, 16, 8192);
    let mut front_end = acknowledged(&mut bench);
    let (file, event) = (memory("vvu-refused", 0x40_0000, 0x77), eventfd());
    good_memory(&mut bench, &mut front_end, &file);

    // Larger than the window: refused once, and the old table stays.
    let large = [region(0, 0x40_0000, 0)];
    front_end.memory(NEED_REPLY, &large, &[&file]);
    assert_ne!(front_end.answer(request::SET_MEM_TABLE), 0);
    front_end.hears_nothing();
    bench.driver.expect_none();
    assert_eq!(bench.driver.load(0), 0x77);

    for (number, value, fds) in [
        (request::SET_VRING_CALL, 8, &[&event][..]),
        (request::SET_VRING_CALL, 0, &[&file]),
        (request::SET_VRING_ERR, NOFD, &[&event]),
        (request::SET_VRING_KICK, 0, &[]),
        (request::UNKNOWN, 0, &[&event]),
    ] {
        front_end.number(number, NEED_REPLY, value, fds);
        assert_ne!(front_end.answer(number), 0, "{number} {value:#x}");
        front_end.hears_nothing();
    }
    bench.driver.expect_none();

    // An answer that is owed goes first.
    front_end.plain(request::GET_FEATURES);
    front_end.memory(NEED_REPLY, &large, &[&file]);
    bench.driver.expect(request::GET_FEATURES);
    front_end.hears_nothing();
    bench.driver.answer(request::GET_FEATURES, 3);
    assert_eq!(front_end.answer(request::GET_FEATURES), 3);
    assert_ne!(front_end.answer(request::SET_MEM_TABLE), 0);

    // And the connection is still good.
    front_end.plain(request::GET_FEATURES);
    bench.driver.expect(request::GET_FEATURES);
    bench.driver.answer(request::GET_FEATURES, 4);
    assert_eq!(front_end.answer(request::GET_FEATURES), 4);

    // Without the wish for an outcome, or without the right to have one, it ends.
    front_end.memory(PLAIN, &large, &[&file]);
    bench.is_dropped(front_end);
    let mut front_end = bench.connect_up();
    front_end.memory(NEED_REPLY, &large, &[&file]);
    bench.is_dropped(front_end);
}

/// Statement 34 is about memory slots, which the device does not have: it does not say that it
/// has, and refuses to be told of any.
pub(super) fn c34_memory_slots_not_offered(target: &dyn Target) {
    let mut bench = Bench::new(target, &Setup::default());
    assert_eq!(bench.driver.features() & 1 << 4, 0);
    bench.driver.start(LAYOUT, 16, 8192);
    let mut front_end = acknowledged(&mut bench);
    let file = memory("vvu-slots", 0x20_0000, 0x55);
    good_memory(&mut bench, &mut front_end, &file);

    front_end.plain(request::GET_PROTOCOL_FEATURES);
    bench.driver.expect(request::GET_PROTOCOL_FEATURES);
    let slots = 1 << 15;
    bench
        .driver
        .answer(request::GET_PROTOCOL_FEATURES, slots | 1);
    assert_eq!(front_end.answer(request::GET_PROTOCOL_FEATURES), 1);

    let slot = |at: u64| MemRegion {
        ..region(at, 0x10000, at)
    };
    for (asked, fds) in [
        (Request::AddMemReg(slot(0x10_0000)), &[&file][..]),
        (Request::RemMemReg(slot(0)), &[]),
    ] {
        let asked = asked.to_message(true);
        let fds: Vec<_> = fds.iter().map(std::os::fd::AsFd::as_fd).collect();
        front_end.send(asked.request, NEED_REPLY, &asked.payload, &fds);
        assert_ne!(front_end.answer(asked.request), 0);
        bench.driver.expect_none();
        assert_eq!(bench.driver.load(0), 0x55);
        assert_eq!(bench.driver.load(0x10_0000), 0);
    }
    front_end.send(request::REM_MEM_REG, PLAIN, &[0; 40], &[]);
    bench.is_dropped(front_end);
}
