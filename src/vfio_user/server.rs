//! The server: a client's commands as calls of a [`Served`] function.
//!
//! A command that makes no sense is refused with an error reply and counted, and the next one is
//! taken; a stream that makes no sense ends the connection. Nothing is allocated by a client's
//! numbers beyond the longest message.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_DMA_MAP_FLAG_READ,
    VFIO_DMA_MAP_FLAG_WRITE, VFIO_DMA_UNMAP_FLAG_ALL, VFIO_IRQ_INFO_EVENTFD,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_NUM_REGIONS, VFIO_REGION_INFO_CAP_SPARSE_MMAP,
    VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ,
    VFIO_REGION_INFO_FLAG_WRITE,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::message::{
    self, Access, Capability, DeviceInfo, DmaMap, DmaUnmap, HEADER_LEN, Header, IrqInfo,
    RegionInfo, SetIrqs, Span, SparseMmap, Version, command, read, split,
};
use super::served::{ClientMemory, Counters, Ended, Refusal, Served};
use crate::socket::{Frames, MAX_FDS, send, wait};

/// Bytes that one command may read or write. Registers have 8 at most.
const MAX_TRANSFER: u32 = 4096;

/// Longest message taken.
const MAX_MESSAGE: usize = MAX_TRANSFER as usize + 1024;

/// How many pieces of memory a client may share at a time. Each costs a mapping, of which the
/// kernel allows a process some 65000.
const MAX_MAPS: usize = 8192;

/// Commands that are dealt with before somebody else has a turn.
const BUDGET: usize = 64;

/// How long a client may take to read a reply.
const REPLY_TIME: Duration = Duration::from_secs(3);

/// Kinds of interrupts that are spoken of: INTx, MSI, MSI-X. The rest, which reports errors, is
/// for hardware.
const IRQS: u32 = VFIO_PCI_MSIX_IRQ_INDEX + 1;

/// A client's connection.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    frames: Frames<HEADER_LEN>,
    /// A version was agreed on.
    greeted: bool,
    /// Pieces of memory by their addresses: length, and whether the function reaches it.
    maps: BTreeMap<u64, (u64, bool)>,
    counters: Counters,
}

