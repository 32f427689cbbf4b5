//! Frames whose checksum or segmentation was left to the device: passed on as they are to guests
//! that take them, completed for those that do not.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::*;
use vvu_pmd::Workers;
use vvu_pmd::mock::{Layout, MockNet};
use vvu_pmd::net::feature;
use vvu_pmd::stats::Drop;

const SEGMENT: usize = 1448;
const HEADERS: usize = 54;

/// TCP over IPv4 from a to b, with the sum of the pseudo header of all of it in the field.
fn tcp(payload: usize) -> Vec<u8> {
    let mut frame = [&B[..], &A[..], &[8, 0, 0x45, 0]].concat();
    frame.extend(((40 + payload) as u16).to_be_bytes());
    frame.extend([0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([
        0, 80, 0, 90, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x18, 1, 0, 0, 0, 0, 0,
    ]);
    let pseudo = 0x0a00 + 1 + 0x0a00 + 2 + 6 + 20 + payload as u32;
    frame[50..52].copy_from_slice(&(pseudo as u16).to_be_bytes());
    frame.extend((0..payload).map(|n| (n % 253) as u8));
    frame
}

/// Whether the TCP checksum is right, as a receiver sees it.
fn is_whole(frame: &[u8]) -> bool {
    let words = |bytes: &[u8]| -> u64 {
        let pair = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        bytes.chunks(2).map(pair).sum()
    };
    let sum = words(&frame[26..34]) + 6 + (frame.len() - 34) as u64 + words(&frame[34..]);
    sum.is_multiple_of(0xffff)
}

fn asking(gso: bool) -> [u8; 10] {
    let [low, high] = (SEGMENT as u16).to_le_bytes();
    match gso {
        true => [1, 1, HEADERS as u8, 0, low, high, 34, 0, 16, 0],
        false => [1, 0, 0, 0, 0, 0, 34, 0, 16, 0],
    }
}

fn receive_asked(net: &mut MockNet) -> ([u8; 10], Vec<u8>) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some((_, header, frame)) = net.receive_asked() {
            return (header, frame);
        }
        assert!(Instant::now() < deadline, "no frame");
        std::thread::yield_now();
    }
}

/// Sends from a guest that leaves work to the device to one without `refused` features.
fn exchange(cpus: &[usize], refused: u64, mut judge: impl FnMut(&mut MockNet, &[u8], bool)) {
    let workers = Workers::start(cpus).unwrap();
    let (mut a, mut b) = (device(&workers, "a", A), device(&workers, "b", B));
    let mut one = MockNet::start(&mut a, memory(0x1000), Layout::default());
    let layout = Layout {
        features: !refused,
        ..Layout::default()
    };
    let mut two = MockNet::start(&mut b, memory(0x1000), layout);
    for _ in 0..50 {
        for (payload, gso) in [(100, false), (10_000, true)] {
            let frame = tcp(payload);
            assert!(one.send_asking(&asking(gso), &frame));
            judge(&mut two, &frame, gso);
        }
    }
    assert_eq!(workers.stats().port("a").unwrap().dropped_all(), 0);
    assert_eq!(workers.stats().port("b").unwrap().dropped_all(), 0);
}

fn as_it_is(guest: &mut MockNet, sent: &[u8], gso: bool) {
    let (header, frame) = receive_asked(guest);
    assert_eq!(header, asking(gso));
    assert_eq!(frame, sent);
}

fn completed(guest: &mut MockNet, sent: &[u8], gso: bool) {
    let count = if gso {
        (sent.len() - HEADERS).div_ceil(SEGMENT)
    } else {
        1
    };
    let mut payload = Vec::new();
    for _ in 0..count {
        let frame = receive(guest);
        assert!(is_whole(&frame));
        payload.extend_from_slice(&frame[HEADERS..]);
    }
    assert_eq!(payload, sent[HEADERS..]);
}

#[test]
fn a_guest_that_takes_them_gets_them_as_they_are() {
    exchange(&[0], 0, as_it_is);
}

#[test]
fn a_guest_that_takes_none_gets_complete_frames() {
    exchange(&[0], feature::OFFLOADS, completed);
}

