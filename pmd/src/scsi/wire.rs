//! Layouts of what drivers and the device say to each other (VIRTIO 1.2, 5.6.6).

use vvu::memory::{VolatileSlice, copy};

use super::target::{DataOut, MAX_CDB, MAX_LUN, WellKnown};
use vvu::memory::Scatter;

/// Length of a request before its CDB.
pub(super) const REQUEST: u32 = 19;
/// Length of a response before its sense data.
pub(super) const RESPONSE: u32 = 12;
/// Length of an event.
pub(super) const EVENT: usize = 16;

/// Codes of responses (5.6.6.1 and 5.6.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Code {
    /// To a command: it came to its unit. To task management: there was nothing to do any more.
    Ok = 0,
    Overrun = 1,
    Aborted = 2,
    BadTarget = 3,
    Reset = 4,
    Failure = 9,
    /// What was asked about is there.
    Succeeded = 10,
    Rejected = 11,
    IncorrectLun = 12,
}

/// Where a unit is: target and LUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Target, 0 to 255.
    pub target: u8,
    /// LUN, up to [`MAX_LUN`].
    pub lun: u16,
}

impl Address {
    /// From eight bytes: single level, with peripheral or flat addressing; `None` for all else.
    #[inline]
    pub(super) fn parse(bytes: [u8; 8]) -> Option<Self> {
        let all = u64::from_be_bytes(bytes);
        let (target, lun) = ((all >> 48) as u8, (all >> 32) as u16);
        if all >> 56 != 1 || all as u32 != 0 {
            return None;
        }
        match lun >> 14 {
            // Bus 0 is the only one.
            0 if lun > 0xff => None,
            0 | 1 => Some(Self {
                target,
                lun: lun & MAX_LUN,
            }),
            _ => None,
        }
    }

    /// As eight bytes, as drivers write it themselves.
    pub(super) fn bytes(self) -> [u8; 8] {
        let [high, low] = (self.lun | 0x4000).to_be_bytes();
        [1, self.target, high, low, 0, 0, 0, 0]
    }
}

/// Where the REPORT LUNS well known unit is: that of the device (5.6.6.1), or of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lister {
    Device,
    Target(u8),
}

impl Lister {
    /// From eight bytes.
    pub(super) fn parse(bytes: [u8; 8]) -> Option<Self> {
        let [high, low, ..] = WellKnown::LUN;
        match bytes {
            WellKnown::LUN => Some(Self::Device),
            [1, target, a, b, 0, 0, 0, 0] if (a, b) == (high, low) => Some(Self::Target(target)),
            _ => None,
        }
    }
}

/// The first bytes of a request: what comes before its CDB, and as much of that as any command has.
pub(super) type Head = [u8; REQUEST as usize + MAX_CDB];

/// What is in the first bytes of a request. What they say of its order and priority is not looked
/// at: all are simple tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) lun: [u8; 8],
    /// What the driver calls it.
    pub(super) tag: u64,
    /// The CDB; what is missing is zero.
    pub(super) cdb: [u8; MAX_CDB],
}

impl Header {
    #[inline]
    pub(super) fn parse(head: &Head) -> Self {
        let (lun, rest) = split(head);
        let (tag, _) = split(rest);
        let cdb = head.last_chunk();
        Self {
            lun,
            tag: u64::from_le_bytes(tag),
            cdb: cdb.copied().unwrap_or_default(),
        }
    }
}

/// Eight bytes, and the others: zeroes, and nothing, if there are fewer.
#[inline]
fn split(bytes: &[u8]) -> ([u8; 8], &[u8]) {
    let parts = bytes.split_first_chunk();
    parts.map_or(([0; 8], &[]), |(first, rest)| (*first, rest))
}

