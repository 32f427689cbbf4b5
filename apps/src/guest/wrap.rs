//! Frames of ours as TCP segments and UDP datagrams, with work left to the other side, and what
//! becomes of them: complete, in pieces, or as they were. Pure.
//!
//! What follows the Ethernet header of a frame of ours is the payload. The low half of a segment's
//! sequence number is the place in it; datagrams of one flow stay in order. Every checksum and
//! length that whoever completed a frame had to fill in is checked here.

use std::collections::BTreeMap;

/// The part of a virtio-net header that is about offloads (VIRTIO 1.2, 5.1.6).
pub(super) type Request = [u8; 10];

/// Nothing is left to the other side.
pub(super) const NONE: Request = [0; 10];

/// Most bytes of a frame of ours that fit a packet.
pub(super) const MOST: usize = 65_000;

/// Longest frame that is handed over, and longest that comes.
pub(super) const LONGEST: usize = 65_535 + ETHERNET + 4;

/// Least and most payload of a segment that is asked for: every Ethernet carries them.
pub(super) const SEGMENT: std::ops::RangeInclusive<u16> = 1000..=1400;

const ETHERNET: usize = 14;
const UDP: usize = 8;
const TCP: usize = 20;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
/// Where we send from and to.
const PORTS: [u8; 4] = [0x76, 0x76, 0x76, 0x75];

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Feature bits of virtio-net (5.1.3).
pub(super) mod feature {
    pub(in crate::guest) const CSUM: u64 = 1 << 0;
    pub(in crate::guest) const GUEST_CSUM: u64 = 1 << 1;
    pub(in crate::guest) const GUEST_TSO4: u64 = 1 << 7;
    pub(in crate::guest) const GUEST_TSO6: u64 = 1 << 8;
    pub(in crate::guest) const HOST_TSO4: u64 = 1 << 11;
    pub(in crate::guest) const HOST_TSO6: u64 = 1 << 12;
    pub(in crate::guest) const GUEST_USO4: u64 = 1 << 54;
    pub(in crate::guest) const GUEST_USO6: u64 = 1 << 55;
    pub(in crate::guest) const HOST_USO: u64 = 1 << 56;
    /// All of them.
    pub(in crate::guest) const ALL: u64 = CSUM
        | GUEST_CSUM
        | GUEST_TSO4
        | GUEST_TSO6
        | HOST_TSO4
        | HOST_TSO6
        | GUEST_USO4
        | GUEST_USO6
        | HOST_USO;
}

/// Whether features allow a frame to arrive with this request.
pub(super) fn may_arrive(features: u64, request: &Request) -> bool {
    let [flags, gso, ..] = *request;
    let has = |bit| features & bit != 0;
    let long = match gso {
        0 => true,
        GSO_TCP4 => has(feature::GUEST_TSO4),
        GSO_TCP6 => has(feature::GUEST_TSO6),
        // Over which of them, the frame itself says.
        GSO_UDP => has(feature::GUEST_USO4 | feature::GUEST_USO6),
        _ => false,
    };
    let csum = flags == 0 || has(feature::GUEST_CSUM);
    long && csum && flags & !(NEEDS_CSUM | DATA_VALID) == 0 && gso & GSO_ECN == 0
}

/// What a frame is wrapped in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wrapping {
    pub(super) ipv6: bool,
    pub(super) udp: bool,
    /// Payload of each segment, if it is to be segmented; else only the checksum is left.
    pub(super) segment: Option<u16>,
}

impl Wrapping {
    /// Whether a driver that accepted `features` may ask for that.
    pub(super) fn may_be_sent(self, features: u64) -> bool {
        let needed = match (self.segment, self.udp, self.ipv6) {
            (None, ..) => 0,
            (_, true, _) => feature::HOST_USO,
            (_, false, false) => feature::HOST_TSO4,
            (_, false, true) => feature::HOST_TSO6,
        };
        features & (needed | feature::CSUM) == needed | feature::CSUM
    }

