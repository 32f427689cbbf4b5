//! READ CAPACITY and GET LBA STATUS (SBC-4, 5.19, 5.20 and 5.6).

use super::cdb::Cdb;
use super::sense::Sense;
use super::unit::Unit;

/// READ CAPACITY(10): the last block, or that it does not fit.
pub(super) fn ten(unit: &Unit) -> Vec<u8> {
    let last = unit.blocks().saturating_sub(1);
    let last = u32::try_from(last).unwrap_or(u32::MAX);
    [last.to_be_bytes(), unit.block().to_be_bytes()].concat()
}

/// READ CAPACITY(16).
pub(super) fn sixteen(unit: &Unit) -> Vec<u8> {
    let mut data = unit.blocks().saturating_sub(1).to_be_bytes().to_vec();
    data.extend(unit.block().to_be_bytes());
    let physical = unit.geometry().physical_block.max(unit.block());
    // Logical blocks per physical one, as a power of two; LBPME.
    let exponent = physical.ilog2() - unit.shift();
    let thin = if unit.thin().is_some() { 0x80 } else { 0 };
    data.extend([0, exponent as u8 & 0xf, thin, 0]);
    data.resize(32, 0);
    data
}

/// GET LBA STATUS: all blocks are mapped, or nobody knows.
pub(super) fn lba_status(unit: &Unit, cdb: Cdb) -> Result<Vec<u8>, Sense> {
    let lba = cdb.field(2, 8);
    let left = unit.blocks().checked_sub(lba).filter(|&left| left > 0);
    let Some(left) = left else {
        return Err(Sense::RANGE.with_info(lba));
    };
    let count = u32::try_from(left).unwrap_or(u32::MAX);
    let mut data = vec![0, 0, 0, 20, 0, 0, 0, 0];
    data.extend(lba.to_be_bytes());
    data.extend(count.to_be_bytes());
    data.extend([0; 4]);
    Ok(data)
}
