#![allow(clippy::unwrap_used)]
use super::*;
use crate::memory::Mapping;

const SIZE: u16 = 8;
const IOVA: u64 = 0x9000_0000;

/// A descriptor: address, length, flags.
type Seen = (u64, u32, u16);

/// A device with nothing but the ring's memory and indices of its own.
struct Device {
    memory: Area,
    layout: Layout,
    seen: u16,
    used: u16,
}

impl Device {
    fn get<T: vm_memory::ByteValued>(&self, at: usize) -> T {
        self.memory.slice().read_obj(at).unwrap()
    }

    fn put<T: vm_memory::ByteValued>(&self, at: usize, value: T) {
        self.memory.slice().write_obj(value, at).unwrap();
    }

    /// The next chain: its head and its descriptors.
    fn next(&mut self) -> Option<(u16, Vec<Seen>)> {
        let index: u16 = self.get(self.layout.avail + 2);
        if index == self.seen {
            return None;
        }
        let slot = usize::from(self.seen % SIZE);
        self.seen = self.seen.wrapping_add(1);
        let head: u16 = self.get(self.layout.avail + 4 + 2 * slot);
        let mut chain = Vec::new();
        let mut at = head;
        loop {
            let desc = DESCRIPTOR_LEN * usize::from(at);
            let flags: u16 = self.get(desc + 12);
            chain.push((self.get(desc), self.get(desc + 8), flags));
            if flags & DESC_NEXT == 0 {
                return Some((head, chain));
            }
            assert!(chain.len() < usize::from(SIZE), "a loop");
            at = self.get(desc + 14);
        }
    }

    fn give_back(&mut self, head: u32, len: u32) {
        let slot = self.layout.used + 4 + 8 * usize::from(self.used % SIZE);
        self.put(slot, head);
        self.put(slot + 4, len);
        self.used = self.used.wrapping_add(1);
        self.put(self.layout.used + 2, self.used);
    }

    /// Asks for the notification after `event`.
    fn set_avail_event(&self, event: u16) {
        self.put(self.layout.used + 4 + 8 * usize::from(SIZE), event);
    }

    fn used_event(&self) -> u16 {
        self.get(self.layout.avail + 4 + 2 * usize::from(SIZE))
    }
}

fn ring(event_idx: bool) -> (Split, Device) {
    ring_of(Format {
        event_idx,
        ..Format::default()
    })
}

fn ring_of(format: Format) -> (Split, Device) {
    let memory = DmaMemory {
        bytes: Mapping::anonymous(Split::bytes(SIZE) + 64).unwrap().into(),
        iova: IOVA,
    };
    let ring = Split::new(&memory, 64, SIZE, format).unwrap();
    let device = Device {
        memory: ring.memory().clone(),
        layout: ring.layout(),
        seen: 0,
        used: 0,
    };
    (ring, device)
}

fn chain(len: u32) -> Vec<Buffer> {
    let buffer = |n| Buffer {
        address: 0x1000 * u64::from(n),
        len: n,
        writable: n == len,
    };
    (1..=len).map(buffer).collect()
}

#[test]
fn chains_of_all_lengths_for_more_than_2_to_the_16_heads() {
    let (mut ring, mut device) = ring(false);
    for round in 0..30_000u32 {
        let lengths = [1 + round % 4, 1 + round / 4 % 4];
        let heads = lengths.map(|len| ring.push(&chain(len)).unwrap());
        let rest = usize::from(SIZE) - (lengths[0] + lengths[1]) as usize;
        assert_eq!(ring.free(), rest);
        assert_eq!(device.next(), None, "unpublished");
        ring.publish();
        assert_eq!(ring.in_flight(), 2);
        for (head, len) in heads.into_iter().zip(lengths) {
            let (found, descriptors) = device.next().unwrap();
            assert_eq!(found, head);
            let flags = |n| if n < len { DESC_NEXT } else { DESC_WRITE };
            let expected: Vec<_> = (1..=len)
                .map(|n| (0x1000 * u64::from(n), n, flags(n)))
                .collect();
            assert_eq!(descriptors, expected);
        }
        // The later one first.
        for (head, len) in heads.into_iter().zip(lengths).rev() {
            device.give_back(head.into(), len);
            assert!(ring.has_used());
            assert_eq!(ring.take(), Ok(Some(Used { head, len })));
            ring.release(head);
        }
        assert_eq!(ring.take(), Ok(None));
        assert_eq!((ring.free(), ring.in_flight()), (usize::from(SIZE), 0));
    }
}

