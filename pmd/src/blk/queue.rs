//! A request queue in service.

use std::sync::Arc;
use std::time::Instant;

use vvu::memory::MemTable;
use vvu::notify::{Call, Kick};
use vvu::virtio::Vring;

use super::face::Face;
use super::request::{self, Extent, Parsed, Ranges, Status};
use super::slots::{self, Lists, Slots, Started};
use super::stats;
use crate::bdev::{Channel, DiskError, Done, Op, Request};
use crate::queue::StorageQueue;
use crate::stats::RingState;
use crate::stats::latency::Ages;
use crate::vring::{
    AnyRing, Chain, Format, Moved, Ring, RingError, RingOf, SetupError, Taken, with,
};
use crate::wake::{Kicks, Mode, Quiet, Rest, Waker, Watch};

/// Most chains taken at once.
const BURST: usize = 64;

/// Most requests of one queue that can be in flight.
const MAX_DEPTH: u16 = 1024;

/// A ring made ready to be served, by whoever has time for it.
#[derive(Debug)]
pub struct Prepared(Queue);

/// Why a queue cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The ring cannot be.
    #[error(transparent)]
    Ring(#[from] SetupError),
    /// The disk has no channel for it.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Prepared {
    /// Checks the ring, opens a channel of the disk, and lets both wake the sleeper of `waker`.
    pub fn new(vring: Vring, face: Arc<Face>, waker: &Arc<Waker>) -> Result<Self, PrepareError> {
        let (index, enabled, features) = (vring.index, vring.enabled, vring.features);
        let slots = Slots::new(vring.size.min(MAX_DEPTH), &vring.memory);
        let (ring, kick) = Ring::new(vring)?;
        let channel = face.disk().channel()?;
        let mut completions = Vec::new();
        for fd in channel.fds() {
            let fd = fd.try_clone_to_owned().map_err(SetupError::Kick)?;
            completions.push(waker.watch(Kick::Event(fd)).map_err(SetupError::Kick)?);
        }
        Ok(Self(Queue {
            index,
            enabled,
            broken: false,
            draining: false,
            features,
            ring,
            watch: waker.watch(kick).map_err(SetupError::Kick)?,
            rest: Rest::default(),
            work: Work {
                face,
                channel,
                slots,
                requests: Vec::with_capacity(BURST),
                done: Vec::with_capacity(BURST),
                ranges: Ranges::default(),
            },
            _completions: completions,
        }))
    }

    /// Serves it from now on.
    pub fn start(self) -> Queue {
        let queue = self.0;
        queue.set_state();
        queue
    }
}

/// What a burst needs beside the ring.
#[derive(Debug)]
struct Work {
    face: Arc<Face>,
    channel: Box<dyn Channel>,
    slots: Slots,
    requests: Vec<Request>,
    done: Vec<Done>,
    ranges: Ranges,
}

/// A request queue in service. See the [module](super).
#[derive(Debug)]
pub struct Queue {
    index: u16,
    enabled: bool,
    broken: bool,
    /// Nothing more is taken, because somebody waits for the end of what is in flight.
    draining: bool,
    features: u64,
    ring: Ring,
    watch: Watch,
    rest: Rest,
    work: Work,
    _completions: Vec<Watch>,
}

impl Queue {
    #[cold]
    fn fail(&mut self, error: RingError) {
        self.broken = true;
        let face = &self.work.face;
        if let Some(counter) = face
            .queue_stats(self.index)
            .and_then(|stats| stats.faults.get(error.reason()))
        {
            counter.add(1);
        }
        self.set_state();
        self.ring.report();
        let (disk, ring) = (face.name(), self.index);
        tracing::warn!(disk, ring, %error, "ring stopped: its driver broke it");
    }

    fn set_state(&self) {
        if let Some(stats) = self.work.face.queue_stats(self.index) {
            stats.set_state(match (self.broken, self.enabled) {
                (true, _) => RingState::Broken,
                (false, true) => RingState::Running,
                (false, false) => RingState::Disabled,
            });
        }
    }

    /// The device that the queue belongs to.
    pub fn face(&self) -> &Face {
        &self.work.face
    }