impl Connection {
    /// Takes a connected socket that does not block.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            frames: Frames::new(MAX_FDS),
            greeted: false,
            maps: BTreeMap::new(),
            counters: Counters::default(),
        }
    }

    /// Becomes readable when there is something to serve.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What was counted so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Serves the commands that have arrived, as far as others need not wait too long. An error
    /// is the end of the connection.
    pub fn serve(&mut self, function: &mut dyn Served) -> Result<(), Ended> {
        for _ in 0..BUDGET {
            let Some(frame) = self.frames.receive(self.socket.as_fd(), payload_len)? else {
                break;
            };
            let header: Header = zerocopy::transmute!(frame.header);
            if header.flags & message::KIND != 0 {
                return Err(Ended::Violation(format!(
                    "a reply ({}) to a server that asked nothing",
                    message::name(header.command)
                )));
            }
            if !self.greeted && header.command != command::VERSION {
                return Err(Ended::Violation(format!(
                    "it began with {} ({}) instead of VERSION",
                    message::name(header.command),
                    header.command
                )));
            }
            self.counters.commands += 1;
            let (payload, fds) = (frame.payload, frame.attached);
            match self.command(header.command, &payload, fds, function) {
                Ok(reply) => self.reply(&header, &reply)?,
                Err(refusal) => self.refuse(&header, refusal)?,
            }
        }
        Ok(())
    }

    /// Takes back all that the client gave: the function is reset, and reaches none of its memory
    /// and interrupts any more.
    pub fn end(&mut self, function: &mut dyn Served) {
        function.reset();
        for vector in 0..function.vectors() {
            // Nothing to name, nothing to refuse.
            let _ = function.set_vector(vector, None);
        }
        for (iova, (len, reached)) in std::mem::take(&mut self.maps) {
            if reached {
                function.unmap(iova, len);
            }
        }
    }

    fn command(
        &mut self,
        command: u16,
        payload: &[u8],
        fds: Vec<OwnedFd>,
        function: &mut dyn Served,
    ) -> Result<Reply, Refusal> {
        if !fds.is_empty() && !matches!(command, command::DMA_MAP | command::SET_IRQS) {
            let what = format!("{} file descriptors, which it has no use for", fds.len());
            return Err(Refusal::new(Errno::INVAL, what));
        }
        match command {
            command::VERSION => self.version(parse(payload)?),
            command::GET_INFO => Ok(Reply::of(&DeviceInfo {
                argsz: size_of::<DeviceInfo>() as u32,
                flags: VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET,
                regions: VFIO_PCI_NUM_REGIONS,
                irqs: IRQS,
            })),
            command::GET_REGION_INFO => region_info(&parse(payload)?, function),
            command::GET_IRQ_INFO => irq_info(&parse(payload)?, function),
            command::SET_IRQS => set_irqs(&parse(payload)?, fds, function),
            command::REGION_READ => {
                let access: Access = parse(payload)?;
                check_access(&access, function)?;
                let mut data = vec![0; access.count as usize];
                function.read(access.region, access.offset, &mut data);
                Ok(Reply::of(&access).and(&data))
            }
            command::REGION_WRITE => {
                let (access, data): (Access, _) = split(payload).ok_or_else(short)?;
                check_access(&access, function)?;
                if data.len() != access.count as usize {
                    let what = format!("{} bytes instead of {}", data.len(), access.count);
                    return Err(Refusal::new(Errno::INVAL, what));
                }
                function.write(access.region, access.offset, data);
                Ok(Reply::of(&access))
            }
            command::DMA_MAP => self.map(&parse(payload)?, fds, function),
            command::DMA_UNMAP => self.unmap(&parse(payload)?, function),
            command::RESET => {
                function.reset();
                Ok(Reply::default())
            }
            _ => Err(Refusal::new(Errno::OPNOTSUPP, "not supported")),
        }
    }

    fn version(&mut self, theirs: Version) -> Result<Reply, Refusal> {
        if std::mem::replace(&mut self.greeted, true) {
            return Err(Refusal::new(
                Errno::INVAL,
                "a version was agreed on already",
            ));
        }
        if theirs.major != message::MAJOR {
            self.greeted = false;
            return Err(Refusal::new(
                Errno::OPNOTSUPP,
                format!("version {}.{} instead of 0", theirs.major, theirs.minor),
            ));
        }
        let ours = Version {
            major: message::MAJOR,
            minor: 0,
        };
        Ok(Reply::of(&ours).and(message::capabilities(MAX_TRANSFER).as_bytes()))
    }

    fn map(
        &mut self,
        map: &DmaMap,
        fds: Vec<OwnedFd>,
        function: &mut dyn Served,
    ) -> Result<Reply, Refusal> {
        let refuse = |errno, what: &str| {
            let range = format!("{:#x} bytes at {:#x}: {what}", map.size, map.address);
            Err(Refusal::new(errno, range))
        };
        if fds.len() > 1 {
            return refuse(Errno::INVAL, "more than one file");
        }
        let Some(last) = last_of(map.address, map.size) else {
            return refuse(Errno::INVAL, "no such addresses");
        };
        if map.flags & VFIO_DMA_MAP_FLAG_READ == 0 {
            return refuse(Errno::INVAL, "not even readable");
        }
        let before = self.maps.range(..=last).next_back();
        if before.is_some_and(|(start, (len, _))| start + (len - 1) >= map.address) {
            return refuse(Errno::EXIST, "something is mapped there");
        }
        if self.maps.len() >= MAX_MAPS {
            return refuse(Errno::NOSPC, "too many pieces of memory");
        }
        let memory = ClientMemory {
            file: fds.into_iter().next(),
            offset: map.offset,
            len: map.size,
            writable: map.flags & VFIO_DMA_MAP_FLAG_WRITE != 0,
        };
        let reached = function.map(map.address, memory)?;
        self.maps.insert(map.address, (map.size, reached));
        Ok(Reply::default())
    }

    /// Takes back whatever lies in a range, which may be nothing: a client that flushes an IOMMU
    /// does not know what there was. Half a piece cannot be taken back.
    fn unmap(&mut self, unmap: &DmaUnmap, function: &mut dyn Served) -> Result<Reply, Refusal> {
        let all = unmap.flags & VFIO_DMA_UNMAP_FLAG_ALL != 0;
        let (first, last) = match all {
            true => (0, u64::MAX),
            false => {
                let last = last_of(unmap.address, unmap.size);
                (unmap.address, last.ok_or_else(|| no_such(unmap))?)
            }
        };
        let end_of = |(start, (len, _)): (&u64, &(u64, bool))| start + (len - 1);
        let cut = |map: Option<(&u64, &(u64, bool))>, at: u64| map.is_some_and(|m| end_of(m) >= at);
        let below = self.maps.range(..first).next_back();
        let above = self.maps.range(first..=last).next_back();
        if cut(below, first) || (last < u64::MAX && cut(above, last + 1)) {
            return Err(Refusal::new(
                Errno::INVAL,
                format!("{:#x}+{:#x} cuts a map", unmap.address, unmap.size),
            ));
        }
        let gone: Vec<u64> = self
            .maps
            .range(first..=last)
            .map(|(iova, _)| *iova)
            .collect();
        for iova in gone {
            if let Some((len, true)) = self.maps.remove(&iova) {
                function.unmap(iova, len);
            }
        }
        Ok(Reply::of(unmap))
    }

    fn reply(&mut self, to: &Header, reply: &Reply) -> Result<(), Ended> {
        if to.flags & message::NO_REPLY != 0 {
            return Ok(());
        }
        let header = Header {
            size: (HEADER_LEN + reply.body.len()) as u32,
            flags: message::REPLY,
            error: 0,
            ..*to
        };
        let fds: Vec<BorrowedFd<'_>> = reply.file.iter().map(AsFd::as_fd).collect();
        self.send(&header, &reply.body, &fds)
    }

    fn refuse(&mut self, to: &Header, refusal: Refusal) -> Result<(), Ended> {
        self.counters.refused += 1;
        let what = format!("{}: {}", message::name(to.command), refusal.what);
        tracing::debug!(what, "refused");
        self.counters.last_refusal = Some(what);
        if to.flags & message::NO_REPLY != 0 {
            return Ok(());
        }
        let header = Header {
            size: HEADER_LEN as u32,
            flags: message::REPLY | message::ERROR,
            error: refusal.errno.raw_os_error() as u32,
            ..*to
        };
        self.send(&header, &[], &[])
    }

    fn send(&self, header: &Header, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Ended> {
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(body)];
        let deadline = Instant::now() + REPLY_TIME;
        while !send(self.socket.as_fd(), &parts, fds)? {
            match wait(self.socket.as_fd(), PollFlags::OUT, deadline) {
                Ok(true) => {}
                Ok(false) => return Err(Ended::Stuck(REPLY_TIME)),
                Err(errno) => return Err(Ended::System(errno)),
            }
        }
        Ok(())
    }
}

