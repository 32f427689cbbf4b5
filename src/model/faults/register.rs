//! Registers that lie.

use super::{Fault, Faults, Kind, NOTIFY_SHIFT};
use crate::model::layout::NOTIFY_MULTIPLIER;

/// Offsets in the common configuration.
const FEATURES: u64 = 0x04;
const CONFIG_VECTOR: u64 = 0x10;
const QUEUES: u64 = 0x12;
const STATUS: u64 = 0x14;
const CONFIG_GENERATION: u64 = 0x15;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const NOTIFY_OFF: u64 = 0x1e;
/// Offsets in the device configuration.
const LINK: u64 = 0x00;
const RINGS: u64 = 0x04;
const UUID: u64 = 0x08;
const GENERATION: u64 = 0x18;
/// Offset in the selector.
const KICK_VECTOR: u64 = 2;

/// What one access sees of a structure.
struct Image<'a> {
    at: u64,
    data: &'a mut [u8],
}

impl Image<'_> {
    fn byte(&mut self, field: u64) -> Option<&mut u8> {
        let at = field.checked_sub(self.at)?;
        self.data.get_mut(usize::try_from(at).ok()?)
    }

    fn put(&mut self, field: u64, bytes: &[u8]) {
        for (field, byte) in (field..).zip(bytes) {
            if let Some(slot) = self.byte(field) {
                *slot = *byte;
            }
        }
    }
}

impl Faults {
    /// The driver read this.
    pub(in crate::model) fn read(&self, place: Option<(Kind, u64)>, data: &mut [u8]) {
        let mut inner = self.lock();
        if let (Some(watcher), Some((kind, at))) = (&mut inner.watcher, place) {
            watcher.read(kind, at, data.len());
        }
        inner.reads = inner.reads.saturating_add(1);
        let answers = Self::answers(&inner);
        let (fault, cruel) = (inner.fault, inner.cruel);
        drop(inner);
        if !answers {
            return data.fill(u8::MAX);
        }
        let Some((kind, at)) = place else { return };
        let mut image = Image { at, data };
        match (kind, fault) {
            (Kind::Common, Some(fault)) => self.spoil_common(&mut image, fault),
            (Kind::Device, Some(fault)) => self.spoil_device(&mut image, fault),
            _ => {}
        }
        if let (Kind::Common, true, Some(byte)) = (kind, cruel, image.byte(NOTIFY_OFF)) {
            *byte = byte.wrapping_add(NOTIFY_SHIFT as u8);
        }
    }

    fn spoil_common(&self, image: &mut Image<'_>, fault: Fault) {
        let look = || self.look().wrapping_mul(0x9e37_79b9);
        match fault {
            Fault::FeaturesRefused => {
                if let Some(byte) = image.byte(STATUS) {
                    *byte &= !8;
                }
            }
            Fault::StuckReset => {
                if let Some(byte) = image.byte(STATUS) {
                    *byte |= 1;
                }
            }
            Fault::NeedsReset => {
                if let Some(byte) = image.byte(STATUS) {
                    *byte |= (*byte & 4) << 4;
                }
            }
            Fault::StatusLost => image.put(STATUS, &[0]),
            Fault::NoFeature(bit) => {
                // In both halves: the bits of the lower one may be missing, too.
                if let Some(byte) = image.byte(FEATURES) {
                    *byte &= !(1 << (bit & 7));
                }
            }
            Fault::Queues(queues) => image.put(QUEUES, &queues.to_le_bytes()),
            Fault::QueueSize(size) => image.put(QUEUE_SIZE, &size.to_le_bytes()),
            Fault::ConfigMoves => image.put(CONFIG_GENERATION, &look().to_le_bytes()[..1]),
            _ => {}
        }
    }

    fn spoil_device(&self, image: &mut Image<'_>, fault: Fault) {
        let look = || self.look().wrapping_mul(0x9e37_79b9);
        match fault {
            Fault::Rings(rings) => image.put(RINGS, &rings.to_le_bytes()),
            Fault::RingsMove => image.put(RINGS, &look().to_le_bytes()),
            Fault::UuidMoves => image.put(UUID, &look().to_le_bytes().repeat(4)),
            Fault::GenerationMoves => image.put(GENERATION, &look().to_le_bytes()),
            Fault::LinkGarbage => image.put(LINK, &0xdead_bee0u32.to_le_bytes()),
            Fault::Flapping if image.byte(LINK).is_some() => {
                image.put(LINK, &(3 * (self.look() & 1)).to_le_bytes())
            }
            Fault::Ghost => {
                if let Some(byte) = image.byte(LINK) {
                    *byte |= 2;
                }
            }
            _ => {}
        }
    }

    /// The driver writes this; where to, or nowhere.
    pub(in crate::model) fn write(
        &self,
        place: Option<(Kind, u64)>,
        data: &[u8],
    ) -> Option<(Kind, u64)> {
        let mut inner = self.lock();
        let (kind, at) = place?;
        let (fault, cruel) = (inner.fault, inner.cruel);
        let shift = if cruel { NOTIFY_SHIFT } else { 0 };
        if let Some(watcher) = &mut inner.watcher {
            watcher.write(kind, at, data, shift);
        }
        if !Self::answers(&inner) {
            return None;
        }
        let shift = u64::from(shift) * u64::from(NOTIFY_MULTIPLIER);
        match (kind, at, fault) {
            (Kind::Common, CONFIG_VECTOR | QUEUE_VECTOR, Some(Fault::VectorsRefused))
            | (Kind::Selector, KICK_VECTOR, Some(Fault::VectorsRefused)) => None,
            (Kind::Notify, at, _) => Some((kind, at.checked_sub(shift)?)),
            _ => place,
        }
    }
}
