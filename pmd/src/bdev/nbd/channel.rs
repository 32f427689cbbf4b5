//! Requests on a link: which are in flight, how long they may take, and what becomes of them when
//! the link is lost.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Shared;
use super::error::NbdError;
use super::flight::{Flight, Slot};
use super::link::{Link, Look};
use super::negotiation::Export;
use super::replies::Replies;
use super::wire::{self, transmission};
use crate::bdev::timer::Timer;
use crate::bdev::{Channel, Done, IoError, Op, Request, bytes};
use crate::wake::Quiet;

/// Most requests that a server is asked before it has answered the first of them.
const MOST_ASKED: usize = 128;

/// How much is put together before it is sent, in bytes.
const OUTPUT: usize = 256 << 10;

/// How much is received in one go, so that other disks get their turn, in bytes.
const BUDGET: usize = 4 << 20;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct NbdChannel {
    shared: Arc<Shared>,
    link: Link,
    /// What the link goes to, while it is up.
    export: Export,
    replies: Replies,
    flight: Flight,
    /// Since when the link is down.
    lost: Option<Instant>,
    /// Since it was up last, a loss was counted...
    counted: bool,
    /// ...and told to people.
    told: bool,
    /// More came than was looked at.
    more: bool,
    numbers: u64,
    serial: u32,
    /// When to look for requests whose time is up.
    check: Instant,
    timer: Timer,
}

impl NbdChannel {
    /// On `first`, which is up, or on a link that has to be made.
    pub(super) fn new(
        shared: Arc<Shared>,
        first: Option<(Link, Export)>,
    ) -> Result<Self, NbdError> {
        let now = Instant::now();
        let up = first.is_some();
        let (link, export) = match first {
            Some(first) => first,
            None => (Link::new(&shared.config, &shared.addresses)?, shared.export),
        };
        let timer = Timer::new().map_err(|source| NbdError::Io {
            what: "no timer",
            source,
        })?;
        let mut channel = Self {
            shared,
            link,
            export,
            replies: Replies::new(export.structured),
            flight: Flight::default(),
            lost: (!up).then_some(now),
            counted: false,
            told: false,
            more: false,
            numbers: 0,
            serial: 0,
            check: now,
            timer,
        };
        channel.begin(export);
        Ok(channel)
    }

    /// The link is up.
    fn begin(&mut self, export: Export) {
        self.export = export;
        self.replies = Replies::new(export.structured);
        self.flight.flush_for_fua =
            !export.has(transmission::FUA) && export.has(transmission::FLUSH);
    }

    /// Does what there is to do now.
    fn pump(&mut self, now: Instant) {
        if !self.link.is_up() {
            match self.link.look(now) {
                Look::Same => {}
                Look::Up(export) => self.up(export, now),
                Look::Lost(error) => self.down(&error, now),
            }
        }
        if self.link.is_up()
            && let Err(error) = self.exchange()
        {
            self.lose(error, now);
        }
        if now >= self.check {
            self.look_for_overdue(now);
        }
    }

    fn up(&mut self, export: Export, now: Instant) {
        let disk = &self.shared.name;
        if let Err(error) = self.shared.check(&export) {
            self.counted = false;
            return self.lose(error, now);
        }
        if std::mem::take(&mut self.told) {
            tracing::info!(disk, "the server is back");
        }
        self.counted = false;
        self.lost = None;
        let size = self.shared.whole(export.size);
        if size != self.shared.size.get() {
            // Whoever hears of it may take long, so it is not for a worker's thread.
            let shared = Arc::clone(&self.shared);
            let told = std::thread::Builder::new()
                .name("resized".into())
                .spawn(move || shared.size.set(size));
            if let Err(error) = told {
                tracing::error!(disk, %error, "cannot tell that the size is another one now");
            }
        }
        self.begin(export);
    }

    fn lose(&mut self, error: NbdError, now: Instant) {
        if let Look::Lost(error) = self.link.lose(error, now) {
            self.down(&error, now);
        }
    }

