//! A device that goes away, as the server of a vfio-user socket does, and comes back.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use super::fake::{Fake, Shape};
use super::tests::{expect_connected, expect_failed, expect_message, message, next, open};
use super::*;

/// Looks at the device until it was brought up again.
fn revive(device: &mut Device, fake: &Fake) {
    let start = Instant::now();
    while !fake.ops().contains(&fake::Op::Link(1)) {
        assert!(start.elapsed() < Duration::from_secs(10), "not brought up");
        device.wake();
        assert!(next(device).is_none());
    }
}

#[test]
fn it_is_noticed_without_an_interrupt_and_comes_back_as_another() {
    let (fake, mut device) = open(Shape::ours());
    fake.connect();
    expect_connected(&mut device);
    fake.go();
    assert!(matches!(expect_failed(&mut device), DeviceError::Gone));
    // Not there yet: the descriptor may tell of a time to try again, of nothing else.
    assert!(next(&mut device).is_none());

    fake.come_back(Shape {
        rings: 4,
        window: 1 << 20,
        ..Shape::prototype(0x1058)
    });
    revive(&mut device, &fake);
    assert_eq!(device.identity().rings, 4);
    assert_eq!(device.identity().rule, Rule::Whole);
    assert_eq!(device.identity().window, (1 << 20) - 0x3000);
    fake.connect();
    expect_connected(&mut device);
    fake.push(&message(7, &[1, 2, 3]));
    expect_message(&mut device, &message(7, &[1, 2, 3]));
    device.send(&[&message(8, &[])]).unwrap();
    assert_eq!(fake.sent(), [message(8, &[])]);
    let kick = device.kick(3).unwrap().unwrap();
    fake.kick(3);
    rustix::io::read(&kick, &mut [0; 8]).unwrap();
    assert_eq!(fake.violations(), [""; 0]);
}

#[test]
fn with_nobody_connected_it_comes_back_all_the_same() {
    let (fake, mut device) = open(Shape::ours());
    assert!(next(&mut device).is_none());
    fake.go();
    assert!(next(&mut device).is_none());
    fake.come_back(Shape::ours());
    revive(&mut device, &fake);
    fake.connect();
    expect_connected(&mut device);
}

#[test]
fn one_that_cannot_be_used_is_tried_again() {
    let (fake, mut device) = open(Shape::ours());
    fake.connect();
    expect_connected(&mut device);
    fake.go();
    expect_failed(&mut device);
    // Something else sits there for a while, which has vectors and memory, and no doorbells.
    fake.come_back(Shape {
        without: vec![6],
        ..Shape::ours()
    });
    let start = Instant::now();
    while fake.state().0 < 3 {
        assert!(start.elapsed() < Duration::from_secs(20), "not tried again");
        device.wake();
        assert!(next(&mut device).is_none());
    }
    fake.come_back(Shape::ours());
    revive(&mut device, &fake);
    fake.connect();
    expect_connected(&mut device);
    assert_eq!(fake.state().1, 1, "DMA memory");
}
