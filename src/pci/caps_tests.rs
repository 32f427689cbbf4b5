#![allow(clippy::unwrap_used)]
use super::super::ConfigBuilder;
use super::*;

/// The common part of all dialects, in BAR 4, without the capability types in `without`.
fn base(device: u16, without: &[u8]) -> ConfigBuilder {
    let mut builder = ConfigBuilder::new(device).msix(67, (1, 0), (1, 0x8000));
    for (cfg_type, at, tail) in [
        (1, (0, 0x1000), &[][..]),
        (2, (0x3000, 0x1000), &[4]),
        (3, (0x1000, 0x1000), &[]),
        (4, (0x2000, 0x1000), &[]),
        (5, (0, 0), &[0]),
    ] {
        if !without.contains(&cfg_type) {
            builder = builder.virtio(cfg_type, 0, 4, at, tail);
        }
    }
    builder
}

/// The 2019 and 2022 prototypes: everything in BAR 2, shared memory in 16 bytes.
fn prototype() -> ConfigSpace {
    let builder = base(0x1058, &[])
        .virtio(6, 0, 2, (0, 0x2000), &[4])
        .virtio(7, 0, 2, (0x2000, 0x1000), &[])
        .virtio(8, 0, 2, (0x3000, 0x1000), &[]);
    ConfigSpace::new(builder.build())
}

#[test]
fn prototype_dialect() {
    let found = Structures::find(&prototype()).unwrap();
    assert_eq!(
        found.memory,
        Location {
            bar: 2,
            offset: 0x3000,
            length: None
        }
    );
    assert_eq!(found.doorbells.multiplier, 4);
    assert_eq!(found.notify.location.offset, 0x3000);
    assert_eq!(found.notifications.offset, 0x2000);
    assert_eq!((found.log, found.inflight), (None, None));
}

#[test]
fn crosvm_dialect() {
    let builder = base(0x107d, &[])
        .virtio(6, 0, 2, (0, 0x2000), &[4])
        .virtio(7, 0, 2, (0x2000, 0x1000), &[])
        .virtio(8, 0, 4, (0, 0), &[]);
    let found = Structures::find(&ConfigSpace::new(builder.build())).unwrap();
    assert_eq!((found.memory.bar, found.memory.length), (4, None));
}

#[test]
fn standard_shared_memory_has_64_bits() {
    let builder = base(0x107d, &[5])
        .virtio(6, 0, 0, (0, 0x2000), &[2])
        .virtio(7, 0, 0, (0x2000, 0x1000), &[])
        .memory(1, 2, (0x1_0000_0000, 0x20_0000_1000))
        .memory(2, 2, (0x30_0000_0000, 0x1000))
        .memory(3, 3, (0, 0x2000));
    let found = Structures::find(&ConfigSpace::new(builder.build())).unwrap();
    assert_eq!(found.memory.offset, 0x1_0000_0000);
    assert_eq!(found.memory.length, Some(0x20_0000_1000));
    assert_eq!(found.log.unwrap().offset, 0x30_0000_0000);
    assert_eq!(found.inflight.unwrap().bar, 3);
}

#[test]
fn what_a_driver_must_skip() {
    // Ahead of the good ones: a BAR that cannot exist, vendor data, a type of the future, a
    // doorbell capability too short for its multiplier, one that claims to be longer than the
    // space, and another vendor's capability.
    let builder = ConfigBuilder::new(0x107d)
        .virtio(7, 0, 6, (0, 0x1000), &[])
        .virtio(9, 0, 0, (0, 0), &[])
        .virtio(0x42, 0, 0, (0, 0), &[])
        .virtio(6, 0, 1, (0, 0x1000), &[])
        .capability(CAP_VENDOR, &[0xff, 1, 1, 0])
        .capability(0x05, &[0; 6])
        .virtio(1, 0, 4, (0, 56), &[])
        .virtio(2, 0, 4, (0x3000, 4), &[4])
        .virtio(3, 0, 4, (0x1000, 1), &[])
        .virtio(4, 0, 4, (0x2000, 24), &[])
        .virtio(6, 0, 0, (0, 0x2000), &[4])
        .virtio(7, 0, 0, (0x2000, 4), &[]);
    let space = ConfigSpace::new(builder.build());
    assert_eq!(
        Structures::find(&space).unwrap_err(),
        NotVvu::Missing {
            name: "shared memory",
            cfg_type: 8
        }
    );
    let mut found = Found::default();
    for capability in space.capabilities() {
        if let Some(cap) = Virtio::parse(&capability) {
            found.note(&cap);
        }
    }
    assert_eq!(found.common.unwrap().length, Some(56));
    assert_eq!(found.doorbells.unwrap().location.bar, 0);
    assert_eq!(found.notifications.unwrap().bar, 0);
}

#[test]
fn each_missing_capability_has_its_own_error() {
    let vvu = |builder: ConfigBuilder, without: u8| {
        let mut builder = builder;
        for (cfg_type, tail) in [(6, &[4][..]), (7, &[]), (8, &[0, 0])] {
            if cfg_type != without {
                builder = builder.virtio(cfg_type, 1, 2, (0, 0x1000), tail);
            }
        }
        ConfigSpace::new(builder.build())
    };
    for missing in [1, 2, 3, 4, 6, 7, 8] {
        let error = Structures::find(&vvu(base(0x107d, &[missing]), missing)).unwrap_err();
        assert!(
            matches!(error, NotVvu::Missing { cfg_type, .. } if cfg_type == missing),
            "{error}"
        );
    }
    assert!(Structures::find(&vvu(base(0x107d, &[]), 0)).is_ok());
}

#[test]
fn other_functions_are_refused() {
    let mut bytes = prototype().bytes().to_vec();
    bytes[0] = 0x86;
    bytes[1] = 0x80;
    assert_eq!(
        Structures::find(&ConfigSpace::new(bytes)),
        Err(NotVvu::Vendor(0x8086))
    );
    let short = ConfigSpace::new(prototype().bytes()[..64].to_vec());
    assert_eq!(Structures::find(&short), Err(NotVvu::Hidden));
    let nobody = ConfigSpace::new(vec![0xff; 256]);
    assert_eq!(Structures::find(&nobody), Err(NotVvu::Vendor(0xffff)));
}

#[test]
fn mutated_spaces_never_do_harm() {
    // xorshift64: the rounds are the same on each run.
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let good = prototype().bytes().to_vec();
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..random() % 24 {
            let at = random() as usize % bytes.len();
            bytes[at] = random() as u8;
        }
        bytes.truncate(256 - (random() % 8) as usize * 32);
        let space = ConfigSpace::new(bytes);
        assert!(space.capabilities().count() <= 48);
        if let Ok(found) = Structures::find(&space) {
            assert!(found.memory.bar <= 5 && found.common.bar <= 5);
        }
    }
}

#[test]
fn virtio_ids_have_pci_ids() {
    assert_eq!(modern_id(61), Some(0x107d));
    assert_eq!(modern_id(63), Some(0x107f));
    assert_eq!(modern_id(64), None);
}