#[test]
fn a_chain_goes_round_as_it_is() {
    let (mut ring, mut device) = ring(false);
    let head = ring.push(&chain(3)).unwrap();
    let mut first = None;
    for _ in 0..70_000 {
        ring.publish();
        let seen = device.next().unwrap();
        assert_eq!(*first.get_or_insert(seen.clone()), seen);
        device.give_back(head.into(), 0);
        assert_eq!(ring.take().unwrap().unwrap().head, head);
        ring.again(head);
    }
    assert_eq!(ring.free(), 5);
}

#[test]
fn a_full_ring_takes_nothing() {
    let (mut ring, mut device) = ring(false);
    assert_eq!(ring.push(&[]), Err(QueueError::Full));
    assert_eq!(ring.push(&chain(9)), Err(QueueError::Full));
    ring.push(&chain(7)).unwrap();
    assert_eq!(ring.push(&chain(2)), Err(QueueError::Full));
    let head = ring.push_indirect(0x5000, 4).unwrap();
    assert_eq!(ring.push(&chain(1)), Err(QueueError::Full));
    assert_eq!(ring.push_indirect(0x5000, 4), Err(QueueError::Full));
    ring.publish();
    device.next().unwrap();
    let (found, descriptors) = device.next().unwrap();
    assert_eq!(
        (found, descriptors),
        (head, vec![(0x5000, 64, DESC_INDIRECT)])
    );
}

#[test]
fn lies_are_found_out() {
    let (mut ring, mut device) = ring(false);
    let lie = |ring: &mut Split, device: &mut Device, head: u32| {
        ring.reset();
        (device.seen, device.used) = (0, 0);
        ring.push(&chain(2)).unwrap();
        ring.push(&chain(2)).unwrap();
        ring.publish();
        device.give_back(head, 0);
        ring.take()
    };
    let (head, _) = {
        ring.push(&chain(2)).unwrap();
        ring.publish();
        device.next().unwrap()
    };
    // Not a descriptor, not 16 bits, and the middle of a chain.
    for id in [
        u32::from(SIZE),
        1 << 16 | u32::from(head),
        u32::from(head) + 1,
    ] {
        assert_eq!(
            lie(&mut ring, &mut device, id),
            Err(QueueError::NotHeld(id))
        );
    }
    assert!(lie(&mut ring, &mut device, head.into()).is_ok());
    device.give_back(head.into(), 0);
    assert_eq!(ring.take(), Err(QueueError::NotHeld(head.into())), "twice");
    device.put(device.layout.used + 2, 9u16);
    ring.used = ring.taken;
    assert_eq!(ring.take(), Err(QueueError::Index { from: 1, to: 9 }));
}

#[test]
fn unpublished_chains_cannot_come_back() {
    let (mut ring, mut device) = ring(false);
    let head = ring.push(&chain(1)).unwrap();
    device.give_back(head.into(), 0);
    assert_eq!(ring.take(), Err(QueueError::Index { from: 0, to: 1 }));
}

#[test]
fn wishes_by_flag() {
    let (mut ring, mut device) = ring(false);
    let head = ring.push(&chain(1)).unwrap();
    assert!(ring.publish());
    assert!(!ring.publish(), "nothing new");
    device.put(device.layout.used, USED_NO_NOTIFY);
    ring.push(&chain(1)).unwrap();
    assert!(!ring.publish());
    ring.disable_calls();
    assert_eq!(device.get::<u16>(device.layout.avail), AVAIL_NO_INTERRUPT);
    assert!(!ring.enable_calls());
    assert_eq!(device.get::<u16>(device.layout.avail), 0);
    device.give_back(head.into(), 0);
    assert!(ring.enable_calls());
}

