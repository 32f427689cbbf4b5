//! A TAP interface: what its kernel sends comes from the port, what goes to the port is received
//! there.
//!
//! Each frame has a virtio header before it (IFF_VNET_HDR), so that checksums and segmentation
//! that the kernel left to the device pass through the switch as a guest's do, and the other way
//! round. A TAP costs a system call for each frame; a file descriptor is a queue, and the kernel
//! chooses among several by flow.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use vvu::memory::VolatileSlice;
use vvu::notify::Kick;

use super::UplinkError;
use super::intake::{Intake, Pace};
use super::interface::Interface;
use super::sys::{self, IfAction, IfRequest, TapSetting};
use super::transmit::{Door, transmit};
use crate::port::Stats;
use crate::port::burst::{BURST, Burst, Pick, Place};
use crate::port::head::Heads;
use crate::port::offload::{self, Accepts, MAX_LARGE};
use crate::port::scratch::Scratch;
use crate::wake::{Quiet, Waker, Watch};

/// What is wanted of a TAP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapConfig {
    /// Name of the interface. One that is not there is made, and goes with the port.
    pub name: String,
    /// Number of queues.
    pub queues: u16,
    /// The interface's MTU; as it is if `None`.
    pub mtu: Option<u16>,
}

impl TapConfig {
    /// Most queues: the kernel's limit.
    pub const MAX_QUEUES: u16 = 256;
}

/// Room for one frame with its header.
const SLOT: usize = offload::HEADER + MAX_LARGE;

/// Bytes that one round reads at most. Short frames lie close together, so that a burst of them
/// stays in the cache.
const ROOM: usize = 4 * SLOT;

/// What the kernel may leave to us, all of which we can pass on or do.
const OFFLOADS: u32 = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// The same for datagrams, since Linux 6.2.
const DATAGRAMS: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// What comes from a TAP.
#[derive(Debug)]
pub struct TapRx {
    queues: Vec<Queue>,
    room: Box<[u8]>,
    intake: Intake,
    stats: Stats,
}

#[derive(Debug)]
struct Queue {
    fd: Arc<OwnedFd>,
    pace: Pace,
    _watch: Watch,
}

/// What goes to a TAP.
#[derive(Debug)]
pub struct TapTx {
    queues: Vec<Arc<OwnedFd>>,
    accepts: Accepts,
    stats: Stats,
}

/// Opens a TAP as a port whose frames wake `waker`.
pub fn tap(
    config: &TapConfig,
    stats: &Stats,
    waker: &Arc<Waker>,
) -> Result<(TapRx, TapTx), UplinkError> {
    let interface = Interface::new(&config.name)?;
    let mut queues = Vec::new();
    let mut several = config.queues > 1;
    for number in 0..config.queues.max(1) {
        let mut queue = open(&config.name, several);
        if number == 0 && !several && is_invalid(&queue) {
            // An interface that is there may have been made for several.
            several = true;
            queue = open(&config.name, several);
        }
        queues.push(Arc::new(queue?));
    }
    let mut accepts = Accepts::default();
    for queue in &queues {
        accepts = set_up(&config.name, queue)?;
    }
    if let Some(mtu) = config.mtu {
        interface.set_mtu(mtu)?;
    }
    interface.up()?;
    let watched = queues.iter().map(|fd| {
        let kick = fd.try_clone().and_then(|fd| waker.watch(Kick::Event(fd)));
        Ok(Queue {
            fd: Arc::clone(fd),
            pace: Pace::default(),
            _watch: kick.map_err(|error| UplinkError::new("watch", &config.name, error))?,
        })
    });
    let rx = TapRx {
        queues: watched.collect::<Result<_, UplinkError>>()?,
        room: vec![0; ROOM].into(),
        intake: Intake::default(),
        stats: Arc::clone(stats),
    };
    let tx = TapTx {
        queues,
        accepts,
        stats: Arc::clone(stats),
    };
    Ok((rx, tx))
}

fn is_invalid(queue: &Result<OwnedFd, UplinkError>) -> bool {
    matches!(queue, Err(UplinkError::Kernel { source, .. })
        if source.raw_os_error() == Some(libc::EINVAL))
}

