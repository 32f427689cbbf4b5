//! The door out of this process: a modelled function for the clients of a vfio-user socket.
//!
//! One client is served at a time, and the next one after it; a second one is turned away at
//! once, which tells it more than waiting would. When a client is gone, for whatever reason, the
//! function is reset and has nothing of it any more: its memory is unmapped, its eventfds closed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::layout::Kind;
use super::{Model, ModelError, window};
use crate::memory::{Area, Mapping, MemoryError, page_size};
use crate::notify::claim_eventfd;
use crate::pci::CONFIG_LEN;
use crate::socket::{Endpoint, EndpointError};
use crate::vfio_user::{
    CONFIG_REGION, ClientMemory, Connection, Counters, Ended, Refusal, Served, Shared,
};

/// Serves a model to the clients of a socket.
#[derive(Debug)]
pub struct Server {
    endpoint: Endpoint,
    function: Modelled,
    connection: Option<Connection>,
    status: ServerStatus,
}

/// What was counted since the server exists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerStatus {
    /// Clients that were served.
    pub clients: u64,
    /// Clients that were turned away, because another one was there.
    pub turned_away: u64,
    /// Commands of clients that are gone.
    pub commands: u64,
    /// Those of them that were refused.
    pub refused: u64,
    /// Connections that were ended because the client broke a rule.
    pub violations: u64,
    /// Why a command was refused or a connection ended last.
    pub last_refusal: Option<String>,
}

impl Server {
    /// Listens at `path`. A socket file that nobody listens at is replaced.
    pub fn listen(path: &Path, model: Model) -> Result<Self, EndpointError> {
        Ok(Self {
            endpoint: Endpoint::listen(path)?,
            function: Modelled::new(model),
            connection: None,
            status: ServerStatus::default(),
        })
    }

    /// Whether clients can map the memory window, which a VMM needs.
    pub fn is_mappable(&self) -> bool {
        let bar = self.function.model.memory_bar();
        self.function.shared(bar.into()).is_some()
    }

    /// Serves clients until `stop` is readable, and says what there was.
    pub fn run(mut self, stop: BorrowedFd<'_>) -> ServerStatus {
        loop {
            let mut fds = vec![
                PollFd::from_borrowed_fd(stop, PollFlags::IN),
                PollFd::from_borrowed_fd(self.endpoint.fd(), PollFlags::IN),
            ];
            if let Some(connection) = &self.connection {
                fds.push(PollFd::from_borrowed_fd(connection.fd(), PollFlags::IN));
            }
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => {
                    tracing::error!(%errno, "cannot wait for clients");
                    break;
                }
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready.first() == Some(&true) {
                break;
            }
            // A client that is gone makes room for the one that waits.
            if ready.get(2) == Some(&true) {
                self.serve();
            }
            if ready.get(1) == Some(&true) {
                self.accept();
            }
        }
        self.end(None);
        self.status
    }

    fn accept(&mut self) {
        let Some(socket) = self.endpoint.attempt() else {
            return;
        };
        if self.connection.is_some() {
            self.status.turned_away += 1;
            tracing::info!("a second client was turned away");
            return;
        }
        self.status.clients += 1;
        tracing::info!("a client is connected");
        self.connection = Some(Connection::new(socket));
    }

    fn serve(&mut self) {
        if let Some(connection) = &mut self.connection
            && let Err(reason) = connection.serve(&mut self.function)
        {
            self.end(Some(&reason));
        }
    }

    /// Ends the connection, if there is one.
    fn end(&mut self, reason: Option<&Ended>) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        connection.end(&mut self.function);
        let Counters {
            commands,
            refused,
            last_refusal,
        } = connection.counters().clone();
        self.status.commands += commands;
        self.status.refused += refused;
        self.status.last_refusal = last_refusal.or(self.status.last_refusal.take());
        match reason {
            None => {}
            Some(Ended::Closed) => tracing::info!(commands, refused, "the client is gone"),
            Some(reason) => {
                self.status.violations += 1;
                self.status.last_refusal = Some(reason.to_string());
                tracing::warn!(commands, refused, %reason, "the client was dropped");
            }
        }
    }
}

