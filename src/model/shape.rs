//! What a modelled function looks like from outside: the dialects of VVU.

use super::ModelError;
use crate::pci::CROSVM_ID;

/// Whose device it is like: where its structures are, how it places memory if it does not say so
/// in its messages, and its manners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// This project's device.
    Ours,
    /// The prototypes of 2019 and 2022.
    Prototype,
    /// crosvm's device: the front-end's presence is never in the status, configuration interrupts
    /// are never sent, and an empty rx buffer means that the front-end is gone.
    Crosvm,
}

/// Identity, capabilities and sizes of a modelled function.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Whose device it is like.
    pub dialect: Dialect,
    /// PCI device id.
    pub id: u16,
    /// max_vhost_queues, N.
    pub rings: u32,
    /// Size of rxq and txq, a power of two.
    pub queue_size: u16,
    /// Number of MSI-X vectors, at most 2048; with 0 there is no such capability.
    pub vectors: u16,
    /// Distance of two doorbells, a power of two.
    pub multiplier: u32,
    /// Size of the BAR that shows the front-end's memory, a power of two.
    pub window: u64,
    /// RFC 4122 uuid; zero if there is none.
    pub uuid: [u8; 16],
    /// Shared-memory capability in 24 bytes instead of 16.
    pub long_capability: bool,
    /// Messages say where memory is in the window, requests of the driver's and in-flight buffers are
    /// carried (feature bits 0, 1 and 3).
    pub layout: bool,
}

/// Rings that messages can name.
const MAX_RINGS: u32 = 256;

impl Shape {
    /// This project's device: everything extended.
    pub fn ours() -> Self {
        Self {
            dialect: Dialect::Ours,
            id: CROSVM_ID,
            rings: MAX_RINGS,
            queue_size: 128,
            vectors: 3 + MAX_RINGS as u16,
            multiplier: 4,
            window: 16 << 30,
            uuid: [0; 16],
            long_capability: true,
            layout: true,
        }
    }

    /// The prototypes of 2019 (id 1058) and 2022 (id 106b).
    pub fn prototype(id: u16) -> Self {
        Self {
            dialect: Dialect::Prototype,
            id,
            rings: 1024,
            vectors: 1027,
            window: 64 << 30,
            long_capability: false,
            layout: false,
            ..Self::ours()
        }
    }

    /// crosvm's device.
    pub fn crosvm() -> Self {
        Self {
            dialect: Dialect::Crosvm,
            rings: 16,
            queue_size: 256,
            vectors: 19,
            long_capability: false,
            layout: false,
            ..Self::ours()
        }
    }

    /// Rings that can have notifications.
    pub(super) fn usable_rings(&self) -> u16 {
        self.rings.min(MAX_RINGS) as u16
    }

    /// Whether the device configuration has this project's 8 more bytes.
    pub(super) fn extended(&self) -> bool {
        self.layout
    }

    pub(super) fn is_crosvm(&self) -> bool {
        self.dialect == Dialect::Crosvm
    }

    pub(super) fn check(&self) -> Result<(), ModelError> {
        // A BAR of crosvm's holds a table of at most so many, and its bits.
        let most_vectors = if self.is_crosvm() { 256 } else { 2048 };
        let most_rings = if self.dialect == Dialect::Prototype {
            1024
        } else {
            MAX_RINGS
        };
        let limits = [
            ("rings", u64::from(self.rings), 1, u64::from(most_rings)),
            ("vectors", u64::from(self.vectors), 0, most_vectors),
            ("queue size", u64::from(self.queue_size), 1, 1 << 15),
            ("doorbell distance", u64::from(self.multiplier), 2, 1 << 16),
            ("window", self.window, 2 << 20, 1 << 40),
        ];
        for (what, found, least, most) in limits {
            let power = matches!(what, "rings" | "vectors") || found.is_power_of_two();
            if !(least..=most).contains(&found) || !power {
                return Err(ModelError::Shape {
                    what,
                    found,
                    least,
                    most,
                });
            }
        }
        Ok(())
    }
}
