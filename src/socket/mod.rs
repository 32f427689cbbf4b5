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

use std::os::fd::OwnedFd;

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
