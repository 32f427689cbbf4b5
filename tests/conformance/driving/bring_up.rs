//! From a function that is found to a device that is up.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vvu::device::{DeviceError, Options, Rule};
use vvu::model::{Dialect, Shape};
use vvu::pci::sysfs::Sysfs;
use vvu::pci::{KNOWN_IDS, Location};

use super::driven::{Driven, Modelled, options};
use super::watched::{Change, Store, View};
use crate::driver::{BACKEND_UP, common};
use crate::front_end::{PLAIN, message, request};
use crate::{QUIET, step};

/// Offsets in configuration space: the vendor's id, the device's, the first capability.
const VENDOR: usize = 0;
const DEVICE: usize = 2;
const FIRST: usize = 0x34;
/// Offsets in a virtio capability.
const NEXT: usize = 1;
const LEN: usize = 2;
const TYPE: usize = 3;
const BAR: usize = 4;
const ID: usize = 5;
const OFFSET: usize = 8;
const LENGTH: usize = 12;
const OFFSET_HIGH: usize = 16;

/// A device whose configuration space is changed first.
fn open(
    shape: &Shape,
    change: impl Fn(&mut Vec<u8>) + Send + Sync + 'static,
) -> Result<Driven, DeviceError> {
    let change = Change {
        config: Some(Arc::new(change)),
        ..Change::default()
    };
    Driven::changed(shape, change)
}

/// Where the virtio capability of a type is.
fn capability(space: &[u8], cfg_type: u8) -> usize {
    let mut at = usize::from(space[FIRST]);
    while !(space[at] == 9 && space[at + TYPE] == cfg_type) {
        at = usize::from(space[at + NEXT]);
        assert_ne!(at, 0, "no capability of type {cfg_type}");
    }
    at
}

/// A message goes through.
fn works(driven: &mut Driven) {
    assert!(driven.next_within(Duration::ZERO).is_none());
    let mut front_end = driven.modelled.connect();
    front_end.plain(request::GET_FEATURES);
    driven.is_connected();
    driven.hears(&message(request::GET_FEATURES, PLAIN, &[]).to_bytes());
}

pub(super) fn c01_identity(shape: &Shape) {
    // Under any id that was ever used, and any other: what it is made of decides.
    for id in KNOWN_IDS.into_iter().chain([0x1055]) {
        step(format!("id {id:04x}"));
        let shape = Shape {
            id,
            ..shape.clone()
        };
        // crosvm's manners are its id's; under another one they must be told.
        let options = Options {
            rule: (shape.dialect == Dialect::Crosvm).then_some(Rule::Packed),
            ..options()
        };
        let mut driven = Driven::open(&shape, Change::default(), options).unwrap();
        assert_eq!(driven.device.identity().pci_device, id);
        works(&mut driven);
    }
    // Without one of its structures it is something else. Virtio's memory device has neither 6
    // nor 7.
    for cfg_type in [1, 2, 3, 4, 6, 7, 8] {
        step(format!("without capability {cfg_type}"));
        let without = open(shape, move |space| {
            let at = capability(space, cfg_type);
            space[at + TYPE] = 0x42;
        });
        let error = without.err().expect("it is no VVU function");
        assert!(matches!(error, DeviceError::NotVvu(_)), "{error}");
        assert!(
            error.to_string().contains(&format!("type {cfg_type}")),
            "{error}"
        );
    }
    let other = open(shape, |space| space[VENDOR] = 0xf5);
    assert!(matches!(other.err(), Some(DeviceError::NotVvu(_))));
    found_on_a_bus(shape);
}

