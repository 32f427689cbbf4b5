//! The learning switch: one worker's part of it.
//!
//! A burst is sorted by destination first and delivered then, port by port, so that each ring's
//! index is published once. Frames between the same two ports stay in order, whether they are
//! flooded or not. Frames to a port of another worker are copied into mbufs and queued there.

use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use vvu::memory::VolatileSlice;

use super::controls::{ControlPort, Controls};
use super::fdb::Fdb;
use super::out::Out;
use super::rules::PortRules;
use crate::mempool::Mempool;
use crate::port::capture::Pen;
use crate::port::{BURST, Burst, Heads, Parcel, RxPort, Stats, TxPort};
use crate::stats::WorkerStats;
use crate::wake::{Kicks, Quiet, Waker};

/// Frames on their way to one worker.
#[derive(Debug)]
pub struct Inbox {
    pub(super) queue: ArrayQueue<Parcel>,
    pub(super) waker: Arc<Waker>,
}

impl Inbox {
    /// Room for `capacity` frames to the worker that `waker` wakes.
    pub fn new(capacity: usize, waker: Arc<Waker>) -> Arc<Self> {
        Arc::new(Self {
            queue: ArrayQueue::new(capacity),
            waker,
        })
    }
}

/// Where a port is, seen from one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Place {
    /// Nowhere.
    #[default]
    Absent,
    /// With this worker.
    Here,
    /// With the worker of this number.
    There(usize),
    /// Everywhere and nowhere: frames go back to the port they come from, perhaps with their
    /// addresses exchanged.
    Echo {
        /// Exchange source and destination address.
        swap: bool,
    },
}

/// What all workers of a switch have in common.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Learned addresses.
    pub fdb: Arc<Fdb>,
    /// Queues to the workers, by number.
    pub inboxes: Vec<Arc<Inbox>>,
    /// Buffers for frames between workers.
    pub pool: Option<Arc<Mempool>>,
}

/// A port that a worker owns.
#[derive(Debug)]
struct Incoming {
    number: u16,
    rx: RxPort,
}

/// One worker's part of a switch.
#[derive(Debug)]
pub struct Switch {
    rx: Vec<Incoming>,
    /// Places in `rx` of the ports that may have something, and how many rings of all rest.
    awake: Vec<u16>,
    resting: usize,
    /// Place in `awake` of the port to begin with.
    first: usize,
    controls: Controls,
    heads: Heads,
    inbox: Arc<Inbox>,
    parcels: Vec<Parcel>,
    out: Out,
}

impl Switch {
    /// The part of worker `number`, without ports.
    pub fn new(number: usize, shared: Shared, stats: Arc<WorkerStats>) -> Option<Self> {
        Some(Self {
            rx: Vec::new(),
            awake: Vec::new(),
            resting: 0,
            first: 0,
            controls: Controls::default(),
            heads: Heads::default(),
            inbox: Arc::clone(shared.inboxes.get(number)?),
            parcels: Vec::with_capacity(BURST),
            out: Out::new(shared, stats),
        })
    }

    /// Says where port `number` is. Its halves leave with [`Switch::remove`].
    pub fn place(&mut self, number: u16, place: Place) {
        self.out.port(number).place = place;
        self.out.refresh();
    }

    /// What port `number` may do from now on, wherever it is.
    pub fn set_rules(&mut self, number: u16, rules: PortRules) {
        self.out.set_rules(number, rules);
        self.out.refresh();
    }

    /// Owns port `number` from now on.
    pub fn add(&mut self, number: u16, rx: RxPort, tx: TxPort, stats: Stats) {
        self.rx.push(Incoming { number, rx });
        self.refresh();
        let port = self.out.port(number);
        port.tx = Some(tx);
        port.stats = Some(stats);
        self.place(number, Place::Here);
    }

    /// Owns port `number` no longer.
    pub fn remove(&mut self, number: u16) -> (Option<RxPort>, Option<TxPort>) {
        self.place(number, Place::Absent);
        self.controls.remove(number);
        let at = self.rx.iter().position(|port| port.number == number);
        let rx = at.map(|at| self.rx.remove(at).rx);
        self.refresh();
        let port = self.out.port(number);
        port.stats = None;
        (rx, port.tx.take())
    }

    /// The halves of a port that this worker owns.
    pub fn port(&mut self, number: u16) -> Option<(&mut RxPort, &mut TxPort)> {
        let rx = self.rx.iter_mut().find(|port| port.number == number)?;
        let tx = self.out.port(number).tx.as_mut()?;
        Some((rx.rx.inner(), tx.inner()))
    }

