//! Whole messages in and out, and the resources that come with them.
//!
//! A [`Transport`] carries vhost-user messages between a session and a front-end, one connection
//! after the other. Over AF_UNIX the resources are file descriptors; over VVU they are a window
//! in a BAR, MSI-X vectors and doorbells. Nothing above this room can tell which.

pub mod tracer;
pub mod unix;
pub mod vvu;

use std::os::fd::{BorrowedFd, OwnedFd};

use thiserror::Error;

use crate::memory::{Area, MemoryError, Region};
use crate::notify::{Call, Kick};
use crate::protocol::Message;
use crate::socket::SendError;
pub use crate::socket::{Gone, Incoming};

/// What a transport reports.
#[derive(Debug)]
pub enum Event {
    /// A front-end is there: a new connection begins.
    Connected,
    /// A message of the current connection, whole.
    Message(Incoming),
    /// The connection is over. The next event is `Connected`, perhaps much later.
    Disconnected(Gone),
}

/// A region of SET_MEM_TABLE or ADD_MEM_REG, as the message says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionRequest {
    /// Guest physical address.
    pub guest_addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// Address in the front-end.
    pub user_addr: u64,
    /// Offset in the file (AF_UNIX), or into the window, by the device's dialect (VVU).
    pub mmap_offset: u64,
}

/// What is asked of a transport and cannot be done.
#[derive(Debug, Error)]
pub enum TransportError {
    /// There is no connection, or it just broke.
    #[error("not connected")]
    NotConnected,
    /// A message needs a number of file descriptors and has another.
    #[error("{what} came with {found} file descriptors instead of {expected}")]
    Attached {
        /// What they were for.
        what: &'static str,
        /// How many came.
        found: usize,
        /// How many were needed.
        expected: usize,
    },
    /// Memory could not be mapped.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A region lies outside what the transport can show of the front-end's memory.
    #[error(
        "region {start:#x}+{size:#x} does not fit the memory window of {window:#x} bytes; give the \
         device a larger window (bar-size in QEMU), or the front-end less memory"
    )]
    Window {
        /// Offset of the region in the window.
        start: u64,
        /// Its length.
        size: u64,
        /// The window's length.
        window: u64,
    },
    /// A ring index that the transport has no kick or call for.
    #[error("ring {index} is beyond the {limit} that this transport has notifications for")]
    NoSuchRing {
        /// Index asked for.
        index: u16,
        /// Number of rings.
        limit: u16,
    },
    /// A file descriptor that is not what the message needs.
    #[error("{what} came with {found} instead of {expected}")]
    Kind {
        /// What it was for.
        what: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        expected: &'static str,
    },
    /// The message cannot be sent (too long for the device, the device is broken).
    #[error("{0}")]
    Send(String),
}

impl From<SendError> for TransportError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Closed => Self::NotConnected,
            SendError::Failed(what) => Self::Send(what),
        }
    }
}

/// One front-end's line to us. See the [module](self).
///
/// `kick`, `call` and `err` are asked for when the message of that name arrives; `nofd` is bit 8
/// of its payload ("no file descriptor": poll, or do not call).
pub trait Transport: Send {
    /// What to call this in messages to people: `vvu:0000:00:05.0`, `unix:/run/a.sock`.
    fn name(&self) -> &str;

    /// Becomes readable when [`Transport::next`] has something to do.
    fn poll_fd(&self) -> BorrowedFd<'_>;

    /// The next event, if there is one. Never blocks.
    fn next(&mut self) -> Option<Event>;

    /// Sends a message on the current connection, whole. Bounded in time: a front-end that does
    /// not read ends the connection.
    fn send(&mut self, message: &Message) -> Result<(), TransportError>;

    /// Protocol feature bits that this transport can carry; the session offers no others.
    fn protocol_features(&self) -> u64;

    /// How many rings can have notifications.
    fn max_rings(&self) -> u16;

    /// Makes the regions of SET_MEM_TABLE (`whole`) or ADD_MEM_REG accessible. Those of earlier
    /// messages stay as long as somebody holds them.
    fn map_memory(
        &mut self,
        regions: &[RegionRequest],
        attached: Vec<OwnedFd>,
        whole: bool,
    ) -> Result<Vec<Region>, TransportError>;

    /// Makes the buffer of SET_INFLIGHT_FD accessible: `size` bytes from `mmap_offset` of its file
    /// (AF_UNIX) or of the device's in-flight window (VVU).
    fn map_inflight(
        &mut self,
        mmap_offset: u64,
        size: u64,
        attached: Vec<OwnedFd>,
    ) -> Result<Area, TransportError>;

    /// As [`Transport::send`], for the answer to GET_INFLIGHT_FD: with it goes a new buffer of
    /// `size` zeroed bytes, which the front-end keeps.
    fn send_inflight(&mut self, message: &Message, size: u64) -> Result<(), TransportError>;

    /// The kick of ring `index`.
    fn kick(
        &mut self,
        index: u16,
        nofd: bool,
        attached: Vec<OwnedFd>,
    ) -> Result<Kick, TransportError>;

    /// The call of ring `index`.
    fn call(
        &mut self,
        index: u16,
        nofd: bool,
        attached: Vec<OwnedFd>,
    ) -> Result<Call, TransportError>;

    /// The error signal of ring `index`.
    fn err(
        &mut self,
        index: u16,
        nofd: bool,
        attached: Vec<OwnedFd>,
    ) -> Result<Call, TransportError>;

    /// Where the front-end hears requests of ours (SET_BACKEND_REQ_FD), until the connection ends.
    fn backend_channel(&mut self, _attached: Vec<OwnedFd>) -> Result<(), TransportError> {
        Err(TransportError::Send(
            "this transport carries no requests of ours".to_owned(),
        ))
    }

    /// Sends a request of ours there. Never waits; false if there is no such place, or not any more.
    fn send_request(&mut self, _message: &Message) -> bool {
        false
    }

    /// Ends the current connection, if any, and waits for the next one. All rings must have been
    /// stopped. No `Disconnected` event follows.
    fn disconnect(&mut self);

    /// Ends the current connection and waits for none: what there is of it outside this process
    /// (a socket's path, a device) is left as it was found.
    fn shutdown(&mut self);
}
