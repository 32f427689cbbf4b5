//! Completed frames, byte for byte beside those that `etherparse` makes, which others wrote.
#![allow(clippy::unwrap_used)]
use etherparse::{IpNumber, Ipv4Header, Ipv6Header, TcpHeader, UdpHeader};

use super::*;

/// A kind of packet.
#[derive(Debug, Clone, Copy)]
struct Packet {
    tcp: bool,
    v6: bool,
    vlans: usize,
    /// Bytes of IPv4 options, or of extension headers.
    extra: usize,
    /// Whether the last extension header is a routing header with the last address to come.
    routed: bool,
}

const FIRST_ID: u16 = 0xfffe;
const SEQUENCE: u32 = 0xffff_f000;
const LAST_HOP: [u8; 16] = [0xfd, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1, 2, 3, 4, 5];

impl Packet {
    fn ethernet(self) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for tag in [[0x88, 0xa8, 0x20, 7], [0x81, 0, 0, 5]][2 - self.vlans..].iter() {
            bytes.extend(tag);
        }
        bytes.extend(if self.v6 { [0x86, 0xdd] } else { [8, 0] });
        bytes
    }

    fn protocol(self) -> IpNumber {
        if self.tcp {
            IpNumber::TCP
        } else {
            IpNumber::UDP
        }
    }

    /// Extension headers in front of the transport header, and what the first is.
    fn extensions(self) -> (IpNumber, Vec<u8>) {
        let next = self.protocol().0;
        if self.routed {
            let mut route = vec![next, 2, 4, 1, 0, 0, 0, 0];
            route.extend(LAST_HOP);
            return (IpNumber(43), route);
        }
        let mut bytes = Vec::new();
        for at in (0..self.extra).step_by(8) {
            let next = if at + 8 == self.extra { next } else { 60 };
            // A padding option of 4 bytes.
            bytes.extend([next, 0, 1, 4, 0, 0, 0, 0]);
        }
        (
            if self.extra > 0 {
                IpNumber(0)
            } else {
                self.protocol()
            },
            bytes,
        )
    }

    /// The frame of `payload`, the `number`th of its kind at `offset`.
    fn frame(self, payload: &[u8], number: u16, offset: u32, last: bool) -> Vec<u8> {
        let mut frame = self.ethernet();
        let mut tcp = TcpHeader::new(4660, 22136, SEQUENCE.wrapping_add(offset), 1000);
        tcp.acknowledgment_number = 9;
        tcp.ack = true;
        (tcp.psh, tcp.fin) = (last, last);
        tcp.cwr = number == 0;
        tcp.set_options_raw(&[1; 12]).unwrap();
        let transport = if self.tcp { tcp.header_len() } else { 8 };
        if self.v6 {
            let (next_header, extensions) = self.extensions();
            let mut ip = Ipv6Header {
                payload_length: (extensions.len() + transport + payload.len()) as u16,
                next_header,
                hop_limit: 64,
                source: std::array::from_fn(|n| 3 * n as u8),
                destination: std::array::from_fn(|n| 255 - n as u8),
                ..Ipv6Header::default()
            };
            frame.extend(ip.to_bytes());
            frame.extend(&extensions);
            if self.routed {
                ip.destination = LAST_HOP;
            }
            if self.tcp {
                tcp.checksum = tcp.calc_checksum_ipv6(&ip, payload).unwrap();
            } else {
                let udp = UdpHeader::with_ipv6_checksum(7, 9, &ip, payload).unwrap();
                frame.extend(udp.to_bytes());
            }
        } else {
            let (from, to) = ([10, 1, 2, 3], [192, 168, 4, 5]);
            let len = (transport + payload.len()) as u16;
            let mut ip = Ipv4Header::new(len, 64, self.protocol(), from, to).unwrap();
            ip.options = vec![1; self.extra].as_slice().try_into().unwrap();
            ip.total_len += self.extra as u16;
            ip.identification = FIRST_ID.wrapping_add(number);
            ip.header_checksum = ip.calc_header_checksum();
            frame.extend(ip.to_bytes());
            if self.tcp {
                tcp.checksum = tcp.calc_checksum_ipv4(&ip, payload).unwrap();
            } else {
                let udp = UdpHeader::with_ipv4_checksum(7, 9, &ip, payload).unwrap();
                frame.extend(udp.to_bytes());
            }
        }
        if self.tcp {
            frame.extend(tcp.to_bytes());
        }
        frame.extend(payload);
        frame
    }

    fn transport_at(self) -> usize {
        let ip = 14 + 4 * self.vlans;
        ip + match (self.v6, self.routed) {
            (false, _) => 20 + self.extra,
            (true, false) => 40 + self.extra,
            (true, true) => 40 + 24,
        }
    }

    /// The request to cut a frame of this kind.
    fn asking(self, size: u16) -> [u8; HEADER] {
        let (kind, offset) = match (self.tcp, self.v6) {
            (true, false) => (GSO_TCPV4 | GSO_ECN, 16u16),
            (true, true) => (GSO_TCPV6 | GSO_ECN, 16),
            (false, _) => (GSO_UDP_L4, 6),
        };
        let mut header = [0; HEADER];
        // The length of the headers is a lie.
        header[..4].copy_from_slice(&[NEEDS_CSUM, kind, 0xff, 0xff]);
        header[4..6].copy_from_slice(&size.to_le_bytes());
        header[6..8].copy_from_slice(&(self.transport_at() as u16).to_le_bytes());
        header[8..].copy_from_slice(&offset.to_le_bytes());
        header
    }

    /// All kinds whose headers are seen in a frame's head.
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for (tcp, v6, vlans, extra) in (0..2)
            .flat_map(|tcp| (0..2).map(move |v6| (tcp == 1, v6 == 1)))
            .flat_map(|(tcp, v6)| (0..3).map(move |vlans| (tcp, v6, vlans)))
            .flat_map(|(tcp, v6, vlans)| {
                let extras: &[usize] = if v6 { &[0, 8, 16] } else { &[0, 4, 40] };
                extras.iter().map(move |&extra| (tcp, v6, vlans, extra))
            })
        {
            let packet = Self {
                tcp,
                v6,
                vlans,
                extra,
                routed: false,
            };
            all.push(packet);
            if v6 && extra == 0 && vlans == 0 {
                all.push(Self {
                    routed: true,
                    ..packet
                });
            }
        }
        all
    }
}

