//! The frames that guests send each other: what they look like, and whether they are whole.
//!
//! An Ethernet header with a type for local experiments, a header of ours, anything, and a
//! checksum over all but the Ethernet header, which those on the way may change. Pure.

/// IEEE 802's type for local experiments.
pub(super) const ETHER_TYPE: [u8; 2] = [0x88, 0xb5];
const MAGIC: [u8; 4] = *b"vvug";
/// Where our header begins, and what follows it.
const START: usize = 14;
const BODY: usize = START + 36;
const CHECK: usize = 8;

/// Bytes that say everything about a frame but whether it is whole.
pub(super) const SNAP: usize = BODY;

/// An address that nobody has: switches send a frame to it to everybody.
pub(super) const ANYBODY: [u8; 6] = [0x02, 0x76, 0x76, 0x75, 0x00, 0x01];

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Whoever gets this sends it back as an answer.
    Probe = 1,
    /// A probe sent back; its value is how many blasts of the asker arrived.
    Answer = 2,
    /// One of many that are only counted.
    Blast = 3,
    /// A verifier is there and goes on at this sequence number; its value says what it takes.
    Hello = 4,
    /// A verifier's frame.
    Data = 5,
    /// A verifier has what was sent before the sequence number in value, as far as it ever will.
    Ack = 6,
    /// A verifier has sent all before this sequence number, and waits to hear of it.
    Sync = 7,
    /// The same, and there will be no more.
    Done = 8,
    /// A verifier has heard that; its value is the number of frames that it misses or that came
    /// wrong.
    Verdict = 9,
}

impl Kind {
    fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            1 => Self::Probe,
            2 => Self::Answer,
            3 => Self::Blast,
            4 => Self::Hello,
            5 => Self::Data,
            6 => Self::Ack,
            7 => Self::Sync,
            8 => Self::Done,
            9 => Self::Verdict,
            _ => return None,
        })
    }
}

/// A frame's headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) destination: [u8; 6],
    pub(super) source: [u8; 6],
    pub(super) kind: Kind,
    /// Counts how often the sender has lost its connection.
    pub(super) epoch: u16,
    /// Who sends this: a number of its own for each run.
    pub(super) origin: u64,
    pub(super) sequence: u64,
    pub(super) value: u64,
}

/// What arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) header: Header,
    /// Length of the frame when it was sent.
    pub(super) len: usize,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// Writes the headers and the checksum of a frame whose body is in place. `frame` must have at
/// least [`super::args::MIN_FRAME`] bytes.
pub(super) fn finish(frame: &mut [u8], header: &Header) {
    let len = frame.len();
    let mut bytes = [0; BODY];
    bytes[..6].copy_from_slice(&header.destination);
    bytes[6..12].copy_from_slice(&header.source);
    bytes[12..14].copy_from_slice(&ETHER_TYPE);
    bytes[14..18].copy_from_slice(&MAGIC);
    bytes[18] = header.kind as u8;
    bytes[20..22].copy_from_slice(&header.epoch.to_le_bytes());
    bytes[22..24].copy_from_slice(&(len as u16).to_le_bytes());
    bytes[26..34].copy_from_slice(&header.origin.to_le_bytes());
    bytes[34..42].copy_from_slice(&header.sequence.to_le_bytes());
    bytes[42..50].copy_from_slice(&header.value.to_le_bytes());
    if let Some(start) = frame.get_mut(..BODY) {
        start.copy_from_slice(&bytes);
    }
    let check = frame.get(START..len - CHECK).map_or(0, checksum);
    if let Some(end) = frame.get_mut(len - CHECK..) {
        end.copy_from_slice(&check.to_le_bytes());
    }
}

/// Whether this is the beginning of what follows the Ethernet header of a frame of ours.
pub(super) fn begins(payload: &[u8]) -> bool {
    payload.starts_with(&MAGIC)
}

