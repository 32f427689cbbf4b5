//! A disk as its jobs see it, behind a connection that may break.

use std::time::{Duration, Instant};

use vm_memory::Bytes;
use vvu::memory::Area;
use vvu::protocol::Features;
use vvu::socket::Endpoint;

use super::queue::{Answer, Cut, Requests, Tail};
use super::request::{Kind, Message, Refusal, Request, Shape};
use super::{blk, scsi};
use crate::guest::args::{Options, Socket};
use crate::guest::error::{Fault, GuestError};
use crate::guest::link::{Link, Rings, Wanted};
use crate::guest::machine::Flow;
use crate::guest::memory::Memory;
use crate::guest::queues::{Format, Queue};
use crate::guest::storage::args::DiskOptions;
use crate::guest::tether::{Meeting, Queues, Tether, Woken};
use crate::signals::Shutdown;

/// What a disk is spoken to in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::guest) enum Language {
    Blk,
    Scsi(scsi::Unit),
}

impl Language {
    /// Rings that are not for requests, and come before those that are.
    pub(in crate::guest) fn others(self) -> u64 {
        match self {
            Self::Blk => 0,
            Self::Scsi(_) => scsi::OTHERS,
        }
    }

    fn tail(self) -> Tail {
        match self {
            Self::Blk => Tail::Last(blk::TAIL),
            Self::Scsi(_) => Tail::First(scsi::TAIL),
        }
    }

    /// What is accepted if it is offered, and what must be.
    pub(in crate::guest) fn wanted(self, options: &Options, disk: &DiskOptions) -> Wanted {
        let version_1 = Features::VERSION_1.bits();
        let device = match self {
            Self::Blk => blk::feature::ALL,
            Self::Scsi(_) => 0,
        };
        let packed = Features::RING_PACKED.bits();
        let needed = version_1 | if options.packed { packed } else { 0 };
        let mut features = device | needed;
        for (bit, refused) in [
            (Features::EVENT_IDX.bits(), options.no_event_idx),
            (Features::INDIRECT_DESC.bits(), options.no_indirect),
        ] {
            features |= if refused { 0 } else { bit };
        }
        let rings = self.others() + u64::from(disk.queues);
        Wanted {
            features,
            needed,
            protocol_features: !options.no_protocol_features,
            inflight: disk.inflight,
            rings: Rings {
                all: rings,
                asked: rings,
                usual: self.others() + 1,
                others: self.others(),
                what: "queues",
            },
        }
    }
}

/// All rings: those that are not for requests come first.
pub(super) struct All {
    others: Vec<Queue>,
    requests: Vec<Requests>,
}

impl Queues for All {
    fn all(&self) -> impl Iterator<Item = &Queue> {
        let requests = self.requests.iter().map(|one| &one.queue);
        self.others.iter().chain(requests)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Queue> {
        let requests = self.requests.iter_mut().map(|one| &mut one.queue);
        self.others.iter_mut().chain(requests)
    }
}

/// How much is under way at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Requests.
    pub(super) depth: u16,
    /// Bytes of a request's data.
    pub(super) size: usize,
}

/// A request that came back: what was asked for, the token that went along, when it was sent,
/// whether it was done, and the data.
pub(super) type Done<'a> = (Request, u64, Instant, Result<(), Refusal>, &'a Area);

/// See the [module](self).
pub(super) struct Disk<'a> {
    tether: Tether<'a>,
    queues: All,
    language: Language,
    shape: Shape,
    /// The queue that the next request goes to.
    current: usize,
    serial: u64,
    /// To be sent once more.
    again: Vec<Again>,
    pub(super) read: Flow,
    pub(super) written: Flow,
}

/// A request that was not done because the disk had something to tell first.
struct Again {
    request: Request,
    token: u64,
    data: Vec<u8>,
}

