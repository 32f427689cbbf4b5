//! Frames to the kernel, gathered from where they lie.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::sys::{self, Gather, LEAD, NoRoom};
use crate::port::burst::{Burst, PLAIN, Pick};
use crate::port::offload::{self, Accepts, Offload};
use crate::port::scratch::Scratch;
use crate::port::{Head, Stats, flow};
use crate::stats::Drop;

/// Length of two Ethernet addresses.
const ADDRESSES: usize = LEAD - offload::HEADER;

/// Where frames are handed to the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Door<'f> {
    /// Each with a call of its own, to the queue of its flow.
    Queues(&'f [Arc<OwnedFd>]),
    /// All with one call.
    Socket(BorrowedFd<'f>),
}

impl<'f> Door<'f> {
    /// Where this frame goes; `None` if there is no queue.
    fn of(self, head: &Head) -> Option<BorrowedFd<'f>> {
        match self {
            Self::Socket(fd) => Some(fd),
            Self::Queues([only]) => Some(only.as_fd()),
            Self::Queues(queues) => {
                let queue = (flow::hash(head.bytes()) as usize).checked_rem(queues.len())?;
                queues.get(queue).map(|fd| fd.as_fd())
            }
        }
    }
}

/// What became of frames.
#[derive(Debug, Default)]
struct Sent {
    packets: u64,
    bytes: u64,
    full: u64,
    down: u64,
    over_mtu: u64,
    refused: u64,
    small: u64,
}

impl Sent {
    fn note(&mut self, len: u64, result: io::Result<()>) {
        let Err(error) = result else {
            self.packets += 1;
            self.bytes += len;
            return;
        };
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => self.full += 1,
            // A TAP that is down says EIO, one that is gone EBADFD.
            Some(libc::EIO | libc::EBADFD | libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => {
                self.down += 1
            }
            Some(libc::EMSGSIZE) => self.over_mtu += 1,
            _ => self.refused += 1,
        }
    }

    fn count(&self, stats: &Stats) {
        stats.tx_packets.add(self.packets);
        stats.tx_bytes.add(self.bytes);
        stats.dropped(Drop::RingFull, self.full);
        stats.dropped(Drop::LinkDown, self.down);
        stats.dropped(Drop::OverMtu, self.over_mtu);
        stats.dropped(Drop::Refused, self.refused);
        stats.dropped(Drop::SmallBuffer, self.small);
    }
}

/// Header and addresses of a frame.
fn lead(offload: &Offload, head: &Head, swap: bool) -> [u8; LEAD] {
    let mut lead = [0; LEAD];
    let (header, addresses) = lead.split_at_mut(offload::HEADER);
    header.copy_from_slice(&offload.emit());
    let (first, second) = match swap {
        false => (head.destination(), head.source()),
        true => (head.source(), head.destination()),
    };
    addresses[..6].copy_from_slice(&first);
    addresses[6..].copy_from_slice(&second);
    lead
}

/// Sends `picks` of `burst`. Frames that ask for what the kernel does not accept are completed
/// first.
pub(super) fn transmit(
    door: Door<'_>,
    accepts: Accepts,
    burst: &Burst<'_>,
    picks: &[Pick],
    scratch: &mut Scratch,
    stats: &Stats,
) {
    let mut sent = Sent::default();
    let mut gather = Gather::new();
    for pick in picks {
        let Some(head) = burst.heads().get(usize::from(pick.frame)) else {
            continue;
        };
        let Some(fd) = door.of(head) else {
            continue;
        };
        if accepts.takes(head.offload()) {
            let lead = lead(head.offload(), head, pick.swap);
            let first = head.bytes().get(ADDRESSES..).unwrap_or(&[]);
            let len = head.frame_len();
            let mut room = gather.push(lead, len, first, burst.body(head));
            if room == Err(NoRoom::Now) {
                flush(door, fd, &mut gather, &mut sent);
                room = gather.push(lead, len, first, burst.body(head));
            }
            if room.is_ok() {
                if let Door::Queues(_) = door {
                    flush(door, fd, &mut gather, &mut sent);
                }
                continue;
            }
        }
        // Frames go out in the order they came in.
        flush(door, fd, &mut gather, &mut sent);
        let swapped;
        let head = match pick.swap {
            false => head,
            true => {
                swapped = head.swapped();
                &swapped
            }
        };
        let fits = scratch.finish(burst, head, |frame| {
            let result = sys::write(fd, &PLAIN, frame);
            sent.note(frame.len() as u64, result);
        });
        sent.small += u64::from(!fits);
    }
    if let Door::Socket(fd) = door {
        flush(door, fd, &mut gather, &mut sent);
    }
    sent.count(stats);
}

fn flush(door: Door<'_>, fd: BorrowedFd<'_>, gather: &mut Gather<'_>, sent: &mut Sent) {
    if gather.is_empty() {
        return;
    }
    let each = |len, result| sent.note(len, result);
    match door {
        Door::Queues(_) => gather.write(fd, each),
        Door::Socket(_) => gather.send(fd, each),
    }
}
