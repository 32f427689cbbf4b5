#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use std::time::Instant;

use super::*;
use crate::model::faults::{Fault, Op};
use crate::model::test_rig::{Rig, until};
use crate::model::{LinkState, Shape};

pub(super) fn options() -> Options {
    Options {
        timeout: Duration::from_millis(50),
        ..Options::default()
    }
}

pub(super) fn open(shape: Shape) -> (Rig, Device) {
    let (rig, function) = Rig::new(shape);
    let device = Device::open(function, options()).unwrap();
    (rig, device)
}

/// As [`next`], when there will be an event.
pub(super) fn expect(device: &mut Device) -> LinkEvent {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        if let Some(event) = next(device) {
            return event;
        }
    }
    panic!("nothing happens");
}

/// Waits on the poll descriptor, as a program would, for the next event, but not for long.
pub(super) fn next(device: &mut Device) -> Option<LinkEvent> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        if let Some(event) = device.next_event() {
            return Some(event);
        }
        let fd = device.poll_fd();
        let timeout = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        };
        let mut fds = [rustix::event::PollFd::new(
            &fd,
            rustix::event::PollFlags::IN,
        )];
        if rustix::event::poll(&mut fds, Some(&timeout)).unwrap() == 0 {
            return None;
        }
    }
    panic!("the descriptor stays readable with nothing to do");
}

pub(super) fn message(request: u32, payload: &[u8]) -> Vec<u8> {
    let words = [request, 1, payload.len() as u32];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(payload);
    bytes
}

/// What the driver answers.
pub(super) fn reply(request: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = message(request, payload);
    bytes[4] |= 4;
    bytes
}

pub(super) fn expect_message(device: &mut Device, wanted: &[u8]) {
    match expect(device) {
        LinkEvent::Message(bytes) => assert_eq!(bytes, wanted),
        other => panic!("{other:?}"),
    }
}

pub(super) fn expect_connected(device: &mut Device) {
    let event = expect(device);
    assert!(matches!(event, LinkEvent::Connected), "{event:?}");
}

pub(super) fn expect_closed(device: &mut Device) {
    match expect(device) {
        LinkEvent::Disconnected(Loss::Closed) => {}
        other => panic!("{other:?}"),
    }
}

