//! The same again and again: nothing may be left over.
#![allow(clippy::unwrap_used)]

use super::fake::{Fake, Shape};
use super::tests::{
    expect_closed, expect_connected, expect_failed, expect_message, message, open, options,
};
use super::*;

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
        let (fake, mut device) = open(shape.clone());
        let mut baseline = None;
        for round in 0..1001u32 {
            fake.connect();
            expect_connected(&mut device);
            let hello = message(round, &round.to_le_bytes());
            fake.push(&hello);
            expect_message(&mut device, &hello);
            device.send(&[&hello]).unwrap();
            assert_eq!(fake.sent(), [hello]);
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
                    fake.disconnect();
                    expect_closed(&mut device);
                }
                2 => {
                    fake.need_reset();
                    expect_failed(&mut device);
                }
                3 => device.disconnect(),
                _ => {
                    assert_eq!(fake.violations(), [""; 0]);
                    fake.go();
                    expect_failed(&mut device);
                    fake.come_back(shape.clone());
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
        assert_eq!(fake.state().1, 1, "DMA memory");
        assert_eq!(fake.violations(), [""; 0]);
    }
}

#[test]
fn a_thousand_times_opened() {
    let (fake, function) = Fake::new(Shape::ours());
    let mut function = Some(function);
    for _ in 0..1000 {
        let function = function.take().unwrap_or_else(|| Box::new(fake.function()));
        let mut device = Device::open(function, options()).unwrap();
        fake.connect();
        expect_connected(&mut device);
        drop(device);
        assert!(fake.state().2);
    }
    assert_eq!(fake.violations(), [""; 0]);
}
