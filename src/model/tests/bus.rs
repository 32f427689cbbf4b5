//! Configuration space, BARs, registers of any width.

use std::os::unix::net::UnixStream;

use super::bench::{Bench, until};
use crate::model::{Dialect, LinkState, ModelError, Shape};
use crate::pci::{ConfigSpace, Structures};
use crate::protocol::tests::Random;

fn shapes() -> [Shape; 4] {
    [
        Shape::ours(),
        Shape::prototype(0x1058),
        Shape::prototype(0x106b),
        Shape::crosvm(),
    ]
}

#[test]
fn every_dialect_has_its_structures_inside_its_bars() {
    for shape in shapes() {
        let bench = Bench::new(shape.clone());
        let mut bytes = vec![0; 256];
        bench.model.read_config(0, &mut bytes);
        let space = ConfigSpace::new(bytes);
        assert_eq!(space.device(), shape.id);
        let found = Structures::find(&space).unwrap();
        let all = [
            found.common,
            found.notify.location,
            found.isr,
            found.device,
            found.doorbells.location,
            found.notifications,
            found.memory,
        ];
        for at in all {
            let end = at.offset + at.length.unwrap_or(0);
            assert!(end <= bench.model.bar_size(at.bar), "{shape:?} {at:?}");
        }
        assert_eq!(found.memory.bar, bench.model.memory_bar());
        let kinds = if shape.dialect == Dialect::Ours { 2 } else { 1 };
        let last = kinds * u64::from(shape.rings) * u64::from(shape.multiplier);
        assert!(found.doorbells.location.length.unwrap() > last);
        let read = |offset| bench.u32(found.device.bar, found.device.offset + offset);
        assert_eq!(read(4), shape.rings);
        assert_eq!(found.memory.length.is_some(), shape.long_capability);
        let memory = match shape.dialect {
            Dialect::Prototype => 0x3000,
            Dialect::Ours | Dialect::Crosvm => 0,
        };
        assert_eq!(found.memory.offset, memory);
    }
}

#[test]
fn bars_tell_their_size() {
    let bench = Bench::new(Shape::ours());
    let register = |index: u16| 0x10 + 4 * index;
    for index in 0..6 {
        bench.model.write_config(register(index), &[0xff; 4]);
    }
    let read = |index| {
        let mut data = [0; 4];
        bench.model.read_config(register(index), &mut data);
        u32::from_le_bytes(data)
    };
    for bar in [0, 1] {
        assert_eq!(u64::from(!read(bar)) + 1, bench.model.bar_size(bar as u8));
    }
    for bar in [2, 4] {
        let value = u64::from(read(bar)) | u64::from(read(bar + 1)) << 32;
        assert_eq!(value & 0xf, 0xc, "64 bits, prefetchable");
        assert_eq!(!(value & !0xf) + 1, bench.model.bar_size(bar as u8));
    }
}

#[test]
fn the_window_in_configuration_space_reaches_registers() {
    let bench = Bench::new(Shape::ours());
    let mut bytes = vec![0; 256];
    bench.model.read_config(0, &mut bytes);
    let space = ConfigSpace::new(bytes);
    let capability = space
        .capabilities()
        .find(|cap| cap.id == 9 && cap.bytes[3] == 5)
        .unwrap();
    let at = u16::from(capability.offset);
    let device = Structures::find(&space).unwrap().device;
    let go = |offset: u32, len: u32| {
        bench.model.write_config(at + 4, &[device.bar]);
        bench.model.write_config(at + 8, &offset.to_le_bytes());
        bench.model.write_config(at + 12, &len.to_le_bytes());
        let mut data = [0xaa; 4];
        bench.model.read_config(at + 16, &mut data);
        data
    };
    let offset = device.offset as u32;
    assert_eq!(go(offset + 4, 4), 256u32.to_le_bytes());
    assert_eq!(go(offset + 5, 1)[0], 1);
    // What is no access goes nowhere.
    assert_eq!(go(offset + 5, 4), [0; 4]);
    assert_eq!(go(offset, 3), [0; 4]);
    bench.model.write_config(at + 12, &4u32.to_le_bytes());
    bench.model.write_config(at + 8, &offset.to_le_bytes());
    bench.model.write_config(at + 16, &1u32.to_le_bytes());
    assert_eq!(bench.model.status().link, LinkState::Served);
}

#[test]
fn impossible_shapes_are_refused_by_name() {
    let wrong = |change: fn(&mut Shape)| {
        let mut shape = Shape::ours();
        change(&mut shape);
        shape.check().unwrap_err().to_string()
    };
    assert!(wrong(|s| s.rings = 0).starts_with("rings of 0"));
    assert!(wrong(|s| s.rings = 257).contains("1 to 256"));
    assert!(wrong(|s| s.vectors = 2049).contains("2048"));
    assert!(wrong(|s| s.queue_size = 100).contains("queue size of 100"));
    assert!(wrong(|s| s.multiplier = 0).contains("doorbell"));
    assert!(wrong(|s| s.window = (1 << 30) + 1).contains("window"));
    assert!(matches!(
        Shape {
            window: 0,
            ..Shape::ours()
        }
        .check(),
        Err(ModelError::Shape { .. })
    ));
}

/// A driver out of its mind, with a front-end that waits: whatever it writes wherever, every access
/// is answered, and after a reset the device is as new.
#[test]
fn any_access_is_answered() {
    for (seed, shape) in (1..).zip(shapes()) {
        let bench = Bench::new(shape.clone());
        let mut waiting = UnixStream::connect(&bench.path).unwrap();
        let mut random = Random(0x2545_f491_4f6c_dd1d * seed);
        for _ in 0..40_000 {
            let bar = random.below(7) as u8;
            let size = bench.model.bar_size(bar).max(0x100);
            let offset = match random.below(8) {
                0 => random.next(),
                1 => size - random.below(9),
                2 => 0x2000,
                _ => random.below(size.min(0x4000)),
            };
            let len = [1, 2, 4, 8, 3][random.below(5) as usize];
            let mut data = random.bytes(len);
            match random.below(4) {
                0 => bench.model.read_bar(bar, offset, &mut data),
                1 => bench.model.write_config(offset as u16, &data),
                2 => bench.model.read_config(offset as u16, &mut data),
                _ => bench.model.write_bar(bar, offset, &data),
            }
            if random.below(2000) == 0 {
                waiting = UnixStream::connect(&bench.path).unwrap();
            }
        }
        bench.model.reset();
        assert_eq!(bench.model.status().device_status, 0);
        drop(waiting);
        let served =
            crate::device::Device::open(bench.model.function(), crate::device::Options::default());
        served.unwrap().shutdown();
        until("quiet", || bench.model.status().device_status == 0);
    }
}
