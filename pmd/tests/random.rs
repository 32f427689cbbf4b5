//! Two mock drivers with arbitrary layouts send each other arbitrary frames through running
//! workers, within one and across two; every frame arrives byte for byte and in order, or is
//! counted as dropped.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::VecDeque;
use std::time::Instant;

use common::*;
use vvu::virtio::VirtioDevice;
use vvu_pmd::mock::{Layout, MockNet, Random};
use vvu_pmd::net::feature;
use vvu_pmd::stats::Drop;
use vvu_pmd::vring::feature as ring;
use vvu_pmd::{NetDevice, Workers};

/// One of the two.
struct Side {
    name: &'static str,
    mac: [u8; 6],
    peer: [u8; 6],
    device: NetDevice,
    net: MockNet,
    /// Sent by the other and not yet seen here.
    expected: VecDeque<Vec<u8>>,
    received: u64,
}

fn layout(random: &mut Random) -> Layout {
    let mut features = u64::MAX;
    for bit in [
        feature::MRG_RXBUF,
        ring::EVENT_IDX,
        ring::INDIRECT_DESC,
        ring::VERSION_1,
    ] {
        if random.range(0, 3) == 0 {
            features &= !bit;
        }
    }
    for bit in [ring::RING_PACKED, ring::IN_ORDER] {
        if random.range(0, 1) == 0 {
            features &= !bit;
        }
    }
    let packed = features & ring::RING_PACKED != 0;
    let mergeable = features & feature::MRG_RXBUF != 0;
    Layout {
        size: match packed {
            true => random.range(32, 512) as u16,
            false => 1 << random.range(5, 9),
        },
        base: random.number() as u16,
        buffer: random.range(if mergeable { 64 } else { 1600 }, 2500),
        features,
        pairs: 1,
        polled: random.range(0, 7) == 0,
    }
}

fn side(workers: &Workers, random: &mut Random, name: &'static str, macs: [[u8; 6]; 2]) -> Side {
    let mut device = device(workers, name, macs[0]);
    let start = 16 * random.range(1, 1 << 20) as u64;
    let net = MockNet::start(&mut device, memory(start), layout(random));
    Side {
        name,
        mac: macs[0],
        peer: macs[1],
        device,
        net,
        expected: VecDeque::new(),
        received: 0,
    }
}

/// Sends one frame of any length and layout to the peer; returns it.
fn send(side: &mut Side, random: &mut Random, number: u32) -> Option<Vec<u8>> {
    let len = random.range(18, 1518);
    let mut bytes = frame(side.peer, side.mac, 0, len);
    for byte in &mut bytes[18..] {
        *byte = random.number() as u8;
    }
    bytes[14..18].copy_from_slice(&number.to_be_bytes());
    let mut cuts: Vec<_> = (0..random.range(0, 6))
        .map(|_| random.range(0, len))
        .collect();
    cuts.sort_unstable();
    let indirect = random.range(0, 1) == 1;
    side.net
        .send_parts(0, &bytes, &cuts, indirect)
        .then_some(bytes)
}

/// Takes what arrived: what was sent, in order, perhaps with gaps.
fn receive(side: &mut Side) {
    while let Some((_, got)) = side.net.receive() {
        side.received += 1;
        let number = |frame: &[u8]| u32::from_be_bytes(frame[14..18].try_into().unwrap());
        loop {
            let sent = side.expected.pop_front().expect("something that was sent");
            if number(&sent) == number(&got) {
                let (sent_len, got_len) = (sent.len(), got.len());
                assert!(
                    sent == got,
                    "{sent_len} bytes sent, {got_len} other bytes received"
                );
                break;
            }
        }
    }
}

fn exchange(seed: u64, cpus: &[usize]) {
    let random = &mut Random::new(seed);
    let workers = Workers::start(cpus).unwrap();
    let mut one = side(&workers, random, "one", [A, B]);
    let mut two = side(&workers, random, "two", [B, A]);
    let mut sent = [0u64; 2];
    for number in 0..1500 {
        let (from, to, count) = if random.range(0, 1) == 0 {
            (&mut one, &mut two, 0)
        } else {
            (&mut two, &mut one, 1)
        };
        if let Some(bytes) = send(from, random, number) {
            to.expected.push_back(bytes);
            sent[count] += 1;
        }
        if random.range(0, 9) == 0 {
            receive(to);
        }
        if random.range(0, 200) == 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        if random.range(0, 300) == 0 {
            from.net.move_memory(&mut from.device);
        }
    }
    // Every frame is delivered or counted, once.
    let start = Instant::now();
    loop {
        receive(&mut one);
        receive(&mut two);
        let stats = workers.stats();
        let lost = |from: &Side, to: &Side| {
            let from = stats.port(from.name).unwrap();
            let to = stats.port(to.name).unwrap();
            let between = from.dropped(Drop::QueueFull) + from.dropped(Drop::NoMbuf);
            between + to.dropped(Drop::RingFull) + to.dropped(Drop::SmallBuffer)
        };
        let accounted = [
            two.received + lost(&one, &two),
            one.received + lost(&two, &one),
        ];
        if accounted == sent {
            break;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "seed {seed}: {accounted:?} of {sent:?}\n{stats}"
        );
        std::thread::yield_now();
    }
    for side in [&mut one, &mut two] {
        assert_eq!(side.net.signals(0).1 + side.net.signals(1).1, 0);
        side.device.reset();
    }
}

#[test]
fn within_one_worker() {
    for seed in 1..15 {
        exchange(seed, &[0]);
    }
}

#[test]
fn across_two_workers() {
    if std::thread::available_parallelism().unwrap().get() < 2 {
        println!("SKIPPED: needs two CPUs");
        return;
    }
    for seed in 100..115 {
        exchange(seed, &[0, 1]);
    }
}