/// Makes or joins the interface.
fn open(name: &str, several: bool) -> Result<OwnedFd, UplinkError> {
    const DEVICE: &str = "/dev/net/tun";
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open(DEVICE, flags, Mode::empty()).map_err(|errno| {
        let hint = match errno {
            Errno::NOENT | Errno::NXIO | Errno::NODEV => {
                "; the kernel has no TUN/TAP driver (modprobe tun), or the container was given no \
                 /dev/net/tun"
            }
            _ => "; run as root, or let your user open it",
        };
        UplinkError::hinted("open /dev/net/tun for", name, errno, hint)
    })?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if several {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut request = IfRequest::new(name);
    request.set_flags(flags as u16);
    sys::interface(fd.as_fd(), IfAction::Attach, &mut request).map_err(|error| {
        let hint = match error.raw_os_error() {
            Some(libc::EPERM) => {
                "; run as root or with CAP_NET_ADMIN, or have root make it for your user: ip \
                 tuntap add NAME mode tap user YOU vnet_hdr"
            }
            Some(libc::EBUSY) => {
                "; another program has it, or fewer queues are left than asked for"
            }
            Some(libc::EINVAL) => {
                "; there is an interface of this name that is no TAP, or one that was made for \
                 another number of queues"
            }
            Some(libc::E2BIG) => "; it has no queue left",
            _ => "",
        };
        UplinkError::hinted("attach to", name, error, hint)
    })?;
    Ok(fd)
}

/// Agrees with the kernel on headers. Returns what it takes.
fn set_up(name: &str, queue: &OwnedFd) -> Result<Accepts, UplinkError> {
    let set = |what, setting| {
        sys::tap(queue.as_fd(), setting).map_err(|error| UplinkError::new(what, name, error))
    };
    let length = offload::HEADER as i32;
    set("set the header length of", TapSetting::HeaderLength(length))?;
    set("set the byte order of", TapSetting::LittleEndian(true))?;
    let datagrams = TapSetting::Offloads(OFFLOADS | DATAGRAMS);
    let uso = sys::tap(queue.as_fd(), datagrams).is_ok();
    if !uso {
        set("set the offloads of", TapSetting::Offloads(OFFLOADS))?;
    }
    Ok(Accepts {
        csum: true,
        tso4: true,
        tso6: true,
        ecn: true,
        uso4: uso,
        uso6: uso,
    })
}

impl TapRx {
    pub(in crate::port) fn rx_burst(
        &mut self,
        heads: &mut Heads,
        mut each: impl FnMut(&Burst<'_>) -> bool,
    ) -> bool {
        let Self {
            queues,
            room,
            intake,
            stats,
        } = self;
        let mut worked = false;
        for Queue { fd, pace, .. } in queues.iter_mut().filter_map(|queue| {
            let due = queue.pace.due();
            due.then_some(queue)
        }) {
            intake.clear();
            let found = read(fd, room, intake);
            if found == 0 {
                pace.missed();
                continue;
            }
            pace.found();
            worked = true;
            intake.deliver(heads, VolatileSlice::from(&mut room[..]), stats, &mut each);
        }
        worked
    }

    pub(in crate::port) fn enable_kicks(&mut self) -> Quiet {
        let mut quiet = Quiet::Kicked;
        for queue in &mut self.queues {
            // What arrives from now on wakes the worker; this is the look that comes after.
            let mut ready = [PollFd::new(&*queue.fd, PollFlags::IN)];
            let now = Timespec::default();
            if matches!(poll(&mut ready, Some(&now)), Ok(1..))
                && ready[0].revents().contains(PollFlags::IN)
            {
                quiet = Quiet::Busy;
            }
            queue.pace.found();
        }
        quiet
    }
}

/// Reads what there is, at most a burst. Returns how many frames there were, whole or not.
fn read(fd: &OwnedFd, room: &mut [u8], intake: &mut Intake) -> usize {
    let mut found = 0;
    let mut at = 0;
    while found < BURST
        && let Some(slot) = room.get_mut(at..at + SLOT)
        && let Ok(len) = rustix::io::read(fd, &mut *slot)
    {
        found += 1;
        let mut header = [0; offload::HEADER];
        header.copy_from_slice(&slot[..offload::HEADER]);
        intake.add(Place {
            offset: at + offload::HEADER,
            len: len.saturating_sub(offload::HEADER),
            header,
        });
        at += len.next_multiple_of(64);
    }
    found
}

impl TapTx {
    pub(in crate::port) fn tx_burst(
        &mut self,
        burst: &Burst<'_>,
        picks: &[Pick],
        scratch: &mut Scratch,
    ) -> bool {
        let door = Door::Queues(&self.queues);
        transmit(door, self.accepts, burst, picks, scratch, &self.stats);
        true
    }
}
