//! What all queues of a SCSI device have in common.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_utils::CachePadded;

use super::config::{SPACE, ScsiConfig, Sizes};
use super::domain::{Address, Domain, Lun, Seat};
use super::events::Event;
use super::stats::{QueueStats, Snapshot};
use super::target::{Attention, Barrier, Bell, NexusId, name_hash};
use super::wire::Code;
use crate::bdev::Channel;

/// Index of the first request queue: behind the control queue and the event queue (5.6.2).
pub(super) const FIRST_REQUEST: u16 = 2;

/// Most events that wait for the driver to have room for them.
const MAX_EVENTS: usize = 256;

/// What a queue is told by others, between two rounds.
#[derive(Debug)]
pub struct Letter(pub(super) Note);

#[derive(Debug)]
pub(super) enum Note {
    /// Tasks must end.
    Abort(Order),
    /// A channel that was asked for, or that there is none.
    Opened {
        seat: Arc<Seat>,
        channel: Option<Box<dyn Channel>>,
    },
    /// What a task had to have saved was, or was not.
    Saved { task: u16, serial: u64, good: bool },
    /// Something for the driver to hear.
    Event,
}

/// Which tasks must end.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) address: Address,
    /// Only the one that the driver calls this.
    pub(super) tag: Option<u64>,
    /// What they are answered with; nothing ends if it is [`Code::Succeeded`]: somebody only wants
    /// to know whether there is one.
    pub(super) code: Code,
    pub(super) found: Option<Arc<AtomicBool>>,
    /// Also those that are still in the ring.
    pub(super) waiting: bool,
    /// Held by each of them until then.
    pub(super) barrier: Barrier,
}

/// Brings letters to one queue, wherever it is served.
pub trait Mailbox: Send + Sync {
    /// It gets `letter` between two rounds, or never if it is not served any more.
    fn post(&self, letter: Letter);
}

/// The queues that are served, and what they are told.
#[derive(Default)]
pub(super) struct Board {
    boxes: Mutex<BTreeMap<u16, Arc<dyn Mailbox>>>,
    events: Mutex<Events>,
}

/// What waits for the driver.
#[derive(Debug, Default)]
struct Events {
    list: VecDeque<Event>,
    missed: bool,
    /// The event queue was served since the driver began: before, it looks for itself.
    listens: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    /// All request queues get `order`.
    pub(super) fn order(&self, order: &Order) {
        for mailbox in lock(&self.boxes).range(FIRST_REQUEST..).map(|(_, one)| one) {
            mailbox.post(Letter(Note::Abort(order.clone())));
        }
    }

    /// The driver shall hear of `event`.
    fn event(&self, event: Event) {
        let mailbox = self.mailbox(super::events::INDEX);
        let mut events = lock(&self.events);
        if !events.listens {
            return;
        }
        if events.list.len() < MAX_EVENTS {
            events.list.push_back(event);
        } else {
            events.missed = true;
        }
        drop(events);
        if let Some(mailbox) = mailbox {
            mailbox.post(Letter(Note::Event));
        }
    }

    /// The next thing that the driver shall hear of, and whether others were lost.
    pub(super) fn next_event(&self) -> Option<(Event, bool)> {
        let mut events = lock(&self.events);
        let missed = std::mem::take(&mut events.missed);
        match events.list.pop_front() {
            Some(event) => Some((event, missed)),
            None => missed.then_some((Event::None, true)),
        }
    }

    /// Nobody shall hear of what was.
    fn forget_events(&self) {
        *lock(&self.events) = Events::default();
    }

    /// The mailbox of queue `index`.
    pub(super) fn mailbox(&self, index: u16) -> Option<Arc<dyn Mailbox>> {
        lock(&self.boxes).get(&index).cloned()
    }
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let boxes: Vec<u16> = lock(&self.boxes).keys().copied().collect();
        f.debug_struct("Board").field("boxes", &boxes).finish()
    }
}

/// Where one nexus of a device hears what concerns it.
struct Wire {
    board: Arc<Board>,
    address: Address,
}

impl Bell for Wire {
    fn abort(&self, barrier: &Barrier) {
        self.board.order(&Order {
            address: self.address,
            tag: None,
            code: Code::Reset,
            found: None,
            waiting: true,
            barrier: barrier.clone(),
        });
    }

    fn changed(&self, attention: Attention) {
        self.board.event(Event::Changed {
            address: self.address,
            code: attention.code(),
        });
    }
}

