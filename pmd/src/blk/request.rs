//! What a chain of a block device asks for (VIRTIO 1.2, 5.2.6).
//!
//! A request is a header of 16 bytes, data, and a status byte, which the driver may cut into pieces
//! anywhere. All of it is read once, and judged; what comes out is either a piece of work for the
//! disk, in bytes, or the status to answer with. Whether a range is inside the disk is the disk's
//! to judge, which may change its size.

use vvu::memory::{VolatileSlice, copy};

use super::config::{MAX_RANGES, SECTOR, feature};
use crate::bdev::Op;
use crate::vring::{Chain, Keep, Taken};

/// Length of the header.
const HEADER: u32 = 16;
/// Length of one range of a discard or write-zeroes request.
const RANGE: usize = 16;

/// Kinds of request (5.2.6).
mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP.
const UNMAP: u32 = 1;

/// What a request is answered with (5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    /// VIRTIO_BLK_S_OK.
    Ok = 0,
    /// VIRTIO_BLK_S_IOERR.
    IoErr = 1,
    /// VIRTIO_BLK_S_UNSUPP.
    Unsupported = 2,
}

/// A range of a disk, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Extent {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

/// Ranges that are discarded, or zeroed, by one request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ranges {
    list: [(Op, Extent); MAX_RANGES],
    len: usize,
}

impl Default for Ranges {
    fn default() -> Self {
        Self {
            list: [(Op::Discard, Extent::default()); MAX_RANGES],
            len: 0,
        }
    }
}

impl Ranges {
    /// What shall be done with which range.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Op, Extent)> + '_ {
        self.list.iter().take(self.len).copied()
    }
}

/// What a chain asks for.
#[derive(Debug)]
pub(super) enum Parsed {
    /// Read or write: the disk's range, and which bytes of the chain are data.
    Move(Op, Extent, Keep),
    /// Flush.
    Flush,
    /// Discard, or write zeroes: see the ranges.
    Ranges,
    /// The device's id, into so many bytes.
    Id(u32),
    /// It is answered as it is.
    Answer(Status),
    /// It cannot be answered: a part of the header, or the status byte, is missing.
    Malformed,
}

/// Looks at `chain`, of a driver that accepted `features`. Several ranges are put into `ranges`.
#[inline]
pub(super) fn parse(taken: &Taken, chain: &Chain, features: u64, ranges: &mut Ranges) -> Parsed {
    let Some((kind, sector)) = header(taken, chain) else {
        return Parsed::Malformed;
    };
    let Some(room) = chain.write_len().checked_sub(1) else {
        return Parsed::Malformed;
    };
    let read_len = chain.read_len();
    let (op, len, keep) = match kind {
        // What is not of this kind of request must not be there.
        kind::IN if read_len == HEADER => {
            let keep = Keep {
                write: 0..room,
                tail: room..room + 1,
                ..Keep::default()
            };
            (Op::Read, room, keep)
        }
        kind::OUT if room == 0 => {
            let keep = Keep {
                read: HEADER..read_len,
                tail: 0..1,
                ..Keep::default()
            };
            (Op::Write, read_len - HEADER, keep)
        }
        kind => return rest(taken, chain, kind, features, ranges),
    };
    match extent(sector, u64::from(len)) {
        Some(extent) => Parsed::Move(op, extent, keep),
        None => Parsed::Answer(Status::IoErr),
    }
}

/// Which bytes of a chain are kept that moves no data.
pub(super) fn keep_status(chain: &Chain) -> Keep {
    Keep {
        tail: chain.write_len().saturating_sub(1)..chain.write_len(),
        ..Keep::default()
    }
}

/// Requests that are rare, and those that make no sense.
#[cold]
fn rest(taken: &Taken, chain: &Chain, kind: u32, features: u64, into: &mut Ranges) -> Parsed {
    let room = chain.write_len().saturating_sub(1);
    match kind {
        kind::FLUSH if features & feature::FLUSH != 0 => Parsed::Flush,
        kind::GET_ID => Parsed::Id(room),
        kind::DISCARD if features & feature::DISCARD != 0 => ranges(taken, chain, false, into),
        kind::WRITE_ZEROES if features & feature::WRITE_ZEROES != 0 => {
            ranges(taken, chain, true, into)
        }
        // Readable data for a read, or writable data for a write.
        kind::IN | kind::OUT => Parsed::Answer(Status::IoErr),
        // Secure erase among them.
        _ => Parsed::Answer(Status::Unsupported),
    }
}

