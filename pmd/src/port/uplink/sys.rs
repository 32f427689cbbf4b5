//! System calls that rustix does not have, and those that take a frame from many places at once.
//!
//! What goes in and out are our own types, each of the size that the kernel expects. This file
//! does not know what a port is.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use libc::{iovec, mmsghdr};
use vvu::memory::VolatileSlice;

use crate::port::burst::BURST;
use crate::port::offload::HEADER;

/// What the kernel says by returning -1.
fn check(result: c_int) -> io::Result<c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        other => Ok(other),
    }
}

/// The kernel's `struct ifreq`: a name and a union of 24 bytes.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy)]
pub(super) struct IfRequest {
    name: [u8; 16],
    value: [u8; 24],
}

/// What can be asked about an interface.
#[derive(Debug, Clone, Copy)]
pub(super) enum IfAction {
    GetFlags,
    SetFlags,
    GetMtu,
    SetMtu,
    /// Makes a descriptor of /dev/net/tun a queue of the interface.
    Attach,
}

impl IfRequest {
    /// About the interface of this name, which has at most 15 bytes.
    pub(super) fn new(name: &str) -> Self {
        let mut this = Self {
            name: [0; 16],
            value: [0; 24],
        };
        for (to, from) in this.name[..15].iter_mut().zip(name.bytes()) {
            *to = from;
        }
        this
    }

    /// The value as flags.
    pub(super) fn flags(&self) -> u16 {
        u16::from_ne_bytes([self.value[0], self.value[1]])
    }

    /// Another value, as flags.
    pub(super) fn set_flags(&mut self, flags: u16) {
        self.value[..2].copy_from_slice(&flags.to_ne_bytes());
    }

    /// The value as a number.
    pub(super) fn number(&self) -> i32 {
        let [a, b, c, d, ..] = self.value;
        i32::from_ne_bytes([a, b, c, d])
    }

    /// Another value, as a number.
    pub(super) fn set_number(&mut self, number: i32) {
        self.value[..4].copy_from_slice(&number.to_ne_bytes());
    }
}

/// Does `action` on the interface that `request` names; answers are in `request`.
pub(super) fn interface(
    fd: BorrowedFd<'_>,
    action: IfAction,
    request: &mut IfRequest,
) -> io::Result<()> {
    let number = match action {
        IfAction::GetFlags => libc::SIOCGIFFLAGS,
        IfAction::SetFlags => libc::SIOCSIFFLAGS,
        IfAction::GetMtu => libc::SIOCGIFMTU,
        IfAction::SetMtu => libc::SIOCSIFMTU,
        IfAction::Attach => libc::TUNSETIFF,
    };
    // SAFETY: each of these reads and writes one struct ifreq (40 bytes, aligned to 8), which
    // `request` is for the whole call. On a descriptor that does not know them they fail.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), number, ptr::from_mut(request)) }).map(drop)
}

/// What can be set of a queue of a TAP.
#[derive(Debug, Clone, Copy)]
pub(super) enum TapSetting {
    /// Which offloads the kernel may leave to us (TUN_F_...).
    Offloads(u32),
    /// Length of the header before each frame.
    HeaderLength(c_int),
    /// Whether headers are little-endian.
    LittleEndian(bool),
}

/// Sets something of a queue of a TAP.
pub(super) fn tap(fd: BorrowedFd<'_>, setting: TapSetting) -> io::Result<()> {
    let (number, mut value) = match setting {
        TapSetting::Offloads(flags) => {
            // SAFETY: this request takes its argument by value and touches no memory of ours.
            let done = unsafe {
                libc::ioctl(
                    fd.as_raw_fd(),
                    libc::TUNSETOFFLOAD,
                    libc::c_ulong::from(flags),
                )
            };
            return check(done).map(drop);
        }
        TapSetting::HeaderLength(length) => (libc::TUNSETVNETHDRSZ, length),
        TapSetting::LittleEndian(little) => (libc::TUNSETVNETLE, c_int::from(little)),
    };
    // SAFETY: both read one int, which `value` is for the whole call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), number, ptr::from_mut(&mut value)) }).map(drop)
}

