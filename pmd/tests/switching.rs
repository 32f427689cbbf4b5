//! Mock drivers exchange frames through running workers.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::*;
use vvu::notify::Kick;
use vvu::virtio::{DeviceError, RingChange, VirtioDevice};
use vvu_pmd::mock::{Layout, MockNet, signal};
use vvu_pmd::net::feature;
use vvu_pmd::port::MAX_FRAME;
use vvu_pmd::stats::{Drop, RingState};
use vvu_pmd::vring::feature as ring;
use vvu_pmd::{GenConfig, NetConfig, PortKind, Workers};

#[test]
fn two_guests_exchange_frames() {
    let workers = Workers::start(&[0]).unwrap();
    let (mut a, mut b) = (device(&workers, "a", A), device(&workers, "b", B));
    let mut one = MockNet::start(&mut a, memory(0x1000), Layout::default());
    let mut two = MockNet::start(&mut b, memory(0x10_0000), Layout::default());
    for number in 0..1000 {
        let there = frame(B, A, number, 60 + number as usize % 1440);
        assert!(one.send(&there));
        assert_eq!(receive(&mut two), there);
        let back = frame(A, B, number, 1500);
        assert!(two.send_parts(0, &back, &[0, 14, 700], number % 2 == 0));
        assert_eq!(receive(&mut one), back);
    }
    let stats = workers.stats();
    assert_eq!(stats.port("a").unwrap().rx_packets, 1000);
    assert_eq!(stats.port("a").unwrap().tx_packets, 1000);
    assert_eq!(stats.port("a").unwrap().unlearnt, 1);
    assert!(stats.to_string().contains("unlearnt-flood"));
}

#[test]
fn every_combination_of_features() {
    let all = feature::MRG_RXBUF | ring::INDIRECT_DESC | ring::EVENT_IDX | ring::VERSION_1;
    let plain = [
        0,
        feature::MRG_RXBUF,
        ring::EVENT_IDX,
        ring::VERSION_1,
        ring::INDIRECT_DESC,
        all,
    ];
    let formats = [
        ring::RING_PACKED | ring::IN_ORDER,
        ring::RING_PACKED,
        ring::IN_ORDER,
        0,
    ];
    for without in formats
        .iter()
        .flat_map(|format| plain.map(|bits| format | bits))
    {
        let workers = Workers::start(&[0]).unwrap();
        let (mut a, mut b) = (device(&workers, "a", A), device(&workers, "b", B));
        let layout = Layout {
            features: !without,
            base: 65530,
            // Packed rings may have any size.
            size: if without & ring::RING_PACKED == 0 {
                13
            } else {
                16
            },
            ..Layout::default()
        };
        let mut one = MockNet::start(&mut a, memory(0x1000), layout);
        let mut two = MockNet::start(&mut b, memory(0x1000), layout);
        assert_eq!(one.features() & without, 0);
        for number in 0..100 {
            let there = frame(B, A, number, 14 + 15 * number as usize);
            assert!(one.send_parts(0, &there, &[7], true));
            assert_eq!(receive(&mut two), there);
            assert!(two.send(&frame(A, B, number, 100)));
            receive(&mut one);
        }
    }
}

#[test]
fn big_frames_are_merged_or_dropped() {
    let workers = Workers::start(&[0]).unwrap();
    let (mut a, mut b) = (device(&workers, "a", A), device(&workers, "b", B));
    let mut c = device(&workers, "c", [2, 0, 0, 0, 0, 0xc]);
    let small = Layout {
        buffer: 300,
        size: 64,
        ..Layout::default()
    };
    let single = Layout {
        features: !feature::MRG_RXBUF,
        ..small
    };
    let mut one = MockNet::start(&mut a, memory(0x1000), Layout::default());
    let mut two = MockNet::start(&mut b, memory(0x1000), small);
    let mut three = MockNet::start(&mut c, memory(0x1000), single);
    for (number, len) in [(1, 288), (2, 289), (3, 1514), (4, MAX_FRAME)] {
        let there = frame([0xff; 6], A, number, len);
        assert!(one.send(&there));
        assert_eq!(receive(&mut two), there);
    }
    assert_eq!(receive(&mut three).len(), 288);
    wait(|| dropped(&workers, "c", Drop::SmallBuffer) == 3);
    assert!(three.receive().is_none());
    // Frames that nobody could be meant to get.
    assert!(one.send(&[0; 13]));
    assert!(one.send(&frame(B, A, 5, MAX_FRAME + 1)));
    wait(|| dropped(&workers, "a", Drop::Truncated) == 1);
    wait(|| dropped(&workers, "a", Drop::TooLong) == 1);
    assert!(two.receive().is_none());
}