/// Where functions are looked for, only those are found.
fn found_on_a_bus(shape: &Shape) {
    let bus = tempfile::tempdir().unwrap();
    let function = |address: &str, config: &[u8]| {
        let folder = bus.path().join("bus/pci/devices").join(address);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("config"), config).unwrap();
    };
    let space = Modelled::new(shape).space();
    let mut expected = Vec::new();
    for (slot, id) in (1..).zip([0x107d, 0x106b, 0x1058, 0x1055u16]) {
        let mut bytes = space.bytes().to_vec();
        bytes[DEVICE..][..2].copy_from_slice(&id.to_le_bytes());
        let address = format!("0000:00:{slot:02x}.0");
        function(&address, &bytes);
        expected.push(address);
    }
    // The same without doorbells; a bridge.
    let mut bytes = space.bytes().to_vec();
    let at = capability(&bytes, 6);
    bytes[at + TYPE] = 0x42;
    function("0000:00:0a.0", &bytes);
    bytes[VENDOR] = 0x86;
    function("0000:00:0b.0", &bytes);
    // To whom only headers are shown, the id must do.
    let header = &space.bytes()[..64];
    let mut unknown = header.to_vec();
    unknown[DEVICE..][..2].copy_from_slice(&0x1055u16.to_le_bytes());
    function("0000:00:0c.0", header);
    function("0000:00:0d.0", &unknown);
    let sysfs = Sysfs::at(bus.path());
    let found = |extra: &[u16]| -> Vec<String> {
        let list = sysfs.list(extra).unwrap();
        list.iter().map(|info| info.address.to_string()).collect()
    };
    expected.push("0000:00:0c.0".to_owned());
    assert_eq!(found(&[]), expected);
    expected.push("0000:00:0d.0".to_owned());
    assert_eq!(found(&[0x1055]), expected);
}

pub(super) fn c02_capabilities(shape: &Shape) {
    for long_capability in [true, false] {
        let shape = Shape {
            long_capability,
            ..shape.clone()
        };
        let found = Modelled::new(&shape).found().memory;
        let bar = Modelled::new(&shape).model.bar_size(found.bar);
        let mut driven = Driven::new(&shape);
        // In either form the window goes to the end of its BAR.
        assert_eq!(driven.device.identity().window, bar - found.offset);
        works(&mut driven);

        // What a length of 32 bits says means nothing in the short form.
        for length in [0u32, 0x1000, 0xffff_ffff] {
            step(format!("length {length:#x}"));
            let driven = open(&shape, move |space| {
                let at = capability(space, 8);
                space[at + LENGTH..][..4].copy_from_slice(&length.to_le_bytes());
            });
            let window = driven.map(|driven| driven.device.identity().window);
            match (long_capability, window) {
                (false, window) => assert_eq!(window.unwrap(), bar - found.offset),
                (true, Ok(window)) => assert_eq!(window as u32, length),
                // With the upper half of a length that fits, this one does not.
                (true, Err(error)) => assert!(error.to_string().contains("BAR"), "{error}"),
            }
        }
        // What there is of others is skipped: other types, the BAR that does not exist, too short.
        for (cfg_type, bar, len) in [(9, 0, 16), (0x42, 0, 16), (8, 7, 16), (8, 2, 8)] {
            step(format!(
                "a capability of type {cfg_type}, BAR {bar}, {len} bytes"
            ));
            let mut driven = open(&shape, move |space| {
                let at = space.len() - 16;
                assert_eq!(space[at..], [0; 16], "no room");
                let mut extra = [0; 16];
                extra[0] = 9;
                extra[NEXT] = space[FIRST];
                extra[LEN] = len;
                extra[TYPE] = cfg_type;
                extra[BAR] = bar;
                extra[ID] = 1;
                extra[OFFSET] = 0x10;
                space[at..].copy_from_slice(&extra);
                space[FIRST] = at as u8;
            });
            works(driven.as_mut().unwrap());
        }
    }
    // The upper half of the offset counts.
    let shape = Shape {
        long_capability: true,
        ..shape.clone()
    };
    let far = open(&shape, |space| {
        let at = capability(space, 8);
        space[at + OFFSET_HIGH] = 0x40;
    });
    let error = far.err().expect("it ends behind its BAR").to_string();
    assert!(error.contains("0x40000"), "{error}");
}