    fn headers(self) -> (usize, usize) {
        let ip = if self.ipv6 { 40 } else { 20 };
        (ip, if self.udp { UDP } else { TCP })
    }

    /// Wraps a frame of ours, at most [`MOST`] bytes, and says what is left to do.
    pub(super) fn wrap(self, frame: &[u8], number: u64) -> (Vec<u8>, Request) {
        let (addresses, payload) = frame.split_at(ETHERNET.min(frame.len()));
        let (ip, transport) = self.headers();
        let mut packet = addresses.get(..12).unwrap_or_default().to_vec();
        let kind = if self.ipv6 { IPV6 } else { IPV4 };
        packet.extend(kind.to_be_bytes());
        let length = (transport + payload.len()) as u16;
        let protocol = if self.udp { PROTOCOL_UDP } else { PROTOCOL_TCP };
        if self.ipv6 {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([protocol, 64]);
            for host in [1, 2] {
                packet.extend([0xfd, 0x76, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
            }
        } else {
            packet.extend([0x45, 0]);
            packet.extend((length + ip as u16).to_be_bytes());
            packet.extend((number as u16).to_be_bytes());
            // Not to be fragmented.
            packet.extend([0x40, 0, 64, protocol, 0, 0, 10, 118, 0, 1, 10, 118, 0, 2]);
            let sum = !fold(sum(packet.get(ETHERNET..).unwrap_or_default()));
            put(&mut packet, ETHERNET + 10, sum);
        }
        let start = packet.len();
        packet.extend(PORTS);
        if self.udp {
            packet.extend(length.to_be_bytes());
            packet.extend([0, 0]);
        } else {
            packet.extend((number as u32).wrapping_shl(16).to_be_bytes());
            // Acknowledges something, and is pushed.
            packet.extend([0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
        }
        let field = if self.udp { 6 } else { 16 };
        let seed = pseudo(&packet, self.ipv6, protocol, length.into());
        put(&mut packet, start + field, fold(seed));
        packet.extend(payload);
        let gso = match (self.segment, self.udp, self.ipv6) {
            (None, ..) => 0,
            (_, true, _) => GSO_UDP,
            (_, false, false) => GSO_TCP4,
            (_, false, true) => GSO_TCP6,
        };
        let [size, more_size] = self.segment.unwrap_or(0).to_le_bytes();
        let [hdr, more_hdr] = ((start + transport) as u16).to_le_bytes();
        let [at, more_at] = (start as u16).to_le_bytes();
        let field = field as u8;
        let request = [
            NEEDS_CSUM, gso, hdr, more_hdr, size, more_size, at, more_at, field, 0,
        ];
        (packet, request)
    }
}

/// The sum of 16-bit words, not folded.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<2>();
    let sum: u64 = words
        .iter()
        .map(|word| u64::from(u16::from_be_bytes(*word)))
        .sum();
    sum + rest.first().map_or(0, |last| u64::from(*last) << 8)
}

fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The sum of the pseudo header of a packet, whose addresses are in place.
fn pseudo(packet: &[u8], ipv6: bool, protocol: u8, length: u64) -> u64 {
    let addresses = if ipv6 { 22..54 } else { 26..34 };
    sum(packet.get(addresses).unwrap_or_default()) + u64::from(protocol) + length
}

/// What became of a frame that arrived.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It is none that was wrapped.
    Bare,
    /// A part of one; more is to come.
    Part,
    /// A whole one, unwrapped.
    Whole(Vec<u8>),
    /// Whoever completed it made a mistake, which is named.
    Wrong(&'static str),
}

/// Collects the pieces of each flow.
#[derive(Debug, Default)]
pub(super) struct Unwrapper {
    parts: BTreeMap<(bool, bool), Vec<u8>>,
}

impl Unwrapper {
    /// Takes a frame with its request.
    pub(super) fn take(&mut self, frame: &[u8], request: &Request) -> Found {
        let ipv6 = match u16_at(frame, 12) {
            Some(IPV4) => false,
            Some(IPV6) => true,
            _ if *request == NONE => return Found::Bare,
            _ => return Found::Wrong("an offload of a frame that is no packet"),
        };
        match self.packet(frame, request, ipv6) {
            Ok(found) => found,
            Err(what) => Found::Wrong(what),
        }
    }

    fn packet(
        &mut self,
        frame: &[u8],
        request: &Request,
        ipv6: bool,
    ) -> Result<Found, &'static str> {
        let [flags, gso, _, _, _, _, low, high, field, _] = *request;
        let short = "a packet that is cut short";
        let packet = frame.get(ETHERNET..).ok_or(short)?;
        let (ip, protocol, end) = if ipv6 {
            let length = u16_at(packet, 4).ok_or(short)?;
            (40, *packet.get(6).ok_or(short)?, 40 + usize::from(length))
        } else {
            let header = packet.get(..20).ok_or(short)?;
            if fold(sum(header)) != 0xffff {
                return Err("a wrong IP header checksum");
            }
            (20, header[9], usize::from(u16_at(packet, 2).ok_or(short)?))
        };
        let udp = match protocol {
            PROTOCOL_TCP => false,
            PROTOCOL_UDP => true,
            _ => return Ok(Found::Bare),
        };
        let segment = packet.get(ip..end).ok_or(short)?;
        let wrapping = Wrapping {
            ipv6,
            udp,
            segment: None,
        };
        let (_, transport) = wrapping.headers();
        let (header, payload) = segment.split_at_checked(transport).ok_or(short)?;
        if header.get(..4) != Some(&PORTS) {
            return Ok(Found::Bare);
        }
        let kind = matches!(
            (gso, udp, ipv6),
            (0, ..) | (GSO_TCP4, false, false) | (GSO_TCP6, false, true) | (GSO_UDP, true, _)
        );
        if !kind {
            return Err("segmentation of another kind than the packet is");
        }
        let place = if udp { 6 } else { 16 };
        let seed = pseudo(frame, ipv6, protocol, segment.len() as u64);
        if flags & NEEDS_CSUM != 0 {
            let start = u16::from_le_bytes([low, high]);
            if usize::from(start) != ETHERNET + ip || field != place {
                return Err("a checksum that is to be filled in elsewhere");
            }
            if u16_at(header, place.into()) != Some(fold(seed)) {
                return Err("a wrong sum to begin the checksum with");
            }
        } else if gso != 0 {
            return Err("segmentation without a checksum to fill in");
        } else if fold(seed + sum(segment)) != 0xffff {
            return Err("a wrong checksum");
        }
        if udp && u16_at(header, 4).map(usize::from) != Some(segment.len()) {
            return Err("a wrong length of a datagram");
        }
        let offset = if udp { None } else { u16_at(header, 6) };
        Ok(self.collect(frame, (ipv6, udp), offset, payload))
    }

    /// Adds a piece of a flow. A piece that begins a frame of ours ends what came before.
    fn collect(
        &mut self,
        frame: &[u8],
        flow: (bool, bool),
        offset: Option<u16>,
        payload: &[u8],
    ) -> Found {
        let part = self.parts.entry(flow).or_default();
        let begins = offset.map_or_else(|| super::frames::begins(payload), |at| at == 0);
        let cut = begins && !part.is_empty();
        if begins {
            part.clear();
            // As it was before it was wrapped.
            part.extend(frame.get(..12).unwrap_or_default());
            part.extend(super::frames::ETHER_TYPE);
        }
        let at = part.len().saturating_sub(ETHERNET);
        if part.is_empty() || offset.is_some_and(|offset| usize::from(offset) != at) {
            part.clear();
            return Found::Wrong("a segment whose place is elsewhere");
        }
        part.extend(payload);
        let whole = super::frames::parse(part).map_or(usize::MAX, |seen| seen.len);
        if part.len() >= whole {
            return Found::Whole(std::mem::take(part));
        }
        match cut || part.len() > LONGEST {
            true => Found::Wrong("a frame of which the rest is missing"),
            false => Found::Part,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::frames::{self, ANYBODY, Header, Kind};

    fn frame(len: usize) -> Vec<u8> {
        let mut frame = vec![0x3c; len];
        let header = Header {
            destination: ANYBODY,
            source: [2, 0, 0, 0, 0, 9],
            kind: Kind::Data,
            epoch: 0,
            origin: 3,
            sequence: 4,
            value: 5,
        };
        frames::finish(&mut frame, &header);
        frame
    }

    fn wrappings(segment: Option<u16>) -> impl Iterator<Item = Wrapping> {
        [(false, false), (false, true), (true, false), (true, true)]
            .into_iter()
            .map(move |(ipv6, udp)| Wrapping { ipv6, udp, segment })
    }

    /// Does what was left to do: the checksum of one segment.
    fn complete(packet: &mut [u8], wrapping: Wrapping) {
        let start = ETHERNET + wrapping.headers().0;
        let field = start + if wrapping.udp { 6 } else { 16 };
        let sum = !fold(sum(&packet[start..]));
        put(packet, field, sum);
    }

    #[test]
    fn what_is_wrapped_is_unwrapped_as_it_is_and_complete() {
        for (segment, len) in [(None, 200), (None, 1001), (Some(1000), MOST)] {
            for wrapping in wrappings(segment) {
                let ours = frame(len);
                let (mut packet, request) = wrapping.wrap(&ours, 77);
                let mut unwrapper = Unwrapper::default();
                assert_eq!(
                    unwrapper.take(&packet, &request),
                    Found::Whole(ours.clone())
                );
                assert!(may_arrive(feature::ALL, &request) && !may_arrive(0, &request));
                assert!(wrapping.may_be_sent(feature::ALL) && !wrapping.may_be_sent(0));
                // Without the request it is wrong until it is done.
                let wrong = unwrapper.take(&packet, &NONE);
                assert!(matches!(wrong, Found::Wrong(_)), "{wrong:?}");
                complete(&mut packet, wrapping);
                assert_eq!(unwrapper.take(&packet, &NONE), Found::Whole(ours));
            }
        }
    }

    #[test]
    fn every_changed_byte_of_a_complete_packet_is_noticed() {
        for wrapping in wrappings(None) {
            let ours = frame(90);
            let (mut packet, _) = wrapping.wrap(&ours, 5);
            complete(&mut packet, wrapping);
            for at in 12..packet.len() {
                packet[at] ^= 0x10;
                let found = Unwrapper::default().take(&packet, &NONE);
                // Hop counts and labels of IPv6 are for those on the way.
                let free = wrapping.ipv6 && [14, 15, 16, 17, 21].contains(&at);
                assert!(free || found != Found::Whole(ours.clone()), "byte {at}");
                packet[at] ^= 0x10;
            }
        }
    }

    #[test]
    fn pieces_are_put_together_and_missing_ones_are_missed() {
        let ours = frame(3000);
        let payload = &ours[ETHERNET..];
        let udp = |piece: &[u8]| {
            let wrapping = Wrapping {
                ipv6: false,
                udp: true,
                segment: None,
            };
            let inner = [&ours[..ETHERNET], piece].concat();
            let (mut packet, _) = wrapping.wrap(&inner, 0);
            complete(&mut packet, wrapping);
            packet
        };
        let pieces: Vec<_> = payload.chunks(1000).map(udp).collect();
        let mut unwrapper = Unwrapper::default();
        assert_eq!(unwrapper.take(&pieces[0], &NONE), Found::Part);
        assert_eq!(unwrapper.take(&pieces[1], &NONE), Found::Part);
        assert_eq!(
            unwrapper.take(&pieces[2], &NONE),
            Found::Whole(ours.clone())
        );
        assert!(matches!(unwrapper.take(&pieces[1], &NONE), Found::Wrong(_)));
        unwrapper.take(&pieces[0], &NONE);
        assert!(matches!(unwrapper.take(&pieces[0], &NONE), Found::Wrong(_)));
    }
}
