#![allow(clippy::unwrap_used)]
use super::*;
use crate::memory::Mapping;

const IOVA: u64 = 0x9000_0000;
/// A packed ring has any size.
const SIZES: [u16; 3] = [8, 5, 7];

/// A descriptor: address, length, flags without those that say whose turn it is.
type Seen = (u64, u32, u16);

/// A device with nothing but the ring's memory and places of its own.
struct Device {
    memory: Area,
    size: u16,
    seen: Place,
    used: Place,
}

impl Device {
    fn get<T: vm_memory::ByteValued>(&self, at: usize) -> T {
        self.memory.slice().read_obj(at).unwrap()
    }

    fn put<T: vm_memory::ByteValued>(&self, at: usize, value: T) {
        self.memory.slice().write_obj(value, at).unwrap();
    }

    /// The next chain: its id, and its descriptors.
    fn next(&mut self) -> Option<(u16, Vec<Seen>)> {
        let mut chain = Vec::new();
        loop {
            let at = usize::from(self.seen.slot) * DESCRIPTOR_LEN;
            let flags: u16 = self.get(at + FLAGS);
            if (flags & AVAIL != 0) != self.seen.wrap || (flags & USED != 0) == self.seen.wrap {
                assert!(chain.is_empty(), "a chain that is not whole");
                return None;
            }
            assert!(chain.len() < usize::from(self.size), "a loop");
            chain.push((self.get(at), self.get(at + 8), flags & !(AVAIL | USED)));
            self.seen = self.seen.plus(1, self.size);
            if flags & NEXT == 0 {
                return Some((self.get(at + ID), chain));
            }
        }
    }

    /// Returns a chain, or with it all before it, of `count` descriptors.
    fn give_back(&mut self, id: u16, len: u32, count: u16) {
        let at = usize::from(self.used.slot) * DESCRIPTOR_LEN;
        self.put(at + 8, len);
        self.put(at + ID, id);
        let turn = if self.used.wrap { AVAIL | USED } else { 0 };
        self.put(at + FLAGS, turn);
        self.used = self.used.plus(count, self.size);
    }

    /// Asks for the notification at a place, always, or never.
    fn wish(&self, place: u16, flags: u32) {
        let event = Packed::device_event(self.size);
        self.put(event, u32::from(place) | flags << 16);
    }

    fn wish_of_driver(&self) -> u32 {
        self.get(Packed::driver_event(self.size))
    }
}

fn ring(size: u16, format: Format) -> (Packed, Device) {
    let memory = DmaMemory {
        bytes: Mapping::anonymous(Packed::bytes(size) + 64).unwrap().into(),
        iova: IOVA,
    };
    let ring = Packed::new(&memory, 64, size, format).unwrap();
    let device = Device {
        memory: ring.memory().clone(),
        size,
        seen: Place::START,
        used: Place::START,
    };
    (ring, device)
}

fn in_order() -> Format {
    Format {
        in_order: true,
        ..Format::default()
    }
}

fn chain(len: u16) -> Vec<Buffer> {
    let buffer = |n: u16| Buffer {
        address: 0x1000 * u64::from(n),
        len: n.into(),
        writable: n == len,
    };
    (1..=len).map(buffer).collect()
}

/// What the device sees of such a chain.
fn seen(len: u16) -> Vec<Seen> {
    let flags = |n| if n < len { NEXT } else { WRITE };
    let descriptor = |n: u16| (0x1000 * u64::from(n), n.into(), flags(n));
    (1..=len).map(descriptor).collect()
}

