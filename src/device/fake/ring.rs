//! The device's end of rxq and txq. For tests: it panics where a driver breaks the rules.
#![allow(clippy::unwrap_used)]

use vm_memory::Bytes;

use crate::memory::Area;

/// One queue as the driver set it up.
#[derive(Debug, Clone, Default)]
pub(super) struct DeviceQueue {
    pub(super) size: u16,
    pub(super) vector: u16,
    pub(super) enabled: bool,
    /// Descriptor table, available ring, used ring.
    pub(super) addresses: [u64; 3],
    pub(super) seen: u16,
    pub(super) used: u16,
    /// Descriptors taken from the available ring and not yet returned.
    pub(super) pool: Vec<u16>,
}

/// What the function may reach: first address and bytes.
pub(super) type Dma = Vec<(u64, Area)>;

fn find(dma: &Dma, address: u64, len: usize) -> Area {
    dma.iter()
        .find_map(|(iova, bytes)| {
            let offset = address.checked_sub(*iova)?;
            bytes.sub(usize::try_from(offset).ok()?, len)
        })
        .unwrap_or_else(|| panic!("DMA to {address:#x}+{len:#x}, which is not mapped"))
}

fn load(dma: &Dma, address: u64) -> u16 {
    find(dma, address, 2).slice().read_obj(0).unwrap()
}

impl DeviceQueue {
    /// Takes what is newly available.
    pub(super) fn fetch(&mut self, dma: &Dma) {
        let [_, avail, _] = self.addresses;
        let index = load(dma, avail + 2);
        while self.seen != index {
            let slot = u64::from(self.seen % self.size);
            self.pool.push(load(dma, avail + 4 + 2 * slot));
            self.seen = self.seen.wrapping_add(1);
            assert!(self.pool.len() <= self.size.into(), "ring overrun");
        }
    }

    /// A descriptor's buffer and whether the device writes it.
    pub(super) fn buffer(&self, dma: &Dma, id: u16) -> (Area, bool) {
        let at = self.addresses[0] + 16 * u64::from(id);
        let raw: [u8; 16] = find(dma, at, 16).slice().read_obj(0).unwrap();
        let address = u64::from_le_bytes(*raw.first_chunk().unwrap());
        let len = u32::from_le_bytes(*raw[8..].first_chunk().unwrap());
        let flags = u16::from_le_bytes(*raw[12..].first_chunk().unwrap());
        assert_eq!(flags & !2, 0, "chained or indirect descriptor");
        (find(dma, address, len as usize), flags & 2 != 0)
    }

    /// Returns a descriptor, or whatever a lying device says.
    pub(super) fn give_back(&mut self, dma: &Dma, id: u32, len: u32, advance: u16) {
        let used = self.addresses[2];
        let slot = u64::from(self.used % self.size);
        let element = find(dma, used + 4 + 8 * slot, 8);
        element.slice().write_obj(id, 0).unwrap();
        element.slice().write_obj(len, 4).unwrap();
        self.used = self.used.wrapping_add(advance);
        find(dma, used + 2, 2)
            .slice()
            .write_obj(self.used, 0)
            .unwrap();
    }
}
