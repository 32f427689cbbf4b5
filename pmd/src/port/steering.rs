//! What a guest asked for about frames to it: which it wants, which queue they go to, and what it
//! is told of their flow. Only for guests with a control queue; all others have no [`Policy`].

use super::burst::{BURST, Burst, Pick};
use super::filter::Filter;
use super::flow;
use super::head::{HEAD, Head};
use super::offload::Accepts;
use super::rings::{RingKind, Rings, Vhost};
use super::rss::{FlowHash, Report};
use super::scratch::{Scratch, Shown};
use super::vhost::{HEADER, Sent, VhostTx, put};
use crate::stats::Drop;
use crate::vring::{Format, RingOf};

/// The place of a ring that is none.
pub(super) const NOWHERE: u16 = u16::MAX;

/// How queues are chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Steering {
    /// By flow, among the first so many pairs.
    Automatic {
        /// Pairs in use.
        pairs: u16,
    },
    /// By the guest's hash and table.
    Table {
        /// Numbers of pairs; a power of two of them.
        table: Box<[u16]>,
        /// The pair for frames without a hash.
        unclassified: u16,
    },
}

/// A guest's wishes.
#[derive(Debug)]
pub struct Policy {
    filter: Filter,
    steering: Steering,
    hash: Option<FlowHash>,
    /// Of the frames of the burst at hand.
    reports: Box<[Report; BURST]>,
}

/// What became of frames that no ring gets.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) filtered: u64,
    pub(super) no_ring: u64,
}

impl Policy {
    /// Of these parts.
    pub fn new(filter: Filter, steering: Steering, hash: Option<FlowHash>) -> Self {
        Self {
            filter,
            steering,
            hash,
            reports: Box::new([Report::default(); BURST]),
        }
    }

    /// What to tell of frame `pick`.
    pub(super) fn report(&self, pick: &Pick) -> Report {
        let report = self.reports.get(usize::from(pick.frame));
        report.copied().unwrap_or_default()
    }

    /// Chooses a place among `rings` for each of `picks`.
    pub(super) fn choose(
        &mut self,
        rings: &Rings,
        burst: &Burst<'_>,
        picks: &[Pick],
        places: &mut [u16; BURST],
    ) -> Left {
        let mut left = Left::default();
        for (place, pick) in places.iter_mut().zip(picks) {
            let Some(head) = burst.picked(pick) else {
                continue;
            };
            if !self.filter.wants(head.bytes()) {
                left.filtered += 1;
                continue;
            }
            if let (Some(hash), Some(report)) =
                (&self.hash, self.reports.get_mut(usize::from(pick.frame)))
            {
                *report = hash.of(head.bytes());
            }
            match self.place(rings, &head, self.report(pick)) {
                Some(chosen) => *place = chosen,
                None => left.no_ring += 1,
            }
        }
        left
    }

    fn place(&self, rings: &Rings, head: &Head, report: Report) -> Option<u16> {
        match &self.steering {
            Steering::Automatic { pairs } => {
                let end = 2 * u32::from(*pairs);
                let inside = |place: &u16| {
                    let ring = rings.all.get(usize::from(*place));
                    ring.is_some_and(|ring| u32::from(ring.index) < end)
                };
                // Places are in the order of rings.
                let live = rings.live.get(..rings.live.partition_point(inside))?;
                match live {
                    [] => None,
                    [only] => Some(*only),
                    _ => live
                        .get(flow::hash(head.bytes()) as usize % live.len())
                        .copied(),
                }
            }
            Steering::Table {
                table,
                unclassified,
            } => {
                let pair = match report.kind {
                    0 => *unclassified,
                    _ => *table.get(report.value as usize & table.len().checked_sub(1)?)?,
                };
                let index = |ring: &Vhost| u32::from(ring.index);
                let place = rings
                    .all
                    .binary_search_by_key(&(2 * u32::from(pair)), index);
                let place = place.ok()? as u16;
                rings.live.binary_search(&place).is_ok().then_some(place)
            }
        }
    }
}

impl VhostTx {
    /// Does from now on what the guest wants.
    pub fn obey(&mut self, policy: Option<Policy>, accepts: Accepts) {
        self.policy = policy.map(Box::new);
        for ring in &mut self.rings.all {
            ring.kind.accepts = accepts;
        }
    }

    /// Delivers to the rings that the guest has chosen what it wants.
    #[inline(never)]
    pub(super) fn steer(
        &mut self,
        burst: &Burst<'_>,
        picks: &[Pick],
        scratch: &mut Scratch,
        sent: &mut Sent,
    ) -> bool {
        let Some(policy) = &mut self.policy else {
            return false;
        };
        let mut places = [NOWHERE; BURST];
        let left = policy.choose(&self.rings, burst, picks, &mut places);
        let stats = &self.rings.stats;
        stats.dropped(Drop::Filtered, left.filtered);
        stats.dropped(Drop::NoRing, left.no_ring);
        self.sort(places, burst, picks, scratch, sent);
        true
    }
}

/// What HASH_REPORT adds to a header.
const REPORT: usize = 8;
/// That and the head of a frame, which may have become longer by a VLAN tag.
const FIRST: usize = REPORT + HEAD + 4;

/// Puts frames into the next chains of a ring, with a hash of their flow behind each header.
pub(super) fn send_with_hash<F: Format>(
    ring: &mut RingOf<F>,
    kind: RingKind,
    policy: Option<&Policy>,
    burst: &Burst<'_>,
    picks: &[Pick],
    scratch: &mut Scratch,
    sent: &mut Sent,
) {
    // To what fills buffers, the hash is the beginning of the frame.
    let plain = RingKind {
        header: HEADER,
        ..kind
    };
    let before = sent.packets;
    ring.take_burst(picks.len());
    for pick in picks {
        let Some(head) = burst.picked(pick) else {
            continue;
        };
        let report = policy.map(|policy| policy.report(pick)).unwrap_or_default();
        let mut first = [0; FIRST];
        first[..REPORT].copy_from_slice(&report.to_bytes());
        let fits = scratch.show(burst, &head, kind.accepts, |frame| {
            let end = REPORT + frame.first.len();
            // There is room for as much as a head holds.
            let Some(place) = first.get_mut(REPORT..end) else {
                sent.small += 1;
                return;
            };
            place.copy_from_slice(frame.first);
            let frame = Shown {
                first: &first[..end],
                len: REPORT + frame.len,
                ..frame
            };
            put(ring, plain, frame, sent);
        });
        sent.small += u64::from(!fits);
    }
    sent.bytes -= REPORT as u64 * (sent.packets - before);
    ring.finish();
}
