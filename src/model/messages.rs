//! What the device does about messages on their way through (docs/device.md, "what the device
//! passes, masks and does").

use std::os::fd::OwnedFd;

use thiserror::Error;

use super::window::WindowError;
use crate::memory::{page_size, sealed_file};
use crate::protocol::{
    Answer, FLAG_NEED_REPLY, FLAG_REPLY, HEADER_LEN, Message, ProtocolError, ProtocolFeatures,
    Reply, Request, VERSION, VERSION_MASK, info,
};
use crate::socket::MAX_PAYLOAD;

/// Protocol features that need no descriptor, and no memory but the window. What nobody knows
/// today could mean anything.
const PASSED: ProtocolFeatures = ProtocolFeatures::MQ
    .union(ProtocolFeatures::RARP)
    .union(ProtocolFeatures::REPLY_ACK)
    .union(ProtocolFeatures::MTU)
    .union(ProtocolFeatures::CROSS_ENDIAN)
    .union(ProtocolFeatures::CRYPTO_SESSION)
    .union(ProtocolFeatures::CONFIG)
    .union(ProtocolFeatures::RESET_DEVICE)
    .union(ProtocolFeatures::STATUS)
    .union(ProtocolFeatures::GPA_ADDRESSES);

/// Those that need in-flight buffers.
const INFLIGHT: ProtocolFeatures =
    ProtocolFeatures::INFLIGHT_SHMFD.union(ProtocolFeatures::GET_VRING_BASE_INFLIGHT);

/// Those that need a channel for requests of the back-end's.
const CHANNEL: ProtocolFeatures =
    ProtocolFeatures::BACKEND_REQ.union(ProtocolFeatures::INBAND_NOTIFICATIONS);

/// A back-end that offers it must send requests, for which there has to be a channel.
const ACCESS_PLATFORM: u64 = 1 << 33;

/// What a driver takes besides memory, kicks and calls, by the features that it accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Taken {
    /// In-flight buffers.
    pub(super) inflight: bool,
    /// A channel for requests of its own.
    pub(super) channel: bool,
}

impl Taken {
    /// Protocol features that pass.
    pub(super) fn passed(self) -> ProtocolFeatures {
        let mut passed = PASSED;
        if self.inflight {
            passed |= INFLIGHT;
        }
        if self.channel {
            passed |= CHANNEL;
        }
        passed
    }
}

/// What the device does before the driver gets a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Duty {
    /// Nothing.
    Pass,
    /// Shows the memory.
    MemTable,
    /// Binds a descriptor to the kick, call or error of a ring.
    VringFd,
    /// Disarms the kick.
    StopKick,
    /// Masks the features.
    Mask,
    /// Shows the in-flight buffer.
    Inflight,
    /// Keeps the channel for requests of the back-end's.
    Channel,
    /// Refuses: the message means a resource that the device cannot pass on.
    Never,
}

/// Every request has a duty; those that nobody knows pass.
pub(super) fn duty(request: u32, taken: Taken) -> Duty {
    match request {
        31 if taken.inflight => Duty::Pass,
        32 if taken.inflight => Duty::Inflight,
        21 if taken.channel => Duty::Channel,
        5 => Duty::MemTable,
        12..=14 => Duty::VringFd,
        11 | 45 => Duty::StopKick,
        16 => Duty::Mask,
        6 | 7 | 21 | 28..=33 | 37 | 38 | 41 | 42 => Duty::Never,
        _ => Duty::Pass,
    }
}

/// Whether descriptors may come with a request.
fn takes_fds(request: u32) -> bool {
    matches!(request, 5 | 12..=14 | 21 | 32)
}

/// Whether the payload begins with a ring's index, in 32 bits.
fn names_ring(request: u32) -> bool {
    matches!(request, 8..=11 | 18 | 23 | 35 | 45)
}

/// Whether a request has an answer of its own, which is not a plain acknowledgement.
pub(super) fn has_answer(request: u32) -> bool {
    info(request).is_some_and(|info| info.answer != Answer::Ack)
}

/// What to call a request.
pub(super) fn name(request: u32) -> &'static str {
    info(request).map_or("unknown request", |info| info.name)
}

