//! A guest's network card as a port (VIRTIO 1.2, 5.1.6): its transmit queues are what comes from
//! the port, its receive queues are what goes to it.
//!
//! The header before each frame (5.1.6) is judged on the way in. On the way out it asks for what
//! the sender asked for, if this guest takes that; otherwise the frame is completed first, which
//! costs a copy more.

use vvu::memory::{VolatileSlice, copy};

use super::burst::{BURST, Burst, Head, Heads, PLAIN, Pick};
use super::offload::{self, Offload};
use super::rings::{RingKind, Rings};
use super::scratch::Scratch;
use super::writer::Writer;
use super::{Stats, flow};
use crate::stats::Drop;
use crate::vring::{AnyRing, Chain, Format, RingOf, Segments, Taken, with};
use crate::wake::Quiet;

/// Length of the longest header: with the number of merged buffers, at offset 10.
const HEADER: usize = 12;

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
            let (kind, enabled) = (vhost.kind, vhost.enabled);
            let received = with!(vhost.ring.of_format(), ring => {
                let received = receive(ring, kind, enabled, heads, stats, &mut each);
                release(ring, &mut vhost.lull, received);
                received
            });
            worked |= received;
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

/// Takes what a guest has sent, shows it to `each`, and gives it back. Returns whether there was
/// something.
#[inline]
fn receive<F: Format>(
    ring: &mut RingOf<F>,
    kind: RingKind,
    enabled: bool,
    heads: &mut Heads,
    stats: &Stats,
    each: &mut impl FnMut(&Burst<'_>) -> bool,
) -> bool {
    let taken = ring.take_burst(BURST);
    if taken == 0 {
        return false;
    }
    if enabled {
        let refused = read_heads(ring.taken(), kind, heads);
        let burst = Burst::of_ring(heads, ring.taken(), kind.header);
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
    ring.give_back_read();
    true
}

/// Rounds without a new frame after which a guest hears that its frames were sent.
const LULL: u8 = 32;

/// Tells a guest that its frames were sent, but not each one by itself: a guest whose frames are
/// taken as fast as it makes them would be interrupted for every one. It hears of a quarter of
/// its ring at a time, or as soon as it pauses.
#[inline]
fn release<F: Format>(ring: &mut RingOf<F>, lull: &mut u8, worked: bool) {
    let waiting = ring.unpublished();
    if waiting == 0 {
        return;
    }
    *lull = if worked { 0 } else { lull.saturating_add(1) };
    if *lull >= LULL || waiting > ring.size() / 4 || ring.failed().is_some() {
        ring.publish();
        *lull = 0;
    }
}

/// Copies the heads of all frames that were taken.
#[inline]
fn read_heads(taken: &Taken, kind: RingKind, heads: &mut Heads) -> Refused {
    let mut refused = Refused::default();
    heads.clear();
    for (item, chain) in taken.chains().iter().enumerate() {
        let read = match taken.readable_whole(chain) {
            Some(bytes) if bytes.len() > kind.header => read_whole(item as u16, bytes, kind, heads),
            _ => read_pieces(item as u16, taken, chain, kind, heads),
        };
        match read {
            Ok(()) => {}
            Err(Drop::TooLong) => refused.too_long += 1,
            Err(Drop::BadOffload) => refused.bad_offload += 1,
            Err(_) => refused.truncated += 1,
        }
    }
    refused
}

/// A frame in one piece with its header: what most drivers make of a short one.
#[inline]
fn read_whole(
    item: u16,
    bytes: VolatileSlice<'_>,
    kind: RingKind,
    heads: &mut Heads,
) -> Result<(), Drop> {
    let mut header = PLAIN;
    if kind.offloads {
        copy::read(bytes, &mut header);
    }
    let frame = bytes.offset(kind.header).map_err(|_| Drop::Truncated)?;
    heads.push_whole(item, frame, &header)
}

#[inline(never)]
fn read_pieces(
    item: u16,
    taken: &Taken,
    chain: &Chain,
    kind: RingKind,
    heads: &mut Heads,
) -> Result<(), Drop> {
    let len = (chain.read_len() as usize).saturating_sub(kind.header);
    let header = if kind.offloads {
        read_header(taken.readable(chain))
    } else {
        PLAIN
    };
    heads.push_pieces(item, len, taken.readable(chain), kind.header, &header)
}

/// A private copy of a frame's header. Of one that is cut short, the rest is zero.
fn read_header(pieces: Segments<'_>) -> [u8; offload::HEADER] {
    let mut header = PLAIN;
    let mut rest = &mut header[..];
    for piece in pieces {
        let copied = copy::read(piece, rest);
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
}

/// What became of frames to send.
#[derive(Default)]
struct Sent {
    packets: u64,
    bytes: u64,
    full: u64,
    small: u64,
}

impl VhostTx {
    pub(super) fn tx_burst(
        &mut self,
        burst: &Burst<'_>,
        picks: &[Pick],
        scratch: &mut Scratch,
    ) -> bool {
        let mut sent = Sent::default();
        let delivered = match self.rings.live.as_slice() {
            [] => false,
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
        sent: &mut Sent,
    ) -> bool {
        let live = self.rings.live.len();
        let mut queues = [u16::MAX; BURST];
        for (queue, pick) in queues.iter_mut().zip(picks) {
            if let Some(head) = burst.heads().get(usize::from(pick.frame)) {
                let chosen = flow::hash(head.bytes()) as usize % live;
                *queue = self.rings.live.get(chosen).copied().unwrap_or(u16::MAX);
            }
        }
        let mut mine = [Pick::default(); BURST];
        for start in 0..picks.len().min(BURST) {
            let queue = queues[start];
            if queue == u16::MAX {
                continue;
            }
            let mut count = 0;
            for (other, pick) in queues.iter_mut().zip(picks).skip(start) {
                if *other == queue {
                    *other = u16::MAX;
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
        sent: &mut Sent,
    ) -> bool {
        let Rings {
            all, stats, name, ..
        } = &mut self.rings;
        let Some(vhost) = all.get_mut(place) else {
            return false;
        };
        let kind = vhost.kind;
        with!(vhost.ring.of_format(), ring => send(ring, kind, burst, picks, scratch, sent));
        if !vhost.check(name, stats) {
            self.rings.refresh();
        }
        true
    }
}

/// Puts frames into the next chains of a ring.
#[inline]
fn send<F: Format>(
    ring: &mut RingOf<F>,
    kind: RingKind,
    burst: &Burst<'_>,
    picks: &[Pick],
    scratch: &mut Scratch,
    sent: &mut Sent,
) {
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
        if kind.accepts.takes(head.offload()) {
            put(ring, kind, burst, head, sent);
        } else {
            let fits = scratch.finish(burst, head, |frame| {
                let body = std::iter::once(frame);
                put_slowly(ring, kind, &Offload::NONE, &[], body, frame.len(), sent);
            });
            sent.small += u64::from(!fits);
        }
    }
    ring.finish();
}

/// Puts one frame, as its sender made it, into the next chains.
#[inline]
fn put<F: Format>(
    ring: &mut RingOf<F>,
    kind: RingKind,
    burst: &Burst<'_>,
    head: &Head,
    sent: &mut Sent,
) {
    let len = head.frame_len();
    let all = kind.header + len;
    let Some(room) = whole(ring, all) else {
        let (offload, first) = (head.offload(), head.bytes());
        return put_slowly(ring, kind, offload, first, burst.body(head), len, sent);
    };
    let mut room = Room(room);
    room.put(&header(head.offload(), 1)[..kind.header]);
    room.put(head.bytes());
    if len > head.bytes().len() {
        burst.body(head).for_each(|piece| room.copy(piece));
    }
    ring.give_back(all as u32);
    sent.packets += 1;
    sent.bytes += len as u64;
}

/// The next chain, if it holds `len` bytes in one piece.
#[inline]
fn whole<F: Format>(ring: &RingOf<F>, len: usize) -> Option<VolatileSlice<'_>> {
    let chain = ring.chains().first()?;
    let bytes = ring.taken().writable_whole(chain)?;
    (bytes.len() >= len).then_some(bytes)
}

/// What is left of a piece that is being filled.
struct Room<'r>(VolatileSlice<'r>);

impl Room<'_> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        let done = copy::write(bytes, self.0);
        self.skip(done);
    }

    #[inline]
    fn copy(&mut self, from: VolatileSlice<'_>) {
        let done = copy::across(from, self.0);
        self.skip(done);
    }

    #[inline]
    fn skip(&mut self, done: usize) {
        if let Ok(rest) = self.0.offset(done) {
            self.0 = rest;
        }
    }
}

/// Puts one frame of `len` bytes, `first` and then `body`, into the next chains, of whatever
/// sizes and pieces.
#[inline(never)]
fn put_slowly<'b, F: Format>(
    ring: &mut RingOf<F>,
    kind: RingKind,
    offload: &Offload,
    first: &[u8],
    body: impl Iterator<Item = VolatileSlice<'b>>,
    len: usize,
    sent: &mut Sent,
) {
    let all = kind.header + len;
    let mut fit = fit(ring, kind, all);
    if matches!(fit, Fit::Full) && ring.has_used() {
        // A burst of long frames takes more chains than a ring hands out at once.
        ring.finish();
        fit = self::fit(ring, kind, all);
    }
    match fit {
        Fit::Chains(chains) => {
            let mut writer = Writer::new(ring.taken(), chains);
            writer.bytes(&header(offload, chains)[..kind.header]);
            writer.bytes(first);
            for piece in body {
                writer.copy(piece);
            }
            give_back(ring, chains, all);
            sent.packets += 1;
            sent.bytes += len as u64;
        }
        Fit::Full => sent.full += 1,
        Fit::Small => sent.small += 1,
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

enum Fit {
    /// The next so many chains hold it.
    Chains(usize),
    /// Not enough chains.
    Full,
    /// The next chain is too small and the only one that may be used.
    Small,
}

/// How many of the next chains `len` bytes take. Nothing is written before this is known, so a
/// frame that does not fit leaves no trace.
fn fit<F: Format>(ring: &mut RingOf<F>, kind: RingKind, len: usize) -> Fit {
    let mut room = 0;
    let mut chains = 0;
    loop {
        if ring.chains().len() <= chains && ring.take_burst(1) == 0 {
            return Fit::Full;
        }
        let Some(chain) = ring.chains().get(chains) else {
            return Fit::Full;
        };
        let more = chain.write_len() as usize;
        room += more;
        chains += 1;
        if room >= len {
            return Fit::Chains(chains);
        }
        // A buffer without room for the header is against 5.1.6.3.1; it would never be used up.
        if !kind.mergeable || more < kind.header {
            return Fit::Small;
        }
    }
}

/// Gives back the next `chains` chains, filled with `len` bytes in all.
fn give_back<F: Format>(ring: &mut RingOf<F>, chains: usize, len: usize) {
    let mut left = len as u32;
    for _ in 0..chains {
        let filled = ring.chains().first().map_or(0, |c| c.write_len().min(left));
        left -= filled;
        ring.give_back(filled);
    }
}
