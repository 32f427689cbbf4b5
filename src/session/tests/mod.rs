//! Sessions over AF_UNIX, driven by rust-vmm's front-end and by a scripted one.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod abuse;
mod bench;
mod catalogue;
mod fake;
mod faults;
mod hostile;
mod inflight;
mod model;
mod negotiate;
mod rings;
mod rust_vmm;
mod script;
mod vfio_user;
mod vvu;
