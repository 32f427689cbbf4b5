//! A guest as its jobs see it: memory and a network card behind a connection that may break.

use std::time::{Duration, Instant};

use vvu::protocol::Features;
use vvu::socket::Endpoint;
use vvu_pmd::net::feature;

use super::args::{MAX_FRAME, Options, Socket};
use super::error::{Fault, GuestError};
use super::link::{Rings, Wanted};
use super::memory::Memory;
use super::queues::{Format, Queue, Receiver, Sender};
use super::tether::{Meeting, Queues, Tether, Woken};
use super::wrap::{self, Request};
use crate::port::Mac;
use crate::signals::Shutdown;

/// A frame of an Ethernet without an MTU of its own, without its checksum.
const USUAL_FRAME: usize = 1514;
const ETHERNET: usize = 14;

/// Frames, or requests, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

impl Flow {
    pub(super) fn add(&mut self, packets: u64, bytes: u64) {
        self.packets += packets;
        self.bytes += bytes;
    }
}

/// A pair of rings.
struct Pair {
    receiver: Receiver,
    sender: Sender,
}

impl Queues for Vec<Pair> {
    fn all(&self) -> impl Iterator<Item = &Queue> {
        self.iter()
            .flat_map(|pair| [&pair.receiver.queue, &pair.sender.queue])
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Queue> {
        self.iter_mut()
            .flat_map(|pair| [&mut pair.receiver.queue, &mut pair.sender.queue])
    }
}

/// See the [module](self).
pub(super) struct Machine<'a> {
    tether: Tether<'a>,
    format: Format,
    pairs: Vec<Pair>,
    /// The pair that sends at the moment.
    current: usize,
    mac: [u8; 6],
    max_frame: usize,
    sent: Flow,
    received: Flow,
}

impl<'a> Machine<'a> {
    /// Gets a connection from `endpoint`, which is that of `socket`, negotiates and starts.
    pub(super) fn start(
        socket: &'a Socket,
        endpoint: &'a mut Endpoint,
        options: &'a Options,
        shutdown: &'a Shutdown,
    ) -> Result<Self, GuestError> {
        let mut meeting = Meeting {
            socket,
            endpoint,
            options,
            shutdown,
            wanted: wanted(options),
        };
        let mut link = meeting.link()?;
        let space = link.config(NetSpace::LEN)?.and_then(NetSpace::parse);
        let format = Format(link.features);
        let (mac, max_frame) = card(space, format, options);
        // With offloads, frames are as long as packets can be.
        let longest = match options.offloads {
            true => wrap::LONGEST,
            false => max_frame,
        };
        let buffer_len = options.rx_buffer.unwrap_or(match format.mergeable() {
            true => 2048,
            false => ((longest + format.header()) as u32).max(2048),
        });
        let size = options.queue_size;
        let pair = Receiver::bytes(size, buffer_len) + Sender::bytes(size, longest);
        // What does not fit a region exactly, is lost there.
        let waste = u64::from(options.regions) * (pair / 8 + 16384);
        let needed = u64::from(options.pairs) * pair + waste;
        let mut memory = match &options.memory_file {
            Some(path) => Memory::in_file(path, options.regions)?,
            None => {
                let len = options.memory.unwrap_or(needed.max(1 << 24));
                Memory::new(len, options.regions, true)?
            }
        };
        let mut pairs = Vec::new();
        for _ in 0..options.pairs {
            pairs.push(Pair {
                receiver: Receiver::new(&mut memory, size, buffer_len, format)?,
                sender: Sender::new(&mut memory, size, longest, format)?,
            });
        }
        Ok(Self {
            tether: meeting.tie(link, memory, &mut pairs)?,
            format,
            pairs,
            current: 0,
            mac,
            max_frame,
            sent: Flow::default(),
            received: Flow::default(),
        })
    }

