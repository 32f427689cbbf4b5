//! What goes to a guest: frames into the chains of its receive queues.

use vvu::memory::{VolatileSlice, copy};

use super::HEADER;
use crate::port::burst::{BURST, Burst, Pick};
use crate::port::flow;
use crate::port::head::{Edit, Head};
use crate::port::offload::{self, Offload};
use crate::port::rings::{RingKind, Rings};
use crate::port::scratch::{Scratch, Shown};
use crate::port::steering::{NOWHERE, Policy, send_with_hash};
use crate::port::writer::Writer;
use crate::stats::Drop;
use crate::vring::{AnyRing, Format, RingOf, with};

/// What goes to a guest.
#[derive(Debug)]
pub struct VhostTx {
    /// Its receive queues (even indices).
    pub rings: Rings,
    /// What it asked for by its control queue.
    pub(in crate::port) policy: Option<Box<Policy>>,
}

/// What became of frames to send.
#[derive(Default)]
pub(in crate::port) struct Sent {
    pub(in crate::port) packets: u64,
    pub(in crate::port) bytes: u64,
    full: u64,
    pub(in crate::port) small: u64,
}

impl VhostTx {
    /// With these rings, for a guest that has not asked for anything.
    pub fn new(rings: Rings) -> Self {
        Self {
            rings,
            policy: None,
        }
    }

    pub(in crate::port) fn tx_burst(
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
        let mut queues = [NOWHERE; BURST];
        for (queue, pick) in queues.iter_mut().zip(picks) {
            if let Some(head) = burst.heads().get(usize::from(pick.frame)) {
                let chosen = flow::hash(head.bytes()) as usize % live;
                *queue = self.rings.live.get(chosen).copied().unwrap_or(NOWHERE);
            }
        }
        self.sort(queues, burst, picks, scratch, sent);
        true
    }

    /// Serves ring after ring with the picks for it: `queues` has its place for each.
    pub(in crate::port) fn sort(
        &mut self,
        mut queues: [u16; BURST],
        burst: &Burst<'_>,
        picks: &[Pick],
        scratch: &mut Scratch,
        sent: &mut Sent,
    ) {
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
        if kind.header > HEADER {
            let policy = self.policy.as_deref();
            with!(vhost.ring.of_format(), ring => {
                send_with_hash(ring, kind, policy, burst, picks, scratch, sent);
            });
        } else {
            with!(vhost.ring.of_format(), ring => send(ring, kind, burst, picks, scratch, sent));
        }
        if !vhost.check(name, stats) {
            self.rings.refresh();
        }
        true
    }
}

/// Puts frames into the next chains of a ring. Not inlined, for the same reason as what receives.
#[inline(never)]
fn send<F: Format>(
    ring: &mut RingOf<F>,
    kind: RingKind,
    burst: &Burst<'_>,
    picks: &[Pick],
    scratch: &mut Scratch,
    sent: &mut Sent,
) {
    ring.expect(picks.len());
    ring.take_burst(picks.len());
    let mut next = 0;
    loop {
        // Most frames fill one buffer each.
        let (before, mut bytes) = (next, 0);
        ring.fill_each(|room| {
            let filled = fill(room, &kind, burst, picks.get(next)?)?;
            next += 1;
            bytes += u64::from(filled);
            Some(filled)
        });
        let frames = (next - before) as u64;
        sent.packets += frames;
        sent.bytes += bytes - frames * kind.header as u64;
        let Some(pick) = picks.get(next) else {
            break;
        };
        next += 1;
        send_slowly(ring, kind, burst, pick, scratch, sent);
    }
    ring.finish();
    // What comes next may come alone, and be waited for.
    ring.look_ahead();
}

/// Puts a frame into `room`, if it fits as it is; returns the length with its header.
#[inline(always)]
fn fill(room: VolatileSlice<'_>, kind: &RingKind, burst: &Burst<'_>, pick: &Pick) -> Option<u32> {
    let head = burst.heads().get(usize::from(pick.frame))?;
    let all = kind.header + head.frame_len();
    let swap = pick.edit == Edit::Swap;
    let simple = swap || pick.edit == Edit::Keep;
    if all > room.len() || !simple || !kind.accepts.takes(head.offload()) {
        return None;
    }
    // Where the header is shorter, the frame begins inside it.
    if head.offload().is_none() {
        copy::write_array(ONE_PLAIN, room);
    } else {
        copy::write_array(header(head.offload(), 1), room);
    }
    let at = kind.header + copy::write_at(head.bytes(), room, kind.header);
    if swap {
        copy::write_array_at(head.swapped_addresses(), room, kind.header);
    }
    if at < all {
        fill_body(room, at, burst, head);
    }
    Some(all as u32)
}

/// Puts what follows a frame's head to `at` in `room`.
#[inline(never)]
fn fill_body(room: VolatileSlice<'_>, mut at: usize, burst: &Burst<'_>, head: &Head) {
    if let Some(body) = burst.body_whole(head) {
        copy::across_at(body, room, at);
    } else {
        let body = burst.body(head);
        body.for_each(|piece| at += copy::across_at(piece, room, at));
    }
}

/// Sends a frame that has to be changed, or that goes into several buffers, or nowhere.
#[inline(never)]
fn send_slowly<F: Format>(
    ring: &mut RingOf<F>,
    kind: RingKind,
    burst: &Burst<'_>,
    pick: &Pick,
    scratch: &mut Scratch,
    sent: &mut Sent,
) {
    let Some(head) = burst.picked(pick) else {
        return;
    };
    let fits = scratch.show(burst, &head, kind.accepts, |frame| {
        put(ring, kind, frame, sent)
    });
    sent.small += u64::from(!fits);
}

/// Puts one frame into the next chains, of whatever sizes and pieces.
pub(in crate::port) fn put<F: Format>(
    ring: &mut RingOf<F>,
    kind: RingKind,
    frame: Shown<'_>,
    sent: &mut Sent,
) {
    let Shown {
        offload,
        first,
        body,
        len,
    } = frame;
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

/// The header of a frame in one buffer that asks for nothing.
const ONE_PLAIN: [u8; HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// The header of a frame (5.1.6). Rings without num_buffers use the first 10 bytes.
#[inline]
fn header(offload: &Offload, chains: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    if !offload.is_none() {
        header[..offload::HEADER].copy_from_slice(&offload.emit());
    }
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
