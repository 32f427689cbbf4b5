//! Kicks (front-end to us) and calls (us to front-end), whatever carries them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use crate::mmio::{Reg, WriteOnly};

/// How a front-end says that a ring has something for us.
#[derive(Debug)]
pub enum Kick {
    /// A file descriptor that becomes readable: an eventfd from the front-end, or the one that a
    /// VVU function's MSI-X vector signals.
    Event(OwnedFd),
    /// It does not say (the NOFD flag, or no vector to be had): the ring must be polled.
    Polled,
}

impl Kick {
    /// What to wait on; `None` if the ring must be polled.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Event(fd) => Some(fd.as_fd()),
            Self::Polled => None,
        }
    }

    /// The same kick once more, for a second owner.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(match self {
            Self::Event(fd) => Self::Event(fd.try_clone()?),
            Self::Polled => Self::Polled,
        })
    }

    /// Takes back all kicks so far, so that [`Kick::fd`] stops being readable.
    pub fn clear(&self) {
        if let Self::Event(fd) = self {
            // Non-blocking: there being nothing to take is no error.
            let _ = rustix::io::read(fd, &mut [0; 8]);
        }
    }
}

/// How we tell a front-end something about a ring: used buffers, or an error.
#[derive(Debug)]
pub enum Call {
    /// An eventfd from the front-end.
    Event(OwnedFd),
    /// A doorbell of a VVU function: the register and the doorbell's number, which is written
    /// (virtio-vhost-user, "doorbells"; the value carries no meaning for the device).
    Doorbell(Reg<u16, WriteOnly>, u16),
    /// The front-end does not want to be told.
    Silent,
}

impl Call {
    /// The same call once more, for a second owner.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(match self {
            Self::Event(fd) => Self::Event(fd.try_clone()?),
            Self::Doorbell(register, number) => Self::Doorbell(register.clone(), *number),
            Self::Silent => Self::Silent,
        })
    }

    /// Tells the front-end. Never blocks: a front-end that does not drain its eventfd has been
    /// told already.
    pub fn ring(&self) {
        match self {
            Self::Event(fd) => {
                let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
            }
            Self::Doorbell(register, number) => register.write(*number),
            Self::Silent => {}
        }
    }
}

/// Makes sure that reading and writing `fd` does what it does on an eventfd, without waiting.
/// Anything else might stay readable for ever, or fill up. The error is what it is instead.
pub fn claim_eventfd(fd: BorrowedFd<'_>) -> Result<(), String> {
    const EVENTFD: &str = "anon_inode:[eventfd]";
    // Without /proc there is no telling; front-ends that are not out to harm send eventfds.
    if let Ok(link) = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())
        && link.to_bytes() != EVENTFD.as_bytes()
    {
        return Err(link.to_string_lossy().into_owned());
    }
    let flags = rustix::fs::fcntl_getfl(fd).map_err(|errno| errno.to_string())?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK).map_err(|errno| errno.to_string())
}