#[test]
fn chains_of_all_lengths_round_and_round() {
    for size in SIZES {
        let (mut ring, mut device) = ring(size, Format::default());
        for round in 0..30_000u16 {
            let lengths = [1 + round % 3, 1 + round / 3 % 2];
            let ids = lengths.map(|len| ring.push(&chain(len)).unwrap());
            assert_eq!(device.next(), None, "unpublished");
            assert_eq!(ring.in_flight(), 0);
            ring.publish();
            assert_eq!(ring.in_flight(), 2);
            assert_eq!(ring.free(), usize::from(size - lengths[0] - lengths[1]));
            for (id, len) in ids.into_iter().zip(lengths) {
                assert_eq!(device.next(), Some((id, seen(len))));
            }
            // The later one first.
            for (id, len) in ids.into_iter().zip(lengths).rev() {
                assert!(!ring.has_used());
                device.give_back(id, len.into(), len);
                assert!(ring.has_used());
                let used = Used {
                    head: id,
                    len: len.into(),
                };
                assert_eq!(ring.take(), Ok(Some(used)));
                ring.release(id);
            }
            assert_eq!(ring.take(), Ok(None));
            assert_eq!((ring.free(), ring.in_flight()), (size.into(), 0));
        }
    }
}

#[test]
fn a_chain_goes_round_as_it_is() {
    let (mut ring, mut device) = ring(7, Format::default());
    let id = ring.push(&chain(3)).unwrap();
    for _ in 0..1000 {
        ring.publish();
        assert_eq!(device.next(), Some((id, seen(3))));
        device.give_back(id, 0, 3);
        assert_eq!(ring.take().unwrap().unwrap().head, id);
        // Its descriptors are not for others meanwhile.
        assert_eq!(ring.push(&chain(5)), Err(QueueError::Full));
        ring.again(id);
    }
    assert_eq!(ring.free(), 4);
}

#[test]
fn a_full_ring_takes_nothing() {
    let (mut ring, mut device) = ring(8, Format::default());
    assert_eq!(ring.push(&[]), Err(QueueError::Full));
    assert_eq!(ring.push(&chain(9)), Err(QueueError::Full));
    ring.push(&chain(7)).unwrap();
    assert_eq!(ring.push(&chain(2)), Err(QueueError::Full));
    let id = ring.push_indirect(0x5000, 3).unwrap();
    assert_eq!(ring.push(&chain(1)), Err(QueueError::Full));
    assert_eq!(ring.push_indirect(0x5000, 3), Err(QueueError::Full));
    ring.publish();
    device.next().unwrap();
    assert_eq!(device.next(), Some((id, vec![(0x5000, 48, INDIRECT)])));
    assert_eq!(device.next(), None, "round once");
    let entry = of_buffer(&chain(1)[0]);
    assert_eq!(entry[12..], [0, 0, WRITE as u8, 0]);
}

#[test]
fn lies_are_found_out() {
    for format in [Format::default(), in_order()] {
        let (mut ring, mut device) = ring(8, format);
        for lie in [2, 8, u16::MAX] {
            ring.reset();
            device.used = Place::START;
            for _ in 0..2 {
                ring.push(&chain(2)).unwrap();
            }
            ring.publish();
            device.give_back(lie, 0, 2);
            assert_eq!(ring.take(), Err(QueueError::NotHeld(lie.into())));
            assert!(ring.resume().is_err() && ring.bounds().is_err());
        }
        ring.reset();
        device.used = Place::START;
        let id = ring.push(&chain(1)).unwrap();
        device.give_back(id, 0, 1);
        let not_held = Err(QueueError::NotHeld(id.into()));
        assert_eq!(ring.take(), not_held, "unpublished");
        ring.publish();
        device.used = Place::START;
        device.give_back(id, 0, 1);
        ring.take().unwrap().unwrap();
        device.give_back(id, 0, 1);
        assert_eq!(ring.take(), not_held, "twice");
    }
}

#[test]
fn one_descriptor_stands_for_all_before_it_in_order() {
    for size in SIZES {
        let (mut ring, mut device) = ring(size, in_order());
        for round in 0..10_000u16 {
            let lengths = [1, 1 + round % 2, 1];
            let ids = lengths.map(|len| ring.push(&chain(len)).unwrap());
            ring.publish();
            ids.iter()
                .for_each(|id| assert_eq!(device.next().unwrap().0, *id));
            device.give_back(ids[1], 9, lengths[0] + lengths[1]);
            assert!(ring.has_used());
            for (id, len) in [(ids[0], 1), (ids[1], 9)] {
                assert_eq!(ring.take(), Ok(Some(Used { head: id, len })));
                ring.release(id);
            }
            assert_eq!(ring.take(), Ok(None));
            device.give_back(ids[2], 1, 1);
            assert_eq!(ring.take().unwrap().unwrap().head, ids[2]);
            ring.release(ids[2]);
        }
    }
}

