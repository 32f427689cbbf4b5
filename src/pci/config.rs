//! Configuration space: a private copy, its header, and the walk along its capability list.
//!
//! The copy is taken once and judged afterwards, because a function that is not what it says can
//! change between two reads. Linux shows only the first 64 bytes of it to unprivileged readers:
//! then there are no capabilities to see, and [`ConfigSpace::is_truncated`] says why.
//! (PCI Local Bus 3.0, 6.1 and 6.7.)

use super::PciFunction;

/// Bytes of the conventional configuration space, where all virtio capabilities are.
pub const CONFIG_LEN: usize = 256;

/// Bytes that anybody may read.
const HEADER_LEN: usize = 64;

/// Capabilities in a list that lies below 256 bytes and above the header, each at least 4 bytes.
const MAX_CAPABILITIES: usize = (CONFIG_LEN - HEADER_LEN) / 4;

/// Vendor id of virtio.
pub const VENDOR_VIRTIO: u16 = 0x1af4;

/// Capability id of MSI-X.
pub const CAP_MSIX: u8 = 0x11;

/// Capability id of vendor-specific capabilities, which virtio's are.
pub const CAP_VENDOR: u8 = 0x09;

/// Fields of the header that concern us (type 0; PCI Local Bus 3.0, figure 6-1).
mod field {
    pub(super) const VENDOR: usize = 0x00;
    pub(super) const DEVICE: usize = 0x02;
    pub(super) const COMMAND: usize = 0x04;
    pub(super) const STATUS: usize = 0x06;
    pub(super) const REVISION: usize = 0x08;
    pub(super) const CLASS: usize = 0x09;
    pub(super) const SUBSYSTEM_VENDOR: usize = 0x2c;
    pub(super) const SUBSYSTEM: usize = 0x2e;
    pub(super) const CAPABILITIES: usize = 0x34;
}

/// Offset of the command register.
pub const COMMAND: u16 = field::COMMAND as u16;
/// Command bit: the function answers to its memory BARs.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command bit: the function may do DMA and send MSI-X.
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Status bit: there is a capability list.
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// A private copy of a function's configuration space, or of as much as could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: Vec<u8>,
}

/// One entry of the capability list.
#[derive(Debug, Clone, Copy)]
pub struct Capability<'a> {
    /// Capability id.
    pub id: u8,
    /// Where it is.
    pub offset: u8,
    /// Everything from it to the end of the space. How much belongs to it, the capability says.
    pub bytes: &'a [u8],
}

impl ConfigSpace {
    /// The first 256 of `bytes`, or fewer.
    pub fn new(mut bytes: Vec<u8>) -> Self {
        bytes.truncate(CONFIG_LEN);
        Self { bytes }
    }

    /// Reads it from a function.
    pub fn read(function: &dyn PciFunction) -> Self {
        let mut bytes = vec![0; CONFIG_LEN];
        function.read_config(0, &mut bytes);
        Self { bytes }
    }

    /// Whether capabilities may lie beyond what could be read.
    pub fn is_truncated(&self) -> bool {
        self.bytes.len() < CONFIG_LEN
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Two little-endian bytes; `None` beyond the end.
    pub fn u16(&self, offset: usize) -> Option<u16> {
        let bytes = self.bytes.get(offset..)?.first_chunk()?;
        Some(u16::from_le_bytes(*bytes))
    }

    /// Vendor id; all ones if nobody is there.
    pub fn vendor(&self) -> u16 {
        self.u16(field::VENDOR).unwrap_or(u16::MAX)
    }

    /// Device id.
    pub fn device(&self) -> u16 {
        self.u16(field::DEVICE).unwrap_or(u16::MAX)
    }

    /// Revision.
    pub fn revision(&self) -> u8 {
        self.bytes.get(field::REVISION).copied().unwrap_or(u8::MAX)
    }

    /// Class code, 24 bits.
    pub fn class(&self) -> u32 {
        match self.bytes.get(field::CLASS..) {
            Some([interface, sub, base, ..]) => u32::from_le_bytes([*interface, *sub, *base, 0]),
            _ => 0xff_ffff,
        }
    }

    /// Subsystem vendor id and subsystem id.
    pub fn subsystem(&self) -> (u16, u16) {
        let field = |at| self.u16(at).unwrap_or(u16::MAX);
        (field(field::SUBSYSTEM_VENDOR), field(field::SUBSYSTEM))
    }

    /// The capability list, in its order. Ends at the first offset that is zero, inside the
    /// header, beyond the space or seen before, whatever the function claims.
    pub fn capabilities(&self) -> impl Iterator<Item = Capability<'_>> {
        let status = self.u16(field::STATUS).unwrap_or(0);
        let mut next = match self.bytes.get(field::CAPABILITIES) {
            Some(first) if status & STATUS_CAPABILITIES != 0 => *first,
            _ => 0,
        };
        let mut seen = [false; MAX_CAPABILITIES];
        std::iter::from_fn(move || {
            // The two low bits are reserved and must be masked (PCI Local Bus 3.0, 6.7).
            let offset = next & !3;
            let slot = usize::from(offset).checked_sub(HEADER_LEN)? / 4;
            let seen = seen.get_mut(slot)?;
            if std::mem::replace(seen, true) {
                return None;
            }
            let bytes = self.bytes.get(usize::from(offset)..)?;
            let [id, after, ..] = bytes else {
                return None;
            };
            next = *after;
            Some(Capability {
                id: *id,
                offset,
                bytes,
            })
        })
    }

