//! A block device's driver.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use vvu::notify::Kick;
use vvu::virtio::VirtioDevice;

use super::{Buffer, MockGuest, MockQueue, signals};
use crate::vring::feature as ring;

/// How long a device may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes reserved for a chain and its indirect table.
const PLACE: usize = 160 << 10;
/// Where in such a place the indirect table is, and how many entries it has room for.
const TABLE: u64 = 144 << 10;

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What [`MockBlk::chain`] returned.
    pub id: u16,
    /// All bytes that the device could write.
    pub bytes: Vec<u8>,
    /// How many it says to have written.
    pub len: u32,
}

impl Answer {
    /// The last byte, which is where the status goes. What was not written is 0xee.
    pub fn status(&self) -> u8 {
        self.bytes.last().copied().unwrap_or(0xee)
    }

    /// What is before the status.
    pub fn data(&self) -> &[u8] {
        self.bytes.split_last().map_or(&[], |(_, data)| data)
    }
}

/// A request in flight: where it is, and its buffers that the device may write.
#[derive(Debug)]
struct Flying {
    place: u64,
    writable: Vec<Buffer>,
}

#[derive(Debug)]
struct Lane {
    queue: MockQueue,
    places: Vec<u64>,
    flying: HashMap<u16, Flying>,
    called: OwnedFd,
    failed: OwnedFd,
}

/// A block device's driver over a device that it was started with.
#[derive(Debug)]
pub struct MockBlk {
    guest: MockGuest,
    features: u64,
    lanes: Vec<Lane>,
}

impl MockBlk {
    /// Accepts what is offered of `features`, and starts `queues` rings of `size` entries, with
    /// kicks or without.
    pub fn start(
        device: &mut dyn VirtioDevice,
        mut guest: MockGuest,
        features: u64,
        queues: u16,
        size: u16,
        polled: bool,
    ) -> Self {
        let features = device.features() & features;
        device.set_features(features).unwrap();
        let mut lanes = Vec::new();
        for index in 0..queues {
            let mut queue = MockQueue::new(&mut guest, size, features, 0);
            let (vring, called, failed) = match polled {
                true => queue.vring_with(index, Kick::Polled),
                false => queue.vring(index),
            };
            device.start_ring(vring).unwrap();
            lanes.push(Lane {
                queue,
                places: (0..16).map(|_| guest.alloc(PLACE, 4096)).collect(),
                flying: HashMap::new(),
                called,
                failed,
            });
        }
        Self {
            guest,
            features,
            lanes,
        }
    }

    /// Memory enough for `queues` queues.
    pub fn memory(queues: usize) -> MockGuest {
        let len = queues * 17 * PLACE + (1 << 20);
        MockGuest::new(0x10_0000, &[len / 2 + 0x330, len])
    }

    /// Negotiated features.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The driver side of a queue.
    pub fn queue(&mut self, queue: usize) -> &mut MockQueue {
        &mut self.lanes[queue].queue
    }

    /// Where a request in flight has its buffers.
    pub fn place(&self, queue: usize, id: u16) -> u64 {
        self.lanes[queue].flying[&id].place
    }

    /// How many requests of a queue are in flight.
    pub fn flying(&self, queue: usize) -> usize {
        self.lanes[queue].flying.len()
    }

    /// How often a queue was called, and its error signalled, since the last look.
    pub fn signals(&self, queue: usize) -> (u64, u64) {
        let lane = &self.lanes[queue];
        (signals(&lane.called), signals(&lane.failed))
    }

    /// Adds a chain with these readable bytes and writable lengths, a buffer for each, without
    /// telling the device. `None` if there is no room. With an indirect table if it was accepted
    /// and `indirect` says so.
    pub fn chain(
        &mut self,
        queue: usize,
        readable: &[&[u8]],
        writable: &[usize],
        indirect: bool,
    ) -> Option<u16> {
        let lane = &mut self.lanes[queue];
        let place = lane.places.pop()?;
        let mut at = place;
        let mut chain = Vec::new();
        for bytes in readable {
            self.guest.write(at, bytes);
            chain.push(Buffer {
                addr: at,
                len: bytes.len() as u32,
                writable: false,
            });
            at += bytes.len() as u64;
        }
        let first = chain.len();
        for &len in writable {
            self.guest.write(at, &vec![0xee; len]);
            chain.push(Buffer {
                addr: at,
                len: len as u32,
                writable: true,
            });
            at += len as u64;
        }
        assert!(at <= place + TABLE, "a place holds no such request");
        let id = if indirect && self.features & ring::INDIRECT_DESC != 0 {
            lane.queue.add_indirect(&chain, place + TABLE, 0)
        } else {
            lane.queue.add(&chain)
        };
        let Some(id) = id else {
            lane.places.push(place);
            return None;
        };
        let writable = chain.split_off(first);
        lane.flying.insert(id, Flying { place, writable });
        Some(id)
    }

    /// Publishes what was added.
    pub fn submit(&mut self, queue: usize) {
        self.lanes[queue].queue.submit();
    }

    /// The next answer, if there is one.
    pub fn answer(&mut self, queue: usize) -> Option<Answer> {
        let lane = &mut self.lanes[queue];
        let (id, len) = lane.queue.used()?;
        let flying = lane.flying.remove(&id).expect("nobody asked for this");
        let mut bytes = Vec::new();
        for buffer in &flying.writable {
            bytes.extend(self.guest.read(buffer.addr, buffer.len as usize));
        }
        lane.places.push(flying.place);
        Some(Answer { id, bytes, len })
    }

    /// Waits for the next answer.
    pub fn wait(&mut self, queue: usize) -> Answer {
        let start = Instant::now();
        loop {
            if let Some(answer) = self.answer(queue) {
                return answer;
            }
            assert!(start.elapsed() < PATIENCE, "no answer");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Asks and waits: a request of this kind with data to the device and room for data from it.
    pub fn ask(
        &mut self,
        queue: usize,
        kind: u32,
        sector: u64,
        data: &[u8],
        room: usize,
    ) -> Answer {
        let header = header(kind, sector);
        let id = self.chain(queue, &[&header, data], &[room, 1], false);
        self.submit(queue);
        let answer = self.wait(queue);
        assert_eq!(Some(answer.id), id);
        answer
    }
}

/// A request's header (VIRTIO 1.2, 5.2.6).
pub fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    // Reserved, to be ignored.
    header[4..8].copy_from_slice(&0xabcd_ef01u32.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

/// One range of a discard or write-zeroes request.
pub fn range(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let all = u128::from(sector) | u128::from(sectors) << 64 | u128::from(flags) << 96;
    all.to_le_bytes()
}
