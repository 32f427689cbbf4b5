#![allow(clippy::unwrap_used)]
use std::time::Instant;

use super::fake::{Fake, Faults, Lie, Op, Shape};
use super::*;

pub(super) fn options() -> Options {
    Options {
        timeout: Duration::from_millis(50),
        ..Options::default()
    }
}

pub(super) fn open(shape: Shape) -> (Fake, Device) {
    let (fake, function) = Fake::new(shape);
    let device = Device::open(function, options()).unwrap();
    (fake, device)
}

/// Waits on the poll descriptor, as a program would, for the next event.
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

pub(super) fn expect_message(device: &mut Device, wanted: &[u8]) {
    match next(device) {
        Some(LinkEvent::Message(bytes)) => assert_eq!(bytes, wanted),
        other => panic!("{other:?}"),
    }
}

pub(super) fn expect_connected(device: &mut Device) {
    assert!(matches!(next(device), Some(LinkEvent::Connected)));
}

pub(super) fn expect_closed(device: &mut Device) {
    match next(device) {
        Some(LinkEvent::Disconnected(Loss::Closed)) => {}
        other => panic!("{other:?}"),
    }
}

pub(super) fn expect_failed(device: &mut Device) -> DeviceError {
    match next(device) {
        Some(LinkEvent::Disconnected(Loss::Failed(error))) => error,
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
        let (fake, mut device) = open(shape);
        assert!(next(&mut device).is_none());
        fake.connect();
        // On crosvm's device only a message tells.
        fake.push(&message(1, &[]));
        expect_connected(&mut device);
        expect_message(&mut device, &message(1, &[]));
        for n in 0..500u32 {
            let request = message(5, &n.to_le_bytes().repeat(n as usize % 300));
            fake.push(&request);
            expect_message(&mut device, &request);
            device.send(&[&request[..12], &request[12..]]).unwrap();
            assert_eq!(fake.sent(), [request]);
        }
        assert!(next(&mut device).is_none());
        fake.disconnect();
        expect_closed(&mut device);
        assert!(next(&mut device).is_none());
        assert_eq!(fake.violations(), [""; 0]);
    }
}

#[test]
fn the_rule_follows_from_the_device_unless_told_otherwise() {
    let rule = |shape, chosen| {
        let (_fake, function) = Fake::new(shape);
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
    let (fake, _device) = open(Shape::ours());
    let ops = fake.ops();
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
        at(Op::Features(0, 1)),
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
    assert_eq!(fake.violations(), [""; 0]);
}

#[test]
fn armed_after_driver_ok_by_one_store() {
    let (fake, mut device) = open(Shape::ours());
    fake.ops();
    assert!(device.next_event().is_none());
    let links: Vec<_> = fake
        .ops()
        .into_iter()
        .filter(|op| matches!(op, Op::Link(_) | Op::DeviceStatus(_)))
        .collect();
    assert_eq!(links, [Op::Link(1)]);
}

#[test]
fn what_the_device_lacks_is_named() {
    let refuse = |shape: Shape| {
        let (_fake, function) = Fake::new(shape);
        Device::open(function, options()).unwrap_err().to_string()
    };
    for (cfg_type, name) in [
        (1, "common"),
        (2, "notification"),
        (3, "interrupt"),
        (4, "device"),
        (6, "doorbells"),
        (7, "selector"),
        (8, "shared memory"),
    ] {
        let told = refuse(Shape {
            without: vec![cfg_type],
            ..Shape::ours()
        });
        assert!(told.contains(name), "{told}");
    }
    for (features, hint) in [(1 << 33, "disable-legacy"), (1 << 32, "iommu_platform")] {
        let told = refuse(Shape {
            features,
            ..Shape::ours()
        });
        assert!(told.contains(hint), "{told}");
    }
    let no_rings = Shape {
        rings: 0,
        ..Shape::ours()
    };
    assert!(refuse(no_rings).contains("max_vhost_queues"));
    let no_queue = Shape {
        queue_size: 0,
        ..Shape::ours()
    };
    assert!(refuse(no_queue).contains("queue 0"));
    // The window begins behind the end of its BAR.
    let no_window = Shape {
        memory: (2, 0x4000),
        window: 0x3000,
        ..Shape::prototype(0x1058)
    };
    assert!(refuse(no_window).contains("BAR 2"));
}

#[test]
fn a_device_that_does_not_cooperate_is_given_up_in_time() {
    let try_open = |change: fn(&mut Faults)| {
        let (fake, function) = Fake::new(Shape::ours());
        fake.fault(change);
        let start = Instant::now();
        let error = Device::open(function, options()).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(2));
        (fake, error)
    };
    let (fake, error) = try_open(|faults| faults.refuse_features = true);
    assert!(matches!(error, DeviceError::FeaturesRefused(_)));
    let failed = |op: &Op| matches!(op, Op::DeviceStatus(status) if status & 128 != 0);
    assert!(fake.ops().iter().any(failed));
    let (_, error) = try_open(|faults| faults.gone = true);
    assert!(matches!(error, DeviceError::Gone), "{error}");
}