/// The first bytes of a response.
#[inline]
pub(super) fn response(sense: u32, residual: u32, status: u8, code: Code) -> [u8; 12] {
    let (sense, residual) = (u128::from(sense), u128::from(residual));
    let all = sense | residual << 32 | u128::from(status) << 80 | (code as u128) << 88;
    let bytes = all.to_le_bytes();
    bytes.first_chunk().copied().unwrap_or_default()
}

/// Copies readable bytes from `skip` on, and returns how many there were.
pub(super) fn read<'m>(
    pieces: impl Iterator<Item = VolatileSlice<'m>>,
    skip: u64,
    into: &mut [u8],
) -> usize {
    let mut skip = usize::try_from(skip).unwrap_or(usize::MAX);
    let mut done = 0;
    for piece in pieces {
        let rest = into.get_mut(done..).unwrap_or_default();
        if rest.is_empty() {
            break;
        }
        done += copy::read_at(piece, skip, rest);
        skip = skip.saturating_sub(piece.len());
    }
    done
}

/// Writes `bytes` at `skip` of what is writable, as far as they fit.
pub(super) fn write<'m>(
    pieces: impl Iterator<Item = VolatileSlice<'m>>,
    skip: u32,
    mut bytes: &[u8],
) {
    let mut skip = skip as usize;
    for piece in pieces {
        if bytes.is_empty() {
            break;
        }
        if skip < piece.len() {
            let written = copy::write_at(bytes, piece, skip);
            bytes = bytes.get(written..).unwrap_or_default();
        }
        skip = skip.saturating_sub(piece.len());
    }
}

/// The data that a chain brought, kept.
pub(super) struct Kept<'a>(pub(super) &'a Scatter);

impl DataOut for Kept<'_> {
    fn read_at(&self, at: u64, into: &mut [u8]) -> bool {
        read(self.0.pieces(), at, into) == into.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_what_the_standard_has() {
        let parse = |a, b, c, d| Address::parse([a, b, c, d, 0, 0, 0, 0]);
        let at = |target, lun| Some(Address { target, lun });
        assert_eq!(parse(1, 7, 0, 9), at(7, 9));
        assert_eq!(parse(1, 255, 0x40, 9), at(255, 9));
        assert_eq!(parse(1, 0, 0x7f, 0xff), at(0, 16383));
        for bad in [
            [0, 0, 0, 0],
            [1, 0, 1, 0],
            [1, 0, 0x80, 0],
            [1, 0, 0xc1, 1],
            [0xc1, 1, 0, 0],
        ] {
            assert_eq!(parse(bad[0], bad[1], bad[2], bad[3]), None, "{bad:?}");
        }
        assert_eq!(Address::parse([1, 0, 0, 0, 0, 1, 0, 0]), None);
        let lister = |a, b, c, d| Lister::parse([a, b, c, d, 0, 0, 0, 0]);
        assert_eq!(lister(0xc1, 1, 0, 0), Some(Lister::Device));
        assert_eq!(lister(1, 9, 0xc1, 1), Some(Lister::Target(9)));
        assert_eq!(lister(1, 9, 0xc1, 2), None);
        assert_eq!(lister(0xc1, 1, 0, 1), None);
        assert_eq!(Lister::parse([1, 0, 0xc1, 1, 0, 0, 0, 1]), None);
        for lun in [0, 255, 256, 16383] {
            let address = Address { target: 3, lun };
            assert_eq!(Address::parse(address.bytes()), Some(address));
        }
    }

    #[test]
    fn a_request_begins_with_these() {
        let head = std::array::from_fn(|at| at as u8);
        let header = Header::parse(&head);
        assert_eq!(header.lun, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(header.tag, 0x0f0e_0d0c_0b0a_0908);
        // Order, priority and what is reserved are between.
        assert_eq!(header.cdb[..], head[19..]);
    }

    #[test]
    fn a_response_begins_with_these() {
        let bytes = response(18, 0x0102_0304, 2, Code::Reset);
        assert_eq!(bytes, [18, 0, 0, 0, 4, 3, 2, 1, 0, 0, 2, 4]);
    }
}
