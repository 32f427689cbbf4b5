//! Where frames go: what one worker knows of all ports, and the path of frames from ports without
//! rules.

use std::ops::Range;
use std::sync::Arc;

use super::MAX_PORTS;
use super::fdb::{Learned, Spot, is_group};
use super::police::Clock;
use super::remote::Post;
use super::rules::{Policy, PortRules};
use super::switch::{Place, Shared};
use crate::port::{Addresses, BURST, Burst, Edit, Pick, Scratch, Stats, To, TxPort};
use crate::stats::{Drop, WorkerStats};

/// Frames of the burst at hand for one port.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) picks: [Pick; BURST],
    pub(super) len: usize,
}

/// What is known of a port, by number.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) place: Place,
    pub(super) tx: Option<TxPort>,
    pub(super) stats: Option<Stats>,
    /// What is enforced on frames to it, if anything.
    pub(super) rules: Option<Arc<PortRules>>,
    /// What is enforced on frames from it, if anything.
    policy: Option<Box<Policy>>,
    pub(super) group: Group,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self {
            place: Place::Absent,
            tx: None,
            stats: None,
            rules: None,
            policy: None,
            group: Group {
                picks: [Pick::default(); BURST],
                len: 0,
            },
        }
    }
}

/// Frames of a burst that follow each other with the same two addresses.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    addresses: Addresses,
    from: Spot,
    to: Spot,
    /// Number of its first frame.
    start: u8,
}

/// Everything but where frames come from.
#[derive(Debug)]
pub(super) struct Out {
    ports: Vec<Outgoing>,
    /// Numbers of the ports that are not absent.
    pub(super) present: Vec<u16>,
    /// Those of them that get frames in no VLAN.
    plain: Vec<u16>,
    /// Numbers of the ports of this worker that frames of the burst at hand go to.
    touched: Vec<u16>,
    /// Runs of the burst at hand.
    runs: Vec<Run>,
    /// Frames of the burst at hand for each other worker.
    pub(super) remote: Vec<Vec<Post>>,
    /// Whether there are any.
    pub(super) posted: bool,
    pub(super) shared: Shared,
    pub(super) stats: Arc<WorkerStats>,
    pub(super) scratch: Scratch,
    pub(super) clock: Clock,
    pub(super) now: u32,
}

/// Frames of one burst that came to nothing, and such.
#[derive(Default)]
pub(super) struct Tally {
    bad_source: u64,
    held: u64,
    pub(super) no_destination: u64,
    pub(super) unlearnt: u64,
    pub(super) queue_full: u64,
    pub(super) no_mbuf: u64,
}

impl Out {
    pub(super) fn new(shared: Shared, stats: Arc<WorkerStats>) -> Self {
        let posts = || Vec::with_capacity(BURST);
        Self {
            ports: Vec::new(),
            present: Vec::new(),
            plain: Vec::new(),
            touched: Vec::with_capacity(MAX_PORTS),
            runs: Vec::with_capacity(BURST),
            remote: shared.inboxes.iter().map(|_| posts()).collect(),
            posted: false,
            shared,
            stats,
            scratch: Scratch::default(),
            clock: Clock::default(),
            now: 0,
        }
    }

    /// What is known of port `number`.
    pub(super) fn port(&mut self, number: u16) -> &mut Outgoing {
        let index = usize::from(number);
        if self.ports.len() <= index {
            self.ports.resize_with(index + 1, Outgoing::default);
        }
        &mut self.ports[index]
    }

    #[inline]
    pub(super) fn known(&self, number: u16) -> Option<&Outgoing> {
        self.ports.get(usize::from(number))
    }

    /// Which ports are there, and for what, after a change.
    pub(super) fn refresh(&mut self) {
        let ports = (0u16..).zip(&self.ports);
        let present = ports.filter(|(_, port)| port.place != Place::Absent);
        self.present = present.map(|(number, _)| number).collect();
        let plain = |number: &u16| {
            let rules = self.known(*number).and_then(|port| port.rules.as_ref());
            rules.is_none_or(|rules| rules.takes_plain())
        };
        self.plain = self.present.iter().copied().filter(plain).collect();
    }

    pub(super) fn set_rules(&mut self, number: u16, rules: PortRules) {
        let rules = (!rules.is_empty()).then(|| Arc::new(rules));
        let port = self.port(number);
        port.policy = rules.clone().map(|rules| Box::new(Policy::new(rules)));
        port.rules = rules;
    }

    /// Sends a burst from port `source` where it belongs. Returns whether anybody was there.
    #[inline]
    pub(super) fn forward(&mut self, source: u16, burst: &Burst<'_>) -> bool {
        let mut tally = Tally::default();
        match self.ports.get_mut(usize::from(source)) {
            Some(Outgoing { policy, .. }) if policy.is_some() => {
                let mut taken = policy.take();
                if let Some(policy) = &mut taken {
                    self.forward_ruled(source, policy, burst, &mut tally);
                }
                self.port(source).policy = taken;
            }
            _ => self.forward_plain(source, burst, &mut tally),
        }
        let mut met = self.deliver(burst);
        if std::mem::take(&mut self.posted) {
            met |= self.send_remote(source, burst, &mut tally);
        }
        self.count(source, &tally);
        met
    }

    #[inline]
    fn forward_plain(&mut self, source: u16, burst: &Burst<'_>, tally: &mut Tally) {
        self.find_runs(burst);
        let runs = std::mem::take(&mut self.runs);
        let mut rest = runs.iter().peekable();
        let mut learned = None;
        while let Some(run) = rest.next() {
            let end = rest.peek().map_or(burst.len() as u8, |next| next.start);
            let frames = run.start..end;
            let from = run.addresses.source();
            if learned != Some(from) {
                if is_group(from) || from == 0 {
                    tally.bad_source += frames.len() as u64;
                    continue;
                }
                if self.shared.fdb.learn(&run.from, source, self.now) == Learned::Held {
                    tally.held += frames.len() as u64;
                    continue;
                }
                learned = Some(from);
            }
            self.switch(source, run, frames, tally);
        }
        self.runs = runs;
    }

