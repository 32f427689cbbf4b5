//! A network card's driver.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use vvu::notify::Kick;
use vvu::virtio::VirtioDevice;

use super::{Buffer, MockGuest, MockQueue};
use crate::net::{NetConfig, feature};
use crate::vring::feature as ring;

/// How frames and receive buffers are laid out.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Entries of each ring.
    pub size: u16,
    /// Where the indices of the rings begin.
    pub base: u16,
    /// Bytes of a receive buffer.
    pub buffer: usize,
    /// Features to accept, of those offered. By default all but the other ring format and order.
    pub features: u64,
    /// Pairs of queues.
    pub pairs: u16,
    /// No kicks, the device has to look.
    pub polled: bool,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            size: 256,
            base: 0,
            buffer: 2048,
            features: !(ring::RING_PACKED | ring::IN_ORDER),
            pairs: 1,
            polled: false,
        }
    }
}

/// A pair of queues and its front-end ends.
#[derive(Debug)]
struct Pair {
    rx: MockQueue,
    tx: MockQueue,
    /// Receive buffers in flight, by head.
    buffers: HashMap<u16, u64>,
    /// Places for frames to send: all, and those in flight by head.
    places: Vec<u64>,
    sending: HashMap<u16, u64>,
    signals: Vec<OwnedFd>,
}

/// A network card's driver over a device that it was started with.
#[derive(Debug)]
pub struct MockNet {
    guest: MockGuest,
    layout: Layout,
    features: u64,
    header: usize,
    pairs: Vec<Pair>,
}

/// Bytes reserved for a frame to send, its header and an indirect table.
const PLACE: usize = 16384;
/// Where in such a place the indirect table is.
const TABLE: u64 = 12288;

impl MockNet {
    /// Accepts features, makes rings in `guest`, starts and fills them.
    pub fn start(device: &mut dyn VirtioDevice, guest: MockGuest, layout: Layout) -> Self {
        let features = device.features() & layout.features;
        device.set_features(features).unwrap();
        let mut this = Self {
            guest,
            layout,
            features,
            header: NetConfig::ring_kind(features).header,
            pairs: Vec::new(),
        };
        for pair in 0..layout.pairs {
            this.start_pair(device, pair);
        }
        this
    }

    fn start_pair(&mut self, device: &mut dyn VirtioDevice, number: u16) {
        let Layout { size, base, .. } = self.layout;
        let guest = &mut self.guest;
        let mut rx = MockQueue::new(guest, size, self.features, base);
        let mut tx = MockQueue::new(guest, size, self.features, base);
        let mut signals = Vec::new();
        for (queue, index) in [(&mut rx, 2 * number), (&mut tx, 2 * number + 1)] {
            let (vring, called, failed) = if self.layout.polled {
                queue.vring_with(index, Kick::Polled)
            } else {
                queue.vring(index)
            };
            device.start_ring(vring).unwrap();
            signals.extend([called, failed]);
        }
        let places = (0..32).map(|_| guest.alloc(PLACE, 16)).collect();
        let mut pair = Pair {
            rx,
            tx,
            buffers: HashMap::new(),
            places,
            sending: HashMap::new(),
            signals,
        };
        for _ in 0..size {
            let addr = guest.alloc(self.layout.buffer, 1);
            pair.refill(addr, self.layout.buffer);
        }
        pair.rx.submit();
        self.pairs.push(pair);
    }

    /// Negotiated features.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The driver side of queue `index`.
    pub fn queue(&mut self, index: u16) -> &mut MockQueue {
        let pair = &mut self.pairs[usize::from(index / 2)];
        if index.is_multiple_of(2) {
            &mut pair.rx
        } else {
            &mut pair.tx
        }
    }

    /// How often queue `index` was called, and its error signalled, since the last look.
    pub fn signals(&self, index: u16) -> (u64, u64) {
        let pair = &self.pairs[usize::from(index / 2)];
        let first = 2 * usize::from(index % 2);
        (
            super::signals(&pair.signals[first]),
            super::signals(&pair.signals[first + 1]),
        )
    }

