//! Frames that are borrowed for one burst, with a private copy of their headers.
//!
//! Whoever decides about a frame reads [`Head`], which nobody else can change; the rest of the
//! frame stays where it is until it is copied to where it goes. The head is delivered from the
//! copy too, so what arrives is what was judged.

use std::borrow::Cow;

use vvu::memory::{VolatileSlice, copy};

use super::offload::{self, MAX_LARGE, Offload};
use crate::mempool::Mbuf;
use crate::stats::Drop;
use crate::vring::{Segments, Taken};

/// Most frames of a burst.
pub const BURST: usize = 64;

/// Bytes of a frame that are copied before anything is decided: enough for Ethernet, two VLAN
/// tags, IPv6 and TCP.
pub const HEAD: usize = 96;

/// Length of the longest frame: a jumbo packet of 9216 bytes, Ethernet header, two VLAN tags.
pub const MAX_FRAME: usize = 9216 + 14 + 8;

/// The header of a frame that asks for nothing.
pub(crate) const PLAIN: [u8; offload::HEADER] = [0; offload::HEADER];

/// Length of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;

/// Destination and source address of a frame, quickly compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Addresses {
    low: u64,
    high: u32,
}

impl Addresses {
    /// Destination address as a number, its first byte in the lowest bits.
    #[inline]
    pub fn destination(self) -> u64 {
        self.low & 0xffff_ffff_ffff
    }

    /// Source address, the same way.
    #[inline]
    pub fn source(self) -> u64 {
        self.low >> 48 | u64::from(self.high) << 16
    }
}

/// How a frame is changed on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Edit {
    /// Not at all.
    #[default]
    Keep,
    /// Source and destination address are exchanged.
    Swap,
    /// Its VLAN tag is taken off.
    Untag,
    /// It gets a VLAN tag with this identifier.
    Tag(u16),
    /// Its VLAN tag gets this identifier and keeps its priority.
    Retag(u16),
}

/// EtherType of a VLAN tag (IEEE 802.1Q, 9.6).
const VLAN: [u8; 2] = [0x81, 0];
/// Where a VLAN tag is, between the addresses and the EtherType.
const TAG: std::ops::Range<usize> = 12..16;

/// A private copy of a frame's first bytes. Aligned, so that a short frame is one line of a cache.
#[repr(align(64))]
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// With room for a VLAN tag.
    bytes: [u8; HEAD + TAG.end - TAG.start],
    copied: u8,
    /// Bytes of the frame where it came from that are not in its body.
    taken: u8,
    /// Which chain or buffer of the source it is.
    item: u16,
    len: u32,
    offload: Offload,
}

impl Head {
    const EMPTY: Self = Self {
        bytes: [0; HEAD + TAG.end - TAG.start],
        copied: 0,
        taken: 0,
        item: 0,
        len: 0,
        offload: Offload::NONE,
    };

