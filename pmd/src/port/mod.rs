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
pub mod capture;
mod control;
pub mod filter;
pub mod flow;
mod generator;
mod head;
mod headers;
pub mod offload;
mod rest;
#[cfg(test)]
mod rest_tests;
mod rings;
pub mod rss;
mod scratch;
mod steering;
pub mod uplink;
mod vhost;
mod writer;

pub use burst::{BURST, Body, Burst, Parcel, Pick, To};
use capture::{FileTx, Pen, Replay};
pub use control::ControlQueue;
pub use generator::Generator;
pub use head::{Addresses, Edit, HEAD, Head, Heads, MAX_FRAME};
pub use rings::{PreparedRing, RingKind, Rings, Vhost};
pub use scratch::{Scratch, Shown};
pub use steering::{Policy, Steering};
use uplink::{PacketRx, PacketTx, TapRx, TapTx, XdpRx, XdpTx};
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
    /// What the kernel sends to a TAP interface.
    Tap(TapRx),
    /// What a packet socket receives.
    Packet(PacketRx),
    /// What an AF_XDP socket receives.
    Xdp(XdpRx),
    /// A file's.
    File(Replay),
    /// A port whose frames are written down.
    Captured(Box<Captured<Self>>),
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
            Self::Tap(tap) => tap.rx_burst(heads, each),
            Self::Packet(packet) => packet.rx_burst(heads, each),
            Self::Xdp(xdp) => xdp.rx_burst(heads, each),
            Self::File(file) => file.rx_burst(heads, each),
            Self::Captured(captured) => captured.rx_burst(heads, each),
            Self::None => false,
        }
    }

    /// Asks for kicks, because the worker is about to sleep.
    pub fn enable_kicks(&mut self) -> Quiet {
        match self {
            Self::Vhost(vhost) => vhost.enable_kicks(),
            Self::Gen(_) => Quiet::Polled,
            Self::Tap(tap) => tap.enable_kicks(),
            Self::Packet(packet) => packet.enable_kicks(),
            Self::Xdp(xdp) => xdp.enable_kicks(),
            Self::File(file) => file.enable_kicks(),
            Self::Captured(captured) => captured.port.enable_kicks(),
            Self::None => Quiet::Kicked,
        }
    }

    /// Asks for no kicks, because the worker polls.
    pub fn disable_kicks(&mut self) {
        match self {
            Self::Vhost(vhost) => vhost.disable_kicks(),
            Self::Captured(captured) => captured.port.disable_kicks(),
            _ => {}
        }
    }

    /// The port itself, whether or not its frames are written down.
    pub fn inner(&mut self) -> &mut Self {
        match self {
            Self::Captured(captured) => &mut captured.port,
            port => port,
        }
    }

    /// Writes down what comes with `pen` from now on, or nothing any more.
    pub fn capture(&mut self, pen: Option<&Pen>, stats: &Stats) {
        let port = match std::mem::replace(self, Self::None) {
            Self::Captured(captured) => captured.port,
            port => port,
        };
        *self = match pen {
            None => port,
            Some(pen) => Self::Captured(Captured::new(port, pen, stats)),
        };
    }

    /// Some time went by: lets those rest that had nothing for a while. They ask for kicks, and
    /// are not polled.
    pub fn rest(&mut self) {
        match self {
            Self::Vhost(vhost) => vhost.rest(),
            Self::Captured(captured) => captured.port.rest(),
            _ => {}
        }
    }

    /// These kicks came: those that they are for are polled again.
    pub fn kicked(&mut self, kicks: &Kicks) {
        match self {
            Self::Vhost(vhost) => vhost.kicked(kicks),
            Self::Captured(captured) => captured.port.kicked(kicks),
            _ => {}
        }
    }

    /// How many rings rest.
    pub fn resting(&self) -> usize {
        match self {
            Self::Vhost(vhost) => vhost.rings.resting(),
            Self::Captured(captured) => captured.port.resting(),
            _ => 0,
        }
    }

    /// Whether polling it is in vain until a kick comes.
    pub fn is_asleep(&self) -> bool {
        match self {
            Self::Vhost(vhost) => vhost.rings.polled.is_empty() && vhost.rings.resting() > 0,
            Self::Captured(captured) => captured.port.is_asleep(),
            Self::None => true,
            _ => false,
        }
    }
}

/// A half of a port, and what writes down its frames.
#[derive(Debug)]
pub struct Captured<P> {
    port: P,
    pen: Pen,
    stats: Stats,
}

impl<P> Captured<P> {
    fn new(port: P, pen: &Pen, stats: &Stats) -> Box<Self> {
        Box::new(Self {
            port,
            pen: pen.clone(),
            stats: Arc::clone(stats),
        })
    }
}

impl Captured<RxPort> {
    #[cold]
    fn rx_burst(&mut self, heads: &mut Heads, mut each: impl FnMut(&Burst<'_>) -> bool) -> bool {
        let Self { port, pen, stats } = self;
        let mut seen = |burst: &Burst<'_>| {
            pen.incoming(burst, stats);
            each(burst)
        };
        // As an object, so that there is one such function and not one in the other for ever.
        let seen: &mut dyn FnMut(&Burst<'_>) -> bool = &mut seen;
        port.rx_burst(heads, seen)
    }
}

/// The half of a port that frames go to.
#[derive(Debug)]
pub enum TxPort {
    /// The receive queues of a guest.
    Vhost(VhostTx),
    /// What a TAP interface receives.
    Tap(TapTx),
    /// What a packet socket sends.
    Packet(PacketTx),
    /// What an AF_XDP socket sends.
    Xdp(XdpTx),
    /// A file.
    File(FileTx),
    /// A port whose frames are written down.
    Captured(Box<Captured<Self>>),
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
            Self::Tap(tap) => tap.tx_burst(burst, picks, scratch),
            Self::Packet(packet) => packet.tx_burst(burst, picks, scratch),
            Self::Xdp(xdp) => xdp.tx_burst(burst, picks, scratch),
            Self::File(file) => file.tx_burst(burst, picks, scratch),
            Self::Captured(captured) => {
                let Captured { port, pen, stats } = &mut **captured;
                pen.outgoing(burst, picks, stats);
                port.tx_burst(burst, picks, scratch)
            }
            Self::Null(stats) => {
                stats.tx_packets.add(picks.len() as u64);
                stats.tx_bytes.add(burst.bytes_of(picks));
                true
            }
        }
    }

    /// The port itself, whether or not its frames are written down.
    pub fn inner(&mut self) -> &mut Self {
        match self {
            Self::Captured(captured) => &mut captured.port,
            port => port,
        }
    }

    /// Writes down what goes with `pen` from now on, or nothing any more.
    pub fn capture(&mut self, pen: Option<&Pen>, stats: &Stats) {
        let port = match std::mem::replace(self, Self::Null(Arc::clone(stats))) {
            Self::Captured(captured) => captured.port,
            port => port,
        };
        *self = match pen {
            None => port,
            Some(pen) => Self::Captured(Captured::new(port, pen, stats)),
        };
    }
}
