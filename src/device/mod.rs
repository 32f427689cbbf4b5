//! The virtio-vhost-user (VVU) PCI function, as driven by us.
//!
//! [`Device::open`] brings a function up by the book (VIRTIO 1.2, 3.1; "driver bring-up" of the
//! VVU drafts) and arms it: from then on a front-end can connect. [`Device::next_event`] tells what
//! happens on the link, [`Device::send`] answers, and the rest turns what a message makes
//! available into something to use: [`Device::map`] a piece of the front-end's memory,
//! [`Device::kick`] and [`Device::doorbell`] the notifications of a ring.
//!
//! Messages are bytes here: what they mean is not known. The device is not trusted: its
//! configuration space, used lengths, vectors and numbers are checked, and every wait for it has
//! a deadline.

mod events;
mod init;
mod link;
mod placement;
mod regs;
mod resources;

use std::time::Duration;

use thiserror::Error;

pub use link::{LinkEvent, Loss};
pub use placement::{Extent, PlaceError, Rule, place};

use crate::mmio::{Reg, WriteOnly};
use crate::pci::{NotVvu, PciError, PciFunction};
use crate::virtqueue::{QueueError, Virtqueue};

/// Rings beyond this index cannot be named: messages have 8 bits for it.
pub const MAX_RINGS: u16 = 256;

/// What to do differently than by default.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where regions lie in the memory window; `None` to follow the device's identity.
    pub rule: Option<Rule>,
    /// How many rings shall have an interrupt vector of their own, as far as the device has them.
    /// Kicks of the others must be polled for.
    pub rings: u16,
    /// How long the device may take for a reset, and a front-end to accept a message.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rule: None,
            rings: 64,
            timeout: Duration::from_secs(5),
        }
    }
}

/// What can go wrong with the device.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// It is something else.
    #[error("not a virtio-vhost-user function: {0}")]
    NotVvu(#[from] NotVvu),
    /// A structure is too short, or not aligned, for its registers.
    #[error("the device's {name} has {found:#x} bytes or is not aligned; {needed:#x} are needed")]
    Structure {
        /// Which one.
        name: &'static str,
        /// Its length.
        found: u64,
        /// What it should have.
        needed: u64,
    },
    /// The function failed.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// The device does not do what it should within the deadline.
    #[error("the device did not finish {what} within {after:?}")]
    Timeout {
        /// What it was asked for.
        what: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// All registers read as ones.
    #[error("the device does not answer any more; was it removed?")]
    Gone,
    /// The device wants to be reset.
    #[error("the device had an error and asks for a reset")]
    NeedsReset,
    /// A feature that there is no driving it without.
    #[error("the device does not offer {name} (feature bit {bit}); {hint}")]
    Feature {
        /// The feature's name.
        name: &'static str,
        /// Its bit.
        bit: u8,
        /// What can be done.
        hint: &'static str,
    },
    /// FEATURES_OK did not stay set.
    #[error("the device does not accept the features {0:#x}, all of which it offers")]
    FeaturesRefused(u64),
    /// Another number of queues than a VVU device has.
    #[error("the device has {0} queues; virtio-vhost-user has 2, or 4 with state transfer")]
    Queues(u16),
    /// A queue that cannot be used.
    #[error("queue {queue} of the device cannot be used: its size is {size}")]
    QueueSize {
        /// Which queue.
        queue: u16,
        /// What the device says.
        size: u16,
    },
    /// max_vhost_queues is 0.
    #[error("the device says that it can carry no rings at all (max_vhost_queues is 0)")]
    NoRings,
    /// The device broke the rules of rxq or txq.
    #[error("{queue}: {source}")]
    Queue {
        /// Which queue.
        queue: &'static str,
        /// How.
        source: QueueError,
    },
    /// No front-end is connected.
    #[error("no front-end is connected")]
    NotConnected,
    /// Nobody takes what we send.
    #[error("the front-end took no message for {0:?}")]
    Stuck(Duration),
    /// Memory does not fit the window.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The operating system refused something.
    #[error("cannot wait for the device's events: {0}")]
    System(#[from] std::io::Error),
}

/// What a function says about itself; constant while it is driven.
#[derive(Debug, Clone)]
pub struct Identity {
    /// PCI device id.
    pub pci_device: u16,
    /// Feature bits in use.
    pub features: u64,
    /// Rings that the device can carry (max_vhost_queues), at most [`MAX_RINGS`].
    pub rings: u16,
    /// The device's own number of rings, before that limit: doorbells are counted from it.
    pub max_vhost_queues: u32,
    /// RFC 4122 uuid; all zero if there is none.
    pub uuid: [u8; 16],
    /// Regions of front-end memory that the device can map, if it says so.
    pub max_mem_regions: Option<u32>,
    /// Where regions lie in the memory window.
    pub rule: Rule,
    /// Length of the memory window.
    pub window: u64,
}

/// One of rxq and txq with the register that notifies it.
#[derive(Debug)]
struct Queue {
    ring: Virtqueue,
    index: u16,
    notify: Reg<u16, WriteOnly>,
}

impl Queue {
    const NAMES: [&'static str; 2] = ["rxq", "txq"];

    fn notify(&self) {
        if self.ring.wants_notify() {
            self.notify.write(self.index);
        }
    }
}

/// A VVU function that is up.
pub struct Device {
    identity: Identity,
    options: Options,
    registers: resources::Registers,
    rx: Queue,
    tx: Queue,
    events: events::Events,
    link: link::Link,
    /// It was brought up again, and has not brought a message since.
    revived: bool,
    /// The function was gone: it has to be opened anew.
    lost: bool,
    /// Why the device could not be brought up again when that was tried last.
    trouble: Option<String>,
    function: Box<dyn PciFunction>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("name", &self.function.name())
            .field("identity", &self.identity)
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

impl Device {
    /// What to call it in messages to people.
    pub fn name(&self) -> &str {
        self.function.name()
    }

    /// What it says about itself.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.quiesce();
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_gone;
#[cfg(test)]
mod tests_hostile;
#[cfg(test)]
mod tests_loops;
