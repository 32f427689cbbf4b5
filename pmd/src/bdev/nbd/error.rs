//! What can go wrong between us and a server.

use thiserror::Error;

/// Why a connection to a server cannot be had, or is over.
#[derive(Debug, Error)]
pub enum NbdError {
    /// It closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// The kernel says no.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// It did not answer in time.
    #[error("the server did not answer in {0} seconds")]
    Silent(u64),
    /// Something else answers there.
    #[error("what answers there is no NBD server: it begins with {0:#018x}")]
    NotNbd(u64),
    /// A server from before 2012.
    #[error("the server knows only the old handshake: it must know fixed newstyle")]
    OldStyle,
    /// It refused an option.
    #[error("the server refuses {what}: {reason} (code {code:#x}){text}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// What its code means.
        reason: &'static str,
        /// Its code.
        code: u32,
        /// What it says itself; begins with a colon if there is something.
        text: String,
    },
    /// It broke the protocol.
    #[error("the server broke the protocol: {what} {found:#x}")]
    Protocol {
        /// What was wrong.
        what: &'static str,
        /// What was found instead.
        found: u64,
    },
    /// Block sizes that make no sense, or that we cannot do.
    #[error(
        "the server's blocks of at least {min}, best {preferred} and at most {max} bytes: they \
         must be powers of two in this order, the first not above 65536"
    )]
    Blocks {
        /// Least bytes of a request.
        min: u32,
        /// What it likes best.
        preferred: u32,
        /// Most bytes of a request.
        max: u32,
    },
    /// After a reconnection it is not the disk any more that it was.
    #[error("the export has changed: {0}")]
    Changed(&'static str),
    /// TLS fails.
    #[error("TLS: {0}")]
    Tls(String),
    /// It is about to end.
    #[error("the server shuts down")]
    Shutdown,
}

impl NbdError {
    pub(super) fn io(what: &'static str) -> impl Fn(rustix::io::Errno) -> Self {
        move |errno| Self::Io {
            what,
            source: errno.into(),
        }
    }
}
