//! What file descriptors are good for: memory and notifications.

use std::os::fd::{AsFd, OwnedFd};

use crate::memory::{Area, Mapping, Region};
use crate::notify::claim_eventfd;
use crate::socket::check_stream;
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

/// Maps the in-flight buffer from its file descriptor.
pub(super) fn inflight(
    mmap_offset: u64,
    size: u64,
    attached: &[OwnedFd],
) -> Result<Area, TransportError> {
    let [fd] = attached else {
        return Err(TransportError::Attached {
            what: "SET_INFLIGHT_FD",
            found: attached.len(),
            expected: 1,
        });
    };
    Ok(Mapping::of_file(fd.as_fd(), mmap_offset, size)?.into())
}

/// The one socket that came.
pub(super) fn socket(
    what: &'static str,
    attached: Vec<OwnedFd>,
) -> Result<OwnedFd, TransportError> {
    let found = attached.len();
    let mut fds = attached.into_iter();
    let (Some(fd), None) = (fds.next(), fds.next()) else {
        return Err(TransportError::Attached {
            what,
            found,
            expected: 1,
        });
    };
    check_stream(fd.as_fd()).map_err(|found| TransportError::Kind {
        what,
        found,
        expected: "a UNIX stream socket",
    })?;
    Ok(fd)
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
            claim_eventfd(fd.as_fd()).map_err(|found| TransportError::Kind {
                what,
                found,
                expected: "an eventfd",
            })?;
            Ok(Some(fd))
        }
        _ => Err(TransportError::Attached {
            what,
            found,
            expected: usize::from(!nofd),
        }),
    }
}
