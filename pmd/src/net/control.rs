//! What a driver says on the control queue (VIRTIO 1.2, 5.1.6.5): commands are judged, obeyed and
//! answered here; what follows for frames to the guest is its [`Policy`].
//!
//! Every command has the length that its fields say, to the byte, or is refused. Nothing of a
//! refused command stays. Pure.

use super::device::{NetConfig, feature};
use crate::port::filter::{Addresses, Filter, Modes, Vlans};
use crate::port::offload::Accepts;
use crate::port::rss::{self, FlowHash};
use crate::port::{Policy, Steering};

/// VIRTIO_NET_OK.
pub(super) const OK: u8 = 0;
/// VIRTIO_NET_ERR.
pub(super) const ERR: u8 = 1;

/// Most entries of an indirection table (5.1.4.1 wants at least 128).
pub(super) const MAX_TABLE: u16 = 128;

/// A command's fields, front to back.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn le16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn le32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// A byte that is 0 or 1.
    fn switch(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    /// A table of addresses behind its length.
    fn addresses(&mut self) -> Option<&'a [[u8; 6]]> {
        let count = usize::try_from(self.le32()?).ok()?;
        let (addresses, _) = self.bytes(count.checked_mul(6)?)?.as_chunks();
        Some(addresses)
    }

    /// Nothing is left.
    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// What the driver of one card wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// The card's own address.
    own: [u8; 6],
    /// Pairs that there are.
    most: u16,
    features: u64,
    filter: Filter,
    steering: Steering,
    hash: Option<FlowHash>,
    accepts: Accepts,
    announce: bool,
}

impl Control {
    /// As `config` has it after a reset, with nothing negotiated.
    pub fn new(config: &NetConfig) -> Self {
        Self::with_features(config.mac, config.pairs, 0)
    }

    fn with_features(own: [u8; 6], most: u16, features: u64) -> Self {
        let has = |bit| features & bit != 0;
        // A driver that never says what it wants gets everything.
        let modes = Modes {
            promiscuous: true,
            ..Modes::default()
        };
        Self {
            own,
            most,
            features,
            filter: Filter {
                modes: has(feature::CTRL_RX).then_some(modes),
                mac: own,
                unicast: Addresses::default(),
                multicast: Addresses::default(),
                vlans: has(feature::CTRL_VLAN).then(Vlans::default),
            },
            steering: Steering::Automatic { pairs: 1 },
            hash: None,
            accepts: NetConfig::ring_kind(features).accepts,
            announce: false,
        }
    }

    /// Begins anew, for a driver that accepted `features`.
    pub fn negotiate(&mut self, features: u64) {
        *self = Self::with_features(self.own, self.most, features);
    }

    /// Whether the driver has a control queue.
    pub fn is_on(&self) -> bool {
        self.features & feature::CTRL_VQ != 0
    }

    /// The card's address now.
    pub fn mac(&self) -> [u8; 6] {
        self.filter.mac
    }

    /// Whether the driver shall announce itself.
    pub fn wants_announcement(&self) -> bool {
        self.announce
    }

    /// Asks the driver to announce itself, if it can.
    pub fn ask_announcement(&mut self) {
        self.announce = self.features & feature::GUEST_ANNOUNCE != 0;
    }

    /// What the driver takes as it is.
    pub fn accepts(&self) -> Accepts {
        self.accepts
    }

    /// What follows for frames to the guest.
    pub fn policy(&self) -> Option<Policy> {
        let parts = || {
            let (filter, steering) = (self.filter.clone(), self.steering.clone());
            Policy::new(filter, steering, self.hash.clone())
        };
        self.is_on().then(parts)
    }

    /// Obeys a command or refuses it. Returns the answer.
    pub fn answer(&mut self, command: &[u8]) -> u8 {
        let mut fields = Fields(command);
        match self.obey(&mut fields) {
            Some(()) => OK,
            None => ERR,
        }
    }

    /// Whether `bit` was negotiated.
    fn needs(&self, bit: u64) -> Option<()> {
        (self.features & bit != 0).then_some(())
    }

    fn obey(&mut self, fields: &mut Fields<'_>) -> Option<()> {
        self.needs(feature::CTRL_VQ)?;
        match (fields.u8()?, fields.u8()?) {
            (0, mode) => self.receive_mode(mode, fields),
            (1, 0) => self.mac_table(fields),
            (1, 1) => self.mac_address(fields),
            (2, 0) => self.vlan(true, fields),
            (2, 1) => self.vlan(false, fields),
            (3, 0) => self.announced(fields),
            (4, 0) => self.queue_pairs(fields),
            (4, 1) => self.receive_side_scaling(fields),
            (4, 2) => self.hash_report(fields),
            (5, 0) => self.guest_offloads(fields),
            _ => None,
        }
    }

