//! The front-end's memory, as a driver finds it.

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::Bytes;
use vvu::device::{Device, Extent, PlaceError, Rule, place};
use vvu::model::{Dialect, Shape};
use vvu::protocol::{MemRegion, Request};
use vvu::transport::vvu::VvuTransport;
use vvu::transport::{RegionRequest, Transport, TransportError};

use super::driven::{Driven, Modelled, options};
use super::served::{Guest, MEMORY_LEN, Served, until};
use crate::driver::LAYOUT;
use crate::front_end::{PLAIN, memory, message, region, request, write_at};
use crate::step;

const GIB: u64 = 1 << 30;

/// A guest of 4 GiB with the usual holes: one file, three regions.
fn regions() -> [MemRegion; 3] {
    [
        region(0, 0xa_0000, 0),
        region(0xc_0000, 0x7ff4_0000, 0xc_0000),
        region(4 * GIB, 2 * GIB, 2 * GIB),
    ]
}

/// A device's rule, where the three begin by it, and the window that they need.
fn expected(shape: &Shape) -> (Rule, [u64; 3], u64) {
    match shape.dialect {
        _ if shape.layout => (Rule::Told, [0, 0xc_0000, 0x8000_0000], 4 * GIB),
        Dialect::Prototype => (Rule::Whole, [0, 0x16_0000, 0x1_000a_0000], 0x1_800a_0000),
        _ => (Rule::Packed, [0, 0xa_0000, 0x7ffe_0000], 0xfffe_0000),
    }
}

pub(super) fn c09_rules(shape: &Shape) {
    rules(shape);
    // Whoever is not told goes by the id.
    rules(&Shape {
        layout: false,
        ..shape.clone()
    });
}

fn rules(shape: &Shape) {
    let (rule, starts, needed) = expected(shape);
    let extents = regions().map(|region| Extent {
        size: region.size,
        mmap_offset: region.mmap_offset,
    });
    assert_eq!(place(rule, &extents, needed), Ok(starts.to_vec()));
    let short = place(rule, &extents, needed - 1);
    assert!(matches!(short, Err(PlaceError::Window { .. })), "{short:?}");
    found_where_it_is(shape, rule);
    refused_where_it_cannot_be(shape);
}

/// The driver and the device agree: what the front-end has written is where the driver looks.
fn found_where_it_is(shape: &Shape, rule: Rule) {
    let mut driven = Driven::new(shape);
    assert_eq!(driven.device.identity().rule, rule);
    assert_eq!(
        driven.device.identity().features & u64::from(LAYOUT),
        u64::from(shape.layout)
    );
    let file = memfd_create("vvu-rules", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, 4 * GIB).unwrap();
    for (nth, region) in (0x1234..).zip(regions()) {
        write_at(&file, region.mmap_offset, nth);
        write_at(&file, region.mmap_offset + region.size - 4, nth);
    }
    assert!(driven.next_within(std::time::Duration::ZERO).is_none());
    let mut front_end = driven.modelled.connect();
    front_end.memory(PLAIN, &regions(), &[&file; 3]);
    driven.is_connected();
    let vvu::device::LinkEvent::Message(bytes) = driven.next() else {
        panic!("no message");
    };
    let table = message(request::SET_MEM_TABLE, PLAIN, &bytes[12..]);
    let Ok(Request::SetMemTable(heard)) = Request::parse(&table) else {
        panic!("{table:?}");
    };
    let extents: Vec<_> = (heard.iter())
        .map(|region| Extent {
            size: region.size,
            mmap_offset: region.mmap_offset,
        })
        .collect();
    let areas = driven.device.map(&extents).unwrap();
    for (nth, (area, region)) in (0x1234u32..).zip(areas.iter().zip(regions())) {
        assert_eq!(area.len() as u64, region.size);
        for at in [0, area.len() - 4] {
            let seen: u32 = area.slice().read_obj(at).unwrap();
            assert_eq!(seen, nth, "at {at:#x} of region {region:x?}");
        }
    }
}

/// A message that the device should never have passed on.
fn refused_where_it_cannot_be(shape: &Shape) {
    let modelled = Modelled::new(shape);
    let device = Device::open(modelled.model.function(), options()).unwrap();
    let window = device.identity().window;
    let mut transport = VvuTransport::new(device);
    let region = |size, mmap_offset| RegionRequest {
        guest_addr: 0,
        size,
        user_addr: 0,
        mmap_offset,
    };
    let whole = region(window, 0);
    for bad in [
        vec![region(window + 1, 0)],
        vec![region(u64::MAX, 0)],
        vec![region(u64::MAX, u64::MAX)],
        vec![region(1 << 63, 0), region(1 << 63, 0)],
        vec![whole, region(0x1000, window)],
        vec![region(0x1000, window), region(window, 0)],
    ] {
        step(format!("{bad:x?}"));
        let refused = transport.map_memory(&bad, Vec::new(), true);
        let good = matches!(
            refused,
            Err(TransportError::Window { .. } | TransportError::Send(_))
        );
        assert!(good, "{refused:?}");
    }
}

pub(super) fn c10_new_memory(shape: &Shape) {
    let served = Served::new(shape);
    let mut guest = Guest::started(&served);
    for number in 0..10 {
        guest.exchange(number);
    }
    // The guest's memory moves to another file, and to another place in the window. Where it was,
    // something looks just like it.
    let (decoy, new) = (["vvu-decoy", "vvu-guest"].map(|name| memory(name, MEMORY_LEN, 0))).into();
    let mut ghosts = guest.copied(&decoy);
    guest.rings = guest.copied(&new);
    let old = std::mem::replace(&mut guest.file, new);
    let before = Guest::contents(&old);
    let table = Request::SetMemTable(vec![region(1 << 40, MEMORY_LEN, 0), Guest::region()]);
    guest.front_end.ok(&table, &[&decoy, &guest.file]);

    // From here on nobody looks there: frames that are offered there stay.
    for number in 100..105 {
        ghosts[0].offer(&[2048], true, &[]);
        Guest::offer_frame(&mut ghosts[1], number);
        ghosts.iter().for_each(|ring| ring.notify());
    }
    let offered = Guest::contents(&decoy);
    for number in 20..60 {
        guest.exchange(number);
    }
    assert!(
        Guest::contents(&decoy) == offered,
        "the old placement was used"
    );
    assert!(Guest::contents(&old) == before, "the old memory was used");
}

pub(super) fn c11_garbage_in_rings(shape: &Shape) {
    for garbage in [0, 0xff] {
        step(format!("rings of {garbage:#x}"));
        let served = Served::new(shape);
        let mut guest = Guest::started(&served);
        for number in 0..4 {
            guest.exchange(number);
        }
        guest.spoil(garbage);
        for _ in 0..10 {
            guest.rings.iter().for_each(|ring| ring.notify());
            crate::pause();
        }
        // All ones are an index that cannot be; zeroes one that went back. Either breaks the ring
        // and nothing else.
        until("the rings are given up", || {
            let faults = served.card().faults;
            faults.iter().map(|(_, count)| count).sum::<u64>() >= 1
        });
        assert!(served.session.status().report().connected);
        drop(guest);
        until("the front-end is gone", || served.is_idle());
        let mut guest = Guest::started(&served);
        guest.exchange(9);
    }
}
