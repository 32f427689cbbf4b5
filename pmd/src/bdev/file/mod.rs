//! A disk in a file or on a block device, by io_uring.
//!
//! | file | what |
//! |---|---|
//! | `channel` | what is in flight, and what goes through buffers |
//! | `lock` | that nobody else has the file |
//! | `uring` | the kernel's ring, and the memory that it has |

mod channel;
mod lock;
#[cfg(test)]
mod tests;
mod uring;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, Statx, StatxFlags};
use vvu::memory::Scatter;

use self::channel::{BUFFER, FileChannel};
use super::{Abilities, Channel, Disk, DiskError, Geometry, IoError, Limits, Request, Size};
use crate::mempool::Mempool;

/// Buffers of a disk whose requests may have to be copied...
const BUFFERS: usize = 64;
/// ...and of one where only what a short transfer left over is.
const FEW_BUFFERS: usize = 4;

/// How long a file is waited for that others have locked, if nothing else is wanted.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What is wanted of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileConfig {
    /// Where it is.
    pub path: PathBuf,
    /// Past the page cache (O_DIRECT).
    pub direct: bool,
    /// A thread of the kernel looks for submissions: no system calls, but a CPU.
    pub sqpoll: bool,
    /// It may only be read.
    pub read_only: bool,
    /// Writes may be done before they have reached the medium, until a flush.
    pub write_back: bool,
    /// What is discarded is given back to the filesystem.
    pub discard: bool,
    /// Bytes of a logical block; the file's own if there is none.
    pub block: Option<u32>,
    /// Made with this size if it is not there.
    pub create: Option<u64>,
    /// How long others may go on having it locked: a process that was killed has, until its last
    /// request ends.
    pub patience: Duration,
}

impl FileConfig {
    /// A file at `path`, cached, with everything else as it is best for most.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            direct: false,
            sqpoll: false,
            read_only: false,
            write_back: true,
            discard: true,
            block: None,
            create: None,
            patience: PATIENCE,
        }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct File {
    config: FileConfig,
    shared: Arc<Shared>,
    geometry: Geometry,
}

/// What a file's channels have in common.
#[derive(Debug)]
struct Shared {
    name: String,
    file: Arc<OwnedFd>,
    size: Size,
    /// Bytes of a logical block.
    block: u32,
    read_only: bool,
    /// What addresses and lengths of memory must be multiples of for direct I/O.
    align: Option<usize>,
    pool: Arc<Mempool>,
    failures: AtomicU64,
}

impl Shared {
    /// Whether the kernel can use these pieces as they are.
    #[inline]
    fn takes(&self, list: &Scatter) -> bool {
        let Some(align) = self.align else {
            return true;
        };
        let aligned = list.pieces().all(|piece| {
            let start = piece.ptr_guard().as_ptr().addr();
            (start | piece.len()) & (align - 1) == 0
        });
        aligned && list.is_pinnable()
    }

    /// Says that a request failed: the first, and every now and then.
    #[cold]
    fn complain(&self, request: &Request, error: IoError) {
        let count = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            let Request {
                op, offset, len, ..
            } = request;
            tracing::warn!(disk = self.name, ?op, offset, len, failures = count, %error, "I/O failed");
        }
    }
}

/// The file's size in bytes.
fn size_of(file: &OwnedFd) -> io::Result<u64> {
    // Of block devices, too, which have none in their attributes.
    Ok(rustix::fs::seek(file, SeekFrom::End(0))?)
}

impl File {
    /// Opens it.
    pub fn open(config: FileConfig) -> Result<Self, DiskError> {
        let name = format!("file:{}", config.path.display());
        let error = |what| {
            let disk = name.clone();
            move |source: io::Error| DiskError::Open { disk, what, source }
        };
        let unfit = |reason: String| DiskError::Unfit {
            disk: name.clone(),
            reason,
        };
        let (file, is_new) = open_file(&config).map_err(error(match config.read_only {
            true => "cannot open it for reading",
            false => "cannot open it for reading and writing (option readonly: for reading only)",
        }))?;
        let about = About::of(&file, config.direct).map_err(error("cannot ask what it is"))?;
        let locked = lock::take(&file, &name, !config.read_only, config.patience);
        if !locked.map_err(error("cannot lock it"))? {
            return Err(unfit(format!(
                "somebody else has it locked, for {:?} and longer; a disk that is written has one \
                 user at a time (`fuser -v {}` tells who that is)",
                config.patience,
                config.path.display()
            )));
        }
        if let Some(size) = config.create.filter(|_| is_new) {
            rustix::fs::ftruncate(&file, size)
                .map_err(|errno| error("cannot give it its size")(errno.into()))?;
        }
        let bytes = size_of(&file).map_err(error("cannot ask for its size"))?;
        let block = config.block.unwrap_or(about.block);
        if block < about.block {
            return Err(unfit(format!(
                "blocks of {block} bytes are asked for, but its own have {}: write block={}",
                about.block, about.block
            )));
        }
        let whole = bytes - bytes % u64::from(block);
        if whole == 0 {
            return Err(unfit(format!(
                "it has {bytes} bytes, which is not even one block of {block}; give it a size, as \
                 in size=10G for a file that is not there"
            )));
        }
        if whole < bytes {
            tracing::warn!(
                disk = name,
                bytes,
                used = whole,
                "the end is not a whole block"
            );
        }
        let buffers = if config.direct { BUFFERS } else { FEW_BUFFERS };
        let pool =
            Mempool::new(buffers, BUFFER).map_err(|e| error("no buffers")(io::Error::other(e)))?;
        let shared = Arc::new(Shared {
            file: Arc::new(file),
            size: Size::new(whole),
            block,
            read_only: config.read_only,
            align: config.direct.then_some(about.align),
            pool,
            failures: AtomicU64::new(0),
            name,
        });
        Ok(Self {
            geometry: Geometry {
                logical_block: block,
                physical_block: about.physical.max(block),
                optimal_io: about.optimal,
            },
            config,
            shared,
        })
    }
}