pub(super) fn expect_failed(device: &mut Device) -> DeviceError {
    match expect(device) {
        LinkEvent::Disconnected(Loss::Failed(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn all_shapes() -> Vec<Shape> {
    vec![
        Shape::ours(),
        Shape::prototype(0x1058),
        Shape::prototype(0x106b),
        Shape::crosvm(),
    ]
}

#[test]
fn messages_both_ways_in_every_dialect() {
    for shape in all_shapes() {
        let (rig, mut device) = open(shape);
        assert!(next(&mut device).is_none());
        rig.connect();
        // On crosvm's device only a message tells.
        rig.push(&message(1, &[]));
        expect_connected(&mut device);
        expect_message(&mut device, &message(1, &[]));
        for n in 0..500u32 {
            let payload = n.to_le_bytes().repeat(n as usize % 300);
            let request = message(99, &payload);
            rig.push(&request);
            expect_message(&mut device, &request);
            let answer = reply(99, &payload);
            device.send(&[&answer[..12], &answer[12..]]).unwrap();
            assert_eq!(rig.sent(), [answer]);
        }
        assert!(next(&mut device).is_none());
        rig.disconnect();
        expect_closed(&mut device);
        assert!(next(&mut device).is_none());
        assert_eq!(rig.model.violations(), [""; 0]);
        let counters = rig.model.status().counters;
        assert_eq!((counters.violations, counters.broken), (0, 0));
    }
}

#[test]
fn the_rule_follows_from_the_device_unless_told_otherwise() {
    let rule = |shape, chosen| {
        let (_rig, function) = Rig::new(shape);
        let options = Options {
            rule: chosen,
            ..options()
        };
        Device::open(function, options).unwrap().identity().rule
    };
    assert_eq!(rule(Shape::ours(), None), Rule::Told);
    assert_eq!(rule(Shape::crosvm(), None), Rule::Packed);
    assert_eq!(rule(Shape::prototype(0x1058), None), Rule::Whole);
    assert_eq!(
        rule(Shape::prototype(0x1058), Some(Rule::Packed)),
        Rule::Packed
    );
}

#[test]
fn brought_up_in_the_order_of_the_book() {
    let (rig, _device) = open(Shape::ours());
    let ops = rig.model.ops();
    let at = |wanted: Op| {
        ops.iter()
            .rposition(|op| *op == wanted)
            .unwrap_or_else(|| panic!("{wanted:?} is missing in {ops:?}"))
    };
    let order = [
        at(Op::Config(4, vec![6, 0])),
        at(Op::DeviceStatus(0)),
        at(Op::DeviceStatus(1)),
        at(Op::DeviceStatus(3)),
        at(Op::Features(0, 11)),
        at(Op::Features(1, 3)),
        at(Op::DeviceStatus(11)),
        at(Op::ReadDeviceStatus),
        at(Op::ConfigVector(0)),
        at(Op::QueueVector(0, 1)),
        at(Op::QueueVector(1, 2)),
        at(Op::KickVector(0, 3)),
        at(Op::KickVector(63, 66)),
        at(Op::KickVector(64, 0xffff)),
        at(Op::Enable(0)),
        at(Op::Enable(1)),
        at(Op::DeviceStatus(15)),
        at(Op::Notify(0)),
    ];
    assert!(order.is_sorted(), "{order:?}");
    // Not armed yet: that is the first thing that happens when somebody looks.
    assert!(!ops.contains(&Op::Link(1)));
    assert_eq!(rig.model.violations(), [""; 0]);
}

#[test]
fn armed_after_driver_ok_by_one_store() {
    let (rig, mut device) = open(Shape::ours());
    rig.model.ops();
    assert!(device.next_event().is_none());
    let links: Vec<_> = rig
        .model
        .ops()
        .into_iter()
        .filter(|op| matches!(op, Op::Link(_) | Op::DeviceStatus(_)))
        .collect();
    assert_eq!(links, [Op::Link(1)]);
}

#[test]
fn what_the_device_lacks_is_named() {
    let refuse = |shape: Shape, fault| {
        let (rig, function) = Rig::new(shape);
        rig.model.fault(Some(fault));
        Device::open(function, options()).unwrap_err().to_string()
    };
    for (fault, name) in [
        (Fault::NoCapability(1), "common"),
        (Fault::NoCapability(2), "notification"),
        (Fault::NoCapability(3), "interrupt"),
        (Fault::NoCapability(4), "device"),
        (Fault::NoCapability(6), "doorbells"),
        (Fault::NoCapability(7), "selector"),
        (Fault::NoCapability(8), "shared memory"),
        (Fault::NoFeature(32), "disable-legacy"),
        (Fault::NoFeature(33), "iommu_platform"),
        (Fault::Rings(0), "max_vhost_queues"),
        (Fault::QueueSize(0), "queue 0"),
        // The window begins behind the end of its BAR.
        (Fault::BeyondBar, "BAR 2"),
    ] {
        let told = refuse(Shape::ours(), fault);
        assert!(told.contains(name), "{told}");
    }
    let told = refuse(
        Shape {
            window: 1 << 30,
            ..Shape::prototype(0x1058)
        },
        Fault::BeyondBar,
    );
    assert!(told.contains("BAR 2"), "{told}");
}

#[test]
fn a_device_that_does_not_cooperate_is_given_up_in_time() {
    let try_open = |fault| {
        let (rig, function) = Rig::new(Shape::ours());
        rig.model.fault(Some(fault));
        let start = Instant::now();
        let error = Device::open(function, options()).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(2));
        (rig, error)
    };
    let (rig, error) = try_open(Fault::FeaturesRefused);
    assert!(matches!(error, DeviceError::FeaturesRefused(_)));
    let failed = |op: &Op| matches!(op, Op::DeviceStatus(status) if status & 128 != 0);
    assert!(rig.model.ops().iter().any(failed));
    let (_, error) = try_open(Fault::GoneAfter(0));
    assert!(matches!(error, DeviceError::Gone), "{error}");
    let (_, error) = try_open(Fault::StuckReset);
    assert!(matches!(error, DeviceError::Timeout { .. }), "{error}");
}

#[test]
fn a_reset_that_does_not_finish_has_a_deadline() {
    let (rig, mut device) = open(Shape::ours());
    rig.connect();
    expect_connected(&mut device);
    rig.model.fault(Some(Fault::StuckReset));
    rig.model.break_down();
    assert!(matches!(
        expect_failed(&mut device),
        DeviceError::NeedsReset
    ));
    let start = Instant::now();
    assert!(device.next_event().is_none());
    assert!(start.elapsed() < Duration::from_secs(1));
    // It is tried again later, and works.
    rig.model.fault(None);
    std::thread::sleep(Duration::from_millis(1100));
    assert!(device.next_event().is_none());
    rig.connect();
    expect_connected(&mut device);
}

#[test]
fn refused_vectors_mean_polling() {
    for (refuse, vectors) in [(true, 67), (false, 0), (false, 1), (false, 2), (false, 4)] {
        let (rig, function) = Rig::new(Shape {
            vectors,
            ..Shape::ours()
        });
        rig.model.fault(refuse.then_some(Fault::VectorsRefused));
        let mut device = Device::open(function, options()).unwrap();
        assert!(device.next_event().is_none());
        rig.connect();
        rig.push(&message(1, &[7]));
        expect_connected(&mut device);
        expect_message(&mut device, &message(1, &[7]));
        let kick = device.kick(0).unwrap();
        assert_eq!(kick.is_some(), !refuse && vectors == 4);
        assert!(device.kick(1).unwrap().is_none());
        device.send(&[&reply(1, &[8])]).unwrap();
        assert_eq!(rig.sent(), [reply(1, &[8])]);
    }
}

#[test]
fn kicks_and_doorbells() {
    let (rig, mut device) = open(Shape::ours());
    // Before anybody asked for it: not lost.
    assert!(device.next_event().is_none());
    rig.connect();
    expect_connected(&mut device);
    rig.model.kick(5);
    let fd = device.kick(5).unwrap().unwrap();
    assert_eq!(rustix::io::read(&fd, &mut [0; 8]), Ok(8));
    assert!(rustix::io::read(&fd, &mut [0; 8]).is_err());
    assert!(device.next_event().is_none());
    assert!(device.kick(64).unwrap().is_none());

    for multiplier in [2, 4, 16] {
        let (rig, device) = open(Shape {
            multiplier,
            ..Shape::ours()
        });
        let (register, number) = device.doorbell(7).unwrap();
        register.write(number);
        assert_eq!(rig.model.rung(), [7]);
        assert!(device.doorbell(256).is_none());
        let err = device.error_doorbell(3);
        let (register, number) = err.unwrap();
        register.write(number);
        assert_eq!(rig.model.rung(), [259]);
        assert_eq!(rig.model.violations(), [""; 0]);
    }
    // Where they would lie behind the capability, there are none.
    let (_, device) = open(Shape {
        multiplier: 4096,
        ..Shape::crosvm()
    });
    assert!(device.doorbell(15).is_some());
    assert!(device.error_doorbell(1).is_none());
}

#[test]
fn memory_is_mapped_where_the_rule_says() {
    let (_rig, device) = open(Shape::prototype(0x1058));
    let extent = |size, mmap_offset| Extent { size, mmap_offset };
    let areas = device
        .map(&[extent(0x1000, 0x2000), extent(0x3000, 0x1000)])
        .unwrap();
    // Window at 0x3000 of the BAR; the second file begins behind the first's 0x3000 bytes.
    let window = device.function.map_bar(2, 0x3000, 0x10000).unwrap();
    let at = |nth: usize| areas[nth].address() - window.address();
    assert_eq!((at(0), areas[0].len()), (0x2000, 0x1000));
    assert_eq!((at(1), areas[1].len()), (0x4000, 0x3000));
    let told = device.map(&[extent(1 << 37, 0)]).unwrap_err().to_string();
    assert!(told.contains("larger memory window"), "{told}");
}

#[test]
fn a_device_that_lies_is_reset_and_used_again() {
    for lie in [
        Fault::RxLength(8193),
        Fault::RxLength(u32::MAX),
        Fault::RxId(64),
        Fault::RxId(u32::MAX),
        Fault::RxAdvance(65),
        Fault::RxAdvance(0x8000),
    ] {
        let (rig, mut device) = open(Shape::ours());
        rig.connect();
        expect_connected(&mut device);
        rig.model.fault(Some(lie));
        rig.push(&message(1, &[]));
        let error = expect_failed(&mut device);
        assert!(matches!(error, DeviceError::Queue { .. }), "{lie:?}");
        rig.model.fault(None);
        assert!(device.next_event().is_none());
        rig.connect();
        expect_connected(&mut device);
        rig.push(&message(2, &[]));
        expect_message(&mut device, &message(2, &[]));
    }
}

#[test]
fn a_message_before_the_interrupt_is_not_lost() {
    let (rig, mut device) = open(Shape::ours());
    assert!(device.next_event().is_none());
    rig.model.fault(Some(Fault::Mute));
    rig.connect();
    rig.push(&message(1, &[1]));
    rig.push(&message(2, &[2]));
    until("delivered", || rig.model.status().counters.delivered == 2);
    device.wake();
    expect_connected(&mut device);
    expect_message(&mut device, &message(1, &[1]));
    expect_message(&mut device, &message(2, &[2]));
}

#[test]
fn nothing_of_a_dead_connection_reaches_the_next() {
    let (rig, mut device) = open(Shape::ours());
    rig.connect();
    expect_connected(&mut device);
    // Received but not looked at, and sent but not taken.
    rig.push(&message(1, &[1]));
    until("delivered", || rig.model.status().counters.delivered == 1);
    rig.model.fault(Some(Fault::TxHeld));
    device.send(&[&reply(9, &[9])]).unwrap();
    rig.disconnect();
    rig.connect();
    expect_closed(&mut device);
    // Not armed while the reply is still there.
    assert!(device.next_event().is_none());
    assert!(!rig.is_connected());
    rig.model.fault(None);
    expect_connected(&mut device);
    assert!(next(&mut device).is_none());
    assert_eq!(rig.sent(), [[0u8; 0]; 0]);
}

#[test]
fn txq_that_never_empties_is_reset() {
    let (rig, mut device) = open(Shape::ours());
    rig.connect();
    expect_connected(&mut device);
    rig.model.fault(Some(Fault::TxHeld));
    device.send(&[&reply(9, &[9])]).unwrap();
    rig.disconnect();
    rig.connect();
    expect_closed(&mut device);
    let start = Instant::now();
    expect_connected(&mut device);
    assert!(start.elapsed() >= Duration::from_millis(900));
    assert_eq!(rig.sent(), [[0u8; 0]; 0]);
}

#[test]
fn sending_is_bounded() {
    let (rig, mut device) = open(Shape::ours());
    assert!(matches!(
        device.send(&[&message(1, &[])]),
        Err(DeviceError::NotConnected)
    ));
    rig.connect();
    expect_connected(&mut device);
    assert!(matches!(
        device.send(&[&[0; 8193]]),
        Err(DeviceError::Queue { .. })
    ));
    rig.model.fault(Some(Fault::TxHeld));
    let start = Instant::now();
    let error = loop {
        if let Err(error) = device.send(&[&message(1, &[])]) {
            break error;
        }
    };
    assert!(matches!(error, DeviceError::Stuck(_)), "{error}");
    assert!(start.elapsed() < Duration::from_secs(1));
    // The front-end going away ends the wait.
    rig.disconnect();
    assert!(matches!(
        device.send(&[&message(1, &[])]),
        Err(DeviceError::NotConnected)
    ));
}

#[test]
fn the_driver_can_end_a_connection() {
    let (rig, mut device) = open(Shape::ours());
    rig.connect();
    expect_connected(&mut device);
    device.disconnect();
    assert!(!rig.is_connected());
    assert!(next(&mut device).is_none());
    rig.connect();
    expect_connected(&mut device);
}

#[test]
fn who_was_given_up_is_not_listened_to() {
    // Another front-end, by the generation; an empty buffer on a device that has a status for it.
    let swap = |rig: &Rig| rig.model.fault(Some(Fault::GenerationMoves));
    let empty = |rig: &Rig| assert!(rig.model.inject(&[]));
    for give_up in [&swap as &dyn Fn(&Rig), &empty] {
        let (rig, mut device) = open(Shape::ours());
        rig.connect();
        expect_connected(&mut device);
        give_up(&rig);
        rig.push(&message(1, &[]));
        expect_closed(&mut device);
        assert!(!rig.is_connected());
        rig.model.fault(None);
        rig.connect();
        expect_connected(&mut device);
        assert!(next(&mut device).is_none());
    }
}

/// A status that is wrong for a moment, while nobody is there: the device goes on to take the
/// driver for present, and the driver must not take it for absent.
#[test]
fn a_status_that_lied_once_costs_no_message() {
    let (rig, mut device) = open(Shape::ours());
    rig.connect();
    expect_connected(&mut device);
    rig.model.fault(Some(Fault::LinkGarbage));
    expect_closed(&mut device);
    assert!(device.next_event().is_none());
    rig.model.fault(None);
    rig.connect();
    rig.push(&message(1, &[]));
    until("it waits", || {
        let status = rig.model.status();
        status.link == LinkState::Open || status.counters.delivered > 0
    });
    expect_connected(&mut device);
    expect_message(&mut device, &message(1, &[]));
}

#[test]
fn a_device_that_breaks_again_and_again_is_left_alone_for_a_while() {
    let (rig, mut device) = open(Shape::ours());
    rig.model.ops();
    rig.model.fault(Some(Fault::NeedsReset));
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(300) {
        assert!(device.next_event().is_none());
        std::thread::sleep(Duration::from_millis(1));
    }
    let reset = |op: &&Op| **op == Op::DeviceStatus(0);
    let resets = rig.model.ops().iter().filter(reset).count();
    assert!((1..=4).contains(&resets), "{resets}");
    rig.model.fault(None);
    rig.connect();
    expect_connected(&mut device);
}

#[test]
fn a_device_that_was_removed_is_noticed() {
    // Between any two registers that are read.
    let between = (0..8).map(Fault::GoneAfter);
    for fault in [Fault::Gone].into_iter().chain(between) {
        let (rig, mut device) = open(Shape::ours());
        rig.connect();
        expect_connected(&mut device);
        rig.model.fault(Some(fault));
        let error = loop {
            device.wake();
            match next(&mut device) {
                None => {}
                Some(LinkEvent::Disconnected(Loss::Failed(error))) => break error,
                other => panic!("{fault:?}: {other:?}"),
            }
        };
        assert!(matches!(error, DeviceError::Gone), "{fault:?}: {error}");
        assert!(device.next_event().is_none());
    }
}

#[test]
fn it_is_left_quiet() {
    let (rig, mut device) = open(Shape::ours());
    rig.connect();
    expect_connected(&mut device);
    let (before, _) = rig.model.resets_and_maps();
    device.shutdown();
    assert!(rig.is_quiet());
    assert_eq!(rig.model.resets_and_maps(), (before + 1, 1));
    assert!(device.next_event().is_none());
    drop(device);
    assert!(rig.is_quiet());
    assert_eq!(rig.model.resets_and_maps(), (before + 2, 0));
}

#[test]
fn a_killed_predecessor_is_taken_over_from() {
    let (rig, mut device) = open(Shape::ours());
    rig.connect();
    expect_connected(&mut device);
    rig.push(&message(1, &[]));
    // It dies without a word; the kernel takes its memory.
    std::mem::forget(device);
    rig.model.unmap_dma(0, u64::MAX).unwrap();
    let mut device = Device::open(rig.model.function(), options()).unwrap();
    assert!(next(&mut device).is_none());
    rig.connect();
    expect_connected(&mut device);
    rig.push(&message(2, &[]));
    expect_message(&mut device, &message(2, &[]));
}