/// A device as its driver sees it. See the [module](super).
#[derive(Debug)]
pub struct Face {
    name: Arc<str>,
    config: ScsiConfig,
    /// Names the initiator's port.
    initiator: u64,
    pub(super) sizes: Sizes,
    domain: Mutex<Arc<Domain>>,
    /// Counts changes of the domain.
    version: CachePadded<AtomicU64>,
    board: Arc<Board>,
    stats: Box<[Arc<CachePadded<QueueStats>>]>,
}

impl Face {
    /// A device called `name`, without any units yet. The name, which should be the same after a
    /// restart, also names the initiator for reservations.
    pub fn new(name: &str, config: ScsiConfig) -> Arc<Self> {
        let queues = config.queues.clamp(1, ScsiConfig::MAX_QUEUES);
        Arc::new(Self {
            name: name.into(),
            config: ScsiConfig { queues },
            initiator: name_hash(name),
            sizes: Sizes::default(),
            domain: Mutex::default(),
            version: CachePadded::new(AtomicU64::new(0)),
            board: Arc::default(),
            stats: (0..queues).map(|_| Default::default()).collect(),
        })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of queues, of all kinds.
    pub fn queues(&self) -> u16 {
        self.config.queues + FIRST_REQUEST
    }

    /// Feature bits to offer.
    pub fn features(&self) -> u64 {
        self.config.features()
    }

    /// The configuration space now.
    pub fn space(&self) -> [u8; SPACE] {
        self.sizes.space(&self.config)
    }

    /// The driver writes `data` at `offset` of the configuration space. False if there is nothing
    /// that it may write so.
    pub fn write(&self, offset: u32, data: &[u8]) -> bool {
        self.sizes.write(offset, data)
    }

    /// The driver is gone, or begins anew.
    pub fn reset(&self) {
        self.sizes.reset();
        self.board.forget_events();
        lock(&self.domain).lose_nexuses();
    }

    /// Adds a unit, in the place of the one that was there. The driver hears of it.
    pub fn add(&self, address: Address, lun: Lun) {
        let port = u16::from(address.target) + 1;
        let id = NexusId {
            initiator: self.initiator,
            target: address.target,
        };
        let bell = Arc::new(Wire {
            board: Arc::clone(&self.board),
            address,
        });
        let nexus = lun.unit().attach(id, port, bell);
        self.change(|domain| {
            let number = domain.free_number();
            let seat = Seat {
                number,
                address,
                nexus,
                lun,
            };
            domain.set(address, Some(Arc::new(seat)));
        });
        self.board.event(Event::Added(address));
    }

    /// Removes a unit; its tasks end. The driver hears of it. False if there was none.
    pub fn remove(&self, address: Address) -> bool {
        let old = self.change(|domain| domain.set(address, None));
        if old.is_none() {
            return false;
        }
        self.board.order(&Order {
            address,
            tag: None,
            code: Code::Aborted,
            found: None,
            // Those do not find the unit any more.
            waiting: false,
            barrier: Barrier::default(),
        });
        self.board.event(Event::Removed(address));
        true
    }

    fn change<R>(&self, what: impl FnOnce(&mut Domain) -> R) -> R {
        let mut domain = lock(&self.domain);
        let mut changed = Domain::clone(&domain);
        let result = what(&mut changed);
        *domain = Arc::new(changed);
        // Released before who finds it may look at the domain, which takes the lock.
        self.version.fetch_add(1, Ordering::Release);
        result
    }

    /// How often the domain was changed.
    #[inline]
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The targets and units as they are now.
    pub(super) fn domain(&self) -> Arc<Domain> {
        Arc::clone(&lock(&self.domain))
    }

    pub(super) fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Queue `index` is served, and gets letters in this mailbox; or it is not any more.
    pub fn connect(&self, index: u16, mailbox: Option<Arc<dyn Mailbox>>) {
        if index == super::events::INDEX && mailbox.is_some() {
            lock(&self.board.events).listens = true;
        }
        let mut boxes = lock(&self.board.boxes);
        match mailbox {
            Some(mailbox) => boxes.insert(index, mailbox),
            None => boxes.remove(&index),
        };
    }

    /// The counters of the request queues.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            name: self.name.to_string(),
            units: self.domain().seats().count(),
            queues: self.stats.iter().map(|queue| queue.snapshot()).collect(),
        }
    }

    /// The counters of queue `index`, if it is a request queue.
    pub(super) fn queue_stats(&self, index: u16) -> Option<&Arc<CachePadded<QueueStats>>> {
        let place = usize::from(index.checked_sub(FIRST_REQUEST)?);
        self.stats.get(place)
    }
}