#[test]
fn a_full_ring_drops_and_recovers() {
    let workers = Workers::start(&[0]).unwrap();
    let (mut a, mut b) = (device(&workers, "a", A), device(&workers, "b", B));
    let mut one = MockNet::start(&mut a, memory(0x1000), Layout::default());
    let layout = Layout {
        size: 8,
        buffer: 600,
        ..Layout::default()
    };
    let mut two = MockNet::start(&mut b, memory(0x1000), layout);
    // Three buffers each: the third frame finds two, which must not be half used.
    for number in 0..3 {
        assert!(one.send(&frame(B, A, number, 1500)));
    }
    wait(|| dropped(&workers, "b", Drop::RingFull) == 1);
    assert!(one.send(&frame(B, A, 3, 1000)), "but a smaller one fits");
    for (number, len) in [(0, 1500), (1, 1500), (3, 1000)] {
        assert_eq!(receive(&mut two), frame(B, A, number, len));
    }
    assert!(one.send(&frame(B, A, 4, 1500)));
    assert_eq!(receive(&mut two), frame(B, A, 4, 1500));
}

#[test]
fn rings_that_are_disabled_or_gone() {
    let workers = Workers::start(&[0]).unwrap();
    let (mut a, mut b) = (device(&workers, "a", A), device(&workers, "b", B));
    let mut one = MockNet::start(&mut a, memory(0x1000), Layout::default());
    let mut two = MockNet::start(&mut b, memory(0x1000), Layout::default());
    let state = |name: &str, ring: usize| workers.stats().port(name).unwrap().rings[ring];
    assert_eq!(state("b", 0), RingState::Running);
    b.change_ring(0, RingChange::Enabled(false)).unwrap();
    assert_eq!(state("b", 0), RingState::Disabled);
    assert!(one.send(&frame(B, A, 0, 60)));
    wait(|| dropped(&workers, "b", Drop::NoRing) == 1);
    b.change_ring(0, RingChange::Enabled(true)).unwrap();
    assert!(one.send(&frame(B, A, 1, 60)));
    assert_eq!(receive(&mut two), frame(B, A, 1, 60));
    // What a disabled transmit queue brings is dropped, but given back.
    b.change_ring(1, RingChange::Enabled(false)).unwrap();
    assert!(two.send(&frame(A, B, 2, 60)));
    wait(|| dropped(&workers, "b", Drop::Disabled) == 1);
    wait(|| two.queue(1).used() == Some((0, 0)));
    assert!(one.receive().is_none());
    // Stopped: it says where, and cannot be stopped again.
    assert_eq!(b.stop_ring(0).unwrap(), 1);
    assert_eq!(b.stop_ring(1).unwrap(), 1);
    assert_eq!(state("b", 1), RingState::Stopped);
    assert!(matches!(b.stop_ring(0), Err(DeviceError::RingState { .. })));
    assert!(matches!(b.stop_ring(2), Err(DeviceError::NoQueue { .. })));
}