    /// How many MSI-X vectors the function says it has; 0 without MSI-X (PCI Local Bus 3.0,
    /// 6.8.2.3: table size minus one, in 11 bits).
    pub fn msix_vectors(&self) -> u16 {
        self.capabilities()
            .find(|capability| capability.id == CAP_MSIX)
            .and_then(|capability| capability.bytes.get(2..)?.first_chunk())
            .map_or(0, |control| (u16::from_le_bytes(*control) & 0x7ff) + 1)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn space(list: &[(u8, u8, u8)], first: u8) -> ConfigSpace {
        let mut bytes = vec![0; CONFIG_LEN];
        bytes[field::STATUS] = 0x10;
        bytes[field::CAPABILITIES] = first;
        for (at, id, next) in list {
            bytes[usize::from(*at)] = *id;
            bytes[usize::from(*at) + 1] = *next;
        }
        ConfigSpace::new(bytes)
    }

    fn ids(space: &ConfigSpace) -> Vec<u8> {
        space.capabilities().map(|cap| cap.id).collect()
    }

    #[test]
    fn the_walk_ends_whatever_the_list_says() {
        assert_eq!(ids(&space(&[(0x40, 1, 0x50), (0x50, 2, 0)], 0x40)), [1, 2]);
        // Unaligned pointers are masked; a loop ends; so does a pointer into the header.
        assert_eq!(
            ids(&space(&[(0x40, 1, 0x53), (0x50, 2, 0x40)], 0x42)),
            [1, 2]
        );
        assert_eq!(ids(&space(&[(0x40, 1, 0x40)], 0x40)), [1]);
        assert_eq!(ids(&space(&[(0x40, 1, 0x3c)], 0x40)), [1]);
        assert_eq!(ids(&space(&[(0xfc, 7, 0xff)], 0xfc)), [7]);
        // Every slot once, no more.
        let chain: Vec<_> = (0x40..=0xfcu8)
            .step_by(4)
            .map(|at| (at, 9, at.wrapping_add(4).max(0x40)))
            .collect();
        assert_eq!(ids(&space(&chain, 0x40)).len(), MAX_CAPABILITIES);
    }

    #[test]
    fn no_list_no_space_no_capabilities() {
        let mut bytes = space(&[(0x40, 1, 0)], 0x40).bytes;
        bytes[field::STATUS] = 0;
        assert_eq!(ids(&ConfigSpace::new(bytes)), [0; 0]);
        let short = ConfigSpace::new(space(&[(0x40, 1, 0)], 0x40).bytes[..64].to_vec());
        assert!(short.is_truncated());
        assert_eq!(ids(&short), [0; 0]);
        let nothing = ConfigSpace::new(vec![]);
        assert_eq!(
            (nothing.vendor(), nothing.class(), nothing.msix_vectors()),
            (0xffff, 0xff_ffff, 0)
        );
    }

    #[test]
    fn vectors_come_from_the_msix_capability() {
        let mut space = space(&[(0x40, CAP_MSIX, 0)], 0x40);
        space.bytes[0x42] = 0x02;
        space.bytes[0x43] = 0xc1;
        assert_eq!(space.msix_vectors(), 0x103);
    }
}