fn finished(header: [u8; HEADER], frame: &[u8]) -> Vec<Vec<u8>> {
    let head = &frame[..frame.len().min(96)];
    let offload = Offload::parse(&header, head, frame.len());
    let mut done = Vec::new();
    let mut frame = frame.to_vec();
    offload
        .unwrap()
        .finish(&mut frame, &mut Vec::new(), |one| done.push(one.to_vec()));
    done
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 37 % 251) as u8).collect()
}

#[test]
fn segments_are_what_anybody_else_would_send() {
    for packet in Packet::all() {
        // Even and odd sizes; all full, a short last one, a last one of one byte; one alone.
        for (len, size) in [
            (4000, 1000),
            (4001, 1000),
            (4321, 777),
            (3110, 777),
            (50, 1400),
        ] {
            let payload = payload(len);
            let mut large = packet.frame(&payload, 0, 0, true);
            // Whatever the driver left where the checksum goes.
            let field = packet.transport_at() + if packet.tcp { 16 } else { 6 };
            large[field..field + 2].copy_from_slice(&[0xab, 0xcd]);
            let parts = payload.chunks(size);
            let count = parts.len();
            let expected: Vec<_> = parts
                .enumerate()
                .map(|(n, part)| packet.frame(part, n as u16, (n * size) as u32, n + 1 == count))
                .collect();
            let found = finished(packet.asking(size as u16), &large);
            assert_eq!(found.len(), expected.len(), "{packet:?}");
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found, expected, "{packet:?} of {len} in {size}");
            }
        }
    }
}

