//! Any Ethernet interface through a packet socket (AF_PACKET).
//!
//! Frames come through a ring that the kernel fills and we read (TPACKET_V2): looking for one is a
//! load. Version 3 would pack frames more tightly but shows them a block at a time, a millisecond
//! late when there are few. Frames go out with one sendmmsg(2) a burst, straight from where they
//! lie: through a ring of its own each would be copied into it first, and the kernel would not
//! say which of them it refused. The socket has virtio headers (PACKET_VNET_HDR), because what
//! other programs of this machine send over veth and bridges has no checksums and is not
//! segmented yet.
//!
//! The kernel's own stack sees the interface's frames too; give it no address there.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use vm_memory::Bytes;
use vvu::memory::{Mapping, VolatileSlice};
use vvu::notify::Kick;

use super::UplinkError;
use super::intake::Intake;
use super::interface::Interface;
use super::sys;
use super::transmit::{Door, transmit};
use crate::port::Stats;
use crate::port::burst::{Burst, Pick, Place};
use crate::port::head::Heads;
use crate::port::offload::{self, Accepts, MAX_LARGE};
use crate::port::scratch::Scratch;
use crate::stats::Drop;
use crate::wake::{Quiet, Waker, Watch};

/// Bytes of a slot: the longest frame and what the kernel puts before it.
const SLOT: usize = (MAX_LARGE + 192).next_multiple_of(256);
/// Slots of a block, which the kernel allocates as one piece.
const BLOCK_SLOTS: usize = 7;
/// Bytes of a block: whole pages, rounded up to a power of two by the kernel anyway.
const BLOCK: usize = 512 << 10;
/// Blocks.
const BLOCKS: usize = 64;
/// Slots.
const SLOTS: usize = BLOCKS * BLOCK_SLOTS;

const _: () = assert!(BLOCK_SLOTS * SLOT <= BLOCK && SLOT.is_multiple_of(16));

/// TPACKET_V2.
const VERSION_2: i32 = 1;

/// Offsets in a slot's header (struct tpacket2_hdr).
mod at {
    pub(super) const STATUS: usize = 0;
    pub(super) const LEN: usize = 4;
    pub(super) const CAPTURED: usize = 8;
    pub(super) const MAC: usize = 12;
    pub(super) const VLAN_TCI: usize = 24;
    pub(super) const VLAN_TPID: usize = 26;
}

/// The slot is the kernel's.
const STATUS_KERNEL: u32 = 0;
/// The slot is ours.
const STATUS_USER: u32 = 1;
/// Its VLAN tag was taken out of the frame...
const STATUS_VLAN: u32 = 1 << 4;
/// ...and its EtherType is not the usual one.
const STATUS_TPID: u32 = 1 << 6;

/// Bursts between two questions for the kernel's count of frames that found the ring full.
const STATISTICS_BURSTS: u32 = 4096;

/// What comes from an interface.
#[derive(Debug)]
pub struct PacketRx {
    socket: Arc<OwnedFd>,
    ring: Mapping,
    /// The slot to look at next.
    next: usize,
    intake: Intake,
    bursts: u32,
    stats: Stats,
    _watch: Watch,
}

/// What goes to an interface.
#[derive(Debug)]
pub struct PacketTx {
    socket: Arc<OwnedFd>,
    stats: Stats,
}

/// Opens interface `name` as a port whose frames wake `waker`.
pub fn packet(
    name: &str,
    stats: &Stats,
    waker: &Arc<Waker>,
) -> Result<(PacketRx, PacketTx), UplinkError> {
    let interface = Interface::new(name)?;
    let index = interface.index()?;
    // Before the socket is bound, which else begins with an error to report.
    interface.up()?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // Without a protocol, so that nothing arrives before all is set up.
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)
        .map_err(|errno| UplinkError::new("open a packet socket for", name, errno))?;
    let set = |what, option, value: &[u8]| {
        sys::set_option(socket.as_fd(), libc::SOL_PACKET, option, value)
            .map_err(|error| UplinkError::new(what, name, error))
    };
    let on = 1i32.to_ne_bytes();
    let version = VERSION_2.to_ne_bytes();
    set("choose the ring of", libc::PACKET_VERSION, &version)?;
    set("have virtio headers of", libc::PACKET_VNET_HDR, &on)?;
    set("leave out frames to", libc::PACKET_IGNORE_OUTGOING, &on)?;
    // Without it frames only take longer.
    let _ = set("go past the queues of", libc::PACKET_QDISC_BYPASS, &on);
    let request = [BLOCK, BLOCKS, SLOT, SLOTS].map(|number| (number as u32).to_ne_bytes());
    set(
        "have a ring of",
        libc::PACKET_RX_RING,
        request.as_flattened(),
    )?;
    let ring = Mapping::shared(socket.as_fd(), 0, (BLOCK * BLOCKS) as u64)?;
    sys::bind_packet(socket.as_fd(), index)
        .map_err(|error| UplinkError::new("bind to", name, error))?;
    // struct packet_mreq: interface, kind, length of an address, address.
    let mut membership = [0; 16];
    membership[..4].copy_from_slice(&index.to_ne_bytes());
    membership[4..6].copy_from_slice(&(libc::PACKET_MR_PROMISC as u16).to_ne_bytes());
    set(
        "receive every frame of",
        libc::PACKET_ADD_MEMBERSHIP,
        &membership,
    )?;
    let socket = Arc::new(socket);
    let watch = socket
        .try_clone()
        .and_then(|fd| waker.watch(Kick::Event(fd)));
    let rx = PacketRx {
        ring,
        next: 0,
        intake: Intake::default(),
        bursts: 0,
        stats: Arc::clone(stats),
        _watch: watch.map_err(|error| UplinkError::new("watch", name, error))?,
        socket: Arc::clone(&socket),
    };
    let tx = PacketTx {
        socket,
        stats: Arc::clone(stats),
    };
    Ok((rx, tx))
}