/// Kind and sector of a request, and nothing of what is reserved.
#[inline]
fn header(taken: &Taken, chain: &Chain) -> Option<(u32, u64)> {
    let first = taken.readable(chain).next()?;
    let bytes = match copy::read_array::<{ HEADER as usize }>(first) {
        Some(bytes) => bytes,
        None => {
            let mut bytes = [0; HEADER as usize];
            (read(taken, chain, 0, &mut bytes) == bytes.len()).then_some(bytes)?
        }
    };
    let all = u128::from_le_bytes(bytes);
    Some((all as u32, (all >> 64) as u64))
}

/// Copies readable bytes from `skip` on, and returns how many there were.
#[cold]
fn read(taken: &Taken, chain: &Chain, mut skip: usize, into: &mut [u8]) -> usize {
    let mut done = 0;
    for piece in taken.readable(chain) {
        let rest = into.get_mut(done..).unwrap_or_default();
        done += copy::read_at(piece, skip, rest);
        skip = skip.saturating_sub(piece.len());
    }
    done
}

/// The extent at `sector`, if there is such a one.
#[inline]
fn extent(sector: u64, len: u64) -> Option<Extent> {
    let offset = sector.checked_mul(SECTOR)?;
    offset.checked_add(len)?;
    len.is_multiple_of(SECTOR).then_some(Extent { offset, len })
}

/// The ranges of a discard or write-zeroes request (5.2.6.1, struct
/// virtio_blk_discard_write_zeroes).
fn ranges(taken: &Taken, chain: &Chain, zeroes: bool, into: &mut Ranges) -> Parsed {
    let len = (chain.read_len() - HEADER) as usize;
    if len == 0 || !len.is_multiple_of(RANGE) || len / RANGE > MAX_RANGES {
        return Parsed::Answer(Status::IoErr);
    }
    if chain.write_len() != 1 {
        return Parsed::Answer(Status::IoErr);
    }
    let mut bytes = [0; RANGE * MAX_RANGES];
    let copied = read(taken, chain, HEADER as usize, &mut bytes);
    let (all, _) = bytes.get(..copied).unwrap_or_default().as_chunks::<RANGE>();
    for (place, range) in into.list.iter_mut().zip(all) {
        let all = u128::from_le_bytes(*range);
        let (sector, sectors, flags) = (all as u64, (all >> 64) as u32, (all >> 96) as u32);
        let allowed = if zeroes { UNMAP } else { 0 };
        if flags & !allowed != 0 {
            return Parsed::Answer(Status::Unsupported);
        }
        let Some(extent) = extent(sector, u64::from(sectors) * SECTOR) else {
            return Parsed::Answer(Status::IoErr);
        };
        let op = match zeroes {
            true => Op::WriteZeroes {
                unmap: flags & UNMAP != 0,
            },
            false => Op::Discard,
        };
        *place = (op, extent);
    }
    into.len = len / RANGE;
    Parsed::Ranges
}

/// Writes the status of a chain that is still taken.
#[cold]
pub(super) fn answer(taken: &Taken, chain: &Chain, status: Status) {
    let last: Option<VolatileSlice<'_>> = taken.writable(chain).last();
    if let Some(last) = last {
        copy::write_at(&[status as u8], last, last.len().saturating_sub(1));
    }
}

/// Writes as much of `bytes` as `room` bytes hold at the beginning of the writable part.
#[cold]
pub(super) fn fill(taken: &Taken, chain: &Chain, room: u32, bytes: &[u8]) {
    let mut rest = bytes
        .get(..bytes.len().min(room as usize))
        .unwrap_or_default();
    for piece in taken.writable(chain) {
        let copied = copy::write(rest, piece);
        rest = rest.get(copied..).unwrap_or_default();
        if rest.is_empty() {
            break;
        }
    }
}
