//! One connection: which handler a request goes to, and what its outcome does.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::inflight::Buffer;
use super::ring::Ring;
use super::{SessionError, Status};
use crate::memory::MemTable;
use crate::protocol::{
    Answer, Fds, Features, Gate, Inflight, Message, ProtocolFeatures, Reply, Request, RequestInfo,
    Unheard, info,
};
use crate::transport::{Incoming, Transport};
use crate::virtio::VirtioDevice;

/// Refusals of one connection that are logged; the rest is only counted.
const LOGGED_REFUSALS: u32 = 20;

/// What a request that was carried out leads to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Nothing, or success if the front-end asked for the outcome.
    Done,
    /// A reply of its own.
    Reply(Reply),
    /// A reply with a new in-flight buffer.
    Buffer(Inflight),
}

/// What a handler returns. An error is answered if the front-end asked for the outcome, and
/// otherwise ends the connection or is noted, by the request's row in the table.
pub(super) type Handled = Result<Outcome, SessionError>;

/// What one front-end has negotiated and set up. Begins anew with each connection.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Features in force, with bit 30.
    pub(super) features: Features,
    /// Whether the last SET_FEATURES was refused.
    pub(super) features_refused: bool,
    /// Protocol features in force.
    pub(super) protocol: ProtocolFeatures,
    /// Device status, as the front-end set it.
    pub(super) device_status: u8,
    /// The front-end's memory.
    pub(super) memory: Arc<MemTable>,
    /// Where to keep book of requests in flight.
    pub(super) inflight: Option<Buffer>,
    /// Whether the front-end hears requests of ours...
    pub(super) listens: bool,
    /// ...and what it knows of changes of the configuration space.
    pub(super) config_changes: Option<u64>,
    /// Requests refused.
    refusals: u32,
    /// All rings of the device.
    pub(super) rings: Vec<Ring>,
}

/// A transport, the device that it drives, and the connection between them.
pub(super) struct Connection {
    pub(super) transport: Box<dyn Transport>,
    pub(super) device: Box<dyn VirtioDevice>,
    pub(super) status: Arc<Status>,
    pub(super) state: State,
}

impl Connection {
    pub(super) fn new(
        transport: Box<dyn Transport>,
        device: Box<dyn VirtioDevice>,
        status: Arc<Status>,
    ) -> Self {
        Self {
            transport,
            device,
            status,
            state: State::default(),
        }
    }

    /// A front-end is there.
    pub(super) fn begin(&mut self) {
        let rings = self.device.queues().min(self.transport.max_rings());
        self.state = State {
            rings: (0..rings).map(Ring::new).collect(),
            config_changes: self.device.config_changes(),
            ..State::default()
        };
        self.status.connected();
        tracing::info!(rings, "front-end connected");
    }

    /// The front-end is gone, or shall be: rings stop, memory and features are forgotten.
    pub(super) fn end(&mut self) {
        self.stop_all_rings();
        self.device.reset();
        self.state = State::default();
        self.status.disconnected();
    }

    /// Whether bytes of the front-end's memory vanished under us.
    pub(super) fn memory_is_lost(&self) -> bool {
        let lost = |buffer: &Buffer| buffer.is_lost();
        self.state.memory.is_lost() || self.state.inflight.as_ref().is_some_and(lost)
    }

    /// Carries out one request and answers it. An error ends the connection.
    pub(super) fn handle(&mut self, incoming: Incoming) -> Result<(), SessionError> {
        self.status.message();
        let Incoming { message, attached } = incoming;
        let result = self
            .admit(&message, attached.len())
            .and_then(|request| self.dispatch(request, attached));
        match result {
            Ok(Outcome::Reply(reply)) => self.reply(&message, &reply),
            Ok(Outcome::Buffer(buffer)) => self.reply_with_buffer(&message, buffer),
            Ok(Outcome::Done) if self.must_ack(&message) => self.reply(&message, &Reply::U64(0)),
            Ok(Outcome::Done) => Ok(()),
            Err(error) => self.refuse(&message, error),
        }
    }

    /// Parses a request and checks what does not depend on its meaning.
    fn admit(&self, message: &Message, fds: usize) -> Result<Request, SessionError> {
        let request = Request::parse(message)?;
        let Some(row) = info(message.request) else {
            return Err(SessionError::Unknown(message.request));
        };
        let most = match row.fds {
            Fds::None => Some(0),
            Fds::Ignored => Some(1),
            // The transport knows what it needs.
            Fds::One | Fds::PerRegion | Fds::UnlessNofd => None,
        };
        if most.is_some_and(|most| fds > most) {
            return Err(SessionError::UnexpectedFds {
                name: row.name,
                found: fds,
            });
        }
        match self.is_open(row) {
            true => Ok(request),
            false => Err(SessionError::NotNegotiated(row.name)),
        }
    }

