//! The path of frames from ports with rules, frame by frame. Each is judged in this order:
//!
//! 1. a monitor port may send nothing; who is watched has it copied as it came;
//! 2. limits of frames and of bits per second;
//! 3. VLAN;
//! 4. source address: valid, allowed, not another port's for good, not one too many;
//! 5. for everybody: the limit of such frames; for one port: not between isolated ones.

use super::fdb::{Learned, Spot, is_group};
use super::out::{Out, Tally, echo};
use super::remote::Post;
use super::rules::Policy;
use super::switch::Place;
use super::vlan::Membership;
use crate::port::{Addresses, Burst, Edit, Head, Pick, To};
use crate::stats::Drop;

/// Where a frame comes from.
#[derive(Clone, Copy)]
struct Origin {
    port: u16,
    isolated: bool,
    membership: Membership,
}

/// Where a frame goes.
enum Verdict {
    To(u16),
    Flood,
}

/// The places in the table of the frame before, which are often those of the next.
#[derive(Default)]
struct Last {
    addresses: Addresses,
    vid: Option<u16>,
    from: Spot,
    to: Spot,
}

impl Out {
    pub(super) fn forward_ruled(
        &mut self,
        port: u16,
        policy: &mut Policy,
        burst: &Burst<'_>,
        tally: &mut Tally,
    ) {
        let stats = self.known(port).and_then(|port| port.stats.clone());
        let dropped = |reason, n| {
            if let Some(stats) = &stats {
                stats.dropped(reason, n);
            }
        };
        if policy.port.monitor {
            dropped(Drop::Monitor, burst.len() as u64);
            return;
        }
        if policy.has_limits() {
            policy.fill(self.clock.now());
        }
        let mut last = Last::default();
        for (frame, head) in (0u8..).zip(burst.heads()) {
            if let Some(monitor) = policy.port.mirror {
                let edit = Edit::Keep;
                self.mirror(monitor, burst, &[Pick { frame, edit }]);
            }
            let sent = self.judge(port, policy, head, &mut last, tally);
            let sent = sent.and_then(|(origin, verdict)| match verdict {
                Verdict::To(to) => self.send_one(frame, &origin, to, To::Port(to)),
                Verdict::Flood => self.flood_ruled(frame, &origin),
            });
            if let Err(reason) = sent {
                dropped(reason, 1);
            }
        }
    }

    fn judge(
        &self,
        port: u16,
        policy: &mut Policy,
        head: &Head,
        last: &mut Last,
        tally: &mut Tally,
    ) -> Result<(Origin, Verdict), Drop> {
        policy.admit(head.frame_len())?;
        let rules = &policy.port.rules;
        let membership = rules.vlans.classify(head.bytes()).ok_or(Drop::Vlan)?;
        let addresses = head.addresses();
        let (to, from) = (addresses.destination(), addresses.source());
        if is_group(from) || from == 0 {
            return Err(Drop::BadSource);
        }
        policy.admit_source(from)?;
        let fdb = &self.shared.fdb;
        if last.addresses != addresses || last.vid != Some(membership.vid) {
            *last = Last {
                addresses,
                vid: Some(membership.vid),
                from: fdb.spot(from, membership.vid),
                to: fdb.spot(to, membership.vid),
            };
        }
        match fdb.learn(&last.from, port, self.now) {
            // Full for other reasons than a limit: it is still heard.
            Learned::Yes | Learned::NoRoom => {}
            Learned::Limit => return Err(Drop::MacLimit),
            Learned::Held => return Err(Drop::HeldAddress),
        }
        let origin = Origin {
            port,
            isolated: rules.isolated,
            membership,
        };
        if !is_group(to)
            && let Some(to) = fdb.lookup(&last.to, self.now)
        {
            return Ok((origin, Verdict::To(to)));
        }
        policy.admit_flood()?;
        tally.unlearnt += u64::from(!is_group(to));
        Ok((origin, Verdict::Flood))
    }

    /// How a frame in a VLAN, or none, is delivered to port `to`, if it may be.
    pub(super) fn admit(
        &self,
        to: u16,
        membership: &Membership,
        isolated: bool,
    ) -> Result<Edit, Drop> {
        let port = self.known(to).ok_or(Drop::NoDestination)?;
        match &port.rules {
            None if membership.vid == 0 => Ok(Edit::Keep),
            None => Err(Drop::Vlan),
            Some(port) if port.monitor => Err(Drop::NoDestination),
            Some(port) if port.rules.isolated && isolated => Err(Drop::Isolated),
            Some(port) => port.rules.vlans.egress(membership).ok_or(Drop::Vlan),
        }
    }

    /// Notes that a frame goes to port `to`; another worker that owns it is told `remotely`.
    fn send_one(&mut self, frame: u8, origin: &Origin, to: u16, remotely: To) -> Result<(), Drop> {
        if to == origin.port {
            return Err(Drop::NoDestination);
        }
        let edit = self.admit(to, &origin.membership, origin.isolated)?;
        let frames = frame..frame + 1;
        let place = self.known(to).map(|port| port.place);
        let noted = match place.unwrap_or_default() {
            Place::Here => self.note_here(frames, to, edit),
            Place::Echo { swap } => self.note_here(frames, origin.port, echo(swap)),
            Place::There(worker) => {
                let post = Post {
                    vid: origin.membership.vid,
                    isolated: origin.isolated,
                    ..Post::plain(remotely)
                };
                self.note_remote(frames, worker, &post)
            }
            Place::Absent => false,
        };
        noted.then_some(()).ok_or(Drop::NoDestination)
    }

    fn flood_ruled(&mut self, frame: u8, origin: &Origin) -> Result<(), Drop> {
        let mut reached = false;
        for place in 0..self.present.len() {
            if let Some(&to) = self.present.get(place) {
                // Whoever does not get it was not meant to.
                reached |= self.send_one(frame, origin, to, To::All).is_ok();
            }
        }
        reached.then_some(()).ok_or(Drop::NoDestination)
    }

    /// Copies frames, as they were handed to a port or came from it, to the port that watches it.
    #[cold]
    pub(super) fn mirror(&mut self, monitor: u16, burst: &Burst<'_>, picks: &[Pick]) {
        for pick in picks {
            let port = self.port(monitor);
            match port.place {
                Place::Here => {
                    if port.group.len == port.group.picks.len() {
                        self.deliver_to(monitor, burst);
                    }
                    self.note_here(pick.frame..pick.frame + 1, monitor, pick.edit);
                }
                Place::There(worker) => {
                    let post = Post {
                        pick: *pick,
                        ..Post::plain(To::Monitor(monitor))
                    };
                    self.note_remote(pick.frame..pick.frame + 1, worker, &post);
                }
                Place::Echo { .. } | Place::Absent => {}
            }
        }
    }
}
