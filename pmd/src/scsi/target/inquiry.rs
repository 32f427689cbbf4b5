//! INQUIRY (SPC-5, 6.6): standard data, and the way to the vital product data.

use super::cdb::Cdb;
use super::sense::Sense;
use super::unit::Unit;
use super::vpd;

/// T10 vendor identification.
pub(super) const VENDOR: [u8; 8] = *b"VVU     ";
/// Product identification.
const PRODUCT: [u8; 16] = *b"disk            ";
/// Product revision level.
const REVISION: [u8; 4] = *b"0.1 ";

/// What it keeps to: SAM-5, SPC-4, SBC-3.
const STANDARDS: [u16; 3] = [0x00a0, 0x0460, 0x04c0];

/// Length of the standard data, in bytes.
const LEN: usize = 96;

/// Answers INQUIRY of a unit that is reached through this port.
pub(super) fn inquiry(unit: &Unit, port: u16, cdb: Cdb) -> Result<Vec<u8>, Sense> {
    let page = cdb.byte(2);
    if cdb.bit(1, 0) {
        return vpd::page(unit, port, page).ok_or(Sense::cdb(2));
    }
    if page != 0 {
        return Err(Sense::cdb(2));
    }
    Ok(standard(Peripheral::Disk))
}

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Peripheral {
    Disk = 0x00,
    WellKnown = 0x1e,
    /// Nothing is there, and nothing can be.
    Nobody = 0x7f,
}

/// Standard data.
pub(super) fn standard(who: Peripheral) -> Vec<u8> {
    // Implicit target port groups: the well known unit can tell of none.
    let groups = if who == Peripheral::WellKnown {
        0
    } else {
        0x10
    };
    // SPC-4; hierarchical LUNs, format 2; several ports; queues.
    let mut data = vec![who as u8, 0, 6, 0x12, (LEN - 5) as u8, groups, 0x10, 0x02];
    data.extend(VENDOR);
    data.extend(PRODUCT);
    data.extend(REVISION);
    data.resize(58, 0);
    data.extend(STANDARDS.iter().flat_map(|code| code.to_be_bytes()));
    data.resize(LEN, 0);
    data
}
