//! Requests of ours to the front-end: that the configuration space has changed.

use std::os::fd::OwnedFd;

use super::connection::{Connection, Handled, Outcome};
use crate::protocol::Message;

/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG.
const CONFIG_CHANGE: u32 = 2;
/// Version 1, no reply wanted.
const FLAGS: u32 = 1;

impl Connection {
    /// The front-end listens from now on.
    pub(super) fn set_backend_req_fd(&mut self, attached: Vec<OwnedFd>) -> Handled {
        self.transport.backend_channel(attached)?;
        self.state.listens = true;
        Ok(Outcome::Done)
    }

    /// Tells the front-end, if it listens, that the configuration space is another one than when it
    /// connected, or was told last.
    pub(super) fn tell_changes(&mut self) {
        let changes = self.device.config_changes();
        if !self.state.listens || changes == self.state.config_changes {
            return;
        }
        self.state.config_changes = changes;
        let message = Message {
            request: CONFIG_CHANGE,
            flags: FLAGS,
            payload: Vec::new(),
        };
        self.state.listens = self.transport.send_request(&message);
        match self.state.listens {
            true => tracing::info!("configuration changed, front-end told"),
            false => tracing::warn!("configuration changed, but the front-end does not listen"),
        }
    }
}
