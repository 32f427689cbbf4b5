//! One queue of an Ethernet interface through an AF_XDP socket.
//!
//! The driver (or, in copy mode, the kernel) puts frames into memory of ours and takes them from
//! there; rings say which. A program at the interface gives the queue's frames to the socket
//! before the kernel's stack sees them; frames of other queues pass. There are no offloads: a
//! frame is complete when it comes, and completed before it goes.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, XdpOptionsFlags, XdpUmemReg, XdpUmemRegFlags,
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socket_with};
use vvu::memory::{Mapping, copy};
use vvu::notify::Kick;

use super::UplinkError;
use super::bpf::Redirect;
use super::intake::Intake;
use super::interface::Interface;
use super::xsk_ring::{ADDRESS, Desc, Ring};
use crate::port::Stats;
use crate::port::burst::{BURST, Burst, Pick, Place};
use crate::port::head::{Heads, PLAIN};
use crate::port::offload::Accepts;
use crate::port::scratch::{Scratch, Shown};
use crate::stats::Drop;
use crate::wake::{Quiet, Waker, Watch};

/// How frames get from the driver to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdpMode {
    /// As the driver can.
    Auto,
    /// The kernel copies them.
    Copy,
    /// The driver uses our memory, or the port is refused.
    ZeroCopy,
}

/// What is wanted of an AF_XDP port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XdpConfig {
    /// Name of the interface.
    pub name: String,
    /// Number of its queue.
    pub queue: u32,
    /// How frames get to us.
    pub mode: XdpMode,
}

/// Bytes for each frame, whatever its length.
const CHUNK: usize = 4096;
/// What the kernel keeps free before each frame received.
const HEADROOM: usize = 256;
/// Longest MTU whose frames fit, with Ethernet header and two VLAN tags.
const MAX_MTU: usize = CHUNK - HEADROOM - 22;

/// Frames that wait for something to receive, and entries of the rings for it.
const RX_FRAMES: u32 = 2048;
/// Frames to send, and entries of the rings for it.
const TX_FRAMES: u32 = 1024;

/// Where each ring is mapped from.
const RX_PAGE: u64 = 0;
const TX_PAGE: u64 = 0x8000_0000;
const FILL_PAGE: u64 = 0x1_0000_0000;
const COMPLETION_PAGE: u64 = 0x1_8000_0000;

/// XDP_FLAGS_SKB_MODE: the program runs in the kernel's stack.
const IN_STACK: u32 = 1 << 1;
/// XDP_FLAGS_DRV_MODE: the program runs in the driver.
const IN_DRIVER: u32 = 1 << 2;

/// Bursts between two questions for the kernel's counts.
const STATISTICS_BURSTS: u32 = 4096;

/// What both halves need.
#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    memory: Mapping,
    /// The kernel could not send all that it was given: it wants to be told again.
    unsent: AtomicBool,
    _redirect: Redirect,
}

/// What comes from a queue.
#[derive(Debug)]
pub struct XdpRx {
    socket: Arc<Socket>,
    received: Ring,
    fill: Ring,
    intake: Intake,
    bursts: u32,
    /// The kernel's count of frames without room, when last asked.
    dropped: u64,
    stats: Stats,
    _watch: Watch,
}

/// What goes to a queue.
#[derive(Debug)]
pub struct XdpTx {
    socket: Arc<Socket>,
    send: Ring,
    completed: Ring,
    /// Addresses of chunks not in use.
    free: Vec<u64>,
    down: bool,
    stats: Stats,
}

