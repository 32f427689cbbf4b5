//! The device's inside: connection, messages in both directions, queues. Whoever holds the lock
//! acts, a register access or the model's thread; nothing here waits for anybody.

use std::os::fd::OwnedFd;
use std::sync::MutexGuard;

use rustix::event::epoll::{self, EventData, EventFlags};
use virtio_queue::QueueT;

use super::kicks::{self, Bell};
use super::link::{Action, LinkEvent, LinkState};
use super::messages::{self, Duty, Refusal};
use super::queues::{DeviceQueue, Dma, QueueError};
use super::shape::Dialect;
use super::status::Counters;
use super::window::Placement;
use super::{NO_VECTOR, SOCKET, Shared, device_status as status, feature};
use crate::notify::claim_eventfd;
use crate::protocol::{Message, ProtocolFeatures, Reply, Request};
use crate::socket::{Gone, Incoming, Received, SendError, Wire};

/// Bits of the link's status register.
const BACKEND_UP: u32 = 1;
const FRONTEND_UP: u32 = 2;

/// Messages that are dealt with before somebody else may have the lock.
const BUDGET: usize = 64;

/// Where a region's window offset goes in a SET_MEM_TABLE: behind 8 bytes, in each 32 the last 8.
const FIRST_OFFSET: usize = 8 + 24;
const REGION_LEN: usize = 32;

/// The way from the front-end to the driver.
#[derive(Debug)]
pub(super) enum Rx {
    /// Free: the socket is read.
    Read,
    /// This message was acted upon and waits for a buffer of the driver's.
    Deliver(Message),
    /// This one was refused, and the refusal waits for the answers that are due before it.
    Refuse(u32),
}

/// A message on its way to the front-end.
#[derive(Debug)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    /// The driver's buffer that it came in.
    head: Option<u16>,
}

/// Everything that changes.
#[derive(Debug)]
pub(super) struct State {
    pub(super) device_status: u8,
    pub(super) feature_select: [u32; 2],
    pub(super) driver_features: u64,
    pub(super) config_vector: u16,
    pub(super) config_generation: u8,
    pub(super) isr: u8,
    pub(super) queue_select: u16,
    pub(super) queues: [DeviceQueue; 2],
    pub(super) dma: Dma,

    pub(super) link: LinkState,
    /// What the driver wrote, which is what crosvm's device shows.
    written: u32,
    /// An empty rx buffer is due: crosvm's way to say that the front-end is gone.
    farewell: bool,
    pub(super) generation: u32,
    wire: Option<Wire>,
    /// What the socket is watched for.
    watched: EventFlags,
    /// A connection was dropped; whether it had brought anything.
    pub(super) dropped: Option<bool>,
    rx: Rx,
    tx: Option<Outgoing>,
    protocol_features: ProtocolFeatures,
    /// Answers that the front-end waits for.
    owed: u32,

    pub(super) counters: Counters,
    pub(super) last_refusal: Option<String>,
}

impl State {
    pub(super) fn new(queues: [DeviceQueue; 2]) -> Self {
        Self {
            device_status: 0,
            feature_select: [0; 2],
            driver_features: 0,
            config_vector: NO_VECTOR,
            config_generation: 0,
            isr: 0,
            queue_select: 0,
            queues,
            dma: Dma::new(),
            link: LinkState::Initial,
            written: 0,
            farewell: false,
            generation: 0,
            wire: None,
            watched: EventFlags::empty(),
            dropped: None,
            rx: Rx::Read,
            tx: None,
            protocol_features: ProtocolFeatures::empty(),
            owed: 0,
            counters: Counters::default(),
            last_refusal: None,
        }
    }

    pub(super) fn has_connection(&self) -> bool {
        self.wire.is_some()
    }

    /// Whether queues may be touched.
    fn is_running(&self) -> bool {
        self.device_status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    fn is_connected(&self) -> bool {
        self.link == LinkState::Connected
    }
}

/// The state, held, and what it acts on.
#[derive(Debug)]
pub(super) struct Locked<'a> {
    pub(super) shared: &'a Shared,
    pub(super) state: MutexGuard<'a, State>,
}

