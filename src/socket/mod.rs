//! AF_UNIX sockets: where connections come from, and whole messages on them.
//!
//! An [`Endpoint`] listens or calls until there is a connection, and [`call`] calls once.
//! [`Frames`] finds whole messages in a connection's bytes, with the file descriptors that came
//! with them; a [`Wire`] does so for vhost-user, and back. None knows what a message means, nor
//! which side of it we are on.

mod endpoint;
mod frames;
mod wire;

pub use endpoint::{Endpoint, EndpointError, call};
pub use frames::{Frame, FrameError, Frames, MAX_FDS, send, wait};
pub use wire::{MAX_PAYLOAD, Received, SendError, Wire};

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use thiserror::Error;

use crate::protocol::Message;

/// A message and the file descriptors that came with it (none over VVU).
#[derive(Debug)]
pub struct Incoming {
    /// The message.
    pub message: Message,
    /// What came with it.
    pub attached: Vec<OwnedFd>,
}

/// Whether somebody's descriptor is a UNIX stream socket; what it is instead. Whoever else has the
/// same one cannot keep us waiting when we write to it, as he could with others.
pub fn check_stream(fd: BorrowedFd<'_>) -> Result<(), String> {
    let kind = socket_domain(fd).and_then(|domain| Ok((domain, socket_type(fd)?)));
    match kind {
        Ok((AddressFamily::UNIX, SocketType::STREAM)) => Ok(()),
        Ok(_) => Err("another socket".to_owned()),
        Err(Errno::NOTSOCK) => Err("no socket".to_owned()),
        Err(errno) => Err(errno.to_string()),
    }
}

/// Why a connection ended.
#[derive(Debug, Error)]
pub enum Gone {
    /// The front-end closed it.
    #[error("the front-end closed the connection")]
    Closed,
    /// What arrived was not vhost-user, or broke the transport's rules.
    #[error("protocol violation: {0}")]
    Violation(String),
    /// The operating system or the device failed.
    #[error("{0}")]
    Failed(String),
}
