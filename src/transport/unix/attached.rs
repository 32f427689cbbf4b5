//! What file descriptors are good for: memory and notifications.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use crate::memory::{Mapping, Region};
use crate::transport::{RegionRequest, TransportError};

/// Maps each region from its file descriptor.
pub(super) fn map(
    what: &'static str,
    regions: &[RegionRequest],
    attached: Vec<OwnedFd>,
) -> Result<Vec<Region>, TransportError> {
    if attached.len() != regions.len() {
        return Err(TransportError::Attached {
            what,
            found: attached.len(),
            expected: regions.len(),
        });
    }
    regions
        .iter()
        .zip(&attached)
        .map(|(region, fd)| {
            let bytes = Mapping::of_file(fd.as_fd(), region.mmap_offset, region.size)?;
            Ok(Region {
                guest_addr: region.guest_addr,
                user_addr: region.user_addr,
                bytes: bytes.into(),
            })
        })
        .collect()
}

/// The one eventfd that came, or none if `nofd`.
pub(super) fn eventfd(
    what: &'static str,
    nofd: bool,
    attached: Vec<OwnedFd>,
) -> Result<Option<OwnedFd>, TransportError> {
    let found = attached.len();
    let mut fds = attached.into_iter();
    match (nofd, fds.next(), fds.next()) {
        (true, None, _) => Ok(None),
        (false, Some(fd), None) => {
            check_eventfd(what, fd.as_fd())?;
            Ok(Some(fd))
        }
        _ => Err(TransportError::Attached {
            what,
            found,
            expected: usize::from(!nofd),
        }),
    }
}

/// Makes sure that reading and writing `fd` does what it does on an eventfd. Anything else might
/// stay readable for ever, or fill up.
fn check_eventfd(what: &'static str, fd: BorrowedFd<'_>) -> Result<(), TransportError> {
    const EVENTFD: &str = "anon_inode:[eventfd]";
    let kind = |found| TransportError::Kind {
        what,
        found,
        expected: "an eventfd",
    };
    // Without /proc there is no telling; front-ends that are not out to harm send eventfds.
    if let Ok(link) = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())
        && link.to_bytes() != EVENTFD.as_bytes()
    {
        return Err(kind(link.to_string_lossy().into_owned()));
    }
    let flags = rustix::fs::fcntl_getfl(fd).map_err(|errno| kind(errno.to_string()))?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK).map_err(|errno| kind(errno.to_string()))
}
