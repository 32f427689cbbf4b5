//! A guest's network card as a port (VIRTIO 1.2, 5.1.6): its transmit queues are what comes from
//! the port, its receive queues are what goes to it.
//!
//! The header before each frame (5.1.6) is judged on the way in. On the way out it asks for what
//! the sender asked for, if this guest takes that; otherwise the frame is completed first, which
//! costs a copy more.

use vvu::memory::VolatileSlice;

use super::burst::{BURST, Burst, HEAD, Heads, PLAIN, Pick};
use super::flow;
use super::offload::{self, Offload};
use super::rings::{RingKind, Rings, Vhost};
use super::scratch::Scratch;
use super::steering::{Left, NOWHERE, Policy};
use crate::stats::Drop;
use crate::vring::{Ring, Segments};
use crate::wake::Quiet;

/// Length of the longest header without a hash: with the number of merged buffers, at offset 10.
const HEADER: usize = 12;
/// What HASH_REPORT adds to it.
const REPORT: usize = 8;

/// What comes from a guest.
#[derive(Debug)]
pub struct VhostRx {
    /// Its transmit queues (odd indices).
    pub rings: Rings,
}

/// Frames dropped while a burst was taken in.
#[derive(Default)]
struct Refused {
    truncated: u64,
    too_long: u64,
    bad_offload: u64,
}

impl VhostRx {
    pub(super) fn rx_burst(
        &mut self,
        heads: &mut Heads,
        mut each: impl FnMut(&Burst<'_>) -> bool,
    ) -> bool {
        let Rings {
            all, stats, name, ..
        } = &mut self.rings;
        let mut worked = false;
        let mut broke = false;
        for vhost in all.iter_mut().filter(|vhost| !vhost.broken) {
            let taken = vhost.ring.take_burst(BURST);
            if taken > 0 {
                worked = true;
                let skip = vhost.kind.header;
                let ring = &mut vhost.ring;
                if vhost.enabled {
                    let refused = read_heads(ring, vhost.kind, heads);
                    let burst = Burst::of_ring(heads, ring, skip);
                    if !burst.is_empty() {
                        stats.rx_packets.add(burst.len() as u64);
                        stats.rx_bytes.add(burst.bytes());
                        each(&burst);
                    }
                    stats.dropped(Drop::Truncated, refused.truncated);
                    stats.dropped(Drop::TooLong, refused.too_long);
                    stats.dropped(Drop::BadOffload, refused.bad_offload);
                } else {
                    stats.dropped(Drop::Disabled, taken as u64);
                }
                for _ in 0..taken {
                    ring.give_back(0);
                }
                ring.settle();
            }
            release(vhost, taken > 0);
            broke |= !vhost.check(name, stats);
        }
        if broke {
            self.rings.refresh();
        }
        worked
    }

    pub(super) fn enable_kicks(&mut self) -> Quiet {
        let mut quiet = Quiet::Kicked;
        for vhost in self.rings.all.iter_mut().filter(|vhost| !vhost.broken) {
            vhost.ring.publish();
            quiet = quiet.and(if vhost.ring.enable_kicks() {
                Quiet::Busy
            } else if vhost.watch.is_polled() {
                Quiet::Polled
            } else {
                Quiet::Kicked
            });
        }
        quiet
    }

    pub(super) fn disable_kicks(&mut self) {
        for vhost in self.rings.all.iter_mut().filter(|vhost| !vhost.broken) {
            vhost.ring.disable_kicks();
        }
    }
}

/// Rounds without a new frame after which a guest hears that its frames were sent.
const LULL: u8 = 32;

/// Tells a guest that its frames were sent, but not each one by itself: a guest whose frames are
/// taken as fast as it makes them would be interrupted for every one. It hears of a quarter of
/// its ring at a time, or as soon as it pauses.
#[inline]
fn release(vhost: &mut Vhost, worked: bool) {
    let waiting = vhost.ring.unpublished();
    if waiting == 0 {
        return;
    }
    vhost.lull = if worked {
        0
    } else {
        vhost.lull.saturating_add(1)
    };
    if vhost.lull >= LULL || waiting > vhost.ring.size() / 4 || vhost.ring.failed().is_some() {
        vhost.ring.publish();
        vhost.lull = 0;
    }
}

/// Copies the heads of all frames that `ring` has taken.
#[inline]
fn read_heads(ring: &Ring, kind: RingKind, heads: &mut Heads) -> Refused {
    let mut refused = Refused::default();
    heads.clear();
    for (item, chain) in ring.chains().iter().enumerate() {
        let len = (chain.read_len() as usize).saturating_sub(kind.header);
        let header = if kind.offloads {
            read_header(ring.readable(chain))
        } else {
            PLAIN
        };
        let pieces = ring.readable(chain);
        match heads.push(item as u16, len, pieces, kind.header, &header) {
            Ok(()) => {}
            Err(Drop::TooLong) => refused.too_long += 1,
            Err(Drop::BadOffload) => refused.bad_offload += 1,
            Err(_) => refused.truncated += 1,
        }
    }
    refused
}

/// A private copy of a frame's header. Of one that is cut short, the rest is zero.
#[inline]
fn read_header(pieces: Segments<'_>) -> [u8; offload::HEADER] {
    let mut header = PLAIN;
    let mut rest = &mut header[..];
    for piece in pieces {
        let copied = piece.copy_to(rest);
        rest = rest.get_mut(copied..).unwrap_or(&mut []);
        if rest.is_empty() {
            break;
        }
    }
    header
}

/// What goes to a guest.
#[derive(Debug)]
pub struct VhostTx {
    /// Its receive queues (even indices).
    pub rings: Rings,
    /// What it asked for by its control queue.
    pub(super) policy: Option<Box<Policy>>,
}

/// What became of frames to send.
#[derive(Default)]
pub(super) struct Sent<'p> {
    pub(super) packets: u64,
    pub(super) bytes: u64,
    full: u64,
    pub(super) small: u64,
    left: Left,
    /// What to tell the guest of each frame.
    policy: Option<&'p Policy>,
}