/// What follows the header of a reply.
#[derive(Debug, Default)]
struct Reply {
    body: Vec<u8>,
    file: Option<OwnedFd>,
}

impl Reply {
    fn of(value: &(impl IntoBytes + Immutable)) -> Self {
        Self {
            body: value.as_bytes().to_vec(),
            file: None,
        }
    }

    fn and(mut self, bytes: &[u8]) -> Self {
        self.body.extend_from_slice(bytes);
        self
    }
}

fn region_info(ask: &RegionInfo, function: &dyn Served) -> Result<Reply, Refusal> {
    if ask.index >= VFIO_PCI_NUM_REGIONS {
        return Err(Refusal::new(Errno::INVAL, format!("region {}", ask.index)));
    }
    let size = function.region_size(ask.index);
    let mut info = RegionInfo {
        argsz: size_of::<RegionInfo>() as u32,
        index: ask.index,
        size,
        ..RegionInfo::default()
    };
    if size > 0 {
        info.flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    }
    let Some(shared) = function.shared(ask.index).filter(|shared| shared.len > 0) else {
        return Ok(Reply::of(&info));
    };
    info.flags |= VFIO_REGION_INFO_FLAG_MMAP;
    let mut spans = Vec::new();
    if shared.len < size {
        let capability = Capability {
            id: VFIO_REGION_INFO_CAP_SPARSE_MMAP as u16,
            version: 1,
            next: 0,
        };
        let head = SparseMmap {
            count: 1,
            reserved: 0,
        };
        let span = Span {
            offset: 0,
            size: shared.len,
        };
        spans.extend_from_slice(capability.as_bytes());
        spans.extend_from_slice(head.as_bytes());
        spans.extend_from_slice(span.as_bytes());
        info.flags |= VFIO_REGION_INFO_FLAG_CAPS;
        info.cap_offset = info.argsz;
        info.argsz += spans.len() as u32;
        // The client has to ask again, with room for all of it; then it gets the file, too.
        if ask.argsz < info.argsz {
            return Ok(Reply::of(&info));
        }
    }
    let file = shared.file.try_clone_to_owned();
    let mut reply = Reply::of(&info).and(&spans);
    reply.file = Some(file.map_err(|error| {
        Refusal::new(
            Errno::MFILE,
            format!("cannot copy the region's file: {error}"),
        )
    })?);
    Ok(reply)
}

