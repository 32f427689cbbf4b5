//! Feature bits and configuration space of a block device (VIRTIO 1.2, 5.2.3 and 5.2.4).

use crate::bdev::Disk;
use crate::vring;

/// Feature bits of block devices that are offered (5.2.3).
pub mod feature {
    /// VIRTIO_BLK_F_SIZE_MAX: the longest segment is known.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// VIRTIO_BLK_F_SEG_MAX: so is the number of segments of a request.
    pub const SEG_MAX: u64 = 1 << 2;
    /// VIRTIO_BLK_F_RO: the disk cannot be written.
    pub const RO: u64 = 1 << 5;
    /// VIRTIO_BLK_F_BLK_SIZE: the block size is known.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// VIRTIO_BLK_F_FLUSH: there is a flush.
    pub const FLUSH: u64 = 1 << 9;
    /// VIRTIO_BLK_F_TOPOLOGY: what suits the medium is known.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// VIRTIO_BLK_F_CONFIG_WCE: the driver says whether writes may stay in a cache.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// VIRTIO_BLK_F_MQ: several queues.
    pub const MQ: u64 = 1 << 12;
    /// VIRTIO_BLK_F_DISCARD: ranges can be given up.
    pub const DISCARD: u64 = 1 << 13;
    /// VIRTIO_BLK_F_WRITE_ZEROES: ranges can be zeroed.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Bytes of a sector, which all numbers of the device count in, whatever its blocks are (5.2.4).
pub(super) const SECTOR: u64 = 512;

/// Longest segment that a driver is told, in bytes.
const SIZE_MAX: u32 = 1 << 20;
/// Most segments of data that a driver is told.
const SEG_MAX: u32 = 126;

/// Most ranges of one discard or write-zeroes request.
pub(super) const MAX_RANGES: usize = 16;

/// Length of the configuration space, up to the zone characteristics.
pub(super) const SPACE: usize = 96;

/// Offset of `writeback`.
pub(super) const WRITEBACK: usize = 32;

/// Length of the id that GET_ID returns (5.2.6.1).
pub(super) const ID: usize = 20;

/// What a block device looks like to its driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlkConfig {
    /// What GET_ID returns: at most 20 bytes, zero-padded.
    pub serial: String,
    /// Whether the driver may only read, whatever the disk can do.
    pub read_only: bool,
    /// Number of request queues.
    pub queues: u16,
}

impl Default for BlkConfig {
    fn default() -> Self {
        Self {
            serial: String::new(),
            read_only: false,
            queues: 1,
        }
    }
}

impl BlkConfig {
    /// Most queues.
    pub const MAX_QUEUES: u16 = 64;

    /// The id that GET_ID returns.
    pub fn id(&self) -> [u8; ID] {
        let mut id = [0; ID];
        for (place, byte) in id.iter_mut().zip(self.serial.bytes()) {
            *place = byte;
        }
        id
    }

    /// Feature bits to offer for `disk`.
    pub fn features(&self, disk: &dyn Disk) -> u64 {
        let abilities = disk.abilities();
        let mut features = feature::SIZE_MAX
            | feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::TOPOLOGY
            | vring::feature::OUT_OF_ORDER;
        if self.queues > 1 {
            features |= feature::MQ;
        }
        if abilities.read_only {
            return features | feature::RO;
        }
        features |= feature::FLUSH | feature::CONFIG_WCE;
        if abilities.discard.is_some() {
            features |= feature::DISCARD;
        }
        if abilities.write_zeroes.is_some() {
            features |= feature::WRITE_ZEROES;
        }
        features
    }

    /// The configuration space. Fields of features that are not offered are zero.
    pub fn space(&self, disk: &dyn Disk, write_back: bool) -> [u8; SPACE] {
        let (geometry, abilities) = (disk.geometry(), disk.abilities());
        let sectors = |bytes: u64| u32::try_from(bytes / SECTOR).unwrap_or(u32::MAX);
        let blocks = |bytes: u32| bytes / geometry.logical_block.max(1);
        let mut space = [0; SPACE];
        let mut put = |offset: usize, bytes: &[u8]| {
            if let Some(place) = space.get_mut(offset..offset + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        let ranges = MAX_RANGES as u32;
        put(0, &(disk.size().get() / SECTOR).to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &geometry.logical_block.to_le_bytes());
        // Logical blocks in a physical one, as a power of two; the first physical block begins at
        // 0; the smallest and the best I/O, in logical blocks.
        let exponent = blocks(geometry.physical_block).checked_ilog2().unwrap_or(0) as u8;
        put(24, &[exponent, 0]);
        let least = u16::try_from(blocks(geometry.physical_block)).unwrap_or(u16::MAX);
        put(26, &least.to_le_bytes());
        put(28, &blocks(geometry.optimal_io).to_le_bytes());
        put(WRITEBACK, &[u8::from(write_back)]);
        put(34, &self.queues.to_le_bytes());
        if abilities.read_only {
            return space;
        }
        if let Some(limits) = abilities.discard {
            put(36, &sectors(limits.max_bytes).to_le_bytes());
            put(40, &ranges.to_le_bytes());
            put(44, &sectors(limits.granularity.into()).max(1).to_le_bytes());
        }
        if let Some(limits) = abilities.write_zeroes {
            put(48, &sectors(limits.max_bytes).to_le_bytes());
            put(52, &ranges.to_le_bytes());
            put(56, &[1]);
        }
        space
    }
}