impl VhostTx {
    /// With these rings, for a guest that has not asked for anything.
    pub fn new(rings: Rings) -> Self {
        Self {
            rings,
            policy: None,
        }
    }

    pub(super) fn tx_burst(
        &mut self,
        burst: &Burst<'_>,
        picks: &[Pick],
        scratch: &mut Scratch,
    ) -> bool {
        let mut sent = Sent::default();
        let delivered = match self.rings.live.as_slice() {
            [] => false,
            _ if self.policy.is_some() => self.steer(burst, picks, scratch, &mut sent),
            [only] => {
                let only = usize::from(*only);
                self.deliver(only, burst, picks, scratch, &mut sent)
            }
            _ => self.spread(burst, picks, scratch, &mut sent),
        };
        let stats = &self.rings.stats;
        if delivered {
            stats.tx_packets.add(sent.packets);
            stats.tx_bytes.add(sent.bytes);
            stats.dropped(Drop::RingFull, sent.full);
            stats.dropped(Drop::SmallBuffer, sent.small);
            stats.dropped(Drop::Filtered, sent.left.filtered);
            stats.dropped(Drop::NoRing, sent.left.no_ring);
        } else {
            stats.dropped(Drop::NoRing, picks.len() as u64);
        }
        delivered
    }

    /// Chooses a ring for each flow, then serves ring after ring: within a flow, order stays.
    fn spread(
        &mut self,
        burst: &Burst<'_>,
        picks: &[Pick],
        scratch: &mut Scratch,
        sent: &mut Sent<'_>,
    ) -> bool {
        let live = self.rings.live.len();
        let mut queues = [NOWHERE; BURST];
        for (queue, pick) in queues.iter_mut().zip(picks) {
            if let Some(head) = burst.heads().get(usize::from(pick.frame)) {
                let chosen = flow::hash(head.bytes()) as usize % live;
                *queue = self.rings.live.get(chosen).copied().unwrap_or(NOWHERE);
            }
        }
        self.sort(queues, burst, picks, scratch, sent)
    }

    /// Serves the rings as the guest has asked for.
    fn steer(
        &mut self,
        burst: &Burst<'_>,
        picks: &[Pick],
        scratch: &mut Scratch,
        sent: &mut Sent<'_>,
    ) -> bool {
        let Some(mut policy) = self.policy.take() else {
            return false;
        };
        let mut queues = [NOWHERE; BURST];
        let mut steered = Sent {
            left: policy.choose(&self.rings, burst, picks, &mut queues),
            policy: Some(&policy),
            ..Sent::default()
        };
        self.sort(queues, burst, picks, scratch, &mut steered);
        *sent = Sent {
            policy: None,
            ..steered
        };
        self.policy = Some(policy);
        true
    }

