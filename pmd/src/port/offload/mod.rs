//! Checksums and segmentation that a guest left to us (VIRTIO 1.2, 5.1.6.2): judged, passed on,
//! or done here.
//!
//! A guest that negotiated CSUM, HOST_TSO or HOST_USO hands over frames whose checksum is missing,
//! or that are longer than the wire takes. A guest that negotiated the counterpart takes them as
//! they are: then nothing is computed at all. For everybody else the work is done in a private
//! copy (`segment`). Every number in the header is hostile; [`Offload::parse`] judges it against a
//! private copy of the frame's first bytes, and only what it understood is ever passed on.
//!
//! So two flags of a guest's go nowhere: DATA_VALID, with which it would vouch for a checksum
//! that the receiver then never looks at, and RSC_INFO, which is not offered. 5.1.6.2.2 has the
//! device ignore both. Pure.

mod segment;

use super::head::ETHERNET;
use super::headers::{self, Layers};

/// Length of the header's part that is about offloads; num_buffers follows.
pub const HEADER: usize = 10;

/// Length of the longest frame to be segmented: a packet of 65535 bytes, Ethernet header, two
/// VLAN tags.
pub const MAX_LARGE: usize = 65535 + 14 + 8;

/// Most that may come before a segment's payload: Ethernet, two VLAN tags, IPv6 with extensions
/// or IPv4 with options, TCP with options.
pub const MAX_HEADERS: usize = 512;

/// Flags and GSO type of a header that asks for nothing.
pub const NOTHING: [u8; 2] = [0, 0];

/// VIRTIO_NET_HDR_F_NEEDS_CSUM.
const NEEDS_CSUM: u8 = 1;
/// VIRTIO_NET_HDR_GSO_TCPV4.
const GSO_TCPV4: u8 = 1;
/// VIRTIO_NET_HDR_GSO_TCPV6.
const GSO_TCPV6: u8 = 4;
/// VIRTIO_NET_HDR_GSO_UDP_L4, for both versions of IP.
const GSO_UDP_L4: u8 = 5;
/// VIRTIO_NET_HDR_GSO_ECN.
const GSO_ECN: u8 = 0x80;

/// The least payload of a segment. Linux's smallest maximum segment size is 48 with options
/// counted; anything much smaller only makes many frames of one.
const MIN_SEGMENT: u16 = 32;
/// Datagrams are as small as their sender likes, if there are no more than Linux takes at once.
const MAX_SMALL_DATAGRAMS: usize = 128;

/// Where the checksum is in a TCP header.
const TCP_CHECKSUM: u16 = 16;
/// Where it is in a UDP header.
const UDP_CHECKSUM: u16 = 6;
/// TCP without options.
const TCP_HEADER: usize = 20;
/// All of UDP.
const UDP_HEADER: usize = 8;

/// What is to be done to a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Kind {
    #[default]
    Nothing,
    Checksum,
    Tcp4,
    Tcp6,
    Udp4,
    Udp6,
}

impl Kind {
    fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Tcp6)
    }

    /// Of a header's gso_type and a frame's layers, if they fit.
    fn of(gso_type: u8, layers: &Layers) -> Option<Self> {
        Some(match (gso_type, layers.v6, layers.protocol) {
            (GSO_TCPV4, false, headers::TCP) => Self::Tcp4,
            (GSO_TCPV6, true, headers::TCP) => Self::Tcp6,
            (GSO_UDP_L4, false, headers::UDP) => Self::Udp4,
            (GSO_UDP_L4, true, headers::UDP) => Self::Udp6,
            _ => return None,
        })
    }

    fn gso_type(self) -> u8 {
        match self {
            Self::Nothing | Self::Checksum => 0,
            Self::Tcp4 => GSO_TCPV4,
            Self::Tcp6 => GSO_TCPV6,
            Self::Udp4 | Self::Udp6 => GSO_UDP_L4,
        }
    }
}

/// What the header of a frame asks for, all of it checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    kind: Kind,
    /// With congestion marks.
    ecn: bool,
    /// Length of all headers, for segmentation.
    headers: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

/// A header that makes no sense for its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadOffload;

/// What a ring's driver takes as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Accepts {
    /// Frames without checksum (GUEST_CSUM).
    pub csum: bool,
    /// Long TCP over IPv4 (GUEST_TSO4).
    pub tso4: bool,
    /// Long TCP over IPv6 (GUEST_TSO6).
    pub tso6: bool,
    /// Long TCP with congestion marks (GUEST_ECN).
    pub ecn: bool,
    /// Several datagrams in one, over IPv4 (GUEST_USO4).
    pub uso4: bool,
    /// Several datagrams in one, over IPv6 (GUEST_USO6).
    pub uso6: bool,
}

impl Accepts {
    /// Whether `offload` can be passed on as it is.
    #[inline]
    pub fn takes(self, offload: &Offload) -> bool {
        offload.is_none() || self.takes_some(offload)
    }

    #[inline(never)]
    fn takes_some(self, offload: &Offload) -> bool {
        let kind = match offload.kind {
            Kind::Nothing | Kind::Checksum => true,
            Kind::Tcp4 => self.tso4,
            Kind::Tcp6 => self.tso6,
            Kind::Udp4 => self.uso4,
            Kind::Udp6 => self.uso6,
        };
        self.csum && kind && (self.ecn || !offload.ecn)
    }
}

