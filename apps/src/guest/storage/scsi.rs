//! virtio-scsi and what a disk driver says over it (VIRTIO 1.2, 5.6; SPC-5, SBC-4).

use super::request::{Kind, Message, Refusal, Request, Shape, is_block};

/// Rings before the first request ring: control and event.
pub(super) const OTHERS: u64 = 2;
/// Bytes of a head with the usual 32 bytes for a CDB, and of a response with the usual 96 bytes
/// for sense data (5.6.4, 5.6.6.1).
pub(in crate::guest) const HEAD: usize = 19 + CDB;
pub(in crate::guest) const CDB: usize = 32;
pub(in crate::guest) const TAIL: usize = 12 + 96;

/// Which disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unit {
    pub(crate) target: u8,
    pub(crate) lun: u16,
}

/// A command that reads up to `data_in` bytes or is given `out`.
pub(in crate::guest) fn command(
    unit: Unit,
    id: u64,
    cdb: &[u8],
    out: u32,
    data_in: u32,
) -> Message {
    // A single-level address (5.6.6.1).
    let [high, low] = (unit.lun | 0x4000).to_be_bytes();
    let mut head = Vec::with_capacity(HEAD);
    head.extend([1, unit.target, high, low, 0, 0, 0, 0]);
    head.extend(id.to_le_bytes());
    // A simple task without priority.
    head.extend([0; 3]);
    head.extend(cdb);
    head.resize(HEAD, 0);
    Message {
        head,
        payload: Vec::new(),
        out,
        data_in,
    }
}

/// A CDB of 16 bytes: operation, flags, block number, blocks.
fn cdb16(operation: u8, flags: u8, block: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    [cdb[0], cdb[1]] = [operation, flags];
    cdb[2..10].copy_from_slice(&block.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// A request as the device takes it, for a disk with blocks of `block` bytes.
pub(super) fn message(unit: Unit, id: u64, request: &Request, block: u64) -> Message {
    const READ_16: u8 = 0x88;
    const WRITE_16: u8 = 0x8a;
    const SYNCHRONIZE_CACHE_16: u8 = 0x91;
    const WRITE_SAME_16: u8 = 0x93;
    const UNMAP: u8 = 0x42;
    let (first, count) = (request.offset / block, (request.len / block) as u32);
    let len = request.len as u32;
    match request.kind {
        Kind::Read => command(unit, id, &cdb16(READ_16, 0, first, count), 0, len),
        Kind::Write => command(unit, id, &cdb16(WRITE_16, 0, first, count), len, 0),
        Kind::Flush => command(unit, id, &cdb16(SYNCHRONIZE_CACHE_16, 0, 0, 0), 0, 0),
        Kind::Discard => {
            let mut payload = vec![0, 22, 0, 16, 0, 0, 0, 0];
            payload.extend(first.to_be_bytes());
            payload.extend(count.to_be_bytes());
            payload.extend([0; 4]);
            let cdb = [UNMAP, 0, 0, 0, 0, 0, 0, 0, payload.len() as u8, 0];
            let mut message = command(unit, id, &cdb, payload.len() as u32, 0);
            message.payload = payload;
            message
        }
        Kind::WriteZeroes => {
            // One block of zeroes, for all of them; may be unmapped.
            let cdb = cdb16(WRITE_SAME_16, 1 << 3, first, count);
            let mut message = command(unit, id, &cdb, block as u32, 0);
            message.payload = vec![0; block as usize];
            message
        }
    }
}

/// What a response means.
pub(super) fn outcome(response: &[u8; TAIL]) -> Result<(), Refusal> {
    const RESIDUAL: usize = 4;
    let residual = response[RESIDUAL..].first_chunk();
    let (status, code) = (response[10], response[11]);
    match (code, status) {
        (0, 0) => match residual.map_or(0, |bytes| u32::from_le_bytes(*bytes)) {
            0 => Ok(()),
            short => Err(Refusal::Short(short)),
        },
        (0, status) => {
            let sense = &response[12..];
            Err(Refusal::Sense(
                status,
                [sense[2] & 15, sense[12], sense[13]],
            ))
        }
        (code, _) => Err(Refusal::Response(code)),
    }
}

/// Whether it says that something happened to the disk before, and would be done the next time.
pub(super) fn is_attention(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Sense(2, [6, ..]))
}

/// TEST UNIT READY.
pub(super) const READY: [u8; 6] = [0; 6];

/// READ CAPACITY (16), for an answer of 32 bytes.
pub(super) const CAPACITY: [u8; 16] = [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0];

/// INQUIRY for a page of vital product data, for an answer of 64 bytes.
pub(super) fn inquire(page: u8) -> [u8; 6] {
    [0x12, 1, page, 0, 64, 0]
}

/// The pages that say what a disk can: block limits, and logical block provisioning.
pub(super) const LIMITS: u8 = 0xb0;
pub(super) const PROVISIONING: u8 = 0xb2;

/// What a disk is like that answers so: to READ CAPACITY, and with the two pages, or zeroes where
/// it has none.
pub(super) fn shape(capacity: &[u8], limits: &[u8], provisioning: &[u8]) -> Option<Shape> {
    let number = |bytes: &[u8], at: usize, len: usize| {
        let bytes = bytes.get(at..at + len)?;
        let folded = bytes.iter();
        Some(folded.fold(0, |all, byte| all << 8 | u64::from(*byte)))
    };
    let block = number(capacity, 8, 4)?;
    let last = number(capacity, 0, 8)?;
    let limit = |at, len, unlimited: u64| {
        let blocks = match number(limits, at, len)? {
            0 => unlimited,
            blocks => blocks,
        };
        blocks.min(u32::MAX.into()).checked_mul(block)
    };
    // LBPU, LBPWS.
    let can = number(provisioning, 5, 1)?;
    Some(Shape {
        capacity: last.checked_add(1)?.checked_mul(block)?,
        block: Some(block).filter(|block| is_block(*block))?,
        segments: u32::MAX,
        transfer: limit(8, 4, u32::MAX.into())?,
        discard: if can & 0x80 != 0 { limit(20, 4, 0)? } else { 0 },
        zeroes: if can & 0x40 != 0 {
            limit(36, 8, u32::MAX.into())?
        } else {
            0
        },
        flush: true,
        read_only: false,
    })
}