    /// Serves ring after ring with the picks that `queues` has for it.
    fn sort(
        &mut self,
        mut queues: [u16; BURST],
        burst: &Burst<'_>,
        picks: &[Pick],
        scratch: &mut Scratch,
        sent: &mut Sent<'_>,
    ) -> bool {
        let mut mine = [Pick::default(); BURST];
        for start in 0..picks.len().min(BURST) {
            let queue = queues[start];
            if queue == NOWHERE {
                continue;
            }
            let mut count = 0;
            for (other, pick) in queues.iter_mut().zip(picks).skip(start) {
                if *other == queue {
                    *other = NOWHERE;
                    mine[count] = *pick;
                    count += 1;
                }
            }
            self.deliver(usize::from(queue), burst, &mine[..count], scratch, sent);
        }
        true
    }

    fn deliver(
        &mut self,
        place: usize,
        burst: &Burst<'_>,
        picks: &[Pick],
        scratch: &mut Scratch,
        sent: &mut Sent<'_>,
    ) -> bool {
        let Rings {
            all, stats, name, ..
        } = &mut self.rings;
        let Some(vhost) = all.get_mut(place) else {
            return false;
        };
        if vhost.kind.header > HEADER {
            send_with_hash(vhost, burst, picks, scratch, sent);
        } else {
            send(vhost, burst, picks, scratch, sent);
        }
        if !vhost.check(name, stats) {
            self.rings.refresh();
        }
        true
    }
}

/// Puts frames into the next chains of a ring.
#[inline]
fn send(
    vhost: &mut Vhost,
    burst: &Burst<'_>,
    picks: &[Pick],
    scratch: &mut Scratch,
    sent: &mut Sent<'_>,
) {
    let Vhost { ring, kind, .. } = vhost;
    ring.take_burst(picks.len());
    for pick in picks {
        let Some(mut head) = burst.heads().get(usize::from(pick.frame)) else {
            continue;
        };
        let swapped;
        if pick.swap {
            swapped = head.swapped();
            head = &swapped;
        }
        let offload = head.offload();
        if kind.accepts.takes(offload) {
            let len = head.frame_len();
            put(
                ring,
                *kind,
                offload,
                head.bytes(),
                burst.body(head),
                len,
                sent,
            );
        } else {
            let fits = scratch.finish(burst, head, |frame| {
                let body = std::iter::once(frame);
                put(ring, *kind, &Offload::NONE, &[], body, frame.len(), sent);
            });
            sent.small += u64::from(!fits);
        }
    }
    ring.finish();
}

/// Puts frames into the next chains of a ring, with a hash of their flow behind each header.
fn send_with_hash(
    vhost: &mut Vhost,
    burst: &Burst<'_>,
    picks: &[Pick],
    scratch: &mut Scratch,
    sent: &mut Sent<'_>,
) {
    let Vhost { ring, kind, .. } = vhost;
    let accepts = kind.accepts;
    // To what fills buffers, the hash is a part of the frame.
    let kind = RingKind {
        header: HEADER,
        ..*kind
    };
    let before = sent.packets;
    ring.take_burst(picks.len());
    for pick in picks {
        let Some(mut head) = burst.heads().get(usize::from(pick.frame)) else {
            continue;
        };
        let swapped;
        if pick.swap {
            swapped = head.swapped();
            head = &swapped;
        }
        let report = sent.policy.map(|policy| policy.report(pick));
        let mut first = [0; REPORT + HEAD];
        let (hash, rest) = first.split_at_mut(REPORT);
        hash.copy_from_slice(&report.unwrap_or_default().to_bytes());
        if accepts.takes(head.offload()) {
            let (offload, len) = (head.offload(), REPORT + head.frame_len());
            let bytes = head.bytes();
            rest[..bytes.len()].copy_from_slice(bytes);
            let first = &first[..REPORT + bytes.len()];
            put(ring, kind, offload, first, burst.body(head), len, sent);
        } else {
            let fits = scratch.finish(burst, head, |frame| {
                let (body, len) = (std::iter::once(frame), REPORT + frame.len());
                put(ring, kind, &Offload::NONE, hash, body, len, sent);
            });
            sent.small += u64::from(!fits);
        }
    }
    sent.bytes -= REPORT as u64 * (sent.packets - before);
    ring.finish();
}