/// Sets an option of a socket to `value`.
pub(super) fn set_option(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &[u8],
) -> io::Result<()> {
    let len = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads at most `len` bytes at the address, all of `value`. No option that
    // this room sets makes the kernel keep an address.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), len) })
        .map(drop)
}

/// Reads an option of a socket into `value`.
pub(super) fn get_option(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &mut [u8],
) -> io::Result<()> {
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes at the address, all of `value`.
    let done = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            ptr::from_mut(&mut len),
        )
    };
    check(done).map(drop)
}

/// Binds a packet socket to interface number `index`, for every protocol.
pub(super) fn bind_packet(fd: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: index as c_int,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes at the address, all of `address`.
    check(unsafe { libc::bind(fd.as_raw_fd(), ptr::from_ref(&address).cast(), len) }).map(drop)
}

/// Writes a header and a frame, as one.
pub(super) fn write(fd: BorrowedFd<'_>, header: &[u8], frame: VolatileSlice<'_>) -> io::Result<()> {
    let bytes = frame.ptr_guard();
    let parts = [
        iovec {
            iov_base: header.as_ptr().cast_mut().cast(),
            iov_len: header.len(),
        },
        iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: frame.len(),
        },
    ];
    // SAFETY: both parts name bytes that are borrowed for this call, and are only read.
    match unsafe { libc::writev(fd.as_raw_fd(), parts.as_ptr(), parts.len() as c_int) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// What [`Gather`] keeps a copy of: a virtio header, and the begin of a frame as far as it is
/// delivered otherwise than it came: two Ethernet addresses, perhaps a VLAN tag.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lead {
    bytes: [u8; Self::ROOM],
    len: u8,
}

impl Lead {
    const ROOM: usize = HEADER + 16;

    /// `header` and `first`, of which there are at most 16 bytes.
    pub(super) fn new(header: &[u8; HEADER], first: &[u8]) -> Self {
        let mut bytes = [0; Self::ROOM];
        bytes[..HEADER].copy_from_slice(header);
        for (to, from) in bytes[HEADER..].iter_mut().zip(first) {
            *to = *from;
        }
        let len = (HEADER + first.len()).min(Self::ROOM) as u8;
        Self { bytes, len }
    }
}

/// Pieces of all frames of a [`Gather`].
const PARTS: usize = 4 * BURST;

/// Pieces of one frame, so that one with many finds room in an empty [`Gather`].
const FRAME_PARTS: usize = PARTS / 2;

/// Frames gathered from where they are, to be sent without a copy of our own.
pub(super) struct Gather<'b> {
    leads: [Lead; BURST],
    lens: [u32; BURST],
    /// Where in `parts` each frame ends.
    ends: [u16; BURST],
    frames: usize,
    parts: [iovec; PARTS],
    used: usize,
    /// The bytes that `parts` name are borrowed.
    bytes: PhantomData<VolatileSlice<'b>>,
}

/// There is no room for a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// But there will be, once what was gathered is sent.
    Now,
    /// It has too many pieces.
    Ever,
}

impl<'b> Gather<'b> {
    const NOTHING: iovec = iovec {
        iov_base: ptr::null_mut(),
        iov_len: 0,
    };

    /// No frames yet.
    pub(super) fn new() -> Self {
        Self {
            leads: [Lead {
                bytes: [0; Lead::ROOM],
                len: 0,
            }; BURST],
            lens: [0; BURST],
            ends: [0; BURST],
            frames: 0,
            parts: [Self::NOTHING; PARTS],
            used: 0,
            bytes: PhantomData,
        }
    }

    /// Whether there are no frames.
    pub(super) fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// Frame bytes of frame `number`.
    fn frame_len(&self, number: usize) -> u64 {
        self.lens.get(number).copied().unwrap_or(0).into()
    }

    /// Forgets all frames.
    fn clear(&mut self) {
        self.frames = 0;
        self.used = 0;
    }

