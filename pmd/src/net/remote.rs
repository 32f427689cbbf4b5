//! Frames between workers: copied into mbufs where they come from, judged again where they go.

use std::ops::Range;
use std::sync::Arc;

use vvu::memory;

use super::out::{Out, Tally};
use super::switch::Place;
use super::vlan::Membership;
use crate::mempool::{Mbuf, Mempool};
use crate::port::offload::Accepts;
use crate::port::{Burst, Edit, Parcel, Pick, Shown, To};

/// A frame of the burst at hand for another worker. See [`Parcel`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Post {
    pub(super) pick: Pick,
    pub(super) to: To,
    pub(super) vid: u16,
    pub(super) isolated: bool,
}

impl Post {
    /// Without rules. Which frame is said later.
    pub(super) fn plain(to: To) -> Self {
        Self {
            pick: Pick::default(),
            to,
            vid: 0,
            isolated: false,
        }
    }
}

impl Out {
    /// Notes that `frames` go to `worker`, as `post` says.
    pub(super) fn note_remote(&mut self, frames: Range<u8>, worker: usize, post: &Post) -> bool {
        let Some(remote) = self.remote.get_mut(worker) else {
            return false;
        };
        let post = |frame| {
            let pick = Pick { frame, ..post.pick };
            Post { pick, ..*post }
        };
        // A flood reaches every port of the other worker with one copy.
        let last = post(frames.end.saturating_sub(1));
        if last.to != To::All || remote.last() != Some(&last) {
            remote.extend(frames.map(post));
        }
        self.posted = true;
        true
    }

    /// Queues what was noted for other workers.
    pub(super) fn send_remote(
        &mut self,
        source: u16,
        burst: &Burst<'_>,
        tally: &mut Tally,
    ) -> bool {
        let mut met = false;
        for (remote, inbox) in self.remote.iter_mut().zip(&self.shared.inboxes) {
            if remote.is_empty() {
                continue;
            }
            for Post {
                pick,
                to,
                vid,
                isolated,
            } in remote.drain(..)
            {
                let Some(head) = burst.picked(&pick) else {
                    continue;
                };
                let mut post = |mbuf: Option<Mbuf>| {
                    let Some(mbuf) = mbuf else {
                        tally.no_mbuf += 1;
                        return;
                    };
                    let parcel = Parcel {
                        mbuf,
                        source,
                        to,
                        vid,
                        isolated,
                    };
                    tally.queue_full += u64::from(inbox.queue.push(parcel).is_err());
                };
                let pool = self.shared.pool.as_ref();
                // What the receiver takes is not known here, and an mbuf holds no long frame.
                let scratch = &mut self.scratch;
                scratch.show(burst, &head, Accepts::default(), |frame| {
                    post(copy(pool, frame));
                });
            }
            inbox.waker.wake();
            met = true;
        }
        met
    }

    /// Delivers frames from other workers to ports of this one.
    pub(super) fn arrive(&mut self, burst: &Burst<'_>, parcels: &[Parcel]) {
        for (frame, head) in (0u8..).zip(burst.heads()) {
            let Some(parcel) = parcels.get(head.item()) else {
                continue;
            };
            let membership = Membership::found(parcel.vid, head.bytes());
            match parcel.to {
                To::Port(port) | To::Monitor(port) if !self.is_here(port) => {
                    self.stats.stray.add(1);
                }
                To::Port(port) => match self.admit(port, &membership, parcel.isolated) {
                    Ok(edit) => {
                        self.note_here(frame..frame + 1, port, edit);
                    }
                    // The source's counters are another worker's to write.
                    Err(reason) => {
                        if let Some(stats) = &self.port(port).stats {
                            stats.dropped(reason, 1);
                        }
                    }
                },
                To::Monitor(port) => {
                    let edit = Edit::Keep;
                    self.mirror(port, burst, &[Pick { frame, edit }]);
                }
                To::All => {
                    for place in 0..self.present.len() {
                        if let Some(&port) = self.present.get(place)
                            && port != parcel.source
                            && self.is_here(port)
                            && let Ok(edit) = self.admit(port, &membership, parcel.isolated)
                        {
                            self.note_here(frame..frame + 1, port, edit);
                        }
                    }
                }
            }
        }
        self.deliver(burst);
        // What went to a port that is watched from another worker.
        if std::mem::take(&mut self.posted) {
            let mut tally = Tally::default();
            self.send_remote(u16::MAX, burst, &mut tally);
            self.stats.stray.add(tally.queue_full + tally.no_mbuf);
        }
    }

    fn is_here(&self, port: u16) -> bool {
        self.known(port)
            .is_some_and(|port| port.place == Place::Here)
    }
}

/// A copy of a frame that outlives the burst.
fn copy(pool: Option<&Arc<Mempool>>, frame: Shown<'_>) -> Option<Mbuf> {
    let mut mbuf = pool?.alloc()?;
    memory::copy::write(frame.first, mbuf.append(frame.first.len())?);
    for piece in frame.body {
        memory::copy::across(piece, mbuf.append(piece.len())?);
    }
    Some(mbuf)
}
