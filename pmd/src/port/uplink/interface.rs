//! What is asked and changed of an interface by name, whatever kind of port uses it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

use super::UplinkError;
use super::sys::{self, IfAction, IfRequest};

/// IFF_UP.
const UP: u16 = 1;

/// An interface, by name.
#[derive(Debug)]
pub(super) struct Interface<'n> {
    pub(super) name: &'n str,
    /// What the kernel is asked through.
    socket: OwnedFd,
}

impl<'n> Interface<'n> {
    /// The interface called `name`, which may not be there yet.
    pub(super) fn new(name: &'n str) -> Result<Self, UplinkError> {
        let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
        if !(1..=15).contains(&name.len()) || name.contains(bad) || matches!(name, "." | "..") {
            return Err(UplinkError::Name(name.to_owned()));
        }
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
            .map_err(|errno| UplinkError::new("ask about", name, errno))?;
        Ok(Self { name, socket })
    }

    /// Its number.
    pub(super) fn index(&self) -> Result<u32, UplinkError> {
        netdevice::name_to_index(&self.socket, self.name)
            .map_err(|_| UplinkError::NoInterface(self.name.to_owned()))
    }

    fn ask(
        &self,
        what: &'static str,
        action: IfAction,
        request: &mut IfRequest,
    ) -> Result<(), UplinkError> {
        sys::interface(self.socket.as_fd(), action, request)
            .map_err(|error| UplinkError::new(what, self.name, error))
    }

    /// Brings it up, unless it is.
    pub(super) fn up(&self) -> Result<(), UplinkError> {
        let mut request = IfRequest::new(self.name);
        self.ask("read the flags of", IfAction::GetFlags, &mut request)?;
        if request.flags() & UP == 0 {
            request.set_flags(request.flags() | UP);
            self.ask("bring up", IfAction::SetFlags, &mut request)?;
        }
        Ok(())
    }

    /// Its MTU.
    pub(super) fn mtu(&self) -> Result<usize, UplinkError> {
        let mut request = IfRequest::new(self.name);
        self.ask("read the MTU of", IfAction::GetMtu, &mut request)?;
        Ok(usize::try_from(request.number()).unwrap_or(0))
    }

    /// Another MTU.
    pub(super) fn set_mtu(&self, mtu: u16) -> Result<(), UplinkError> {
        let mut request = IfRequest::new(self.name);
        request.set_number(mtu.into());
        self.ask("set the MTU of", IfAction::SetMtu, &mut request)
    }
}