    /// The bytes copied: all of a short frame.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        let copied = usize::from(self.copied).min(self.bytes.len());
        &self.bytes[..copied]
    }

    /// Length of the whole frame.
    #[inline]
    pub fn frame_len(&self) -> usize {
        self.len as usize
    }

    /// What its sender left to us.
    #[inline]
    pub fn offload(&self) -> &Offload {
        &self.offload
    }

    /// Which chain or parcel of the source it is.
    pub(crate) fn item(&self) -> usize {
        usize::from(self.item)
    }

    fn address(&self, at: usize) -> [u8; 6] {
        let mut address = [0; 6];
        address.copy_from_slice(&self.bytes[at..at + 6]);
        address
    }

    /// Destination address.
    #[inline]
    pub fn destination(&self) -> [u8; 6] {
        self.address(0)
    }

    /// Source address.
    #[inline]
    pub fn source(&self) -> [u8; 6] {
        self.address(6)
    }

    /// Both addresses.
    #[inline]
    pub fn addresses(&self) -> Addresses {
        let low = self.bytes.first_chunk().copied().unwrap_or_default();
        let high = self.bytes[8..].first_chunk().copied().unwrap_or_default();
        Addresses {
            low: u64::from_le_bytes(low),
            high: u32::from_le_bytes(high),
        }
    }

    /// Both addresses, exchanged.
    #[inline]
    pub(crate) fn swapped_addresses(&self) -> [u8; 12] {
        let addresses = self.addresses();
        let (source, destination) = (addresses.source(), addresses.destination());
        let mut swapped = [0; 12];
        swapped[..8].copy_from_slice(&(source | destination << 48).to_le_bytes());
        swapped[8..].copy_from_slice(&((destination >> 16) as u32).to_le_bytes());
        swapped
    }

    /// The same as it is delivered after `edit`. Tags are taken off frames that have one.
    pub fn edited(&self, edit: Edit) -> Self {
        let mut edited = *self;
        let tag = |vid: u16, priority: u8| {
            let [high, low] = vid.to_be_bytes();
            [VLAN[0], VLAN[1], priority & 0xf0 | high & 0xf, low]
        };
        match edit {
            Edit::Keep => {}
            Edit::Swap => {
                edited.bytes[..12].copy_from_slice(&self.swapped_addresses());
            }
            Edit::Untag => {
                edited.bytes.copy_within(TAG.end.., TAG.start);
                edited.resized(false);
            }
            Edit::Tag(vid) => {
                let end = edited.bytes.len() - TAG.len();
                edited.bytes.copy_within(TAG.start..end, TAG.end);
                edited.bytes[TAG].copy_from_slice(&tag(vid, 0));
                edited.resized(true);
            }
            Edit::Retag(vid) => edited.bytes[TAG].copy_from_slice(&tag(vid, self.bytes[14])),
        }
        edited
    }

    /// Everything after the addresses moved by a VLAN tag.
    fn resized(&mut self, longer: bool) {
        let tag = TAG.len() as u8;
        if longer {
            self.copied = self.copied.saturating_add(tag);
            self.len = self.len.saturating_add(tag.into());
        } else {
            self.copied = self.copied.saturating_sub(tag);
            self.len = self.len.saturating_sub(tag.into());
        }
        self.offload = self.offload.moved(longer, tag.into());
    }
}

/// Room for the heads of one burst, used again and again.
#[derive(Debug)]
pub struct Heads {
    heads: Box<[Head; BURST]>,
    len: usize,
}

impl Default for Heads {
    fn default() -> Self {
        Self {
            heads: Box::new([Head::EMPTY; BURST]),
            len: 0,
        }
    }
}

impl Heads {
    /// Forgets all heads.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// Adds the head of a frame in one piece, after `skip` other bytes, that asks for nothing: most
    /// frames. False, and nothing done, if its length is not that of an ordinary frame.
    #[inline]
    pub(crate) fn push_plain(&mut self, item: u16, bytes: VolatileSlice<'_>, skip: usize) -> bool {
        let (Ok(frame), Some(head)) = (bytes.offset(skip), self.heads.get_mut(self.len)) else {
            return false;
        };
        let len = frame.len();
        if !(ETHERNET..=MAX_FRAME).contains(&len) {
            return false;
        }
        head.copied = copy::read(frame, &mut head.bytes[..HEAD]) as u8;
        head.taken = head.copied;
        head.item = item;
        head.len = len as u32;
        head.offload = Offload::NONE;
        self.len += 1;
        true
    }

    /// Adds the head of a frame of `len` bytes that `pieces` holds, after `skip` others, with what
    /// its `header` asks for. Refuses frames without a whole Ethernet header, longer than any port
    /// takes, or with a header that makes no sense.
    #[inline(never)]
    pub(crate) fn push_pieces<'b>(
        &mut self,
        item: u16,
        len: usize,
        pieces: impl Iterator<Item = VolatileSlice<'b>>,
        skip: usize,
        header: &[u8; offload::HEADER],
    ) -> Result<(), Drop> {
        let Some(head) = self.heads.get_mut(self.len) else {
            return Err(Drop::TooLong);
        };
        if len < ETHERNET {
            return Err(Drop::Truncated);
        }
        if len > MAX_LARGE {
            return Err(Drop::TooLong);
        }
        let copied = &mut head.bytes[..len.min(HEAD)];
        let mut rest = &mut copied[..];
        for piece in (Skip { pieces, skip }) {
            let copied = copy::read(piece, rest);
            rest = rest.get_mut(copied..).unwrap_or(&mut []);
            if rest.is_empty() {
                break;
            }
        }
        if !rest.is_empty() {
            return Err(Drop::Truncated);
        }
        head.offload = Offload::parse(header, copied, len).map_err(|_bad| Drop::BadOffload)?;
        if len > MAX_FRAME && !head.offload.is_large() {
            return Err(Drop::TooLong);
        }
        head.copied = copied.len() as u8;
        head.taken = head.copied;
        head.item = item;
        head.len = len as u32;
        self.len += 1;
        Ok(())
    }

    /// Repeats the only head until there are [`BURST`].
    pub(crate) fn repeat(&mut self) {
        if let ([first, rest @ ..], 1) = (&mut self.heads[..], self.len) {
            rest.fill(*first);
            self.len = BURST;
        }
    }

    fn all(&self) -> &[Head] {
        self.heads.get(..self.len).unwrap_or(&[])
    }
}