#[test]
fn a_bad_ring_stops_alone_and_can_be_restarted() {
    let workers = Workers::start(&[0]).unwrap();
    let (mut a, mut b) = (device(&workers, "a", A), device(&workers, "b", B));
    let mut one = MockNet::start(&mut a, memory(0x1000), Layout::default());
    let mut two = MockNet::start(&mut b, memory(0x1000), Layout::default());
    let queue = one.queue(1);
    queue.push_head(999);
    queue.submit();
    wait(|| workers.stats().port("a").unwrap().rings[1] == RingState::Broken);
    let fault = ("out-of-range", 1);
    assert!(workers.stats().port("a").unwrap().faults.contains(&fault));
    assert_eq!(one.signals(1).1, 1, "the front-end was told");
    // The other direction goes on, and so does everybody else.
    assert!(two.send(&frame(A, B, 1, 60)));
    assert_eq!(receive(&mut one), frame(A, B, 1, 60));
    // A receive ring breaks when a frame is to be delivered.
    two.queue(0).publish_index(40000);
    assert!(two.send(&frame(A, B, 2, 60)));
    assert_eq!(receive(&mut one), frame(A, B, 2, 60));
    // Stop and start again, as at a reboot.
    let base = a.stop_ring(1).unwrap();
    assert_eq!(base, 0, "where it broke");
    let queue = one.queue(1);
    queue.restart(0);
    let (vring, _called, _failed) = queue.vring(1);
    a.start_ring(vring).unwrap();
    assert!(one.send(&frame(B, A, 3, 60)));
    wait(|| workers.stats().port("b").unwrap().rings[0] == RingState::Broken);
    assert_eq!(two.signals(0).1, 1);
}

#[test]
fn queues_keep_flows_in_order() {
    const PAIRS: u16 = 4;
    let workers = Workers::start(&[0]).unwrap();
    let (_, a) = workers.add_port("a", card(A, 1), None).unwrap();
    let (_, b) = workers.add_port("b", card(B, PAIRS), None).unwrap();
    let (mut a, mut b) = (a.unwrap(), b.unwrap());
    let layout = Layout {
        pairs: PAIRS,
        size: 64,
        ..Layout::default()
    };
    let mut one = MockNet::start(&mut a, memory(0x1000), Layout::default());
    let mut two = MockNet::start(&mut b, memory(0x1000), layout);
    assert_ne!(two.features() & feature::MQ, 0);
    let mut space = [0; 2];
    b.read_config(8, &mut space).unwrap();
    assert_eq!(space, [4, 0]);
    let mut seen = [const { None }; 16];
    let mut queues = std::collections::HashSet::new();
    let mut exchange = |two: &mut MockNet, queues: &mut std::collections::HashSet<u16>| {
        let mut sent = 0;
        let mut got = 0;
        while got < 400 {
            let wanted = sent < 400 && sent < got + 16;
            if wanted && one.send(&udp(B, A, sent % 16, sent)) {
                sent += 1;
            }
            while let Some((queue, frame)) = two.receive() {
                let (flow, number) = flow_of(&frame);
                let last: &mut Option<(u16, u32)> = &mut seen[flow as usize];
                if let Some((before, last)) = *last {
                    assert!(
                        queues.len() == 1 || before == queue,
                        "a flow changed its queue"
                    );
                    assert!(number > last || number < 16, "{number} after {last}");
                }
                *last = Some((queue, number));
                queues.insert(queue);
                got += 1;
            }
        }
    };
    exchange(&mut two, &mut queues);
    assert_eq!(queues.len(), usize::from(PAIRS), "{queues:?}");
    // A guest that enables one pair gets everything there.
    for pair in 1..PAIRS {
        b.change_ring(2 * pair, RingChange::Enabled(false)).unwrap();
    }
    let mut queues = std::collections::HashSet::from([0]);
    exchange(&mut two, &mut queues);
    assert_eq!(queues.len(), 1);
}

