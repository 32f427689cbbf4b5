//! What can go wrong with a request, and what that does to the connection.

use thiserror::Error;

use crate::memory::MemoryError;
use crate::protocol::ProtocolError;
use crate::transport::TransportError;
use crate::virtio::DeviceError;

/// Why a request was not carried out.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The message is not a valid request.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The transport cannot provide what the request needs.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The device refuses.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The memory regions do not make a table.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A request that takes no file descriptors came with some.
    #[error("{name} came with {found} file descriptors and takes none")]
    UnexpectedFds {
        /// Name of the request.
        name: &'static str,
        /// How many came.
        found: usize,
    },
    /// A request whose feature was not negotiated.
    #[error("{0} needs a feature that was not negotiated")]
    NotNegotiated(&'static str),
    /// A request that is in no table.
    #[error("request {0} is unknown")]
    Unknown(u32),
    /// Protocol features that were not offered.
    #[error("protocol features {acked:#x} are not a subset of the offered {offered:#x}")]
    ProtocolFeatures {
        /// What the front-end acknowledged.
        acked: u64,
        /// What was offered.
        offered: u64,
    },
    /// Features change while rings run.
    #[error("features cannot change from {old:#x} to {new:#x} while rings run")]
    FeaturesInUse {
        /// What is in force.
        old: u64,
        /// What was asked for.
        new: u64,
    },
    /// A number that means nothing for this request.
    #[error("{name} has no meaning for {value:#x}")]
    Value {
        /// Name of the request.
        name: &'static str,
        /// The number.
        value: u64,
    },
    /// A ring index that the device does not have.
    #[error(
        "ring {index} does not exist, the device has {rings} (a front-end that counts queue pairs \
         may have been given too many)"
    )]
    NoRing {
        /// Index asked for.
        index: u32,
        /// Number of rings.
        rings: usize,
    },
    /// A ring size that VIRTIO does not allow.
    #[error("ring {index} cannot have {size} descriptors")]
    RingSize {
        /// Ring index.
        index: u16,
        /// Size asked for.
        size: u32,
    },
    /// A ring base that is no index into the ring.
    #[error("ring {index} cannot begin at {base:#x}")]
    RingBase {
        /// Ring index.
        index: u16,
        /// Base asked for.
        base: u32,
    },
    /// A part of a ring is not aligned as VIRTIO asks.
    #[error("{part} of ring {index} at {addr:#x} is not aligned to {align}")]
    Alignment {
        /// Ring index.
        index: u16,
        /// "descriptor area", "driver area" or "device area".
        part: &'static str,
        /// Its front-end address.
        addr: u64,
        /// What the address must be a multiple of.
        align: u64,
    },
    /// A part of a ring is not, or not wholly, in one region of the front-end's memory.
    #[error("{part} of ring {index} at {addr:#x}+{len:#x} is not in the front-end's memory")]
    Unmapped {
        /// Ring index.
        index: u16,
        /// "descriptor area", "driver area" or "device area".
        part: &'static str,
        /// Its front-end address.
        addr: u64,
        /// Its length.
        len: usize,
    },
    /// A running ring cannot be changed like this.
    #[error("{name} changes ring {index} while it runs")]
    RingRuns {
        /// Name of the request.
        name: &'static str,
        /// Ring index.
        index: u16,
    },
    /// A request that must come while no ring runs.
    #[error("{name} came while rings run")]
    RingsRun {
        /// Name of the request.
        name: &'static str,
    },
    /// An in-flight buffer that the ring has no place in.
    #[error(
        "ring {index} with {size} descriptors has no place in an in-flight buffer of {len} bytes \
         for {queues} queues of {queue_size}"
    )]
    Inflight {
        /// Ring index.
        index: u16,
        /// Its descriptors.
        size: u16,
        /// Length of the buffer.
        len: usize,
        /// Queues that the buffer is for.
        queues: u16,
        /// Descriptors of each.
        queue_size: u16,
    },
    /// A region to remove that is not there.
    #[error("there is no memory region at {guest_addr:#x}+{size:#x}")]
    NoRegion {
        /// Its guest address.
        guest_addr: u64,
        /// Its length.
        size: u64,
    },
    /// No slot is free for another region.
    #[error("all {0} memory slots are in use")]
    Slots(usize),
    /// The kernel has no file descriptor for us.
    #[error("cannot duplicate a file descriptor: {0}")]
    Descriptor(#[from] std::io::Error),
    /// Memory that the front-end shared is gone.
    #[error("memory shared by the front-end went away (its file was truncated)")]
    MemoryLost,
}

impl SessionError {
    /// Whether the connection cannot go on, whatever the request: what came was not vhost-user,
    /// or nothing can be sent any more.
    pub(super) fn ends_connection(&self) -> bool {
        matches!(
            self,
            Self::Protocol(_)
                | Self::UnexpectedFds { .. }
                | Self::MemoryLost
                | Self::Transport(
                    TransportError::Attached { .. }
                        | TransportError::NotConnected
                        | TransportError::Send(_)
                )
        )
    }

    /// Whether the front-end broke the protocol, as opposed to asking for something we refuse.
    pub(super) fn is_violation(&self) -> bool {
        matches!(
            self,
            Self::Protocol(_)
                | Self::UnexpectedFds { .. }
                | Self::Transport(TransportError::Attached { .. })
        )
    }
}
