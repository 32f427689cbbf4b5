//! REPORT TARGET PORT GROUPS (SPC-5, 6.38): one group of all ports, each as good as the others.

use super::cdb::Cdb;
use super::unit::Unit;

/// The group's number.
pub(super) const GROUP: u16 = 1;

/// Answers it, in one of its two forms.
pub(super) fn report(unit: &Unit, cdb: Cdb) -> Vec<u8> {
    let mut ports = unit.ports();
    ports.truncate(usize::from(u8::MAX));
    let extended = cdb.bit(1, 5);
    let mut rest = Vec::new();
    if extended {
        // Format 1; transitions take no time.
        rest.extend([0x10, 0, 0, 0]);
    }
    let [high, low] = GROUP.to_be_bytes();
    // Active and optimized, the only state that there is.
    rest.extend([0, 1, high, low, 0, 0, 0, ports.len() as u8]);
    for port in ports {
        let [high, low] = port.to_be_bytes();
        rest.extend([0, 0, high, low]);
    }
    let mut data = (rest.len() as u32).to_be_bytes().to_vec();
    data.extend(rest);
    data
}
