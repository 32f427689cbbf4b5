//! One worker's switch on this thread, and guests that keep its rings full: whatever is measured
//! here is the back-end, never a driver or another thread.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, ensure};
use vvu::memory::VolatileSlice;
use vvu_pmd::mock::{Buffer, MockGuest, MockQueue};
use vvu_pmd::net::{Fdb, Inbox, NetConfig, Place, Shared, Switch};
use vvu_pmd::port::{Generator, PreparedRing, Rings, RxPort, Stats, TxPort, VhostRx, VhostTx};
use vvu_pmd::stats::{PortSnapshot, PortStats};
use vvu_pmd::vring::RingError;
use vvu_pmd::wake::Waker;

/// Entries of each ring, and frames that a guest has ready for each round: what DPDK's drivers do.
pub(crate) const ENTRIES: u16 = 256;
/// See [`ENTRIES`].
pub(crate) const BURST: usize = 32;

/// Bytes of a guest's buffer, as most drivers have them...
pub(crate) const BUFFER: usize = 2048;
/// ...and what is between two: in all an odd number of cache lines, so that buffers are not all in
/// the same few sets of a cache.
const GAP: usize = 5 * 64;

/// A source address for port `port`, and further ones by `number`.
pub(crate) fn mac(port: u16, number: u16) -> [u8; 6] {
    let ([a, b], [c, d]) = (port.to_be_bytes(), number.to_be_bytes());
    [2, 0, a, b, c, d]
}

/// A switch with ports.
pub(crate) struct Rig {
    pub(crate) switch: Switch,
    waker: Arc<Waker>,
    ports: Vec<Stats>,
}

impl Rig {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let waker = Waker::new()?;
        let shared = Shared {
            fdb: Arc::new(Fdb::new(300)),
            inboxes: vec![Inbox::new(64, Arc::clone(&waker))],
            pool: None,
        };
        let switch = Switch::new(0, shared, Arc::default()).context("no switch")?;
        Ok(Self {
            switch,
            waker,
            ports: Vec::new(),
        })
    }

    fn stats(&mut self) -> (u16, Stats) {
        let stats = PortStats::new(2, &RingError::REASONS);
        self.ports.push(Arc::clone(&stats));
        (self.ports.len() as u16 - 1, stats)
    }

    /// A port that takes everything.
    pub(crate) fn null(&mut self) {
        let (number, stats) = self.stats();
        let null = TxPort::Null(Arc::clone(&stats));
        self.switch.add(number, RxPort::None, null, stats);
    }

    /// A port that sends back what comes. Returns its number.
    pub(crate) fn echo(&mut self) -> u16 {
        let (number, _) = self.stats();
        self.switch.place(number, Place::Echo { swap: true });
        number
    }

    /// Port `number` is where its first address is.
    pub(crate) fn learn(&mut self, number: u16) {
        let mut frame = [0; 60];
        frame[..6].copy_from_slice(&mac(number, 0));
        frame[6..12].copy_from_slice(&mac(number, 0));
        self.switch
            .inject(number, VolatileSlice::from(&mut frame[..]));
    }

    /// A port that sends frames of `size` bytes to the guest at port `to`.
    pub(crate) fn generator(&mut self, size: usize, to: u16) -> anyhow::Result<()> {
        let (number, stats) = self.stats();
        let frames = Generator::new(size, mac(number, 0), mac(to, 0), Arc::clone(&stats))?;
        let null = TxPort::Null(Arc::clone(&stats));
        self.switch.add(number, RxPort::Gen(frames), null, stats);
        Ok(())
    }

    /// A guest whose driver has accepted `features`, with buffers of so many bytes.
    pub(crate) fn guest(&mut self, features: u64, buffer: usize) -> anyhow::Result<Guest> {
        let (number, stats) = self.stats();
        let name: Arc<str> = format!("guest {number}").into();
        let rings = || Rings::new(Arc::clone(&name), Arc::clone(&stats));
        let (mut rx, mut tx) = (VhostRx::new(rings()), VhostTx::new(rings()));
        let mut guest = Guest::new(number, features, buffer);
        let kind = NetConfig::ring_kind(features);
        for (queue, index, rings) in [
            (&mut guest.rx, 0, &mut tx.rings),
            (&mut guest.tx, 1, &mut rx.rings),
        ] {
            let (vring, called, failed) = queue.driver.vring(index);
            rings.start(PreparedRing::new(vring, kind, &self.waker)?);
            queue.ends = vec![called, failed];
        }
        let (rx, tx) = (RxPort::Vhost(rx), TxPort::Vhost(tx));
        self.switch.add(number, rx, tx, stats);
        Ok(guest)
    }

    /// Packets delivered so far.
    pub(crate) fn packets(&self) -> usize {
        let delivered = self.ports.iter().map(|port| port.tx_packets.get());
        delivered.sum::<u64>() as usize
    }

    /// Nothing was dropped, no ring broke: what was measured is the plain path.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        for (number, stats) in self.ports.iter().enumerate() {
            let port = PortSnapshot::of("", 0, stats);
            let faults: u64 = port.faults.iter().map(|(_, n)| n).sum();
            ensure!(
                port.dropped_all() + faults == 0,
                "port {number} dropped frames: {port:?}"
            );
        }
        Ok(())
    }
}