    /// The address to send from.
    pub(super) fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The longest frame that can be sent.
    pub(super) fn max_frame(&self) -> usize {
        self.max_frame
    }

    /// How many receive buffers each pair has, and how long each is.
    pub(super) fn receive_buffers(&self) -> (u16, u32) {
        let first = self.pairs.first();
        first.map_or((0, 0), |pair| pair.receiver.buffers())
    }

    /// The pair that sends at the moment.
    fn sender(&mut self) -> &mut Sender {
        let current = self.current % self.pairs.len().max(1);
        &mut self.pairs[current].sender
    }

    /// Lets the next pair send, if what was sent before has been taken: so its order stays.
    pub(super) fn turn(&mut self) -> Result<(), GuestError> {
        if self.pairs.len() > 1 {
            self.reclaim()?;
            if self.in_flight() == 0 {
                self.current = (self.current + 1) % self.pairs.len();
            }
        }
        Ok(())
    }

    /// The virtio features in use.
    pub(super) fn features(&self) -> u64 {
        self.format.0
    }

    /// How often a connection was made.
    pub(super) fn connections(&self) -> u64 {
        self.tether.connections()
    }

    /// What was given to the back-end.
    pub(super) fn sent(&self) -> Flow {
        self.sent
    }

    /// What came from the back-end.
    pub(super) fn received(&self) -> Flow {
        self.received
    }

    /// Frames that the back-end has not taken yet.
    pub(super) fn in_flight(&self) -> u16 {
        let each = self.pairs.iter().map(|pair| pair.sender.in_flight());
        each.fold(0, u16::saturating_add)
    }

    /// How long the back-end may take.
    pub(super) fn timeout(&self) -> Duration {
        self.tether.timeout()
    }

    /// Whether a signal says to stop.
    pub(super) fn stopped(&self) -> bool {
        self.tether.stopped()
    }

    /// Shows up to `budget` frames that arrived on each ring, at least the first `snap` bytes of each, and its
    /// length. Returns how many there were.
    pub(super) fn poll(
        &mut self,
        budget: usize,
        snap: usize,
        mut each: impl FnMut(&[u8], usize, &Request),
    ) -> Result<usize, GuestError> {
        let (mut bytes, mut count) = (0, 0);
        for pair in &mut self.pairs {
            count += pair.receiver.poll(budget, snap, |frame, len, request| {
                bytes += len as u64;
                each(frame, len, request);
            })?;
        }
        self.received.add(count as u64, bytes);
        Ok(count)
    }

    /// Whether there is room for another frame, in as many pieces as may be.
    pub(super) fn has_room(&mut self) -> Result<bool, GuestError> {
        Ok(self.sender().has_room()?)
    }

    /// Adds a frame, cut into pieces (see [`Sender::add`]); `false` if there is no room. It goes
    /// with the next [`Machine::flush`].
    pub(super) fn add(&mut self, frame: &[u8], cuts: &[usize]) -> Result<bool, GuestError> {
        self.add_with(&wrap::NONE, frame, cuts)
    }

    /// The same with something left to do.
    pub(super) fn add_with(
        &mut self,
        request: &Request,
        frame: &[u8],
        cuts: &[usize],
    ) -> Result<bool, GuestError> {
        let added = self.sender().add(request, frame, cuts)?;
        if added {
            self.sent.add(1, frame.len() as u64);
        }
        Ok(added)
    }

    /// Sends what was added.
    pub(super) fn flush(&mut self) {
        self.sender().queue.flush();
    }

    /// Sends up to `limit` frames like `frame`; see [`Sender::blast`].
    pub(super) fn blast(&mut self, frame: &[u8], limit: u64) -> Result<u64, GuestError> {
        let each = limit.div_ceil(self.pairs.len().max(1) as u64);
        let mut count = 0;
        for pair in &mut self.pairs {
            count += pair.sender.blast(frame, each.min(limit - count))?;
        }
        self.sent.add(count, count * frame.len() as u64);
        Ok(count)
    }

