//! A disk that is an image in a Ceph cluster, through librbd.
//!
//! | file | |
//! |---|---|
//! | `library` | the functions of librados and librbd, and what is opened with them |
//! | `mailbox` | where the library's threads leave what is over |
//!
//! The library has threads of its own; a request is begun on a worker's thread, which never waits
//! for it, and comes back through a queue without a lock. All channels use one open image, because
//! each open one wants the image's exclusive lock for itself.

mod library;
mod mailbox;
#[cfg(all(test, not(target_feature = "crt-static")))]
mod tests;

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use self::library::{Failure, Image, Over, Place};
use self::mailbox::Mailbox;
use super::{
    Abilities, Channel, Disk, DiskError, Done, Geometry, IoError, Limits, Op, Request, Size,
};
use crate::wake::Quiet;

/// Bytes of a block.
const BLOCK: u32 = 512;

/// Most bytes of a request without data: each object of the image is a request of its own.
const LONGEST: u64 = 256 << 20;

/// Which image, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RbdConfig {
    /// Its pool.
    pub pool: String,
    /// Its namespace in the pool, if not the default one.
    pub namespace: Option<String>,
    /// Its name.
    pub image: String,
    /// A snapshot of it, which can only be read.
    pub snapshot: Option<String>,
    /// Path of the cluster's configuration; `/etc/ceph/ceph.conf` and the like without.
    pub config: Option<PathBuf>,
    /// As whom, without "client."; admin without.
    pub user: Option<String>,
    /// How long a request may take, and to connect.
    pub timeout: Duration,
    /// It may only be read.
    pub read_only: bool,
    /// Writes may be done before they have reached the medium, until a flush.
    pub write_back: bool,
}

impl RbdConfig {
    /// The image called `image` in `pool`.
    pub fn new(pool: &str, image: &str) -> Self {
        Self {
            pool: pool.to_owned(),
            namespace: None,
            image: image.to_owned(),
            snapshot: None,
            config: None,
            user: None,
            timeout: Duration::from_secs(20),
            read_only: false,
            write_back: true,
        }
    }

    fn is_read_only(&self) -> bool {
        self.read_only || self.snapshot.is_some()
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Rbd {
    name: String,
    config: RbdConfig,
    image: Arc<Image>,
    size: Arc<Size>,
    stripe: u32,
}

impl Rbd {
    /// The image of `config`, called `name`. Connects, and waits for that.
    pub fn open(name: &str, config: RbdConfig) -> Result<Arc<dyn Disk>, DiskError> {
        let seconds = config.timeout.as_secs().max(1).to_string();
        // Without these, requests wait for ever for a cluster that is gone.
        let settings = [
            "client_mount_timeout",
            "rados_mon_op_timeout",
            "rados_osd_op_timeout",
        ];
        let place = Place {
            config: config.config.as_deref().and_then(|path| path.to_str()),
            user: config.user.as_deref(),
            settings: &settings.map(|key| (key, seconds.clone())),
            pool: &config.pool,
            namespace: config.namespace.as_deref(),
            image: &config.image,
            snapshot: config.snapshot.as_deref(),
            read_only: config.is_read_only(),
        };
        let failed = |failure| unavailable(name, failure);
        let image = Image::open(place).map_err(failed)?;
        let bytes = image.size().map_err(failed)?;
        let stripe = image.stripe().map_err(failed)?;
        Ok(Arc::new(Self {
            name: name.to_owned(),
            image: Arc::new(image),
            size: Arc::new(Size::new(whole(bytes))),
            stripe: u32::try_from(stripe).unwrap_or(0),
            config,
        }))
    }
}

/// What of a size are whole blocks.
fn whole(bytes: u64) -> u64 {
    bytes & !(u64::from(BLOCK) - 1)
}

fn unavailable(disk: &str, failure: Failure) -> DiskError {
    let disk = disk.to_owned();
    match failure {
        Failure::Missing(reason) => DiskError::Unfit { disk, reason },
        Failure::Name => DiskError::Unfit {
            disk,
            reason: "a name with a zero byte in it".into(),
        },
        Failure::Call(what, result) => DiskError::Open {
            disk,
            what,
            source: std::io::Error::from_raw_os_error(result.saturating_neg()),
        },
    }
}

impl Disk for Rbd {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> &Size {
        &self.size
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            logical_block: BLOCK,
            physical_block: 4096,
            optimal_io: self.stripe,
        }
    }

    fn abilities(&self) -> Abilities {
        let read_only = self.config.is_read_only();
        let limits = (!read_only).then_some(Limits {
            max_bytes: LONGEST,
            granularity: 4096,
        });
        Abilities {
            read_only,
            write_back: self.config.write_back,
            discard: limits,
            write_zeroes: limits,
            needs_pinnable: false,
        }
    }

    fn channel(&self) -> Result<Box<dyn Channel>, DiskError> {
        let mailbox = Mailbox::new().map_err(|source| DiskError::Open {
            disk: self.name.clone(),
            what: "cannot have an eventfd",
            source,
        })?;
        Ok(Box::new(RbdChannel {
            image: Arc::clone(&self.image),
            mailbox: Arc::new(mailbox),
            size: Arc::clone(&self.size),
            read_only: self.config.is_read_only(),
            begun: 0,
            done: Vec::new(),
        }))
    }

    fn refresh(&self) -> Result<(), DiskError> {
        let bytes = self.image.size();
        let bytes = bytes.map_err(|failure| unavailable(&self.name, failure))?;
        self.size.set(whole(bytes));
        Ok(())
    }
}

#[derive(Debug)]
struct RbdChannel {
    image: Arc<Image>,
    mailbox: Arc<Mailbox>,
    size: Arc<Size>,
    read_only: bool,
    /// How many requests the library has.
    begun: usize,
    done: Vec<Done>,
}

fn error(result: i32) -> IoError {
    IoError::from_errno(result.saturating_neg())
}

impl RbdChannel {
    fn begin(&mut self, request: Request, flush: bool) {
        match self.image.submit(request, flush, &self.mailbox) {
            Ok(()) => self.begun += 1,
            Err((request, result)) => self.done.push(request.done(Err(error(result)))),
        }
    }