/// Connection.
impl Locked<'_> {
    /// The link's status register.
    pub(super) fn link_status(&self) -> u32 {
        if self.shared.shape.is_crosvm() {
            return self.state.written;
        }
        match self.state.link {
            LinkState::Initial | LinkState::Open => 0,
            LinkState::Served => BACKEND_UP,
            LinkState::Connected => BACKEND_UP | FRONTEND_UP,
        }
    }

    /// The driver writes the device configuration. Only bit 0 of the status is its own.
    pub(super) fn write_device_config(&mut self, offset: u64, data: &[u8]) {
        let Some(byte) = data.first().filter(|_| offset == 0) else {
            return;
        };
        if self.state.device_status & status::NEEDS_RESET != 0 {
            return;
        }
        let up = u32::from(*byte) & BACKEND_UP != 0;
        self.state.written = u32::from(up);
        if up && !self.state.link.has_driver() {
            // What the last front-end left there may be looked at until now.
            self.shared.window.clear();
        }
        self.on(match up {
            true => LinkEvent::DriverUp,
            false => LinkEvent::DriverDown,
        });
    }

    /// A front-end is there.
    pub(super) fn opened(&mut self, wire: Wire) {
        let data = EventData::new_u64(SOCKET);
        self.state.watched = EventFlags::RDHUP;
        if let Err(errno) = epoll::add(&self.shared.epoll, wire.fd(), data, EventFlags::RDHUP) {
            tracing::error!(%errno, "cannot watch a front-end's socket");
            self.state.dropped = Some(false);
            return;
        }
        self.state.wire = Some(wire);
        self.on(LinkEvent::Opened);
    }

    /// Something happened: goes through the table and does what it says.
    fn on(&mut self, event: LinkEvent) {
        let (next, action) = self.state.link.on(event);
        match action {
            Action::Begin => {
                // What the driver sent to an earlier front-end is not for this one.
                self.drain();
                if self.state.device_status & status::NEEDS_RESET != 0 {
                    self.state.link = LinkState::Open;
                } else {
                    self.state.link = next;
                    self.begin();
                }
            }
            Action::Nothing => {
                self.state.link = next;
                if event == LinkEvent::Closed {
                    self.hang_up();
                }
            }
            Action::EndTold | Action::EndSilent => {
                self.state.link = next;
                self.end(action == Action::EndTold);
            }
        }
        self.watch();
    }

    fn begin(&mut self) {
        let state = &mut *self.state;
        state.rx = Rx::Read;
        state.protocol_features = ProtocolFeatures::empty();
        state.owed = 0;
        state.generation = state.generation.wrapping_add(1);
        tracing::debug!(generation = state.generation, "a front-end is connected");
        if !self.shared.shape.is_crosvm() {
            self.config_changed();
        }
    }

    /// Leaves nothing of the front-end's but its memory, which the driver may be looking at.
    fn end(&mut self, told: bool) {
        self.state.rx = Rx::Read;
        if let Some(Outgoing {
            head: Some(head), ..
        }) = self.state.tx.take()
        {
            self.give_back(1, head, 0);
        }
        self.shared.kicks.drop_all();
        self.hang_up();
        self.drain();
        if told && self.shared.shape.is_crosvm() {
            self.state.farewell = true;
            self.deliver();
        } else if told {
            self.config_changed();
        }
    }

    /// Closing takes the socket out of what is watched.
    fn hang_up(&mut self) {
        if let Some(wire) = self.state.wire.take() {
            self.state.dropped = Some(wire.heard());
            self.shared.wake();
        }
    }

    /// Looks for what can be dealt with now, and nothing else.
    fn watch(&mut self) {
        let state = &mut *self.state;
        let Some(wire) = &state.wire else { return };
        let mut wanted = EventFlags::RDHUP;
        if state.link == LinkState::Connected {
            let read = matches!(state.rx, Rx::Read);
            wanted.set(EventFlags::IN, read);
            wanted.set(EventFlags::OUT, state.tx.is_some());
        }
        if wanted == state.watched {
            return;
        }
        let data = EventData::new_u64(SOCKET);
        match epoll::modify(&self.shared.epoll, wire.fd(), data, wanted) {
            Ok(()) => state.watched = wanted,
            Err(errno) => tracing::error!(%errno, "cannot watch a front-end's socket"),
        }
    }

    /// Takes the device back to where it began; a front-end that waits goes on waiting.
    pub(super) fn reset(&mut self) {
        let state = &mut *self.state;
        state.device_status = 0;
        state.feature_select = [0; 2];
        state.driver_features = 0;
        state.config_vector = NO_VECTOR;
        state.isr = 0;
        state.queue_select = 0;
        state.written = 0;
        state.farewell = false;
        for queue in &mut state.queues {
            queue.reset();
        }
        if let Some(outgoing) = &mut state.tx {
            outgoing.head = None;
        }
        self.on(LinkEvent::Reset);
        self.shared.window.clear();
        self.shared.kicks.reset();
    }

    /// The configuration changed; nobody hears of it before DRIVER_OK.
    fn config_changed(&mut self) {
        if self.state.device_status & status::DRIVER_OK == 0 {
            return;
        }
        self.state.isr |= 2;
        self.state.config_generation = self.state.config_generation.wrapping_add(1);
        self.interrupt(self.state.config_vector);
    }

    fn interrupt(&mut self, vector: u16) {
        if self.shared.kicks.fire(vector) {
            self.state.counters.interrupts += 1;
        }
    }

    fn complain(&mut self, what: String) {
        tracing::debug!(what, "refused");
        self.state.last_refusal = Some(what);
    }

    fn violation(&mut self, event: LinkEvent, what: String) {
        self.state.counters.violations += 1;
        self.complain(what);
        self.on(event);
    }

    /// The driver's queues make no sense: only a reset helps.
    fn broken(&mut self, queue: usize, error: &QueueError) {
        let name = if queue == 0 { "rxq" } else { "txq" };
        self.state.counters.broken += 1;
        self.complain(format!("{name}: {error}"));
        self.state.device_status |= status::NEEDS_RESET;
        self.on(LinkEvent::Broken);
        self.config_changed();
    }
}

