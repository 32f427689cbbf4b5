//! Virtio and virtio-vhost-user (VVU) capabilities: which BAR holds which structure.
//!
//! Virtio's are those of VIRTIO 1.2, 4.1.4. VVU adds two types and uses the standard shared-memory
//! one, which its early dialects write in 16 bytes instead of 24, with a meaningless length:
//!
//! | type | structure | length | after byte 16 |
//! |---|---|---|---|
//! | 1 | common configuration | 16 | |
//! | 2 | queue notification | 20 | u32 multiplier |
//! | 3 | ISR | 16 | |
//! | 4 | device configuration | 16 | |
//! | 6 | doorbells (VVU) | 20 | u32 multiplier |
//! | 7 | notification selector (VVU) | 16 | |
//! | 8 | shared memory (id 0 or 1: the front-end's memory; 2: dirty log; 3: in-flight) | 24 (16) | u32 offset_hi, u32 length_hi |
//!
//! Nothing here knows how large a BAR is or whether a structure is long enough: that is for
//! whoever maps it.

use thiserror::Error;

use super::config::{CAP_VENDOR, Capability, ConfigSpace, VENDOR_VIRTIO};

/// The last BAR that there can be.
const LAST_BAR: u8 = 5;

/// A range of a BAR, as a capability says it. Not checked against the BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// BAR number, 0 to 5.
    pub bar: u8,
    /// Offset of the first byte in the BAR.
    pub offset: u64,
    /// Length in bytes; `None` where the dialect says nothing useful: up to the end of the BAR.
    pub length: Option<u64>,
}

/// A range of a BAR with registers at multiples of a stride.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strided {
    /// Where.
    pub location: Location,
    /// Distance of two neighbours in bytes.
    pub multiplier: u32,
}

/// The structures that make a function a VVU function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Structures {
    /// Common configuration (type 1).
    pub common: Location,
    /// Queue notification (type 2).
    pub notify: Strided,
    /// Interrupt status (type 3).
    pub isr: Location,
    /// Device configuration (type 4): status, number of queues, uuid.
    pub device: Location,
    /// Doorbells (type 6): call and error of the front-end's rings.
    pub doorbells: Strided,
    /// Notification selector (type 7): which MSI-X vector a kick raises.
    pub notifications: Location,
    /// Front-end memory (type 8, id 0 or 1).
    pub memory: Location,
    /// Dirty log (type 8, id 2).
    pub log: Option<Location>,
    /// In-flight descriptors (type 8, id 3).
    pub inflight: Option<Location>,
}

/// Why a function is not a VVU function.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotVvu {
    /// Not virtio at all.
    #[error("vendor id {0:04x} is not virtio's (1af4)")]
    Vendor(u16),
    /// The configuration space could only be read up to its header.
    #[error("capabilities are hidden from unprivileged readers; read them as root")]
    Hidden,
    /// A capability is not there, or is malformed.
    #[error("capability {name} (virtio type {cfg_type}) is missing")]
    Missing {
        /// What the capability is called.
        name: &'static str,
        /// Its type.
        cfg_type: u8,
    },
}

/// One vendor capability, read as virtio's.
struct Virtio<'a> {
    cfg_type: u8,
    id: u8,
    location: Location,
    /// The whole capability, as long as it says it is.
    bytes: &'a [u8],
}

impl<'a> Virtio<'a> {
    /// `None` for other capabilities, and for those that a driver must skip: too short, longer
    /// than the space, or in a BAR that cannot exist.
    fn parse(capability: &Capability<'a>) -> Option<Self> {
        let length = *capability.bytes.get(2)?;
        let bytes = capability.bytes.get(..usize::from(length))?;
        if capability.id != CAP_VENDOR {
            return None;
        }
        let bar = *bytes.get(4)?;
        let location = Location {
            bar,
            offset: u64::from(word(bytes, 8)?),
            length: Some(u64::from(word(bytes, 12)?)),
        };
        (bar <= LAST_BAR).then_some(Self {
            cfg_type: *bytes.get(3)?,
            id: *bytes.get(5)?,
            location,
            bytes,
        })
    }

    fn strided(&self) -> Option<Strided> {
        Some(Strided {
            location: self.location,
            multiplier: word(self.bytes, 16)?,
        })
    }

