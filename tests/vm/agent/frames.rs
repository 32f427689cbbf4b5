//! Raw Ethernet frames: a sender that reuses its buffers, and a counter.

use std::fs;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, MultiHeaders, SockFlag, SockType, bind, sendmmsg,
    setsockopt, socket,
};
use nix::{setsockopt_impl, sockopt_impl};
use vvu_tests::wire::BlastReport;

/// Frames handed to the kernel in one system call.
const BURST: usize = 64;

/// EtherType for local experiments (IEEE 802).
const LOCAL_EXPERIMENT: [u8; 2] = [0x88, 0xb5];

sockopt_impl!(
    /// Hand frames to the driver directly.
    QdiscBypass,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_QDISC_BYPASS,
    bool
);

/// Sends frames for some time, past the traffic control layer, and counts those that the driver took.
pub(crate) fn blast(device: &str, to: [u8; 6], size: u16, millis: u64) -> Result<BlastReport> {
    let socket = packet_socket(device)?;
    let mut frame = vec![0; size.max(60).into()];
    frame[..6].copy_from_slice(&to);
    let from = fs::read_to_string(format!("/sys/class/net/{device}/address"))?;
    for (place, byte) in frame[6..12].iter_mut().zip(from.trim().split(':')) {
        *place = u8::from_str_radix(byte, 16)?;
    }
    frame[12..14].copy_from_slice(&LOCAL_EXPERIMENT);
    let slices: Vec<[IoSlice; 1]> = (0..BURST).map(|_| [IoSlice::new(&frame)]).collect();
    let mut headers = MultiHeaders::<LinkAddr>::preallocate(BURST, None);
    let no_addresses = [None; BURST];
    let start = Instant::now();
    let deadline = start + Duration::from_millis(millis);
    let mut frames = 0;
    while Instant::now() < deadline {
        match sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            &slices,
            no_addresses,
            [],
            MsgFlags::empty(),
        ) {
            Ok(sent) => frames += sent.count() as u64,
            Err(Errno::ENOBUFS | Errno::EAGAIN) => thread::yield_now(),
            Err(error) => return Err(error).context("sending frames"),
        }
    }
    Ok(BlastReport {
        frames,
        micros: start.elapsed().as_micros() as u64,
    })
}

fn packet_socket(device: &str) -> Result<OwnedFd> {
    let no_protocol = None;
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        no_protocol,
    )
    .context("opening a packet socket")?;
    setsockopt(&socket, QdiscBypass, &true).context("PACKET_QDISC_BYPASS")?;
    let address = getifaddrs()?
        .filter(|interface| interface.interface_name == device)
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .with_context(|| format!("no interface {device}"))?;
    bind(socket.as_raw_fd(), &address).with_context(|| format!("binding to {device}"))?;
    Ok(socket)
}

/// Counts what the driver receives.
pub(crate) fn count(device: &str, millis: u64) -> Result<BlastReport> {
    let file = format!("/sys/class/net/{device}/statistics/rx_packets");
    let read = || -> Result<u64> { Ok(fs::read_to_string(&file)?.trim().parse()?) };
    let (start, before) = (Instant::now(), read()?);
    thread::sleep(Duration::from_millis(millis));
    Ok(BlastReport {
        frames: read()? - before,
        micros: start.elapsed().as_micros() as u64,
    })
}
