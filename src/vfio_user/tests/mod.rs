//! Both ends against each other, each against the `vfio_user` crate's, which others wrote, and
//! against peers that do as they please.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod bench;
mod both;
mod hostile_client;
mod hostile_server;
mod strangers;
