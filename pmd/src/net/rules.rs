//! What a port may do: rules as people give them, and what a worker keeps to enforce them.
//!
//! Everything is off by default, and a port without rules has none of this: its frames never come
//! here.

use std::sync::Arc;
use std::time::Duration;

use super::fdb::{Fdb, Mac, is_group};
use super::police::Bucket;
use super::vlan::{VlanSet, Vlans};
use crate::stats::Drop;

/// Rules of a port. What is not given does not restrict.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// VLANs that the port is in.
    pub vlans: Vlans,
    /// Most addresses learned at the port. Frames from any more are dropped.
    pub mac_limit: Option<u32>,
    /// The only source addresses that frames from the port may have.
    pub sources: Option<Vec<[u8; 6]>>,
    /// Addresses that are at this port, in each of its VLANs: not learned, never forgotten.
    /// Frames from them that come from another port are dropped.
    pub statics: Vec<[u8; 6]>,
    /// Most frames per second from the port that are for everybody: broadcast, multicast, and
    /// those to unknown addresses, all together.
    pub storm: Option<u64>,
    /// Most bits per second from the port, of frames without their checksum.
    pub rate: Option<u64>,
    /// Most frames per second from the port.
    pub pps: Option<u64>,
    /// How long a port that sent nothing may send faster than it may in the long run.
    pub burst: Option<Duration>,
    /// May not talk to other isolated ports.
    pub isolated: bool,
}

impl Rules {
    /// What may come at once if nothing else is said.
    pub const BURST: Duration = Duration::from_millis(10);

    /// Most entries of [`Rules::statics`], each VLAN counted by itself.
    pub const MAX_STATICS: usize = 1024;

    /// Why no port can have these rules, if so.
    pub fn check(&self) -> Result<(), &'static str> {
        let valid = |vid: &u16| (1..=VlanSet::LAST).contains(vid);
        let vids = match &self.vlans {
            Vlans::None => true,
            Vlans::Access(vid) => valid(vid),
            Vlans::Trunk { native, .. } => native.as_ref().is_none_or(valid),
        };
        let all = self.statics.iter().chain(self.sources.iter().flatten());
        if !vids {
            return Err("a VLAN has a number from 1 to 4094");
        }
        if all
            .copied()
            .map(number)
            .any(|mac| is_group(mac) || mac == 0)
        {
            return Err("a group address, or none at all, is no source");
        }
        match self.statics.len().saturating_mul(self.vlans.all().len()) {
            0..=Self::MAX_STATICS => Ok(()),
            _ => Err("a port has at most 1024 addresses of its own, counted in each VLAN"),
        }
    }

    /// Makes what the table must know of port `port` known to it. False if another port has one of
    /// its addresses.
    pub fn claim(&self, fdb: &Fdb, port: u16) -> bool {
        fdb.set_limit(port, self.mac_limit);
        let vids = self.vlans.all();
        let all = self.statics.iter();
        let mut all = all.flat_map(|mac| vids.iter().map(move |vid| (*mac, *vid)));
        all.all(|(mac, vid)| fdb.hold(mac, vid, port))
    }

    /// A bucket for `rate` tokens per second, which holds at least `least`.
    fn bucket(&self, rate: Option<u64>, least: u64) -> Option<Bucket> {
        let burst = self.burst.unwrap_or(Self::BURST).as_millis() as u64;
        let depth = |rate: u64| (rate / 1000).saturating_mul(burst).max(least);
        rate.map(|rate| Bucket::new(rate, depth(rate)))
    }
}

/// What all workers know of a port with rules.
#[derive(Debug, Clone, Default)]
pub struct PortRules {
    /// Its rules.
    pub rules: Rules,
    /// Number of the port that gets a copy of all its frames, in both directions.
    pub mirror: Option<u16>,
    /// It gets such copies, nothing else, and may send nothing.
    pub monitor: bool,
}

impl PortRules {
    /// Whether it has no rules at all.
    pub fn is_empty(&self) -> bool {
        self.rules == Rules::default() && self.mirror.is_none() && !self.monitor
    }

    /// Whether it gets frames that are in no VLAN and for everybody.
    pub(super) fn takes_plain(&self) -> bool {
        !self.monitor && self.rules.vlans.has(0)
    }
}

/// What the worker that owns a port keeps of its rules.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) port: Arc<PortRules>,
    sources: Option<Box<[Mac]>>,
    bits: Option<Bucket>,
    frames: Option<Bucket>,
    floods: Option<Bucket>,
}

/// The number of an address.
pub(super) fn number(address: [u8; 6]) -> Mac {
    let [a, b, c, d, e, f] = address;
    Mac::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

impl Policy {
    pub(super) fn new(port: Arc<PortRules>) -> Self {
        // So many that an ordinary burst, or one long frame, is none.
        const FRAMES: u64 = 64;
        const BITS: u64 = 65536 * 8;
        let rules = &port.rules;
        let sources = rules.sources.as_ref();
        Self {
            sources: sources.map(|all| all.iter().copied().map(number).collect()),
            bits: rules.bucket(rules.rate, BITS),
            frames: rules.bucket(rules.pps, FRAMES),
            floods: rules.bucket(rules.storm, FRAMES),
            port,
        }
    }

    /// Whether there is a limit that needs the time.
    pub(super) fn has_limits(&self) -> bool {
        self.bits.is_some() || self.frames.is_some() || self.floods.is_some()
    }

    /// The time is `now`.
    pub(super) fn fill(&mut self, now: u64) {
        let limits = [&mut self.bits, &mut self.frames, &mut self.floods];
        limits.into_iter().flatten().for_each(|b| b.fill(now));
    }

    /// Whether a frame of `len` bytes may come now.
    #[inline]
    pub(super) fn admit(&mut self, len: usize) -> Result<(), Drop> {
        if !take(&mut self.frames, 1) {
            return Err(Drop::PacketRate);
        }
        match take(&mut self.bits, len as u64 * 8) {
            true => Ok(()),
            false => Err(Drop::BitRate),
        }
    }

    /// Whether one more frame may go to everybody now.
    #[inline]
    pub(super) fn admit_flood(&mut self) -> Result<(), Drop> {
        match take(&mut self.floods, 1) {
            true => Ok(()),
            false => Err(Drop::Storm),
        }
    }

    /// Whether frames may come from this address.
    #[inline]
    pub(super) fn admit_source(&self, mac: Mac) -> Result<(), Drop> {
        match &self.sources {
            Some(sources) if !sources.contains(&mac) => Err(Drop::Spoofed),
            _ => Ok(()),
        }
    }
}

#[inline]
fn take(bucket: &mut Option<Bucket>, cost: u64) -> bool {
    bucket.as_mut().is_none_or(|bucket| bucket.take(cost))
}