fn irq_info(ask: &IrqInfo, function: &dyn Served) -> Result<Reply, Refusal> {
    if ask.index >= IRQS {
        return Err(Refusal::new(
            Errno::INVAL,
            format!("interrupt kind {}", ask.index),
        ));
    }
    let mut info = IrqInfo {
        argsz: size_of::<IrqInfo>() as u32,
        index: ask.index,
        ..IrqInfo::default()
    };
    if ask.index == VFIO_PCI_MSIX_IRQ_INDEX {
        info.flags = VFIO_IRQ_INFO_EVENTFD;
        info.count = function.vectors().into();
    }
    Ok(Reply::of(&info))
}

/// Vectors from `start` on get an eventfd each, or none of them does; with no vectors at all and
/// no data, none of the function's has one any more. (As in the kernel's vfio.)
fn set_irqs(set: &SetIrqs, fds: Vec<OwnedFd>, function: &mut dyn Served) -> Result<Reply, Refusal> {
    let refuse = |what: String| Err(Refusal::new(Errno::INVAL, what));
    let vectors = u32::from(function.vectors());
    let end = set.start.checked_add(set.count);
    if set.index != VFIO_PCI_MSIX_IRQ_INDEX {
        return refuse(format!("interrupt kind {}; there is only MSI-X", set.index));
    }
    let Some(end) = end.filter(|end| *end <= vectors) else {
        return refuse(format!(
            "{} vectors from {} on, of {vectors}",
            set.count, set.start
        ));
    };
    const NONE: u32 = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
    const EVENTFD: u32 = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    let range = match set.flags {
        NONE if set.count == 0 => 0..vectors,
        EVENTFD => set.start..end,
        flags => return refuse(format!("flags {flags:#x}")),
    };
    if !fds.is_empty() && fds.len() != range.len() {
        return refuse(format!(
            "{} file descriptors for {} vectors",
            fds.len(),
            set.count
        ));
    }
    let mut fds = fds.into_iter();
    for vector in range {
        function.set_vector(vector as u16, fds.next())?;
    }
    Ok(Reply::default())
}

fn check_access(access: &Access, function: &dyn Served) -> Result<(), Refusal> {
    let size = match access.region < VFIO_PCI_NUM_REGIONS {
        true => function.region_size(access.region),
        false => 0,
    };
    let end = access.offset.checked_add(access.count.into());
    if size == 0 || access.count > MAX_TRANSFER || end.is_none_or(|end| end > size) {
        return Err(Refusal::new(
            Errno::INVAL,
            format!(
                "{} bytes at {:#x} of region {}, which has {size:#x}",
                access.count, access.offset, access.region
            ),
        ));
    }
    Ok(())
}

/// The last of `len` addresses from `first` on; `None` if there are none or not so many.
fn last_of(first: u64, len: u64) -> Option<u64> {
    first.checked_add(len.checked_sub(1)?)
}

fn no_such(unmap: &DmaUnmap) -> Refusal {
    let what = format!("{:#x}+{:#x}: no such addresses", unmap.address, unmap.size);
    Refusal::new(Errno::INVAL, what)
}

fn parse<T: FromBytes>(payload: &[u8]) -> Result<T, Refusal> {
    read(payload).ok_or_else(short)
}

fn short() -> Refusal {
    Refusal::new(Errno::INVAL, "too short")
}

/// How much follows a header.
fn payload_len(header: &[u8; HEADER_LEN]) -> Result<usize, String> {
    message::payload_len(header, MAX_MESSAGE)
}