/// The model, as the server of a socket has it.
#[derive(Debug)]
pub(super) struct Modelled {
    model: Model,
    /// Pieces of the client's memory that the function reaches.
    maps: usize,
}

/// The BAR that a region is.
fn bar(region: u32) -> Option<u8> {
    u8::try_from(region).ok().filter(|bar| *bar < 6)
}

impl Modelled {
    pub(super) fn new(model: Model) -> Self {
        Self { model, maps: 0 }
    }

    /// Memory that only messages would reach, which this server does not send. A VMM has such
    /// memory, and no driver a use for it: ROMs, other functions' BARs, this one's. But where
    /// nothing else was shared before, it is the VM's RAM.
    fn unshared(&self, writable: bool, range: String) -> Result<bool, Refusal> {
        if !writable || self.maps > 0 {
            tracing::debug!("{range} are not shared, and will not be reached");
            return Ok(false);
        }
        let what = format!(
            "{range} come without a file, so that they cannot be reached: the VM's memory must be \
             shared (QEMU: -object memory-backend-memfd,share=on)"
        );
        tracing::warn!("{what}");
        Err(Refusal::new(Errno::OPNOTSUPP, what))
    }
}

impl Served for Modelled {
    fn region_size(&self, region: u32) -> u64 {
        match region {
            CONFIG_REGION => CONFIG_LEN as u64,
            _ => bar(region).map_or(0, |bar| self.model.bar_size(bar)),
        }
    }

    fn shared(&self, region: u32) -> Option<Shared<'_>> {
        let memory = self.model.shared().layout.get(Kind::Memory);
        // Where registers come first, there is no telling in vfio-user where in the file the
        // rest begins.
        if region != u32::from(memory.bar) || memory.offset != 0 {
            return None;
        }
        let (file, len) = self.model.peer_memory()?;
        let len = len.next_multiple_of(page_size() as u64);
        Some(Shared { file, len })
    }

    fn vectors(&self) -> u16 {
        self.model.vectors()
    }

    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) {
        match (bar(region), u16::try_from(offset)) {
            (Some(bar), _) => self.model.read_bar(bar, offset, data),
            (None, Ok(offset)) => self.model.read_config(offset, data),
            (None, Err(_)) => data.fill(u8::MAX),
        }
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) {
        match (bar(region), u16::try_from(offset)) {
            (Some(bar), _) => self.model.write_bar(bar, offset, data),
            (None, Ok(offset)) => self.model.write_config(offset, data),
            (None, Err(_)) => {}
        }
    }

    fn map(&mut self, iova: u64, memory: ClientMemory) -> Result<bool, Refusal> {
        let range = format!("{:#x} bytes at {iova:#x}", memory.len);
        let Some(file) = memory.file else {
            return self.unshared(memory.writable, range);
        };
        let refuse = |what: String| Refusal::new(Errno::INVAL, format!("{range}: {what}"));
        window::check_file(file.as_fd()).map_err(refuse)?;
        let mapped = match memory.writable {
            true => Mapping::of_file(file.as_fd(), memory.offset, memory.len),
            false => Mapping::copy_of_file(file.as_fd(), memory.offset, memory.len),
        };
        let bytes = mapped.map_err(|error: MemoryError| refuse(error.to_string()))?;
        self.model
            .map_dma(iova, Area::from(bytes))
            .map_err(|error: ModelError| refuse(error.to_string()))?;
        self.maps += 1;
        Ok(true)
    }

    fn unmap(&mut self, iova: u64, len: u64) {
        self.maps = self.maps.saturating_sub(1);
        if let Err(error) = self.model.unmap_dma(iova, len) {
            tracing::error!(%error, "a client's memory stays mapped");
        }
    }

    fn set_vector(&mut self, vector: u16, fd: Option<OwnedFd>) -> Result<(), Refusal> {
        if let Some(fd) = &fd {
            claim_eventfd(fd.as_fd()).map_err(|found| {
                let what = format!("{found} instead of an eventfd for vector {vector}");
                Refusal::new(Errno::INVAL, what)
            })?;
        }
        self.model.set_vector(vector, fd);
        Ok(())
    }

    fn reset(&mut self) {
        self.model.reset();
    }
}