    /// Finds the runs of a burst and where their addresses would be. All places in the table are
    /// touched before any is needed.
    #[inline]
    fn find_runs(&mut self, burst: &Burst<'_>) {
        self.runs.clear();
        let fdb = &*self.shared.fdb;
        let mut last = Run::default();
        for (start, head) in (0u8..).zip(burst.heads()) {
            let addresses = head.addresses();
            if addresses == last.addresses && start > 0 {
                continue;
            }
            if addresses.source() != last.addresses.source() || start == 0 {
                last.from = fdb.spot(addresses.source(), 0);
                fdb.touch(&last.from);
            }
            last.to = fdb.spot(addresses.destination(), 0);
            fdb.touch(&last.to);
            last.addresses = addresses;
            last.start = start;
            self.runs.push(last);
        }
    }

    /// Notes where the frames of a run go.
    #[inline]
    fn switch(&mut self, source: u16, run: &Run, frames: Range<u8>, tally: &mut Tally) {
        let count = frames.len() as u64;
        let port = match is_group(run.addresses.destination()) {
            true => None,
            false => {
                let port = self.shared.fdb.lookup(&run.to, self.now);
                tally.unlearnt += if port.is_none() { count } else { 0 };
                port
            }
        };
        let reached = match port {
            // A port does not get its own frames back.
            Some(port) => port != source && self.note(frames, source, port),
            None => self.flood(frames, source),
        };
        tally.no_destination += if reached { 0 } else { count };
    }

    /// Notes that `frames` go to port `to`. False if they cannot.
    #[inline]
    fn note(&mut self, frames: Range<u8>, source: u16, to: u16) -> bool {
        let place = self.ports.get(usize::from(to)).map(|port| port.place);
        match place.unwrap_or_default() {
            Place::Here => self.note_here(frames, to, Edit::Keep),
            Place::Echo { swap } => self.note_here(frames, source, echo(swap)),
            Place::There(worker) => self.note_remote(frames, worker, &Post::plain(To::Port(to))),
            Place::Absent => false,
        }
    }

    #[inline]
    pub(super) fn note_here(&mut self, frames: Range<u8>, to: u16, edit: Edit) -> bool {
        // Only ports of ours: a frame noted elsewhere would haunt a later burst.
        let Some(Outgoing {
            place: Place::Here,
            group,
            ..
        }) = self.ports.get_mut(usize::from(to))
        else {
            return false;
        };
        let Some(places) = group.picks.get_mut(group.len..) else {
            return false;
        };
        if group.len == 0 {
            self.touched.push(to);
        }
        let mut noted = 0;
        for (place, frame) in places.iter_mut().zip(frames) {
            *place = Pick { frame, edit };
            noted += 1;
        }
        group.len += noted;
        noted > 0
    }

    fn flood(&mut self, frames: Range<u8>, source: u16) -> bool {
        let mut reached = false;
        for place in 0..self.plain.len() {
            let Some(&to) = self.plain.get(place) else {
                break;
            };
            if to == source {
                continue;
            }
            reached |= match self.known(to).map(|port| port.place) {
                Some(Place::There(worker)) => {
                    self.note_remote(frames.clone(), worker, &Post::plain(To::All))
                }
                _ => self.note(frames.clone(), source, to),
            };
        }
        reached
    }

    /// Delivers what was noted for the ports of this worker.
    #[inline]
    pub(super) fn deliver(&mut self, burst: &Burst<'_>) -> bool {
        let mut met = false;
        let mut at = 0;
        // Copies for monitors make it longer meanwhile.
        while let Some(&port) = self.touched.get(at) {
            met |= self.deliver_to(port, burst);
            at += 1;
        }
        self.touched.clear();
        met
    }

    #[inline]
    pub(super) fn deliver_to(&mut self, number: u16, burst: &Burst<'_>) -> bool {
        let Some(port) = self.ports.get_mut(usize::from(number)) else {
            return false;
        };
        let group = &mut port.group;
        if group.len == 0 {
            // A monitor that was full before.
            return false;
        }
        let picks = group.picks.get(..group.len).unwrap_or(&[]);
        let scratch = &mut self.scratch;
        let tx = port.tx.as_mut();
        let met = tx.is_some_and(|tx| tx.tx_burst(burst, picks, scratch));
        let len = std::mem::take(&mut group.len);
        if let Some(rules) = &port.rules
            && let Some(monitor) = rules.mirror
        {
            let picks = group.picks;
            self.mirror(monitor, burst, picks.get(..len).unwrap_or(&[]));
        }
        met
    }

    fn count(&self, source: u16, tally: &Tally) {
        let port = self.ports.get(usize::from(source));
        let Some(stats) = port.and_then(|port| port.stats.as_ref()) else {
            return;
        };
        stats.dropped(Drop::BadSource, tally.bad_source);
        stats.dropped(Drop::HeldAddress, tally.held);
        stats.dropped(Drop::NoDestination, tally.no_destination);
        stats.dropped(Drop::QueueFull, tally.queue_full);
        stats.dropped(Drop::NoMbuf, tally.no_mbuf);
        if tally.unlearnt > 0 {
            stats.unlearnt.add(tally.unlearnt);
        }
    }
}

/// What an echo port does to frames.
pub(super) fn echo(swap: bool) -> Edit {
    match swap {
        true => Edit::Swap,
        false => Edit::Keep,
    }
}
