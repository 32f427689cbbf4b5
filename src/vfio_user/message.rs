//! Messages of vfio-user, as they lie on the wire: a header of 16 bytes, then what the command
//! asks for. Everything is in the byte order of the machine, which both sides share. Numbers of
//! regions and interrupts and most flags are those of the kernel's vfio.
//! (vfio-user protocol specification, version 0.0.)

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::socket::MAX_FDS;

/// The only major version there is.
pub(super) const MAJOR: u16 = 0;

/// Flag of a header: what it begins is a reply.
pub(super) const REPLY: u32 = 1;
/// The bits that say whether it is a command or a reply.
pub(super) const KIND: u32 = 0xf;
/// Flag of a command: no reply is wanted.
pub(super) const NO_REPLY: u32 = 1 << 4;
/// Flag of a reply: the command failed, for the reason in `error`.
pub(super) const ERROR: u32 = 1 << 5;

/// Numbers of the commands in use.
pub(super) mod command {
    pub(in super::super) const VERSION: u16 = 1;
    pub(in super::super) const DMA_MAP: u16 = 2;
    pub(in super::super) const DMA_UNMAP: u16 = 3;
    pub(in super::super) const GET_INFO: u16 = 4;
    pub(in super::super) const GET_REGION_INFO: u16 = 5;
    pub(in super::super) const GET_IRQ_INFO: u16 = 7;
    pub(in super::super) const SET_IRQS: u16 = 8;
    pub(in super::super) const REGION_READ: u16 = 9;
    pub(in super::super) const REGION_WRITE: u16 = 10;
    pub(in super::super) const RESET: u16 = 13;
}

/// What a command is called in messages to people.
pub(super) fn name(command: u16) -> &'static str {
    match command {
        command::VERSION => "VERSION",
        command::DMA_MAP => "DMA_MAP",
        command::DMA_UNMAP => "DMA_UNMAP",
        command::GET_INFO => "DEVICE_GET_INFO",
        command::GET_REGION_INFO => "DEVICE_GET_REGION_INFO",
        command::GET_IRQ_INFO => "DEVICE_GET_IRQ_INFO",
        command::SET_IRQS => "DEVICE_SET_IRQS",
        command::REGION_READ => "REGION_READ",
        command::REGION_WRITE => "REGION_WRITE",
        command::RESET => "DEVICE_RESET",
        _ => "an unknown command",
    }
}

/// Declares structures that are sent and received.
macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub(super) struct $name {
            $(pub(super) $field: $type,)*
        }
    )*};
}

wire! {
    /// What every message begins with. `size` counts the header, too.
    Header { id: u16, command: u16, size: u32, flags: u32, error: u32 }
    /// Followed by capabilities in JSON and a zero byte.
    Version { major: u16, minor: u16 }
    DmaMap { argsz: u32, flags: u32, offset: u64, address: u64, size: u64 }
    DmaUnmap { argsz: u32, flags: u32, address: u64, size: u64 }
    DeviceInfo { argsz: u32, flags: u32, regions: u32, irqs: u32 }
    RegionInfo { argsz: u32, flags: u32, index: u32, cap_offset: u32, size: u64, offset: u64 }
    /// What every capability of a region begins with; `next` counts from the [`RegionInfo`].
    Capability { id: u16, version: u16, next: u32 }
    /// Which parts of a region can be mapped; followed by [`Span`]s.
    SparseMmap { count: u32, reserved: u32 }
    /// A part of a region.
    Span { offset: u64, size: u64 }
    IrqInfo { argsz: u32, flags: u32, index: u32, count: u32 }
    SetIrqs { argsz: u32, flags: u32, index: u32, start: u32, count: u32 }
    /// Followed by the data: of the command if it writes, of the reply if it reads.
    Access { offset: u64, region: u32, count: u32 }
}

/// Length of a header.
pub(super) const HEADER_LEN: usize = size_of::<Header>();

/// The value that `bytes` begin with.
pub(super) fn read<T: FromBytes>(bytes: &[u8]) -> Option<T> {
    T::read_from_prefix(bytes).ok().map(|(value, _)| value)
}

/// The value that `bytes` begin with, and the rest of them.
pub(super) fn split<T: FromBytes>(bytes: &[u8]) -> Option<(T, &[u8])> {
    T::read_from_prefix(bytes).ok()
}

/// How much follows a header, in a message of at most `most` bytes.
pub(super) fn payload_len(header: &[u8; HEADER_LEN], most: usize) -> Result<usize, String> {
    let header: Header = zerocopy::transmute!(*header);
    let size = header.size as usize;
    match size.checked_sub(HEADER_LEN) {
        Some(len) if size <= most => Ok(len),
        _ => Err(format!(
            "{} announces a message of {size} bytes; {HEADER_LEN} to {most} are possible",
            name(header.command)
        )),
    }
}

/// What either side takes in one message, in the form that a [`Version`] is followed by.
pub(super) fn capabilities(transfer: u32) -> String {
    format!(
        "{{\"capabilities\":{{\"max_msg_fds\":{MAX_FDS},\"max_data_xfer_size\":{transfer}}}}}\0"
    )
}
