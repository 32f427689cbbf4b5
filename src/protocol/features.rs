//! Feature bits and their names.

use bitflags::bitflags;

bitflags! {
    /// Feature bits that mean something to vhost-user or to the rings (VIRTIO 1.2, section 6). A
    /// device's own bits (0-23 and 50 up) are kept and have no name here.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Features: u64 {
        /// The device is told what to call used buffers only when the ring is empty (legacy).
        const NOTIFY_ON_EMPTY = 1 << 24;
        /// Log all writes to guest memory.
        const LOG_ALL = 1 << 26;
        /// Descriptors may be laid out in any way.
        const ANY_LAYOUT = 1 << 27;
        /// Indirect descriptors.
        const INDIRECT_DESC = 1 << 28;
        /// used_event and avail_event.
        const EVENT_IDX = 1 << 29;
        /// vhost-user protocol features can be negotiated.
        const PROTOCOL_FEATURES = 1 << 30;
        /// VIRTIO 1.0 or later.
        const VERSION_1 = 1 << 32;
        /// Descriptors hold IOVAs, translated by the IOTLB.
        const ACCESS_PLATFORM = 1 << 33;
        /// Packed rings.
        const RING_PACKED = 1 << 34;
        /// Buffers are used in the order they were made available.
        const IN_ORDER = 1 << 35;
        /// Memory accesses are ordered as the platform describes.
        const ORDER_PLATFORM = 1 << 36;
        /// Single root I/O virtualization.
        const SR_IOV = 1 << 37;
        /// Kicks carry data.
        const NOTIFICATION_DATA = 1 << 38;
        /// Kicks carry a number from the device.
        const NOTIF_CONFIG_DATA = 1 << 39;
        /// Single queues can be reset.
        const RING_RESET = 1 << 40;
        /// All other bits.
        const _ = !0;
    }
}

bitflags! {
    /// vhost-user protocol features.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct ProtocolFeatures: u64 {
        /// The number of queues can be asked for.
        const MQ = 1 << 0;
        /// The dirty log is shared memory.
        const LOG_SHMFD = 1 << 1;
        /// SEND_RARP.
        const RARP = 1 << 2;
        /// Any message can ask for its outcome.
        const REPLY_ACK = 1 << 3;
        /// NET_SET_MTU.
        const MTU = 1 << 4;
        /// The back-end can send requests.
        const BACKEND_REQ = 1 << 5;
        /// Legacy rings of the other byte order.
        const CROSS_ENDIAN = 1 << 6;
        /// Crypto sessions.
        const CRYPTO_SESSION = 1 << 7;
        /// Postcopy migration.
        const PAGEFAULT = 1 << 8;
        /// Configuration space by messages.
        const CONFIG = 1 << 9;
        /// The back-end can send file descriptors.
        const BACKEND_SEND_FD = 1 << 10;
        /// Host notifiers.
        const HOST_NOTIFIER = 1 << 11;
        /// In-flight requests are tracked in shared memory.
        const INFLIGHT_SHMFD = 1 << 12;
        /// RESET_DEVICE.
        const RESET_DEVICE = 1 << 13;
        /// Kicks and calls by messages.
        const INBAND_NOTIFICATIONS = 1 << 14;
        /// Memory regions come and go one by one.
        const CONFIGURE_MEM_SLOTS = 1 << 15;
        /// Device status by messages.
        const STATUS = 1 << 16;
        /// Xen grants.
        const XEN_MMAP = 1 << 17;
        /// dma-bufs shared between back-ends.
        const SHARED_OBJECT = 1 << 18;
        /// Device state for migration.
        const DEVICE_STATE = 1 << 19;
        /// GET_VRING_BASE may leave requests in flight.
        const GET_VRING_BASE_INFLIGHT = 1 << 20;
        /// Messages hold guest addresses only.
        const GPA_ADDRESSES = 1 << 21;
        /// Shared memory regions of the device.
        const SHMEM = 1 << 22;
        /// GET_VRING_BASE without draining.
        const GET_VRING_BASE_SKIP_DRAIN = 1 << 23;
        /// All other bits.
        const _ = !0;
    }
}

/// Named bits by name, the rest as `0x...`, joined by ` | `; `none` if there is none.
fn names<T: bitflags::Flags<Bits = u64>>(flags: &T) -> String {
    let mut rest = flags.bits();
    let mut parts = Vec::new();
    for flag in T::FLAGS.iter().filter(|flag| !flag.name().is_empty()) {
        let bits = flag.value().bits();
        if rest & bits == bits {
            parts.push(flag.name().to_owned());
            rest &= !bits;
        }
    }
    if rest != 0 {
        parts.push(format!("{rest:#x}"));
    }
    if parts.is_empty() {
        return "none".to_owned();
    }
    parts.join(" | ")
}

impl std::fmt::Display for Features {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&names(self))
    }
}

impl std::fmt::Display for ProtocolFeatures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&names(self))
    }
}
