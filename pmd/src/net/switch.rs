//! The learning switch: one worker's part of it.
//!
//! A burst is sorted by destination first and delivered then, port by port, so that each ring's
//! index is published once. Frames between the same two ports stay in order, whether they are
//! flooded or not. Frames to a port of another worker are copied into mbufs and queued there.

use std::ops::Range;
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use vvu::memory::VolatileSlice;

use super::MAX_PORTS;
use super::fdb::{Fdb, Spot, is_group};
use crate::mempool::{Mbuf, Mempool};
use crate::port::capture::Pen;
use crate::port::{Addresses, BURST, Burst, Heads, Parcel, Pick, RxPort, Scratch, Stats, TxPort};
use crate::stats::{Drop, WorkerStats};
use crate::wake::{Quiet, Waker};

/// Frames on their way to one worker.
#[derive(Debug)]
pub struct Inbox {
    queue: ArrayQueue<Parcel>,
    waker: Arc<Waker>,
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

/// Frames of the burst at hand for one port.
#[derive(Debug)]
struct Group {
    picks: [Pick; BURST],
    len: usize,
}

/// What is known of a port, by number.
#[derive(Debug)]
struct Outgoing {
    place: Place,
    tx: Option<TxPort>,
    stats: Option<Stats>,
    group: Group,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self {
            place: Place::Absent,
            tx: None,
            stats: None,
            group: Group {
                picks: [Pick::default(); BURST],
                len: 0,
            },
        }
    }
}

/// One worker's part of a switch.
#[derive(Debug)]
pub struct Switch {
    rx: Vec<Incoming>,
    heads: Heads,
    inbox: Arc<Inbox>,
    parcels: Vec<Parcel>,
    out: Out,
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
struct Out {
    ports: Vec<Outgoing>,
    /// Numbers of the ports that are not absent.
    present: Vec<u16>,
    /// Numbers of the ports of this worker that frames of the burst at hand go to.
    touched: Vec<u16>,
    /// Runs of the burst at hand.
    runs: Vec<Run>,
    /// Frames of the burst at hand for each other worker: frame, and port if not all.
    remote: Vec<Vec<(u8, Option<u16>)>>,
    shared: Shared,
    stats: Arc<WorkerStats>,
    scratch: Scratch,
    now: u32,
}

impl Switch {
    /// The part of worker `number`, without ports.
    pub fn new(number: usize, shared: Shared, stats: Arc<WorkerStats>) -> Option<Self> {
        Some(Self {
            rx: Vec::new(),
            heads: Heads::default(),
            inbox: Arc::clone(shared.inboxes.get(number)?),
            parcels: Vec::with_capacity(BURST),
            out: Out {
                ports: Vec::new(),
                present: Vec::new(),
                touched: Vec::with_capacity(MAX_PORTS),
                runs: Vec::with_capacity(BURST),
                remote: shared
                    .inboxes
                    .iter()
                    .map(|_| Vec::with_capacity(BURST))
                    .collect(),
                shared,
                stats,
                scratch: Scratch::default(),
                now: 0,
            },
        })
    }

    /// Says where port `number` is. Its halves leave with [`Switch::remove`].
    pub fn place(&mut self, number: u16, place: Place) {
        let index = usize::from(number);
        if self.out.ports.len() <= index {
            self.out.ports.resize_with(index + 1, Outgoing::default);
        }
        if let Some(port) = self.out.ports.get_mut(index) {
            port.place = place;
        }
        let ports = self.out.ports.iter().enumerate();
        let present = ports.filter(|(_, port)| port.place != Place::Absent);
        self.out.present = present.map(|(number, _)| number as u16).collect();
    }

    /// Owns port `number` from now on.
    pub fn add(&mut self, number: u16, rx: RxPort, tx: TxPort, stats: Stats) {
        self.place(number, Place::Here);
        self.rx.push(Incoming { number, rx });
        if let Some(port) = self.out.ports.get_mut(usize::from(number)) {
            port.tx = Some(tx);
            port.stats = Some(stats);
        }
    }

    /// Owns port `number` no longer.
    pub fn remove(&mut self, number: u16) -> (Option<RxPort>, Option<TxPort>) {
        self.place(number, Place::Absent);
        let at = self.rx.iter().position(|port| port.number == number);
        let rx = at.map(|at| self.rx.remove(at).rx);
        let port = self.out.ports.get_mut(usize::from(number));
        let tx = port.and_then(|port| {
            port.stats = None;
            port.tx.take()
        });
        (rx, tx)
    }

