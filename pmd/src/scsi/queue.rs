//! The queues of a SCSI device in service: the control queue, the event queue, request queues.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_utils::CachePadded;
use vvu::memory::{MemTable, Scatter};
use vvu::notify::Call;
use vvu::virtio::Vring;

use super::control::ControlQueue;
use super::domain::Domain;
use super::events::{self, EventQueue};
use super::face::{FIRST_REQUEST, Face, Letter, Note, Order};
use super::served::Served;
use super::stats::QueueStats;
use super::tasks::{Tasks, lists};
use super::ways::Ways;
use crate::bdev::Done;
use crate::queue::StorageQueue;
use crate::stats::latency::Ages;
use crate::vring::{AnyRing, Chain, Moved, SetupError, with};
use crate::wake::{Kicks, Mode, Quiet, Waker, Watch};

/// Most chains taken at once.
pub(super) const BURST: usize = 64;

/// Most commands of one queue that can be under way.
const MAX_DEPTH: u16 = 1024;

/// A ring made ready to be served, by whoever has time for it.
#[derive(Debug)]
pub struct Prepared(Queue);

/// Why a queue cannot be served.
pub type PrepareError = SetupError;

/// A queue in service. See the [module](super).
#[derive(Debug)]
pub struct Queue {
    pub(super) served: Served,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Control(ControlQueue),
    Event(EventQueue),
    Request(Box<Work>),
}

/// What a request queue has beside its ring.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) face: Arc<Face>,
    pub(super) index: u16,
    pub(super) stats: Arc<CachePadded<QueueStats>>,
    /// The units.
    pub(super) domain: Arc<Domain>,
    pub(super) version: u64,
    pub(super) ways: Ways,
    pub(super) tasks: Tasks,
    pub(super) done: Vec<Done>,
    /// Tasks that wait for something that nobody tells: looked at in each round.
    pub(super) held: VecDeque<u16>,
    /// Chains to be given back, and how many bytes of each were written.
    pub(super) over: Vec<(Chain, u32)>,
    /// Orders that also hold for commands in the ring that were not taken yet.
    pub(super) orders: Vec<Order>,
    /// Long jobs shall not go on.
    pub(super) draining: bool,
    /// The last look at the clock: at each burst that is taken, and each that is done.
    pub(super) ages: Ages,
}

impl Prepared {
    /// Checks the ring, and lets it wake the sleeper of `waker`.
    pub fn new(vring: Vring, face: Arc<Face>, waker: &Arc<Waker>) -> Result<Self, PrepareError> {
        let index = vring.index;
        let tasks = Tasks::new(vring.size.min(MAX_DEPTH), &vring.memory);
        let served = Served::new(vring, Arc::clone(&face), waker)?;
        let kind = match index {
            super::control::INDEX => Kind::Control(ControlQueue::default()),
            events::INDEX => Kind::Event(EventQueue::default()),
            _ => Kind::Request(Box::new(Work {
                domain: face.domain(),
                // Looks again at the first burst.
                version: face.version().wrapping_sub(1),
                stats: face.queue_stats(index).cloned().unwrap_or_default(),
                face,
                index,
                ways: Ways::new(waker),
                tasks,
                done: Vec::with_capacity(BURST),
                held: VecDeque::new(),
                over: Vec::with_capacity(BURST),
                orders: Vec::new(),
                draining: false,
                ages: Ages::until(Instant::now()),
            })),
        };
        Ok(Self(Queue { served, kind }))
    }

    /// Serves it from now on.
    pub fn start(self) -> Queue {
        let queue = self.0;
        queue.served.set_state();
        queue
    }
}

impl Queue {
    /// Gets what others have to say.
    pub fn deliver(&mut self, letter: Letter) {
        match (&mut self.kind, letter.0) {
            (Kind::Request(work), Note::Abort(order)) => work.order(order, self.served.takes()),
            (Kind::Request(work), Note::Opened { seat, channel }) => {
                work.ways.opened(&seat, channel);
            }
            (Kind::Request(work), Note::Saved { task, serial, good }) => {
                work.saved(task, serial, good);
            }
            (Kind::Event(event), Note::Event) => event.look(),
            _ => {}
        }
    }

    /// Whether it has nothing to do but to wait for chains.
    fn is_quiet(&self) -> bool {
        match &self.kind {
            Kind::Request(work) => work.tasks.len() == 0 && work.orders.is_empty(),
            Kind::Control(control) => control.waiting() == 0,
            Kind::Event(_) => true,
        }
    }

