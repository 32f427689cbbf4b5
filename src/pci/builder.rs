//! Configuration spaces made to order: what a device model shows, and tests.

use super::config::{CAP_MSIX, CAP_VENDOR, CONFIG_LEN};

/// Builds a configuration space with capabilities one after the other.
#[derive(Debug, Clone)]
pub struct ConfigBuilder {
    bytes: Vec<u8>,
    /// Where the pointer to the next capability goes.
    link: usize,
    /// Where the next capability goes.
    end: usize,
}

impl ConfigBuilder {
    /// A virtio function with this device id and no capabilities.
    pub fn new(device: u16) -> Self {
        let mut bytes = vec![0; CONFIG_LEN];
        bytes[0..2].copy_from_slice(&super::VENDOR_VIRTIO.to_le_bytes());
        bytes[2..4].copy_from_slice(&device.to_le_bytes());
        bytes[6] = 0x10;
        bytes[8] = 1;
        bytes[9..12].copy_from_slice(&[0, 0xff, 0]);
        bytes[0x2c..0x2e].copy_from_slice(&super::VENDOR_VIRTIO.to_le_bytes());
        bytes[0x2e..0x30].copy_from_slice(&0x1100u16.to_le_bytes());
        Self {
            bytes,
            link: 0x34,
            end: 0x40,
        }
    }

    /// Appends a capability: `body` is everything after id and next pointer.
    ///
    /// # Panics
    /// When the space is full.
    #[allow(clippy::indexing_slicing)]
    pub fn capability(mut self, id: u8, body: &[u8]) -> Self {
        self.bytes[self.link] = self.end as u8;
        self.bytes[self.end] = id;
        self.bytes[self.end + 2..][..body.len()].copy_from_slice(body);
        self.link = self.end + 1;
        self.end = (self.end + 2 + body.len()).next_multiple_of(4);
        self
    }

    /// Appends a virtio capability; `tail` is what follows its first 16 bytes.
    pub fn virtio(self, cfg_type: u8, id: u8, bar: u8, at: (u64, u64), tail: &[u32]) -> Self {
        let mut body = vec![(16 + 4 * tail.len()) as u8, cfg_type, bar, id, 0, 0];
        body.extend((at.0 as u32).to_le_bytes());
        body.extend((at.1 as u32).to_le_bytes());
        body.extend(tail.iter().flat_map(|word| word.to_le_bytes()));
        self.capability(CAP_VENDOR, &body)
    }

    /// Appends a shared-memory capability in the standard 24-byte form.
    pub fn memory(self, id: u8, bar: u8, at: (u64, u64)) -> Self {
        let high = [(at.0 >> 32) as u32, (at.1 >> 32) as u32];
        self.virtio(8, id, bar, at, &high)
    }

    /// Appends an MSI-X capability with `vectors` vectors; table and pending bits are in the BAR
    /// and at the offset (a multiple of 8) that are given.
    pub fn msix(self, vectors: u16, table: (u8, u32), pending: (u8, u32)) -> Self {
        let control = vectors.wrapping_sub(1) & 0x7ff;
        let mut body = control.to_le_bytes().to_vec();
        for (bar, offset) in [table, pending] {
            body.extend((offset & !7 | u32::from(bar & 7)).to_le_bytes());
        }
        self.capability(CAP_MSIX, &body)
    }

    /// The space.
    pub fn build(self) -> Vec<u8> {
        self.bytes
    }
}