    /// The halves of a port that this worker owns.
    pub fn port(&mut self, number: u16) -> Option<(&mut RxPort, &mut TxPort)> {
        let rx = self.rx.iter_mut().find(|port| port.number == number)?;
        let tx = self.out.ports.get_mut(usize::from(number))?.tx.as_mut()?;
        Some((rx.rx.inner(), tx.inner()))
    }

    /// Writes down what passes port `number` with `pen` from now on, or nothing any more. False
    /// if this worker does not own it.
    pub fn capture(&mut self, number: u16, pen: Option<&Pen>) -> bool {
        let rx = self.rx.iter_mut().find(|port| port.number == number);
        let out = self.out.ports.get_mut(usize::from(number));
        let (Some(rx), Some(out)) = (rx, out) else {
            return false;
        };
        let (Some(tx), Some(stats)) = (&mut out.tx, &out.stats) else {
            return false;
        };
        rx.rx.capture(pen, stats);
        tx.capture(pen, stats);
        true
    }

    /// Forwards everything there is now, up to a burst of each ring and of the inbox. Returns
    /// whether there was anything. `now` counts seconds.
    #[inline]
    pub fn poll(&mut self, now: u32) -> bool {
        if self.out.now != now {
            self.out.now = now;
            self.out.shared.fdb.sweep(now);
        }
        let mut worked = self.poll_inbox();
        for Incoming { number, rx } in &mut self.rx {
            let out = &mut self.out;
            worked |= rx.rx_burst(&mut self.heads, |burst| out.forward(*number, burst));
        }
        worked
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

    /// Asks all rings for kicks, because the worker is about to sleep.
    pub fn enable_kicks(&mut self) -> Quiet {
        let quiet = self.rx.iter_mut().map(|port| port.rx.enable_kicks());
        quiet.fold(Quiet::Kicked, Quiet::and)
    }

    /// Asks all rings for no kicks, because the worker polls.
    pub fn disable_kicks(&mut self) {
        for port in &mut self.rx {
            port.rx.disable_kicks();
        }
    }

    /// Whether frames from other workers wait.
    pub fn has_mail(&self) -> bool {
        !self.inbox.queue.is_empty()
    }
}

/// Frames of one burst that came to nothing, and such.
#[derive(Default)]
struct Tally {
    bad_source: u64,
    no_destination: u64,
    unlearnt: u64,
    queue_full: u64,
    no_mbuf: u64,
}

impl Out {
    /// Sends a burst from port `source` where it belongs. Returns whether anybody was there.
    #[inline]
    fn forward(&mut self, source: u16, burst: &Burst<'_>) -> bool {
        let mut tally = Tally::default();
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
                self.shared.fdb.learn(&run.from, source, self.now);
                learned = Some(from);
            }
            self.switch(source, run, frames, &mut tally);
        }
        self.runs = runs;
        let met = self.deliver(burst) | self.send_remote(source, burst, &mut tally);
        self.count(source, &tally);
        met
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
            Place::Here => self.note_here(frames, to, false),
            Place::Echo { swap } => self.note_here(frames, source, swap),
            Place::There(worker) => self.note_remote(frames, worker, Some(to)),
            Place::Absent => false,
        }
    }

    #[inline]
    fn note_here(&mut self, frames: Range<u8>, to: u16, swap: bool) -> bool {
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
            *place = Pick { frame, swap };
            noted += 1;
        }
        group.len += noted;
        noted > 0
    }

    fn note_remote(&mut self, frames: Range<u8>, worker: usize, to: Option<u16>) -> bool {
        let Some(remote) = self.remote.get_mut(worker) else {
            return false;
        };
        // A flood reaches every port of the other worker with one copy.
        if to.is_some() || remote.last() != Some(&(frames.end.saturating_sub(1), None)) {
            remote.extend(frames.map(|frame| (frame, to)));
        }
        true
    }

    fn flood(&mut self, frames: Range<u8>, source: u16) -> bool {
        let mut reached = false;
        for place in 0..self.present.len() {
            let Some(&to) = self.present.get(place) else {
                break;
            };
            if to == source {
                continue;
            }
            let port = self.ports.get(usize::from(to)).map(|port| port.place);
            reached |= match port {
                Some(Place::There(worker)) => self.note_remote(frames.clone(), worker, None),
                _ => self.note(frames.clone(), source, to),
            };
        }
        reached
    }

    /// Delivers what was noted for the ports of this worker.
    #[inline]
    fn deliver(&mut self, burst: &Burst<'_>) -> bool {
        let mut met = false;
        for port in self.touched.drain(..) {
            if let Some(Outgoing { tx, group, .. }) = self.ports.get_mut(usize::from(port)) {
                let picks = group.picks.get(..group.len).unwrap_or(&[]);
                let scratch = &mut self.scratch;
                met |= tx
                    .as_mut()
                    .is_some_and(|tx| tx.tx_burst(burst, picks, scratch));
                group.len = 0;
            }
        }
        met
    }

    /// Queues what was noted for other workers.
    fn send_remote(&mut self, source: u16, burst: &Burst<'_>, tally: &mut Tally) -> bool {
        let mut met = false;
        for (remote, inbox) in self.remote.iter_mut().zip(&self.shared.inboxes) {
            if remote.is_empty() {
                continue;
            }
            for (frame, destination) in remote.drain(..) {
                let Some(head) = burst.heads().get(usize::from(frame)) else {
                    continue;
                };
                let mut post = |mbuf: Option<Mbuf>| {
                    let Some(mbuf) = mbuf else {
                        tally.no_mbuf += 1;
                        return;
                    };
                    let parcel = Parcel {
                        mbuf,
                        source,
                        destination,
                    };
                    tally.queue_full += u64::from(inbox.queue.push(parcel).is_err());
                };
                let pool = self.shared.pool.as_ref();
                if head.offload().is_none() {
                    post(copy(pool, head.bytes(), burst.body(head)));
                } else {
                    // What the receiver takes is not known here, and an mbuf holds no long frame.
                    let scratch = &mut self.scratch;
                    scratch.finish(burst, head, |frame| {
                        post(copy(pool, &[], std::iter::once(frame)));
                    });
                }
            }
            inbox.waker.wake();
            met = true;
        }
        met
    }

    /// Delivers frames from other workers to ports of this one.
    fn arrive(&mut self, burst: &Burst<'_>, parcels: &[Parcel]) {
        for (frame, head) in (0u8..).zip(burst.heads()) {
            let Some(parcel) = parcels.get(head.item()) else {
                continue;
            };
            let here = |this: &Self, port: u16| {
                let port = this.ports.get(usize::from(port));
                port.is_some_and(|port| port.place == Place::Here)
            };
            match parcel.destination {
                Some(port) if here(self, port) => {
                    self.note_here(frame..frame + 1, port, false);
                }
                Some(_) => self.stats.stray.add(1),
                None => {
                    for place in 0..self.present.len() {
                        if let Some(&port) = self.present.get(place)
                            && port != parcel.source
                            && here(self, port)
                        {
                            self.note_here(frame..frame + 1, port, false);
                        }
                    }
                }
            }
        }
        self.deliver(burst);
    }

    fn count(&self, source: u16, tally: &Tally) {
        let port = self.ports.get(usize::from(source));
        let Some(stats) = port.and_then(|port| port.stats.as_ref()) else {
            return;
        };
        stats.dropped(Drop::BadSource, tally.bad_source);
        stats.dropped(Drop::NoDestination, tally.no_destination);
        stats.dropped(Drop::QueueFull, tally.queue_full);
        stats.dropped(Drop::NoMbuf, tally.no_mbuf);
        if tally.unlearnt > 0 {
            stats.unlearnt.add(tally.unlearnt);
        }
    }
}

/// A copy of a frame, `first` and then `body`, that outlives the burst.
fn copy<'b>(
    pool: Option<&Arc<Mempool>>,
    first: &[u8],
    body: impl Iterator<Item = VolatileSlice<'b>>,
) -> Option<Mbuf> {
    let mut mbuf = pool?.alloc()?;
    mbuf.append(first.len())?.copy_from(first);
    for piece in body {
        piece.copy_to_volatile_slice(mbuf.append(piece.len())?);
    }
    Some(mbuf)
}
