//! Where frames come from and go to, a burst at a time.
//!
//! A port has two halves that share nothing but counters: [`RxPort`], what comes from it, and
//! [`TxPort`], what goes to it. A worker holds the halves of its ports in two lists, so that it
//! can read from one port and write to all others at once. The kind of a port is chosen by an
//! enum once a burst.
//!
//! Frames are bare Ethernet frames here; what a virtio ring puts before them stays in `vhost`.
//! This room knows no switch, no sessions and no threads.

mod burst;
mod control;
pub mod filter;
pub mod flow;
mod generator;
mod headers;
pub mod offload;
mod rest;
#[cfg(test)]
mod rest_tests;
mod rings;
pub mod rss;
mod scratch;
mod steering;
mod vhost;
mod writer;

pub use burst::{
    Addresses, BURST, Body, Burst, Edit, HEAD, Head, Heads, MAX_FRAME, Parcel, Pick, To,
};
pub use control::ControlQueue;
pub use generator::Generator;
pub use rings::{PreparedRing, RingKind, Rings, Vhost};
pub use scratch::Scratch;
pub use steering::{Policy, Steering};
pub use vhost::{VhostRx, VhostTx};

use std::sync::Arc;

use crossbeam_utils::CachePadded;

use crate::stats::PortStats;
use crate::wake::{Kicks, Quiet};

/// Counters of a port, shared with readers.
pub type Stats = Arc<CachePadded<PortStats>>;

/// The half of a port that frames come from.
#[derive(Debug)]
pub enum RxPort {
    /// The transmit queues of a guest.
    Vhost(VhostRx),
    /// A generator.
    Gen(Generator),
    /// Nothing ever comes.
    None,
}

impl RxPort {
    /// Calls `each` with what there is now, at most [`BURST`] frames in all, and gives them back. `each` returns whether the burst met anybody. Returns whether there was work.
    #[inline]
    pub fn rx_burst(&mut self, heads: &mut Heads, each: impl FnMut(&Burst<'_>) -> bool) -> bool {
        match self {
            Self::Vhost(vhost) => vhost.rx_burst(heads, each),
            Self::Gen(generator) => generator.rx_burst(heads, each),
            Self::None => false,
        }
    }

    /// Asks for kicks, because the worker is about to sleep.
    pub fn enable_kicks(&mut self) -> Quiet {
        match self {
            Self::Vhost(vhost) => vhost.enable_kicks(),
            Self::Gen(_) => Quiet::Polled,
            Self::None => Quiet::Kicked,
        }
    }

    /// Asks for no kicks, because the worker polls.
    pub fn disable_kicks(&mut self) {
        if let Self::Vhost(vhost) = self {
            vhost.disable_kicks();
        }
    }

    /// Some time went by: lets those rest that had nothing for a while. They ask for kicks, and
    /// are not polled.
    pub fn rest(&mut self) {
        if let Self::Vhost(vhost) = self {
            vhost.rest();
        }
    }

    /// These kicks came: those that they are for are polled again.
    pub fn kicked(&mut self, kicks: &Kicks) {
        if let Self::Vhost(vhost) = self {
            vhost.kicked(kicks);
        }
    }

    /// How many rings rest.
    pub fn resting(&self) -> usize {
        match self {
            Self::Vhost(vhost) => vhost.rings.resting(),
            Self::Gen(_) | Self::None => 0,
        }
    }

    /// Whether polling it is in vain until a kick comes.
    pub fn is_asleep(&self) -> bool {
        match self {
            Self::Vhost(vhost) => vhost.rings.polled.is_empty() && vhost.rings.resting() > 0,
            Self::Gen(_) => false,
            Self::None => true,
        }
    }
}

/// The half of a port that frames go to.
#[derive(Debug)]
pub enum TxPort {
    /// The receive queues of a guest.
    Vhost(VhostTx),
    /// Frames are counted and forgotten.
    Null(Stats),
}

impl TxPort {
    /// Delivers the frames of `burst` that `picks` names, in order, or drops and counts them.
    /// `scratch` is for frames that must be completed first.
    /// False if there is nobody to deliver to.
    #[inline]
    pub fn tx_burst(&mut self, burst: &Burst<'_>, picks: &[Pick], scratch: &mut Scratch) -> bool {
        match self {
            Self::Vhost(vhost) => vhost.tx_burst(burst, picks, scratch),
            Self::Null(stats) => {
                stats.tx_packets.add(picks.len() as u64);
                stats.tx_bytes.add(burst.bytes_of(picks));
                true
            }
        }
    }
}
