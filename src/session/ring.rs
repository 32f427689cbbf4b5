//! What a session knows of one ring, and whether that makes a ring. Pure.

use super::SessionError;
use crate::memory::MemTable;
use crate::notify::{Call, Kick};
use crate::protocol::{Features, VringAddr};
use crate::virtio::RingAreas;

/// Largest number of descriptors (VIRTIO 1.2, 2.7 and 2.8).
const MAX_SIZE: u32 = 32768;

/// One ring of a connection.
///
/// The session keeps kick, call and err of a running ring beside those that the device got, so
/// that a ring can be stopped and started again when its memory goes away and comes back.
#[derive(Debug)]
pub(super) struct Ring {
    pub(super) index: u16,
    pub(super) size: Option<u16>,
    pub(super) addr: Option<VringAddr>,
    /// As in SET_VRING_BASE, or where the ring stopped.
    pub(super) base: u32,
    /// Whether SET_VRING_BASE came since the ring last stopped.
    pub(super) base_given: bool,
    /// What the in-flight buffer says of the ring is over: the front-end knows better where it is.
    pub(super) settled: bool,
    pub(super) kick: Option<Kick>,
    pub(super) call: Call,
    pub(super) err: Call,
    /// What SET_VRING_ENABLE said; `None` if it said nothing yet.
    pub(super) enabled: Option<bool>,
    pub(super) running: bool,
}

impl Ring {
    pub(super) fn new(index: u16) -> Self {
        Self {
            index,
            size: None,
            addr: None,
            base: 0,
            base_given: false,
            settled: false,
            kick: None,
            call: Call::Silent,
            err: Call::Silent,
            enabled: None,
            running: false,
        }
    }

    /// Whether the ring shall be processed. Without protocol features, rings are enabled from
    /// the start; with them, from SET_VRING_ENABLE on.
    pub(super) fn is_enabled(&self, features: Features) -> bool {
        self.enabled
            .unwrap_or(!features.contains(Features::PROTOCOL_FEATURES))
    }

    /// Back to the beginning, save for call and err: a front-end may have sent those once and for
    /// all.
    pub(super) fn forget(&mut self) {
        *self = Self {
            call: std::mem::replace(&mut self.call, Call::Silent),
            err: std::mem::replace(&mut self.err, Call::Silent),
            ..Self::new(self.index)
        };
    }

    /// Whether everything came that a front-end sends for a ring.
    pub(super) fn is_complete(&self) -> bool {
        self.base_given && self.has_place() && self.kick.is_some()
    }

    /// Whether size and addresses are known.
    pub(super) fn has_place(&self) -> bool {
        self.size.is_some() && self.addr.is_some()
    }

    /// Where the ring's parts are in `memory`, if they make a valid ring of its size. `None`
    /// while size or addresses are unknown.
    pub(super) fn place(
        &self,
        features: Features,
        memory: &MemTable,
    ) -> Result<Option<RingAreas>, SessionError> {
        let (Some(size), Some(addr)) = (self.size, &self.addr) else {
            return Ok(None);
        };
        self.check_base(size, features)?;
        let lengths = Lengths::of(size, features);
        let find = |part: &'static str, addr: u64, len: usize, align: u64| {
            check_alignment(self.index, part, addr, align)?;
            memory.user(addr, len).ok_or(SessionError::Unmapped {
                index: self.index,
                part,
                addr,
                len,
            })
        };
        Ok(Some(RingAreas {
            desc: find("descriptor area", addr.desc, lengths.desc, 16)?,
            driver: find(
                "driver area",
                addr.avail,
                lengths.driver,
                lengths.driver_align,
            )?,
            device: find("device area", addr.used, lengths.device, 4)?,
        }))
    }

    /// Split rings have a power of two of descriptors and one 16-bit index; packed rings have two
    /// indices below their size, each with a wrap counter.
    fn check_base(&self, size: u16, features: Features) -> Result<(), SessionError> {
        let index = self.index;
        let good = if features.contains(Features::RING_PACKED) {
            let below = |position: u32| position & 0x7fff < u32::from(size);
            below(self.base) && below(self.base >> 16)
        } else {
            if !size.is_power_of_two() {
                let size = u32::from(size);
                return Err(SessionError::RingSize { index, size });
            }
            self.base <= u32::from(u16::MAX)
        };
        match good {
            true => Ok(()),
            false => Err(SessionError::RingBase {
                index,
                base: self.base,
            }),
        }
    }

    /// A size that a ring of some layout can have.
    pub(super) fn check_size(&self, size: u32) -> Result<u16, SessionError> {
        match u16::try_from(size) {
            Ok(valid) if (1..=MAX_SIZE).contains(&size) => Ok(valid),
            _ => Err(SessionError::RingSize {
                index: self.index,
                size,
            }),
        }
    }

    /// Addresses that a ring of some layout can have.
    pub(super) fn check_addr(&self, addr: &VringAddr) -> Result<(), SessionError> {
        check_alignment(self.index, "descriptor area", addr.desc, 16)?;
        check_alignment(self.index, "driver area", addr.avail, 2)?;
        check_alignment(self.index, "device area", addr.used, 4)
    }
}

fn check_alignment(
    index: u16,
    part: &'static str,
    addr: u64,
    align: u64,
) -> Result<(), SessionError> {
    match addr.is_multiple_of(align) {
        true => Ok(()),
        false => Err(SessionError::Alignment {
            index,
            part,
            addr,
            align,
        }),
    }
}

/// Lengths of a ring's parts in bytes (VIRTIO 1.2, 2.7 and 2.8.14). Split rings have their event
/// index counted whether it is negotiated or not: every driver allocates it.
struct Lengths {
    desc: usize,
    driver: usize,
    driver_align: u64,
    device: usize,
}

impl Lengths {
    fn of(size: u16, features: Features) -> Self {
        let n = usize::from(size);
        if features.contains(Features::RING_PACKED) {
            return Self {
                desc: 16 * n,
                driver: 4,
                driver_align: 4,
                device: 4,
            };
        }
        Self {
            desc: 16 * n,
            driver: 6 + 2 * n,
            driver_align: 2,
            device: 6 + 8 * n,
        }
    }
}