    /// VIRTIO_NET_CTRL_RX_PROMISC to _NOBCAST.
    fn receive_mode(&mut self, mode: u8, fields: &mut Fields<'_>) -> Option<()> {
        let on = fields.switch()?;
        fields.end()?;
        if mode > 1 {
            self.needs(feature::CTRL_RX_EXTRA)?;
        }
        let modes = self.filter.modes.as_mut()?;
        let which = match mode {
            0 => &mut modes.promiscuous,
            1 => &mut modes.all_multicast,
            2 => &mut modes.all_unicast,
            3 => &mut modes.no_multicast,
            4 => &mut modes.no_unicast,
            5 => &mut modes.no_broadcast,
            _ => return None,
        };
        *which = on;
        Some(())
    }

    fn mac_table(&mut self, fields: &mut Fields<'_>) -> Option<()> {
        self.needs(feature::CTRL_RX)?;
        let (unicast, multicast) = (fields.addresses()?, fields.addresses()?);
        fields.end()?;
        self.filter.unicast = Addresses::new(unicast);
        self.filter.multicast = Addresses::new(multicast);
        Some(())
    }

    fn mac_address(&mut self, fields: &mut Fields<'_>) -> Option<()> {
        self.needs(feature::CTRL_MAC_ADDR)?;
        let mac: [u8; 6] = fields.array()?;
        fields.end()?;
        if mac[0] & 1 != 0 || mac == [0; 6] {
            return None;
        }
        self.filter.mac = mac;
        Some(())
    }

    fn vlan(&mut self, wanted: bool, fields: &mut Fields<'_>) -> Option<()> {
        let id = fields.le16()?;
        fields.end()?;
        self.filter.vlans.as_mut()?.set(id, wanted).then_some(())
    }

    fn announced(&mut self, fields: &Fields<'_>) -> Option<()> {
        self.needs(feature::GUEST_ANNOUNCE)?;
        fields.end()?;
        self.announce = false;
        Some(())
    }

    /// Frames go to the first so many pairs, by a hash of ours.
    fn queue_pairs(&mut self, fields: &mut Fields<'_>) -> Option<()> {
        self.needs(feature::MQ)?;
        let pairs = fields.le16()?;
        fields.end()?;
        if !(1..=self.most).contains(&pairs) {
            return None;
        }
        self.steering = Steering::Automatic { pairs };
        Some(())
    }

    /// Frames go to pairs by the driver's hash and table.
    fn receive_side_scaling(&mut self, fields: &mut Fields<'_>) -> Option<()> {
        self.needs(feature::RSS)?;
        let types = fields.le32()?;
        let entries = fields.le16()?.checked_add(1)?;
        let unclassified = fields.le16()?;
        if !entries.is_power_of_two() || entries > MAX_TABLE {
            return None;
        }
        let table = (0..entries).map(|_| fields.le16());
        let table: Box<[u16]> = table.collect::<Option<_>>()?;
        let senders = fields.le16()?;
        let hash = hash_of(types, fields)?;
        let there = |pair: &u16| *pair < self.most;
        if !table.iter().all(there) || !there(&unclassified) || !(1..=self.most).contains(&senders)
        {
            return None;
        }
        self.steering = Steering::Table {
            table,
            unclassified,
        };
        self.hash = Some(hash);
        Some(())
    }

    /// Frames come with the driver's hash; they go to queues as before.
    fn hash_report(&mut self, fields: &mut Fields<'_>) -> Option<()> {
        self.needs(feature::HASH_REPORT)?;
        let types = fields.le32()?;
        // Reserved: where the other command has its table.
        fields.bytes(8)?;
        self.hash = Some(hash_of(types, fields)?);
        // The table, if there was one, was for the old hash.
        if let Steering::Table { .. } = self.steering {
            self.steering = Steering::Automatic { pairs: self.most };
        }
        Some(())
    }

    fn guest_offloads(&mut self, fields: &mut Fields<'_>) -> Option<()> {
        self.needs(feature::CTRL_GUEST_OFFLOADS)?;
        let wanted = fields.array().map(u64::from_le_bytes)?;
        fields.end()?;
        if wanted & !(self.features & feature::GUEST_OFFLOADS) != 0 {
            return None;
        }
        self.accepts = NetConfig::ring_kind(wanted).accepts;
        Some(())
    }
}

/// A hash of these types, with the key at the end of a command.
fn hash_of(types: u32, fields: &mut Fields<'_>) -> Option<FlowHash> {
    let len = usize::from(fields.u8()?);
    let key = fields.bytes(len)?;
    fields.end()?;
    let sane = types & !rss::types::ALL == 0 && len <= rss::MAX_KEY;
    sane.then(|| FlowHash::new(types, key))
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