#[test]
fn a_new_device_finds_what_the_old_one_did_not_return() {
    for format in [Format::default(), in_order()] {
        for turn in 0..40 {
            let (mut ring, mut device) = ring(7, format);
            // From every place of both rounds.
            for _ in 0..turn {
                let id = ring.push(&chain(1)).unwrap();
                ring.publish();
                device.next().unwrap();
                device.give_back(id, 0, 1);
                ring.take().unwrap().unwrap();
                ring.release(id);
            }
            let lengths = [2, 1, 1, 1];
            let ids = lengths.map(|len| ring.push(&chain(len)).unwrap());
            ring.publish();
            (0..3).for_each(|_| drop(device.next().unwrap()));
            // One is returned, out of order where that may be, and not taken.
            let out = usize::from(!format.in_order);
            device.give_back(ids[out], 5, lengths[out]);
            let place = device.used;
            assert!(ring.can_stop_at(place.encoded().into()).unwrap());
            assert!(ring.can_stop_at(ring.next.encoded().into()).unwrap());
            assert!(
                !ring
                    .can_stop_at(ring.next.plus(1, 7).encoded().into())
                    .unwrap()
            );
            let base = ring.resume().unwrap();
            assert_eq!(base, u32::from(place.encoded()) * 0x1_0001);
            let mut other = Device {
                memory: device.memory.clone(),
                size: 7,
                seen: place,
                used: place,
            };
            for (n, (id, len)) in ids.into_iter().zip(lengths).enumerate() {
                if n != out {
                    assert_eq!(other.next(), Some((id, seen(len))), "turn {turn}");
                    other.give_back(id, 0, len);
                }
            }
            assert_eq!(other.next(), None);
            assert_eq!(
                ring.take(),
                Ok(Some(Used {
                    head: ids[out],
                    len: 5
                }))
            );
            for (n, id) in ids.into_iter().enumerate() {
                if n != out {
                    assert_eq!(ring.take().unwrap().unwrap().head, id);
                }
                ring.release(id);
            }
            assert_eq!((ring.free(), ring.in_flight()), (7, 0));
        }
    }
}

#[test]
fn wishes_by_flag() {
    let (mut ring, mut device) = ring(8, Format::default());
    let id = ring.push(&chain(1)).unwrap();
    assert!(ring.publish());
    assert!(!ring.publish(), "nothing new");
    device.wish(0, DISABLE);
    ring.push(&chain(1)).unwrap();
    assert!(!ring.publish());
    ring.disable_calls();
    assert_eq!(device.wish_of_driver() >> 16, DISABLE);
    assert!(!ring.enable_calls());
    assert_eq!(device.wish_of_driver() >> 16, ENABLE);
    device.give_back(id, 0, 1);
    assert!(ring.enable_calls());
}

#[test]
fn wishes_by_place_over_the_wrap() {
    for size in SIZES {
        let format = Format {
            event_idx: true,
            ..Format::default()
        };
        let (mut ring, mut device) = ring(size, format);
        for round in 0..1000u16 {
            let here = ring.next;
            // Wanted: what comes now, what comes later, or what was.
            let wish = round % 4;
            let place = match wish {
                0 => here,
                1 => here.plus(1, size),
                2 => here.plus(2, size),
                _ => here.plus(size, size).plus(size - 1, size),
            };
            device.wish(place.encoded(), AT_PLACE);
            let ids = [(); 2].map(|()| ring.push(&chain(1)).unwrap());
            assert_eq!(ring.publish(), wish < 2, "{size} {round}");
            assert!(!ring.enable_calls());
            let wanted = u32::from(device.used.encoded()) | AT_PLACE << 16;
            assert_eq!(device.wish_of_driver(), wanted);
            for id in ids {
                device.next().unwrap();
                device.give_back(id, 0, 1);
                assert!(ring.enable_calls());
                ring.take().unwrap().unwrap();
                ring.release(id);
            }
        }
    }
}