/// The headers of a frame of ours; `None` if it is none. Only the first [`SNAP`] bytes are needed.
pub(super) fn parse(frame: &[u8]) -> Option<Seen> {
    if array(frame, 12)? != ETHER_TYPE || array(frame, START)? != MAGIC {
        return None;
    }
    Some(Seen {
        header: Header {
            destination: array(frame, 0)?,
            source: array(frame, 6)?,
            kind: Kind::from_u8(*frame.get(18)?)?,
            epoch: u16::from_le_bytes(array(frame, 20)?),
            origin: u64::from_le_bytes(array(frame, 26)?),
            sequence: u64::from_le_bytes(array(frame, 34)?),
            value: u64::from_le_bytes(array(frame, 42)?),
        },
        len: u16::from_le_bytes(array(frame, 22)?).into(),
    })
}

/// Whether a frame has the length and the bytes that it was sent with.
pub(super) fn is_whole(frame: &[u8], seen: &Seen) -> bool {
    let check = seen.len.checked_sub(CHECK).and_then(|at| {
        let body = frame.get(START..at)?;
        Some((checksum(body), u64::from_le_bytes(array(frame, at)?)))
    });
    frame.len() == seen.len && check.is_some_and(|(found, expected)| found == expected)
}

/// Eight bytes at a time, each of which moves all that comes after it.
fn checksum(bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |sum: u64, word: u64| (sum ^ word).wrapping_mul(FACTOR).rotate_left(29);
    let (words, rest) = bytes.as_chunks::<8>();
    let sum = words.iter().fold(bytes.len() as u64, |sum, word| {
        mix(sum, u64::from_le_bytes(*word))
    });
    let mut last = [0; 8];
    if let Some(start) = last.get_mut(..rest.len()) {
        start.copy_from_slice(rest);
    }
    mix(sum, u64::from_le_bytes(last))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn header() -> Header {
        Header {
            destination: ANYBODY,
            source: [2, 3, 4, 5, 6, 7],
            kind: Kind::Data,
            epoch: 3,
            origin: 0x0102_0304_0506_0708,
            sequence: 9,
            value: 10,
        }
    }

    #[test]
    fn what_is_sent_is_seen() {
        for len in [60, 61, 67, 68, 1514, 9018] {
            let mut frame = vec![0xa5; len];
            finish(&mut frame, &header());
            let seen = parse(&frame[..SNAP]).unwrap();
            assert_eq!((seen.header, seen.len), (header(), len));
            assert!(is_whole(&frame, &seen));
            assert!(!is_whole(&frame[..len - 1], &seen), "short");
            frame.push(0);
            assert!(!is_whole(&frame, &seen), "long");
        }
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let mut frame = vec![0; 64];
        finish(&mut frame, &header());
        for bit in START * 8..frame.len() * 8 {
            frame[bit / 8] ^= 1 << (bit % 8);
            let whole = parse(&frame).is_some_and(|seen| is_whole(&frame, &seen));
            assert!(!whole, "bit {bit}");
            frame[bit / 8] ^= 1 << (bit % 8);
        }
        // Words that changed places are noticed, too.
        frame[50..58].copy_from_slice(&[1; 8]);
        finish(&mut frame, &header());
        let seen = parse(&frame).unwrap();
        frame.swap(49, 50);
        assert!(!is_whole(&frame, &seen));
        // Addresses are for those on the way.
        frame.swap(49, 50);
        frame[3] = 0xff;
        assert!(is_whole(&frame, &parse(&frame).unwrap()));
    }

    #[test]
    fn anything_can_arrive() {
        let mut rng = fastrand::Rng::with_seed(1);
        for len in 0..200 {
            let mut bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(len).collect();
            assert_eq!(parse(&bytes), None);
            if len >= 18 {
                bytes[12..14].copy_from_slice(&ETHER_TYPE);
                bytes[14..18].copy_from_slice(&MAGIC);
                assert!(!parse(&bytes).is_some_and(|seen| is_whole(&bytes, &seen)));
            }
        }
    }
}
