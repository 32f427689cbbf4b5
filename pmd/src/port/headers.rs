//! Where the headers of a frame are: Ethernet, up to three VLAN tags, IP with options or extension
//! headers, and what comes next. Reads a private copy; every walk is bounded. Pure.

/// EtherType of IPv4.
const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
const IPV6: u16 = 0x86dd;
/// Protocol number of TCP.
pub(super) const TCP: u8 = 6;
/// Protocol number of UDP.
pub(super) const UDP: u8 = 17;
/// "No next header" of IPv6: nothing known follows.
const NOTHING: u8 = 59;

/// Most extension headers of IPv6 that are followed.
const MAX_EXTENSIONS: usize = 8;
/// Length of an IPv6 header.
pub(super) const IPV6_HEADER: usize = 40;

/// What a frame carries. Offsets are from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layers {
    /// Where the IP header is.
    pub(super) ip: usize,
    /// IPv6, not IPv4.
    pub(super) v6: bool,
    /// Where it goes in the end, which counts for checksums: another address than the header's
    /// if a routing header has some left.
    pub(super) destination: usize,
    /// What follows the IP header and its extensions, and where.
    pub(super) protocol: u8,
    pub(super) transport: usize,
    /// Only a part of a packet.
    pub(super) fragment: bool,
}

/// The big-endian number at `at`.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

/// Where the network header begins and which EtherType it has, behind at most three VLAN tags: two of a
/// guest's and one that the switch put there.
pub(super) fn network(frame: &[u8]) -> Option<(usize, u16)> {
    let mut at = 12;
    for _ in 0..4 {
        let kind = u16_at(frame, at)?;
        at += 2;
        if !matches!(kind, 0x8100 | 0x88a8) {
            return Some((at, kind));
        }
        at += 2;
    }
    None
}

/// The layers of a frame that begins with `head`. `None` if it is no IP, or the head ends before
/// the IP header does.
pub(super) fn layers(head: &[u8]) -> Option<Layers> {
    let (ip, kind) = network(head)?;
    let first = *head.get(ip)?;
    match (kind, first >> 4) {
        (IPV4, 4) => {
            let header = 4 * usize::from(first & 15);
            head.get(ip..ip + header)?;
            (header >= 20).then_some(Layers {
                ip,
                v6: false,
                destination: ip + 16,
                protocol: *head.get(ip + 9)?,
                transport: ip + header,
                fragment: u16_at(head, ip + 6)? & 0x3fff != 0,
            })
        }
        (IPV6, 6) => {
            head.get(ip..ip + IPV6_HEADER)?;
            let mut layers = Layers {
                ip,
                v6: true,
                destination: ip + 24,
                protocol: *head.get(ip + 6)?,
                transport: ip + IPV6_HEADER,
                fragment: false,
            };
            if layers.extensions(head).is_none() {
                layers.protocol = NOTHING;
            }
            Some(layers)
        }
        _ => None,
    }
}

impl Layers {
    /// Goes behind the extension headers (RFC 8200, 4). `None` if they do not end in `head`.
    fn extensions(&mut self, head: &[u8]) -> Option<()> {
        for _ in 0..MAX_EXTENSIONS {
            let at = self.transport;
            let length = match self.protocol {
                // Hop-by-hop and destination options.
                0 | 60 => 8 + 8 * usize::from(*head.get(at + 1)?),
                43 => {
                    let words = usize::from(*head.get(at + 1)?);
                    self.route(head, at, words)?;
                    8 + 8 * words
                }
                44 => {
                    self.fragment = true;
                    8
                }
                _ => return Some(()),
            };
            self.protocol = *head.get(at)?;
            self.transport = at + length;
        }
        None
    }

    /// Which address of the routing header at `at` is the last one.
    fn route(&mut self, head: &[u8], at: usize, words: usize) -> Option<()> {
        let (kind, left) = (*head.get(at + 2)?, *head.get(at + 3)?);
        let last = match (left, kind) {
            (0, _) => return Some(()),
            // The source route of old, in order of visits.
            (_, 0) => (8 * words).checked_sub(8)?,
            // Mobility has one; segment routing lists them backwards.
            (_, 2 | 4) if words >= 2 => 8,
            _ => return None,
        };
        self.destination = at + last;
        head.get(at + last..at + last + 16).map(drop)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, next, 64]);
        frame.extend([0; 32]);
        frame.extend(rest);
        frame
    }

    #[test]
    fn extension_headers_are_followed() {
        let plain = layers(&v6(TCP, &[])).unwrap();
        assert_eq!((plain.protocol, plain.transport), (TCP, 54));
        let mut rest = vec![60, 0, 0, 0, 0, 0, 0, 0];
        rest.extend([UDP, 1]);
        rest.extend([0; 14]);
        let two = layers(&v6(0, &rest)).unwrap();
        assert_eq!((two.protocol, two.transport), (UDP, 78));
        assert!(!two.fragment);
        let fragment = layers(&v6(44, &[UDP, 0, 0, 1, 0, 0, 0, 7])).unwrap();
        assert!(fragment.fragment);
        // Cut short, or without end.
        assert_eq!(layers(&v6(0, &[])).unwrap().protocol, NOTHING);
        assert_eq!(layers(&v6(0, &[0; 200])).unwrap().protocol, NOTHING);
    }

    #[test]
    fn the_last_address_of_a_route_counts() {
        let route = |kind: u8, left: u8, words: u8| {
            let mut rest = vec![TCP, words, kind, left, 0, 0, 0, 0];
            rest.extend([0; 32]);
            layers(&v6(43, &rest)).unwrap()
        };
        assert_eq!(route(4, 0, 2).destination, 38);
        assert_eq!(route(4, 1, 4).destination, 54 + 8);
        assert_eq!(route(2, 1, 2).destination, 54 + 8);
        assert_eq!(route(0, 1, 4).destination, 54 + 24);
        // Nobody knows where these go.
        assert_eq!(route(0, 1, 0).protocol, NOTHING);
        assert_eq!(route(9, 1, 2).protocol, NOTHING);
    }

    #[test]
    fn nothing_but_ip_has_layers() {
        let mut frame = v6(TCP, &[]);
        assert_eq!(layers(&frame[..53]), None);
        frame[12] = 8;
        assert_eq!(layers(&frame), None);
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x44;
        assert_eq!(layers(&frame), None, "a header of 16 bytes");
        frame[14] = 0x45;
        assert_eq!(layers(&frame).unwrap().transport, 34);
        // A fourth tag.
        let tagged = [&[0; 12][..], &[0x81, 0, 0, 1].repeat(4), &[8, 0, 0x45]].concat();
        assert_eq!(layers(&tagged), None);
    }
}
