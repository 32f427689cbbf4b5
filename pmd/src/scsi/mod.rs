//! Disks as SCSI units: a pure target ([`target`]), and the virtio-scsi device around it.

pub mod target;