#[test]
fn a_reset_that_does_not_finish_has_a_deadline() {
    let (fake, mut device) = open(Shape::ours());
    fake.connect();
    expect_connected(&mut device);
    fake.fault(|faults| faults.stuck_reset = true);
    fake.need_reset();
    assert!(matches!(
        expect_failed(&mut device),
        DeviceError::NeedsReset
    ));
    let start = Instant::now();
    assert!(device.next_event().is_none());
    assert!(start.elapsed() < Duration::from_secs(1));
    // It is tried again later, and works.
    fake.fault(|faults| faults.stuck_reset = false);
    std::thread::sleep(Duration::from_millis(1100));
    assert!(device.next_event().is_none());
    fake.connect();
    expect_connected(&mut device);
}

#[test]
fn refused_vectors_mean_polling() {
    for (refuse, vectors) in [(true, 67), (false, 0), (false, 1), (false, 2), (false, 4)] {
        let (fake, function) = Fake::new(Shape {
            vectors,
            ..Shape::ours()
        });
        fake.fault(|faults| faults.refuse_vectors = refuse);
        let mut device = Device::open(function, options()).unwrap();
        assert!(device.next_event().is_none());
        fake.connect();
        fake.push(&message(1, &[7]));
        let deaf = refuse || vectors == 0;
        let mut wait = || loop {
            if let Some(event) = next(&mut device) {
                break event;
            }
            assert!(deaf, "{vectors} vectors, and no interrupt");
        };
        assert!(matches!(wait(), LinkEvent::Connected));
        assert!(matches!(wait(), LinkEvent::Message(_)));
        let kick = device.kick(0).unwrap();
        assert_eq!(kick.is_some(), !refuse && vectors == 4);
        assert!(device.kick(1).unwrap().is_none());
        device.send(&[&message(1, &[8])]).unwrap();
        assert_eq!(fake.sent().len(), 1);
    }
}

#[test]
fn kicks_and_doorbells() {
    let (fake, mut device) = open(Shape::ours());
    // Before anybody asked for it: not lost.
    assert!(device.next_event().is_none());
    fake.connect();
    expect_connected(&mut device);
    fake.kick(5);
    let fd = device.kick(5).unwrap().unwrap();
    assert_eq!(rustix::io::read(&fd, &mut [0; 8]), Ok(8));
    assert!(rustix::io::read(&fd, &mut [0; 8]).is_err());
    assert!(device.next_event().is_none());
    assert!(device.kick(64).unwrap().is_none());

    for multiplier in [2, 4, 16] {
        let (fake, device) = open(Shape {
            multiplier,
            ..Shape::ours()
        });
        let (register, number) = device.doorbell(7).unwrap();
        register.write(number);
        assert_eq!(fake.rung(), [7]);
        assert!(device.doorbell(256).is_none());
        let err = device.error_doorbell(3);
        let (register, number) = err.unwrap();
        register.write(number);
        assert_eq!(fake.rung(), [259]);
        assert_eq!(fake.violations(), [""; 0]);
    }
    // Where they would lie behind the capability, there are none.
    let (_, device) = open(Shape {
        multiplier: 32,
        ..Shape::ours()
    });
    assert!(device.doorbell(255).is_some());
    assert!(device.error_doorbell(0).is_none());
}

#[test]
fn memory_is_mapped_where_the_rule_says() {
    use vm_memory::Bytes;
    let (_fake, device) = open(Shape::prototype(0x1058));
    let extent = |size, mmap_offset| Extent { size, mmap_offset };
    let areas = device
        .map(&[extent(0x1000, 0x2000), extent(0x3000, 0x1000)])
        .unwrap();
    // Window at 0x3000 of the BAR; the second file begins behind the first's 0x3000 bytes.
    let bar = device.function.map_bar(2, 0, 0x10000).unwrap();
    areas[0].slice().write_obj(1u8, 0).unwrap();
    areas[1].slice().write_obj(2u8, 0).unwrap();
    assert_eq!(bar.slice().read_obj::<u8>(0x5000).unwrap(), 1);
    assert_eq!(bar.slice().read_obj::<u8>(0x7000).unwrap(), 2);
    let told = device.map(&[extent(1 << 31, 0)]).unwrap_err().to_string();
    assert!(told.contains("larger memory window"), "{told}");
}

#[test]
fn a_device_that_lies_is_reset_and_used_again() {
    for lie in [
        Lie::Length(8193),
        Lie::Length(u32::MAX),
        Lie::Id(64),
        Lie::Id(u32::MAX),
        Lie::Advance(65),
        Lie::Advance(0x8000),
    ] {
        let (fake, mut device) = open(Shape::ours());
        fake.connect();
        expect_connected(&mut device);
        fake.fault(|faults| faults.lie = Some(lie));
        fake.push(&message(1, &[]));
        let error = expect_failed(&mut device);
        assert!(matches!(error, DeviceError::Queue { .. }), "{lie:?}");
        assert!(device.next_event().is_none());
        fake.connect();
        expect_connected(&mut device);
        fake.push(&message(2, &[]));
        expect_message(&mut device, &message(2, &[]));
    }
}

