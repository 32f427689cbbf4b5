//! The targets of a device, their units, and the disks behind those.
//!
//! Queues hold a whole [`Domain`] that never changes; a change makes another one.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use super::store::Store;
use super::target::{Attention, Identity, Luns, Nexus, Unit};
pub use super::wire::Address;
use crate::bdev::{Disk, Resized};

/// A unit on a disk, to be put behind any number of devices.
#[derive(Debug, Clone)]
pub struct Lun {
    unit: Arc<Unit>,
    disk: Arc<dyn Disk>,
    store: Option<Arc<Store>>,
    _resize: Arc<dyn Resizes>,
}

/// Tells a unit of the size of its disk.
#[derive(Debug)]
struct Resize(Weak<Unit>);

trait Resizes: Resized + std::fmt::Debug {}

impl Resizes for Resize {}

impl Resized for Resize {
    fn resized(&self, bytes: u64) {
        if let Some(unit) = self.0.upgrade() {
            unit.resize(bytes);
        }
    }
}

impl Lun {
    /// A unit with this serial number on `disk`, which may only be read if `read_only` says so; its
    /// reservations are those in `store`, and kept there.
    pub fn new(
        serial: &str,
        disk: Arc<dyn Disk>,
        read_only: bool,
        store: Option<Arc<Store>>,
    ) -> Self {
        let mut abilities = disk.abilities();
        abilities.read_only |= read_only;
        let kept = store.as_ref().map(|store| store.first());
        let identity = Identity::new(serial);
        let size = disk.size().get();
        let unit = Unit::new(identity, disk.geometry(), abilities, size, kept);
        let resize = Arc::new(Resize(Arc::downgrade(&unit)));
        let listener: Arc<dyn Resized> = Arc::clone(&resize) as _;
        disk.size().listen(&listener);
        // It may have changed before anybody listened.
        unit.resize(disk.size().get());
        Self {
            unit,
            disk,
            store,
            _resize: resize,
        }
    }

    /// The unit.
    pub fn unit(&self) -> &Arc<Unit> {
        &self.unit
    }

    /// The disk behind it.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }
}

/// Units with their addresses.
pub type Disks = BTreeMap<Address, Lun>;

/// A unit in its place.
#[derive(Debug)]
pub(super) struct Seat {
    /// Names it among those of its device; another may have it when this one is gone.
    pub(super) number: u32,
    pub(super) address: Address,
    pub(super) nexus: Arc<Nexus>,
    pub(super) lun: Lun,
}

impl Seat {
    pub(super) fn disk(&self) -> &Arc<dyn Disk> {
        &self.lun.disk
    }

    pub(super) fn store(&self) -> Option<&Arc<Store>> {
        self.lun.store.as_ref()
    }
}

/// The units of one target.
#[derive(Debug, Default, Clone)]
pub(super) struct Target {
    pub(super) luns: Luns,
    /// In the order of their LUNs.
    seats: Vec<Arc<Seat>>,
}

impl Target {
    /// The unit at `lun`.
    #[inline]
    pub(super) fn seat(&self, lun: u16) -> Option<&Arc<Seat>> {
        self.seats.get(self.luns.place(lun)?)
    }

    /// All of them.
    pub(super) fn seats(&self) -> &[Arc<Seat>] {
        &self.seats
    }
}

/// All targets.
#[derive(Debug, Default, Clone)]
pub(super) struct Domain {
    /// Up to the highest that there is.
    targets: Vec<Target>,
}

impl Domain {
    /// Target `number`, if it has a unit.
    #[inline]
    pub(super) fn target(&self, number: u8) -> Option<&Target> {
        let target = self.targets.get(usize::from(number))?;
        (!target.seats.is_empty()).then_some(target)
    }

    /// All units.
    pub(super) fn seats(&self) -> impl Iterator<Item = &Arc<Seat>> {
        self.targets.iter().flat_map(|target| &target.seats)
    }

    /// Whether this very unit is there.
    pub(super) fn has(&self, seat: &Arc<Seat>) -> bool {
        let Address { target, lun } = seat.address;
        let found = self.target(target).and_then(|target| target.seat(lun));
        found.is_some_and(|found| Arc::ptr_eq(found, seat))
    }

    /// The lowest number that no unit has.
    pub(super) fn free_number(&self) -> u32 {
        let mut taken: Vec<u32> = self.seats().map(|seat| seat.number).collect();
        taken.sort_unstable();
        let gap = taken.iter().zip(0..).find(|(taken, own)| *taken != own);
        gap.map_or(taken.len() as u32, |(_, own)| own)
    }

    /// Puts `seat` at `address`, or leaves it empty. Returns what was there.
    pub(super) fn set(&mut self, address: Address, seat: Option<Arc<Seat>>) -> Option<Arc<Seat>> {
        let number = usize::from(address.target);
        if self.targets.len() <= number {
            self.targets.resize_with(number + 1, Target::default);
        }
        let target = self.targets.get_mut(number)?;
        let old = target.luns.place(address.lun);
        let old = old.map(|place| target.seats.remove(place));
        let nexus = seat.as_ref().map(|seat| Arc::clone(&seat.nexus));
        target.luns.set(address.lun, nexus);
        if let Some(seat) = seat
            && let Some(place) = target.luns.place(address.lun)
        {
            target.seats.insert(place, seat);
        }
        old
    }

    /// The connection begins anew: all initiators hear of it.
    pub(super) fn lose_nexuses(&self) {
        for seat in self.seats() {
            seat.nexus.attend(Attention::NexusLoss);
        }
    }
}
