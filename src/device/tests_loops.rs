//! The same again and again: nothing may be left over.
#![allow(clippy::unwrap_used)]

use super::tests::{
    expect_closed, expect_connected, expect_failed, expect_message, message, open, options, reply,
};
use super::*;
use crate::model::Shape;
use crate::model::test_rig::Rig;

fn count(what: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{what}"))
        .unwrap()
        .count()
}

#[test]
fn nothing_leaks_in_a_thousand_connections() {
    let name = "device::tests_loops::a_thousand_connections";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[ignore = "run by nothing_leaks_in_a_thousand_connections, in a process of its own"]
fn a_thousand_connections() {
    for shape in [Shape::ours(), Shape::prototype(0x1058)] {
        let (mut rig, mut device) = open(shape.clone());
        let mut baseline = None;
        for round in 0..1001u32 {
            rig.connect();
            expect_connected(&mut device);
            let payload = round.to_le_bytes();
            let hello = message(1000 + round, &payload);
            rig.push(&hello);
            expect_message(&mut device, &hello);
            let answer = reply(1000 + round, &payload);
            device.send(&[&answer]).unwrap();
            assert_eq!(rig.sent(), [answer]);
            let region = |mmap_offset| Extent {
                size: 0x1800,
                mmap_offset,
            };
            let memory = device.map(&[region(0), region(0x10800)]).unwrap();
            let kicks = [0, 1].map(|ring| device.kick(ring).unwrap().unwrap());
            let call = device.doorbell(1).unwrap();
            call.0.write(call.1);
            match round % 5 {
                0 | 1 => {
                    rig.disconnect();
                    expect_closed(&mut device);
                }
                2 => {
                    rig.model.break_down();
                    expect_failed(&mut device);
                }
                3 => device.disconnect(),
                _ => {
                    assert_eq!(rig.model.violations(), [""; 0]);
                    rig.go();
                    expect_failed(&mut device);
                    rig = rig.come_back(shape.clone());
                }
            }
            drop((memory, kicks, call));
            assert!(device.next_event().is_none());
            if round % 500 == 0 {
                let now = (count("fd"), count("map_files"));
                let (fds, maps) = *baseline.get_or_insert(now);
                // The allocator may have mapped memory of its own.
                assert!(now.0 == fds && now.1 <= maps + 4, "{baseline:?} {now:?}");
            }
        }
        assert_eq!(rig.model.resets_and_maps().1, 1, "DMA memory");
        assert_eq!(rig.model.violations(), [""; 0]);
    }
}

#[test]
fn a_thousand_times_opened() {
    let (rig, function) = Rig::new(Shape::ours());
    let mut function = Some(function);
    for _ in 0..1000 {
        let function = function.take().unwrap_or_else(|| rig.model.function());
        let mut device = Device::open(function, options()).unwrap();
        rig.connect();
        expect_connected(&mut device);
        drop(device);
        assert!(rig.is_quiet());
    }
    assert_eq!(rig.model.violations(), [""; 0]);
}
