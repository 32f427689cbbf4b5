//! Configuration space: what of it can be written, and the window to the BARs in it.

use super::layout::{Bar, Layout};
use super::registers::copy;
use super::shape::Shape;
use crate::pci::{CAP_MSIX, CAP_VENDOR, COMMAND, ConfigSpace};

/// First BAR register.
const BARS: usize = 0x10;
/// Command bits that stay as written: memory, bus master, parity, SERR, INTx off.
const COMMAND_MASK: u16 = 0x0546;
/// Bits of the MSI-X message control that stay as written: function mask, enable.
const MSIX_MASK: u8 = 0xc0;

/// Configuration space of a modelled function.
#[derive(Debug)]
pub(super) struct PciConfig {
    bytes: Vec<u8>,
    /// Which bits can be written.
    mask: Vec<u8>,
    bars: [Bar; 6],
    /// Where the capability is that leads to the BARs (VIRTIO 1.2, 4.1.4.9).
    access: usize,
}

impl PciConfig {
    pub(super) fn new(shape: &Shape, layout: &Layout) -> Self {
        let bytes = layout.config(shape);
        let mut mask = vec![0; bytes.len()];
        let mut set = |at: usize, bits: &[u8]| {
            for (slot, bits) in mask.iter_mut().skip(at).zip(bits) {
                *slot = *bits;
            }
        };
        set(COMMAND.into(), &COMMAND_MASK.to_le_bytes());
        // Cache line size, latency timer; interrupt line.
        set(0x0c, &[0xff; 2]);
        set(0x3c, &[0xff]);
        set(BARS, &[0xff; 24]);
        let mut access = bytes.len();
        for capability in ConfigSpace::new(bytes.clone()).capabilities() {
            let at = usize::from(capability.offset);
            match (capability.id, capability.bytes.get(3)) {
                (CAP_MSIX, _) => set(at + 3, &[MSIX_MASK]),
                (CAP_VENDOR, Some(5)) => {
                    access = at;
                    set(at + 4, &[0xff]);
                    set(at + 8, &[0xff; 8]);
                }
                _ => {}
            }
        }
        let mut config = Self {
            bytes,
            mask,
            bars: layout.bars,
            access,
        };
        config.settle_bars();
        config
    }

    /// For those who want to spoil it.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    pub(super) fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(u8::MAX);
        let len = self
            .bytes
            .len()
            .saturating_sub(offset.into())
            .min(data.len());
        if let Some(data) = data.get_mut(..len) {
            copy(&self.bytes, offset.into(), data);
        }
    }

    pub(super) fn write(&mut self, offset: u16, data: &[u8]) {
        let slots = self.bytes.iter_mut().zip(&self.mask);
        for ((slot, mask), byte) in slots.skip(offset.into()).zip(data) {
            *slot = *slot & !mask | byte & mask;
        }
        self.settle_bars();
    }

    /// BARs are naturally aligned; their low bits say what they are.
    fn settle_bars(&mut self) {
        let mut upper: Option<u32> = None;
        for (index, bar) in self.bars.iter().enumerate() {
            let Some(register) = self.bytes.get_mut(BARS + 4 * index..) else {
                return;
            };
            let Some(register) = register.first_chunk_mut::<4>() else {
                return;
            };
            let value = u32::from_le_bytes(*register);
            let mask = bar.size.wrapping_sub(1);
            let settled = match (upper.take(), bar.size) {
                (Some(mask), _) => value & !mask,
                (None, 0) => 0,
                (None, _) => value & !(mask as u32) | bar.flags,
            };
            *register = settled.to_le_bytes();
            if bar.flags & 4 != 0 {
                upper = Some((mask >> 32) as u32);
            }
        }
    }

    /// Whether an access at `offset` goes through the window, and if it does where to: BAR,
    /// offset, length.
    pub(super) fn window(&self, offset: u16) -> Option<(u8, u64, usize)> {
        if usize::from(offset) != self.access + 16 {
            return None;
        }
        let word = |at| {
            let bytes = self.bytes.get(self.access + at..)?.first_chunk()?;
            Some(u32::from_le_bytes(*bytes))
        };
        let bar = *self.bytes.get(self.access + 4)?;
        let (offset, len) = (word(8)?, word(12)?);
        let good = bar < 6 && matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len);
        good.then_some((bar, offset.into(), len as usize))
    }
}