    /// Type 8 in either form. The 16-byte one has a length that means nothing: prototypes always
    /// say 0x1000, crosvm truncates it to 32 bits.
    fn shared_memory(&self) -> Location {
        match (word(self.bytes, 16), word(self.bytes, 20)) {
            (Some(offset_hi), Some(length_hi)) => Location {
                offset: self.location.offset | u64::from(offset_hi) << 32,
                length: self
                    .location
                    .length
                    .map(|low| low | u64::from(length_hi) << 32),
                ..self.location
            },
            _ => Location {
                length: None,
                ..self.location
            },
        }
    }
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

#[derive(Default)]
struct Found {
    common: Option<Location>,
    notify: Option<Strided>,
    isr: Option<Location>,
    device: Option<Location>,
    doorbells: Option<Strided>,
    notifications: Option<Location>,
    memory: Option<Location>,
    log: Option<Location>,
    inflight: Option<Location>,
}

impl Found {
    /// The first of each kind counts (VIRTIO 1.2, 4.1.4.1); unknown types are skipped.
    fn note(&mut self, cap: &Virtio<'_>) {
        fn first<T>(slot: &mut Option<T>, value: Option<T>) {
            *slot = slot.take().or(value);
        }
        match (cap.cfg_type, cap.id) {
            (1, _) => first(&mut self.common, Some(cap.location)),
            (2, _) => first(&mut self.notify, cap.strided()),
            (3, _) => first(&mut self.isr, Some(cap.location)),
            (4, _) => first(&mut self.device, Some(cap.location)),
            (6, _) => first(&mut self.doorbells, cap.strided()),
            (7, _) => first(&mut self.notifications, Some(cap.location)),
            (8, 0 | 1) => first(&mut self.memory, Some(cap.shared_memory())),
            (8, 2) => first(&mut self.log, Some(cap.shared_memory())),
            (8, 3) => first(&mut self.inflight, Some(cap.shared_memory())),
            _ => {}
        }
    }
}

impl Structures {
    /// Finds all structures, or says which one keeps `space` from being a VVU function's.
    pub fn find(space: &ConfigSpace) -> Result<Self, NotVvu> {
        if space.vendor() != VENDOR_VIRTIO {
            return Err(NotVvu::Vendor(space.vendor()));
        }
        if space.is_truncated() {
            return Err(NotVvu::Hidden);
        }
        let mut found = Found::default();
        for capability in space.capabilities() {
            if let Some(cap) = Virtio::parse(&capability) {
                found.note(&cap);
            }
        }
        let missing = |cfg_type, name| move || NotVvu::Missing { name, cfg_type };
        Ok(Self {
            common: found
                .common
                .ok_or_else(missing(1, "common configuration"))?,
            notify: found.notify.ok_or_else(missing(2, "notification"))?,
            isr: found.isr.ok_or_else(missing(3, "interrupt status"))?,
            device: found
                .device
                .ok_or_else(missing(4, "device configuration"))?,
            doorbells: found.doorbells.ok_or_else(missing(6, "doorbells"))?,
            notifications: found
                .notifications
                .ok_or_else(missing(7, "notification selector"))?,
            memory: found.memory.ok_or_else(missing(8, "shared memory"))?,
            log: found.log,
            inflight: found.inflight,
        })
    }
}

/// PCI device id that crosvm's device had, and ours has. Where a device with it does not say where
/// memory lies, that is as in crosvm's.
pub const CROSVM_ID: u16 = 0x107d;

/// PCI device ids under which VVU functions are known: this project and crosvm (virtio id 61),
/// the 2022 and 2019 prototypes (43, 24), and their transitional forms. None is assigned by the
/// VIRTIO specification, so an id is only a hint; [`Structures::find`] decides.
pub const KNOWN_IDS: [u16; 5] = [CROSVM_ID, 0x106b, 0x1058, 0x1016, 0x1017];

/// PCI device id of a modern virtio function (VIRTIO 1.2, 4.1.2.1); `None` if `virtio_id` has no
/// such id.
pub fn modern_id(virtio_id: u16) -> Option<u16> {
    (virtio_id <= 0x3f).then(|| 0x1040 + virtio_id)
}

#[cfg(test)]
#[path = "caps_tests.rs"]
mod tests;