#[test]
fn a_guest_that_only_computes_checksums_gets_segments() {
    let segmented = |guest: &mut MockNet, sent: &[u8], gso: bool| match gso {
        true => completed(guest, sent, gso),
        false => as_it_is(guest, sent, gso),
    };
    exchange(
        &[0],
        feature::OFFLOADS & !(feature::CSUM | feature::GUEST_CSUM),
        segmented,
    );
}

/// Three datagrams in one, the last a short one, over IPv6 with an extension header.
fn datagrams() -> ([u8; 10], Vec<u8>) {
    let mut frame = [&B[..], &A[..], &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    frame.extend((8 + 8 + 2500u16).to_be_bytes());
    frame.extend([60, 64]);
    frame.extend([0xfd; 32]);
    frame.extend([17, 0, 1, 4, 0, 0, 0, 0]);
    frame.extend([0, 7, 0, 9]);
    frame.extend((8 + 2500u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend((0..2500).map(|n| (n % 253) as u8));
    let [low, high] = 1001u16.to_le_bytes();
    ([1, 5, 70, 0, low, high, 62, 0, 6, 0], frame)
}

#[test]
fn datagrams_in_one_go_as_they_are_or_one_by_one() {
    for taken in [true, false] {
        let workers = Workers::start(&[0]).unwrap();
        let (mut a, mut b) = (device(&workers, "a", A), device(&workers, "b", B));
        let mut one = MockNet::start(&mut a, memory(0x1000), Layout::default());
        let layout = Layout {
            features: if taken {
                u64::MAX
            } else {
                !feature::GUEST_USO6
            },
            ..Layout::default()
        };
        let mut two = MockNet::start(&mut b, memory(0x1000), layout);
        let (header, sent) = datagrams();
        assert!(one.send_asking(&header, &sent));
        if taken {
            assert_eq!(receive_asked(&mut two), (header, sent));
            continue;
        }
        for part in sent[70..].chunks(1001) {
            let frame = receive(&mut two);
            assert_eq!(frame[70..], *part);
            let length = (8 + part.len() as u16).to_be_bytes();
            assert_eq!(frame[66..68], length);
            let sum = |bytes: &[u8]| -> u64 {
                let pair = |p: &[u8]| u64::from(p[0]) << 8 | u64::from(*p.get(1).unwrap_or(&0));
                bytes.chunks(2).map(pair).sum()
            };
            let all = sum(&frame[22..54]) + 17 + 8 + part.len() as u64 + sum(&frame[62..]);
            assert!(all.is_multiple_of(0xffff), "UDP checksum");
        }
    }
}

#[test]
fn between_workers_frames_are_complete() {
    exchange(&[0, 1], 0, completed);
}

#[test]
fn what_makes_no_sense_is_dropped_and_counted() {
    let workers = Workers::start(&[0]).unwrap();
    let (mut a, mut b) = (device(&workers, "a", A), device(&workers, "b", B));
    let mut one = MockNet::start(&mut a, memory(0x1000), Layout::default());
    let mut two = MockNet::start(&mut b, memory(0x1000), Layout::default());
    let mut far = asking(false);
    far[6..8].copy_from_slice(&[0xff, 0xff]);
    assert!(one.send_asking(&far, &tcp(100)));
    // Long, but nothing says how to cut it.
    assert!(one.send_asking(&[0; 10], &tcp(10_000)));
    let last = frame(B, A, 1, 60);
    assert!(one.send(&last));
    assert_eq!(receive(&mut two), last);
    let stats = workers.stats();
    let port = stats.port("a").unwrap();
    assert_eq!(port.dropped(Drop::BadOffload), 1);
    assert_eq!(port.dropped(Drop::TooLong), 1);
}

#[test]
fn without_the_feature_the_header_means_nothing() {
    let workers = Workers::start(&[0]).unwrap();
    let (mut a, mut b) = (device(&workers, "a", A), device(&workers, "b", B));
    let layout = Layout {
        features: !feature::OFFLOADS,
        ..Layout::default()
    };
    let mut one = MockNet::start(&mut a, memory(0x1000), layout);
    let mut two = MockNet::start(&mut b, memory(0x1000), Layout::default());
    let frame = tcp(100);
    assert!(one.send_asking(&[0xff; 10], &frame));
    assert_eq!(receive(&mut two), frame);
}