/// Why a message is refused.
#[derive(Debug, Error)]
pub(super) enum Refusal {
    #[error("flags {flags:#x} are not those of a request of version 1")]
    Flags { flags: u32 },
    #[error("it came with {found} file descriptors instead of {expected}")]
    Fds { found: usize, expected: usize },
    #[error("it names ring {found} of a device with {rings}")]
    Ring { found: u64, rings: u16 },
    #[error("its {0} bytes of payload name no ring")]
    Short(usize),
    #[error("this device cannot pass it on")]
    Never,
    #[error("what came with it is {0} instead of an eventfd")]
    NotEvent(String),
    #[error("what came with it is {0} instead of a UNIX stream socket")]
    NotSocket(String),
    #[error(transparent)]
    Malformed(#[from] ProtocolError),
    #[error(transparent)]
    Memory(#[from] WindowError),
}

/// What can be judged of a request without doing anything.
pub(super) fn check(
    message: &Message,
    fds: &[OwnedFd],
    rings: u16,
    taken: Taken,
) -> Result<(), Refusal> {
    let request = message.request;
    if !fds.is_empty() && !takes_fds(request) {
        return Err(Refusal::Fds {
            found: fds.len(),
            expected: 0,
        });
    }
    if names_ring(request) {
        let index = message.payload.first_chunk();
        let index = index.ok_or(Refusal::Short(message.payload.len()))?;
        check_ring(u32::from_le_bytes(*index).into(), rings)?;
    }
    match duty(request, taken) {
        Duty::Never => Err(Refusal::Never),
        _ => Ok(()),
    }
}

pub(super) fn check_ring(found: u64, rings: u16) -> Result<(), Refusal> {
    match found < rings.into() {
        true => Ok(()),
        false => Err(Refusal::Ring { found, rings }),
    }
}

/// Whether the flags are those of a request. If not, nothing that follows can be trusted.
pub(super) fn check_flags(message: &Message) -> Result<(), Refusal> {
    let flags = message.flags;
    match flags & (VERSION_MASK | FLAG_REPLY) {
        VERSION => Ok(()),
        _ => Err(Refusal::Flags { flags }),
    }
}

/// A request's meaning; flags have been judged before.
pub(super) fn parse(message: &Message) -> Result<Request, Refusal> {
    let plain = Message {
        flags: VERSION,
        ..message.clone()
    };
    Ok(Request::parse(&plain)?)
}

/// What bounds a driver's promises.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Rings of the device.
    pub(super) rings: u32,
    /// What the driver takes.
    pub(super) taken: Taken,
    /// Length of the window.
    pub(super) window: u64,
}

/// A message of the driver's, as it may reach the front-end.
#[derive(Debug)]
pub(super) enum Parcel {
    /// A reply, and the file that goes with it.
    Reply(Vec<u8>, Option<OwnedFd>),
    /// A request, for the channel. It may want a reply.
    Request { bytes: Vec<u8>, asks: bool },
    /// A request that no channel carries.
    Nothing,
}

/// Whether a channel carries a request of the back-end's. Others come with a descriptor, which no
/// driver has, or nobody knows what they mean.
fn is_carried(request: u32) -> bool {
    const IOTLB_MSG: u32 = 1;
    const CONFIG_CHANGE_MSG: u32 = 2;
    const VRING_CALL: u32 = 4;
    const VRING_ERR: u32 = 5;
    matches!(
        request,
        IOTLB_MSG | CONFIG_CHANGE_MSG | VRING_CALL | VRING_ERR
    )
}

/// What becomes of a message of the driver's.
pub(super) fn outgoing(bytes: Vec<u8>, bounds: Bounds) -> Result<Parcel, String> {
    let header = bytes.first_chunk::<HEADER_LEN>();
    let Some((request, flags, size)) = header.map(Message::parse_header) else {
        return Err(format!("the driver sent a buffer of {} bytes", bytes.len()));
    };
    if flags & VERSION_MASK != VERSION || size as usize != bytes.len() - HEADER_LEN {
        return Err(format!(
            "the driver sent a malformed message: request {request}, flags {flags:#x}, size {size} \
             in a buffer of {} bytes",
            bytes.len()
        ));
    }
    if flags & FLAG_REPLY == 0 {
        return Ok(match bounds.taken.channel && is_carried(request) {
            true => Parcel::Request {
                bytes,
                asks: flags & FLAG_NEED_REPLY != 0,
            },
            false => Parcel::Nothing,
        });
    }
    match request {
        31 if bounds.taken.inflight => with_buffer(bytes, bounds.window),
        _ => Ok(Parcel::Reply(filter(request, bytes, bounds), None)),
    }
}

/// Adds the buffer that a reply to GET_INFLIGHT_FD promises: whole pages, from the beginning of a
/// file. One of no bytes promises nothing.
fn with_buffer(bytes: Vec<u8>, window: u64) -> Result<Parcel, String> {
    let (header, payload) = bytes.split_at(HEADER_LEN);
    let reply = Reply::parse(&Message {
        request: 31,
        flags: VERSION | FLAG_REPLY,
        payload: payload.to_vec(),
    });
    let Some(Reply::Inflight(mut buffer)) = reply else {
        return Ok(Parcel::Reply(bytes, None));
    };
    if buffer.mmap_size == 0 {
        return Ok(Parcel::Reply(bytes, None));
    }
    let size = buffer
        .mmap_size
        .checked_next_multiple_of(page_size() as u64);
    let Some(size) = size.filter(|size| *size <= window) else {
        return Err(format!(
            "the driver wants an in-flight buffer of {:#x} bytes, which a window of {window:#x} \
             cannot show",
            buffer.mmap_size
        ));
    };
    (buffer.mmap_size, buffer.mmap_offset) = (size, 0);
    let file = sealed_file(size).map_err(|error| error.to_string())?;
    let payload = Reply::Inflight(buffer).to_message(31).payload;
    Ok(Parcel::Reply([header, &payload].concat(), Some(file)))
}

/// Longest message of the driver's.
pub(super) const MAX_OUTGOING: u64 = (HEADER_LEN + MAX_PAYLOAD) as u64;

/// Takes promises out of a reply that the tunnel cannot keep.
fn filter(request: u32, mut bytes: Vec<u8>, bounds: Bounds) -> Vec<u8> {
    let Some((_, payload)) = bytes.split_first_chunk_mut::<HEADER_LEN>() else {
        return bytes;
    };
    let Ok(payload) = <&mut [u8; 8]>::try_from(payload) else {
        return bytes;
    };
    let value = u64::from_le_bytes(*payload);
    let value = match request {
        1 if !bounds.taken.channel => value & !ACCESS_PLATFORM,
        15 => value & bounds.taken.passed().bits(),
        17 => value.min(bounds.rings.into()),
        _ => value,
    };
    *payload = value.to_le_bytes();
    bytes
}
