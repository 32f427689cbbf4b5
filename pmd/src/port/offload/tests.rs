#![allow(clippy::unwrap_used)]
use super::segment::{fill, fold, sum};
use super::*;

/// TCP over IPv4 or IPv6 with options, behind `vlans` tags, as a driver hands it over for
/// segmentation: the checksum field holds anything.
fn tcp(v6: bool, vlans: usize, payload: usize) -> (Vec<u8>, usize, usize) {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for _ in 0..vlans {
        frame.extend([0x81, 0x00, 0, 5]);
    }
    let total = 32 + payload;
    let ip = frame.len() + 2;
    if v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((total as u16).to_be_bytes());
        frame.extend([6, 64]);
        frame.extend((0..32).map(|n| n * 7));
    } else {
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend(((20 + total) as u16).to_be_bytes());
        frame.extend([
            0xff, 0xff, 0x40, 0, 64, 6, 0xaa, 0xaa, 10, 0, 0, 1, 10, 0, 0, 2,
        ]);
    }
    let tcp = frame.len();
    frame.extend([0x12, 0x34, 0x56, 0x78]);
    frame.extend(0xffff_ff00u32.to_be_bytes());
    // 32 bytes of header; CWR, ACK, PSH, FIN.
    frame.extend([0, 0, 0, 9, 0x80, 0x99, 1, 0, 0xbb, 0xbb, 0, 0]);
    frame.extend([1; 12]);
    frame.extend((0..payload).map(|n| (n * 31 % 251) as u8));
    (frame, ip, tcp)
}

