//! Datagrams: several in one system call, checked one by one, or as fast as they go.

use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, UdpGroSegment};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
};
use vvu_tests::wire::{Datagrams, UdpReport};

/// Room for what arrives while the receiver does not run.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Longest wait for the other side.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often a sender whose receiver may not be there yet sends its first burst.
const FIRST: Duration = Duration::from_millis(500);

/// When nothing comes for this long, a flood is over.
const QUIET: Duration = Duration::from_secs(2);

/// What one receive call takes at most.
const LARGEST: usize = 1 << 16;

fn socket(port: u16) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).context("binding")?;
    setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).context("SO_RCVBUFFORCE")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends a burst of datagrams of `size` bytes, the last of which may be shorter, in one call.
fn send_burst(socket: &UdpSocket, to: SocketAddrV4, bytes: &[u8], size: u16) -> Result<(), Errno> {
    let segment = [ControlMessage::UdpGsoSegments(&size)];
    let several = bytes.len() > usize::from(size);
    let control = if several { &segment[..] } else { &[] };
    let to = SockaddrIn::from(to);
    let pieces = [IoSlice::new(bytes)];
    sendmsg(
        socket.as_raw_fd(),
        &pieces,
        control,
        MsgFlags::empty(),
        Some(&to),
    )
    .map(drop)
}

/// Sends all, burst by burst, each after the one before was answered.
pub(crate) fn send(to: SocketAddrV4, shape: Datagrams) -> Result<UdpReport> {
    let socket = socket(0)?;
    let burst = u32::from(shape.burst.max(1));
    let (mut block, mut datagram) = (Vec::new(), Vec::new());
    let start = Instant::now();
    let (mut next, mut bytes) = (0, 0);
    while next < shape.count {
        block.clear();
        for number in next..next + burst {
            shape.write(number, &mut datagram);
            block.extend_from_slice(&datagram);
        }
        next += burst;
        bytes += block.len() as u64;
        let first = next == burst;
        socket.set_read_timeout(Some(if first { FIRST } else { PATIENCE }))?;
        loop {
            match send_burst(&socket, to, &block, shape.size) {
                // Nobody was there the last time.
                Ok(()) | Err(Errno::ECONNREFUSED) => {}
                Err(error) => return Err(error).context("sending"),
            }
            let mut answer = [0; Datagrams::NUMBER];
            match socket.recv(&mut answer) {
                Ok(_) if u32::from_le_bytes(answer) == next => break,
                // An answer to what was sent again.
                Ok(_) => {}
                Err(_) if first && start.elapsed() < PATIENCE => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("the burst before {next} is lost"));
                }
            }
        }
    }
    Ok(UdpReport {
        datagrams: shape.count.into(),
        bytes,
        wrong: 0,
        largest: block.len() as u64,
        micros: start.elapsed().as_micros() as u64,
    })
}

/// Receives all and answers each burst with the number of datagrams so far.
pub(crate) fn receive(port: u16, shape: Datagrams, merge: bool) -> Result<UdpReport> {
    let socket = socket(port)?;
    if merge {
        setsockopt(&socket, UdpGroSegment, &true).context("UDP_GRO")?;
    }
    let burst = u64::from(shape.burst.max(1));
    let mut report = UdpReport {
        datagrams: 0,
        bytes: 0,
        wrong: 0,
        largest: 0,
        micros: 0,
    };
    let mut seen = vec![false; shape.count as usize];
    let mut expected = Vec::new();
    let mut buffer = vec![0; LARGEST];
    let mut start = None;
    while report.datagrams < u64::from(shape.count) {
        let (length, size, from) = receive_some(&socket, &mut buffer)
            .with_context(|| format!("{} of {} arrived", report.datagrams, shape.count))?;
        let start = *start.get_or_insert_with(Instant::now);
        report.largest = report.largest.max(length as u64);
        for datagram in buffer[..length].chunks(size.max(1)) {
            let number = datagram
                .first_chunk()
                .map(|bytes| u32::from_le_bytes(*bytes));
            let place = number.and_then(|number| seen.get_mut(number as usize));
            // The first burst may be sent again before it was answered.
            let again = place.as_deref() == Some(&true) && number < Some(u32::from(shape.burst));
            let new = place.is_some_and(|place| !std::mem::replace(place, true));
            shape.write(number.unwrap_or(0), &mut expected);
            if !new && !again || datagram != expected {
                report.wrong += 1;
            }
            if new {
                report.datagrams += 1;
                report.bytes += datagram.len() as u64;
            }
        }
        report.micros = start.elapsed().as_micros() as u64;
        if report.datagrams.is_multiple_of(burst) {
            let answer = u32::try_from(report.datagrams)?.to_le_bytes();
            socket.send_to(&answer, from).context("answering")?;
        }
    }
    Ok(report)
}

