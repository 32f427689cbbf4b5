//! REPORT SUPPORTED OPERATION CODES and TASK MANAGEMENT FUNCTIONS (SPC-5, 6.35 and 6.36).

use super::cdb::Cdb;
use super::opcodes::{self, Operation};
use super::sense::Sense;
use super::unit::Unit;

/// Timeouts that are not told.
const TIMEOUTS: [u8; 12] = [0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Answers REPORT SUPPORTED OPERATION CODES.
pub(super) fn opcodes(unit: &Unit, cdb: Cdb) -> Result<Vec<u8>, Sense> {
    let thin = unit.thin().is_some();
    let timeouts = cdb.bit(2, 7);
    let (code, action) = (cdb.byte(3), cdb.be16(4));
    let rows = || opcodes::offered(thin).filter(move |row| row.code == code);
    let has_actions = rows().any(|row| row.action.is_some());
    let same_action = |row: &&Operation| row.action.unwrap_or(0) == action as u8 && action < 32;
    let found = match cdb.byte(2) & 7 {
        0 => return Ok(all(thin, timeouts)),
        1 if has_actions => return Err(Sense::cdb_bit(2, 2)),
        1 => rows().next(),
        2 if !has_actions && rows().next().is_some() => return Err(Sense::cdb_bit(2, 2)),
        2 | 3 => rows().find(same_action),
        _ => return Err(Sense::cdb_bit(2, 2)),
    };
    Ok(one(found, thin, timeouts))
}

fn all(thin: bool, timeouts: bool) -> Vec<u8> {
    let mut list = Vec::new();
    for row in opcodes::offered(thin) {
        let with_action = u8::from(row.action.is_some());
        let with_timeouts = if timeouts { 2 } else { 0 };
        let action = row.action.unwrap_or(0);
        list.extend([row.code, 0, 0, action, 0, with_timeouts | with_action]);
        list.extend([0, row.len]);
        if timeouts {
            list.extend(TIMEOUTS);
        }
    }
    let mut data = (list.len() as u32).to_be_bytes().to_vec();
    data.extend(list);
    data
}

fn one(row: Option<&Operation>, thin: bool, timeouts: bool) -> Vec<u8> {
    let Some(row) = row else {
        // Not supported.
        return vec![0, 1, 0, 0];
    };
    let with_timeouts = if timeouts { 0x80 } else { 0 };
    let mut data = vec![0, with_timeouts | 3, 0, row.len];
    data.extend(row.usage_bytes(thin));
    if timeouts {
        data.extend(TIMEOUTS);
    }
    data
}

/// Answers REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS: abort task, abort and clear task set, unit
/// reset, query task; query task set, I_T nexus reset.
pub(super) fn task_functions(cdb: Cdb) -> Vec<u8> {
    let mut data = vec![0xdc, 0x03, 0, 0];
    if cdb.bit(2, 7) {
        data[3] = 0x0c;
        data.resize(16, 0);
    }
    data
}
