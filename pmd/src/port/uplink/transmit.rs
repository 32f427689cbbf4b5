//! Frames to the kernel, gathered from where they lie.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::sys::{self, Gather, Lead, NoRoom};
use crate::port::burst::{Burst, Pick};
use crate::port::head::{Edit, PLAIN};
use crate::port::offload::Accepts;
use crate::port::scratch::Scratch;
use crate::port::{Head, Stats, flow};
use crate::stats::Drop;

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

/// What a frame begins with: its header, and as much of `head` as `edit` changed. And how much of
/// the original that replaces.
fn lead(head: &Head, edit: Edit) -> (Lead, usize) {
    let (addresses, tagged) = (12, 16);
    let (len, replaced) = match edit {
        Edit::Keep | Edit::Swap => (addresses, addresses),
        Edit::Untag => (addresses, tagged),
        Edit::Tag(_) => (tagged, addresses),
        Edit::Retag(_) => (tagged, tagged),
    };
    let first = head.bytes().get(..len).unwrap_or(head.bytes());
    (Lead::new(&head.offload().emit(), first), replaced)
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
        let Some(original) = burst.heads().get(usize::from(pick.frame)) else {
            continue;
        };
        let Some(fd) = door.of(original) else {
            continue;
        };
        let edited;
        let head = match pick.edit {
            Edit::Keep => original,
            edit => {
                edited = original.edited(edit);
                &edited
            }
        };
        if accepts.takes(head.offload()) {
            let (lead, replaced) = lead(head, pick.edit);
            let first = original.bytes().get(replaced..).unwrap_or(&[]);
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
