//! Configuration spaces that are wrong.

use super::{Fault, Faults};
use crate::pci::{CAP_VENDOR, ConfigSpace};

/// Bytes of a virtio capability (VIRTIO 1.2, 4.1.4).
const TYPE: usize = 3;
const BAR: usize = 4;
const OFFSET: usize = 8;
const LENGTH: usize = 12;
const LENGTH_HIGH: usize = 20;

impl Faults {
    /// Spoils a configuration space.
    pub(in crate::model) fn config(&self, bytes: &mut [u8]) {
        let Some(fault) = self.lock().fault else {
            return;
        };
        let all: Vec<(u8, usize)> = ConfigSpace::new(bytes.to_vec())
            .capabilities()
            .filter(|found| found.id == CAP_VENDOR)
            .map(|found| {
                let kind = found.bytes.get(TYPE).copied().unwrap_or(0);
                (kind, usize::from(found.offset))
            })
            .collect();
        let at = |wanted: u8| all.iter().find(|(kind, _)| *kind == wanted).map(|at| at.1);
        let mut put = |kind: u8, field: usize, value: &[u8]| {
            let slots = at(kind).and_then(|at| bytes.get_mut(at + field..));
            for (slot, byte) in slots.into_iter().flatten().zip(value) {
                *slot = *byte;
            }
        };
        match fault {
            Fault::NoCapability(kind) => put(kind, TYPE, &[0x7f]),
            Fault::NoBar => put(4, BAR, &[7]),
            Fault::BeyondBar => put(8, OFFSET, &0xffff_f000u32.to_le_bytes()),
            Fault::ShortStructure => put(1, LENGTH, &4u32.to_le_bytes()),
            Fault::ShortWindow => {
                put(8, LENGTH, &0x1000u32.to_le_bytes());
                put(8, LENGTH_HIGH, &[0; 4]);
            }
            Fault::SamePlace => {
                let common = at(1).and_then(|at| bytes.get(at + BAR..at + LENGTH));
                let common = common.map(<[u8]>::to_vec).unwrap_or_default();
                for (kind, at) in &all {
                    let slots = bytes.get_mut(at + BAR..at + LENGTH);
                    if matches!(kind, 2..=7)
                        && let Some(slots) = slots
                    {
                        slots.copy_from_slice(&common);
                    }
                }
            }
            Fault::Loop => {
                let first = all.first().map(|(_, at)| *at).unwrap_or_default();
                if let Some(next) = bytes.get_mut(first + 1) {
                    *next = first as u8;
                }
            }
            _ => {}
        }
    }
}