/// Opens a queue as a port whose frames wake `waker`.
pub fn xdp(
    config: &XdpConfig,
    stats: &Stats,
    waker: &Arc<Waker>,
) -> Result<(XdpRx, XdpTx), UplinkError> {
    let name = config.name.as_str();
    let interface = Interface::new(name)?;
    let index = interface.index()?;
    let found = interface.mtu()?;
    if found > MAX_MTU {
        return Err(UplinkError::Mtu {
            name: name.to_owned(),
            found,
            most: MAX_MTU,
        });
    }
    interface.up()?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::XDP, SocketType::RAW, flags, None).map_err(|errno| {
        let hint = match errno {
            Errno::AFNOSUPPORT => "; this kernel has no AF_XDP (CONFIG_XDP_SOCKETS)",
            _ => "; run as root, or with CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF",
        };
        UplinkError::hinted("open an AF_XDP socket for", name, errno, hint)
    })?;
    let chunks = RX_FRAMES as usize + TX_FRAMES as usize;
    let memory = Mapping::huge(chunks * CHUNK).or_else(|_| Mapping::anonymous(chunks * CHUNK))?;
    let (rings, zero_copy) = set_up(config, index, &fd, &memory)?;
    let [received, send, mut fill, completed] = rings;
    // Before the first frame is redirected: the kernel would have no place for it.
    for chunk in 0..u64::from(RX_FRAMES) {
        fill.put_address(chunk * CHUNK as u64);
    }
    fill.publish();
    let redirect = attach(config, index, &fd)?;
    tracing::info!(
        port = name,
        queue = config.queue,
        mode = if zero_copy { "zero-copy" } else { "copy" },
        "AF_XDP socket bound"
    );
    let watch = fd.try_clone().and_then(|fd| waker.watch(Kick::Event(fd)));
    let watch = watch.map_err(|error| UplinkError::new("watch", name, error))?;
    let socket = Arc::new(Socket {
        fd,
        memory,
        unsent: AtomicBool::new(false),
        _redirect: redirect,
    });
    let first = u64::from(RX_FRAMES);
    let ours = first..first + u64::from(TX_FRAMES);
    let rx = XdpRx {
        socket: Arc::clone(&socket),
        received,
        fill,
        intake: Intake::default(),
        bursts: 0,
        dropped: 0,
        stats: Arc::clone(stats),
        _watch: watch,
    };
    let tx = XdpTx {
        socket,
        send,
        completed,
        free: ours.map(|chunk| chunk * CHUNK as u64).collect(),
        down: false,
        stats: Arc::clone(stats),
    };
    Ok((rx, tx))
}

/// Gives the kernel `memory`, makes the rings (received, send, fill, completed) and binds the
/// socket. Returns whether the driver uses the memory itself, too.
fn set_up(
    config: &XdpConfig,
    index: u32,
    fd: &OwnedFd,
    memory: &Mapping,
) -> Result<([Ring; 4], bool), UplinkError> {
    let name = config.name.as_str();
    let failed = |what| move |errno: Errno| UplinkError::new(what, name, errno);
    let memory = XdpUmemReg {
        addr: memory.address() as u64,
        len: memory.len() as u64,
        chunk_size: CHUNK as u32,
        headroom: 0,
        flags: XdpUmemRegFlags::empty(),
        tx_metadata_len: 0,
    };
    sockopt::set_xdp_umem_reg(fd, memory).map_err(|errno| {
        let hint = match errno {
            Errno::NOBUFS | Errno::PERM => {
                "; 12 MiB are to be locked: ulimit -l unlimited, or CAP_IPC_LOCK"
            }
            _ => "",
        };
        UplinkError::hinted("give memory to the AF_XDP socket of", name, errno, hint)
    })?;
    let rings = "have rings for";
    sockopt::set_xdp_rx_ring_size(fd, RX_FRAMES).map_err(failed(rings))?;
    sockopt::set_xdp_umem_fill_ring_size(fd, RX_FRAMES).map_err(failed(rings))?;
    sockopt::set_xdp_tx_ring_size(fd, TX_FRAMES).map_err(failed(rings))?;
    sockopt::set_xdp_umem_completion_ring_size(fd, TX_FRAMES).map_err(failed(rings))?;
    let offsets = sockopt::xdp_mmap_offsets(fd).map_err(failed(rings))?;
    let map = |page, offsets, size, entry| Ring::map(fd.as_fd(), page, offsets, size, entry);
    let rings = [
        map(RX_PAGE, &offsets.rx, RX_FRAMES, Desc::SIZE)?,
        map(TX_PAGE, &offsets.tx, TX_FRAMES, Desc::SIZE)?,
        map(FILL_PAGE, &offsets.fr, RX_FRAMES, ADDRESS)?,
        map(COMPLETION_PAGE, &offsets.cr, TX_FRAMES, ADDRESS)?,
    ];
    let how = match config.mode {
        XdpMode::Auto => SocketAddrXdpFlags::empty(),
        XdpMode::Copy => SocketAddrXdpFlags::XDP_COPY,
        XdpMode::ZeroCopy => SocketAddrXdpFlags::XDP_ZEROCOPY,
    };
    let flags = how | SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
    let address = SocketAddrXdp::new(flags, index, config.queue);
    rustix::net::bind(fd, &address).map_err(|errno| {
        let hint = match (errno, config.mode) {
            (Errno::OPNOTSUPP, XdpMode::ZeroCopy) => {
                "; its driver cannot do zero-copy: use mode=auto or mode=copy"
            }
            (Errno::BUSY, _) => "; another socket has this queue",
            (Errno::INVAL, _) => "; has it a queue of this number? (ethtool -l)",
            _ => "",
        };
        UplinkError::hinted("bind the AF_XDP socket to", name, errno, hint)
    })?;
    let options = sockopt::xdp_options(fd).map_err(failed("ask for the mode of"))?;
    Ok((
        rings,
        options.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY),
    ))
}