pub(super) fn c03_status_is_one_store(shape: &Shape) {
    let mut driven = Driven::new(shape);
    let found = driven.modelled.found();
    // Everything that makes a driver touch it: front-ends that leave, are thrown out, and find
    // the device reset behind the driver's back.
    works(&mut driven);
    driven.is_closed();
    assert!(driven.next_within(Duration::ZERO).is_none());
    let mut front_end = driven.modelled.connect();
    front_end.plain(request::GET_FEATURES);
    driven.is_connected();
    driven.device.disconnect();
    front_end.is_hung_up();
    works(&mut driven);
    driven.is_closed();
    driven.modelled.model.reset();
    works(&mut driven);
    driven.device.shutdown();
    let stores = driven.watch.stores();
    let link: Vec<Store> = stores
        .iter()
        .filter(|store| store.inside(found.device).is_some())
        .copied()
        .collect();
    assert!(link.iter().any(|store| store.value == BACKEND_UP));
    for store in &link {
        let good = store.inside(found.device) == Some(0) && store.width == 4;
        assert!(good && store.value & !BACKEND_UP == 0, "{store:?}");
    }
    // It is running before it is there.
    let mut running = false;
    for store in &stores {
        if store.inside(found.common) == Some(common::STATUS) {
            running = store.value & 4 != 0;
        }
        if store.inside(found.device) == Some(0) && store.value & BACKEND_UP != 0 {
            assert!(running, "armed before DRIVER_OK");
        }
    }
}

/// How many buffers of 8 KiB or more the device has.
fn buffers(view: &View<'_>, common: Location) -> u16 {
    let rxq = view.queue(common, 0);
    let offered = rxq.available().wrapping_sub(rxq.used());
    assert!(offered <= rxq.size);
    for entry in 0..offered {
        let (_, len, flags) = rxq.offered(rxq.used().wrapping_add(entry));
        assert!(len >= 8192 && flags & 2 != 0, "{len} bytes, flags {flags}");
    }
    offered
}

pub(super) fn c04_receive_buffers(shape: &Shape) {
    for queue_size in [1, 2, 16, shape.queue_size] {
        step(format!("queues of {queue_size}"));
        receive_buffers(&Shape {
            queue_size,
            ..shape.clone()
        });
    }
}

fn receive_buffers(shape: &Shape) {
    let mut driven = Driven::new(shape);
    let found = driven.modelled.found();
    let armed = Arc::new(AtomicU32::new(0));
    let least = Arc::new(Mutex::new(u16::MAX));
    let (seen, fewest) = (Arc::clone(&armed), Arc::clone(&least));
    driven.watch.before_access(move |view, store| {
        let up = store.is_some_and(|store| {
            store.inside(found.device) == Some(0) && store.value & BACKEND_UP != 0
        });
        if up {
            seen.fetch_add(1, Ordering::SeqCst);
            let mut fewest = fewest.lock().unwrap();
            *fewest = buffers(view, found.common).min(*fewest);
        }
    });
    for _ in 0..3 {
        works(&mut driven);
        driven.is_closed();
    }
    driven.next_within(Duration::ZERO);
    assert!(armed.load(Ordering::SeqCst) >= 3);
    assert!(*least.lock().unwrap() >= 1);

    // Each message's buffer is offered again: many more come through than there are buffers.
    let mut front_end = driven.modelled.connect();
    let before = driven.watch.look(|view| buffers(view, found.common));
    for number in 0..500u32 {
        let payload = number.to_le_bytes().repeat(number as usize % 1000);
        front_end.send(request::UNKNOWN, PLAIN, &payload, &[]);
        if number == 0 {
            driven.is_connected();
        }
        driven.hears(&message(request::UNKNOWN, PLAIN, &payload).to_bytes());
        let now = driven.watch.look(|view| buffers(view, found.common));
        assert_eq!(now, before, "after message {number}");
    }
    assert!(driven.next_within(QUIET).is_none());
}