/// Puts one frame of `len` bytes, `first` and then `body`, into the next chains.
#[inline]
fn put<'b>(
    ring: &mut Ring,
    kind: RingKind,
    offload: &Offload,
    first: &[u8],
    body: impl Iterator<Item = VolatileSlice<'b>>,
    len: usize,
    sent: &mut Sent<'_>,
) {
    let all = kind.header + len;
    let mut room = room_for(ring, kind, all);
    if matches!(room, Room::Full) && ring.has_used() {
        // A burst of long frames takes more chains than a ring hands out at once.
        ring.finish();
        room = room_for(ring, kind, all);
    }
    match room {
        Room::Chains(chains) => {
            let mut writer = Writer::new(ring, chains);
            writer.bytes(&header(offload, chains)[..kind.header]);
            writer.bytes(first);
            for piece in body {
                writer.copy(piece);
            }
            give_back(ring, chains, all);
            sent.packets += 1;
            sent.bytes += len as u64;
        }
        Room::Full => sent.full += 1,
        Room::Small => sent.small += 1,
    }
}

/// The header of a frame (5.1.6). Rings without num_buffers use the first 10 bytes.
#[inline]
fn header(offload: &Offload, chains: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..offload::HEADER].copy_from_slice(&offload.emit());
    header[offload::HEADER..].copy_from_slice(&(chains as u16).to_le_bytes());
    header
}

enum Room {
    /// The next so many chains hold it.
    Chains(usize),
    /// Not enough chains.
    Full,
    /// The next chain is too small and the only one that may be used.
    Small,
}

/// How many of the next chains `len` bytes take. Nothing is written before this is known, so a
/// frame that does not fit leaves no trace.
#[inline]
fn room_for(ring: &mut Ring, kind: RingKind, len: usize) -> Room {
    let mut room = 0;
    let mut chains = 0;
    loop {
        if ring.chains().len() <= chains && ring.take_burst(1) == 0 {
            return Room::Full;
        }
        let Some(chain) = ring.chains().get(chains) else {
            return Room::Full;
        };
        let more = chain.write_len() as usize;
        room += more;
        chains += 1;
        if room >= len {
            return Room::Chains(chains);
        }
        // A buffer without room for the header is against 5.1.6.3.1; it would never be used up.
        if !kind.mergeable || more < kind.header {
            return Room::Small;
        }
    }
}

/// Gives back the next `chains` chains, filled with `len` bytes in all.
#[inline]
fn give_back(ring: &mut Ring, chains: usize, len: usize) {
    let mut left = len as u32;
    for _ in 0..chains {
        let filled = ring.chains().first().map_or(0, |c| c.write_len().min(left));
        left -= filled;
        ring.give_back(filled);
    }
}

/// Writes into consecutive chains as if they were one buffer.
struct Writer<'r> {
    ring: &'r Ring,
    chains: std::ops::Range<usize>,
    segments: Option<Segments<'r>>,
    now: Option<VolatileSlice<'r>>,
}

impl<'r> Writer<'r> {
    #[inline]
    fn new(ring: &'r Ring, chains: usize) -> Self {
        let mut this = Self {
            ring,
            chains: 0..chains,
            segments: None,
            now: None,
        };
        this.advance();
        this
    }

    /// On to the next segment that is not full.
    #[inline]
    fn advance(&mut self) {
        loop {
            self.now = self.segments.as_mut().and_then(Iterator::next);
            if self.now.is_some() {
                return;
            }
            let chain = self.chains.next().and_then(|n| self.ring.chains().get(n));
            let Some(chain) = chain else {
                return;
            };
            self.segments = Some(self.ring.writable(chain));
        }
    }

    /// `len` bytes of the current segment were written.
    #[inline]
    fn wrote(&mut self, now: VolatileSlice<'r>, len: usize) {
        match now.offset(len) {
            Ok(rest) if !rest.is_empty() => self.now = Some(rest),
            _ => self.advance(),
        }
    }

    /// Copies our own bytes.
    #[inline]
    fn bytes(&mut self, mut bytes: &[u8]) {
        while let Some(now) = self.now
            && !bytes.is_empty()
        {
            let (part, rest) = bytes.split_at(bytes.len().min(now.len()));
            now.copy_from(part);
            self.wrote(now, part.len());
            bytes = rest;
        }
    }

    /// Copies from one guest's memory to another's (or within one: overlap is allowed).
    #[inline]
    fn copy(&mut self, mut from: VolatileSlice<'_>) {
        while let Some(now) = self.now
            && !from.is_empty()
        {
            let len = from.len().min(now.len());
            from.copy_to_volatile_slice(now);
            self.wrote(now, len);
            match from.offset(len) {
                Ok(rest) => from = rest,
                Err(_) => return,
            }
        }
    }
}