    /// Adds a frame of `len` bytes: `lead`, then `first` and `body`.
    pub(super) fn push(
        &mut self,
        lead: Lead,
        len: usize,
        first: &'b [u8],
        body: impl Iterator<Item = VolatileSlice<'b>>,
    ) -> Result<(), NoRoom> {
        if self.frames == BURST {
            return Err(NoRoom::Now);
        }
        // The lead's address is filled in when it is sent: until then this value may move.
        let mut used = self.used + 1;
        let start = self.used;
        let mut put = |part: iovec| {
            let Some(place) = self.parts.get_mut(used) else {
                return Err(NoRoom::Now);
            };
            *place = part;
            used += 1;
            match used - start > FRAME_PARTS {
                true => Err(NoRoom::Ever),
                false => Ok(()),
            }
        };
        put(iovec {
            iov_base: first.as_ptr().cast_mut().cast(),
            iov_len: first.len(),
        })?;
        for piece in body {
            put(iovec {
                iov_base: piece.ptr_guard().as_ptr().cast_mut().cast(),
                iov_len: piece.len(),
            })?;
        }
        self.leads[self.frames] = lead;
        self.lens[self.frames] = len as u32;
        self.ends[self.frames] = used as u16;
        self.frames += 1;
        self.used = used;
        Ok(())
    }

    /// Points the first piece of each frame at its lead, and returns where the frames are.
    fn settle(&mut self) -> [(usize, usize); BURST] {
        let mut ranges = [(0, 0); BURST];
        let mut start = 0;
        for (number, range) in ranges.iter_mut().enumerate().take(self.frames) {
            let end = usize::from(self.ends[number]);
            let Lead { bytes, len } = &self.leads[number];
            self.parts[start] = iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: usize::from(*len),
            };
            *range = (start, end);
            start = end;
        }
        ranges
    }

    /// Writes each frame with a call of its own; `each` hears what became of it.
    pub(super) fn write(&mut self, fd: BorrowedFd<'_>, mut each: impl FnMut(u64, io::Result<()>)) {
        let ranges = self.settle();
        for (number, (start, end)) in ranges.into_iter().enumerate().take(self.frames) {
            let parts = &self.parts[start..end];
            // SAFETY: each part names bytes that live: of `self.leads`, which does not move while
            // `self` is borrowed, or of slices borrowed for 'b. The kernel only reads them, and
            // says so if they cannot be read.
            let written =
                unsafe { libc::writev(fd.as_raw_fd(), parts.as_ptr(), parts.len() as c_int) };
            let result = match written {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            };
            each(self.frame_len(number), result);
        }
        self.clear();
    }

    /// Sends all frames, with one call unless some are refused; `each` hears what became of
    /// each.
    pub(super) fn send(&mut self, fd: BorrowedFd<'_>, mut each: impl FnMut(u64, io::Result<()>)) {
        let ranges = self.settle();
        // SAFETY: all zeroes is a message to nobody in particular, without pieces.
        let mut messages: [mmsghdr; BURST] = unsafe { std::mem::zeroed() };
        for (message, (start, end)) in messages.iter_mut().zip(ranges).take(self.frames) {
            message.msg_hdr.msg_iov = self.parts[start..end].as_mut_ptr();
            message.msg_hdr.msg_iovlen = (end - start) as _;
        }
        let mut done = 0;
        let mut stale = true;
        while done < self.frames {
            let rest = &mut messages[done..self.frames];
            // SAFETY: the kernel reads the messages and writes msg_len of each; their pieces are
            // those of `self.parts`, which is not touched meanwhile and names living bytes as in
            // `write`.
            let sent = unsafe {
                libc::sendmmsg(
                    fd.as_raw_fd(),
                    rest.as_mut_ptr(),
                    rest.len() as _,
                    libc::MSG_DONTWAIT,
                )
            };
            match usize::try_from(sent) {
                Ok(sent) if sent > 0 => {
                    for number in done..(done + sent).min(self.frames) {
                        each(self.frame_len(number), Ok(()));
                    }
                    done += sent;
                }
                // The first of the rest is at fault, unless the socket only says now that the
                // interface was down some time ago.
                _ => {
                    let error = io::Error::last_os_error();
                    if error.raw_os_error() == Some(libc::ENETDOWN) && stale {
                        stale = false;
                        continue;
                    }
                    each(self.frame_len(done), Err(error));
                    done += 1;
                }
            }
        }
        self.clear();
    }
}
