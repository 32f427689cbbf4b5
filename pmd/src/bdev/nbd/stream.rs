//! A connection's bytes: a socket that never blocks, encrypted or not.

use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect,
    getsockname, recv, send, socket_with, sockopt,
};

use super::error::NbdError;
#[cfg(feature = "tls")]
use super::tls::{Tls, TlsConfig};

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// At a host's port.
    Tcp {
        /// Its name or address.
        host: String,
        /// Its port.
        port: u16,
    },
    /// At a socket's path.
    Unix(PathBuf),
}

impl Server {
    /// The addresses to try. Asks the resolver, which may take long.
    pub(super) fn addresses(&self) -> Result<Addresses, NbdError> {
        let io = |what| move |source| NbdError::Io { what, source };
        match self {
            Self::Tcp { host, port } => {
                let found = (host.as_str(), *port).to_socket_addrs();
                let list: Vec<_> = found.map_err(io("cannot resolve the host"))?.collect();
                match list.is_empty() {
                    true => Err(io("cannot resolve the host")(
                        std::io::ErrorKind::NotFound.into(),
                    )),
                    false => Ok(Addresses::Tcp { list, next: 0 }),
                }
            }
            Self::Unix(path) => unix(path).map(Addresses::Unix),
        }
    }
}

fn unix(path: &Path) -> Result<SocketAddrUnix, NbdError> {
    SocketAddrUnix::new(path).map_err(NbdError::io("cannot use the path"))
}

/// Addresses that are tried in turn.
#[derive(Debug, Clone)]
pub(super) enum Addresses {
    Tcp { list: Vec<SocketAddr>, next: usize },
    Unix(SocketAddrUnix),
}

impl Addresses {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Tcp { list, .. } => list.len(),
            Self::Unix(_) => 1,
        }
    }

    /// Begins to connect to the next one. Whether that works shows at the first read.
    pub(super) fn connect(&mut self) -> Result<Stream, NbdError> {
        let failed = NbdError::io("cannot connect");
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let make = |family| socket_with(family, SocketType::STREAM, flags, None);
        let fd = match self {
            Self::Unix(address) => {
                let fd = make(AddressFamily::UNIX).map_err(&failed)?;
                connect(&fd, address).map_err(&failed)?;
                fd
            }
            Self::Tcp { list, next } => {
                let address = list.get(*next % list.len().max(1));
                let address = *address.ok_or_else(|| failed(Errno::DESTADDRREQ))?;
                *next = next.wrapping_add(1);
                let family = match address {
                    SocketAddr::V4(_) => AddressFamily::INET,
                    SocketAddr::V6(_) => AddressFamily::INET6,
                };
                let fd = make(family).map_err(&failed)?;
                sockopt::set_tcp_nodelay(&fd, true).map_err(&failed)?;
                match connect(&fd, &address) {
                    Ok(()) | Err(Errno::INPROGRESS) => {}
                    Err(errno) => return Err(failed(errno)),
                }
                // Who calls a port of this machine where nobody listens may get it as their own,
                // be connected to themselves, and keep the server from coming back.
                if getsockname(&fd).is_ok_and(|own| SocketAddr::try_from(own) == Ok(address)) {
                    return Err(failed(Errno::CONNREFUSED));
                }
                fd
            }
        };
        Ok(Stream::new(fd))
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Stream {
    fd: OwnedFd,
    #[cfg(feature = "tls")]
    tls: Option<Box<Tls>>,
}

impl Stream {
    /// On a socket that does not block.
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// Encrypts from here on.
    #[cfg(feature = "tls")]
    pub(super) fn start_tls(&mut self, config: &TlsConfig) -> Result<(), NbdError> {
        self.tls = Some(Box::new(Tls::new(config)?));
        Ok(())
    }

    /// Sends what was encrypted already, as much as goes.
    #[cfg(feature = "tls")]
    pub(super) fn push(&mut self) -> Result<(), NbdError> {
        match &mut self.tls {
            Some(tls) => tls.push(&self.fd),
            None => Ok(()),
        }
    }

    /// Bytes that came, as many as there is room for; `None` if there are none now.
    pub(super) fn read(&mut self, room: &mut [u8]) -> Result<Option<usize>, NbdError> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &mut self.tls {
            return tls.read(&self.fd, room);
        }
        receive(&self.fd, room)
    }

    /// Sends as many of `bytes` as go now; `None` if none does.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<Option<usize>, NbdError> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &mut self.tls {
            return tls.write(&self.fd, bytes);
        }
        transmit(&self.fd, bytes)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Bytes from a socket; `None` if there are none now.
pub(super) fn receive(fd: &OwnedFd, room: &mut [u8]) -> Result<Option<usize>, NbdError> {
    match recv(fd, room, RecvFlags::empty()) {
        Ok((0, _)) => Err(NbdError::Closed),
        Ok((n, _)) => Ok(Some(n)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        // A connection that is only being made.
        Err(Errno::NOTCONN) => Ok(None),
        Err(errno) => Err(NbdError::io("cannot receive")(errno)),
    }
}

/// Bytes to a socket; `None` if none goes now.
pub(super) fn transmit(fd: &OwnedFd, bytes: &[u8]) -> Result<Option<usize>, NbdError> {
    match send(fd, bytes, SendFlags::NOSIGNAL) {
        Ok(n) => Ok(Some(n)),
        Err(Errno::AGAIN | Errno::INTR | Errno::NOTCONN) => Ok(None),
        Err(errno) => Err(NbdError::io("cannot send")(errno)),
    }
}
