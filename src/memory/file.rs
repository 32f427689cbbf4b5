//! Files of memory to give away.

use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::MemoryError;

/// A file of `len` zeroed bytes that nobody can make shorter or longer.
pub fn sealed_file(len: u64) -> Result<OwnedFd, MemoryError> {
    let failed = |errno: rustix::io::Errno| MemoryError::File {
        len,
        source: errno.into(),
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("vvu-inflight", flags).map_err(failed)?;
    ftruncate(&file, len).map_err(failed)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&file, seals).map_err(failed)?;
    Ok(file)
}
