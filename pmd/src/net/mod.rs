//! Network: what a virtio network device is (VIRTIO 1.2, 5.1), and the learning switch between
//! ports.
//!
//! The switch sees Ethernet frames and port numbers; rings, sessions and threads are unknown here.
//! A switch spans all workers: each has a [`Switch`] with the ports it owns, and they share the
//! table of learned addresses ([`Fdb`]) and queues to each other.

mod control;
mod controls;
mod device;
mod fdb;
mod out;
mod police;
mod remote;
mod ruled;
mod rules;
mod switch;
#[cfg(test)]
mod tests;
mod vlan;

pub use control::Control;
pub use controls::ControlPort;
pub use device::{NetConfig, feature};
pub use fdb::Fdb;
pub use rules::{PortRules, Rules};
pub use switch::{Inbox, Place, Shared, Switch};
pub use vlan::{VlanSet, Vlans};

/// Most ports of a switch.
pub const MAX_PORTS: usize = 256;
