//! Jobs with disks: virtio-blk and virtio-scsi front-ends.
//!
//! | file | what lives there |
//! |---|---|
//! | `args` | what can be told |
//! | `request` | what is asked of a disk, and what it is like |
//! | `blk`, `scsi` | the same in the words of each device |
//! | `queue` | a request ring: places, pieces, answers |
//! | `disk` | a disk behind a connection that may break |
//! | `content`, `ledger` | what is written, and what must be read |
//! | `load`, `verify` | the jobs |

pub(crate) mod args;
pub(super) mod blk;
mod content;
mod disk;
mod ledger;
mod load;
mod queue;
mod request;
pub(super) mod scsi;
mod verify;

use std::ops::Range;

use args::{DiskJob, DiskOptions, VerifyDisk};
pub(super) use disk::Language;
use disk::{Disk, Load};
use request::Kind;
pub(crate) use scsi::Unit;

use super::GuestError;
use super::args::{Options, Socket};
use super::jobs::Outcome;
use super::report::{Clock, Report};
use super::tether;
use crate::signals::Shutdown;
use vvu::socket::Endpoint;

/// What `verify` keeps to, unless it is told.
const VERIFIED: u64 = 64 << 20;

/// Starts a disk, does a job with it, and stops it. Returns what was wrong with the result.
pub(super) fn run(
    socket: &Socket,
    (options, disk_options): (&Options, &DiskOptions),
    language: Language,
    job: &DiskJob,
    shutdown: &Shutdown,
    report: &mut Report,
) -> Result<Option<String>, GuestError> {
    let load = match job {
        DiskJob::Read(transfer) | DiskJob::Write(transfer) => Load {
            depth: transfer.depth,
            size: transfer.size as usize,
        },
        DiskJob::Verify(verify) => Load {
            depth: verify.depth,
            size: verify.max_size as usize,
        },
        DiskJob::Flush(_) | DiskJob::Discard(_) | DiskJob::Abuse(_) => Load { depth: 4, size: 0 },
    };
    let mut endpoint = tether::endpoint(socket)?;
    let given = (options, disk_options);
    let mut disk = Disk::start(socket, &mut endpoint, given, shutdown, language, load)?;
    let mut clock = Clock::new(options.progress, options.json);
    let area = area(&disk, disk_options, matches!(job, DiskJob::Verify(_)))?;
    let outcome = match job {
        DiskJob::Read(options) => {
            load::transfer(&mut disk, &mut clock, area, (Kind::Read, options))
        }
        DiskJob::Write(options) => {
            load::transfer(&mut disk, &mut clock, area, (Kind::Write, options))
        }
        DiskJob::Flush(options) => load::flush(&mut disk, &mut clock, options),
        DiskJob::Discard(options) => load::discard(&mut disk, &mut clock, area, options),
        DiskJob::Verify(options) => verify::verify(&mut disk, &mut clock, area, options),
        DiskJob::Abuse(_) => Ok(Outcome::default()),
    };
    report.connections = disk.connections();
    report.features = format!("{:#x}", disk.features());
    report.capacity = Some(disk.shape().capacity);
    report.total = clock.total(disk.written, disk.read);
    let Outcome { details, failure } = outcome?;
    report.details = details;
    disk.stop()?;
    Ok(failure)
}

/// Is an honest driver for a moment.
pub(super) fn be_honest(
    socket: &Socket,
    endpoint: &mut Endpoint,
    given: (&Options, &DiskOptions),
    language: Language,
    shutdown: &Shutdown,
) -> Result<(), GuestError> {
    const AREA: u64 = 1 << 20;
    let verify = VerifyDisk {
        max_size: 64 << 10,
        depth: 8,
        seconds: 60,
        count: Some(100),
        seed: Some(1),
    };
    let load = Load {
        depth: verify.depth,
        size: verify.max_size as usize,
    };
    let mut disk = Disk::start(socket, endpoint, given, shutdown, language, load)?;
    let mut clock = Clock::new(false, false);
    let area = 0..disk.shape().capacity.min(AREA);
    let outcome = verify::verify(&mut disk, &mut clock, area, &verify)?;
    disk.stop()?;
    match outcome.failure {
        None => Ok(()),
        Some(why) => Err(GuestError::Spoilt(why)),
    }
}

/// The part of the disk that is used.
fn area(disk: &Disk<'_>, options: &DiskOptions, verifies: bool) -> Result<Range<u64>, GuestError> {
    let shape = disk.shape();
    let start = options.offset.unwrap_or(0);
    let rest = shape.capacity.saturating_sub(start);
    let usual = if verifies { rest.min(VERIFIED) } else { rest };
    let len = options.length.unwrap_or(usual);
    if !start.is_multiple_of(shape.block)
        || !len.is_multiple_of(shape.block)
        || len == 0
        || len > rest
    {
        return Err(GuestError::Area {
            start,
            len,
            capacity: shape.capacity,
            block: shape.block,
        });
    }
    Ok(start..start + len)
}