#[test]
fn the_longest_packets_are_cut() {
    for packet in Packet::all() {
        let most = 65535 + if packet.v6 { 40 } else { 0 } + 14 + 4 * packet.vlans;
        let headers = packet.frame(&[], 0, 0, true).len();
        let payload = payload(most.min(MAX_LARGE) - headers);
        let found = finished(packet.asking(1400), &packet.frame(&payload[..], 0, 0, true));
        assert_eq!(found.len(), payload.len().div_ceil(1400));
        assert_eq!(found[3], packet.frame(&payload[4200..5600], 3, 4200, false));
    }
}

#[test]
fn checksums_are_what_anybody_else_would_write() {
    for packet in Packet::all() {
        for len in [0, 1, 2, 17, 18, 1000, 1001] {
            let expected = packet.frame(&payload(len), 0, 0, true);
            let mut header = packet.asking(0);
            header[1] = 0;
            let mut frame = expected.clone();
            let start = packet.transport_at();
            let field = start + usize::from(header[8]);
            // The sum of the pseudo header is what is missing from all of the packet.
            frame[field..field + 2].fill(0);
            let pseudo = 0xffff - segment::fold(segment::sum(&expected[start..]));
            frame[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
            assert_eq!(finished(header, &frame), [expected], "{packet:?} of {len}");
        }
    }
}

#[test]
fn a_checksum_of_zero_is_written_as_the_protocol_wants() {
    for packet in Packet::all() {
        // A payload that makes the sum all ones.
        let mut body = payload(100);
        body[..2].fill(0);
        let field = packet.transport_at() + if packet.tcp { 16 } else { 6 };
        let first = packet.frame(&body, 0, 0, true);
        body[..2].copy_from_slice(&first[field..field + 2]);
        let expected = packet.frame(&body, 0, 0, true);
        let zero = if packet.tcp { [0, 0] } else { [0xff, 0xff] };
        assert_eq!(expected[field..field + 2], zero);
        let mut large = expected.clone();
        large[field] = 1;
        assert_eq!(
            finished(packet.asking(1000), &large),
            [expected],
            "{packet:?}"
        );
    }
}

#[test]
fn datagrams_that_cannot_be_cut_are_refused() {
    let packet = Packet {
        tcp: false,
        v6: false,
        vlans: 0,
        extra: 0,
        routed: false,
    };
    let frame = packet.frame(&payload(1000), 0, 0, true);
    let parse = |header: [u8; HEADER], frame: &[u8]| {
        Offload::parse(&header, &frame[..frame.len().min(96)], frame.len()).is_ok()
    };
    let good = packet.asking(100);
    assert!(parse(good, &frame));
    let with = |at: usize, value: u8| {
        let mut header = good;
        header[at] = value;
        header
    };
    assert!(!parse(with(4, 0), &frame), "nothing at a time");
    assert!(!parse(with(4, 7), &frame), "142 very small ones");
    assert!(parse(with(4, 8), &frame), "125 very small ones");
    assert!(!parse(with(1, GSO_UDP_L4 | GSO_ECN), &frame), "congestion");
    assert!(!parse(with(1, 3), &frame), "fragmentation");
    assert!(!parse(with(1, GSO_TCPV4), &frame), "not TCP");
    assert!(!parse(with(8, 16), &frame), "the checksum of TCP");
    assert!(!parse(with(6, 35), &frame), "UDP elsewhere");
    assert!(!parse(good, &frame[..42]), "no payload");
    // Parts of a packet, and a packet that is already one.
    for flags in [0x20, 0x01] {
        let mut part = frame.clone();
        part[20] = flags;
        assert!(!parse(good, &part), "a fragment");
    }
    let v6 = Packet {
        v6: true,
        extra: 8,
        ..packet
    };
    let mut frame = v6.frame(&payload(1000), 0, 0, true);
    assert!(parse(v6.asking(100), &frame));
    frame[20] = 44;
    assert!(!parse(v6.asking(100), &frame), "a fragment");
    frame[20] = 50;
    assert!(!parse(v6.asking(100), &frame), "encrypted");
}
