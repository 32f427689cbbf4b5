//! Checksums and segmentation in software, in a private copy of the frame.

use super::{Kind, Offload, TCP_CHECKSUM, UDP_CHECKSUM};
use crate::port::headers::{self, IPV6_HEADER, Layers, TCP, UDP, u16_at};

impl Offload {
    /// Does the work: hands `each` the frames that come of `frame`, complete. `segment` is room
    /// for one of them.
    pub fn finish(&self, frame: &mut [u8], segment: &mut Vec<u8>, mut each: impl FnMut(&mut [u8])) {
        if !self.is_large() {
            if self.kind == Kind::Checksum {
                let udp = self.csum_offset == UDP_CHECKSUM;
                fill(frame, self.csum_start.into(), self.csum_offset, udp);
            }
            each(frame);
            return;
        }
        let (Some(layers), Some((headers, payload))) = (
            headers::layers(frame),
            frame.split_at_checked(self.headers.into()),
        ) else {
            return;
        };
        let count = payload.len().div_ceil(usize::from(self.gso_size));
        for (number, part) in payload.chunks(self.gso_size.into()).enumerate() {
            segment.clear();
            segment.extend_from_slice(headers);
            segment.extend_from_slice(part);
            let offset = number * usize::from(self.gso_size);
            if self
                .complete(segment, &layers, number, offset as u32, number + 1 == count)
                .is_some()
            {
                each(segment);
            }
        }
    }

    /// Makes segment `number`, whose payload begins at `offset`, a frame of its own.
    fn complete(
        &self,
        frame: &mut [u8],
        layers: &Layers,
        number: usize,
        offset: u32,
        last: bool,
    ) -> Option<()> {
        let Layers { ip, transport, .. } = *layers;
        let length = frame.len().checked_sub(ip)?;
        let (source, address) = if layers.v6 {
            let length = u16::try_from(length.checked_sub(IPV6_HEADER)?).ok()?;
            put(frame, ip + 4, &length.to_be_bytes())?;
            (ip + 8, 16)
        } else {
            let length = u16::try_from(length).ok()?;
            let id = u16_at(frame, ip + 4)?.wrapping_add(number as u16);
            put(frame, ip + 2, &length.to_be_bytes())?;
            put(frame, ip + 4, &id.to_be_bytes())?;
            put(frame, ip + 10, &[0, 0])?;
            let sum = !fold(sum(frame.get(ip..transport)?));
            put(frame, ip + 10, &sum.to_be_bytes())?;
            (ip + 12, 4)
        };
        let length = u16::try_from(frame.len().checked_sub(transport)?).ok()?;
        let tcp = self.kind.is_tcp();
        let (protocol, field) = if tcp {
            number_tcp(frame, transport, number > 0, last, offset)?;
            (TCP, TCP_CHECKSUM)
        } else {
            put(frame, transport + 4, &length.to_be_bytes())?;
            (UDP, UDP_CHECKSUM)
        };
        let pseudo = sum(frame.get(source..source + address)?)
            + sum(frame.get(layers.destination..layers.destination + address)?)
            + u64::from(protocol)
            + u64::from(length);
        put(
            frame,
            transport + usize::from(field),
            &fold(pseudo).to_be_bytes(),
        )?;
        fill(frame, transport, field, !tcp);
        Some(())
    }
}

/// Sequence number and flags of a segment.
fn number_tcp(frame: &mut [u8], tcp: usize, later: bool, last: bool, offset: u32) -> Option<()> {
    /// TCP flags that only the last segment has: FIN and PSH.
    const LAST: u8 = 0x09;
    /// The flag that only the first has: CWR.
    const FIRST: u8 = 0x80;

    let sequence = frame.get(tcp + 4..tcp + 8)?.try_into().ok()?;
    let sequence = u32::from_be_bytes(sequence).wrapping_add(offset);
    put(frame, tcp + 4, &sequence.to_be_bytes())?;
    let flags = frame.get_mut(tcp + 13)?;
    if !last {
        *flags &= !LAST;
    }
    if later {
        *flags &= !FIRST;
    }
    Some(())
}

fn put(frame: &mut [u8], at: usize, bytes: &[u8]) -> Option<()> {
    frame
        .get_mut(at..at.checked_add(bytes.len())?)?
        .copy_from_slice(bytes);
    Some(())
}

/// The ones' complement sum of big-endian 16-bit words (RFC 1071). At most 64 KiB.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    // Summed as they lie in memory, twice as wide: the order of bytes comes out in the end.
    let (words, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    let sum = words
        .iter()
        .map(|word| u64::from(u32::from_ne_bytes(*word)));
    let sum = sum.sum::<u64>() + u64::from(u32::from_ne_bytes(last));
    u64::from(u16::from_be(fold(sum)))
}

pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Fills in the checksum at `offset` of what begins at `start`. The field holds the sum of the
/// pseudo header.
pub(super) fn fill(frame: &mut [u8], start: usize, offset: u16, udp: bool) {
    let Some(covered) = frame.get(start..) else {
        return;
    };
    // Zero means "no checksum" in UDP, and only there; all ones is the same number.
    let checksum = match !fold(sum(covered)) {
        0 if udp => 0xffff,
        checksum => checksum,
    };
    // Inside the frame: parse saw to it.
    let _ = put(frame, start + usize::from(offset), &checksum.to_be_bytes());
}
