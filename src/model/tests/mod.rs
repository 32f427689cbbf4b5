//! The model by itself: registers as a hostile driver writes them, sockets as a hostile front-end
//! uses them. The whole tunnel is in `session/tests/model.rs`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod bench;
mod bus;
mod signals;
mod table;
