//! A disk that an NBD server has: over TCP or a UNIX socket, encrypted or not.
//!
//! | file | |
//! |---|---|
//! | `wire` | numbers of the protocol, requests in bytes |
//! | `input` | a buffer of what came |
//! | `negotiation` | the handshake, without a socket |
//! | `replies` | what a server answers, without a socket |
//! | `stream`, `tls` | a socket that never blocks |
//! | `link` | one connection, from the first attempt to its end |
//! | `flight` | what was asked and is not answered yet, without a socket |
//! | `channel` | requests on a link: deadlines, and asking again after a loss |
//!
//! The protocol is that of the document "The NBD protocol" of the NetworkBlockDevice project.
//! There is a connection for each channel, and thus the server must allow several
//! (`NBD_FLAG_CAN_MULTI_CONN`) if several queues use the disk.
//!
//! **A server that stalls or is away.** Each request is answered within [`Config::timeout`] (and a
//! sixteenth of it): if the server takes longer the connection is given up, the requests that took
//! too long end with [`IoError::Timeout`], and the others are asked again on the next connection.
//! While there is none, one is tried after pauses of 100 ms to 5 s; requests wait for it, and end
//! with [`IoError::Gone`] when their time is up. A server that was away for as long as that is
//! gone: requests fail at once until it is back. Asking again is harmless because no request was
//! answered yet, and each does the same when it is done twice.
//!
//! The protocol has no way to ask for the size again, so another one is found with the next
//! connection, whenever that is.
//!
//! A server that comes back must still have what it acknowledged. One whose process was restarted
//! has; one whose machine was may have lost what was not flushed, and the protocol has no word
//! for that.

mod channel;
mod error;
mod flight;
mod input;
mod link;
mod negotiation;
#[cfg(feature = "test-utils")]
pub mod probe;
mod replies;
mod stream;
#[cfg(test)]
mod tests;
#[cfg(feature = "tls")]
mod tls;
mod wire;

pub use error::NbdError;
pub use negotiation::Export;
pub use stream::Server;
#[cfg(feature = "tls")]
pub use tls::TlsConfig;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::channel::NbdChannel;
use self::link::{Link, Look};
use self::stream::Addresses;
use self::wire::transmission;
use super::{Abilities, Channel, Disk, DiskError, Geometry, Limits, Size};

#[cfg(doc)]
use super::IoError;

/// Which export of which server, and how.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the server is.
    pub server: Server,
    /// The export's name; may be empty, for the server's default.
    pub export: String,
    /// How long a request may take, and an attempt to connect.
    pub timeout: Duration,
    /// Writes may be done before they have reached the medium, until a flush.
    pub write_back: bool,
    /// How to encrypt, if at all.
    #[cfg(feature = "tls")]
    pub tls: Option<Arc<TlsConfig>>,
}

impl Config {
    /// How long a request may take if nothing else is wanted: less than a ring that is stopped
    /// waits for its requests.
    pub const TIMEOUT: Duration = Duration::from_secs(20);

