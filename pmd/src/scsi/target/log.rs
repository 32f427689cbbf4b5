//! LOG SENSE (SPC-5, 6.8 and 7.3): which pages there are, and that nothing is wrong.

use super::cdb::Cdb;
use super::sense::Sense;

/// Pages that there are.
const PAGES: [u8; 2] = [0x00, 0x2f];

/// Informational exceptions: none, and no temperature.
const EXCEPTIONS: [u8; 8] = [0, 0, 0x03, 4, 0, 0, 0xff, 0xff];

/// Answers LOG SENSE.
pub(super) fn sense(cdb: Cdb) -> Result<Vec<u8>, Sense> {
    let (number, subpage) = (cdb.byte(2) & 0x3f, cdb.byte(3));
    // Only cumulative values, now (PC).
    if !matches!(cdb.byte(2) >> 6, 0 | 1) {
        return Err(Sense::cdb_bit(2, 7));
    }
    let (flag, rest) = match (number, subpage) {
        (0x00, 0) => (0, PAGES.to_vec()),
        // With their subpages: that there is this one, too.
        (0x00, 0xff) => (0x40, vec![0x00, 0x00, 0x00, 0xff, 0x2f, 0x00]),
        (0x2f, 0) => (0, EXCEPTIONS.to_vec()),
        (0x00 | 0x2f, _) => return Err(Sense::cdb(3)),
        _ => return Err(Sense::cdb_bit(2, 5)),
    };
    let mut data = vec![flag | number, subpage];
    data.extend((rest.len() as u16).to_be_bytes());
    data.extend(rest);
    Ok(data)
}