impl Offload {
    /// Nothing to do.
    pub const NONE: Self = Self {
        kind: Kind::Nothing,
        ecn: false,
        headers: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// Judges a header against `head`, the first bytes of its frame of `len` bytes.
    #[inline]
    pub fn parse(header: &[u8; HEADER], head: &[u8], len: usize) -> Result<Self, BadOffload> {
        let [flags, gso_type, rest @ ..] = header;
        if flags & NEEDS_CSUM == 0 && *gso_type == 0 {
            return Ok(Self::NONE);
        }
        Self::parse_some(*flags, *gso_type, rest, head, len).ok_or(BadOffload)
    }

    fn parse_some(
        flags: u8,
        gso_type: u8,
        rest: &[u8; 8],
        head: &[u8],
        len: usize,
    ) -> Option<Self> {
        let [
            _,
            _,
            size,
            more_size,
            start,
            more_start,
            offset,
            more_offset,
        ] = *rest;
        let gso_size = u16::from_le_bytes([size, more_size]);
        let csum_start = u16::from_le_bytes([start, more_start]);
        let csum_offset = u16::from_le_bytes([offset, more_offset]);
        let field = usize::from(csum_start) + usize::from(csum_offset);
        // A long frame without a checksum to be filled in is against 5.1.6.2.1.
        if flags & NEEDS_CSUM == 0 || usize::from(csum_start) < ETHERNET || field + 2 > len {
            return None;
        }
        let mut this = Self {
            kind: Kind::Checksum,
            csum_start,
            csum_offset,
            ..Self::NONE
        };
        if gso_type != 0 {
            this.gso_size = gso_size;
            this.judge_large(gso_type, head, len)?;
        }
        Some(this)
    }

    /// Finds out what kind of long frame it is, and whether it can be cut as its header says.
    fn judge_large(&mut self, gso_type: u8, head: &[u8], len: usize) -> Option<()> {
        let layers = headers::layers(head)?;
        self.kind = Kind::of(gso_type & !GSO_ECN, &layers)?;
        self.ecn = gso_type & GSO_ECN != 0;
        let start = layers.transport;
        let (checksum, transport) = if self.kind.is_tcp() {
            (TCP_CHECKSUM, 4 * usize::from(*head.get(start + 12)? >> 4))
        } else {
            (UDP_CHECKSUM, UDP_HEADER)
        };
        // What the driver says of the headers' length is only a hint; the headers know.
        let headers = start.checked_add(transport)?;
        let payload = len.checked_sub(headers)?;
        let size = usize::from(self.gso_size);
        let segment = payload.min(size);
        let sane = usize::from(self.csum_start) == start
            && self.csum_offset == checksum
            && !layers.fragment
            && headers <= MAX_HEADERS
            // A segment's length goes into 16 bits.
            && headers - layers.ip + segment <= usize::from(u16::MAX)
            && segment > 0;
        let sane = sane
            && match self.kind.is_tcp() {
                true => transport >= TCP_HEADER && self.gso_size >= MIN_SEGMENT,
                false => {
                    let small = || payload.div_ceil(size) <= MAX_SMALL_DATAGRAMS;
                    !self.ecn && (self.gso_size >= MIN_SEGMENT || small())
                }
            };
        self.headers = u16::try_from(headers).ok()?;
        sane.then_some(())
    }

    /// Whether there is nothing to do.
    #[inline]
    pub fn is_none(&self) -> bool {
        self.kind == Kind::Nothing
    }

    /// Whether the frame is longer than the wire takes.
    #[inline]
    pub fn is_large(&self) -> bool {
        !matches!(self.kind, Kind::Nothing | Kind::Checksum)
    }

    /// The same for a frame whose Ethernet header became longer, or shorter, by `by` bytes.
    pub fn moved(mut self, longer: bool, by: u16) -> Self {
        if self.is_none() {
            return self;
        }
        let moved = |at: u16| match longer {
            true => at.checked_add(by),
            false => at.checked_sub(by).filter(|&at| usize::from(at) >= ETHERNET),
        };
        let Some(csum_start) = moved(self.csum_start) else {
            // What was asked for is about the part that is gone.
            return Self::NONE;
        };
        self.csum_start = csum_start;
        if self.is_large() {
            self.headers = moved(self.headers).unwrap_or(self.headers);
        }
        self
    }

    /// The header that asks for this.
    #[inline]
    pub fn emit(&self) -> [u8; HEADER] {
        match self.is_none() {
            true => [0; HEADER],
            false => self.emit_some(),
        }
    }

    #[inline(never)]
    fn emit_some(&self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[0] = NEEDS_CSUM;
        header[1] = self.kind.gso_type() | if self.ecn { GSO_ECN } else { 0 };
        header[2..4].copy_from_slice(&self.headers.to_le_bytes());
        header[4..6].copy_from_slice(&self.gso_size.to_le_bytes());
        header[6..8].copy_from_slice(&self.csum_start.to_le_bytes());
        header[8..].copy_from_slice(&self.csum_offset.to_le_bytes());
        header
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod whole_tests;