    /// Asks for kicks, because it shall not be looked at any more. False if there is something.
    fn arm(&mut self, mode: Mode) -> bool {
        let quiet = !self.takes() || !self.ring.enable_kicks();
        if quiet {
            self.rest.mode = mode;
        }
        quiet
    }

    fn disarm(&mut self) {
        self.ring.disable_kicks();
        self.rest.poll();
    }

    fn takes(&self) -> bool {
        self.enabled && !self.broken && !self.draining && self.work.slots.room() > 0
    }
}

impl StorageQueue for Queue {
    type Spare = Lists;

    #[inline]
    fn poll(&mut self) -> bool {
        let take = !self.broken
            && match self.draining {
                false => self.enabled,
                // A ring ends behind what was in flight when it began.
                true => self.ring.is_resuming(),
            };
        let (work, features, index) = (&mut self.work, self.features, self.index);
        let (taken, done) = with!(self.ring.of_format(), ring => {
            let taken = if take { work.take(ring, features, index) } else { 0 };
            let done = work.reap(ring, index);
            if taken + done > 0 {
                ring.publish();
            }
            (taken, done)
        });
        self.rest.brought = self.rest.brought.wrapping_add((taken + done) as u32);
        if take && let Some(error) = self.ring.failed() {
            self.fail(error);
        }
        taken + done > 0
    }

    fn is_polled(&self) -> bool {
        self.rest.mode == Mode::Polled
    }

    fn is_resting(&self) -> bool {
        self.rest.mode == Mode::Resting
    }

    fn rest(&mut self) {
        let look = match self.rest.mode {
            Mode::Polled => self.rest.is_due() && self.work.channel.in_flight() == 0,
            Mode::Resting => self.watch.is_polled(),
            Mode::Armed => false,
        };
        if look && !self.arm(Mode::Resting) {
            self.disarm();
        }
    }

    fn enable_kicks(&mut self) -> Quiet {
        let polled = self.watch.is_polled() && self.takes();
        if self.rest.mode == Mode::Resting && !polled {
            return Quiet::Kicked;
        }
        let disk = self.work.channel.arm();
        let ring = match self.arm(Mode::Armed) {
            false => Quiet::Busy,
            true if polled => Quiet::Polled,
            true => Quiet::Kicked,
        };
        disk.and(ring)
    }

    fn kicked(&mut self, kicks: &Kicks) {
        match self.rest.mode {
            Mode::Polled => {}
            Mode::Resting if !kicks.has(&self.watch) => {}
            // How long it has had nothing is not forgotten over a sleep.
            Mode::Armed => {
                self.ring.disable_kicks();
                self.rest.mode = Mode::Polled;
            }
            Mode::Resting => self.disarm(),
        }
    }

    fn disable_kicks(&mut self) {
        self.disarm();
    }

    fn drain(&mut self) -> usize {
        self.draining = true;
        self.work.channel.hurry();
        self.poll();
        let left = !self.broken && self.ring.is_resuming();
        self.work.channel.in_flight() + usize::from(left)
    }

    fn resume(&mut self) {
        self.draining = false;
    }

    fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
        self.set_state();
    }

    fn set_kick(&mut self, watch: Watch) -> Watch {
        std::mem::replace(&mut self.watch, watch)
    }

    fn set_call(&mut self, call: Call) -> Call {
        self.ring.set_call(call)
    }

    fn set_err(&mut self, err: Call) -> Call {
        self.ring.set_err(err)
    }

    fn spare(size: u16, memory: &Arc<MemTable>) -> Lists {
        slots::lists(size.min(MAX_DEPTH), memory)
    }

    fn set_memory(&mut self, moved: Moved, lists: Lists) -> (Moved, Lists) {
        (self.ring.set_memory(moved), self.work.slots.renew(lists))
    }

    fn base(&self) -> u32 {
        self.ring.base()
    }

    fn stopped(&self) {
        if let Some(stats) = self.work.face.queue_stats(self.index) {
            stats.set_state(RingState::Stopped);
        }
    }
}

