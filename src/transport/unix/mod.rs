//! vhost-user over AF_UNIX: messages in a byte stream, resources as file descriptors.
//!
//! A [`UnixTransport`] is either side of the socket: [`UnixTransport::listen`] waits for
//! front-ends, [`UnixTransport::connect`] goes and finds one. Either way one front-end is served
//! at a time, and when it is gone the next one is waited for.
//!
//! Connections and the messages on them come from [`socket`](crate::socket); `attached` makes
//! memory, kicks and calls of file descriptors. None of them knows what a message means.

mod attached;
#[cfg(test)]
mod tests;

pub use crate::socket::EndpointError;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::epoll;
use rustix::net::SendFlags;

use super::{Event, Gone, RegionRequest, Transport, TransportError};
use crate::memory::{Area, Region, sealed_file};
use crate::notify::{Call, Kick};
use crate::protocol::Message;
use crate::socket::{Endpoint, Received, Wire};

/// Rings that SET_VRING_KICK can name: its index has 8 bits.
const MAX_RINGS: u16 = 256;

/// The AF_UNIX transport. See the [module](self).
#[derive(Debug)]
pub struct UnixTransport {
    name: String,
    /// Holds whichever of listener, timer and connection is waited for.
    poll: OwnedFd,
    endpoint: Endpoint,
    wire: Option<Wire>,
    /// Where the front-end hears requests of ours.
    channel: Option<OwnedFd>,
}

impl UnixTransport {
    /// Listens at `path`. A socket file that nobody listens at is replaced.
    pub fn listen(path: &Path) -> Result<Self, EndpointError> {
        Self::new(path, Endpoint::listen(path)?)
    }

    /// Connects to `path`, now and whenever the connection is lost, for as long as it takes.
    pub fn connect(path: &Path) -> Result<Self, EndpointError> {
        Self::new(path, Endpoint::connect(path)?)
    }

    fn new(path: &Path, endpoint: Endpoint) -> Result<Self, EndpointError> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(EndpointError::System)?;
        let transport = Self {
            name: format!("unix:{}", path.display()),
            poll,
            endpoint,
            wire: None,
            channel: None,
        };
        transport
            .watch(transport.endpoint.fd())
            .map_err(EndpointError::System)?;
        Ok(transport)
    }

    fn watch(&self, fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
        let data = epoll::EventData::new_u64(0);
        epoll::add(&self.poll, fd, data, epoll::EventFlags::IN)
    }

    /// Tries to get a connection.
    fn accept(&mut self) -> Option<Event> {
        let socket = self.endpoint.attempt()?;
        // The listener stays out of the poll set, so that the next front-end in line does not
        // wake us before this one is gone.
        let _ = epoll::delete(&self.poll, self.endpoint.fd());
        if let Err(errno) = self.watch(socket.as_fd()) {
            tracing::error!(%errno, "cannot poll a new connection");
            self.wait_for_next();
            return None;
        }
        self.wire = Some(Wire::new(socket));
        Some(Event::Connected)
    }

    /// Drops the connection; closing it takes it out of the poll set.
    fn wait_for_next(&mut self) {
        self.channel = None;
        let heard = self.wire.take().is_some_and(|wire| wire.heard());
        self.endpoint.rearm(heard);
        if let Err(errno) = self.watch(self.endpoint.fd())
            && errno != rustix::io::Errno::EXIST
        {
            tracing::error!(%errno, "cannot poll for the next connection");
        }
    }

    fn end(&mut self, reason: Gone) -> Event {
        self.wait_for_next();
        Event::Disconnected(reason)
    }
}

impl Transport for UnixTransport {
    fn name(&self) -> &str {
        &self.name
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }

    fn next(&mut self) -> Option<Event> {
        let Some(wire) = &mut self.wire else {
            return self.accept();
        };
        match wire.receive() {
            Ok(Received::Message(incoming)) => Some(Event::Message(incoming)),
            Ok(Received::Nothing) => None,
            Err(reason) => Some(self.end(reason)),
        }
    }

    fn send(&mut self, message: &Message) -> Result<(), TransportError> {
        let wire = self.wire.as_mut().ok_or(TransportError::NotConnected)?;
        Ok(wire.send(&message.to_bytes(), None)?)
    }

    fn protocol_features(&self) -> u64 {
        u64::MAX
    }

    fn max_rings(&self) -> u16 {
        MAX_RINGS
    }

    fn map_memory(
        &mut self,
        regions: &[RegionRequest],
        attached: Vec<OwnedFd>,
        whole: bool,
    ) -> Result<Vec<Region>, TransportError> {
        let what = if whole {
            "SET_MEM_TABLE"
        } else {
            "ADD_MEM_REG"
        };
        attached::map(what, regions, attached)
    }

    fn map_inflight(
        &mut self,
        mmap_offset: u64,
        size: u64,
        attached: Vec<OwnedFd>,
    ) -> Result<Area, TransportError> {
        attached::inflight(mmap_offset, size, &attached)
    }

    fn send_inflight(&mut self, message: &Message, size: u64) -> Result<(), TransportError> {
        let wire = self.wire.as_mut().ok_or(TransportError::NotConnected)?;
        let file = sealed_file(size)?;
        Ok(wire.send(&message.to_bytes(), Some(file.as_fd()))?)
    }

    fn kick(
        &mut self,
        _index: u16,
        nofd: bool,
        attached: Vec<OwnedFd>,
    ) -> Result<Kick, TransportError> {
        let fd = attached::eventfd("SET_VRING_KICK", nofd, attached)?;
        Ok(fd.map_or(Kick::Polled, Kick::Event))
    }

    fn call(
        &mut self,
        _index: u16,
        nofd: bool,
        attached: Vec<OwnedFd>,
    ) -> Result<Call, TransportError> {
        let fd = attached::eventfd("SET_VRING_CALL", nofd, attached)?;
        Ok(fd.map_or(Call::Silent, Call::Event))
    }

    fn err(
        &mut self,
        _index: u16,
        nofd: bool,
        attached: Vec<OwnedFd>,
    ) -> Result<Call, TransportError> {
        let fd = attached::eventfd("SET_VRING_ERR", nofd, attached)?;
        Ok(fd.map_or(Call::Silent, Call::Event))
    }

    fn backend_channel(&mut self, attached: Vec<OwnedFd>) -> Result<(), TransportError> {
        self.channel = Some(attached::socket("SET_BACKEND_REQ_FD", attached)?);
        Ok(())
    }

    fn send_request(&mut self, message: &Message) -> bool {
        // A front-end that lets it fill up has had its chance.
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let bytes = message.to_bytes();
        let sent = self
            .channel
            .as_ref()
            .and_then(|channel| rustix::net::send(channel, &bytes, flags).ok());
        if sent != Some(bytes.len()) {
            self.channel = None;
        }
        self.channel.is_some()
    }

    fn disconnect(&mut self) {
        if self.wire.is_some() {
            self.wait_for_next();
        }
    }

    fn shutdown(&mut self) {
        self.wire = None;
        self.channel = None;
        let _ = epoll::delete(&self.poll, self.endpoint.fd());
        self.endpoint.close();
    }
}
