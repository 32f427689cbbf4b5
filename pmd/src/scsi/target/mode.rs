//! Mode pages and MODE SENSE (SPC-5, 6.14 and 7.5; SBC-4, 6.5).

use super::cdb::Cdb;
use super::sense::Sense;
use super::unit::{Unit, mode};

/// Numbers of the pages that there are.
pub(super) const PAGES: [u8; 3] = [0x08, 0x0a, 0x1c];

/// Which values are wanted (PC).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Values {
    /// As they are.
    Current,
    /// Which bits can be changed.
    Changeable,
    /// As they were at first.
    Default,
}

/// A header as MODE SENSE and MODE SELECT have it: 4 bytes, or 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) long: bool,
}

impl Form {
    pub(super) fn of(cdb: Cdb) -> Self {
        Self {
            long: matches!(cdb.byte(0), 0x55 | 0x5a),
        }
    }

    /// Length of the header in bytes.
    pub(super) fn header(self) -> usize {
        if self.long { 8 } else { 4 }
    }
}

/// Mode bits that initiators can switch on this unit.
pub(super) fn changeable(unit: &Unit) -> u8 {
    let cache = if unit.abilities().write_back {
        mode::WRITE_CACHE
    } else {
        0
    };
    cache | mode::DESCRIPTORS | mode::PROTECT
}

/// A page with these mode bits; `None` if there is no such page.
fn page(number: u8, modes: u8, fixed: bool) -> Option<Vec<u8>> {
    let bit = |mode, bit| if modes & mode != 0 { bit } else { 0u8 };
    // What cannot be changed is there, or is not a bit that can be.
    let own = |value: u8| if fixed { value } else { 0 };
    let mut page = match number {
        0x08 => vec![0x08, 0x12, bit(mode::WRITE_CACHE, 4)],
        // A task set for each nexus; statistics are not kept. Any order; limits of no kind.
        0x0a => vec![
            0x0a,
            0x0a,
            own(0x22) | bit(mode::DESCRIPTORS, 4),
            own(0x10),
            bit(mode::PROTECT, 8),
            0,
            0,
            0,
            own(0xff),
            own(0xff),
            0,
            0,
        ],
        // Exceptions are not reported (DEXCPT).
        0x1c => vec![0x1c, 0x0a, own(8)],
        _ => return None,
    };
    let len = usize::from(page[1]) + 2;
    page.resize(len, 0);
    Some(page)
}

/// Page `number`, with values of this kind.
pub(super) fn page_of(unit: &Unit, number: u8, values: Values) -> Option<Vec<u8>> {
    match values {
        Values::Current => page(number, unit.modes(), true),
        Values::Changeable => page(number, changeable(unit), false),
        Values::Default => page(number, unit.initial_modes(), true),
    }
}

/// A block descriptor (SBC-4, 6.5.2), long or short.
pub(super) fn block_descriptor(unit: &Unit, long: bool) -> Vec<u8> {
    let blocks = unit.blocks();
    if long {
        let mut data = blocks.to_be_bytes().to_vec();
        data.extend([0; 4]);
        data.extend(unit.block().to_be_bytes());
        return data;
    }
    let short = u32::try_from(blocks).unwrap_or(u32::MAX);
    // The length has three bytes behind a reserved one.
    [short.to_be_bytes(), unit.block().to_be_bytes()].concat()
}

/// Answers MODE SENSE(6) and (10).
pub(super) fn sense(unit: &Unit, cdb: Cdb) -> Result<Vec<u8>, Sense> {
    let form = Form::of(cdb);
    let values = match cdb.byte(2) >> 6 {
        0 => Values::Current,
        1 => Values::Changeable,
        2 => Values::Default,
        _ => return Err(Sense::NO_SAVING),
    };
    let (number, subpage) = (cdb.byte(2) & 0x3f, cdb.byte(3));
    let mut pages = Vec::new();
    match (number, subpage) {
        (0x3f, 0 | 0xff) => {
            let all = PAGES.iter().filter_map(|&one| page_of(unit, one, values));
            pages.extend(all.flatten());
        }
        (_, 0 | 0xff) => pages.extend(page_of(unit, number, values).ok_or(Sense::cdb_bit(2, 5))?),
        _ => return Err(Sense::cdb(3)),
    }
    let long_descriptor = form.long && cdb.bit(1, 4);
    let descriptor = if cdb.bit(1, 3) {
        Vec::new()
    } else {
        block_descriptor(unit, long_descriptor)
    };
    let protect = unit.abilities().read_only || unit.modes() & mode::PROTECT != 0;
    // WP, DPOFUA.
    let specific = if protect { 0x80 } else { 0 } | 0x10;
    let len = form.header() + descriptor.len() + pages.len();
    let mut data = if form.long {
        let [high, low] = ((len - 2) as u16).to_be_bytes();
        let flag = u8::from(long_descriptor && !descriptor.is_empty());
        vec![high, low, 0, specific, flag, 0, 0, descriptor.len() as u8]
    } else {
        vec![(len - 1) as u8, 0, specific, descriptor.len() as u8]
    };
    data.extend(descriptor);
    data.extend(pages);
    Ok(data)
}