impl Work {
    /// Takes up to a burst of chains and submits what they ask for. Returns how many there were.
    #[inline(never)]
    fn take<F: Format>(&mut self, ring: &mut RingOf<F>, features: u64, index: u16) -> usize {
        let most = self.slots.room().min(BURST);
        if most == 0 || ring.take_burst(most) == 0 {
            return 0;
        }
        let at = Instant::now();
        let write_back = self.face.is_write_back();
        let count = ring.chains().len();
        for place in 0..count {
            let Some(chain) = ring.chains().get(place).copied() else {
                break;
            };
            let (taken, ranges) = (ring.taken(), &mut self.ranges);
            let (op, extent, keep) = match request::parse(taken, &chain, features, ranges) {
                Parsed::Move(op, extent, keep) => (op, extent, keep),
                Parsed::Flush => (Op::Flush, Extent::default(), request::keep_status(&chain)),
                Parsed::Ranges => {
                    self.begin_ranges(taken, &chain, at, !write_back);
                    continue;
                }
                now => {
                    let len = self.answer(taken, &chain, &now, index);
                    ring.give_back_kept(&chain, len);
                    continue;
                }
            };
            // There is one for each chain: no more were taken.
            let Some(mut list) = self.slots.list() else {
                break;
            };
            taken.keep(&chain, keep, &mut list);
            let started = Started {
                chain,
                kind: stats::kind(op) as u8,
                parts: 1,
                failed: None,
                len: extent.len as u32,
                at,
            };
            if let Some(token) = self.slots.put(started, None) {
                self.requests.push(Request {
                    token,
                    op,
                    offset: extent.offset,
                    len: extent.len,
                    data: Some(list),
                    fua: !write_back && op == Op::Write,
                });
            }
        }
        ring.keep_all();
        if !self.requests.is_empty() {
            self.channel.submit(&mut self.requests);
        }
        count
    }

    /// A request for each range of a chain.
    #[cold]
    fn begin_ranges(&mut self, taken: &Taken, chain: &Chain, at: Instant, through: bool) {
        let Some(mut list) = self.slots.list() else {
            return;
        };
        taken.keep(chain, request::keep_status(chain), &mut list);
        let (mut parts, mut len, mut kind) = (0, 0u32, 0);
        for (op, extent) in self.ranges.iter() {
            parts += 1;
            len = len.saturating_add(u32::try_from(extent.len).unwrap_or(u32::MAX));
            kind = stats::kind(op) as u8;
        }
        let started = Started {
            chain: *chain,
            kind,
            parts,
            failed: None,
            len,
            at,
        };
        let Some(token) = self.slots.put(started, Some(list)) else {
            return;
        };
        for (op, extent) in self.ranges.iter() {
            self.requests.push(Request {
                token,
                op,
                offset: extent.offset,
                len: extent.len,
                data: None,
                fua: through,
            });
        }
    }

    /// Answers what needs no disk. Returns how many bytes were written.
    #[cold]
    fn answer(&self, taken: &Taken, chain: &Chain, what: &Parsed, index: u16) -> u32 {
        let Some(stats) = self.face.queue_stats(index) else {
            return 0;
        };
        let status = match what {
            Parsed::Id(room) => {
                request::fill(taken, chain, *room, self.face.id());
                stats.done(stats::ID, 0, 0);
                Status::Ok
            }
            Parsed::Answer(status) => {
                stats.refused.add(1);
                *status
            }
            _ => {
                stats.malformed.add(1);
                return 0;
            }
        };
        request::answer(taken, chain, status);
        chain.write_len()
    }

    /// Gives back the chains of all requests that are done, and returns how many there were.
    #[inline(never)]
    fn reap<F: Format>(&mut self, ring: &mut RingOf<F>, index: u16) -> usize {
        if self.slots.is_empty() {
            return 0;
        }
        self.channel.reap(&mut self.done);
        if self.done.is_empty() {
            return 0;
        }
        let mut ages = Ages::until(Instant::now());
        let Some(stats) = self.face.queue_stats(index) else {
            return 0;
        };
        let mut count = 0;
        for done in self.done.drain(..) {
            let Some(ended) = self.slots.done(done.token, done.result, done.data) else {
                continue;
            };
            count += 1;
            match ended.failed {
                None => {
                    let nanos = ages.nanos(ended.at);
                    stats.done(ended.kind.into(), ended.len, nanos);
                }
                Some(error) => stats.failed(error),
            }
            ring.give_back_kept(&ended.chain, ended.chain.write_len());
        }
        count
    }
}