    /// Sends `frame` by the first pair, header and all in one buffer. False if the ring is full.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        self.send_parts(0, frame, &[], false)
    }

    /// Sends `frame` by the first pair with a header that asks for something (VIRTIO 1.2,
    /// 5.1.6.2). False if the ring is full.
    pub fn send_asking(&mut self, header: &[u8; 10], frame: &[u8]) -> bool {
        self.send_all(0, header, frame, &[], false)
    }

    /// Sends `frame` by this pair, cut after its header and at `cuts` (offsets in the frame), in
    /// an indirect table or not. False if the ring is full.
    pub fn send_parts(&mut self, pair: u16, frame: &[u8], cuts: &[usize], indirect: bool) -> bool {
        self.send_all(pair, &[0; 10], frame, cuts, indirect)
    }

    fn send_all(
        &mut self,
        pair: u16,
        asking: &[u8; 10],
        frame: &[u8],
        cuts: &[usize],
        indirect: bool,
    ) -> bool {
        let header = self.header;
        let guest = &self.guest;
        let pair = &mut self.pairs[usize::from(pair)];
        while let Some((head, len)) = pair.tx.used() {
            assert_eq!(len, 0, "a device does not write what it only reads");
            pair.places.extend(pair.sending.remove(&head));
        }
        let Some(place) = pair.places.pop() else {
            return false;
        };
        guest.write(place, &vec![0; header]);
        guest.write(place, asking);
        guest.write(place + header as u64, frame);
        let mut edges: Vec<usize> = cuts.iter().map(|cut| header + cut).collect();
        edges.push(header + frame.len());
        let mut start = 0;
        let mut chain = Vec::new();
        for edge in edges {
            chain.push(Buffer {
                addr: place + start as u64,
                len: (edge - start) as u32,
                writable: false,
            });
            start = edge;
        }
        let direct = chain.len() / 3;
        let head = if indirect && self.features & ring::INDIRECT_DESC != 0 {
            pair.tx.add_indirect(&chain, place + TABLE, direct)
        } else {
            pair.tx.add(&chain)
        };
        let Some(head) = head else {
            pair.places.push(place);
            return false;
        };
        pair.sending.insert(head, place);
        pair.tx.submit();
        true
    }

    /// The next frame that arrived, and by which pair; it must be complete. Its buffers are
    /// offered again.
    pub fn receive(&mut self) -> Option<(u16, Vec<u8>)> {
        let (pair, header, frame) = self.receive_asked()?;
        assert_eq!(header, [0; 10], "nothing is left to do");
        Some((pair, frame))
    }

    /// The same for a frame that may ask for something.
    pub fn receive_asked(&mut self) -> Option<(u16, [u8; 10], Vec<u8>)> {
        let (pair, header, frame) = self.receive_headed()?;
        Some((pair, header[..10].try_into().unwrap(), frame))
    }

    /// The same with all of the header.
    pub fn receive_headed(&mut self) -> Option<(u16, Vec<u8>, Vec<u8>)> {
        for (number, pair) in (0..).zip(&mut self.pairs) {
            let Some((addr, len)) = pair.take() else {
                continue;
            };
            let mut bytes = self.guest.read(addr, len);
            let merged = match self.header {
                12 | 20 => u16::from_le_bytes(bytes[10..12].try_into().unwrap()),
                _ => 1,
            };
            let asked = bytes[..self.header].to_vec();
            let mut used = vec![addr];
            for _ in 1..merged {
                // All buffers of a frame are published at once.
                let (addr, len) = pair.take().expect("a merged buffer");
                bytes.extend(self.guest.read(addr, len));
                used.push(addr);
            }
            if self.features & feature::MRG_RXBUF == 0 {
                assert_eq!(merged, 1);
            }
            for addr in used {
                // Whatever is left of it must not look like another frame.
                self.guest.write(addr, &vec![0xee; self.layout.buffer]);
                pair.refill(addr, self.layout.buffer);
            }
            pair.rx.submit();
            bytes.drain(..self.header);
            return Some((number, asked, bytes));
        }
        None
    }

    /// The guest's memory is now elsewhere in this process: nothing of the old place is used.
    pub fn move_memory(&mut self, device: &mut dyn VirtioDevice) {
        self.guest = self.guest.moved();
        let mut places = Vec::new();
        for (number, pair) in (0..).zip(&mut self.pairs) {
            places.push((2 * number, pair.rx.move_to(&self.guest)));
            places.push((2 * number + 1, pair.tx.move_to(&self.guest)));
        }
        device.set_memory(self.guest.table(), places).unwrap();
    }
}

impl Pair {
    fn refill(&mut self, addr: u64, len: usize) {
        let buffer = Buffer {
            addr,
            len: len as u32,
            writable: true,
        };
        let head = self
            .rx
            .add(&[buffer])
            .expect("as many as there are entries");
        self.buffers.insert(head, addr);
    }

    /// The next used receive buffer.
    fn take(&mut self) -> Option<(u64, usize)> {
        let (head, len) = self.rx.used()?;
        let addr = self.buffers.remove(&head).expect("a buffer of ours");
        Some((addr, len as usize))
    }
}
