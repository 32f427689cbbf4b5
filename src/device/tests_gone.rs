//! A device that goes away, as the server of a vfio-user socket does, and comes back.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use super::tests::{expect_connected, expect_failed, expect_message, message, next, open, reply};
use super::*;
use crate::model::Shape;
use crate::model::faults::{Fault, Op};
use crate::model::test_rig::Rig;

/// Looks at the device until it was brought up again.
fn revive(device: &mut Device, rig: &Rig) {
    let start = Instant::now();
    while !rig.model.ops().contains(&Op::Link(1)) {
        assert!(start.elapsed() < Duration::from_secs(10), "not brought up");
        device.wake();
        assert!(next(device).is_none());
    }
}

#[test]
fn it_is_noticed_without_an_interrupt_and_comes_back_as_another() {
    let (rig, mut device) = open(Shape::ours());
    rig.connect();
    expect_connected(&mut device);
    rig.go();
    assert!(matches!(expect_failed(&mut device), DeviceError::Gone));
    // Not there yet: the descriptor may tell of a time to try again, of nothing else.
    assert!(next(&mut device).is_none());

    let rig = rig.come_back(Shape {
        rings: 4,
        window: 2 << 20,
        ..Shape::prototype(0x1058)
    });
    revive(&mut device, &rig);
    assert_eq!(device.identity().rings, 4);
    assert_eq!(device.identity().rule, Rule::Whole);
    assert_eq!(device.identity().window, (2 << 20) - 0x3000);
    rig.connect();
    expect_connected(&mut device);
    rig.push(&message(99, &[1, 2, 3]));
    expect_message(&mut device, &message(99, &[1, 2, 3]));
    device.send(&[&reply(99, &[])]).unwrap();
    assert_eq!(rig.sent(), [reply(99, &[])]);
    let kick = device.kick(3).unwrap().unwrap();
    rig.model.kick(3);
    rustix::io::read(&kick, &mut [0; 8]).unwrap();
    assert_eq!(rig.model.violations(), [""; 0]);
}

#[test]
fn with_nobody_connected_it_comes_back_all_the_same() {
    let (rig, mut device) = open(Shape::ours());
    assert!(next(&mut device).is_none());
    rig.go();
    assert!(next(&mut device).is_none());
    let rig = rig.come_back(Shape::ours());
    revive(&mut device, &rig);
    rig.connect();
    expect_connected(&mut device);
}

#[test]
fn one_that_cannot_be_used_is_tried_again() {
    let (rig, mut device) = open(Shape::ours());
    rig.connect();
    expect_connected(&mut device);
    rig.go();
    expect_failed(&mut device);
    // Something else sits there for a while, which has vectors and memory, and no doorbells.
    let rig = rig.come_back(Shape::ours());
    rig.model.fault(Some(Fault::NoCapability(6)));
    let start = Instant::now();
    // Twice for each try but the first: at its beginning, and when it is let go.
    while rig.model.resets_and_maps().0 < 5 {
        assert!(start.elapsed() < Duration::from_secs(20), "not tried again");
        device.wake();
        assert!(next(&mut device).is_none());
    }
    let rig = rig.come_back(Shape::ours());
    revive(&mut device, &rig);
    rig.connect();
    expect_connected(&mut device);
    assert_eq!(rig.model.resets_and_maps().1, 1, "DMA memory");
}
