//! Locks on files: what one process writes, no other one has.
//!
//! The lock is the open file's, not the process's. The kernel keeps a file open for as long as a
//! request to it is under way, whatever became of who asked, so a process that was killed lets go
//! of the lock behind its last write, and not before.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// How often is tried.
const INTERVAL: Duration = Duration::from_millis(10);

/// What takes longer than this is told.
const SHORT: Duration = Duration::from_millis(250);

/// Locks `file` for somebody who writes (`exclusive`) or only reads it, within `patience`. False if
/// others have it all the while.
pub(super) fn take(
    file: &OwnedFd,
    name: &str,
    exclusive: bool,
    patience: Duration,
) -> io::Result<bool> {
    let operation = match exclusive {
        true => FlockOperation::NonBlockingLockExclusive,
        false => FlockOperation::NonBlockingLockShared,
    };
    let start = Instant::now();
    let mut told = false;
    loop {
        match rustix::fs::flock(file, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            // Network filesystems, mostly.
            Err(errno @ (Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL)) => {
                tracing::warn!(
                    disk = name,
                    %errno,
                    "its filesystem has no locks: see to it that nobody else uses the file"
                );
                return Ok(true);
            }
            Err(errno) => return Err(errno.into()),
        }
        let waited = start.elapsed();
        if waited >= patience {
            return Ok(false);
        }
        if waited >= SHORT && !told {
            told = true;
            tracing::info!(
                disk = name,
                ?patience,
                "somebody else has it locked: waiting"
            );
        }
        std::thread::sleep(INTERVAL.min(patience));
    }
}