/// The file, and whether it was not there before.
fn open_file(config: &FileConfig) -> io::Result<(OwnedFd, bool)> {
    let mut flags = OFlags::CLOEXEC;
    flags |= match config.read_only {
        true => OFlags::RDONLY,
        false => OFlags::RDWR,
    };
    if config.direct {
        flags |= OFlags::DIRECT;
    }
    if config.create.is_some() && !config.read_only {
        let new = flags | OFlags::CREATE | OFlags::EXCL;
        match rustix::fs::open(&config.path, new, Mode::RUSR | Mode::WUSR) {
            Ok(file) => return Ok((file, true)),
            Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let file = rustix::fs::open(&config.path, flags, Mode::empty())?;
    Ok((file, false))
}

/// What the kernel says of a file.
struct About {
    block: u32,
    physical: u32,
    optimal: u32,
    /// What direct I/O needs of memory.
    align: usize,
}

impl About {
    fn of(file: &OwnedFd, direct: bool) -> io::Result<Self> {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::DIOALIGN;
        let stat: Statx = rustix::fs::statx(file.as_fd(), c"", AtFlags::EMPTY_PATH, wanted)?;
        // Kernels and filesystems that do not say are content with a page's worth.
        let known = stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && stat.stx_dio_mem_align > 0;
        let (memory, offset) = match known {
            true => (stat.stx_dio_mem_align, stat.stx_dio_offset_align),
            false => (4096, 512),
        };
        let own = if direct { offset } else { 512 };
        let mut about = Self {
            block: own.next_power_of_two().clamp(512, 4096),
            physical: stat.stx_blksize.next_power_of_two().clamp(512, 65536),
            optimal: 0,
            align: (memory as usize).next_power_of_two(),
        };
        match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::RegularFile => {}
            FileType::BlockDevice => {
                about.block = rustix::fs::ioctl_blksszget(file)?.max(512);
                about.physical = rustix::fs::ioctl_blkpbszget(file)?.max(about.block);
            }
            _ => {
                return Err(io::Error::other(
                    "it is neither a regular file nor a block device",
                ));
            }
        }
        Ok(about)
    }
}

impl Disk for File {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn size(&self) -> &Size {
        &self.shared.size
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn abilities(&self) -> Abilities {
        let limits = Limits {
            max_bytes: 1 << 30,
            granularity: self.geometry.physical_block,
        };
        let writable = !self.config.read_only;
        Abilities {
            read_only: self.config.read_only,
            write_back: self.config.write_back,
            discard: (writable && self.config.discard).then_some(limits),
            write_zeroes: writable.then_some(limits),
            needs_pinnable: self.config.direct,
        }
    }

    fn channel(&self) -> Result<Box<dyn Channel>, DiskError> {
        let channel = FileChannel::new(Arc::clone(&self.shared), self.config.sqpoll);
        let channel = channel.map_err(|source| DiskError::Open {
            disk: self.shared.name.clone(),
            what: "no io_uring (is it allowed? see /proc/sys/kernel/io_uring_disabled)",
            source,
        })?;
        Ok(Box::new(channel))
    }

    fn refresh(&self) -> Result<(), DiskError> {
        let bytes = size_of(&self.shared.file).map_err(|source| DiskError::Open {
            disk: self.shared.name.clone(),
            what: "cannot ask for its size",
            source,
        })?;
        let whole = bytes - bytes % u64::from(self.shared.block);
        self.shared.size.set(whole);
        Ok(())
    }
}