/// Where slot `number` begins.
fn slot(number: usize) -> usize {
    number / BLOCK_SLOTS * BLOCK + number % BLOCK_SLOTS * SLOT
}

/// The slot's state. Acquire: pairs with the kernel's barrier before it hands a slot over, so that
/// the frame is seen.
fn status(ring: VolatileSlice<'_>, slot: usize) -> u32 {
    ring.load(slot + at::STATUS, Ordering::Acquire)
        .unwrap_or(STATUS_KERNEL)
}

impl PacketRx {
    pub(in crate::port) fn rx_burst(
        &mut self,
        heads: &mut Heads,
        mut each: impl FnMut(&Burst<'_>) -> bool,
    ) -> bool {
        let ring = self.ring.slice();
        let first = self.next;
        self.intake.clear();
        let mut taken = 0;
        while !self.intake.is_full() && taken < SLOTS {
            let start = slot(self.next);
            let status = status(ring, start);
            if status & STATUS_USER == 0 {
                break;
            }
            match locate(ring, start, status) {
                Ok(place) => self.intake.add(place),
                Err(reason) => self.stats.dropped(reason, 1),
            }
            self.next = (self.next + 1) % SLOTS;
            taken += 1;
        }
        if taken == 0 {
            return false;
        }
        self.intake.deliver(heads, ring, &self.stats, &mut each);
        for number in 0..taken {
            // Release: the kernel sees the slot free only when its frame is not used any more.
            let status = slot((first + number) % SLOTS) + at::STATUS;
            let _ = ring.store(STATUS_KERNEL, status, Ordering::Release);
        }
        self.bursts = self.bursts.wrapping_add(1);
        if self.bursts.is_multiple_of(STATISTICS_BURSTS) {
            self.ask();
        }
        true
    }

    /// Counts what found the ring full since the last question.
    fn ask(&mut self) {
        // struct tpacket_stats: packets, drops. Reading sets them to zero.
        let mut counts = [0; 8];
        let option = libc::PACKET_STATISTICS;
        if sys::get_option(self.socket.as_fd(), libc::SOL_PACKET, option, &mut counts).is_ok() {
            let [.., a, b, c, d] = counts;
            let drops = u32::from_ne_bytes([a, b, c, d]);
            self.stats.dropped(Drop::KernelFull, drops.into());
        }
    }

    pub(in crate::port) fn enable_kicks(&mut self) -> Quiet {
        self.ask();
        // What arrives from now on wakes the worker; this is the look that comes after.
        match status(self.ring.slice(), slot(self.next)) & STATUS_USER {
            0 => Quiet::Kicked,
            _ => Quiet::Busy,
        }
    }
}

/// Where the frame in the slot at `start` is. A VLAN tag that the kernel keeps beside the frame
/// is put back where it was.
fn locate(ring: VolatileSlice<'_>, start: usize, status: u32) -> Result<Place, Drop> {
    let word = |at| ring.read_obj::<u32>(start + at).unwrap_or(0);
    let half = |at| ring.read_obj::<u16>(start + at).unwrap_or(0);
    let (whole, len) = (word(at::LEN), word(at::CAPTURED) as usize);
    let mac = usize::from(half(at::MAC));
    if len < whole as usize {
        return Err(Drop::TooLong);
    }
    let inside = mac.checked_add(len).is_some_and(|end| end <= SLOT);
    let (Some(header_at), true) = (mac.checked_sub(offload::HEADER), inside) else {
        return Err(Drop::Truncated);
    };
    let mut header = [0; offload::HEADER];
    let _ = ring.read_slice(&mut header, start + header_at);
    let mut place = Place {
        offset: start + mac,
        len,
        header,
    };
    if status & STATUS_VLAN != 0 && len >= 12 {
        let kind = match status & STATUS_TPID {
            0 => 0x8100,
            _ => half(at::VLAN_TPID),
        };
        tag(ring, &mut place, kind, half(at::VLAN_TCI));
    }
    Ok(place)
}

/// Length of a VLAN tag.
const TAG: usize = 4;

/// Puts a VLAN tag between addresses and type of a frame, over the header that was before it.
fn tag(ring: VolatileSlice<'_>, place: &mut Place, kind: u16, tci: u16) {
    let Some(offset) = place.offset.checked_sub(TAG) else {
        return;
    };
    let mut front = [0; 12 + TAG];
    let _ = ring.read_slice(&mut front[..12], place.offset);
    front[12..14].copy_from_slice(&kind.to_be_bytes());
    front[14..].copy_from_slice(&tci.to_be_bytes());
    let _ = ring.write_slice(&front, offset);
    place.offset = offset;
    place.len += TAG;
    // Where the checksum starts is counted from the frame's begin.
    let [flags, _, _, _, _, _, low, high, ..] = place.header;
    if flags != 0 {
        let start = u16::from_le_bytes([low, high]).wrapping_add(TAG as u16);
        place.header[6..8].copy_from_slice(&start.to_le_bytes());
    }
}

impl PacketTx {
    pub(in crate::port) fn tx_burst(
        &mut self,
        burst: &Burst<'_>,
        picks: &[Pick],
        scratch: &mut Scratch,
    ) -> bool {
        let accepts = Accepts {
            csum: true,
            tso4: true,
            tso6: true,
            ecn: true,
            // Which kernels take them from packet sockets cannot be asked.
            uso4: false,
            uso6: false,
        };
        let door = Door::Socket(self.socket.as_fd());
        transmit(door, accepts, burst, picks, scratch, &self.stats);
        true
    }
}