fn ask(gso_type: u8, gso_size: u16, start: usize, offset: u16) -> [u8; HEADER] {
    let mut header = [NEEDS_CSUM, gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
    header[4..6].copy_from_slice(&gso_size.to_le_bytes());
    header[6..8].copy_from_slice(&(start as u16).to_le_bytes());
    header[8..].copy_from_slice(&offset.to_le_bytes());
    header
}

/// A receiver's view: checks lengths and checksums and returns TCP sequence, flags and payload.
fn check(frame: &[u8], ip: usize, tcp: usize, v6: bool) -> (u32, u8, Vec<u8>) {
    let word = |at: usize| u16::from_be_bytes(frame[at..at + 2].try_into().unwrap());
    let addresses = if v6 {
        assert_eq!(usize::from(word(ip + 4)), frame.len() - ip - 40);
        ip + 8..ip + 40
    } else {
        assert_eq!(usize::from(word(ip + 2)), frame.len() - ip);
        assert_eq!(fold(sum(&frame[ip..tcp])), 0xffff, "IP header checksum");
        ip + 12..ip + 20
    };
    let pseudo = sum(&frame[addresses]) + 6 + (frame.len() - tcp) as u64;
    assert_eq!(fold(pseudo + sum(&frame[tcp..])), 0xffff, "TCP checksum");
    let sequence = u32::from_be_bytes(frame[tcp + 4..tcp + 8].try_into().unwrap());
    (sequence, frame[tcp + 13], frame[tcp + 32..].to_vec())
}

#[test]
fn segments_add_up_to_the_frame() {
    for (v6, vlans, payload, size) in [
        (false, 0, 5000, 1448),
        (true, 0, 65000, 1428),
        (false, 2, 4096, 1024),
        (true, 2, 33, 32),
        (false, 1, 100, 9000),
        (false, 0, 2001, 333),
    ] {
        let (mut frame, ip, start) = tcp(v6, vlans, payload);
        let original = frame.clone();
        let kind = if v6 { GSO_TCPV6 } else { GSO_TCPV4 } | GSO_ECN;
        let header = ask(kind, size, start, TCP_CHECKSUM);
        let offload = Offload::parse(&header, &frame[..frame.len().min(96)], frame.len()).unwrap();
        assert!(offload.is_large());
        assert_eq!(usize::from(offload.headers), start + 32);

        let mut segments = Vec::new();
        offload.finish(&mut frame, &mut Vec::new(), |segment| {
            segments.push(segment.to_vec())
        });
        assert_eq!(segments.len(), payload.div_ceil(size.into()));
        let mut bytes = Vec::new();
        for (number, segment) in segments.iter().enumerate() {
            let (sequence, flags, part) = check(segment, ip, start, v6);
            assert_eq!(sequence, 0xffff_ff00u32.wrapping_add(bytes.len() as u32));
            assert_eq!(
                flags & 0x09 != 0,
                number + 1 == segments.len(),
                "FIN and PSH"
            );
            assert_eq!(flags & 0x80 != 0, number == 0, "CWR");
            if !v6 {
                let id = u16::from_be_bytes([segment[ip + 4], segment[ip + 5]]);
                assert_eq!(id, 0xffffu16.wrapping_add(number as u16));
            }
            bytes.extend(part);
        }
        assert_eq!(bytes, original[start + 32..]);
    }
}

#[test]
fn a_checksum_is_filled_in() {
    // UDP over IPv4, odd length; the field holds the sum of the pseudo header.
    let mut frame = vec![0u8; 14 + 20 + 8 + 5];
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[42..].copy_from_slice(b"hello");
    frame[34..40].copy_from_slice(&[0x30, 0x39, 0, 53, 0, 13]);
    let pseudo = 0x0a00u64 + 1 + 0x0a00 + 2 + 17 + 13;
    frame[40..42].copy_from_slice(&fold(pseudo).to_be_bytes());
    let offload = Offload::parse(&ask(0, 77, 34, 6), &frame, frame.len()).unwrap();
    assert!(!offload.is_none() && !offload.is_large());
    let mut done = Vec::new();
    offload.finish(&mut frame, &mut Vec::new(), |frame| done = frame.to_vec());
    assert_eq!(fold(pseudo + sum(&done[34..])), 0xffff);
    // What goes on says nothing that was not understood.
    assert_eq!(offload.emit()[..6], [NEEDS_CSUM, 0, 0, 0, 0, 0]);
}

#[test]
fn a_sum_of_nothing_is_all_ones_in_udp_and_only_there() {
    for (udp, expected) in [(true, [0xff, 0xff]), (false, [0, 0])] {
        let mut frame = vec![0u8; 40];
        frame[14] = 0xff;
        frame[15] = 0xff;
        fill(&mut frame, 14, 6, udp);
        assert_eq!(frame[20..22], expected);
    }
}

#[test]
fn senseless_headers_are_refused() {
    let (frame, _, start) = tcp(false, 0, 3000);
    let parse = |header: [u8; HEADER], frame: &[u8]| {
        Offload::parse(&header, &frame[..frame.len().min(96)], frame.len())
    };
    let good = ask(GSO_TCPV4, 1448, start, TCP_CHECKSUM);
    assert!(parse(good, &frame).is_ok());
    let bad = [
        ("checksum before the packet", ask(0, 0, 13, 16)),
        ("checksum beyond the frame", ask(0, 0, frame.len() - 17, 16)),
        (
            "offsets that add up to more than 16 bits",
            ask(0, 0, 0xffff, 0xffff),
        ),
        (
            "a kind of segmentation that is not offered",
            ask(3, 1448, start, 16),
        ),
        ("the other IP version", ask(GSO_TCPV6, 1448, start, 16)),
        ("segments of nothing", ask(GSO_TCPV4, 0, start, 16)),
        (
            "segments of almost nothing",
            ask(GSO_TCPV4, MIN_SEGMENT - 1, start, 16),
        ),
        ("TCP where it is not", ask(GSO_TCPV4, 1448, start + 4, 16)),
        ("the checksum of UDP", ask(GSO_TCPV4, 1448, start, 6)),
    ];
    for (what, header) in bad {
        assert!(parse(header, &frame).is_err(), "{what}");
    }
    let mut without_checksum = good;
    without_checksum[0] = 0;
    assert!(
        parse(without_checksum, &frame).is_err(),
        "no checksum asked for"
    );
    for (at, value) in [
        (12, 0x86),
        (14, 0x65),
        (14, 0x46),
        (23, 17),
        (start + 12, 0x40),
        (start + 12, 0xf0),
    ] {
        let mut frame = frame.clone();
        frame[at] = value;
        let result = parse(good, &frame);
        // 15 words of TCP header are allowed as long as they are there.
        assert_eq!(
            result.is_ok(),
            (at, value) == (start + 12, 0xf0),
            "byte {at} = {value:#x}"
        );
    }
    assert!(parse(good, &frame[..start + 32]).is_err(), "no payload");
    assert!(parse(good, &frame[..start + 12]).is_err(), "no TCP");
    assert!(parse(good, &frame[..14]).is_err(), "no IP");
}

#[test]
fn whatever_is_asked_of_whatever_nothing_breaks() {
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..20_000 {
        let (mut frame, _, start) = tcp(
            random() & 1 == 0,
            random() as usize % 3,
            random() as usize % 500,
        );
        frame.truncate(14 + random() as usize % frame.len());
        for _ in 0..random() % 4 {
            let at = random() as usize % frame.len();
            frame[at] = random() as u8;
        }
        let kinds = [0, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, random() as u8];
        let kind = kinds[random() as usize % kinds.len()];
        let offset = [TCP_CHECKSUM, UDP_CHECKSUM][random() as usize % 2];
        if kind == GSO_UDP_L4 && random() & 1 == 0 {
            for at in [23, start.saturating_sub(34)] {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = 17;
                }
            }
        }
        let mut header = ask(kind, random() as u16 % 600, start, offset);
        if random() & 3 == 0 {
            header[random() as usize % HEADER] = random() as u8;
        }
        let head = frame[..frame.len().min(96)].to_vec();
        if let Ok(offload) = Offload::parse(&header, &head, frame.len()) {
            let again = Offload::parse(&offload.emit(), &head, frame.len());
            assert_eq!(again, Ok(offload), "what is passed on is valid");
            let (limit, mut count) = (frame.len(), 0);
            offload.finish(&mut frame, &mut Vec::new(), |done| {
                assert!(done.len() <= limit);
                count += 1;
            });
            let most = match offload.is_large() {
                true => (limit / usize::from(MIN_SEGMENT) + 1).max(MAX_SMALL_DATAGRAMS),
                false => 1,
            };
            assert!((1..=most).contains(&count), "{count} of {most}");
        }
    }
}

