//! Feature bits and configuration space of a network device (VIRTIO 1.2, 5.1.3 and 5.1.4).

use super::control::MAX_TABLE;
use crate::port::offload::Accepts;
use crate::port::{RingKind, rss};
use crate::vring;

/// Feature bits of network devices that are offered (5.1.3).
pub mod feature {
    /// VIRTIO_NET_F_CSUM: frames to us may lack their checksum.
    pub const CSUM: u64 = 1 << 0;
    /// VIRTIO_NET_F_GUEST_CSUM: frames from us may.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// VIRTIO_NET_F_GUEST_TSO4: from us, TCP over IPv4 may be longer than the wire takes.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// VIRTIO_NET_F_GUEST_TSO6: the same over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// VIRTIO_NET_F_GUEST_ECN: and carry congestion marks.
    pub const GUEST_ECN: u64 = 1 << 9;
    /// VIRTIO_NET_F_HOST_TSO4: to us, TCP over IPv4 may be longer than the wire takes.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// VIRTIO_NET_F_HOST_TSO6: the same over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// VIRTIO_NET_F_HOST_ECN: and carry congestion marks.
    pub const HOST_ECN: u64 = 1 << 13;
    /// VIRTIO_NET_F_GUEST_USO4: from us, several UDP datagrams over IPv4 may come as one.
    pub const GUEST_USO4: u64 = 1 << 54;
    /// VIRTIO_NET_F_GUEST_USO6: the same over IPv6.
    pub const GUEST_USO6: u64 = 1 << 55;
    /// VIRTIO_NET_F_HOST_USO: to us, over either.
    pub const HOST_USO: u64 = 1 << 56;
    /// What a driver takes from us as it is.
    pub const GUEST_OFFLOADS: u64 =
        GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_USO4 | GUEST_USO6;
    /// That, and what a driver may leave to us.
    pub const OFFLOADS: u64 = GUEST_OFFLOADS | CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_USO;
    /// VIRTIO_NET_F_MTU: the configuration space has the MTU.
    pub const MTU: u64 = 1 << 3;
    /// VIRTIO_NET_F_MAC: the configuration space has an address.
    pub const MAC: u64 = 1 << 5;
    /// VIRTIO_NET_F_MRG_RXBUF: a frame may be spread over several receive buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// VIRTIO_NET_F_STATUS: the configuration space has the link's state.
    pub const STATUS: u64 = 1 << 16;
    /// VIRTIO_NET_F_MQ: more than one pair of queues.
    pub const MQ: u64 = 1 << 22;
    /// VIRTIO_NET_F_SPEED_DUPLEX: the configuration space has the link's speed.
    pub const SPEED_DUPLEX: u64 = 1 << 63;
    /// VIRTIO_NET_F_CTRL_VQ: there is a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// VIRTIO_NET_F_CTRL_GUEST_OFFLOADS: what is taken as it is may change.
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    /// VIRTIO_NET_F_CTRL_RX: frames are filtered by address.
    pub const CTRL_RX: u64 = 1 << 18;
    /// VIRTIO_NET_F_CTRL_VLAN: frames are filtered by VLAN.
    pub const CTRL_VLAN: u64 = 1 << 19;
    /// VIRTIO_NET_F_CTRL_RX_EXTRA: in more ways.
    pub const CTRL_RX_EXTRA: u64 = 1 << 20;
    /// VIRTIO_NET_F_GUEST_ANNOUNCE: the driver announces itself when asked.
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    /// VIRTIO_NET_F_CTRL_MAC_ADDR: the address may change.
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    /// VIRTIO_NET_F_HASH_REPORT: frames to the guest come with a hash of their flow.
    pub const HASH_REPORT: u64 = 1 << 57;
    /// VIRTIO_NET_F_RSS: the driver says which flow goes to which queue.
    pub const RSS: u64 = 1 << 60;
    /// All that the control queue is for, but what needs several pairs of queues.
    pub const CONTROL: u64 = CTRL_VQ
        | CTRL_GUEST_OFFLOADS
        | CTRL_RX
        | CTRL_VLAN
        | CTRL_RX_EXTRA
        | GUEST_ANNOUNCE
        | CTRL_MAC_ADDR
        | HASH_REPORT;
}

/// VIRTIO_NET_S_LINK_UP (5.1.4).
const LINK_UP: u16 = 1;
/// VIRTIO_NET_S_ANNOUNCE.
const ANNOUNCE: u16 = 2;
/// Full duplex.
const FULL: u8 = 1;

/// Length of the configuration space, up to supported_hash_types.
const SPACE: usize = 24;

/// What a network device looks like to its driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// Address of the card.
    pub mac: [u8; 6],
    /// Largest packet, without the Ethernet header.
    pub mtu: u16,
    /// Pairs of a receive and a transmit queue.
    pub pairs: u16,
    /// Speed of the link in Mbit/s, for whoever asks: frames are not slowed down to it.
    pub speed: u32,
    /// With a control queue, for front-ends that pass it on.
    pub control: bool,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            pairs: 1,
            speed: 10_000,
            control: false,
        }
    }
}

impl NetConfig {
    /// Most pairs of queues.
    pub const MAX_PAIRS: u16 = 128;

    /// Most with a control queue: a kick names its queue in a byte.
    pub const MAX_PAIRS_CONTROLLED: u16 = 127;

    /// The smallest MTU that a device may have (5.1.4.1).
    pub const MIN_MTU: u16 = 68;

    /// The largest MTU whose frames the switch carries.
    pub const MAX_MTU: u16 = 9216;

