//! What comes from a guest: the chains of its transmit queues.

use vvu::memory::{VolatileSlice, copy};

use crate::port::Stats;
use crate::port::burst::{BURST, Burst};
use crate::port::head::{Heads, PLAIN};
use crate::port::offload;
use crate::port::rings::{RingKind, Rings};
use crate::stats::Drop;
use crate::vring::{AnyRing, Chain, Format, RingOf, Segments, Taken, with};

/// What comes from a guest.
#[derive(Debug)]
pub struct VhostRx {
    /// Its transmit queues (odd indices).
    pub rings: Rings,
    /// Place of the ring to begin with.
    first: usize,
}

/// Frames dropped while a burst was taken in.
#[derive(Default)]
struct Refused {
    truncated: u64,
    too_long: u64,
    bad_offload: u64,
}

impl VhostRx {
    /// What comes by these rings.
    pub fn new(rings: Rings) -> Self {
        Self { rings, first: 0 }
    }

    pub(in crate::port) fn rx_burst(
        &mut self,
        heads: &mut Heads,
        mut each: impl FnMut(&Burst<'_>) -> bool,
    ) -> bool {
        let Rings {
            all,
            polled,
            stats,
            name,
            ..
        } = &mut self.rings;
        // However many rings a port has, it gets no more than others in a round. The next one
        // goes on with the ring after the last that was served.
        let mut left = BURST;
        let mut broke = false;
        let first = if self.first < polled.len() {
            self.first
        } else {
            0
        };
        let (before, after) = polled.split_at(first);
        for (step, place) in after.iter().chain(before).enumerate() {
            let Some(vhost) = all.get_mut(usize::from(*place)) else {
                continue;
            };
            let (kind, enabled) = (vhost.kind, vhost.enabled);
            let received = with!(vhost.ring.of_format(), ring => {
                let received = receive(ring, left, kind, enabled, heads, stats, &mut each);
                release(ring, &mut vhost.lull, received > 0);
                received
            });
            vhost.rest.brought = vhost.rest.brought.wrapping_add(received as u32);
            left = left.saturating_sub(received);
            broke |= !vhost.check(name, stats);
            if left == 0 {
                let next = first + step + 1;
                self.first = if next < polled.len() {
                    next
                } else {
                    next - polled.len()
                };
                break;
            }
        }
        if broke {
            self.rings.refresh();
        }
        left < BURST
    }
}

/// Takes up to `most` frames that a guest has sent, shows them to `each`, and gives them back.
/// Returns how many there were. Not inlined: what is around it would take registers
/// from its loops.
#[inline(never)]
fn receive<F: Format>(
    ring: &mut RingOf<F>,
    most: usize,
    kind: RingKind,
    enabled: bool,
    heads: &mut Heads,
    stats: &Stats,
    each: &mut impl FnMut(&Burst<'_>) -> bool,
) -> usize {
    let taken = ring.take_burst(most);
    if taken == 0 {
        return 0;
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
    taken
}

/// Rounds without a new frame after which a guest hears that its frames were sent.
const LULL: u8 = 32;

/// Tells a guest that its frames were sent, but not of each one by itself: it would be interrupted
/// for every one if they are taken as fast as it makes them, and one that polls would wait for the
/// cache line each time. It hears of a quarter of its ring at a time, or as soon as it pauses.
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
    for (item, chain) in (0u16..).zip(taken.chains()) {
        let whole = taken.readable_whole(chain);
        if whole.is_some_and(|bytes| {
            is_plain(bytes, kind) && heads.push_plain(item, bytes, kind.header)
        }) {
            continue;
        }
        match read_pieces(item, taken, chain, kind, heads) {
            Ok(()) => {}
            Err(Drop::TooLong) => refused.too_long += 1,
            Err(Drop::BadOffload) => refused.bad_offload += 1,
            Err(_) => refused.truncated += 1,
        }
    }
    refused
}

/// Whether a frame's header asks for nothing.
#[inline]
fn is_plain(bytes: VolatileSlice<'_>, kind: RingKind) -> bool {
    !kind.offloads || copy::read_array(bytes) == Some(offload::NOTHING)
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
