//! Which flow a frame belongs to: a hash of addresses, protocol and ports.
//!
//! Reads only a private copy of headers. Frames of one flow always hash alike; fragments are
//! hashed without ports, because only the first has them.

use super::headers::u16_at;

const VLAN: [u16; 2] = [0x8100, 0x88a8];
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A hash of the flow that the frame starting with `head` belongs to.
pub fn hash(head: &[u8]) -> u32 {
    fields(head).unwrap_or_else(|| {
        // Not IP, or cut short: by Ethernet addresses.
        mix(0, head.get(..12).unwrap_or(head))
    })
}

fn fields(head: &[u8]) -> Option<u32> {
    let mut at = 12;
    let mut kind = u16_at(head, at)?;
    while VLAN.contains(&kind) && at < 20 {
        at += 4;
        kind = u16_at(head, at)?;
    }
    let packet = head.get(at + 2..)?;
    match kind {
        IPV4 => ipv4(packet),
        IPV6 => ipv6(packet),
        _ => None,
    }
}

fn ipv4(packet: &[u8]) -> Option<u32> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let protocol = *packet.get(9)?;
    let fragment = u16_at(packet, 6)? & 0x3fff != 0;
    let hash = mix(u32::from(protocol), packet.get(12..20)?);
    Some(with_ports(hash, protocol, fragment, packet.get(header..)))
}

fn ipv6(packet: &[u8]) -> Option<u32> {
    let protocol = *packet.get(6)?;
    let hash = mix(u32::from(protocol), packet.get(8..40)?);
    Some(with_ports(hash, protocol, false, packet.get(40..)))
}

fn with_ports(hash: u32, protocol: u8, fragment: bool, payload: Option<&[u8]>) -> u32 {
    let ports = payload.and_then(|payload| payload.get(..4));
    match ports {
        Some(ports) if !fragment && matches!(protocol, TCP | UDP) => mix(hash, ports),
        _ => hash,
    }
}

/// FNV-1a over 32-bit words, with a final avalanche so that the low bits can choose a queue.
fn mix(seed: u32, bytes: &[u8]) -> u32 {
    let mut hash = 0x811c_9dc5 ^ seed;
    for word in bytes.chunks(4) {
        let mut padded = [0; 4];
        for (to, from) in padded.iter_mut().zip(word) {
            *to = *from;
        }
        hash = (hash ^ u32::from_le_bytes(padded)).wrapping_mul(0x0100_0193);
        hash ^= hash >> 15;
    }
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^ (hash >> 13)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn udp4(port: u16, fragment: u16, id: u16) -> Vec<u8> {
        let mut frame = vec![0u8; 64];
        frame[12..14].copy_from_slice(&IPV4.to_be_bytes());
        frame[14] = 0x45;
        frame[18..20].copy_from_slice(&id.to_be_bytes());
        frame[20..22].copy_from_slice(&fragment.to_be_bytes());
        frame[23] = UDP;
        frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        frame[34..36].copy_from_slice(&port.to_be_bytes());
        frame
    }

    #[test]
    fn flows_stay_together_and_spread() {
        assert_eq!(hash(&udp4(7, 0, 1)), hash(&udp4(7, 0, 2)));
        let queues: std::collections::HashSet<_> =
            (0..64).map(|port| hash(&udp4(port, 0, 1)) % 4).collect();
        assert_eq!(queues.len(), 4);
        // More-fragments or an offset: ports do not count.
        assert_eq!(hash(&udp4(7, 0x2000, 1)), hash(&udp4(9, 0x0010, 1)));
    }

    #[test]
    fn any_length_has_a_hash() {
        let mut vlan = udp4(7, 0, 1);
        vlan.splice(12..12, [0x81, 0, 0, 5]);
        assert_eq!(hash(&vlan), hash(&udp4(7, 0, 1)));
        for len in 0..=64 {
            hash(&vlan[..len]);
            hash(&[0x81; 64][..len]);
            hash(&[0xff; 64][..len]);
        }
    }
}
