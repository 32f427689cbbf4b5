//! What a fake device looks like from outside: the dialects of VVU.

use crate::pci::ConfigBuilder;

/// Identity, capabilities and sizes of a fake device.
#[derive(Debug, Clone)]
pub struct Shape {
    /// PCI device id.
    pub id: u16,
    /// Feature bits offered.
    pub features: u64,
    /// max_vhost_queues.
    pub rings: u32,
    /// Size of rxq and txq.
    pub queue_size: u16,
    /// Number of MSI-X vectors.
    pub vectors: u16,
    /// BAR of the virtio structures.
    pub modern_bar: u8,
    /// BAR of doorbells and notification selector.
    pub doorbell_bar: u8,
    /// Distance of two doorbells.
    pub multiplier: u32,
    /// BAR of the front-end's memory, and where in it that begins.
    pub memory: (u8, u64),
    /// Size of the memory BAR.
    pub window: u64,
    /// Shared-memory capability in 24 bytes instead of 16.
    pub long_capability: bool,
    /// crosvm's manners: FRONTEND_UP is never set, configuration interrupts are never sent, and
    /// an empty rx buffer means that the front-end is gone.
    pub crosvm: bool,
    /// Capability types that are left out.
    pub without: Vec<u8>,
}

/// VERSION_1 and ACCESS_PLATFORM.
const BASE: u64 = 1 << 32 | 1 << 33;

/// Offsets of the virtio structures in their BAR.
pub(super) const COMMON: u64 = 0;
pub(super) const ISR: u64 = 0x1000;
pub(super) const DEVICE: u64 = 0x2000;
pub(super) const NOTIFY: u64 = 0x3000;
/// Length of the doorbells; the notification selector follows.
pub(super) const DOORBELLS: u64 = 0x2000;

impl Shape {
    /// This project's device: everything extended.
    pub fn ours() -> Self {
        Self {
            id: 0x107d,
            features: BASE | 0x01,
            rings: 256,
            queue_size: 256,
            vectors: 67,
            modern_bar: 4,
            doorbell_bar: 0,
            multiplier: 4,
            memory: (2, 0),
            window: 1 << 30,
            long_capability: true,
            crosvm: false,
            without: Vec::new(),
        }
    }

    /// The prototypes of 2019 and 2022.
    pub fn prototype(id: u16) -> Self {
        Self {
            id,
            features: BASE,
            rings: 1024,
            queue_size: 128,
            vectors: 1027,
            doorbell_bar: 2,
            memory: (2, 0x3000),
            long_capability: false,
            ..Self::ours()
        }
    }

    /// crosvm's device.
    pub fn crosvm() -> Self {
        Self {
            id: 0x107d,
            features: BASE,
            rings: 16,
            vectors: 19,
            modern_bar: 0,
            doorbell_bar: 2,
            memory: (4, 0),
            long_capability: false,
            crosvm: true,
            ..Self::ours()
        }
    }

    /// Whether the device configuration has this project's 8 more bytes.
    pub(super) fn extended(&self) -> bool {
        self.features & 0xff != 0
    }

    pub(super) fn config_len(&self) -> u64 {
        if self.extended() { 0x20 } else { 0x18 }
    }

    pub(super) fn bar_size(&self, bar: u8) -> u64 {
        if bar == self.memory.0 {
            self.window
        } else if bar == self.modern_bar || bar == self.doorbell_bar {
            0x8000
        } else {
            0
        }
    }

    /// Configuration space.
    pub fn config(&self) -> Vec<u8> {
        let (regs, bells) = (self.modern_bar, self.doorbell_bar);
        let (memory_bar, memory) = self.memory;
        let multiplier = [self.multiplier];
        let mut builder =
            ConfigBuilder::new(self.id).msix(self.vectors.max(1), (1, 0), (1, 0x8000));
        for (cfg_type, bar, at, tail) in [
            (1, regs, (COMMON, 0x1000), &[][..]),
            (2, regs, (NOTIFY, 0x1000), &[4]),
            (3, regs, (ISR, 0x1000), &[]),
            (4, regs, (DEVICE, self.config_len()), &[]),
            (6, bells, (0, DOORBELLS), &multiplier),
            (7, bells, (DOORBELLS, 0x1000), &[]),
        ] {
            if !self.without.contains(&cfg_type) {
                builder = builder.virtio(cfg_type, 0, bar, at, tail);
            }
        }
        if self.without.contains(&8) {
            return builder.build();
        }
        match self.long_capability {
            true => builder.memory(1, memory_bar, (memory, self.window - memory)),
            false => builder.virtio(8, 0, memory_bar, (memory, 0x1000), &[]),
        }
        .build()
    }
}
