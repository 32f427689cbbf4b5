//! virtio-blk as its driver speaks it (VIRTIO 1.2, 5.2).

use super::request::{Kind, Message, Refusal, Request, SECTOR, Shape, is_block};

/// Feature bits (5.2.3).
pub(in crate::guest) mod feature {
    pub(in crate::guest) const SEG_MAX: u64 = 1 << 2;
    pub(in crate::guest) const RO: u64 = 1 << 5;
    pub(in crate::guest) const BLK_SIZE: u64 = 1 << 6;
    pub(in crate::guest) const FLUSH: u64 = 1 << 9;
    pub(in crate::guest) const CONFIG_WCE: u64 = 1 << 11;
    pub(in crate::guest) const MQ: u64 = 1 << 12;
    pub(in crate::guest) const DISCARD: u64 = 1 << 13;
    pub(in crate::guest) const WRITE_ZEROES: u64 = 1 << 14;
    pub(in crate::guest) const ALL: u64 =
        SEG_MAX | RO | BLK_SIZE | FLUSH | CONFIG_WCE | MQ | DISCARD | WRITE_ZEROES;
}

/// Request types (5.2.6).
pub(in crate::guest) mod kind {
    pub(in crate::guest) const IN: u32 = 0;
    pub(in crate::guest) const OUT: u32 = 1;
    pub(in crate::guest) const FLUSH: u32 = 4;
    pub(in crate::guest) const GET_ID: u32 = 8;
    pub(in crate::guest) const DISCARD: u32 = 11;
    pub(in crate::guest) const WRITE_ZEROES: u32 = 13;
    pub(in crate::guest) const SECURE_ERASE: u32 = 14;
}

/// Bytes of the status behind everything else.
pub(super) const TAIL: usize = 1;

/// Bytes of the configuration space up to `write_zeroes_may_unmap` and its padding (5.2.4).
pub(super) const CONFIG: u32 = 60;

/// What a device is like that has these features and this configuration space.
pub(super) fn shape(features: u64, space: &[u8]) -> Option<Shape> {
    let has = |bit| features & bit != 0;
    let number = |at: usize, len: usize| {
        let bytes = space.get(at..at + len)?;
        let folded = bytes.iter().rev();
        Some(folded.fold(0, |all, byte| all << 8 | u64::from(*byte)))
    };
    let when = |bit, at| Some(if has(bit) { number(at, 4)? } else { 0 });
    let block = match when(feature::BLK_SIZE, 20)? {
        0 => SECTOR,
        block => block,
    };
    let capacity = number(0, 8)?.checked_mul(SECTOR)?;
    // One range is sent at a time.
    let most = |bit, at, ranges| {
        let ranges = when(bit, ranges)?;
        Some(if ranges > 0 {
            when(bit, at)? * SECTOR
        } else {
            0
        })
    };
    let whole = |bytes: u64| bytes - bytes % block;
    is_block(block).then_some(Shape {
        capacity: whole(capacity),
        block,
        segments: match when(feature::SEG_MAX, 12)? {
            0 => 1,
            segments => segments as u32,
        },
        transfer: u64::MAX,
        discard: whole(most(feature::DISCARD, 36, 40)?),
        zeroes: whole(most(feature::WRITE_ZEROES, 48, 52)?),
        flush: has(feature::FLUSH),
        read_only: has(feature::RO),
    })
}

/// The head of a request.
pub(in crate::guest) fn head(kind: u32, sector: u64) -> Vec<u8> {
    let (kind, sector) = (kind.to_le_bytes(), sector.to_le_bytes());
    [&kind[..], &[0; 4], &sector[..]].concat()
}

/// A range to discard or to zero (5.2.6).
pub(in crate::guest) fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let (sector, sectors, flags) = (
        sector.to_le_bytes(),
        sectors.to_le_bytes(),
        flags.to_le_bytes(),
    );
    [&sector[..], &sectors[..], &flags[..]].concat()
}

/// A request as the device takes it.
pub(super) fn message(request: &Request) -> Message {
    const UNMAP: u32 = 1;
    let sector = request.offset / SECTOR;
    let sectors = (request.len / SECTOR) as u32;
    let ranged = |kind, flags| {
        let payload = range(sector, sectors, flags);
        (head(kind, 0), payload.len() as u32, 0, payload)
    };
    let len = request.len as u32;
    let (head, out, data_in, payload) = match request.kind {
        Kind::Read => (head(kind::IN, sector), 0, len, Vec::new()),
        Kind::Write => (head(kind::OUT, sector), len, 0, Vec::new()),
        Kind::Flush => (head(kind::FLUSH, 0), 0, 0, Vec::new()),
        Kind::Discard => ranged(kind::DISCARD, 0),
        Kind::WriteZeroes => ranged(kind::WRITE_ZEROES, UNMAP),
    };
    Message {
        head,
        payload,
        out,
        data_in,
    }
}

/// What a status means.
pub(super) fn outcome(status: u8) -> Result<(), Refusal> {
    match status {
        0 => Ok(()),
        status => Err(Refusal::Status(status)),
    }
}
