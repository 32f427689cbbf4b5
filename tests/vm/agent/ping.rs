//! ICMP echo requests.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recvmsg, sendmsg, socket,
};
use vvu_tests::wire::{PingReport, Stream};

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const HEADER: usize = 8;

/// Sends `count` requests one after the other, each after the reply to the one before.
pub(crate) fn ping(
    to: Ipv4Addr,
    size: u16,
    count: u32,
    interval_ms: u64,
    timeout_ms: u64,
) -> Result<PingReport> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Icmp,
    )
    .context("opening an ICMP socket")?;
    let identifier = std::process::id() as u16;
    let mut report = PingReport {
        sent: 0,
        micros: Vec::new(),
    };
    let mut payload = vec![0; size.into()];
    Stream::new(identifier.into()).fill(&mut payload);
    for sequence in 0..count {
        if sequence > 0 {
            thread::sleep(Duration::from_millis(interval_ms));
        }
        let request = echo(identifier, sequence as u16, &payload);
        let start = Instant::now();
        let address = SockaddrIn::from(SocketAddrV4::new(to, 0));
        report.sent += 1;
        // Whatever keeps a request from leaving, it is a lost request.
        if sendmsg(
            socket.as_raw_fd(),
            &[IoSlice::new(&request)],
            &[],
            MsgFlags::empty(),
            Some(&address),
        )
        .is_err()
        {
            thread::sleep(Duration::from_millis(timeout_ms));
            continue;
        }
        let deadline = start + Duration::from_millis(timeout_ms);
        if await_reply(&socket, &request, deadline)? {
            report.micros.push(start.elapsed().as_micros() as u64);
        }
    }
    Ok(report)
}

/// Waits for the reply that brings the whole request back.
fn await_reply(socket: &OwnedFd, request: &[u8], deadline: Instant) -> Result<bool> {
    let mut packet = vec![0; 1 << 16];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout =
            PollTimeout::try_from(left.as_millis() + 1).context("timeout out of range")?;
        if left.is_zero()
            || poll(
                &mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)],
                timeout,
            )? == 0
        {
            return Ok(false);
        }
        let mut slices = [IoSliceMut::new(&mut packet)];
        let length = recvmsg::<()>(socket.as_raw_fd(), &mut slices, None, MsgFlags::empty())
            .map_err(io::Error::from)?
            .bytes;
        if is_reply(&packet[..length], request) {
            return Ok(true);
        }
    }
}

fn is_reply(packet: &[u8], request: &[u8]) -> bool {
    let header = packet
        .first()
        .map_or(0, |first| usize::from(first & 0xf) * 4);
    packet.get(header..).is_some_and(|reply| {
        reply.first() == Some(&ECHO_REPLY)
            && reply.len() == request.len()
            && reply[4..] == request[4..]
    })
}

fn echo(identifier: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![0; HEADER];
    message[0] = ECHO_REQUEST;
    message[4..6].copy_from_slice(&identifier.to_be_bytes());
    message[6..8].copy_from_slice(&sequence.to_be_bytes());
    message.extend_from_slice(payload);
    let sum = internet_checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}
