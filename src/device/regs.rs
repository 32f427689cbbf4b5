//! Registers of a VVU function, as tables.
//!
//! Common configuration: VIRTIO 1.2, 4.1.4.3. Device configuration and notification selector:
//! virtio-vhost-user, "device configuration layout" and "notification configuration".

use crate::mmio::{ReadOnly, ReadWrite, Reg, Window, WriteOnly};

use super::DeviceError;

/// Declares a structure of registers: name, offset, type, access.
macro_rules! registers {
    ($(#[$doc:meta])* $name:ident ($label:literal, $len:literal) {
        $($(#[$field_doc:meta])* $field:ident @ $offset:literal : $type:ty, $access:ty;)*
    }) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $name {
            $($(#[$field_doc])* pub(super) $field: Reg<$type, $access>,)*
        }

        impl $name {
            pub(super) fn new(window: &Window) -> Result<Self, DeviceError> {
                Ok(Self {
                    $($field: window.register($offset).ok_or(DeviceError::Structure {
                        name: $label,
                        found: window.len(),
                        needed: $len,
                    })?,)*
                })
            }
        }
    };
}

registers! {
    /// Common configuration of a virtio function.
    CommonConfig("common configuration", 0x38) {
        device_feature_select @ 0x00: u32, ReadWrite;
        device_feature        @ 0x04: u32, ReadOnly;
        driver_feature_select @ 0x08: u32, ReadWrite;
        driver_feature        @ 0x0c: u32, ReadWrite;
        config_msix_vector    @ 0x10: u16, ReadWrite;
        num_queues            @ 0x12: u16, ReadOnly;
        device_status         @ 0x14: u8,  ReadWrite;
        queue_select          @ 0x16: u16, ReadWrite;
        queue_size            @ 0x18: u16, ReadWrite;
        queue_msix_vector     @ 0x1a: u16, ReadWrite;
        queue_enable          @ 0x1c: u16, ReadWrite;
        queue_notify_off      @ 0x1e: u16, ReadOnly;
        queue_desc_lo         @ 0x20: u32, WriteOnly;
        queue_desc_hi         @ 0x24: u32, WriteOnly;
        queue_driver_lo       @ 0x28: u32, WriteOnly;
        queue_driver_hi       @ 0x2c: u32, WriteOnly;
        queue_device_lo       @ 0x30: u32, WriteOnly;
        queue_device_hi       @ 0x34: u32, WriteOnly;
    }
}

registers! {
    /// Device configuration; the uuid at 8..24 is read as bytes.
    VvuConfig("device configuration", 0x18) {
        status           @ 0x00: u32, ReadWrite;
        max_vhost_queues @ 0x04: u32, ReadOnly;
    }
}

/// Offset of the uuid in the device configuration.
pub(super) const UUID: u64 = 0x08;

registers! {
    /// What a device with extensions appends to the device configuration.
    VvuExtended("extended device configuration", 0x20) {
        conn_generation @ 0x18: u32, ReadOnly;
        max_mem_regions @ 0x1c: u32, ReadOnly;
    }
}

registers! {
    /// Which MSI-X vector the kick of a ring raises.
    Notifications("notification selector", 0x04) {
        notification_select      @ 0x00: u16, ReadWrite;
        notification_msix_vector @ 0x02: u16, ReadWrite;
    }
}

/// No MSI-X vector (VIRTIO 1.2, 4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Bits of `device_status` (VIRTIO 1.2, 2.1).
pub(super) mod device_status {
    pub(in crate::device) const ACKNOWLEDGE: u8 = 1;
    pub(in crate::device) const DRIVER: u8 = 2;
    pub(in crate::device) const DRIVER_OK: u8 = 4;
    pub(in crate::device) const FEATURES_OK: u8 = 8;
    pub(in crate::device) const NEEDS_RESET: u8 = 64;
    pub(in crate::device) const FAILED: u8 = 128;
}

/// Bits of `status` in the device configuration. The drafts name them SLAVE_UP and MASTER_UP
/// (later BACKEND_UP and FRONTEND_UP).
pub(super) mod link_status {
    /// We are there.
    pub(in crate::device) const BACKEND_UP: u32 = 1;
    /// The front-end is there.
    pub(in crate::device) const FRONTEND_UP: u32 = 2;
}

/// Feature bits (VIRTIO 1.2, 6, and this project's extensions of VVU).
pub(super) mod feature {
    /// Delivered `mmap_offset`s are offsets into the memory window.
    pub(in crate::device) const LAYOUT: u64 = 1 << 0;
    /// The device carries requests of ours to the front-end.
    pub(in crate::device) const BACKEND_CH: u64 = 1 << 1;
    /// The device carries in-flight buffers, and gives them away. Needs LAYOUT.
    pub(in crate::device) const INFLIGHT: u64 = 1 << 3;
    /// All of this project's extensions.
    pub(in crate::device) const EXTENSIONS: u64 = 0xff;
    /// VIRTIO 1.0 or later.
    pub(in crate::device) const VERSION_1: u64 = 1 << 32;
    /// The device uses the addresses that the IOMMU knows.
    pub(in crate::device) const ACCESS_PLATFORM: u64 = 1 << 33;
}