    /// The link is down: whatever was asked shall be asked again.
    fn down(&mut self, error: &NbdError, now: Instant) {
        if !std::mem::replace(&mut self.counted, true) {
            let losses = self.shared.losses.fetch_add(1, Ordering::Relaxed) + 1;
            // A server that comes and goes must not fill the log.
            if losses.is_power_of_two() {
                self.told = true;
                let disk = &self.shared.name;
                tracing::warn!(disk, losses, %error, "no connection to the server, trying again");
            }
        }
        self.lost.get_or_insert(now);
        self.more = false;
        self.flight.writing = None;
        let flight = &mut self.flight;
        flight.asked = 0;
        let mut again: Vec<_> = flight
            .slots
            .iter_mut()
            .map(|(token, slot)| {
                // From the start: what was done on a lost connection may be lost, too, before the
                // flush that was to follow.
                (slot.command, slot.at, slot.flushing) = (None, 0, false);
                (slot.number, token)
            })
            .collect();
        again.sort_unstable();
        flight.waiting.clear();
        flight.waiting.extend(again.iter().map(|(_, token)| token));
    }

    /// Sends and receives what goes and comes now.
    fn exchange(&mut self) -> Result<(), NbdError> {
        self.more = false;
        let mut budget = BUDGET;
        loop {
            self.send()?;
            if self.flight.asked == 0 && budget < BUDGET {
                return Ok(());
            }
            if !self.link.receive()? {
                return Ok(());
            }
            let came = self.link.input.data();
            let used = self.replies.feed(came, &mut self.flight)?;
            self.link.input.consume(used);
            budget = budget.saturating_sub(used);
            if budget == 0 {
                self.more = true;
                return Ok(());
            }
        }
    }

    /// Puts requests into the output and sends them, as many as go.
    fn send(&mut self) -> Result<(), NbdError> {
        loop {
            while self.link.unsent() < OUTPUT && self.put() {}
            self.link.send()?;
            let more = self.flight.writing.is_some() || !self.flight.waiting.is_empty();
            if self.link.unsent() > 0 || !more || self.flight.asked >= MOST_ASKED {
                return Ok(());
            }
        }
    }

    /// Puts a request, or a part of what is written, into the output. False if there is none.
    fn put(&mut self) -> bool {
        if let Some((token, at)) = self.flight.writing {
            self.put_data(token, at);
            return true;
        }
        if self.flight.asked >= MOST_ASKED {
            return false;
        }
        let Some(token) = self.flight.waiting.pop_front() else {
            return false;
        };
        let Some(slot) = self.flight.slots.get_mut(token) else {
            return true;
        };
        self.serial = self.serial.wrapping_add(1);
        slot.serial = self.serial;
        let (op, command) = slot.next(&self.export, self.shared.block());
        let fua = slot.request.fua
            && self.export.has(transmission::FUA)
            && matches!(op, Op::Write | Op::WriteZeroes { .. });
        let handle = u64::from(slot.serial) << 32 | token;
        let header = wire::request(op, fua, handle, command.offset, command.len);
        slot.command = Some(command);
        self.flight.asked += 1;
        self.link.out.extend(header);
        if op == Op::Write {
            self.flight.writing = Some((token, 0));
        }
        true
    }

    /// Puts a part of what `token` writes, from `at` of its command on, into the output.
    fn put_data(&mut self, token: u64, at: u32) {
        self.flight.writing = None;
        let Some(slot) = self.flight.slots.get_mut(token) else {
            return;
        };
        let (Some(command), Some(data)) = (&slot.command, &slot.request.data) else {
            return;
        };
        let out = &mut self.link.out;
        let now = (command.len - at).min(OUTPUT as u32);
        let start = out.len();
        out.resize(start + now as usize, 0);
        if let Some(room) = out.get_mut(start..) {
            bytes::read_at(data, slot.at + u64::from(at), room);
        }
        if at + now < command.len {
            self.flight.writing = Some((token, at + now));
        }
    }