    /// Waits until all frames sent were taken. An error if for too long none is.
    pub(super) fn drain(&mut self) -> Result<(), GuestError> {
        let mut deadline = Instant::now() + self.timeout();
        while self.in_flight() > 0 && !self.stopped() {
            if self.reclaim()? > 0 {
                deadline = Instant::now() + self.timeout();
            } else if self.wait(deadline, true)? == Woken::Late {
                return Err(Fault::Stuck(self.timeout().as_secs()).into());
            }
        }
        Ok(())
    }

    /// Takes back what the back-end is done with; how many frames that were.
    fn reclaim(&mut self) -> Result<usize, GuestError> {
        let mut count = 0;
        for pair in &mut self.pairs {
            count += pair.sender.reclaim()?;
        }
        Ok(count)
    }

    /// Waits until a frame arrives, or, with `room`, until one was taken. Returns early now and
    /// then.
    pub(super) fn wait(&mut self, deadline: Instant, room: bool) -> Result<Woken, GuestError> {
        // Receive rings come first in each pair.
        let awaited = |ring: usize| room || ring.is_multiple_of(2);
        self.tether.wait(deadline, &mut self.pairs, awaited)
    }

    /// Stops the rings and hangs up.
    pub(super) fn stop(self) -> Result<(), GuestError> {
        self.tether.stop(&self.pairs)
    }
}

/// The features to accept.
pub(super) fn wanted(options: &Options) -> Wanted {
    let version_1 = Features::VERSION_1.bits();
    let offloads = if options.offloads {
        wrap::feature::ALL
    } else {
        0
    };
    let mut features = feature::MAC | feature::MTU | offloads;
    for (bit, refused) in [
        (version_1, options.no_version_1),
        (Features::EVENT_IDX.bits(), options.no_event_idx),
        (Features::INDIRECT_DESC.bits(), options.no_indirect),
        (feature::MRG_RXBUF, options.no_mrg_rxbuf),
    ] {
        features |= if refused { 0 } else { bit };
    }
    let mut needed = if options.no_version_1 { 0 } else { version_1 };
    for (bit, asked) in [
        (Features::RING_PACKED.bits(), options.packed),
        (Features::IN_ORDER.bits(), options.in_order),
    ] {
        needed |= if asked { bit } else { 0 };
    }
    Wanted {
        features: features | needed,
        needed,
        rings: Rings::pairs(options.pairs),
        inflight: false,
        protocol_features: !options.no_protocol_features,
    }
}

/// What the device's configuration space says (VIRTIO 1.2, 5.1.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NetSpace {
    mac: [u8; 6],
    mtu: u16,
}

impl NetSpace {
    const LEN: u32 = 12;

    fn parse(space: Vec<u8>) -> Option<Self> {
        match *space.as_slice() {
            [a, b, c, d, e, f, _, _, _, _, low, high] => Some(Self {
                mac: [a, b, c, d, e, f],
                mtu: u16::from_le_bytes([low, high]),
            }),
            _ => None,
        }
    }
}

/// The card's address and its longest frame.
fn card(space: Option<NetSpace>, format: Format, options: &Options) -> ([u8; 6], usize) {
    let with = |bit| space.filter(|_| format.0 & bit != 0);
    let mac = match options.mac {
        Some(Mac(mac)) => mac,
        None => with(feature::MAC).map_or_else(random_mac, |space| space.mac),
    };
    let frame = with(feature::MTU).map_or(USUAL_FRAME, |space| usize::from(space.mtu) + ETHERNET);
    (
        mac,
        frame.clamp(super::args::MIN_FRAME.into(), MAX_FRAME.into()),
    )
}

/// An address of our own: locally administered.
fn random_mac() -> [u8; 6] {
    let [a, b, c, d, e, ..] = fastrand::u64(..).to_le_bytes();
    [0x02, a, b, c, d, e]
}