    /// Feature bits to offer. Most VMMs keep the control queue to themselves: then CTRL_VQ, on
    /// which MQ depends, is the VMM's to add, and what else the queue is for is not ours to offer.
    pub fn features(&self) -> u64 {
        let mq = if self.pairs > 1 { feature::MQ } else { 0 };
        let control = match (self.control, self.pairs) {
            (false, _) => 0,
            (true, 1) => feature::CONTROL,
            (true, _) => feature::CONTROL | feature::RSS,
        };
        let own = feature::MTU
            | feature::MAC
            | feature::MRG_RXBUF
            | feature::STATUS
            | feature::SPEED_DUPLEX;
        own | mq | control | feature::OFFLOADS | vring::feature::OFFERED
    }

    /// Number of queues.
    pub fn queues(&self) -> u16 {
        2 * self.pairs + u16::from(self.control)
    }

    /// The queue that is the control queue for a driver that accepted `features` (5.1.2).
    pub fn control_queue(&self, features: u64) -> Option<u16> {
        let on = self.control && features & feature::CTRL_VQ != 0;
        on.then_some(match features & (feature::MQ | feature::RSS) {
            0 => 2,
            _ => 2 * self.pairs,
        })
    }

    /// The configuration space (5.1.4), with what may change while the device lives.
    pub fn space(&self, mac: [u8; 6], mtu: u16, announce: bool) -> [u8; SPACE] {
        let mut space = [0; SPACE];
        let status = LINK_UP | if announce { ANNOUNCE } else { 0 };
        space[..6].copy_from_slice(&mac);
        space[6..8].copy_from_slice(&status.to_le_bytes());
        space[8..10].copy_from_slice(&self.pairs.to_le_bytes());
        space[10..12].copy_from_slice(&mtu.to_le_bytes());
        space[12..16].copy_from_slice(&self.speed.to_le_bytes());
        space[16] = FULL;
        if self.control {
            space[17] = rss::MAX_KEY as u8;
            space[18..20].copy_from_slice(&MAX_TABLE.to_le_bytes());
            space[20..].copy_from_slice(&rss::types::ALL.to_le_bytes());
        }
        space
    }

    /// What `features` mean for the rings. Without VERSION_1 and MRG_RXBUF the header has no
    /// num_buffers (5.1.6.1); with HASH_REPORT it has room for a hash.
    pub fn ring_kind(features: u64) -> RingKind {
        let mergeable = features & feature::MRG_RXBUF != 0;
        let has = |bit| features & bit != 0;
        let long = mergeable || features & vring::feature::VERSION_1 != 0;
        RingKind {
            header: match (has(feature::HASH_REPORT), long) {
                (true, _) => 20,
                (false, true) => 12,
                (false, false) => 10,
            },
            mergeable,
            offloads: has(feature::CSUM),
            accepts: Accepts {
                csum: has(feature::GUEST_CSUM),
                tso4: has(feature::GUEST_TSO4),
                tso6: has(feature::GUEST_TSO6),
                ecn: has(feature::GUEST_ECN),
                uso4: has(feature::GUEST_USO4),
                uso6: has(feature::GUEST_USO6),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_by_features() {
        let header = |features| NetConfig::ring_kind(features).header;
        assert_eq!(header(0), 10);
        assert_eq!(header(feature::MRG_RXBUF), 12);
        assert_eq!(header(vring::feature::VERSION_1), 12);
        assert!(!NetConfig::ring_kind(vring::feature::VERSION_1).mergeable);
    }

    #[test]
    fn space_has_the_layout_of_the_specification() {
        let config = NetConfig {
            mac: [2, 3, 4, 5, 6, 7],
            mtu: 0x0506,
            pairs: 0x0102,
            speed: 0x0403_0201,
            control: false,
        };
        let space = config.space([2, 3, 4, 5, 6, 9], 0x0507, false);
        assert_eq!(space[..12], [2, 3, 4, 5, 6, 9, 1, 0, 2, 1, 7, 5]);
        assert_eq!(space[12..], [1, 2, 3, 4, 1, 0, 0, 0, 0, 0, 0, 0]);
        let control = NetConfig {
            control: true,
            ..config
        };
        let space = control.space([2, 3, 4, 5, 6, 9], 0x0507, true);
        assert_eq!(space[6..8], [3, 0]);
        assert_eq!(space[17..], [40, 128, 0, 0x3f, 0, 0, 0]);
    }

    #[test]
    fn the_control_queue_is_the_last() {
        let config = NetConfig {
            pairs: 4,
            ..NetConfig::default()
        };
        let all = u64::MAX;
        assert!(config.features() & feature::MQ != 0);
        assert_eq!(config.features() & (feature::CONTROL | feature::RSS), 0);
        assert_eq!((config.queues(), config.control_queue(all)), (8, None));
        let config = NetConfig {
            control: true,
            ..config
        };
        assert_eq!(config.features() & feature::CONTROL, feature::CONTROL);
        assert_eq!((config.queues(), config.control_queue(all)), (9, Some(8)));
        let without = |bits: u64| config.control_queue(!bits);
        assert_eq!(without(feature::MQ), Some(8));
        assert_eq!(without(feature::MQ | feature::RSS), Some(2));
        assert_eq!(without(feature::CTRL_VQ), None);
        let one = NetConfig { pairs: 1, ..config };
        assert_eq!(one.features() & (feature::MQ | feature::RSS), 0);
        assert_eq!((one.queues(), one.control_queue(all)), (3, Some(2)));
    }
}