    /// Ends the requests whose time is up, and the connection that kept one waiting for so long.
    fn look_for_overdue(&mut self, now: Instant) {
        let timeout = self.shared.config.timeout;
        self.check = now + (timeout / 16).clamp(Duration::from_millis(10), Duration::from_secs(1));
        let overdue: Vec<_> = self
            .flight
            .slots
            .iter_mut()
            .filter(|(_, slot)| slot.until <= now)
            .map(|(token, _)| token)
            .collect();
        if overdue.is_empty() {
            return;
        }
        let (up, error) = match self.link.is_up() {
            true => (true, IoError::Timeout),
            false => (false, IoError::Gone),
        };
        let flight = &mut self.flight;
        for token in overdue {
            flight.finish(token, Err(error));
        }
        // Their places are taken by others soon.
        let slots = &mut flight.slots;
        flight
            .waiting
            .retain(|token| slots.get_mut(*token).is_some());
        // Also forgets what was asked.
        if up {
            self.lose(NbdError::Silent(timeout.as_secs()), now);
        }
    }

    /// Whether the server was away for longer than anybody should wait.
    fn is_gone(&self, now: Instant) -> bool {
        let gone =
            |since: Instant| now.saturating_duration_since(since) >= self.shared.config.timeout;
        self.lost.is_some_and(gone)
    }
}

impl Channel for NbdChannel {
    fn submit(&mut self, requests: &mut Vec<Request>) {
        if requests.is_empty() {
            return;
        }
        let now = Instant::now();
        let (size, block) = (self.shared.size.get(), self.shared.block());
        let gone = self.is_gone(now);
        for request in requests.drain(..) {
            let export = &self.export;
            let known = match request.op {
                Op::Read => true,
                Op::Write | Op::Flush => true,
                Op::Discard => export.has(transmission::TRIM),
                Op::WriteZeroes { .. } => export.has(transmission::WRITE_ZEROES),
            };
            let writes = !matches!(request.op, Op::Read | Op::Flush);
            let refused = match request.check(size, block) {
                Err(error) => Some(Err(error)),
                Ok(()) if writes && export.has(transmission::READ_ONLY) => {
                    Some(Err(IoError::ReadOnly))
                }
                Ok(()) if !known => Some(Err(IoError::Unsupported)),
                Ok(()) if gone => Some(Err(IoError::Gone)),
                Ok(()) if request.op == Op::Flush && !export.has(transmission::FLUSH) => {
                    Some(Ok(()))
                }
                Ok(()) if request.op != Op::Flush && request.len == 0 => Some(Ok(())),
                Ok(()) => None,
            };
            if let Some(result) = refused {
                self.flight.done.push(request.done(result));
                continue;
            }
            self.numbers += 1;
            let token = self.flight.slots.put(Slot {
                request,
                until: now + self.shared.config.timeout,
                number: self.numbers,
                at: 0,
                command: None,
                flushing: false,
                serial: 0,
            });
            self.flight.waiting.push_back(token);
        }
        if self.link.is_up()
            && let Err(error) = self.send()
        {
            self.lose(error, now);
        }
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        // An idle connection is looked at when the worker goes to sleep.
        if self.flight.slots.len() > 0 || !self.link.is_up() {
            self.pump(Instant::now());
        }
        done.append(&mut self.flight.done);
    }

    fn in_flight(&self) -> usize {
        self.flight.slots.len() + self.flight.done.len()
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.link.fd(), self.timer.fd()]
    }

    fn arm(&mut self) -> Quiet {
        // In this order: what comes after the look is told.
        self.link.settle();
        let now = Instant::now();
        self.pump(now);
        if self.more || !self.flight.done.is_empty() {
            return Quiet::Busy;
        }
        let check = (self.flight.slots.len() > 0).then_some(self.check);
        if let Some(next) = check.into_iter().chain(self.link.next()).min() {
            self.timer.set(next, now);
        }
        Quiet::Kicked
    }
}

impl Drop for NbdChannel {
    fn drop(&mut self) {
        self.shared.channels.fetch_sub(1, Ordering::SeqCst);
    }
}