#[test]
fn a_message_before_the_interrupt_is_not_lost() {
    let (fake, mut device) = open(Shape::ours());
    assert!(device.next_event().is_none());
    fake.connect();
    fake.push(&message(1, &[1]));
    fake.push(&message(2, &[2]));
    expect_connected(&mut device);
    expect_message(&mut device, &message(1, &[1]));
    expect_message(&mut device, &message(2, &[2]));
}

#[test]
fn nothing_of_a_dead_connection_reaches_the_next() {
    let (fake, mut device) = open(Shape::ours());
    fake.connect();
    expect_connected(&mut device);
    // Received but not looked at, and sent but not taken.
    fake.push(&message(1, &[1]));
    fake.fault(|faults| faults.hold_tx = true);
    device.send(&[&message(9, &[9])]).unwrap();
    fake.disconnect();
    fake.connect();
    expect_closed(&mut device);
    // Not armed while the reply is still there.
    assert!(device.next_event().is_none());
    assert!(!fake.is_connected());
    fake.fault(|faults| faults.hold_tx = false);
    expect_connected(&mut device);
    assert!(next(&mut device).is_none());
    assert_eq!(fake.sent(), [[0u8; 0]; 0]);
}

#[test]
fn txq_that_never_empties_is_reset() {
    let (fake, mut device) = open(Shape::ours());
    fake.connect();
    expect_connected(&mut device);
    fake.fault(|faults| faults.hold_tx = true);
    device.send(&[&message(9, &[9])]).unwrap();
    fake.disconnect();
    fake.connect();
    expect_closed(&mut device);
    let start = Instant::now();
    expect_connected(&mut device);
    assert!(start.elapsed() >= Duration::from_millis(900));
    assert_eq!(fake.sent(), [[0u8; 0]; 0]);
}

#[test]
fn sending_is_bounded() {
    let (fake, mut device) = open(Shape::ours());
    assert!(matches!(
        device.send(&[&message(1, &[])]),
        Err(DeviceError::NotConnected)
    ));
    fake.connect();
    expect_connected(&mut device);
    assert!(matches!(
        device.send(&[&[0; 8193]]),
        Err(DeviceError::Queue { .. })
    ));
    fake.fault(|faults| faults.hold_tx = true);
    let start = Instant::now();
    let error = loop {
        if let Err(error) = device.send(&[&message(1, &[])]) {
            break error;
        }
    };
    assert!(matches!(error, DeviceError::Stuck(_)), "{error}");
    assert!(start.elapsed() < Duration::from_secs(1));
    // The front-end going away ends the wait.
    fake.disconnect();
    assert!(matches!(
        device.send(&[&message(1, &[])]),
        Err(DeviceError::NotConnected)
    ));
}

#[test]
fn the_driver_can_end_a_connection() {
    let (fake, mut device) = open(Shape::ours());
    fake.connect();
    expect_connected(&mut device);
    device.disconnect();
    assert!(!fake.is_connected());
    assert!(next(&mut device).is_none());
    fake.connect();
    expect_connected(&mut device);
}

#[test]
fn who_was_given_up_is_not_listened_to() {
    // Another front-end, by the generation; an empty buffer on a device that has a status for it.
    for give_up in [Fake::swap, |fake: &Fake| fake.push(&[])] {
        let (fake, mut device) = open(Shape::ours());
        fake.connect();
        expect_connected(&mut device);
        give_up(&fake);
        fake.push(&message(1, &[]));
        expect_closed(&mut device);
        assert!(!fake.is_connected());
        fake.connect();
        expect_connected(&mut device);
        assert!(next(&mut device).is_none());
    }
}

#[test]
fn a_device_that_was_removed_is_noticed() {
    let (fake, mut device) = open(Shape::ours());
    fake.connect();
    expect_connected(&mut device);
    fake.fault(|faults| faults.gone = true);
    device.wake();
    assert!(matches!(expect_failed(&mut device), DeviceError::Gone));
    assert!(device.next_event().is_none());
}

#[test]
fn it_is_left_quiet() {
    let (fake, mut device) = open(Shape::ours());
    fake.connect();
    expect_connected(&mut device);
    let (before, ..) = fake.state();
    device.shutdown();
    assert_eq!(fake.state(), (before + 1, 1, true));
    assert!(device.next_event().is_none());
    drop(device);
    assert_eq!(fake.state(), (before + 1, 0, true));
}

#[test]
fn a_killed_predecessor_is_taken_over_from() {
    let (fake, mut device) = open(Shape::ours());
    fake.connect();
    expect_connected(&mut device);
    fake.push(&message(1, &[]));
    // It dies without a word; the function is reset when the kernel closes it.
    std::mem::forget(device);
    let mut device = Device::open(Box::new(fake.function()), options()).unwrap();
    assert!(next(&mut device).is_none());
    fake.connect();
    expect_connected(&mut device);
    fake.push(&message(2, &[]));
    expect_message(&mut device, &message(2, &[]));
}
