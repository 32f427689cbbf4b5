//! Ports whose other side is the kernel: a TAP interface, a packet socket, an AF_XDP socket.
//!
//! The kernel is not out to harm, but what it passes on is: the numbers of a header come from
//! whoever sent the frame, and are judged like a guest's. Frames are used where the kernel put
//! them, for one burst; on the way out they are gathered from where they lie, so that the only
//! copy is the kernel's. Looking at an idle port costs a load, or, where it takes a system call, a
//! system call every so many rounds.

mod bpf;
mod intake;
mod interface;
mod packet;
mod sys;
mod tap;
mod transmit;
mod xdp;
mod xsk_ring;

pub use packet::{PacketRx, PacketTx, packet};
pub use tap::{TapConfig, TapRx, TapTx, tap};
pub use xdp::{XdpConfig, XdpMode, XdpRx, XdpTx, xdp};

use std::io;

use thiserror::Error;
use vvu::memory::MemoryError;

/// Why an uplink cannot be had.
#[derive(Debug, Error)]
pub enum UplinkError {
    /// A name that no interface can have.
    #[error(
        "{0:?} cannot be the name of a network interface: those have 1 to 15 characters, none of \
         them a blank or one of / : %"
    )]
    Name(String),
    /// No interface has the name.
    #[error("there is no network interface {0}; `ip link` lists them")]
    NoInterface(String),
    /// The interface is no Ethernet interface.
    #[error("{name}: its frames may have {found} bytes, this kind of port takes at most {most}")]
    Mtu {
        /// Name of the interface.
        name: String,
        /// Its MTU.
        found: usize,
        /// What would do.
        most: usize,
    },
    /// The kernel said no.
    #[error("cannot {what} {name}: {source}{hint}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// Name of the interface.
        name: String,
        /// The kernel's reason.
        source: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// The kernel's rings cannot be mapped, or there is no memory for frames.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl UplinkError {
    /// That `what` cannot be done to the interface of this name.
    fn new(what: &'static str, name: &str, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let hint = match source.kind() {
            io::ErrorKind::PermissionDenied => {
                "; run as root, or with CAP_NET_ADMIN and CAP_NET_RAW in this network namespace"
            }
            _ => "",
        };
        Self::Kernel {
            what,
            name: name.to_owned(),
            source,
            hint,
        }
    }

    /// The same, with what to do about it.
    fn hinted(
        what: &'static str,
        name: &str,
        source: impl Into<io::Error>,
        hint: &'static str,
    ) -> Self {
        Self::Kernel {
            what,
            name: name.to_owned(),
            source: source.into(),
            hint,
        }
    }
}
