//! What a guest leaves to us: the header before a frame, how long the frame is, and its first
//! bytes; the rest is zero.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use vvu_pmd::port::HEAD;
use vvu_pmd::port::offload::{HEADER, MAX_LARGE, Offload};

use crate::Input;

/// Judges the header and does what it asks for. What comes of it is no longer than what went in,
/// not many more, and each segment has the lengths and the checksums that others would give it.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let header: [u8; HEADER] = std::array::from_fn(|_| input.u8());
    let len = usize::from(input.u16());
    let mut frame = input.bytes(usize::MAX);
    frame.resize(len.max(frame.len()).min(MAX_LARGE), 0);

    let head = &frame[..frame.len().min(HEAD)];
    let Ok(offload) = Offload::parse(&header, head, frame.len()) else {
        return;
    };
    let passed_on = Offload::parse(&offload.emit(), head, frame.len());
    assert_eq!(passed_on, Ok(offload), "what is passed on is valid");
    let (longest, mut count) = (frame.len(), 0);
    offload.finish(&mut frame, &mut Vec::new(), |done| {
        assert!(done.len() <= longest);
        count += 1;
        if offload.is_large() {
            check(done);
        }
    });
    let most = if offload.is_large() {
        MAX_LARGE / 32
    } else {
        1
    };
    assert!((1..=most).contains(&count), "{count} frames");
}

/// Checks what `etherparse` understands.
fn check(frame: &[u8]) {
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else {
        return;
    };
    let udp_or_tcp = |v4: Option<([u8; 4], [u8; 4])>, v6: Option<([u8; 16], [u8; 16])>| {
        let (found, expected) = match &packet.transport {
            // It forgets reserved bits.
            Some(TransportSlice::Tcp(tcp)) if tcp.slice()[12] & 0x0e == 0 => {
                let (header, payload) = (tcp.to_header(), tcp.payload());
                let expected = match (v4, v6) {
                    (Some((from, to)), _) => header.calc_checksum_ipv4_raw(from, to, payload),
                    (_, Some((from, to))) => header.calc_checksum_ipv6_raw(from, to, payload),
                    _ => return,
                };
                (header.checksum, expected)
            }
            Some(TransportSlice::Udp(udp)) => {
                let (header, payload) = (udp.to_header(), udp.payload());
                assert_eq!(usize::from(header.length), 8 + payload.len());
                let expected = match (v4, v6) {
                    (Some((from, to)), _) => header.calc_checksum_ipv4_raw(from, to, payload),
                    (_, Some((from, to))) => header.calc_checksum_ipv6_raw(from, to, payload),
                    _ => return,
                };
                (header.checksum, expected)
            }
            _ => return,
        };
        assert_eq!(Ok(found), expected, "checksum");
    };
    match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header().to_header();
            // It forgets the reserved flag, too.
            if ip.header().slice()[6] & 0x80 == 0 {
                assert_eq!(header.header_checksum, header.calc_header_checksum());
            }
            udp_or_tcp(Some((header.source, header.destination)), None);
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header().to_header();
            // With a routing header, another destination counts.
            let routed = ip.extensions().clone().into_iter();
            if !routed
                .into_iter()
                .any(|one| matches!(one, etherparse::Ipv6ExtensionSlice::Routing(_)))
            {
                udp_or_tcp(None, Some((header.source, header.destination)));
            }
        }
        _ => {}
    }
}
