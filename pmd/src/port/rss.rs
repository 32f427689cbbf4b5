//! The hash by which receive-side scaling spreads flows (VIRTIO 1.2, 5.1.6.4.3): Toeplitz's, over
//! addresses and ports, with a key of the driver's. Reads a private copy of headers.

use super::headers::{self, Layers, TCP, UDP};

/// Bits of the hash types that are offered: addresses of IPv4 and IPv6, alone and with the ports
/// of TCP and UDP. Extension headers are skipped.
pub mod types {
    /// Addresses of IPv4.
    pub const IPV4: u32 = 1 << 0;
    /// And ports of TCP.
    pub const TCPV4: u32 = 1 << 1;
    /// And ports of UDP.
    pub const UDPV4: u32 = 1 << 2;
    /// Addresses of IPv6.
    pub const IPV6: u32 = 1 << 3;
    /// And ports of TCP.
    pub const TCPV6: u32 = 1 << 4;
    /// And ports of UDP.
    pub const UDPV6: u32 = 1 << 5;
    /// All of these.
    pub const ALL: u32 = IPV4 | TCPV4 | UDPV4 | IPV6 | TCPV6 | UDPV6;
}

/// Longest key: 32 bits more than the longest input.
pub const MAX_KEY: usize = 40;
/// Longest input: two addresses of IPv6 and two ports.
const MAX_INPUT: usize = 36;

/// A frame's hash, and of which kind it is (VIRTIO_NET_HASH_REPORT).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// The hash.
    pub value: u32,
    /// 0 if there is none.
    pub kind: u16,
}

impl Report {
    /// The end of the header that carries it (5.1.6): hash_value, hash_report, padding.
    pub fn to_bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.value.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.kind.to_le_bytes());
        bytes
    }
}

/// What is hashed, and with which key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowHash {
    types: u32,
    /// What each half byte of the input adds.
    shares: Box<[[u32; 16]; 2 * MAX_INPUT]>,
}

impl FlowHash {
    /// Of these types, with `key`; what is missing of it is zero.
    pub fn new(types: u32, key: &[u8]) -> Self {
        let mut whole = [0; MAX_KEY];
        for (to, from) in whole.iter_mut().zip(key) {
            *to = *from;
        }
        let mut shares = Box::new([[0; 16]; 2 * MAX_INPUT]);
        for (place, shares) in shares.iter_mut().enumerate() {
            for (nibble, share) in (0u8..).zip(shares) {
                let set = (0..4).filter(|bit| nibble & (8 >> bit) != 0);
                *share = set.fold(0, |sum, bit| sum ^ window(&whole, 4 * place + bit));
            }
        }
        Self { types, shares }
    }

    /// The hash of the frame that begins with `head`.
    #[inline]
    pub fn of(&self, head: &[u8]) -> Report {
        headers::layers(head)
            .and_then(|layers| self.of_layers(head, &layers))
            .unwrap_or_default()
    }

    fn of_layers(&self, head: &[u8], layers: &Layers) -> Option<Report> {
        let (addresses, all) = match layers.v6 {
            false => (head.get(layers.ip + 12..layers.ip + 20)?, [1, 2, 3]),
            true => (head.get(layers.ip + 8..layers.ip + 40)?, [4, 5, 6]),
        };
        let [alone, tcp, udp] = all;
        let has = |kind: u16| self.types & (1 << (kind - 1)) != 0;
        let ports = head.get(layers.transport..layers.transport + 4);
        let with_ports = match layers.protocol {
            // Only the first part of a packet has ports.
            _ if layers.fragment => None,
            TCP if has(tcp) => ports.map(|ports| (tcp, ports)),
            UDP if has(udp) => ports.map(|ports| (udp, ports)),
            _ => None,
        };
        let (kind, ports) = match with_ports {
            Some(with) => with,
            None if has(alone) => (alone, &[][..]),
            None => return None,
        };
        Some(Report {
            value: self.hash(addresses, ports),
            kind,
        })
    }

    fn hash(&self, addresses: &[u8], ports: &[u8]) -> u32 {
        let (pairs, _) = self.shares.as_chunks::<2>();
        let bytes = addresses.iter().chain(ports);
        let shares = bytes
            .zip(pairs)
            .map(|(byte, [high, low])| high[usize::from(byte >> 4)] ^ low[usize::from(byte & 15)]);
        shares.fold(0, |hash, share| hash ^ share)
    }
}

