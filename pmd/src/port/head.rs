//! The private copy of a frame's headers.
//!
//! Whoever decides about a frame reads [`Head`], which nobody else can change, and what arrives is
//! what was judged: the head is delivered from the copy, too.

use vvu::memory::{VolatileSlice, copy};

use super::burst::{BURST, Skip};
use super::offload::{self, MAX_LARGE, Offload};
use crate::stats::Drop;

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
    pub(super) taken: u8,
    /// Which chain or buffer of the source it is.
    item: u16,
    pub(super) len: u32,
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

    pub(super) fn all(&self) -> &[Head] {
        self.heads.get(..self.len).unwrap_or(&[])
    }
}