    fn take(&mut self, request: Request) {
        let harmless = matches!(request.op, Op::Read | Op::Flush);
        let result = match request.check(self.size.get(), BLOCK) {
            Err(error) => Err(error),
            Ok(()) if self.read_only && !harmless => Err(IoError::ReadOnly),
            Ok(()) if request.len == 0 && request.op != Op::Flush => Ok(()),
            Ok(()) => return self.begin(request, false),
        };
        self.done.push(request.done(result));
    }

    fn ended(&mut self, over: Over) {
        self.begun = self.begun.saturating_sub(1);
        let Over {
            request,
            flush,
            result,
        } = over;
        // Reads tell how many bytes came.
        let short = request.op == Op::Read && !flush && result as u64 != request.len;
        if result < 0 {
            let result = i32::try_from(result).unwrap_or(-libc::EIO);
            return self.done.push(request.done(Err(error(result))));
        }
        if short {
            return self.done.push(request.done(Err(IoError::Io(libc::EIO))));
        }
        // The library has no forced unit access.
        let written = matches!(request.op, Op::Write | Op::WriteZeroes { .. });
        if request.fua && written && !flush {
            return self.begin(request, true);
        }
        self.done.push(request.done(Ok(())));
    }
}

impl Channel for RbdChannel {
    fn submit(&mut self, requests: &mut Vec<Request>) {
        for request in requests.drain(..) {
            self.take(request);
        }
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        // What comes meanwhile is for the next time.
        for _ in 0..self.begun {
            let Some(over) = self.mailbox.take() else {
                break;
            };
            self.ended(over);
        }
        done.append(&mut self.done);
    }

    fn in_flight(&self) -> usize {
        self.begun + self.done.len()
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.mailbox.fd()]
    }

    fn arm(&mut self) -> Quiet {
        match self.mailbox.arm() && self.done.is_empty() {
            true => Quiet::Kicked,
            false => Quiet::Busy,
        }
    }
}

impl Drop for RbdChannel {
    fn drop(&mut self) {
        // Each request keeps its own memory until it is over. The image must not be closed before
        // that, and not on the library's thread: so it stays open.
        if self.begun > 0 {
            std::mem::forget(Arc::clone(&self.image));
        }
    }
}