/// One receive call: how much there is, how long each datagram of it is, and from whom.
fn receive_some(socket: &UdpSocket, buffer: &mut [u8]) -> Result<(usize, usize, SocketAddrV4)> {
    let mut space = nix::cmsg_space!(i32);
    let mut pieces = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrIn>(
        socket.as_raw_fd(),
        &mut pieces,
        Some(&mut space),
        MsgFlags::empty(),
    )
    .context("receiving")?;
    let size = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
        _ => None,
    });
    let from = message.address.context("a datagram from nobody")?;
    let from = SocketAddrV4::new(from.ip(), from.port());
    Ok((message.bytes, size.unwrap_or(message.bytes), from))
}

/// Sends for some time whatever the kernel takes, then empty datagrams.
pub(crate) fn flood(to: SocketAddrV4, size: u16, burst: u16, millis: u64) -> Result<UdpReport> {
    ensure!(size > 0 && burst > 0, "datagrams need bytes");
    let socket = socket(0)?;
    let block = vec![0x5a; usize::from(size) * usize::from(burst)];
    let start = Instant::now();
    let deadline = start + Duration::from_millis(millis);
    let mut bursts = 0;
    while Instant::now() < deadline {
        match send_burst(&socket, to, &block, size) {
            Ok(()) => bursts += 1,
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::ECONNREFUSED) => std::thread::yield_now(),
            Err(error) => return Err(error).context("sending"),
        }
    }
    let micros = start.elapsed().as_micros() as u64;
    for _ in 0..5 {
        // A receiver that has ended refuses these.
        let _ = socket.send_to(&[], to);
    }
    Ok(UdpReport {
        datagrams: bursts * u64::from(burst),
        bytes: bursts * block.len() as u64,
        wrong: 0,
        largest: block.len() as u64,
        micros,
    })
}

/// Counts what a flood brings.
pub(crate) fn count(port: u16) -> Result<UdpReport> {
    let socket = socket(port)?;
    setsockopt(&socket, UdpGroSegment, &true).context("UDP_GRO")?;
    let mut report = UdpReport {
        datagrams: 0,
        bytes: 0,
        wrong: 0,
        largest: 0,
        micros: 0,
    };
    let mut buffer = vec![0; LARGEST];
    let mut start = None;
    loop {
        let Ok((length, size, _)) = receive_some(&socket, &mut buffer) else {
            break;
        };
        if length == 0 {
            break;
        }
        let begin: Instant = *start.get_or_insert_with(Instant::now);
        socket.set_read_timeout(Some(QUIET))?;
        report.datagrams += length.div_ceil(size.max(1)) as u64;
        report.bytes += length as u64;
        report.largest = report.largest.max(length as u64);
        report.micros = begin.elapsed().as_micros() as u64;
    }
    ensure!(report.datagrams > 0, "no datagram came");
    Ok(report)
}

/// Sends datagrams back until an empty one comes.
pub(crate) fn echo(port: u16) -> Result<()> {
    let socket = socket(port)?;
    let mut buffer = vec![0; LARGEST];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).context("receiving")?;
        if length == 0 {
            return Ok(());
        }
        socket
            .send_to(&buffer[..length], from)
            .context("answering")?;
    }
}

/// Asks whoever echoes, one datagram at a time; microseconds of each answer.
pub(crate) fn ask(to: SocketAddrV4, size: u16, count: u32) -> Result<Vec<u64>> {
    let socket = socket(0)?;
    socket.connect(to).context("connecting")?;
    let request = vec![0x5a; size.max(1).into()];
    let mut answer = vec![0; LARGEST];
    // Until the other side is there.
    socket.set_read_timeout(Some(FIRST))?;
    let start = Instant::now();
    loop {
        let sent = socket.send(&request).is_ok();
        if sent && socket.recv(&mut answer).is_ok() {
            break;
        }
        ensure!(start.elapsed() < PATIENCE, "nobody answers");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut micros = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let start = Instant::now();
        socket.send(&request).context("asking")?;
        match socket.recv(&mut answer) {
            Ok(_) => micros.push(start.elapsed().as_micros() as u64),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("waiting for an answer"),
        }
    }
    let _ = socket.send(&[]);
    Ok(micros)
}