#[test]
fn what_a_guest_says_of_the_checksum_goes_nowhere() {
    // DATA_VALID and RSC_INFO, with or without a request.
    let (frame, _, start) = tcp(false, 0, 100);
    for flags in [2, 4, 6] {
        let mut header = [0; HEADER];
        header[0] = flags;
        let offload = Offload::parse(&header, &frame[..96], frame.len()).unwrap();
        assert!(offload.is_none());
        assert_eq!(offload.emit(), [0; HEADER]);
        let mut header = ask(0, 0, start, TCP_CHECKSUM);
        header[0] |= flags;
        let offload = Offload::parse(&header, &frame[..96], frame.len()).unwrap();
        assert_eq!(offload.emit()[0], NEEDS_CSUM);
    }
}

#[test]
fn who_takes_what() {
    let (frame, _, start) = tcp(false, 0, 3000);
    let large =
        Offload::parse(&ask(GSO_TCPV4, 1448, start, 16), &frame[..96], frame.len()).unwrap();
    let marked = ask(GSO_TCPV4 | GSO_ECN, 1448, start, 16);
    let marked = Offload::parse(&marked, &frame[..96], frame.len()).unwrap();
    let plain = Offload::parse(&ask(0, 0, start, 16), &frame[..96], frame.len()).unwrap();
    let datagrams = [Kind::Udp4, Kind::Udp6].map(|kind| Offload { kind, ..large });
    let nothing = Accepts::default();
    let csum = Accepts {
        csum: true,
        ..nothing
    };
    let tso4 = Accepts { tso4: true, ..csum };
    let tso6 = Accepts { tso6: true, ..csum };
    let ecn = Accepts { ecn: true, ..tso4 };
    let takes =
        |who: Accepts| [&Offload::NONE, &plain, &large, &marked].map(|what| who.takes(what));
    assert_eq!(takes(nothing), [true, false, false, false]);
    assert_eq!(takes(csum), [true, true, false, false]);
    assert_eq!(takes(tso6), [true, true, false, false]);
    assert_eq!(takes(tso4), [true, true, true, false]);
    assert_eq!(takes(ecn), [true, true, true, true]);

    let uso4 = Accepts { uso4: true, ..csum };
    let uso6 = Accepts { uso6: true, ..csum };
    let takes = |who: Accepts| datagrams.map(|what| who.takes(&what));
    assert_eq!(takes(ecn), [false, false]);
    assert_eq!(takes(uso4), [true, false]);
    assert_eq!(takes(uso6), [false, true]);
    assert_eq!(
        takes(Accepts {
            csum: false,
            ..uso4
        }),
        [false, false]
    );
}
