//! Feature bits and configuration space of a virtio-scsi device (VIRTIO 1.2, 5.6.3 and 5.6.4).

use std::sync::atomic::{AtomicU32, Ordering};

use super::target::MAX_LUN;
use super::wire::EVENT;
use crate::vring;

/// Feature bits of SCSI devices that are offered (5.6.3).
pub mod feature {
    /// VIRTIO_SCSI_F_HOTPLUG: the driver hears of units that come and go.
    pub const HOTPLUG: u64 = 1 << 1;
    /// VIRTIO_SCSI_F_CHANGE: and of units that change.
    pub const CHANGE: u64 = 1 << 2;
}

/// Length of the configuration space.
pub(super) const SPACE: usize = 36;

/// Offsets of what the driver may write.
const SENSE_SIZE: u32 = 20;
const CDB_SIZE: u32 = 24;

/// Longest sense data and CDBs that a driver may want, in bytes.
pub(super) const MAX_SENSE_SIZE: u32 = 252;
pub(super) const MAX_CDB_SIZE: u32 = 260;

/// Lengths that a driver begins with (5.6.4).
const FIRST_SENSE_SIZE: u32 = 96;
const FIRST_CDB_SIZE: u32 = 32;

/// Most segments of a command, sectors of 512 bytes of a command, and commands at a time for each
/// unit, that a driver is told.
const SEG_MAX: u32 = 126;
const MAX_SECTORS: u32 = 0xffff;
const PER_LUN: u32 = 128;

/// What a SCSI device looks like to its driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScsiConfig {
    /// Number of request queues.
    pub queues: u16,
}

impl Default for ScsiConfig {
    fn default() -> Self {
        Self { queues: 1 }
    }
}

impl ScsiConfig {
    /// Most request queues.
    pub const MAX_QUEUES: u16 = 64;

    /// Feature bits to offer.
    pub fn features(&self) -> u64 {
        feature::HOTPLUG | feature::CHANGE | vring::feature::OUT_OF_ORDER
    }
}

/// The lengths that the driver chooses.
#[derive(Debug)]
pub(super) struct Sizes {
    sense: AtomicU32,
    cdb: AtomicU32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            sense: AtomicU32::new(FIRST_SENSE_SIZE),
            cdb: AtomicU32::new(FIRST_CDB_SIZE),
        }
    }
}

impl Sizes {
    /// Sense data in a response.
    #[inline]
    pub(super) fn sense(&self) -> u32 {
        self.sense.load(Ordering::Relaxed)
    }

    /// The CDB in a request.
    #[inline]
    pub(super) fn cdb(&self) -> u32 {
        self.cdb.load(Ordering::Relaxed)
    }

    /// As they are at first.
    pub(super) fn reset(&self) {
        self.sense.store(FIRST_SENSE_SIZE, Ordering::Relaxed);
        self.cdb.store(FIRST_CDB_SIZE, Ordering::Relaxed);
    }

    /// The driver writes `data` at `offset`. False if there is nothing that it may write so.
    pub(super) fn write(&self, offset: u32, data: &[u8]) -> bool {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else {
            return false;
        };
        let value = u32::from_le_bytes(bytes);
        match offset {
            SENSE_SIZE if value <= MAX_SENSE_SIZE => self.sense.store(value, Ordering::Relaxed),
            CDB_SIZE if (1..=MAX_CDB_SIZE).contains(&value) => {
                self.cdb.store(value, Ordering::Relaxed);
            }
            _ => return false,
        }
        true
    }

    /// The configuration space of a device like this.
    pub(super) fn space(&self, config: &ScsiConfig) -> [u8; SPACE] {
        let fields = [
            config.queues.into(),
            SEG_MAX,
            MAX_SECTORS,
            PER_LUN,
            EVENT as u32,
            self.sense(),
            self.cdb(),
            // One channel, 0; targets up to 255.
            255 << 16,
            MAX_LUN.into(),
        ];
        let mut space = [0; SPACE];
        for (place, field) in space.chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        space
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_space_has_every_field_where_it_belongs() {
        let sizes = Sizes::default();
        let space = sizes.space(&ScsiConfig { queues: 5 });
        let at =
            |n: usize| u32::from_le_bytes([space[n], space[n + 1], space[n + 2], space[n + 3]]);
        assert_eq!((at(0), at(16), at(20), at(24)), (5, 16, 96, 32));
        assert_eq!((space[28], space[29], space[30], space[31]), (0, 0, 255, 0));
        assert_eq!(at(32), 16383);
    }

    #[test]
    fn only_lengths_that_make_sense_are_taken() {
        let sizes = Sizes::default();
        let mut writes = Vec::new();
        for offset in 0..40 {
            for value in [0, 1, 32, 252, 253, 260, 261, u32::MAX] {
                if sizes.write(offset, &value.to_le_bytes()) {
                    writes.push((offset, value));
                }
            }
            assert!(!sizes.write(offset, &[1, 0]) && !sizes.write(offset, &[0; 8]));
        }
        let good = [
            (20, 0),
            (20, 1),
            (20, 32),
            (20, 252),
            (24, 1),
            (24, 32),
            (24, 252),
            (24, 253),
            (24, 260),
        ];
        assert_eq!(writes, good);
        sizes.reset();
        assert_eq!((sizes.sense(), sizes.cdb()), (96, 32));
    }
}