/// Which port of a worker a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// The one of this number.
    Port(u16),
    /// The one of this number, whatever the rules: it watches another.
    Monitor(u16),
    /// All but the source.
    All,
}

/// A frame on its way between workers.
#[derive(Debug)]
pub struct Parcel {
    /// The frame.
    pub mbuf: Mbuf,
    /// Number of the port it came from.
    pub source: u16,
    /// Where it goes.
    pub to: To,
    /// Its VLAN; 0 if it is in none.
    pub vid: u16,
    /// It may not go to isolated ports.
    pub isolated: bool,
}

/// Where the bytes of a burst are.
#[derive(Debug, Clone, Copy)]
enum Source<'b> {
    /// In chains of a ring, after headers of this length.
    Ring(&'b Taken, usize),
    /// In buffers of our own.
    Parcels(&'b [Parcel]),
    /// The same bytes for every frame.
    Fixed(VolatileSlice<'b>),
    /// At places of one memory.
    Placed(VolatileSlice<'b>, &'b [Place]),
}

/// Where a frame is in a memory that holds many, and what the header that came with it asks for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Place {
    pub(crate) offset: usize,
    pub(crate) len: usize,
    pub(crate) header: [u8; offload::HEADER],
}

/// A frame of a burst, as one destination shall get it. Aligned, because an array of them is
/// walked faster when their size is a power of two.
#[repr(align(4))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pick {
    /// Number of the frame in its burst.
    pub frame: u8,
    /// What is changed.
    pub edit: Edit,
}

/// Up to [`BURST`] frames, borrowed from wherever they are for as long as the burst lasts.
#[derive(Debug, Clone, Copy)]
pub struct Burst<'b> {
    heads: &'b [Head],
    source: Source<'b>,
}

impl<'b> Burst<'b> {
    /// Frames in the chains `taken` from a ring, after virtio headers of `skip` bytes.
    #[inline]
    pub(crate) fn of_ring(heads: &'b Heads, taken: &'b Taken, skip: usize) -> Self {
        Self {
            heads: heads.all(),
            source: Source::Ring(taken, skip),
        }
    }

    /// The frames of `parcels`, whose heads are read first. Parcels that are no frames are left
    /// out.
    pub fn of_parcels(heads: &'b mut Heads, parcels: &'b [Parcel]) -> Self {
        heads.clear();
        for (item, parcel) in parcels.iter().enumerate() {
            if let Some(bytes) = parcel.mbuf.bytes() {
                // Parcels that are no frames are left out.
                heads.push_plain(item as u16, bytes, 0);
            }
        }
        Self {
            heads: heads.all(),
            source: Source::Parcels(parcels),
        }
    }

    /// `heads`, all of the frame in `bytes`.
    pub(crate) fn of_fixed(heads: &'b Heads, bytes: VolatileSlice<'b>) -> Self {
        Self {
            heads: heads.all(),
            source: Source::Fixed(bytes),
        }
    }

    /// `heads`, of frames at `places` of `memory`.
    pub(crate) fn of_places(
        heads: &'b Heads,
        memory: VolatileSlice<'b>,
        places: &'b [Place],
    ) -> Self {
        Self {
            heads: heads.all(),
            source: Source::Placed(memory, places),
        }
    }

    /// One frame.
    pub fn of_one(heads: &'b mut Heads, bytes: VolatileSlice<'b>) -> Self {
        heads.clear();
        heads.push_plain(0, bytes, 0);
        Self::of_fixed(heads, bytes)
    }

