//! Feature bits and configuration space of a network device (VIRTIO 1.2, 5.1.3 and 5.1.4).

use crate::port::RingKind;
use crate::port::offload::Accepts;
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
}

/// VIRTIO_NET_S_LINK_UP (5.1.4).
const LINK_UP: u16 = 1;

/// What a network device looks like to its driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// Address of the card.
    pub mac: [u8; 6],
    /// Largest packet, without the Ethernet header.
    pub mtu: u16,
    /// Pairs of a receive and a transmit queue.
    pub pairs: u16,
}

impl NetConfig {
    /// Most pairs of queues.
    pub const MAX_PAIRS: u16 = 128;

    /// The smallest MTU that a device may have (5.1.4.1).
    pub const MIN_MTU: u16 = 68;

    /// The largest MTU whose frames the switch carries.
    pub const MAX_MTU: u16 = 9216;

    /// Feature bits to offer. In vhost-user the VMM keeps the control queue to itself, so
    /// VIRTIO_NET_F_CTRL_VQ, on which MQ depends, is the VMM's to add.
    pub fn features(&self) -> u64 {
        let mq = if self.pairs > 1 { feature::MQ } else { 0 };
        let own = feature::MTU | feature::MAC | feature::MRG_RXBUF | feature::STATUS | mq;
        own | feature::OFFLOADS | vring::feature::OFFERED
    }

    /// The configuration space (5.1.4): mac, status, max_virtqueue_pairs, and `mtu`,
    /// which may change while the device lives.
    pub fn space(&self, mtu: u16) -> [u8; 12] {
        let mut space = [0; 12];
        space[..6].copy_from_slice(&self.mac);
        space[6..8].copy_from_slice(&LINK_UP.to_le_bytes());
        space[8..10].copy_from_slice(&self.pairs.to_le_bytes());
        space[10..].copy_from_slice(&mtu.to_le_bytes());
        space
    }

    /// What `features` mean for the rings. Without VERSION_1 and MRG_RXBUF the header has no
    /// num_buffers (5.1.6.1).
    pub fn ring_kind(features: u64) -> RingKind {
        let mergeable = features & feature::MRG_RXBUF != 0;
        let has = |bit| features & bit != 0;
        let long = mergeable || features & vring::feature::VERSION_1 != 0;
        RingKind {
            header: if long { 12 } else { 10 },
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
        };
        assert_eq!(config.space(0x0506), [2, 3, 4, 5, 6, 7, 1, 0, 2, 1, 6, 5]);
        assert!(config.features() & feature::MQ != 0);
        assert!(NetConfig { pairs: 1, ..config }.features() & feature::MQ == 0);
    }
}
