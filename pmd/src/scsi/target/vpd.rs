//! Vital product data (SPC-5, 7.7; SBC-4, 6.6).

use super::execute::{MAX_SAME, max_compare};
use super::inquiry::{Peripheral, VENDOR};
use super::jobs::MAX_DESCRIPTORS;
use super::ports::GROUP;
use super::unit::Unit;

/// Pages that there are.
const PAGES: [u8; 7] = [0x00, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2];

/// Page `number` of a unit that is reached through `port`; `None` if there is no such page.
pub(super) fn page(unit: &Unit, port: u16, number: u8) -> Option<Vec<u8>> {
    let rest = match number {
        0x00 => PAGES.to_vec(),
        0x80 => unit.identity().serial.clone().into_bytes(),
        0x83 => identification(unit, port),
        0x86 => extended(unit),
        0xb0 => block_limits(unit),
        0xb1 => characteristics(),
        0xb2 => provisioning(unit),
        _ => return None,
    };
    Some(whole(Peripheral::Disk, number, &rest))
}

/// Page `number` of the well known unit, which is reached through `port` if that is known.
pub(super) fn of_well_known(port: Option<u16>, number: u8) -> Option<Vec<u8>> {
    let rest = match number {
        0x00 => vec![0x00, 0x83],
        0x83 => port.map(by_port).unwrap_or_default(),
        _ => return None,
    };
    Some(whole(Peripheral::WellKnown, number, &rest))
}

fn whole(who: Peripheral, number: u8, rest: &[u8]) -> Vec<u8> {
    let mut page = vec![who as u8, number];
    page.extend((rest.len() as u16).to_be_bytes());
    page.extend(rest);
    page
}

/// A port by its relative identifier.
fn by_port(port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    designator(1, 1, 4, &[0, 0, high, low])
}

/// One designator: what codes it, whose it is and of what type, its bytes.
fn designator(code: u8, association: u8, kind: u8, bytes: &[u8]) -> Vec<u8> {
    let mut all = vec![code, association << 4 | kind, 0, bytes.len() as u8];
    all.extend(bytes);
    all
}

/// Device identification: the unit by name and by number, the port by number, and its group.
fn identification(unit: &Unit, port: u16) -> Vec<u8> {
    let who = unit.identity();
    let name = [&VENDOR[..], who.serial.as_bytes()].concat();
    // Assigned locally (NAA 3).
    let number = who.id & !(0xf << 60) | 3 << 60;
    let [group_high, group_low] = GROUP.to_be_bytes();
    [
        designator(2, 0, 1, &name),
        designator(1, 0, 3, &number.to_be_bytes()),
        by_port(port),
        designator(1, 1, 5, &[0, 0, group_high, group_low]),
    ]
    .concat()
}

/// Extended INQUIRY data: all tasks are simple ones; whether there is a volatile cache.
fn extended(unit: &Unit) -> Vec<u8> {
    let mut data = vec![0; 60];
    data[1] = 1;
    data[2] = u8::from(unit.abilities().write_back);
    data
}

fn block_limits(unit: &Unit) -> Vec<u8> {
    let blocks = |bytes: u64| u32::try_from(bytes >> unit.shift()).unwrap_or(u32::MAX);
    let geometry = unit.geometry();
    // None of no blocks (WSNZ).
    let mut data = vec![1, max_compare(unit)];
    let granularity = blocks(geometry.physical_block.into()).min(u16::MAX.into()) as u16;
    data.extend(granularity.to_be_bytes());
    // Transfers may be as long as their buffers.
    data.extend(0u32.to_be_bytes());
    data.extend(blocks(geometry.optimal_io.into()).to_be_bytes());
    data.extend(0u32.to_be_bytes());
    let (most, descriptors, granularity) = match unit.thin() {
        Some(limits) => (
            u32::MAX,
            MAX_DESCRIPTORS as u32,
            blocks(limits.granularity.into()),
        ),
        None => (0, 0, 0),
    };
    data.extend(most.to_be_bytes());
    data.extend(descriptors.to_be_bytes());
    data.extend(granularity.to_be_bytes());
    // UGAVALID: ranges are aligned to block 0.
    let valid = if granularity != 0 { 1u32 << 31 } else { 0 };
    data.extend(valid.to_be_bytes());
    data.extend(u64::from(MAX_SAME).to_be_bytes());
    data.resize(60, 0);
    data
}

/// Nothing rotates.
fn characteristics() -> Vec<u8> {
    let mut data = vec![0; 60];
    data[1] = 1;
    data
}

/// What can be unmapped, and by which commands. What unmapped blocks read as is not promised.
fn provisioning(unit: &Unit) -> Vec<u8> {
    match unit.thin() {
        // UNMAP, WRITE SAME(16) and (10); thin provisioned.
        Some(_) => vec![0, 0xe0, 2, 0],
        None => vec![0, 0, 0, 0],
    }
}