/// Has the queue's frames redirected to the socket: by the driver, or else by the stack.
fn attach(config: &XdpConfig, index: u32, fd: &OwnedFd) -> Result<Redirect, UplinkError> {
    let queues = config.queue.saturating_add(1);
    let mut redirect = Redirect::attach(index, queues, IN_DRIVER);
    let unsupported = matches!(&redirect, Err(error)
        if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)));
    if unsupported && config.mode != XdpMode::ZeroCopy {
        redirect = Redirect::attach(index, queues, IN_STACK);
    }
    let redirect = redirect.map_err(|error| {
        let hint = match error.raw_os_error() {
            Some(libc::EBUSY | libc::EEXIST) => {
                "; it has another XDP program (ip link set dev NAME xdp off)"
            }
            Some(libc::EPERM) => "; run as root, or with CAP_BPF and CAP_NET_ADMIN",
            _ => "",
        };
        UplinkError::hinted("attach an XDP program to", &config.name, error, hint)
    })?;
    redirect
        .set(config.queue, fd.as_fd())
        .map_err(|error| UplinkError::new("redirect frames of", &config.name, error))?;
    Ok(redirect)
}

impl XdpRx {
    pub(in crate::port) fn rx_burst(
        &mut self,
        heads: &mut Heads,
        mut each: impl FnMut(&Burst<'_>) -> bool,
    ) -> bool {
        if self.socket.unsent.load(Ordering::Relaxed) {
            self.socket.kick();
        }
        let taken = self.received.available().min(BURST);
        if taken == 0 {
            return false;
        }
        self.intake.clear();
        let mut chunks = [0; BURST];
        for chunk in chunks.iter_mut().take(taken) {
            let Desc { address, len } = self.received.take();
            *chunk = address & !(CHUNK as u64 - 1);
            self.intake.add(Place {
                offset: usize::try_from(address).unwrap_or(usize::MAX),
                len: len as usize,
                header: PLAIN,
            });
        }
        self.received.release();
        let memory = self.socket.memory.slice();
        self.intake.deliver(heads, memory, &self.stats, &mut each);
        // There is always room: the ring has as many entries as there are chunks for it.
        for chunk in chunks.iter().take(taken) {
            self.fill.put_address(*chunk);
        }
        self.fill.publish();
        if self.fill.needs_wakeup() {
            let _ = rustix::net::recv(&self.socket.fd, &mut [0u8; 0], RecvFlags::DONTWAIT);
        }
        self.bursts = self.bursts.wrapping_add(1);
        if self.bursts.is_multiple_of(STATISTICS_BURSTS) {
            self.ask();
        }
        true
    }

    /// Counts what the kernel dropped since the last question.
    fn ask(&mut self) {
        if let Ok(now) = sockopt::xdp_statistics(&self.socket.fd) {
            let dropped = now.rx_dropped + now.rx_ring_full.unwrap_or(0);
            let more = dropped.saturating_sub(self.dropped);
            self.stats.dropped(Drop::KernelFull, more);
            self.dropped = dropped;
        }
    }

    pub(in crate::port) fn enable_kicks(&mut self) -> Quiet {
        self.ask();
        // What arrives from now on wakes the worker; this is the look that comes after.
        let unsent = self.socket.unsent.load(Ordering::Relaxed);
        match self.received.available() {
            0 if unsent => Quiet::Polled,
            0 => Quiet::Kicked,
            _ => Quiet::Busy,
        }
    }
}

/// Most calls for one burst: the kernel sends 32 frames with each.
const KICKS: usize = 4;

impl Socket {
    /// Has the kernel send what it was given. False if the interface is down.
    fn kick(&self) -> bool {
        for _ in 0..KICKS {
            match rustix::net::send(&self.fd, &[], SendFlags::DONTWAIT) {
                Ok(_) => {
                    self.unsent.store(false, Ordering::Relaxed);
                    return true;
                }
                Err(Errno::AGAIN) => {}
                Err(Errno::NETDOWN | Errno::NXIO) => {
                    self.unsent.store(false, Ordering::Relaxed);
                    return false;
                }
                Err(_) => break,
            }
        }
        self.unsent.store(true, Ordering::Relaxed);
        true
    }
}

/// What became of frames.
#[derive(Default)]
struct Sent {
    packets: u64,
    bytes: u64,
    full: u64,
    small: u64,
}

impl XdpTx {
    pub(in crate::port) fn tx_burst(
        &mut self,
        burst: &Burst<'_>,
        picks: &[Pick],
        scratch: &mut Scratch,
    ) -> bool {
        self.reap();
        if self.down && !self.socket.kick() {
            self.stats.dropped(Drop::LinkDown, picks.len() as u64);
            return true;
        }
        let mut sent = Sent::default();
        for pick in picks {
            let Some(head) = burst.picked(pick) else {
                continue;
            };
            let fits = scratch.show(burst, &head, Accepts::default(), |frame| {
                self.put(frame, &mut sent);
            });
            sent.small += u64::from(!fits);
        }
        if sent.packets > 0 {
            self.send.publish();
            self.down = self.send.needs_wakeup() && !self.socket.kick();
        }
        self.stats.tx_packets.add(sent.packets);
        self.stats.tx_bytes.add(sent.bytes);
        self.stats.dropped(Drop::RingFull, sent.full);
        self.stats.dropped(Drop::SmallBuffer, sent.small);
        true
    }

    /// Takes back the chunks of frames that were sent.
    fn reap(&mut self) {
        let done = self.completed.available();
        for _ in 0..done {
            let chunk = self.completed.take_address();
            if self.free.len() < TX_FRAMES as usize {
                self.free.push(chunk);
            }
        }
        if done > 0 {
            self.completed.release();
        }
    }

    /// Copies a frame into a chunk and queues it.
    fn put(&mut self, frame: Shown<'_>, sent: &mut Sent) {
        let len = frame.len;
        if len > CHUNK {
            sent.small += 1;
            return;
        }
        if self.send.room() == 0 {
            sent.full += 1;
            return;
        }
        let Some(address) = self.free.pop() else {
            sent.full += 1;
            return;
        };
        let memory = self.socket.memory.slice();
        let Ok(mut rest) = memory.subslice(address as usize, len) else {
            return;
        };
        let mut copied = copy::write(frame.first, rest);
        for piece in frame.body {
            let Ok(next) = rest.offset(copied) else {
                break;
            };
            rest = next;
            copied = copy::across(piece, rest);
        }
        self.send.put(Desc {
            address,
            len: len as u32,
        });
        sent.packets += 1;
        sent.bytes += len as u64;
    }
}