/// Messages of the front-end's.
impl Locked<'_> {
    /// Something is to be done at the socket.
    pub(super) fn socket_ready(&mut self, flags: EventFlags) {
        let over = EventFlags::HUP | EventFlags::RDHUP | EventFlags::ERR;
        if !self.state.is_connected() {
            if flags.intersects(over) {
                self.on(LinkEvent::Closed);
            }
            return;
        }
        if flags.contains(EventFlags::OUT) {
            self.transmit();
        }
        // What was said before hanging up is heard, if there is room for it.
        let free = matches!(self.state.rx, Rx::Read);
        match free {
            true => self.receive(),
            false if flags.intersects(over) => self.on(LinkEvent::Closed),
            false => {}
        }
    }

    fn receive(&mut self) {
        for _ in 0..BUDGET {
            let state = &mut *self.state;
            let (true, Rx::Read, Some(wire)) = (state.is_connected(), &state.rx, &mut state.wire)
            else {
                break;
            };
            match wire.receive() {
                Ok(Received::Message(incoming)) => self.incoming(incoming),
                Ok(Received::Nothing) => break,
                Err(Gone::Closed) => self.on(LinkEvent::Closed),
                Err(Gone::Violation(what)) => self.violation(LinkEvent::FrontEndViolation, what),
                Err(Gone::Failed(what)) => {
                    self.complain(what);
                    self.on(LinkEvent::Closed);
                }
            }
        }
        self.watch();
    }

    fn incoming(&mut self, incoming: Incoming) {
        let Incoming {
            mut message,
            attached,
        } = incoming;
        let request = message.request;
        let broken = messages::check_flags(&message).err();
        let refusal = match broken {
            None => self.act(&mut message, attached).err(),
            Some(refusal) => {
                let what = format!("the front-end's {request}: {refusal}");
                return self.violation(LinkEvent::FrontEndViolation, what);
            }
        };
        let Some(refusal) = refusal else {
            self.state.rx = Rx::Deliver(message);
            return self.deliver();
        };
        let what = format!("{} ({request}): {refusal}", messages::name(request));
        if self.wants_answer(&message) && !messages::has_answer(request) {
            self.complain(what);
            self.state.rx = Rx::Refuse(request);
            self.transmit();
        } else {
            self.violation(LinkEvent::FrontEndViolation, what);
        }
    }

    /// Whether the front-end waits for the outcome of this message.
    fn wants_answer(&self, message: &Message) -> bool {
        let acked = self.state.protocol_features;
        message.needs_reply() && acked.contains(ProtocolFeatures::REPLY_ACK)
    }

    /// Does what is the device's part of a message, before the driver sees it. Descriptors that
    /// nobody takes are closed.
    fn act(&mut self, message: &mut Message, mut fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        let rings = self.shared.shape.usable_rings();
        messages::check(message, &fds, rings)?;
        match messages::duty(message.request) {
            Duty::Pass | Duty::Never => Ok(()),
            Duty::MemTable => self.show(message, fds),
            Duty::StopKick => {
                // The index was checked to be below `rings`, which is at most 256.
                let ring = message.payload.first().copied().unwrap_or_default();
                self.shared.kicks.set_kick(ring, None);
                Ok(())
            }
            Duty::Mask => {
                let Request::SetProtocolFeatures(bits) = messages::parse(message)? else {
                    return Ok(());
                };
                let passed = ProtocolFeatures::from_bits_retain(bits) & messages::PASSED;
                self.state.protocol_features = passed;
                message.payload = passed.bits().to_le_bytes().to_vec();
                Ok(())
            }
            Duty::VringFd => {
                let request = messages::parse(message)?;
                let (Request::SetVringKick(vring)
                | Request::SetVringCall(vring)
                | Request::SetVringErr(vring)) = request
                else {
                    return Ok(());
                };
                messages::check_ring(vring.index.into(), rings)?;
                let expected = usize::from(!vring.nofd);
                if fds.len() != expected {
                    return Err(Refusal::Fds {
                        found: fds.len(),
                        expected,
                    });
                }
                let fd = fds.pop();
                if let Some(fd) = &fd {
                    let claimed = claim_eventfd(std::os::fd::AsFd::as_fd(fd));
                    claimed.map_err(Refusal::NotEvent)?;
                }
                let kicks = &self.shared.kicks;
                match request {
                    Request::SetVringKick(_) => kicks.set_kick(vring.index, fd),
                    Request::SetVringCall(_) => kicks.set_bell(Bell::Call, vring.index, fd),
                    _ => kicks.set_bell(Bell::Err, vring.index, fd),
                }
                Ok(())
            }
        }
    }

    fn show(&mut self, message: &mut Message, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        let Request::SetMemTable(regions) = messages::parse(message)? else {
            return Ok(());
        };
        if fds.len() != regions.len() {
            return Err(Refusal::Fds {
                found: fds.len(),
                expected: regions.len(),
            });
        }
        let told = self.state.driver_features & feature::LAYOUT != 0;
        let placement = match self.shared.shape.dialect {
            _ if told => Placement::Told,
            Dialect::Crosvm => Placement::Packed,
            Dialect::Ours | Dialect::Prototype => Placement::Whole,
        };
        let starts = self.shared.window.show(&regions, fds, placement)?;
        if told {
            for (index, start) in starts.into_iter().enumerate() {
                let at = FIRST_OFFSET + REGION_LEN * index;
                let field = message.payload.get_mut(at..at + 8);
                if let Some(field) = field {
                    field.copy_from_slice(&start.to_le_bytes());
                }
            }
        }
        Ok(())
    }

    /// Gives what waits to the driver, if there is a buffer for it.
    pub(super) fn deliver(&mut self) {
        if !self.state.is_running() {
            return;
        }
        let bytes = match &self.state.rx {
            _ if self.state.farewell => Vec::new(),
            Rx::Deliver(message) if self.state.is_connected() => message.to_bytes(),
            _ => return,
        };
        match self.put(&bytes) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return self.broken(0, &error),
        }
        if std::mem::take(&mut self.state.farewell) {
            return self.deliver();
        }
        if let Rx::Deliver(message) = std::mem::replace(&mut self.state.rx, Rx::Read) {
            let answered = messages::has_answer(message.request) || self.wants_answer(&message);
            self.state.owed += u32::from(answered);
            self.state.counters.delivered += 1;
        }
        self.watch();
    }

    /// Puts bytes into a buffer of the driver's; whether there was one.
    fn put(&mut self, bytes: &[u8]) -> Result<bool, QueueError> {
        let State { queues, dma, .. } = &mut *self.state;
        let [rx, _] = queues;
        let Some(buffer) = rx.take(dma, true)? else {
            return Ok(false);
        };
        buffer.write(dma, bytes)?;
        self.give_back(0, buffer.head, bytes.len() as u32);
        Ok(true)
    }

    /// Returns a buffer and tells the driver if it wants to know.
    fn give_back(&mut self, index: usize, head: u16, len: u32) {
        let State { queues, dma, .. } = &mut *self.state;
        let Some(queue) = queues.get_mut(index).filter(|queue| queue.queue.ready()) else {
            return;
        };
        match queue.give(dma, head, len) {
            Ok(true) => {
                let vector = queue.vector;
                self.state.isr |= 1;
                self.interrupt(vector);
            }
            Ok(false) => {}
            Err(error) => self.broken(index, &error),
        }
    }
}