impl<'a> Disk<'a> {
    /// Gets a connection from `endpoint`, which is that of `socket`, negotiates, starts, and asks
    /// what kind of disk it is.
    pub(super) fn start(
        socket: &'a Socket,
        endpoint: &'a mut Endpoint,
        (options, disk): (&'a Options, &DiskOptions),
        shutdown: &'a Shutdown,
        language: Language,
        load: Load,
    ) -> Result<Self, GuestError> {
        let mut meeting = Meeting {
            socket,
            endpoint,
            options,
            shutdown,
            wanted: language.wanted(options, disk),
        };
        let mut link = meeting.link()?;
        let shape = match language {
            Language::Blk => Some(blk_shape(&mut link)?),
            Language::Scsi(_) => None,
        };
        let (size, format) = (options.queue_size, Format(link.features));
        let depth = load.depth.div_ceil(disk.queues);
        // What is asked before anything else needs some room, too.
        let room = load.size.max(4096);
        let each = Requests::bytes(size, depth, room);
        let waste = u64::from(options.regions) * (each / 8 + room as u64 + 16384);
        let needed = (language.others() + u64::from(disk.queues)) * each + waste;
        let mut memory = match &options.memory_file {
            Some(path) => Memory::in_file(path, options.regions)?,
            None => {
                let len = options.memory.unwrap_or(needed.max(1 << 22));
                Memory::new(len, options.regions, true)?
            }
        };
        let names = ["control", "event"]
            .into_iter()
            .take(language.others() as usize);
        let others = names.map(|name| Queue::new(name, &mut memory, 0, size, format));
        let others = others.collect::<Result<_, _>>()?;
        let mut request = || Requests::new(&mut memory, size, depth, room, language.tail(), format);
        let requests = (0..disk.queues).map(|_| request());
        let requests = requests.collect::<Result<_, _>>()?;
        let mut queues = All { others, requests };
        let mut disk = Self {
            tether: meeting.tie(link, memory, &mut queues)?,
            queues,
            language,
            shape: shape.unwrap_or(UNKNOWN),
            current: 0,
            serial: 0,
            again: Vec::new(),
            read: Flow::default(),
            written: Flow::default(),
        };
        if let Language::Scsi(unit) = language {
            disk.shape = disk.scsi_shape(unit)?;
        }
        Ok(disk)
    }

    /// What it is like.
    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// The virtio features in use.
    pub(super) fn features(&self) -> u64 {
        self.tether.features()
    }

    /// How often a connection was made.
    pub(super) fn connections(&self) -> u64 {
        self.tether.connections()
    }

    /// How long the back-end may take.
    pub(super) fn timeout(&self) -> Duration {
        self.tether.timeout()
    }

    /// Whether a signal says to stop.
    pub(super) fn stopped(&self) -> bool {
        self.tether.stopped()
    }

    /// Requests that the back-end has, or is to have again.
    pub(super) fn in_flight(&self) -> usize {
        let sent: usize = self.queues.requests.iter().map(Requests::in_flight).sum();
        sent + self.again.len()
    }

    /// Adds a request, whose data `fill` provides, to the next queue that has room; `false` if
    /// none has. It goes with the next [`Disk::flush`].
    pub(super) fn add(
        &mut self,
        request: Request,
        token: u64,
        cut: Cut,
        rng: &mut fastrand::Rng,
        fill: impl FnOnce(&Area),
    ) -> bool {
        let message = self.message(&request);
        if !self.send(request, &message, token, cut, rng, fill) {
            return false;
        }
        match request.kind {
            Kind::Read => self.read.add(1, request.len),
            _ => self.written.add(1, request.len),
        }
        true
    }

    fn message(&mut self, request: &Request) -> Message {
        self.serial += 1;
        match self.language {
            Language::Blk => blk::message(request),
            Language::Scsi(unit) => scsi::message(unit, self.serial, request, self.shape.block),
        }
    }

    fn send(
        &mut self,
        request: Request,
        message: &Message,
        token: u64,
        cut: Cut,
        rng: &mut fastrand::Rng,
        fill: impl FnOnce(&Area),
    ) -> bool {
        let cut = Cut {
            extra: cut.extra.min(self.shape.segments as usize - 1),
            ..cut
        };
        let count = self.queues.requests.len();
        let room = |one: &Requests| one.has_room();
        let order = (0..count).map(|n| (self.current + n) % count);
        let found = order
            .clone()
            .find(|n| self.queues.requests.get(*n).is_some_and(room));
        let Some(queue) = found.and_then(|n| self.queues.requests.get_mut(n)) else {
            return false;
        };
        self.current = (self.current + 1) % count;
        queue.add(request, message, token, cut, rng, fill)
    }

    /// Sends what was added, and what is to be sent again.
    pub(super) fn flush(&mut self) {
        for again in std::mem::take(&mut self.again) {
            let Again {
                request,
                token,
                data,
            } = &again;
            let message = self.message(request);
            let mut rng = fastrand::Rng::with_seed(0);
            let fill = |area: &Area| drop(area.slice().write_slice(data, 0));
            if !self.send(*request, &message, *token, Cut::default(), &mut rng, fill) {
                self.again.push(again);
            }
        }
        for one in &mut self.queues.requests {
            one.queue.flush();
        }
    }

    /// Shows `each` request that came back; how many did. One that is answered with a unit attention
    /// is sent again instead.
    pub(super) fn reap(&mut self, mut each: impl FnMut(Done<'_>)) -> Result<usize, GuestError> {
        let language = self.language;
        // Before that, it is asked what there is to tell.
        let is_known = self.shape.capacity > 0;
        let again = &mut self.again;
        let before = again.len();
        let (mut count, mut wrong) = (0, None);
        for one in &mut self.queues.requests {
            count += one.reap(|answer| {
                let outcome = match language {
                    Language::Blk => blk::outcome(answer.tail.first().copied().unwrap_or(0)),
                    Language::Scsi(_) => answer.tail.first_chunk().map_or(Ok(()), scsi::outcome),
                };
                if is_known && outcome.as_ref().is_err_and(scsi::is_attention) {
                    let len = match answer.request.kind {
                        Kind::Read | Kind::Write => answer.request.len as usize,
                        _ => 0,
                    };
                    let mut data = vec![0; len];
                    answer.data.slice().copy_to(data.as_mut_slice());
                    again.push(Again {
                        request: answer.request,
                        token: answer.token,
                        data,
                    });
                    return;
                }
                if let (Ok(()), Some(fault)) = (outcome, unsaid(&answer)) {
                    wrong = Some(fault);
                }
                each((
                    answer.request,
                    answer.token,
                    answer.sent,
                    outcome,
                    answer.data,
                ));
            })?;
        }
        count -= self.again.len() - before;
        if !self.again.is_empty() {
            self.flush();
        }
        match wrong {
            None => Ok(count),
            Some(fault) => Err(fault.into()),
        }
    }

    /// Waits until something came back, the time is over, or a signal says to stop.
    pub(super) fn wait(&mut self, deadline: Instant) -> Result<Woken, GuestError> {
        let first = self.queues.others.len();
        self.tether
            .wait(deadline, &mut self.queues, |ring| ring >= first)
    }

    /// Asks one thing and waits for the answer.
    fn ask(&mut self, message: &Message) -> Result<(Result<(), Refusal>, Vec<u8>), GuestError> {
        let request = Request {
            kind: Kind::Read,
            offset: 0,
            len: message.data_in.into(),
        };
        let mut rng = fastrand::Rng::with_seed(0);
        let deadline = Instant::now() + self.timeout();
        if !self.send(request, message, 0, Cut::default(), &mut rng, |_| {}) {
            return Err(GuestError::NoMemory);
        }
        self.flush();
        let mut found = None;
        while found.is_none() {
            let len = message.data_in as usize;
            self.reap(|(_, _, _, outcome, data)| {
                let mut bytes = vec![0; len];
                data.slice().copy_to(bytes.as_mut_slice());
                found = Some((outcome, bytes));
            })?;
            if found.is_none() {
                match self.wait(deadline)? {
                    Woken::Late => return Err(Fault::Silent(self.timeout().as_secs()).into()),
                    Woken::Stopped => return Err(GuestError::Interrupted),
                    Woken::Ready | Woken::Reconnected => {}
                }
            }
        }
        found.ok_or(GuestError::Interrupted)
    }

    fn scsi_shape(&mut self, unit: scsi::Unit) -> Result<Shape, GuestError> {
        let no_disk = |why: String| GuestError::NoDisk {
            target: unit.target,
            lun: unit.lun,
            why,
        };
        // There may be news of several kinds, each told once.
        for _ in 0..8 {
            match self.ask(&scsi::command(unit, 0, &scsi::READY, 0, 0))?.0 {
                Err(refusal) if scsi::is_attention(&refusal) => {}
                Err(refusal) => return Err(no_disk(refusal.to_string())),
                Ok(()) => break,
            }
        }
        let mut answers = Vec::new();
        for (cdb, len) in [
            (&scsi::CAPACITY[..], 32),
            (&scsi::inquire(scsi::LIMITS)[..], 64),
            (&scsi::inquire(scsi::PROVISIONING)[..], 64),
        ] {
            let (outcome, bytes) = self.ask(&scsi::command(unit, 0, cdb, 0, len))?;
            answers.push(match outcome {
                // Pages are as long as they are.
                Ok(()) | Err(Refusal::Short(_)) => bytes,
                Err(refusal) if len == 32 => return Err(no_disk(refusal.to_string())),
                Err(_) => vec![0; len as usize],
            });
        }
        let shape = match answers.as_slice() {
            [capacity, limits, pages] => scsi::shape(capacity, limits, pages),
            _ => None,
        };
        shape.ok_or_else(|| {
            no_disk("it says no capacity in blocks of 512 to 4096 bytes, a power of two".to_owned())
        })
    }

    /// Stops the rings and hangs up.
    pub(super) fn stop(self) -> Result<(), GuestError> {
        self.tether.stop(&self.queues)
    }
}

/// Before a disk was asked.
const UNKNOWN: Shape = Shape {
    capacity: 0,
    block: 512,
    segments: u32::MAX,
    transfer: 0,
    discard: 0,
    zeroes: 0,
    flush: false,
    read_only: true,
};

fn blk_shape(link: &mut Link) -> Result<Shape, GuestError> {
    let space = link.config(blk::CONFIG)?;
    let shape = space
        .as_deref()
        .and_then(|space| blk::shape(link.features, space));
    shape.ok_or_else(|| GuestError::NoSpace(space.map_or(0, |space| space.len())))
}

/// An answer that says that all is done, and not to have written all of it.
fn unsaid(answer: &Answer<'_>) -> Option<Fault> {
    let least = match answer.request.kind {
        Kind::Read => answer.request.len + answer.tail.len() as u64,
        _ => answer.tail.len() as u64,
    };
    (u64::from(answer.written) < least).then(|| Fault::Unsaid {
        request: answer.request.to_string(),
        found: answer.written,
        least,
    })
}