    fn has_room(&self) -> bool {
        match &self.kind {
            Kind::Request(work) => work.tasks.room() > 0,
            // Buffers of the event queue are taken when there is something to say.
            Kind::Event(event) => event.wants_buffers(&self.served),
            Kind::Control(control) => control.has_room(),
        }
    }
}

impl StorageQueue for Queue {
    type Spare = Vec<Box<Scatter>>;

    #[inline]
    fn poll(&mut self) -> bool {
        let Self { served, kind } = self;
        let count = match kind {
            Kind::Request(work) => {
                let take = served.takes();
                with!(served.ring.of_format(), ring => {
                    let count = work.round(ring, take);
                    if count > 0 {
                        ring.publish();
                    }
                    count
                })
            }
            Kind::Control(control) => control.poll(served),
            Kind::Event(event) => event.poll(served),
        };
        served.finish(count);
        count > 0
    }

    fn is_polled(&self) -> bool {
        self.served.rest.mode == Mode::Polled
    }

    fn is_resting(&self) -> bool {
        self.served.rest.mode == Mode::Resting
    }

    fn rest(&mut self) {
        let look = match self.served.rest.mode {
            Mode::Polled => self.served.rest.is_due() && self.is_quiet(),
            Mode::Resting => self.served.watch.is_polled(),
            Mode::Armed => false,
        };
        let room = self.has_room();
        if look && !self.served.arm(Mode::Resting, room) {
            self.served.disarm();
        }
    }

    fn enable_kicks(&mut self) -> Quiet {
        let room = self.has_room();
        let polled = self.served.watch.is_polled() && self.served.takes() && room;
        if self.served.rest.mode == Mode::Resting && !polled {
            return Quiet::Kicked;
        }
        let others = match &mut self.kind {
            Kind::Request(work) => {
                let held = work.held.is_empty() && work.orders.is_empty();
                let disks = work.ways.arm();
                disks.and(if held { Quiet::Kicked } else { Quiet::Polled })
            }
            Kind::Control(control) if control.waiting() > 0 => Quiet::Polled,
            _ => Quiet::Kicked,
        };
        let ring = match self.served.arm(Mode::Armed, room) {
            false => Quiet::Busy,
            true if polled => Quiet::Polled,
            true => Quiet::Kicked,
        };
        others.and(ring)
    }

    fn kicked(&mut self, kicks: &Kicks) {
        self.served.kicked(kicks);
    }

    fn disable_kicks(&mut self) {
        self.served.disarm();
    }

    fn drain(&mut self) -> usize {
        self.served.draining = true;
        if let Kind::Request(work) = &mut self.kind {
            work.draining = true;
            work.ways.hurry();
        }
        self.poll();
        let kept = match &self.kind {
            Kind::Request(work) => work.tasks.len() + work.over.len(),
            Kind::Control(control) => control.waiting(),
            Kind::Event(_) => 0,
        };
        let resuming = self.served.is_resuming() && !matches!(self.kind, Kind::Event(_));
        kept + usize::from(resuming)
    }

    fn resume(&mut self) {
        self.served.draining = false;
        if let Kind::Request(work) = &mut self.kind {
            work.draining = false;
        }
    }

    fn set_enabled(&mut self, enabled: bool) {
        self.served.set_enabled(enabled);
    }

    fn set_kick(&mut self, watch: Watch) -> Watch {
        self.served.set_kick(watch)
    }

    fn set_call(&mut self, call: Call) -> Call {
        self.served.set_call(call)
    }

    fn set_err(&mut self, err: Call) -> Call {
        self.served.set_err(err)
    }

    fn spare(size: u16, memory: &Arc<MemTable>) -> Vec<Box<Scatter>> {
        lists(size.min(MAX_DEPTH), memory)
    }

    fn set_memory(&mut self, moved: Moved, lists: Vec<Box<Scatter>>) -> (Moved, Vec<Box<Scatter>>) {
        let lists = match &mut self.kind {
            Kind::Request(work) => work.tasks.renew(lists),
            _ => lists,
        };
        (self.served.set_memory(moved), lists)
    }

    fn base(&self) -> u32 {
        self.served.ring.base()
    }

    fn stopped(&self) {
        self.served.stopped();
    }
}

const _: () = assert!(super::control::INDEX == 0 && events::INDEX == 1 && FIRST_REQUEST == 2);
