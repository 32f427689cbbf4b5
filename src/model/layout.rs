//! Where a modelled function has its structures: one list, from which the configuration space is
//! made and by which accesses are decoded.

use super::shape::{Dialect, Shape};
use crate::pci::ConfigBuilder;

/// What is at some place of a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Common,
    Notify,
    Isr,
    Device,
    Doorbells,
    Selector,
    Table,
    Pending,
    Memory,
}

/// A structure and its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Structure {
    pub(super) kind: Kind,
    pub(super) bar: u8,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// A BAR: its size and the low bits of its register (PCI Local Bus 3.0, 6.2.5.1).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bar {
    pub(super) size: u64,
    pub(super) flags: u32,
}

/// Flags of a BAR: 64 bits wide; prefetchable.
const WIDE: u32 = 1 << 2;
const PREFETCH: u32 = 1 << 3;

/// Distance of two queues' notification registers.
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;

/// Length of the notification selector's page.
const SELECTOR_LEN: u64 = 0x1000;

/// All structures of a function.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) structures: Vec<Structure>,
    pub(super) bars: [Bar; 6],
}

impl Layout {
    pub(super) fn new(shape: &Shape) -> Self {
        // The others have no doorbells for errors.
        let (per_ring, least) = match shape.dialect {
            Dialect::Ours => (2, 0x1000),
            Dialect::Prototype | Dialect::Crosvm => (1, 0x2000),
        };
        let bells = (per_ring * u64::from(shape.rings) + 1) * u64::from(shape.multiplier.max(4));
        let bells = bells.next_multiple_of(0x1000).max(least);
        // Registers, MSI-X table, pending bits, doorbells, memory: BAR and offset.
        let (regs, table, pending, bell, memory) = match shape.dialect {
            Dialect::Ours => (4, (1, 0), (1, 0x8000), 0, (2, 0)),
            Dialect::Prototype => {
                let memory = bells + SELECTOR_LEN;
                (4, (1, 0), (1, 0x8000), 2, (2, memory))
            }
            Dialect::Crosvm => (0, (0, 0x6000), (0, 0x7000), 2, (4, 0)),
        };
        let place = |kind, bar, offset, len| Structure {
            kind,
            bar,
            offset,
            len,
        };
        let vectors = u64::from(shape.vectors);
        let device = if shape.extended() { 0x20 } else { 0x18 };
        let structures = vec![
            place(Kind::Common, regs, 0, 0x38),
            place(Kind::Isr, regs, 0x1000, 1),
            place(Kind::Device, regs, 0x2000, device),
            place(Kind::Notify, regs, 0x3000, 0x1000),
            place(Kind::Table, table.0, table.1, 16 * vectors),
            place(
                Kind::Pending,
                pending.0,
                pending.1,
                8 * vectors.div_ceil(64),
            ),
            place(Kind::Doorbells, bell, 0, bells),
            place(Kind::Selector, bell, bells, SELECTOR_LEN),
            place(Kind::Memory, memory.0, memory.1, shape.window - memory.1),
        ];
        let mut layout = Self {
            structures,
            bars: Default::default(),
        };
        layout.size_bars(shape);
        layout
    }

    fn size_bars(&mut self, shape: &Shape) {
        for structure in &self.structures {
            if let Some(bar) = self.bars.get_mut(usize::from(structure.bar)) {
                let end = structure.offset + structure.len;
                bar.size = bar.size.max(end.next_power_of_two().max(0x1000));
            }
        }
        let wide = match shape.dialect {
            Dialect::Ours | Dialect::Prototype => [(2, PREFETCH), (4, PREFETCH)],
            Dialect::Crosvm => [(2, 0), (4, PREFETCH)],
        };
        for (bar, flags) in wide {
            if let Some(bar) = self.bars.get_mut(bar) {
                bar.flags = WIDE | flags;
            }
        }
    }

    /// The structure of a kind. All kinds are there.
    pub(super) fn get(&self, kind: Kind) -> Structure {
        let found = self.structures.iter().find(|found| found.kind == kind);
        found.copied().unwrap_or(Structure {
            kind,
            bar: 0,
            offset: 0,
            len: 0,
        })
    }

    /// What an offset of a BAR belongs to, and where in it.
    pub(super) fn find(&self, bar: u8, offset: u64) -> Option<(Kind, u64)> {
        self.structures.iter().find_map(|structure| {
            let inner = offset.checked_sub(structure.offset)?;
            (structure.bar == bar && inner < structure.len).then_some((structure.kind, inner))
        })
    }

    /// The configuration space, and where in it the capabilities are that can be written.
    pub(super) fn config(&self, shape: &Shape) -> Vec<u8> {
        let at = |kind| {
            let structure = self.get(kind);
            (structure.bar, (structure.offset, structure.len))
        };
        let place = |kind| {
            let structure = self.get(kind);
            (structure.bar, structure.offset as u32)
        };
        let bells = [shape.multiplier];
        let mut builder = ConfigBuilder::new(shape.id);
        if shape.vectors > 0 {
            builder = builder.msix(shape.vectors, place(Kind::Table), place(Kind::Pending));
        }
        for (cfg_type, kind, tail) in [
            (1, Kind::Common, &[][..]),
            (2, Kind::Notify, &[NOTIFY_MULTIPLIER]),
            (3, Kind::Isr, &[]),
            (4, Kind::Device, &[]),
            (6, Kind::Doorbells, &bells),
            (7, Kind::Selector, &[]),
        ] {
            let (bar, range) = at(kind);
            builder = builder.virtio(cfg_type, 0, bar, range, tail);
        }
        let (bar, (offset, len)) = at(Kind::Memory);
        builder = match shape.long_capability {
            true => builder.memory(1, bar, (offset, len)),
            // What the prototypes say, and what is left of crosvm's length.
            false if shape.is_crosvm() => builder.virtio(8, 0, bar, (offset, len), &[]),
            false => builder.virtio(8, 0, bar, (offset, 0x1000), &[]),
        };
        builder.virtio(5, 0, 0, (0, 0), &[0]).build()
    }
}