#[test]
fn wishes_by_event_index_over_the_wrap() {
    let (mut ring, mut device) = ring(true);
    for n in 0..70_000u32 {
        let index = n as u16;
        // Wanted: at once, one later, or seen already.
        for (event, wanted) in [
            (index, true),
            (index.wrapping_add(1), false),
            (index.wrapping_sub(1), false),
        ] {
            device.set_avail_event(event);
            assert_eq!(passed(index, index.wrapping_add(1), event), wanted);
        }
        device.set_avail_event(if n % 2 == 0 {
            index
        } else {
            index.wrapping_sub(1)
        });
        let head = ring.push(&chain(1)).unwrap();
        assert_eq!(ring.publish(), n % 2 == 0);
        assert!(!ring.enable_calls());
        assert_eq!(device.used_event(), index);
        device.give_back(head.into(), 0);
        assert!(ring.enable_calls());
        ring.take().unwrap().unwrap();
        ring.release(head);
        ring.disable_calls();
        assert_eq!(device.used_event(), index);
    }
}

#[test]
fn one_element_stands_for_all_before_it_in_order() {
    let (mut ring, mut device) = ring_of(Format {
        in_order: true,
        ..Format::default()
    });
    let mut expected = 0;
    for round in 0..30_000u32 {
        let lengths = [1 + round % 3, 1, 2];
        let heads = lengths.map(|len| ring.push(&chain(len)).unwrap());
        ring.publish();
        for (head, len) in heads.into_iter().zip(lengths) {
            // The order of the table.
            assert_eq!(u32::from(head), expected % u32::from(SIZE));
            expected += len;
        }
        // One element for the first two, then one for the last.
        device.give_back(heads[1].into(), 7);
        device.used = device.used.wrapping_add(1);
        device.put(device.layout.used + 2, device.used);
        let full = |n: usize| (heads[n], lengths[n]);
        for (head, len) in [full(0), (heads[1], 7)] {
            assert_eq!(ring.take(), Ok(Some(Used { head, len })));
            ring.release(head);
        }
        assert_eq!(ring.take(), Ok(None));
        device.give_back(heads[2].into(), 1);
        assert_eq!(ring.take().unwrap().unwrap().head, heads[2]);
        ring.release(heads[2]);
    }
    // More than was said to be returned, and what was never given.
    let heads = [(); 2].map(|()| ring.push(&chain(1)).unwrap());
    ring.publish();
    device.give_back(heads[1].into(), 0);
    let not_held = QueueError::NotHeld(heads[1].into());
    assert_eq!(ring.take(), Err(not_held));
}

#[test]
fn what_a_device_has_is_offered_to_its_successor_whatever_the_order_was() {
    let (mut ring, mut device) = ring(false);
    let buffers = chain(1);
    let heads: Vec<u16> = (0..SIZE).map(|_| ring.push(&buffers).unwrap()).collect();
    ring.publish();
    while device.next().is_some() {}
    // The last ones come back first, and their places in the ring are used for what comes next.
    for head in heads.iter().rev().take(5) {
        device.give_back(u32::from(*head), 0);
        let used = ring.take().unwrap().unwrap();
        ring.release(used.head);
    }
    let later: Vec<u16> = (0..4).map(|_| ring.push(&buffers).unwrap()).collect();
    ring.publish();
    // One that came back and was not taken, and one that was pushed and not published.
    device.give_back(u32::from(later[2]), 0);
    let hidden = ring.push(&buffers).unwrap();

    ring.offer_again().unwrap();
    device.seen = u16::try_from(ring.resume().unwrap()).unwrap();
    assert_eq!(device.seen, device.used);
    let offered = |device: &mut Device| {
        let mut all: Vec<u16> = std::iter::from_fn(|| device.next())
            .map(|one| one.0)
            .collect();
        all.sort_unstable();
        all
    };
    let mut held = [&heads[..3], &later[..2], &later[3..]].concat();
    held.sort_unstable();
    assert_eq!(offered(&mut device), held);
    ring.publish();
    assert_eq!(offered(&mut device), [hidden]);
}
