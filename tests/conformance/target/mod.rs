//! Where the device under test comes from.

mod function;
mod model;
mod qemu;
mod qtest;
mod served;

pub(crate) use model::ModelTarget;
pub(crate) use qemu::QemuTarget;
pub(crate) use qemu::front_end as qemu_front_end;
pub(crate) use served::VfioUserTarget;

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Result;
use vvu::memory::Area;
use vvu::pci::PciFunction;

/// What a device under test shall be like.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// PCI device id.
    pub(crate) id: u16,
    /// Rings of a front-end that it can carry, N.
    pub(crate) rings: u16,
    /// Size of the memory window.
    pub(crate) window: u64,
    /// Its identity.
    pub(crate) uuid: Option<[u8; 16]>,
    /// Whether it offers LAYOUT.
    pub(crate) layout: bool,
    /// What the machine's processor runs, where there is one.
    pub(crate) firmware: Option<Vec<u8>>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            id: 0x107d,
            rings: 8,
            window: 1 << 30,
            uuid: None,
            layout: true,
            firmware: None,
        }
    }
}

/// Makes devices.
pub(crate) trait Target {
    /// What to call it.
    fn name(&self) -> &'static str;

    /// Whether there can be devices here at all.
    fn ready(&self) -> Result<()>;

    /// A new device.
    fn machine(&self, setup: &Setup) -> Result<Box<dyn Machine>>;
}

/// A device with what is around it. Dropping it ends it.
pub(crate) trait Machine {
    /// The function, for its driver. Once.
    fn function(&mut self) -> Box<dyn PciFunction>;

    /// Where front-ends connect.
    fn socket(&self) -> &Path;

    /// Puts another socket in the place of the one that front-ends connect to. False if there is
    /// no such thing.
    fn replace_socket(&mut self) -> bool {
        false
    }

    /// Masks a vector of the function, or lets it signal again.
    fn mask(&mut self, vector: u16, signal: Option<&OwnedFd>);

    /// Turns all vectors off, or on again.
    fn turn_vectors(&mut self, on: bool, signals: &[OwnedFd]) {
        for (vector, signal) in (0..).zip(signals) {
            self.mask(vector, on.then_some(signal));
        }
    }

    /// The memory of the machine that the device is in, if it is in one.
    fn memory(&self) -> Option<Area> {
        None
    }

    /// The process that has the device.
    fn process(&self) -> u32;

    /// Lets everything come to rest that may still hold what was taken away.
    fn settle(&mut self) {}

    /// Fails if the device has died.
    fn check(&mut self) -> Result<()>;

    /// What the device says about itself, for who wonders why a case failed.
    fn report(&self) -> String;
}