    /// The export called `export`, unencrypted.
    pub fn new(server: Server, export: &str) -> Self {
        Self {
            server,
            export: export.to_owned(),
            timeout: Self::TIMEOUT,
            write_back: true,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    fn is_tls(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        false
    }
}

/// What the channels of a disk share.
#[derive(Debug)]
struct Shared {
    name: String,
    config: Config,
    addresses: Addresses,
    size: Size,
    /// As it was at first: what was promised to whoever uses the disk.
    export: Export,
    /// How many channels there are.
    channels: AtomicUsize,
    /// How often a connection was lost, or not to be had.
    losses: AtomicU64,
}

impl Shared {
    /// Logical block in bytes.
    fn block(&self) -> u32 {
        self.export.min_block.max(512)
    }

    /// Whether `export` can do what was promised.
    fn check(&self, export: &Export) -> Result<(), NbdError> {
        let used = transmission::FLUSH
            | transmission::FUA
            | transmission::TRIM
            | transmission::WRITE_ZEROES;
        let changed = |what| Err(NbdError::Changed(what));
        if !export.has(self.export.flags & used) {
            return changed("it can do less");
        }
        if !self.export.has(transmission::READ_ONLY) && export.has(transmission::READ_ONLY) {
            return changed("it is read-only now");
        }
        if export.min_block > self.block() || export.max_payload < self.block() {
            return changed("it has other blocks");
        }
        Ok(())
    }

    /// What of a size are whole blocks.
    fn whole(&self, bytes: u64) -> u64 {
        bytes & !(u64::from(self.block()) - 1)
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Nbd {
    shared: Arc<Shared>,
    /// The connection that the disk was looked at with, for its first channel: some servers end
    /// with their first client.
    first: Mutex<Option<(Link, Export)>>,
}

impl Nbd {
    /// The disk that `config` names, called `name`. Connects, and waits for that.
    pub fn open(name: &str, config: Config) -> Result<Arc<dyn Disk>, DiskError> {
        let unfit = |error: NbdError| DiskError::Unfit {
            disk: name.to_owned(),
            reason: error.to_string(),
        };
        if config.export.len() > negotiation::LONGEST_NAME {
            return Err(DiskError::Unfit {
                disk: name.to_owned(),
                reason: format!(
                    "the export's name has {} bytes, at most {} are possible",
                    config.export.len(),
                    negotiation::LONGEST_NAME
                ),
            });
        }
        let addresses = config.server.addresses().map_err(unfit)?;
        let (link, export) = connected(&config, &addresses).map_err(unfit)?;
        if !export.has(transmission::FLUSH) && !export.has(transmission::READ_ONLY) {
            tracing::warn!(
                disk = name,
                "the server cannot flush: when written data is safe is up to it"
            );
        }
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            size: Size::new(0),
            config,
            addresses,
            export,
            channels: AtomicUsize::new(0),
            losses: AtomicU64::new(0),
        });
        shared.size.set(shared.whole(export.size));
        Ok(Arc::new(Self {
            shared,
            first: Mutex::new(Some((link, export))),
        }))
    }
}

/// A link that is up. Waits for it, until it took too long or all addresses failed.
fn connected(config: &Config, addresses: &Addresses) -> Result<(Link, Export), NbdError> {
    let mut link = Link::new(config, addresses)?;
    let mut attempts = addresses.count();
    loop {
        let now = Instant::now();
        match link.look(now) {
            Look::Up(export) => return Ok((link, export)),
            Look::Lost(error) => {
                attempts = attempts.saturating_sub(1);
                if attempts == 0 {
                    return Err(error);
                }
            }
            Look::Same => {}
        }
        let wait = link
            .next()
            .map_or(Duration::ZERO, |next| next.saturating_duration_since(now));
        let wait = Timespec::try_from(wait).unwrap_or_default();
        let fd = link.fd();
        // An interrupted wait is a short one.
        let _ = poll(
            &mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)],
            Some(&wait),
        );
        link.settle();
    }
}

impl Disk for Nbd {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn size(&self) -> &Size {
        &self.shared.size
    }

    fn geometry(&self) -> Geometry {
        let export = &self.shared.export;
        let logical_block = self.shared.block();
        Geometry {
            logical_block,
            physical_block: logical_block.max(4096),
            optimal_io: export.preferred_block.min(export.max_payload),
        }
    }

    fn abilities(&self) -> Abilities {
        let export = &self.shared.export;
        let limits = |flag| {
            (export.has(flag) && !export.has(transmission::READ_ONLY)).then_some(Limits {
                max_bytes: 1 << 31,
                granularity: self.shared.block(),
            })
        };
        Abilities {
            read_only: export.has(transmission::READ_ONLY),
            write_back: self.shared.config.write_back && export.has(transmission::FLUSH),
            discard: limits(transmission::TRIM),
            write_zeroes: limits(transmission::WRITE_ZEROES),
            needs_pinnable: false,
        }
    }

    fn channel(&self) -> Result<Box<dyn Channel>, DiskError> {
        let shared = &self.shared;
        let several = shared.export.has(transmission::MULTI_CONN);
        // Counted first, so that of two at once only one gets it.
        let others = shared.channels.fetch_add(1, Ordering::SeqCst);
        let made = if others > 0 && !several {
            Err(DiskError::Unfit {
                disk: shared.name.clone(),
                reason: "the server does not allow several connections to this export \
                         (NBD_FLAG_CAN_MULTI_CONN), so one queue only can use it: let the server \
                         allow them (qemu-nbd --shared=8), or use one queue (queues=1)"
                    .into(),
            })
        } else {
            let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
            NbdChannel::new(Arc::clone(shared), first.take()).map_err(|error| DiskError::Unfit {
                disk: shared.name.clone(),
                reason: error.to_string(),
            })
        };
        match made {
            Ok(channel) => Ok(Box::new(channel)),
            Err(error) => {
                shared.channels.fetch_sub(1, Ordering::SeqCst);
                Err(error)
            }
        }
    }
}
