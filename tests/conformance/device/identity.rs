//! What the function says that it is.

use vvu::mmio::ReadOnly;
use vvu::pci::CAP_VENDOR;

use crate::bench::Bench;
use crate::driver::{BACKEND_UP, common, read, write};
use crate::target::{Setup, Target};

const UUID: [u8; 16] = [
    0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe,
];

/// BAR register bits: not memory; 64 bits; prefetchable.
const BAR_IO: u32 = 1;
const BAR_WIDE: u32 = 4;
const BAR_PREFETCHABLE: u32 = 8;

pub(super) fn c17_capabilities(target: &dyn Target) {
    for rings in [1, 8, 256] {
        let setup = Setup {
            rings,
            window: 4 << 30,
            ..Setup::default()
        };
        capabilities(&Bench::new(target, &setup), &setup);
    }
}

fn capabilities(bench: &Bench, setup: &Setup) {
    let driver = &bench.driver;
    let space = &driver.space;
    assert_eq!(space.vendor(), 0x1af4);
    assert_eq!(space.device(), 0x107d);
    assert_eq!((space.revision(), space.class()), (1, 0x00_ff00));
    assert_eq!(read::<u16>(&driver.common, common::NUM_QUEUES), 2);

    // One of each, in the standard form.
    let mut lengths = [0; 9];
    for capability in space.capabilities().filter(|found| found.id == CAP_VENDOR) {
        let [_, _, len, cfg_type, bar, id, ..] = *capability.bytes else {
            panic!("{capability:?}");
        };
        assert!(bar <= 5 && (1..=8).contains(&cfg_type), "{capability:?}");
        assert_eq!(lengths[usize::from(cfg_type)], 0, "{cfg_type} twice");
        lengths[usize::from(cfg_type)] = len;
        assert_eq!(id, u8::from(cfg_type == 8), "id of {cfg_type}");
    }
    assert_eq!(lengths, [0, 16, 20, 16, 16, 20, 20, 16, 24]);

    let bells = driver.found.doorbells;
    let stride = u64::from(bells.multiplier);
    assert!(stride.is_power_of_two() && stride >= 2, "{stride}");
    assert_eq!(bells.location.offset % 2, 0);
    // Calls, errors, log.
    let last = 2 * u64::from(setup.rings);
    assert!(driver.doorbells.len() >= (last + 1) * stride, "{bells:?}");
    assert!(driver.notifications.len() >= 4);

    let memory = driver.found.memory;
    let len = memory.length.unwrap();
    assert_eq!((memory.offset % 4096, len % 4096), (0, 0));
    assert_eq!(len, setup.window);
    assert!(memory.offset + len <= driver.function.bar_size(memory.bar));
    let bar = |number: u8| {
        let mut bytes = [0; 4];
        let at = 0x10 + 4 * u16::from(number);
        driver.function.read_config(at, &mut bytes);
        u32::from_le_bytes(bytes) & (BAR_IO | BAR_WIDE | BAR_PREFETCHABLE)
    };
    assert_eq!(bar(memory.bar), BAR_WIDE | BAR_PREFETCHABLE);
    // Reading and writing registers has effects, and so must not be merged or guessed.
    for location in [bells.location, driver.found.notifications] {
        assert_eq!(bar(location.bar) & (BAR_IO | BAR_PREFETCHABLE), 0);
    }

    // Where there is no memory, loads are zeroes and stores are lost; doorbells read as zero.
    for offset in [0, 0x1000, len - 4] {
        driver.store(offset, 0x1234_5678);
        assert_eq!(driver.load(offset), 0);
    }
    assert_eq!(read::<u32>(&driver.doorbells, 0), 0);
}

pub(super) fn c18_configuration(target: &dyn Target) {
    let uuid = |bench: &Bench| {
        let mut bytes = [0; 16];
        bench.driver.config.read_bytes(8, &mut bytes);
        bytes
    };
    let setup = Setup {
        uuid: Some(UUID),
        ..Setup::default()
    };
    let mut bench = Bench::new(target, &setup);
    for connections in 0..3 {
        bench.driver.start(0, 16, 8192);
        let config = bench.driver.config.clone();
        assert!(config.len() >= 0x20);
        assert_eq!(read::<u32>(&config, 4), u32::from(setup.rings));
        assert_eq!(uuid(&bench), UUID);
        assert_eq!(bench.driver.generation(), connections);
        assert_eq!(read::<u32>(&config, 0x1c), 8);

        // None of it is the driver's to change, nor are undefined bits.
        for offset in [4, 8, 0x14, 0x18, 0x1c] {
            write(&config, offset, u32::MAX);
        }
        bench.driver.set_status(!BACKEND_UP);
        assert_eq!(bench.driver.status(), 0);
        assert_eq!(bench.driver.device_status(), 15);
        assert_eq!(read::<u32>(&config, 4), u32::from(setup.rings));
        assert_eq!(uuid(&bench), UUID);

        let front_end = bench.connect_up();
        assert_eq!(bench.driver.generation(), connections + 1);
        assert_eq!(uuid(&bench), UUID);
        bench.close(front_end);
    }
    bench.driver.function.reset().unwrap();
    assert_eq!(uuid(&bench), UUID);
    drop(bench);

    for rings in [1, 256] {
        let setup = Setup {
            rings,
            layout: false,
            ..Setup::default()
        };
        let mut bench = Bench::new(target, &setup);
        assert_eq!(read::<u32>(&bench.driver.config, 4), u32::from(rings));
        assert_eq!(uuid(&bench), [0; 16]);
        // Without bits of ours the form is the short one: nothing behind it counts connections,
        // if there is anything.
        assert_eq!(bench.driver.features() & 0xff, 0);
        let config = bench.driver.config.clone();
        let behind = || config.register::<u32, ReadOnly>(0x18).map(|reg| reg.read());
        let before = behind();
        bench.driver.start(0, 16, 8192);
        let front_end = bench.connect_up();
        assert_eq!(behind(), before);
        bench.close(front_end);
    }
}