/// Messages of the driver's.
impl Locked<'_> {
    /// The driver says that there is something in a queue.
    pub(super) fn notified(&mut self, queue: u64) {
        match queue {
            0 => self.deliver(),
            1 => self.transmit(),
            _ => {}
        }
    }

    /// Takes what is in txq: to the front-end if there is one, else to nobody. Then refuses what
    /// waited for those answers.
    pub(super) fn transmit(&mut self) {
        for _ in 0..BUDGET {
            if !self.flush() {
                return self.watch();
            }
            if let (Rx::Refuse(request), 0) = (&self.state.rx, self.state.owed) {
                let bytes = Reply::U64(1).to_message(*request).to_bytes();
                self.state.rx = Rx::Read;
                self.state.counters.refused += 1;
                self.send(bytes, None);
                continue;
            }
            if !self.take_one() {
                return self.watch();
            }
        }
        // A driver that never ends must not keep others from the lock.
        self.shared.wake();
        self.watch();
    }

    /// Discards what is in txq, nobody being there. What a driver adds meanwhile it can only
    /// blame itself for.
    fn drain(&mut self) {
        let [_, tx] = &self.state.queues;
        for _ in 0..2 * u32::from(tx.queue.size()) {
            if !self.take_one() {
                return;
            }
        }
    }

    fn send(&mut self, bytes: Vec<u8>, head: Option<u16>) {
        self.state.tx = Some(Outgoing {
            bytes,
            sent: 0,
            head,
        });
    }

    /// Writes what is left of a message, as far as the socket takes it; whether all of it went.
    fn flush(&mut self) -> bool {
        let state = &mut *self.state;
        while let (Some(tx), Some(wire)) = (&mut state.tx, &mut state.wire) {
            let rest = tx.bytes.get(tx.sent..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            match wire.send_some(rest) {
                Ok(0) => return false,
                Ok(sent) => tx.sent += sent,
                Err(error) => {
                    if let SendError::Failed(what) = error {
                        self.complain(what);
                    }
                    self.on(LinkEvent::SendFailed);
                    return false;
                }
            }
        }
        if let Some(tx) = state.tx.take() {
            state.owed = state.owed.saturating_sub(1);
            state.counters.sent += 1;
            if let Some(head) = tx.head {
                self.give_back(1, head, 0);
            }
        }
        true
    }

    /// Takes a message out of txq; `false` if there is none, or nothing more to be done.
    fn take_one(&mut self) -> bool {
        if !self.state.is_running() {
            return false;
        }
        let connected = self.state.is_connected();
        let State { queues, dma, .. } = &mut *self.state;
        let [_, tx] = queues;
        let buffer = match tx.take(dma, false) {
            Ok(Some(buffer)) => buffer,
            Ok(None) => return false,
            Err(error) => {
                self.broken(1, &error);
                return false;
            }
        };
        if !connected {
            self.state.counters.discarded += 1;
            self.give_back(1, buffer.head, 0);
            return true;
        }
        let bytes = match buffer.len {
            len if len > messages::MAX_OUTGOING => Err(format!("the driver sent {len} bytes")),
            _ => match buffer.read(dma) {
                Ok(bytes) => messages::outgoing(bytes, self.shared.shape.rings),
                Err(error) => {
                    self.broken(1, &error);
                    return false;
                }
            },
        };
        match bytes {
            Ok(Some(bytes)) => self.send(bytes, Some(buffer.head)),
            Ok(None) => {
                self.state.counters.discarded += 1;
                self.give_back(1, buffer.head, 0);
            }
            Err(what) => {
                self.give_back(1, buffer.head, 0);
                self.violation(LinkEvent::DriverViolation, what);
            }
        }
        true
    }
}

/// Wakes the model's thread.
impl Shared {
    pub(super) fn wake(&self) {
        kicks::signal(std::os::fd::AsFd::as_fd(&self.wake));
    }
}
