//! Where connected sockets come from: a listener, or a peer that is called until it answers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use thiserror::Error;

/// First wait before another attempt to connect.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest wait.
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Front-ends that may stand in line.
const BACKLOG: i32 = 16;

/// Why a socket cannot be set up.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// The path does not fit into a socket address.
    #[error("socket path {0} is too long: 107 bytes are the limit, use a shorter one")]
    PathTooLong(PathBuf),
    /// The directory for the socket is not there.
    #[error("directory {0} does not exist: create it, or choose another socket path")]
    NoDirectory(PathBuf),
    /// Somebody listens at the path.
    #[error("socket {0} is in use by a running server: stop that one, or choose another path")]
    InUse(PathBuf),
    /// Something else is at the path.
    #[error("{0} exists and is not a socket: move it away, or choose another path")]
    NotSocket(PathBuf),
    /// The kernel refuses.
    #[error("cannot {what} {path}: {source}")]
    Path {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: Errno,
    },
    /// The kernel has no socket, timer or poll set for us.
    #[error("cannot set up a socket: {0}")]
    System(Errno),
}

/// A source of connected sockets.
#[derive(Debug)]
pub struct Endpoint(Source);

#[derive(Debug)]
enum Source {
    Listener {
        socket: OwnedFd,
        path: PathBuf,
        /// Device and inode of the socket file that we made; `None` once it is removed.
        file: Option<(u64, u64)>,
    },
    Caller {
        address: SocketAddrUnix,
        /// Readable when it is time for the next attempt.
        timer: OwnedFd,
        wait: Duration,
    },
}

impl Endpoint {
    /// Listens at `path`. A socket file that nobody listens at is replaced.
    pub fn listen(path: &Path) -> Result<Self, EndpointError> {
        let address = address(path)?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if !parent.is_dir() {
            return Err(EndpointError::NoDirectory(parent.to_owned()));
        }
        let socket = stream_socket()?;
        let bound = match bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(path, &address)?;
                bind(&socket, &address)
            }
            other => other,
        };
        let at = |what| {
            move |source| EndpointError::Path {
                what,
                path: path.to_owned(),
                source,
            }
        };
        bound.map_err(at("bind"))?;
        let file = identity(&rustix::fs::lstat(path).map_err(at("look at"))?);
        listen(&socket, BACKLOG).map_err(at("listen at"))?;
        Ok(Self(Source::Listener {
            socket,
            path: path.to_owned(),
            file: Some(file),
        }))
    }

    /// Calls whoever listens at `path`, until there is somebody.
    pub fn connect(path: &Path) -> Result<Self, EndpointError> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, flags).map_err(EndpointError::System)?;
        let endpoint = Self(Source::Caller {
            address: address(path)?,
            timer,
            wait: RETRY_FIRST,
        });
        endpoint.set_timer(Duration::from_nanos(1));
        Ok(endpoint)
    }

    /// What becomes readable when [`Endpoint::attempt`] is worth a try.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Source::Listener { socket, .. } => socket.as_fd(),
            Source::Caller { timer, .. } => timer.as_fd(),
        }
    }

    /// A connected socket, if there is one to be had now.
    pub fn attempt(&mut self) -> Option<OwnedFd> {
        match &mut self.0 {
            Source::Listener { socket, .. } => {
                match accept_with(socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                    Ok(socket) => Some(socket),
                    Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => None,
                    Err(errno) => {
                        // Out of descriptors or memory, and the listener stays readable: do not
                        // ask again at once.
                        tracing::error!(%errno, "cannot accept a front-end");
                        std::thread::sleep(RETRY_FIRST);
                        None
                    }
                }
            }
            Source::Caller {
                address,
                timer,
                wait,
            } => {
                rustix::io::read(&*timer, &mut [0; 8]).ok()?;
                let found = stream_socket()
                    .ok()
                    .filter(|socket| connect(socket, address).is_ok());
                if found.is_none() {
                    let now = *wait;
                    *wait = (now * 2).min(RETRY_MAX);
                    self.set_timer(now);
                }
                found
            }
        }
    }

    /// A connection is over; `useful` if it brought anything. One that did not counts as a failed
    /// attempt, so that a peer that hangs up at once is not called in a loop.
    pub fn rearm(&mut self, useful: bool) {
        if let Source::Caller { wait, .. } = &mut self.0 {
            if useful {
                *wait = RETRY_FIRST;
            }
            let now = *wait;
            *wait = (now * 2).min(RETRY_MAX);
            self.set_timer(now);
        }
    }

    fn set_timer(&self, wait: Duration) {
        let Source::Caller { timer, .. } = &self.0 else {
            return;
        };
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(wait).unwrap_or_default(),
        };
        if let Err(errno) = timerfd_settime(timer, TimerfdTimerFlags::empty(), &once) {
            tracing::error!(%errno, "cannot set the timer for the next connection attempt");
        }
    }

    /// Stops listening or calling, and removes the socket file if it is still ours.
    pub fn close(&mut self) {
        match &mut self.0 {
            Source::Listener { path, file, .. } => {
                let found = rustix::fs::lstat(&*path).ok().map(|stat| identity(&stat));
                if file.is_some() && found == *file {
                    let _ = rustix::fs::unlink(&*path);
                }
                *file = None;
            }
            // A time of zero disarms.
            Source::Caller { .. } => self.set_timer(Duration::ZERO),
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.close();
    }
}

/// A socket that is connected to whoever listens at `path` now, and never blocks.
pub fn call(path: &Path) -> Result<OwnedFd, EndpointError> {
    let socket = stream_socket()?;
    connect(&socket, &address(path)?).map_err(|source| EndpointError::Path {
        what: "connect to",
        path: path.to_owned(),
        source,
    })?;
    Ok(socket)
}

fn address(path: &Path) -> Result<SocketAddrUnix, EndpointError> {
    SocketAddrUnix::new(path).map_err(|errno| match errno {
        Errno::NAMETOOLONG => EndpointError::PathTooLong(path.to_owned()),
        source => EndpointError::Path {
            what: "use socket path",
            path: path.to_owned(),
            source,
        },
    })
}

fn stream_socket() -> Result<OwnedFd, EndpointError> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(EndpointError::System)
}

/// Removes a socket file that nobody listens at, and nothing else.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), EndpointError> {
    let at = |what| {
        move |source| EndpointError::Path {
            what,
            path: path.to_owned(),
            source,
        }
    };
    let stat = rustix::fs::lstat(path).map_err(at("look at"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(EndpointError::NotSocket(path.to_owned()));
    }
    match connect(stream_socket()?, address) {
        Err(Errno::CONNREFUSED) => rustix::fs::unlink(path).map_err(at("remove stale socket")),
        // A full backlog is a sign of life, too.
        Ok(()) | Err(Errno::AGAIN) => Err(EndpointError::InUse(path.to_owned())),
        Err(source) => Err(at("check for a server at")(source)),
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}