/// The 32 bits of the key from `bit` on.
fn window(key: &[u8; MAX_KEY], bit: usize) -> u32 {
    let mut eight = [0; 8];
    for (to, from) in eight.iter_mut().zip(key.iter().skip(bit / 8)) {
        *to = *from;
    }
    (u64::from_be_bytes(eight) << (bit % 8) >> 32) as u32
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    /// The key that everybody verifies with.
    pub(crate) const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f,
        0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30,
        0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    fn v4(from: (&str, u16), to: (&str, u16), protocol: u8) -> Vec<u8> {
        let address = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets();
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
        frame.extend(address(from.0));
        frame.extend(address(to.0));
        frame.extend(from.1.to_be_bytes());
        frame.extend(to.1.to_be_bytes());
        frame
    }

    fn v6(from: (&str, u16), to: (&str, u16), extension: bool) -> Vec<u8> {
        let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        let mut frame = vec![0; 12];
        let next = if extension { 60 } else { TCP };
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, next, 64]);
        frame.extend(address(from.0));
        frame.extend(address(to.0));
        if extension {
            frame.extend([TCP, 0, 1, 4, 0, 0, 0, 0]);
        }
        frame.extend(from.1.to_be_bytes());
        frame.extend(to.1.to_be_bytes());
        frame
    }

    #[test]
    fn the_published_hashes_come_out() {
        let (alone, ports) = (
            FlowHash::new(types::IPV4 | types::IPV6, &KEY),
            FlowHash::new(types::ALL, &KEY),
        );
        for (to, from, address, tcp) in [
            (
                ("161.142.100.80", 1766),
                ("66.9.149.187", 2794),
                0x323e_8fc2,
                0x51cc_c178,
            ),
            (
                ("65.69.140.83", 4739),
                ("199.92.111.2", 14230),
                0xd718_262a,
                0xc626_b0ea,
            ),
            (
                ("12.22.207.184", 38024),
                ("24.19.198.95", 12898),
                0xd2d0_a5de,
                0x5c2b_394a,
            ),
            (
                ("209.142.163.6", 2217),
                ("38.27.205.30", 48228),
                0x8298_9176,
                0xafc7_327f,
            ),
            (
                ("202.188.127.2", 1303),
                ("153.39.163.191", 44251),
                0x5d18_09c5,
                0x10e8_28a2,
            ),
        ] {
            let frame = v4(from, to, TCP);
            assert_eq!(
                alone.of(&frame),
                Report {
                    value: address,
                    kind: 1
                }
            );
            assert_eq!(
                ports.of(&frame),
                Report {
                    value: tcp,
                    kind: 2
                }
            );
            let udp = v4(from, to, UDP);
            assert_eq!(
                ports.of(&udp),
                Report {
                    value: tcp,
                    kind: 3
                }
            );
            // Part of a packet, and a packet of something else.
            let mut part = frame.clone();
            part[20] = 0x20;
            assert_eq!(
                ports.of(&part),
                Report {
                    value: address,
                    kind: 1
                }
            );
            assert_eq!(
                ports.of(&v4(from, to, 1)),
                Report {
                    value: address,
                    kind: 1
                }
            );
        }
        for (to, from, address, tcp) in [
            (
                ("3ffe:2501:200:3::1", 1766),
                ("3ffe:2501:200:1fff::7", 2794),
                0x2cc1_8cd5,
                0x4020_7d3d,
            ),
            (
                ("ff02::1", 4739),
                ("3ffe:501:8::260:97ff:fe40:efab", 14230),
                0x0f0c_461c,
                0xdde5_1bbf,
            ),
            (
                ("fe80::200:f8ff:fe21:67cf", 38024),
                ("3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251),
                0x4b61_e985,
                0x02d1_feef,
            ),
        ] {
            for extension in [false, true] {
                let frame = v6(from, to, extension);
                assert_eq!(
                    alone.of(&frame),
                    Report {
                        value: address,
                        kind: 4
                    }
                );
                assert_eq!(
                    ports.of(&frame),
                    Report {
                        value: tcp,
                        kind: 5
                    }
                );
            }
        }
    }

    #[test]
    fn what_is_not_asked_for_has_no_hash() {
        let frame = v4(("1.2.3.4", 5), ("6.7.8.9", 10), TCP);
        assert_eq!(FlowHash::new(0, &KEY).of(&frame), Report::default());
        let v6_only = FlowHash::new(types::IPV6 | types::TCPV6, &KEY);
        assert_eq!(v6_only.of(&frame), Report::default());
        let all = FlowHash::new(types::ALL, &KEY);
        for len in 0..frame.len() {
            let kind = all.of(&frame[..len]).kind;
            assert_eq!(kind, if len < 34 { 0 } else { 1 }, "{len} bytes");
        }
    }

    #[test]
    fn a_report_has_the_layout_of_the_specification() {
        let report = Report {
            value: 0x0403_0201,
            kind: 0x0605,
        };
        assert_eq!(report.to_bytes(), [1, 2, 3, 4, 5, 6, 0, 0]);
    }
}