    fn is_open(&self, row: &RequestInfo) -> bool {
        match row.gate {
            Gate::Open => true,
            Gate::Offered(feature) => self.offered_protocol_features().contains(feature),
            Gate::Acked(feature) => self.state.protocol.contains(feature),
            Gate::Closed => false,
        }
    }

    /// The table of handlers. Requests that have none need a feature that is never offered.
    fn dispatch(&mut self, request: Request, attached: Vec<OwnedFd>) -> Handled {
        match request {
            Request::GetFeatures => self.get_features(),
            Request::SetFeatures(bits) => self.set_features(bits),
            Request::SetOwner => Ok(Outcome::Done),
            Request::ResetOwner => self.reset_owner(),
            Request::SetMemTable(regions) => self.set_mem_table(&regions, attached),
            Request::SetVringNum(state) => self.set_vring_num(state),
            Request::SetVringAddr(addr) => self.set_vring_addr(addr),
            Request::SetVringBase(state) => self.set_vring_base(state),
            Request::GetVringBase(state) => self.get_vring_base(state),
            Request::SetVringKick(fd) => self.set_vring_kick(fd, attached),
            Request::SetVringCall(fd) => self.set_vring_call(fd, attached),
            Request::SetVringErr(fd) => self.set_vring_err(fd, attached),
            Request::GetProtocolFeatures => self.get_protocol_features(),
            Request::SetProtocolFeatures(bits) => self.set_protocol_features(bits),
            Request::GetQueueNum => self.get_queue_num(),
            Request::SetVringEnable(state) => self.set_vring_enable(state),
            Request::SendRarp(mac) => self.send_rarp(mac),
            Request::NetSetMtu(mtu) => self.net_set_mtu(mtu),
            Request::GetConfig(config) => self.get_config(config),
            Request::SetConfig(config) => self.set_config(&config),
            Request::GetInflightFd(wanted) => self.get_inflight_fd(wanted),
            Request::SetInflightFd(buffer) => self.set_inflight_fd(&buffer, attached),
            Request::SetBackendReqFd => self.set_backend_req_fd(attached),
            Request::ResetDevice => self.reset_device(),
            Request::GetMaxMemSlots => self.get_max_mem_slots(),
            Request::AddMemReg(region) => self.add_mem_reg(region, attached),
            Request::RemMemReg(region) => self.rem_mem_reg(region),
            Request::SetStatus(bits) => self.set_status(bits),
            Request::GetStatus => self.get_status(),
            other => Err(SessionError::Unknown(other.to_message(false).request)),
        }
    }

    /// Whether success must be told. Looked at after the request, which may have been the one
    /// that negotiated this.
    fn must_ack(&self, message: &Message) -> bool {
        message.needs_reply() && self.state.protocol.contains(ProtocolFeatures::REPLY_ACK)
    }

    fn reply(&mut self, message: &Message, reply: &Reply) -> Result<(), SessionError> {
        Ok(self.transport.send(&reply.to_message(message.request))?)
    }

    fn reply_with_buffer(
        &mut self,
        message: &Message,
        buffer: Inflight,
    ) -> Result<(), SessionError> {
        let reply = Reply::Inflight(buffer).to_message(message.request);
        Ok(self.transport.send_inflight(&reply, buffer.mmap_size)?)
    }

    fn refuse(&mut self, message: &Message, error: SessionError) -> Result<(), SessionError> {
        if error.ends_connection() {
            return Err(error);
        }
        let row = info(message.request);
        let name = row.map_or("an unknown request", |row| row.name);
        self.status.nack(format!("{name}: {error}"));
        self.state.refusals = self.state.refusals.saturating_add(1);
        // A front-end can have requests refused as fast as it can send them.
        if self.state.refusals <= LOGGED_REFUSALS {
            tracing::warn!(request = name, %error, "refused");
        }
        match row.map_or(Answer::Ack, |row| row.answer) {
            Answer::OwnOrEmpty => self.reply(message, &Reply::Empty),
            Answer::Ack if self.must_ack(message) => self.reply(message, &Reply::U64(1)),
            Answer::Ack if row.is_some_and(|row| row.unheard == Unheard::GoOn) => Ok(()),
            Answer::Ack | Answer::Own => Err(error),
        }
    }
}
