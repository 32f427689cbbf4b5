//! Payloads: as values, and as they lie on the wire.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A vring and a number: its size, its base, on or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringState {
    /// Which ring.
    pub index: u32,
    /// The number.
    pub num: u32,
}

/// Where a vring is, in front-end addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringAddr {
    /// Which ring.
    pub index: u32,
    /// Bit 0: log writes to the used ring.
    pub flags: u32,
    /// Descriptor table or ring.
    pub desc: u64,
    /// Used ring, or device event suppression.
    pub used: u64,
    /// Available ring, or driver event suppression.
    pub avail: u64,
    /// Guest address that writes to the used ring are logged at.
    pub log: u64,
}

/// The only flag of [`VringAddr`]: log writes to the used ring.
pub(super) const VRING_ADDR_LOG: u32 = 1;

/// A vring and whether a file descriptor comes with the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringFd {
    /// Which ring (bits 0-7).
    pub index: u8,
    /// No file descriptor: poll, or do not call (bit 8).
    pub nofd: bool,
}

/// A region of the front-end's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemRegion {
    /// Guest physical address.
    pub guest_addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// Address in the front-end.
    pub user_addr: u64,
    /// Where the region begins in its file.
    pub mmap_offset: u64,
}

/// The dirty log's place in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogArea {
    /// Length in bytes.
    pub size: u64,
    /// Where it begins.
    pub offset: u64,
}

/// A change of the IOTLB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Iotlb {
    /// First address of the range.
    pub iova: u64,
    /// Length in bytes.
    pub size: u64,
    /// What it maps to, in the front-end.
    pub user_addr: u64,
    /// 1 read, 2 write, 3 both.
    pub permission: u8,
    /// 1 miss, 2 update, 3 invalidate, 4 access failure.
    pub kind: u8,
}

/// A piece of the configuration space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigSpace {
    /// Where it begins.
    pub offset: u32,
    /// 0, or 1 for a write on behalf of live migration.
    pub flags: u32,
    /// Its bytes; in a GET_CONFIG only their number counts.
    pub data: Vec<u8>,
}

/// The buffer that tracks requests in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inflight {
    /// Length in bytes.
    pub mmap_size: u64,
    /// Where it begins in its file.
    pub mmap_offset: u64,
    /// Queues it tracks.
    pub queues: u16,
    /// Size of each.
    pub queue_size: u16,
}

/// Which way device state goes, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceState {
    /// 0 save, 1 load.
    pub direction: u32,
    /// 0: all rings are stopped.
    pub phase: u32,
}

/// The wire's side of a payload: same fields, little-endian, unaligned.
macro_rules! wire {
    ($value:ident as $wire:ident { $($field:ident : $int:ty),+ $(,)? } $($pad:ident : $padding:ty),*) => {
        #[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
        #[repr(C)]
        pub(super) struct $wire {
            $($field: $int,)+
            $($pad: $padding,)*
        }

        impl From<&$wire> for $value {
            fn from(wire: &$wire) -> Self {
                Self { $($field: wire.$field.into(),)+ }
            }
        }

        impl From<&$value> for $wire {
            fn from(value: &$value) -> Self {
                Self { $($field: value.$field.into(),)+ $($pad: <$padding>::default(),)* }
            }
        }

        impl Payload for $value {
            type Wire = $wire;
        }
    };
}

/// A payload of fixed size.
pub(super) trait Payload: Sized + for<'a> From<&'a Self::Wire> {
    /// Its layout on the wire.
    type Wire: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned + for<'a> From<&'a Self>;

    /// Its length on the wire.
    const SIZE: usize = size_of::<Self::Wire>();

    /// From bytes; `None` unless there are exactly [`Payload::SIZE`].
    fn parse(bytes: &[u8]) -> Option<Self> {
        let wire = Self::Wire::ref_from_bytes(bytes).ok()?;
        Some(Self::from(wire))
    }

    /// To bytes.
    fn emit(&self) -> Vec<u8> {
        Self::Wire::from(self).as_bytes().to_vec()
    }
}

wire!(VringState as VringStateWire { index: U32, num: U32 });
wire!(VringAddr as VringAddrWire { index: U32, flags: U32, desc: U64, used: U64, avail: U64, log: U64 });
wire!(MemRegion as MemRegionWire { guest_addr: U64, size: U64, user_addr: U64, mmap_offset: U64 });
wire!(LogArea as LogAreaWire { size: U64, offset: U64 });
wire!(Iotlb as IotlbWire { iova: U64, size: U64, user_addr: U64, permission: u8, kind: u8 } padding: [u8; 6]);
wire!(Inflight as InflightWire { mmap_size: U64, mmap_offset: U64, queues: U16, queue_size: U16 } padding: [u8; 4]);
wire!(DeviceState as DeviceStateWire { direction: U32, phase: U32 });

/// A number of 64 bits, the most common payload.
pub(super) struct Number(pub(super) u64);

impl From<&U64> for Number {
    fn from(wire: &U64) -> Self {
        Self(wire.get())
    }
}

impl From<&Number> for U64 {
    fn from(value: &Number) -> Self {
        Self::new(value.0)
    }
}

impl Payload for Number {
    type Wire = U64;
}

/// Bit of [`VringFd`]'s number that says that no file descriptor comes.
const NOFD: u64 = 1 << 8;

impl VringFd {
    /// From the message's number; `Err` has the reserved bits that are set.
    pub(super) fn from_number(number: u64) -> Result<Self, u64> {
        let index = (number & 0xff) as u8;
        let nofd = number & NOFD != 0;
        match number & !(NOFD | 0xff) {
            0 => Ok(Self { index, nofd }),
            reserved => Err(reserved),
        }
    }

    /// To the message's number.
    pub(super) fn to_number(self) -> u64 {
        u64::from(self.index) | if self.nofd { NOFD } else { 0 }
    }
}

/// Head of a [`ConfigSpace`] on the wire; `size` bytes follow.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ConfigHead {
    offset: U32,
    size: U32,
    flags: U32,
}

impl ConfigSpace {
    /// From bytes; `Err` has the length that they should have had.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, usize> {
        let head_len = size_of::<ConfigHead>();
        let (head, data) = ConfigHead::ref_from_prefix(bytes).map_err(|_| head_len)?;
        let size = head.size.get() as usize;
        if data.len() != size {
            return Err(head_len.saturating_add(size));
        }
        Ok(Self {
            offset: head.offset.get(),
            flags: head.flags.get(),
            data: data.to_vec(),
        })
    }

    /// To bytes.
    pub(super) fn emit(&self) -> Vec<u8> {
        let head = ConfigHead {
            offset: self.offset.into(),
            size: U32::new(self.data.len() as u32),
            flags: self.flags.into(),
        };
        [head.as_bytes(), &self.data].concat()
    }
}