/// One queue of a guest, and its buffers: those that are free, those in flight by their id.
struct Queue {
    driver: MockQueue,
    free: Vec<u64>,
    flying: Vec<u64>,
    /// The guest's ends of call and error.
    ends: Vec<OwnedFd>,
}

impl Queue {
    fn new(memory: &mut MockGuest, features: u64, buffer: usize) -> Self {
        let driver = MockQueue::new(memory, ENTRIES, features, 0);
        // A driver that polls wants no calls.
        driver.set_no_interrupt(true);
        Self {
            driver,
            free: (0..ENTRIES)
                .map(|_| memory.alloc(buffer + GAP, 64))
                .collect(),
            flying: vec![0; ENTRIES.into()],
            ends: Vec::new(),
        }
    }

    /// Takes back what the device has used. Returns how many buffers.
    fn reap(&mut self) -> usize {
        let before = self.free.len();
        while let Some((id, _)) = self.driver.used() {
            self.free.push(self.flying[usize::from(id)]);
        }
        self.free.len() - before
    }

    /// Offers the next buffer.
    fn add(&mut self, len: usize, writable: bool) -> Option<u64> {
        let addr = self.free.pop()?;
        let buffer = Buffer {
            addr,
            len: len as u32,
            writable,
        };
        let id = self.driver.add(&[buffer])?;
        self.flying[usize::from(id)] = addr;
        Some(addr)
    }
}

/// A guest with one pair of queues and a driver that polls.
pub(crate) struct Guest {
    pub(crate) number: u16,
    memory: MockGuest,
    buffer: usize,
    header: usize,
    rx: Queue,
    tx: Queue,
}

impl Guest {
    fn new(number: u16, features: u64, buffer: usize) -> Self {
        // In hugepages if there are any, as VMMs that share their guests' memory have it.
        let (start, len) = (0x1000, [2 << 20]);
        let memory = MockGuest::huge(start, &len);
        let mut memory = memory.unwrap_or_else(|| MockGuest::new(start, &len));
        let rx = Queue::new(&mut memory, features, buffer);
        let tx = Queue::new(&mut memory, features, buffer);
        let mut guest = Self {
            number,
            memory,
            buffer,
            header: NetConfig::ring_kind(features).header,
            rx,
            tx,
        };
        guest.refill();
        guest
    }

    fn refill(&mut self) {
        while self.rx.add(self.buffer, true).is_some() {}
        self.rx.driver.publish();
    }

    /// Offers a burst of frames of `size` bytes; `addresses` names destination and source of
    /// each.
    pub(crate) fn send(&mut self, size: usize, mut addresses: impl FnMut() -> [[u8; 6]; 2]) {
        self.tx.reap();
        for _ in 0..BURST {
            let Some(addr) = self.tx.add(self.header + size, false) else {
                break;
            };
            let [to, from] = addresses();
            let header = addr + self.header as u64;
            self.memory.write(header, &to);
            self.memory.write(header + 6, &from);
            self.memory.write(header + 12, &[0x88, 0xb5]);
        }
        self.tx.driver.publish();
    }

    /// Takes what has arrived, each frame in one buffer, and offers the buffers again.
    pub(crate) fn receive(&mut self) -> usize {
        let frames = self.rx.reap();
        self.refill();
        frames
    }
}
