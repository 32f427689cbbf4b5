//! What a function has besides its two queues: registers, doorbells, kick vectors and the memory
//! window.

use std::os::fd::OwnedFd;

use super::regs::{CommonConfig, NO_VECTOR, Notifications, VvuConfig, VvuExtended, feature};
use super::{Device, DeviceError, Extent, Rule, place};
use crate::memory::Area;
use crate::mmio::{Reg, Window, WriteOnly};
use crate::pci::{Location, PciError, PciFunction, Structures};

/// All registers, found once.
#[derive(Debug)]
pub(super) struct Registers {
    pub(super) common: CommonConfig,
    pub(super) config: VvuConfig,
    pub(super) extended: Option<VvuExtended>,
    /// The window behind those two, for the uuid.
    pub(super) config_window: Window,
    pub(super) notify: Window,
    pub(super) notify_multiplier: u32,
    pub(super) notifications: Notifications,
    pub(super) doorbells: Window,
    pub(super) doorbell_multiplier: u32,
    pub(super) memory: MemoryWindow,
    pub(super) inflight: Option<MemoryWindow>,
}

/// A part of a BAR that shows files of a front-end: its memory, or its in-flight buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct MemoryWindow {
    bar: u8,
    offset: u64,
    pub(super) len: u64,
}

impl Registers {
    pub(super) fn find(
        function: &dyn PciFunction,
        found: &Structures,
    ) -> Result<Self, DeviceError> {
        let window = |at: Location| {
            let (_, length) = extent(function, at)?;
            function.registers(at.bar, at.offset, length)
        };
        let config_window = window(found.device)?;
        let shared = |at: Location| {
            let (offset, len) = extent(function, at)?;
            let bar = at.bar;
            Ok::<_, PciError>(MemoryWindow { bar, offset, len })
        };
        Ok(Self {
            common: CommonConfig::new(&window(found.common)?)?,
            config: VvuConfig::new(&config_window)?,
            extended: VvuExtended::new(&config_window).ok(),
            config_window,
            notify: window(found.notify.location)?,
            notify_multiplier: found.notify.multiplier,
            notifications: Notifications::new(&window(found.notifications)?)?,
            doorbells: window(found.doorbells.location)?,
            doorbell_multiplier: found.doorbells.multiplier,
            memory: shared(found.memory)?,
            inflight: found.inflight.map(shared).transpose()?,
        })
    }

    /// The register to write a queue's index to (VIRTIO 1.2, 4.1.4.4).
    pub(super) fn notify_register(
        &self,
        notify_off: u16,
    ) -> Result<Reg<u16, WriteOnly>, DeviceError> {
        let offset = u64::from(notify_off) * u64::from(self.notify_multiplier);
        self.notify.register(offset).ok_or(DeviceError::Structure {
            name: "notification structure",
            found: self.notify.len(),
            needed: offset + 2,
        })
    }

    fn doorbell(&self, number: u16) -> Option<Reg<u16, WriteOnly>> {
        self.doorbells
            .register(u64::from(number) * u64::from(self.doorbell_multiplier))
    }
}

/// A location's offset and length, inside its BAR.
fn extent(function: &dyn PciFunction, at: Location) -> Result<(u64, u64), PciError> {
    let size = function.bar_size(at.bar);
    let room = size.saturating_sub(at.offset);
    let len = at.length.unwrap_or(room);
    if len == 0 || len > room {
        return Err(PciError::NoSuchBar {
            bar: at.bar,
            offset: at.offset,
            len,
            size,
        });
    }
    Ok((at.offset, len))
}

impl Device {
    /// The doorbell that calls the front-end's ring `index`: the register and the doorbell's
    /// number. `None` if the device has none for it.
    pub fn doorbell(&self, index: u16) -> Option<(Reg<u16, WriteOnly>, u16)> {
        if index >= self.identity.rings {
            return None;
        }
        Some((self.registers.doorbell(index)?, index))
    }

    /// The doorbell that reports an error on ring `index`. Early devices have none.
    pub fn error_doorbell(&self, index: u16) -> Option<(Reg<u16, WriteOnly>, u16)> {
        if index >= self.identity.rings {
            return None;
        }
        let number = u16::try_from(self.identity.max_vhost_queues)
            .ok()?
            .checked_add(index)?;
        Some((self.registers.doorbell(number)?, number))
    }

    /// A descriptor that becomes readable when the front-end kicks ring `index`; `None` if there
    /// is no vector for it, so that the ring must be polled.
    pub fn kick(&self, index: u16) -> Result<Option<OwnedFd>, DeviceError> {
        let fd = self.events.kick(index);
        Ok(fd.map(|fd| fd.try_clone_to_owned()).transpose()?)
    }

    /// Maps the regions of one message; bytes in the order of the message.
    pub fn map(&self, regions: &[Extent]) -> Result<Vec<Area>, DeviceError> {
        let window = self.registers.memory;
        let starts = place(self.identity.rule, regions, window.len)?;
        regions
            .iter()
            .zip(starts)
            .map(|(region, start)| {
                // start + size <= len, and offset + len lies inside the BAR.
                let offset = window.offset + start;
                Ok(self.function.map_bar(window.bar, offset, region.size)?)
            })
            .collect()
    }

    /// Whether the device carries in-flight buffers.
    pub fn has_inflight(&self) -> bool {
        self.identity.features & feature::INFLIGHT != 0
    }

    /// Whether the device carries requests of ours.
    pub fn has_backend_channel(&self) -> bool {
        self.identity.features & feature::BACKEND_CH != 0
    }

    /// Maps the in-flight buffer: `size` bytes from `offset` on of its window, or of the one for
    /// memory if it has none of its own.
    pub fn map_inflight(&self, offset: u64, size: u64) -> Result<Area, DeviceError> {
        let window = self.registers.inflight.unwrap_or(self.registers.memory);
        let extent = Extent {
            size,
            mmap_offset: offset,
        };
        place(Rule::Told, &[extent], window.len)?;
        // offset + size <= len, and window.offset + len lies inside the BAR.
        let place = window.offset + offset;
        Ok(self.function.map_bar(window.bar, place, size)?)
    }

    /// Lets the kicks of rings below `limit` raise their vectors; rings whose vector the device
    /// refuses are polled. Kicks left over from an earlier connection are forgotten. (Draft:
    /// "notification configuration"; the value read back decides.)
    pub(super) fn program_kicks(&mut self, limit: u16) {
        let registers = &self.registers.notifications;
        for ring in 0..self.identity.rings.min(limit) {
            let vector = self.events.kick_vector(ring);
            registers.notification_select.write(ring);
            registers
                .notification_msix_vector
                .write(vector.unwrap_or(NO_VECTOR));
            let granted =
                vector.is_some() && registers.notification_msix_vector.read() != NO_VECTOR;
            self.events.grant_kick(ring, granted);
        }
    }
}
