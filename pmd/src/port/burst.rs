//! Frames that are borrowed for one burst, with a private copy of their headers.
//!
//! The rest of a frame stays where it is until it is copied to where it goes.

use std::borrow::Cow;

use vvu::memory::VolatileSlice;

use super::head::{Edit, Head, Heads};
use super::offload;
use crate::mempool::Mbuf;
use crate::vring::{Segments, Taken};

/// Most frames of a burst.
pub const BURST: usize = 64;

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
pub(super) struct Skip<I> {
    pub(super) pieces: I,
    pub(super) skip: usize,
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
