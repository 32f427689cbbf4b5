//! A client at one end of a socket, for tests that play the server at the other end, byte by byte
//! and on the same thread.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Instant;

use super::channel::NbdChannel;
use super::link::{Link, Look};
use super::negotiation::Export;
use super::{Config, NbdError, Server, Shared};
use crate::bdev::{Channel, Size};

/// A handshake that goes on.
#[derive(Debug)]
pub struct Probe {
    config: Config,
    link: Link,
    export: Option<Export>,
}

impl Probe {
    /// A client at `socket`, which does not block. When the connection is lost there is no other.
    pub fn new(socket: OwnedFd) -> Result<Self, NbdError> {
        let nowhere = Server::Unix(PathBuf::from("/nowhere/at/all"));
        let config = Config::new(nowhere, "name");
        let addresses = config.server.addresses()?;
        let link = Link::at(&config, &addresses, socket)?;
        Ok(Self {
            config,
            link,
            export: None,
        })
    }

    /// Goes on with what the server said; true when the handshake is over.
    pub fn look(&mut self) -> Result<bool, NbdError> {
        match self.link.look(Instant::now()) {
            Look::Same => {}
            Look::Up(export) => self.export = Some(export),
            Look::Lost(error) => return Err(error),
        }
        Ok(self.export.is_some())
    }

    /// What is asked and answered from then on; `None` if the handshake is not over.
    pub fn channel(self) -> Option<Box<dyn Channel>> {
        let export = self.export?;
        let shared = Shared {
            name: "nbd:probe".into(),
            addresses: self.config.server.addresses().ok()?,
            config: self.config,
            size: Size::new(0),
            export,
            channels: AtomicUsize::new(1),
            losses: AtomicU64::new(0),
        };
        shared.size.set(shared.whole(export.size));
        let channel = NbdChannel::new(Arc::new(shared), Some((self.link, export)));
        Some(Box::new(channel.ok()?))
    }
}
