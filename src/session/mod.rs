//! Front-ends served: one session for each transport, each on a thread of its own.
//!
//! A [`Session`] takes a transport and a device, and answers one front-end after the other until
//! it is told to stop. Each request goes to its handler by the table in `connection`, and each has
//! one outcome: done, a reply, a refusal, or the end of the connection. Whatever a front-end does
//! ends its own connection at worst; then the device is reset and the next one is waited for.
//!
//! ```no_run
//! use vvu::session::Session;
//! use vvu::transport::{tracer::Tracer, unix::UnixTransport};
//!
//! # fn serve(device: Box<dyn vvu::virtio::VirtioDevice>) -> Result<(), Box<dyn std::error::Error>> {
//! let socket = UnixTransport::listen("/run/net0.sock".as_ref())?;
//! let traced = Tracer::new(Box::new(socket), std::io::stderr());
//! let session = Session::spawn(Box::new(traced), device)?;
//! println!("{:?}", session.status().report());
//! session.stop();
//! # Ok(())
//! # }
//! ```
//!
//! This room does not know how messages travel or what the device does with its rings.
//!
//! | file | what |
//! |---|---|
//! | `run` | the event loop |
//! | `connection` | state of a connection, dispatch, outcomes |
//! | `negotiate` | features, status, configuration space, reset |
//! | `regions` | memory |
//! | `inflight` | the buffer that outlives us |
//! | `rings`, `ring` | ring set-up, start, change, stop; what makes a valid ring |
//! | `status` | counters for others to read |

mod changes;
mod connection;
mod error;
mod inflight;
mod negotiate;
mod regions;
mod ring;
mod rings;
mod run;
mod status;
#[cfg(test)]
mod tests;

pub use error::SessionError;
pub use run::{Session, StopSignal, run};
pub use status::{Status, StatusReport};
