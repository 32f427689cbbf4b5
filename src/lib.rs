//! The control plane of **vvu**: from a PCI function or a socket to a running ring.
//!
//! A virtio device lives in the back-end; vhost-user is only a transport for it. This library
//! takes a front-end's messages from either of two transports, AF_UNIX sockets and the
//! virtio-vhost-user (VVU) PCI function, and turns them into calls of one trait,
//! [`virtio::VirtioDevice`]. What moves bytes on the rings lives in the `vvu-pmd` crate and is
//! not known here.
//!
//! Rooms, from the ground up; a room imports only from lower floors:
//!
//! | floor | rooms |
//! |---|---|
//! | 0 | [`memory`], [`pci`], [`protocol`], [`socket`] |
//! | 1 | [`mmio`], [`vfio`], [`vfio_user`], [`notify`], [`virtqueue`] |
//! | 2 | [`device`], [`virtio`] |
//! | 3 | [`transport`] |
//! | 4 | [`session`], [`model`] |
//!
//! `docs/tour.md` walks a message and a packet through them.

pub mod device;
pub mod memory;
pub mod mmio;
pub mod model;
pub mod notify;
pub mod pci;
pub mod protocol;
pub mod session;
pub mod socket;
pub mod transport;
pub mod vfio;
pub mod vfio_user;
pub mod virtio;
pub mod virtqueue;
