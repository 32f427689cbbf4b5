#![allow(clippy::unwrap_used)]
use super::split::Layout;
use super::*;
use crate::memory::Mapping;

const SIZE: u16 = 8;
const LEN: u32 = 64;

/// A device with nothing but the queue's memory and an index of its own.
struct Device {
    memory: Area,
    layout: Layout,
    used: u16,
}

impl Device {
    fn put<T: vm_memory::ByteValued>(&self, at: usize, value: T) {
        self.memory.slice().write_obj(value, at).unwrap();
    }

    fn get<T: vm_memory::ByteValued>(&self, at: usize) -> T {
        self.memory.slice().read_obj(at).unwrap()
    }

    fn avail_index(&self) -> u16 {
        self.get(self.layout.avail + 2)
    }

    /// Descriptor number in slot `n` of the available ring.
    fn offered(&self, n: u16) -> u16 {
        self.get(self.layout.avail + 4 + 2 * usize::from(n % SIZE))
    }

    fn give_back(&mut self, id: u32, len: u32) {
        let slot = self.layout.used + 4 + 8 * usize::from(self.used % SIZE);
        self.put(slot, id);
        self.put(slot + 4, len);
        self.used = self.used.wrapping_add(1);
        self.put(self.layout.used + 2, self.used);
    }
}

fn queue(direction: Direction) -> (Virtqueue, Device) {
    let memory = DmaMemory {
        bytes: Mapping::anonymous(Virtqueue::bytes(SIZE, LEN))
            .unwrap()
            .into(),
        iova: 0x7000_0000,
    };
    let queue = Virtqueue::new(&memory, 0, SIZE, LEN, direction).unwrap();
    let device = Device {
        memory: memory.bytes,
        layout: queue.ring.layout(),
        used: 0,
    };
    (queue, device)
}

#[test]
fn receives_in_any_order_for_more_than_2_to_the_16_buffers() {
    let (mut queue, mut device) = queue(Direction::FromDevice);
    queue.offer_all();
    assert_eq!(device.avail_index(), SIZE);
    assert_eq!(queue.in_flight(), SIZE);
    for round in 0..20_000u32 {
        // Two of those offered next, the later one first.
        let next = device.used;
        for id in [device.offered(next.wrapping_add(1)), device.offered(next)] {
            let address: u64 = device.get(usize::from(id) * 16);
            let at = (address - 0x7000_0000) as usize;
            device.put(at, round + u32::from(id));
            device.give_back(id.into(), 4);
            // What we get is a copy: poison afterwards must not show.
            let bytes = queue.receive().unwrap().unwrap();
            device.put(at, u32::MAX);
            assert_eq!(bytes, (round + u32::from(id)).to_le_bytes());
        }
        assert_eq!(queue.receive(), Ok(None));
        assert_eq!(queue.in_flight(), SIZE);
        assert_eq!(device.avail_index(), SIZE.wrapping_add(device.used));
    }
}

#[test]
fn sends_until_full_and_takes_back() {
    let (mut queue, mut device) = queue(Direction::ToDevice);
    for n in 0..SIZE {
        queue.send(&[&[n as u8], &[9, 9]]).unwrap();
    }
    assert_eq!(queue.send(&[&[0]]), Err(QueueError::Full));
    assert_eq!(
        queue.send(&[&[0; 60], &[0; 5]]),
        Err(QueueError::NoRoom { len: 65, room: 64 })
    );
    let id = device.offered(0);
    let (address, len, flags) = (
        device.get::<u64>(usize::from(id) * 16),
        device.get::<u32>(usize::from(id) * 16 + 8),
        device.get::<u16>(usize::from(id) * 16 + 12),
    );
    assert_eq!((len, flags), (3, 0));
    assert_eq!(
        device.get::<[u8; 3]>((address - 0x7000_0000) as usize),
        [0, 9, 9]
    );
    // The length of a sent buffer is nobody's business (prototypes say its size, must be 0).
    device.give_back(id.into(), u32::MAX);
    assert_eq!(queue.reclaim(), Ok(1));
    assert_eq!(queue.in_flight(), SIZE - 1);
    queue.send(&[&[7]]).unwrap();
    assert!(queue.wants_notify());
    device.put(device.layout.used, 1u16);
    assert!(!queue.wants_notify());
}

#[test]
fn lies_are_found_out() {
    let (mut queue, mut device) = queue(Direction::FromDevice);
    queue.offer_all();
    device.give_back(u32::from(SIZE), 4);
    assert_eq!(queue.receive(), Err(QueueError::NotHeld(8)));

    queue.reset();
    device.used = 0;
    queue.offer_all();
    device.give_back(0x1_0000, 4);
    assert_eq!(queue.receive(), Err(QueueError::NotHeld(0x1_0000)));

    queue.reset();
    device.used = 0;
    queue.offer_all();
    device.give_back(0, LEN + 1);
    assert!(matches!(
        queue.receive(),
        Err(QueueError::TooLong { len: 65, room: 64 })
    ));

    queue.reset();
    device.used = 0;
    queue.offer_all();
    device.put(device.layout.used + 2, SIZE + 1);
    assert_eq!(queue.receive(), Err(QueueError::Index { from: 0, to: 9 }));

    // Nothing was offered, so nothing can come back.
    queue.reset();
    device.used = 0;
    device.give_back(0, 0);
    assert_eq!(queue.reclaim(), Err(QueueError::Index { from: 0, to: 1 }));
}

#[test]
fn the_same_buffer_cannot_come_back_twice() {
    let (mut queue, mut device) = queue(Direction::ToDevice);
    queue.send(&[&[1]]).unwrap();
    queue.send(&[&[2]]).unwrap();
    let id = device.offered(0);
    device.give_back(id.into(), 0);
    device.give_back(id.into(), 0);
    assert_eq!(queue.reclaim(), Err(QueueError::NotHeld(id.into())));
}

#[test]
fn memory_must_be_enough_and_aligned() {
    let memory = |iova, len| DmaMemory {
        bytes: Mapping::anonymous(len).unwrap().into(),
        iova,
    };
    let new = |memory: &DmaMemory, offset, size| {
        Virtqueue::new(memory, offset, size, LEN, Direction::ToDevice).map(|_| ())
    };
    let enough = Virtqueue::bytes(SIZE, LEN);
    assert_eq!(new(&memory(0, enough), 0, SIZE), Ok(()));
    for (memory, offset, size) in [
        (memory(0, enough - 1), 0, SIZE),
        (memory(0, enough), 16, SIZE),
        (memory(8, enough), 0, SIZE),
        (memory(u64::MAX - 15, enough + 32), 32, SIZE),
        (memory(0, enough), 0, 7),
        (memory(0, enough), 0, 0),
    ] {
        assert_eq!(new(&memory, offset, size), Err(QueueError::Memory));
    }
}