#[test]
fn echo_generator_and_null() {
    let workers = Workers::start(&[0]).unwrap();
    let mut a = device(&workers, "a", A);
    let (echo, _) = workers
        .add_port("echo", PortKind::Echo { swap: true }, None)
        .unwrap();
    let mut one = MockNet::start(&mut a, memory(0x1000), Layout::default());
    assert!(one.send(&frame(B, A, 7, 700)));
    assert_eq!(receive(&mut one), frame(A, B, 7, 700));
    workers.remove_port(echo).unwrap();
    workers
        .add_port("echo", PortKind::Echo { swap: false }, None)
        .unwrap();
    assert!(one.send(&frame(B, A, 8, 700)));
    assert_eq!(receive(&mut one), frame(B, A, 8, 700));

    let generator = PortKind::Gen(GenConfig {
        size: 64,
        ..GenConfig::default()
    });
    let (generator, _) = workers.add_port("gen", generator, None).unwrap();
    for _ in 0..500 {
        assert_eq!(receive(&mut one).len(), 64);
    }
    workers.remove_port(generator).unwrap();
    while one.receive().is_some() {}
    workers.add_port("null", PortKind::Null, None).unwrap();
    assert!(one.send(&frame(B, A, 9, 100)));
    wait(|| workers.stats().port("null").unwrap().tx_packets == 1);
    assert_eq!(workers.stats().port("null").unwrap().tx_bytes, 100);
}

#[test]
fn announcing_and_leaving() {
    let workers = Workers::start(&[0]).unwrap();
    let (mut a, mut b) = (device(&workers, "a", A), device(&workers, "b", B));
    let mut c = device(&workers, "c", [2, 0, 0, 0, 0, 0xc]);
    let mut one = MockNet::start(&mut a, memory(0x1000), Layout::default());
    let mut two = MockNet::start(&mut b, memory(0x1000), Layout::default());
    let mut three = MockNet::start(&mut c, memory(0x1000), Layout::default());
    a.announce(A).unwrap();
    let rarp = receive(&mut two);
    assert_eq!(
        (rarp.len(), &rarp[..6], &rarp[6..12]),
        (60, &[0xff; 6][..], &A[..])
    );
    assert_eq!(&rarp[12..14], &[0x80, 0x35]);
    assert_eq!(&rarp[22..28], &A);
    receive(&mut three);
    let stats = workers.stats();
    for name in ["b", "c"] {
        let port = stats.port(name).unwrap();
        assert_eq!((port.tx_packets, port.tx_bytes), (1, 60));
    }
    // So A is known, and others do not see what goes to it.
    assert!(two.send(&frame(A, B, 1, 60)));
    assert_eq!(receive(&mut one), frame(A, B, 1, 60));
    assert!(three.receive().is_none());
    // At the end of a connection the rings stop and the address is forgotten.
    a.reset();
    assert!(matches!(a.stop_ring(0), Err(DeviceError::RingState { .. })));
    assert!(two.send(&frame(A, B, 2, 60)));
    assert_eq!(receive(&mut three), frame(A, B, 2, 60));
    assert_eq!(dropped(&workers, "a", Drop::NoRing), 1);
    // The port is still there for the next one.
    let mut again = MockNet::start(&mut a, memory(0x9000), Layout::default());
    assert!(two.send(&frame(A, B, 3, 60)));
    assert_eq!(receive(&mut again), frame(A, B, 3, 60));
    // A device may outlive the workers.
    drop(workers);
    assert!(matches!(a.stop_ring(0), Err(DeviceError::WorkerGone)));
}

#[test]
fn kicks_calls_and_errors_can_change() {
    let workers = Workers::start(&[0]).unwrap();
    let (mut a, mut b) = (device(&workers, "a", A), device(&workers, "b", B));
    let mut one = MockNet::start(&mut a, memory(0x1000), Layout::default());
    let mut two = MockNet::start(&mut b, memory(0x1000), Layout::default());
    std::thread::sleep(Duration::from_millis(5));
    // The frame is there, but the kick goes nowhere, until there is a new one.
    one.queue(1).vring_with(1, Kick::Polled);
    let kick = one.queue(1).new_kick();
    a.change_ring(1, RingChange::Kick(kick)).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    assert!(one.send(&frame(B, A, 1, 60)));
    assert_eq!(receive(&mut two), frame(B, A, 1, 60));
    // What was sent is reported in batches: not later than this, or the new call rings for it.
    wait(|| one.queue(1).used_index() == 1);
    let (call, called) = vvu_pmd::mock::call();
    a.change_ring(1, RingChange::Call(call)).unwrap();
    assert_eq!(vvu_pmd::mock::signals(&called), 1, "rung once");
    let (err, failed) = vvu_pmd::mock::call();
    a.change_ring(1, RingChange::Err(err)).unwrap();
    one.queue(1).publish_index(30000);
    // Any kick makes the worker look.
    let (kick, ours) = vvu_pmd::mock::kick();
    a.change_ring(1, RingChange::Kick(kick)).unwrap();
    signal(&ours);
    wait(|| vvu_pmd::mock::signals(&failed) == 1);
}