    /// Heads of the frames.
    #[inline]
    pub fn heads(&self) -> &'b [Head] {
        self.heads
    }

    /// Number of frames.
    pub fn len(&self) -> usize {
        self.heads.len()
    }

    /// Whether there are no frames.
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// The head of a frame as the destination of `pick` shall get it.
    #[inline]
    pub fn picked(&self, pick: &Pick) -> Option<Cow<'b, Head>> {
        let head = self.heads.get(usize::from(pick.frame))?;
        Some(match pick.edit {
            Edit::Keep => Cow::Borrowed(head),
            edit => Cow::Owned(head.edited(edit)),
        })
    }

    /// What follows the copied bytes of `head`, if the frame is in one piece.
    #[inline]
    pub(crate) fn body_whole(&self, head: &Head) -> Option<VolatileSlice<'b>> {
        let (bytes, skip) = match self.source {
            Source::Ring(taken, header) => {
                let chain = taken.chains().get(head.item())?;
                (taken.readable_whole(chain)?, header)
            }
            Source::Parcels(parcels) => (parcels.get(head.item())?.mbuf.bytes()?, 0),
            Source::Fixed(bytes) => (bytes, 0),
            Source::Placed(..) => return None,
        };
        bytes.offset(skip + usize::from(head.taken)).ok()
    }

    /// What follows the copied bytes of `head`, piece by piece.
    #[inline]
    pub fn body(&self, head: &Head) -> Body<'b> {
        let (only, chain, skip) = match self.source {
            Source::Ring(taken, header) => {
                let chain = taken.chains().get(head.item());
                (None, chain.map(|chain| taken.readable(chain)), header)
            }
            Source::Parcels(parcels) => {
                let parcel = parcels.get(head.item());
                (parcel.and_then(|parcel| parcel.mbuf.bytes()), None, 0)
            }
            Source::Fixed(bytes) => (Some(bytes), None, 0),
            Source::Placed(memory, places) => {
                let place = places.get(head.item());
                let bytes = place.and_then(|at| memory.subslice(at.offset, at.len).ok());
                (bytes, None, 0)
            }
        };
        Body(Skip {
            pieces: Pieces { only, chain },
            skip: skip + usize::from(head.taken),
        })
    }

    /// Frame bytes of all `picks`.
    pub fn bytes_of(&self, picks: &[Pick]) -> u64 {
        let len = |pick: &Pick| self.heads.get(usize::from(pick.frame)).map(|h| h.len);
        picks.iter().filter_map(len).map(u64::from).sum()
    }

    /// Frame bytes of all frames.
    pub fn bytes(&self) -> u64 {
        self.heads.iter().map(|head| u64::from(head.len)).sum()
    }
}

/// The pieces of a frame's body. See [`Burst::body`].
#[derive(Debug, Clone)]
pub struct Body<'b>(Skip<Pieces<'b>>);

impl<'b> Body<'b> {
    /// All of `bytes`.
    pub(super) fn of_one(bytes: VolatileSlice<'b>) -> Self {
        Self(Skip {
            pieces: Pieces {
                only: Some(bytes),
                chain: None,
            },
            skip: 0,
        })
    }
}

impl<'b> Iterator for Body<'b> {
    type Item = VolatileSlice<'b>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

/// The one piece, or those of a chain.
#[derive(Debug, Clone)]
struct Pieces<'b> {
    only: Option<VolatileSlice<'b>>,
    chain: Option<Segments<'b>>,
}

impl<'b> Iterator for Pieces<'b> {
    type Item = VolatileSlice<'b>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.chain {
            Some(chain) => chain.next(),
            None => self.only.take(),
        }
    }
}

/// `pieces` without their first `skip` bytes.
#[derive(Debug, Clone)]
struct Skip<I> {
    pieces: I,
    skip: usize,
}

impl<'b, I: Iterator<Item = VolatileSlice<'b>>> Iterator for Skip<I> {
    type Item = VolatileSlice<'b>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let piece = self.pieces.next()?;
            if self.skip == 0 {
                return Some(piece);
            }
            if self.skip >= piece.len() {
                self.skip -= piece.len();
                continue;
            }
            let rest = piece.offset(self.skip).ok();
            self.skip = 0;
            return rest;
        }
    }
}

#[cfg(test)]
#[path = "burst_tests.rs"]
mod tests;
