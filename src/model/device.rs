//! The device's inside: everything that changes, and the connection. Whoever holds the lock
//! acts, a register access or the model's thread; nothing here waits for anybody.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::MutexGuard;

use rustix::event::epoll::{self, EventData, EventFlags};

use super::channel::Channel;
use super::kicks;
use super::link::{Action, LinkEvent, LinkState};
use super::messages::Taken;
use super::queues::{DeviceQueue, Dma, QueueError};
use super::status::Counters;
use super::{NO_VECTOR, SOCKET, Shared, device_status as status, feature};
use crate::protocol::{Message, ProtocolFeatures};
use crate::socket::Wire;

/// Bits of the link's status register.
const BACKEND_UP: u32 = 1;
const FRONTEND_UP: u32 = 2;

/// Messages that are dealt with before somebody else may have the lock.
pub(super) const BUDGET: usize = 64;

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
    pub(super) bytes: Vec<u8>,
    pub(super) sent: usize,
    /// The driver's buffer that it came in.
    pub(super) head: Option<u16>,
    /// What goes with the first byte.
    pub(super) file: Option<OwnedFd>,
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
    pub(super) farewell: bool,
    pub(super) generation: u32,
    pub(super) wire: Option<Wire>,
    /// What the socket is watched for.
    watched: EventFlags,
    /// A connection was dropped; whether it had brought anything.
    pub(super) dropped: Option<bool>,
    pub(super) rx: Rx,
    pub(super) tx: Option<Outgoing>,
    pub(super) protocol_features: ProtocolFeatures,
    /// Answers that the front-end waits for.
    pub(super) owed: u32,
    /// Where it hears requests of the driver's.
    pub(super) channel: Option<Channel>,

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
            channel: None,
            counters: Counters::default(),
            last_refusal: None,
        }
    }

    pub(super) fn has_connection(&self) -> bool {
        self.wire.is_some()
    }

    /// Whether queues may be touched.
    pub(super) fn is_running(&self) -> bool {
        self.device_status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    /// What the driver takes.
    pub(super) fn taken(&self) -> Taken {
        let has = |bit| self.driver_features & bit != 0;
        Taken {
            inflight: has(feature::INFLIGHT),
            channel: has(feature::BACKEND_CH),
        }
    }

    pub(super) fn is_connected(&self) -> bool {
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
    pub(super) fn on(&mut self, event: LinkEvent) {
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
                if event == LinkEvent::Opened {
                    tracing::info!("a front-end waits for a driver");
                }
                self.state.link = next;
                if event == LinkEvent::Closed {
                    self.hang_up();
                }
            }
            Action::EndTold | Action::EndSilent => {
                tracing::info!(because = %event, "the connection is over");
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
        tracing::info!(connection = state.generation, "a front-end is connected");
        if !self.shared.shape.is_crosvm() {
            self.config_changed();
        }
    }

    /// Leaves nothing of the front-end's but its memory, which the driver may be looking at.
    fn end(&mut self, told: bool) {
        let unread = std::mem::replace(&mut self.state.rx, Rx::Read);
        if let (Rx::Deliver(message), true) = (unread, self.shared.faults.is_late()) {
            let _ = self.put(&message.to_bytes());
        }
        if let Some(Outgoing {
            head: Some(head), ..
        }) = self.state.tx.take()
        {
            self.give_back(1, head, 0);
        }
        self.shared.kicks.drop_all();
        self.drop_channel();
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
    pub(super) fn watch(&mut self) {
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
        self.shared.faults.reset();
        if let Some(outgoing) = &mut state.tx {
            outgoing.head = None;
        }
        self.on(LinkEvent::Reset);
        self.shared.window.clear();
        self.shared.kicks.reset();
    }

    /// The configuration changed; nobody hears of it before DRIVER_OK.
    pub(super) fn config_changed(&mut self) {
        if self.state.device_status & status::DRIVER_OK == 0 {
            return;
        }
        self.state.isr |= 2;
        self.state.config_generation = self.state.config_generation.wrapping_add(1);
        self.interrupt(self.state.config_vector);
    }

    pub(super) fn interrupt(&mut self, vector: u16) {
        if !self.shared.faults.is_mute() && self.shared.kicks.fire(vector) {
            self.state.counters.interrupts += 1;
        }
    }

    pub(super) fn complain(&mut self, what: String) {
        tracing::debug!(what, "refused");
        self.state.last_refusal = Some(what);
    }

    pub(super) fn violation(&mut self, event: LinkEvent, what: String) {
        self.state.counters.violations += 1;
        tracing::warn!(what, "a rule was broken");
        self.complain(what);
        self.on(event);
    }

    /// The driver's queues make no sense: only a reset helps.
    pub(super) fn broken(&mut self, queue: usize, error: &QueueError) {
        let name = if queue == 0 { "rxq" } else { "txq" };
        self.state.counters.broken += 1;
        tracing::warn!(queue = name, %error, "the driver has to reset the device");
        self.complain(format!("{name}: {error}"));
        self.state.device_status |= status::NEEDS_RESET;
        self.on(LinkEvent::Broken);
        self.config_changed();
    }
}

/// Wakes the model's thread.
impl Shared {
    pub(super) fn wake(&self) {
        kicks::signal(self.wake.as_fd());
    }
}
