//! A PCI function over a vfio-user socket, from both ends.
//!
//! [`VfioUserFunction`] drives a function that another process serves: it speaks for this process
//! what the kernel's vfio speaks for real hardware. Memory is shared by file descriptor,
//! interrupts are eventfds, registers are read and written by message. A [`Connection`] is the
//! other end: a client's messages, which become calls of a [`Served`] function.
//!
//! The `vfio_user` crate, which has both ends too, is what this room is tested against, and not
//! what it is built from. The crate trusts the process at the other end. Its client waits for
//! replies without a deadline on a socket that nobody else can reach, takes no notice of error
//! replies, and allocates and asserts by numbers that the server chose; its server allocates what
//! a client asks for (up to 4 GiB a message), panics on malformed versions, takes the payload of
//! a message that it refused for the next header, and cannot be stopped while it waits. Catching
//! panics from outside mends the smallest part of that. Ten messages are all there is to it.
//!
//! | file | |
//! |---|---|
//! | `message` | what lies on the wire |
//! | `client` | commands with a deadline |
//! | `function` | the function as a driver sees it |
//! | `server` | commands of a client as calls |

mod client;
mod function;
mod message;
mod patience;
mod served;
mod server;
#[cfg(test)]
mod tests;

use std::time::Duration;

use rustix::io::Errno;
use thiserror::Error;

pub use function::VfioUserFunction;
pub use served::{CONFIG_REGION, ClientMemory, Counters, Ended, Refusal, Served, Shared};
pub use server::Connection;

use crate::memory::MemoryError;
use crate::socket::EndpointError;

/// What can go wrong with a function over vfio-user.
#[derive(Debug, Error)]
pub enum VfioUserError {
    /// There is nobody at the path.
    #[error("{0}; is its server (`vvu device`) running?")]
    Connect(EndpointError),
    /// The server closed the connection, now or earlier.
    #[error("the server closed the connection; if it runs, another client may have the function")]
    Closed,
    /// The server does not answer.
    #[error("the server did not answer {what} within {after:?}")]
    Timeout {
        /// What it was asked.
        what: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The server takes messages late, or not at all.
    #[error("the server read messages too late: it was waited for {0:?} and longer")]
    Stuck(Duration),
    /// The server does not speak vfio-user as it should.
    #[error("the server broke the protocol: {0}")]
    Violation(String),
    /// The server refused a command.
    #[error("the server refuses {what}: {reason}")]
    Refused {
        /// Which command.
        what: &'static str,
        /// The server's reason.
        reason: Errno,
    },
    /// The server has another kind of device, or speaks another version.
    #[error("the server has {found} instead of {expected}")]
    Unfit {
        /// What it has.
        found: String,
        /// What it should have.
        expected: &'static str,
    },
    /// The connection was given up earlier.
    #[error("the function is gone: {0}")]
    Gone(String),
    /// Shared memory cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The operating system failed.
    #[error("{what}: {reason}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        reason: Errno,
    },
}