#[test]
fn impossible_ports_and_workers() {
    let error = |cpus: &[usize]| Workers::start(cpus).unwrap_err().to_string();
    assert!(error(&[]).contains("no CPU"));
    assert!(error(&[0, 0]).contains("CPU 0 is listed twice"));
    for cpu in [1000, 5000, usize::MAX] {
        let error = error(&[cpu]);
        assert!(error.contains(&format!("CPU {cpu}")), "{error}");
        assert!(error.contains("may use CPU 0"), "{error}");
    }
    let workers = Workers::start(&[0]).unwrap();
    assert!(workers.add_port("a", card(A, 0), None).is_err());
    assert!(workers.add_port("a", card(A, 129), None).is_err());
    assert!(workers.add_port("a", card(A, 1), Some(1)).is_err());
    let controlled = NetConfig {
        pairs: 128,
        control: true,
        ..NetConfig::default()
    };
    let controlled = PortKind::Vhost(controlled);
    assert!(
        workers.add_port("a", controlled, None).is_err(),
        "queue 256"
    );
    let tiny = GenConfig {
        size: 13,
        ..GenConfig::default()
    };
    assert!(workers.add_port("g", PortKind::Gen(tiny), None).is_err());
    let (id, device) = workers.add_port("a", card(A, 128), None).unwrap();
    let mut device = device.unwrap();
    assert_eq!((device.device_id(), device.queues()), (1, 256));
    assert!(
        device.set_features(1 << 10).is_err(),
        "UDP fragmentation is not offered"
    );
    assert!(device.set_mtu(67).is_err());
    device.set_mtu(9000).unwrap();
    let mut mtu = [0; 2];
    device.read_config(10, &mut mtu).unwrap();
    assert_eq!(u16::from_le_bytes(mtu), 9000);
    device.reset();
    device.read_config(10, &mut mtu).unwrap();
    assert_eq!(u16::from_le_bytes(mtu), 1500, "as configured");
    assert!(device.read_config(23, &mut mtu).is_err());
    assert!(device.read_config(u32::MAX, &mut mtu).is_err());
    assert!(device.write_config(0, &[0]).is_err());
    workers.remove_port(id).unwrap();
    assert!(workers.remove_port(id).is_err());
    assert!(device.announce(A).is_ok(), "nobody hears it");
}

/// A guest that sends one frame after the other is not interrupted for each of them; once it
/// pauses, it hears of all.
#[test]
fn sent_frames_are_reported_in_batches() {
    const FRAMES: u32 = 1000;
    let workers = Workers::start(&[0]).unwrap();
    let (mut a, mut b) = (device(&workers, "a", A), device(&workers, "b", B));
    let layout = Layout {
        features: Layout::default().features & !ring::EVENT_IDX,
        ..Layout::default()
    };
    let mut one = MockNet::start(&mut a, memory(0x1000), layout);
    let mut two = MockNet::start(&mut b, memory(0x1000), Layout::default());
    one.signals(1);
    for number in 0..FRAMES {
        wait(|| one.send(&frame(B, A, number, 60)));
        assert_eq!(receive(&mut two), frame(B, A, number, 60));
    }
    // Both sides run freely here, so that only the end is certain: nothing is kept back.
    let last = one.queue(1).used_index();
    wait(|| one.queue(1).used_index() == FRAMES as u16);
    assert!(last <= FRAMES as u16);
    assert!(one.signals(1).0 >= 1, "the last batch was not announced");
}
