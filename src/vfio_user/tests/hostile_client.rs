//! Clients that do as they please.

use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use zerocopy::IntoBytes;

use super::super::message::{
    Access, DmaMap, DmaUnmap, ERROR, HEADER_LEN, Header, IrqInfo, NO_REPLY, REPLY, RegionInfo,
    SetIrqs, Version, capabilities, command, read,
};
use super::super::*;
use super::bench::{Bench, LONG, Plain, SocketPath, VECTORS, WINDOW, until};
use crate::socket::send;

/// A client made of bytes.
struct Raw(UnixStream);

impl Raw {
    fn new(socket: &SocketPath) -> Self {
        let stream = UnixStream::connect(socket.path()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Self(stream)
    }

    /// One that agreed on a version.
    fn greeted(socket: &SocketPath) -> Self {
        let mut raw = Self::new(socket);
        assert_eq!(raw.ask(command::VERSION, &version(), &[]), Ok(()));
        raw
    }

    fn header(command: u16, flags: u32, len: usize) -> Header {
        Header {
            id: 0x1234,
            command,
            size: (HEADER_LEN + len) as u32,
            flags,
            error: 0,
        }
    }

    fn send(&self, header: &Header, body: &[u8], fds: &[BorrowedFd<'_>]) {
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(body)];
        assert!(send(self.0.as_fd(), &parts, fds).unwrap());
    }

    /// The next reply: its header and what follows.
    fn reply(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut bytes = [0; HEADER_LEN];
        self.0.read_exact(&mut bytes).ok()?;
        let header: Header = read(&bytes).unwrap();
        let mut body = vec![0; header.size as usize - HEADER_LEN];
        self.0.read_exact(&mut body).unwrap();
        Some((header, body))
    }

    /// Sends a command; what it is refused with.
    fn ask(&mut self, command: u16, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        self.send(&Self::header(command, 0, body.len()), body, fds);
        let (header, _) = self.reply().expect("a reply");
        assert_eq!((header.id, header.command), (0x1234, command));
        match header.flags {
            REPLY => Ok(()),
            flags => {
                assert_eq!(flags, REPLY | ERROR);
                assert_eq!(header.size as usize, HEADER_LEN);
                Err(Errno::from_raw_os_error(header.error as i32))
            }
        }
    }

    fn is_well(&mut self) -> bool {
        self.ask(command::GET_INFO, &[0; 16], &[]).is_ok()
    }

    fn ends(&mut self) -> bool {
        self.reply().is_none()
    }
}

fn version() -> Vec<u8> {
    [&[0; 4], capabilities(8).as_bytes()].concat()
}

fn file(len: u64) -> OwnedFd {
    let file = memfd_create("client", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, len).unwrap();
    file
}

fn access(region: u32, offset: u64, count: u32) -> Vec<u8> {
    let access = Access {
        offset,
        region,
        count,
    };
    access.as_bytes().to_vec()
}

fn irqs(flags: u32, index: u32, start: u32, count: u32) -> Vec<u8> {
    let set = SetIrqs {
        argsz: 20,
        flags,
        index,
        start,
        count,
    };
    set.as_bytes().to_vec()
}

fn map(flags: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
    let map = DmaMap {
        argsz: 32,
        flags,
        offset,
        address,
        size,
    };
    map.as_bytes().to_vec()
}

fn unmap(flags: u32, address: u64, size: u64) -> Vec<u8> {
    let unmap = DmaUnmap {
        argsz: 24,
        flags,
        address,
        size,
    };
    unmap.as_bytes().to_vec()
}

#[test]
fn commands_that_make_no_sense_are_refused_and_the_next_one_is_served() {
    let socket = SocketPath::new();
    let bench = Bench::at(socket.path());
    let mut raw = Raw::greeted(&socket);
    let region = |index| {
        let ask = RegionInfo {
            argsz: 32,
            index,
            ..RegionInfo::default()
        };
        ask.as_bytes().to_vec()
    };
    let kind = |index| {
        let ask = IrqInfo {
            argsz: 16,
            index,
            ..IrqInfo::default()
        };
        ask.as_bytes().to_vec()
    };
    let extra = |mut access: Vec<u8>, data: usize| {
        access.extend(vec![0; data]);
        access
    };
    let short = [
        command::GET_REGION_INFO,
        command::GET_IRQ_INFO,
        command::SET_IRQS,
        command::REGION_READ,
        command::REGION_WRITE,
        command::DMA_MAP,
        command::DMA_UNMAP,
    ];
    let mut commands: Vec<(u16, Vec<u8>, Errno)> = short
        .iter()
        .flat_map(|command| {
            [
                (*command, vec![], Errno::INVAL),
                (*command, vec![0xff; 15], Errno::INVAL),
            ]
        })
        .collect();
    commands.extend([
        (0, vec![], Errno::OPNOTSUPP),
        (6, vec![0; 16], Errno::OPNOTSUPP),
        (11, vec![0; 16], Errno::OPNOTSUPP),
        (15, vec![0; 4000], Errno::OPNOTSUPP),
        (u16::MAX, vec![1; 100], Errno::OPNOTSUPP),
        (command::VERSION, version(), Errno::INVAL),
        (command::GET_REGION_INFO, region(9), Errno::INVAL),
        (command::GET_REGION_INFO, region(u32::MAX), Errno::INVAL),
        (command::GET_IRQ_INFO, kind(3), Errno::INVAL),
        (command::GET_IRQ_INFO, kind(u32::MAX), Errno::INVAL),
        (command::REGION_READ, access(0, 0xfff, 2), Errno::INVAL),
        (command::REGION_READ, access(0, u64::MAX, 1), Errno::INVAL),
        (command::REGION_READ, access(1, 0, 1), Errno::INVAL),
        (command::REGION_READ, access(9, 0, 1), Errno::INVAL),
        (command::REGION_READ, access(u32::MAX, 0, 0), Errno::INVAL),
        // What other servers would allocate.
        (command::REGION_READ, access(2, 0, u32::MAX), Errno::INVAL),
        (
            command::REGION_READ,
            access(2, 0, WINDOW as u32),
            Errno::INVAL,
        ),
        (command::REGION_WRITE, access(2, 0, u32::MAX), Errno::INVAL),
        (
            command::REGION_WRITE,
            extra(access(0, 0, 4), 3),
            Errno::INVAL,
        ),
        (
            command::REGION_WRITE,
            extra(access(0, 0, 4), 5),
            Errno::INVAL,
        ),
        (command::SET_IRQS, irqs(0x24, 1, 0, 1), Errno::INVAL),
        (command::SET_IRQS, irqs(0x24, 2, 69, 2), Errno::INVAL),
        (command::SET_IRQS, irqs(0x24, 2, u32::MAX, 2), Errno::INVAL),
        (command::SET_IRQS, irqs(0x24, 2, 0, u32::MAX), Errno::INVAL),
        (command::SET_IRQS, irqs(0x22, 2, 0, 1), Errno::INVAL),
        (command::SET_IRQS, irqs(0x21, 2, 0, 1), Errno::INVAL),
        (command::SET_IRQS, irqs(u32::MAX, 2, 0, 0), Errno::INVAL),
        (command::DMA_MAP, map(3, 0, 0, 0), Errno::INVAL),
        (command::DMA_MAP, map(3, 0, u64::MAX, 2), Errno::INVAL),
        (command::DMA_MAP, map(2, 0, 0x1000, 0x1000), Errno::INVAL),
        (
            command::DMA_MAP,
            map(3, 0, 0x1000, 0x1000),
            Errno::OPNOTSUPP,
        ),
        (command::DMA_UNMAP, unmap(0, 0x1000, 0), Errno::INVAL),
        (command::DMA_UNMAP, unmap(0, u64::MAX, 2), Errno::INVAL),
    ]);
    for (command, body, errno) in &commands {
        let answer = raw.ask(*command, body, &[]);
        assert_eq!(answer, Err(*errno), "{command} {body:x?}");
        assert!(raw.is_well());
    }
    // File descriptors where there should be none, or too many, or to no avail.
    let file = file(0x1000);
    let fd = file.as_fd();
    for (command, body, fds) in [
        (command::RESET, vec![], vec![fd]),
        (command::REGION_READ, access(0, 0, 4), vec![fd; 16]),
        (command::SET_IRQS, irqs(0x24, 2, 0, 3), vec![fd; 2]),
        (command::SET_IRQS, irqs(0x21, 2, 0, 0), vec![fd]),
        (command::DMA_MAP, map(3, 0, 0x1000, 0x1000), vec![fd; 2]),
        (command::DMA_MAP, map(3, 0x1000, 0x1000, 0x1000), vec![fd]),
        (command::DMA_MAP, map(3, u64::MAX, 0x1000, 0x1000), vec![fd]),
        (command::DMA_MAP, map(3, 0, 0x1000, 1 << 62), vec![fd]),
    ] {
        assert_eq!(
            raw.ask(command, &body, &fds),
            Err(Errno::INVAL),
            "{command}"
        );
        assert!(raw.is_well());
    }
    assert!(bench.function.is_clean());
    drop(raw);
    until("ended", || !bench.function.seen().ended.is_empty());
    let counters = bench.function.seen().counters.clone();
    assert_eq!(counters.refused, commands.len() as u64 + 8);
    let last = counters.last_refusal.unwrap();
    assert!(last.starts_with("DMA_MAP: "), "{last}");
}

#[test]
fn streams_that_make_no_sense_end_the_connection_with_a_reason() {
    let socket = SocketPath::new();
    let bench = Bench::at(socket.path());
    let size = |size| Header {
        size,
        ..Raw::header(command::GET_INFO, 0, 0)
    };
    for (greeted, header, reason) in [
        (true, size(15), "15 bytes"),
        (true, size(0), "0 bytes"),
        (true, size(u32::MAX), "4294967295 bytes"),
        (false, size(1 << 20), "1048576 bytes"),
        (true, Raw::header(command::GET_INFO, REPLY, 0), "a reply"),
        (true, Raw::header(command::GET_INFO, 7, 0), "a reply"),
        (
            false,
            Raw::header(command::RESET, 0, 0),
            "instead of VERSION",
        ),
        (false, Raw::header(0xffff, 0, 0), "instead of VERSION"),
    ] {
        let count = bench.function.seen().ended.len();
        let mut raw = match greeted {
            true => Raw::greeted(&socket),
            false => Raw::new(&socket),
        };
        raw.send(&header, &[], &[]);
        assert!(raw.ends(), "{reason}");
        until("ended", || bench.function.seen().ended.len() > count);
        let ended = bench.function.seen().ended.last().unwrap().clone();
        assert!(ended.contains(reason), "{ended}");
    }
    // Another version, and none at all; after that the right one is still welcome.
    let mut raw = Raw::new(&socket);
    let other = Version { major: 1, minor: 0 };
    assert_eq!(
        raw.ask(command::VERSION, other.as_bytes(), &[]),
        Err(Errno::OPNOTSUPP)
    );
    assert_eq!(raw.ask(command::VERSION, &[0], &[]), Err(Errno::INVAL));
    assert_eq!(raw.ask(command::VERSION, &version()[..4], &[]), Ok(()));
    assert!(raw.is_well());
    // File descriptors that belong to no message.
    let parts = [IoSlice::new(&[0; 4])];
    let header = Raw::header(command::GET_INFO, 0, 16);
    raw.0.write_all(header.as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    send(raw.0.as_fd(), &parts, &[raw.0.as_fd()]).unwrap();
    assert!(raw.ends());
}

#[test]
fn memory_comes_and_goes_in_whole_pieces() {
    let socket = SocketPath::new();
    let bench = Bench::at(socket.path());
    let mut raw = Raw::greeted(&socket);
    let file = file(0x8000);
    let maps = || {
        let seen = bench.function.seen();
        seen.maps
            .iter()
            .map(|map| (map.iova, map.len))
            .collect::<Vec<_>>()
    };
    let put = |raw: &mut Raw, flags, at, len| {
        raw.ask(
            command::DMA_MAP,
            &map(flags, 0x1000, at, len),
            &[file.as_fd()],
        )
    };
    let take =
        |raw: &mut Raw, flags, at, len| raw.ask(command::DMA_UNMAP, &unmap(flags, at, len), &[]);
    assert_eq!(put(&mut raw, 3, 0x1000, 0x2000), Ok(()));
    assert_eq!(put(&mut raw, 3, 0x4000, 0x1000), Ok(()));
    for (at, len) in [
        (0x1000, 0x1000),
        (0, 0x1001),
        (0x2fff, 1),
        (0, 0x7000),
        (0x3000, 0x1001),
    ] {
        assert_eq!(
            put(&mut raw, 3, at, len),
            Err(Errno::EXIST),
            "{at:#x} {len:#x}"
        );
    }
    assert_eq!(put(&mut raw, 3, 0x3000, 0x1000), Ok(()));
    assert_eq!(put(&mut raw, 3, u64::MAX - 0xfff, 0x1000), Ok(()));
    // A ROM has no file, and is not reached.
    assert_eq!(
        raw.ask(command::DMA_MAP, &map(1, 0, 0x10_0000, 0x1000), &[]),
        Ok(())
    );
    assert_eq!(maps().len(), 4);
    for (at, len) in [
        (0x1000, 0x1000),
        (0x1800, 0x800),
        (0x2000, 0x1000),
        (0x1000, 0x2800),
    ] {
        assert_eq!(
            take(&mut raw, 0, at, len),
            Err(Errno::INVAL),
            "{at:#x} {len:#x}"
        );
    }
    assert_eq!(maps().len(), 4);
    assert_eq!(take(&mut raw, 0, 0x1000, 0x2000), Ok(()));
    assert_eq!(
        take(&mut raw, 0, 0x1000, 0x2000),
        Ok(()),
        "nothing is there"
    );
    assert_eq!(take(&mut raw, 0, 0, 0x20_0000), Ok(()));
    assert_eq!(maps(), [(u64::MAX - 0xfff, 0x1000)]);
    assert_eq!(put(&mut raw, 3, 0x10_0000, 0x1000), Ok(()));
    assert_eq!(take(&mut raw, 2, 0, 0), Ok(()));
    assert_eq!(maps(), []);

    // Memory that is only to be read is read, and never written.
    rustix::io::pwrite(&file, &7u32.to_ne_bytes(), 0x1000).unwrap();
    assert_eq!(put(&mut raw, 1, 0x1000, 0x1000), Ok(()));
    assert_eq!(bench.function.dma(0x1000, 0), 7);
    {
        use vm_memory::Bytes;
        let seen = bench.function.seen();
        seen.maps[0].bytes.slice().write_obj(8u32, 0).unwrap();
    }
    let mut bytes = [0; 4];
    rustix::io::pread(&file, &mut bytes, 0x1000).unwrap();
    assert_eq!(u32::from_ne_bytes(bytes), 7);
}

#[test]
fn there_is_a_limit_to_pieces() {
    let socket = SocketPath::new();
    let _bench = Bench::at(socket.path());
    let mut raw = Raw::greeted(&socket);
    let mut count = 0;
    let refused = loop {
        let body = map(1, 0, count << 12, 0x1000);
        match raw.ask(command::DMA_MAP, &body, &[]) {
            Ok(()) => count += 1,
            Err(errno) => break errno,
        }
    };
    assert_eq!((count, refused), (8192, Errno::NOSPC));
    assert!(raw.is_well());
}

#[test]
fn who_wants_no_reply_gets_none() {
    let socket = SocketPath::new();
    let bench = Bench::at(socket.path());
    let mut raw = Raw::greeted(&socket);
    let mut write = access(0, 0, 4);
    write.extend([1, 2, 3, 4]);
    let header = |command, len| Raw::header(command, NO_REPLY, len);
    raw.send(&header(command::REGION_WRITE, write.len()), &write, &[]);
    raw.send(&header(command::REGION_WRITE, 3), &[0; 3], &[]);
    raw.send(&header(command::RESET, 0), &[], &[]);
    raw.send(&header(77, 0), &[], &[]);
    assert!(raw.is_well(), "the next reply is that of the next command");
    let seen = bench.function.seen();
    assert_eq!((seen.writes.len(), seen.resets), (1, 1));
}

#[test]
fn one_that_reads_no_replies_is_dropped() {
    let socket = SocketPath::new();
    let bench = Bench::at(socket.path());
    let raw = Raw::greeted(&socket);
    let start = Instant::now();
    let read = access(2, 0, 4096);
    let header = Raw::header(command::REGION_READ, 0, read.len());
    let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(&read)];
    while bench.function.seen().ended.is_empty() {
        assert!(start.elapsed() < LONG, "still served");
        // Until the server takes no more.
        if !matches!(send(raw.0.as_fd(), &parts, &[]), Ok(true)) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let ended = bench.function.seen().ended.clone();
    assert!(ended[0].contains("read no replies"), "{ended:?}");
    drop(raw);
    assert!(Raw::greeted(&socket).is_well());
}

/// The bytes of a client that does a bit of everything, without the file descriptors.
fn conversation() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut write = access(0, 0, 4);
    write.extend([1, 2, 3, 4]);
    for (command, body) in [
        (command::VERSION, version()),
        (command::GET_INFO, vec![0; 16]),
        (command::DMA_MAP, map(1, 0, 0x1000, 0x1000)),
        (command::SET_IRQS, irqs(0x24, 2, 0, 3)),
        (command::REGION_WRITE, write),
        (command::REGION_READ, access(0, 0, 4)),
        (command::DMA_UNMAP, unmap(0, 0x1000, 0x1000)),
    ] {
        bytes.extend(Raw::header(command, 0, body.len()).as_bytes());
        bytes.extend(body);
    }
    bytes
}

#[test]
fn a_client_may_leave_at_every_byte() {
    let bytes = conversation();
    for cut in 0..=bytes.len() {
        let mut function = Plain::new();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut connection = Connection::new(ours.into());
        theirs.write_all(&bytes[..cut]).unwrap();
        connection.serve(&mut function).unwrap();
        drop(theirs);
        let ended = connection.serve(&mut function).unwrap_err();
        assert!(matches!(ended, Ended::Closed), "{ended}");
        connection.end(&mut function);
        assert!(function.is_clean());
    }
}

/// Pseudo-random numbers (xorshift), the same every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn whatever_a_client_sends_nothing_breaks() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let good = conversation();
    let file = file(0x4000);
    for _ in 0..3000 {
        let mut function = Plain::new();
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut connection = Connection::new(ours.into());
        // A good beginning, some of it changed, then whatever.
        let mut bytes = good.clone();
        for _ in 0..random.next() % 12 {
            let at = (random.next() % bytes.len() as u64) as usize;
            bytes[at] = random.next() as u8;
        }
        let noise = (0..random.next() % 200).map(|_| random.next() as u8);
        bytes.extend(noise);
        for part in bytes.chunks(1 + (random.next() % 400) as usize) {
            let fds = vec![file.as_fd(); (random.next() % 4) as usize];
            let _ = send(theirs.as_fd(), &[IoSlice::new(part)], &fds);
            if connection.serve(&mut function).is_err() {
                break;
            }
            // So that replies have room.
            let _ = rustix::io::read(&theirs, &mut [0; 8192]);
        }
        connection.end(&mut function);
        assert!(function.is_clean());
        assert!(function.seen().vectors.len() == usize::from(VECTORS));
    }
}
