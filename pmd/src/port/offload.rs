//! Checksums and segmentation that a guest left to us (VIRTIO 1.2, 5.1.6.2): judged, passed on,
//! or done here.
//!
//! A guest that negotiated CSUM or HOST_TSO hands over frames whose checksum is missing, or that
//! are longer than the wire takes. A guest that negotiated the counterpart takes them as they
//! are: then nothing is computed at all. For everybody else the work is done in a private copy.
//! Every number in the header is hostile; [`Offload::parse`] judges it against a private copy of
//! the frame's first bytes, and only what it understood is ever passed on. Pure.

use super::burst::ETHERNET;

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
/// VIRTIO_NET_HDR_GSO_ECN.
const GSO_ECN: u8 = 0x80;

/// The least payload of a segment. Linux's smallest maximum segment size is 48 with options
/// counted; anything much smaller only makes many frames of one.
const MIN_SEGMENT: u16 = 32;

/// Where the checksum is in a TCP header.
const TCP_CHECKSUM: u16 = 16;
/// TCP without options.
const TCP_HEADER: usize = 20;

/// What the header of a frame asks for, all of it checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    needs_csum: bool,
    gso_type: u8,
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
}

impl Accepts {
    /// Whether `offload` can be passed on as it is.
    #[inline]
    pub fn takes(self, offload: &Offload) -> bool {
        if !offload.needs_csum {
            return true;
        }
        let long = match offload.gso_type & !GSO_ECN {
            GSO_TCPV4 => self.tso4,
            GSO_TCPV6 => self.tso6,
            _ => true,
        };
        self.csum && long && (self.ecn || offload.gso_type & GSO_ECN == 0)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

/// Where the IP header begins and which EtherType it has, behind at most two VLAN tags.
fn network(frame: &[u8]) -> Option<(usize, u16)> {
    let mut at = ETHERNET - 2;
    for _ in 0..3 {
        let kind = u16_at(frame, at)?;
        at += 2;
        if !matches!(kind, 0x8100 | 0x88a8) {
            return Some((at, kind));
        }
        at += 2;
    }
    None
}

impl Offload {
    /// Nothing to do.
    pub const NONE: Self = Self {
        needs_csum: false,
        gso_type: 0,
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
            needs_csum: true,
            csum_start,
            csum_offset,
            ..Self::NONE
        };
        if gso_type != 0 {
            this.gso_type = gso_type;
            this.gso_size = gso_size;
            // What the driver says of the headers' length is only a hint; TCP knows.
            this.headers = this.tcp_headers(head, len)?;
            (gso_size >= MIN_SEGMENT).then_some(())?;
        }
        Some(this)
    }

    /// Length of the headers of a TCP frame, if it is one and they are where the header says.
    fn tcp_headers(&self, head: &[u8], len: usize) -> Option<u16> {
        let (ip, kind) = network(head)?;
        let tcp = usize::from(self.csum_start);
        let first = *head.get(ip)?;
        let fits = match (self.gso_type & !GSO_ECN, kind, first >> 4) {
            (GSO_TCPV4, 0x0800, 4) => {
                tcp == ip + 4 * usize::from(first & 15)
                    && tcp >= ip + 20
                    && head.get(ip + 9) == Some(&6)
            }
            (GSO_TCPV6, 0x86dd, 6) => tcp >= ip + 40,
            _ => false,
        };
        if !fits || self.csum_offset != TCP_CHECKSUM {
            return None;
        }
        let options = 4 * usize::from(*head.get(tcp + 12)? >> 4);
        let headers = tcp.checked_add(options)?;
        let sane = options >= TCP_HEADER && headers < len && headers <= MAX_HEADERS;
        sane.then(|| u16::try_from(headers).ok())?
    }

    /// Whether there is nothing to do.
    #[inline]
    pub fn is_none(&self) -> bool {
        !self.needs_csum
    }

    /// Whether the frame is longer than the wire takes.
    #[inline]
    pub fn is_large(&self) -> bool {
        self.gso_type != 0
    }

    /// The same for a frame whose Ethernet header became longer, or shorter, by `by` bytes.
    pub fn moved(mut self, longer: bool, by: u16) -> Self {
        if !self.needs_csum {
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
        let mut header = [0; HEADER];
        if self.needs_csum {
            header[0] = NEEDS_CSUM;
            header[1] = self.gso_type;
            header[2..4].copy_from_slice(&self.headers.to_le_bytes());
            header[4..6].copy_from_slice(&self.gso_size.to_le_bytes());
            header[6..8].copy_from_slice(&self.csum_start.to_le_bytes());
            header[8..].copy_from_slice(&self.csum_offset.to_le_bytes());
        }
        header
    }

    /// Does the work: hands `each` the frames that come of `frame`, complete. `segment` is room
    /// for one of them.
    pub fn finish(&self, frame: &mut [u8], segment: &mut Vec<u8>, mut each: impl FnMut(&mut [u8])) {
        if !self.is_large() {
            if self.needs_csum {
                let start = usize::from(self.csum_start);
                fill(frame, start, start + usize::from(self.csum_offset));
            }
            each(frame);
            return;
        }
        let Some((headers, payload)) = frame.split_at_checked(self.headers.into()) else {
            return;
        };
        let count = payload.len().div_ceil(usize::from(self.gso_size));
        for (number, part) in payload.chunks(self.gso_size.into()).enumerate() {
            segment.clear();
            segment.extend_from_slice(headers);
            segment.extend_from_slice(part);
            let offset = number * usize::from(self.gso_size);
            if self
                .complete(segment, number, offset as u32, number + 1 == count)
                .is_some()
            {
                each(segment);
            }
        }
    }

    /// Makes segment `number`, whose payload begins at `offset`, a frame of its own.
    fn complete(&self, frame: &mut [u8], number: usize, offset: u32, last: bool) -> Option<()> {
        /// TCP flags that only the last segment has: FIN and PSH.
        const LAST: u8 = 0x09;
        /// The flag that only the first has: CWR.
        const FIRST: u8 = 0x80;

        let (ip, kind) = network(frame)?;
        let tcp = usize::from(self.csum_start);
        let length = u16::try_from(frame.len().checked_sub(ip)?).ok()?;
        let addresses = if kind == 0x0800 {
            let id = u16_at(frame, ip + 4)?.wrapping_add(number as u16);
            put(frame, ip + 2, &length.to_be_bytes())?;
            put(frame, ip + 4, &id.to_be_bytes())?;
            put(frame, ip + 10, &[0, 0])?;
            let sum = !fold(sum(frame.get(ip..tcp)?));
            put(frame, ip + 10, &sum.to_be_bytes())?;
            frame.get(ip + 12..ip + 20)?
        } else {
            let length = length.checked_sub(40)?;
            put(frame, ip + 4, &length.to_be_bytes())?;
            frame.get(ip + 8..ip + 40)?
        };
        let pseudo = sum(addresses) + u64::from(TCP_PROTOCOL) + (frame.len() - tcp) as u64;
        let sequence = frame.get(tcp + 4..tcp + 8)?.try_into().ok()?;
        let sequence = u32::from_be_bytes(sequence).wrapping_add(offset);
        put(frame, tcp + 4, &sequence.to_be_bytes())?;
        let flags = frame.get_mut(tcp + 13)?;
        if !last {
            *flags &= !LAST;
        }
        if number > 0 {
            *flags &= !FIRST;
        }
        let field = tcp + usize::from(TCP_CHECKSUM);
        put(frame, field, &fold(pseudo).to_be_bytes())?;
        fill(frame, tcp, field);
        Some(())
    }
}

/// IP protocol number of TCP, as it stands in the pseudo header.
const TCP_PROTOCOL: u8 = 6;

fn put(frame: &mut [u8], at: usize, bytes: &[u8]) -> Option<()> {
    frame
        .get_mut(at..at.checked_add(bytes.len())?)?
        .copy_from_slice(bytes);
    Some(())
}

/// The ones' complement sum of 16-bit words, not folded (RFC 1071). At most 64 KiB.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(2);
    let odd = words
        .remainder()
        .first()
        .map_or(0, |&byte| u64::from(byte) << 8);
    words
        .map(|word| u64::from(word[0]) << 8 | u64::from(word[1]))
        .sum::<u64>()
        + odd
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Fills in the checksum at `field` of what begins at `start`. The field holds the sum of the
/// pseudo header.
fn fill(frame: &mut [u8], start: usize, field: usize) {
    let Some(covered) = frame.get(start..) else {
        return;
    };
    // Zero means "no checksum" in UDP; all ones is the same number.
    let checksum = match !fold(sum(covered)) {
        0 => 0xffff,
        checksum => checksum,
    };
    // Inside the frame: parse saw to it.
    let _ = put(frame, field, &checksum.to_be_bytes());
}

#[cfg(test)]
#[path = "offload_tests.rs"]
mod tests;