    /// Writes down what passes port `number` with `pen` from now on, or nothing any more. False
    /// if this worker does not own it.
    pub fn capture(&mut self, number: u16, pen: Option<&Pen>) -> bool {
        let Some(rx) = self.rx.iter_mut().find(|port| port.number == number) else {
            return false;
        };
        let out = self.out.port(number);
        let (Some(tx), Some(stats)) = (&mut out.tx, &out.stats) else {
            return false;
        };
        rx.rx.capture(pen, stats);
        tx.capture(pen, stats);
        true
    }

    /// Serves a control queue of port `number`, which this worker owns.
    pub fn add_control(&mut self, number: u16, control: ControlPort) {
        self.controls.add(number, control);
    }

    /// The control queue of port `number`, if it has one.
    pub fn control(&mut self, number: u16) -> Option<&mut ControlPort> {
        self.controls.get(number)
    }

    /// Forgets what the driver of port `number` said on its control queue, if it has one: the
    /// next accepted `features`.
    pub fn negotiate(&mut self, number: u16, features: u64) {
        if let Some(control) = self.controls.get(number)
            && let Some(tx) = &mut self.out.port(number).tx
        {
            control.control().negotiate(features);
            control.apply(tx);
        }
    }

    /// Forwards everything there is now, up to a burst of each port and of the inbox. Returns
    /// whether there was anything. `now` counts seconds.
    #[inline]
    pub fn poll(&mut self, now: u32) -> bool {
        if self.out.now != now {
            self.out.now = now;
            self.out.shared.fdb.sweep(now);
        }
        let worked = self.poll_inbox();
        // The first port that has something finds most room where all want to send. So the next
        // round begins behind it.
        let ports = self.awake.len();
        let first = if self.first < ports { self.first } else { 0 };
        let mut next = first;
        let mut found = false;
        let (before, after) = self.awake.split_at(first);
        for place in after.iter().chain(before) {
            if let Some(Incoming { number, rx }) = self.rx.get_mut(usize::from(*place)) {
                let out = &mut self.out;
                found |= rx.rx_burst(&mut self.heads, |burst| out.forward(*number, burst));
            }
            next += usize::from(!found);
        }
        self.first = match next + 1 {
            next if next < ports => next,
            next => next.saturating_sub(ports),
        };
        let out = &mut self.out;
        worked
            | found
            | self.controls.poll(|number, control| {
                if let Some(tx) = &mut out.port(number).tx {
                    control.apply(tx);
                }
            })
    }

    pub(super) fn poll_inbox(&mut self) -> bool {
        while self.parcels.len() < BURST
            && let Some(parcel) = self.inbox.queue.pop()
        {
            self.parcels.push(parcel);
        }
        if self.parcels.is_empty() {
            return false;
        }
        let burst = Burst::of_parcels(&mut self.heads, &self.parcels);
        self.out.arrive(&burst, &self.parcels);
        self.parcels.clear();
        true
    }

    /// Sends a frame as if it came from port `source`.
    pub fn inject(&mut self, source: u16, frame: VolatileSlice<'_>) {
        let burst = Burst::of_one(&mut self.heads, frame);
        self.out.forward(source, &burst);
    }

    /// The clock of limits stands at so many nanoseconds.
    #[cfg(test)]
    pub(super) fn set_clock(&mut self, nanos: u64) {
        self.out.clock.set = Some(nanos);
    }

    /// Asks all rings for kicks, because the worker is about to sleep.
    pub fn enable_kicks(&mut self) -> Quiet {
        let quiet = self.rx.iter_mut().map(|port| port.rx.enable_kicks());
        quiet.fold(self.controls.enable_kicks(), Quiet::and)
    }

    /// Asks all rings for no kicks, because the worker polls all of them.
    pub fn disable_kicks(&mut self) {
        self.rx.iter_mut().for_each(|port| port.rx.disable_kicks());
        self.controls.disable_kicks();
        self.refresh();
    }

    /// Some time went by: rings that had nothing for a while ask for kicks, and are not polled.
    pub fn rest(&mut self) {
        self.rx.iter_mut().for_each(|port| port.rx.rest());
        self.refresh();
    }

    /// These kicks came, or the worker does not sleep any more.
    pub fn kicked(&mut self, kicks: &Kicks) {
        self.rx.iter_mut().for_each(|port| port.rx.kicked(kicks));
        self.refresh();
    }

    /// How many rings rest.
    pub fn resting(&self) -> usize {
        self.resting
    }

    fn refresh(&mut self) {
        let ports = self.rx.iter().zip(0..);
        let awake = ports.filter(|(port, _)| !port.rx.is_asleep());
        self.awake.clear();
        self.awake.extend(awake.map(|(_, place)| place));
        self.resting = self.rx.iter().map(|port| port.rx.resting()).sum();
    }

    /// Whether frames from other workers wait.
    pub fn has_mail(&self) -> bool {
        !self.inbox.queue.is_empty()
    }
}
