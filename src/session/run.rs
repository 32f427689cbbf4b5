//! The event loop of a session.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::SystemTime;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::connection::Connection;
use super::{SessionError, Status};
use crate::transport::{Event, Gone, Transport};
use crate::virtio::VirtioDevice;

const NANOSECONDS: i64 = 1_000_000_000;

/// Until a session looks after its front-end's memory, and whether its device has changed, while
/// nothing else happens: once a second, and all sessions of a machine at the same moment, so that
/// an idle processor is woken once and not by each of them.
fn next_look() -> Timespec {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanos = now.map_or(0, |now| i64::from(now.subsec_nanos()));
    Timespec {
        tv_sec: 0,
        tv_nsec: NANOSECONDS - 1 - nanos,
    }
}

/// Tells a session to stop. Clones tell the same session.
#[derive(Debug, Clone)]
pub struct StopSignal {
    fd: Arc<OwnedFd>,
}

impl StopSignal {
    /// A signal that is not raised yet.
    pub fn new() -> std::io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd: Arc::new(fd) })
    }

    /// Raises the signal, for good.
    pub fn raise(&self) {
        let _ = rustix::io::write(&*self.fd, &1u64.to_ne_bytes());
    }

    /// Whether the signal is raised.
    pub fn is_raised(&self) -> bool {
        let mut fds = [PollFd::new(&*self.fd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

impl AsFd for StopSignal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A session on a thread of its own.
#[derive(Debug)]
pub struct Session {
    stop: StopSignal,
    status: Arc<Status>,
    thread: Option<JoinHandle<()>>,
}

impl Session {
    /// Serves the front-ends of `transport` with `device` from now on.
    pub fn spawn(
        transport: Box<dyn Transport>,
        device: Box<dyn VirtioDevice>,
    ) -> std::io::Result<Self> {
        let stop = StopSignal::new()?;
        let status = Arc::new(Status::default());
        let thread = {
            let (stop, status) = (stop.clone(), Arc::clone(&status));
            std::thread::Builder::new()
                .name("vvu-session".to_owned())
                .spawn(move || run(transport, device, &stop, status))?
        };
        Ok(Self {
            stop,
            status,
            thread: Some(thread),
        })
    }

    /// What the session is about.
    pub fn status(&self) -> &Arc<Status> {
        &self.status
    }

    /// What stops the session from elsewhere.
    pub fn stop_signal(&self) -> StopSignal {
        self.stop.clone()
    }

    /// Stops the session: rings give back what they have, the transport is shut down.
    pub fn stop(mut self) {
        self.join();
    }

    fn join(&mut self) {
        self.stop.raise();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a session ended by a panic");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.join();
    }
}

/// Serves the front-ends of `transport` with `device`, in this thread, until `stop` is raised.
pub fn run(
    transport: Box<dyn Transport>,
    device: Box<dyn VirtioDevice>,
    stop: &StopSignal,
    status: Arc<Status>,
) {
    let _span = tracing::info_span!("session", transport = transport.name()).entered();
    let mut connection = Connection::new(transport, device, status);
    tracing::info!("waiting for a front-end");
    let mut connected = false;
    while !stop.is_raised() {
        if connected && connection.memory_is_lost() {
            fail(&mut connection, &SessionError::MemoryLost);
            connected = false;
        }
        match connection.transport.next() {
            Some(event) => connected = on_event(&mut connection, event, connected),
            None => {
                if connected {
                    connection.tell_changes();
                }
                wait(&connection, stop, connected);
            }
        }
    }
    if connected {
        connection.end();
    }
    connection.transport.shutdown();
    tracing::info!("stopped");
}

/// Returns whether a front-end is connected now.
fn on_event(connection: &mut Connection, event: Event, connected: bool) -> bool {
    match event {
        Event::Connected => {
            if connected {
                connection.end();
            }
            connection.begin();
            true
        }
        Event::Message(incoming) if connected => match connection.handle(incoming) {
            Ok(()) => true,
            Err(error) => {
                fail(connection, &error);
                false
            }
        },
        // What a connection left behind that is over for us.
        Event::Message(_) => false,
        Event::Disconnected(reason) => {
            if connected {
                // Counted first: whoever sees that it is over finds the reason there.
                match &reason {
                    Gone::Closed => {}
                    Gone::Violation(what) => connection.status.violation(what.clone()),
                    Gone::Failed(what) => connection.status.error(what.clone()),
                }
                connection.end();
                tracing::info!(%reason, "front-end gone");
            }
            false
        }
    }
}

/// Ends the connection because of `error`.
fn fail(connection: &mut Connection, error: &SessionError) {
    if error.is_violation() {
        connection.status.violation(error.to_string());
    } else {
        connection.status.error(error.to_string());
    }
    tracing::warn!(%error, "connection closed");
    connection.end();
    connection.transport.disconnect();
}

/// Waits until the transport has something, the session shall stop, or it is time to look after
/// the memory.
fn wait(connection: &Connection, stop: &StopSignal, connected: bool) {
    let mut fds = [
        PollFd::from_borrowed_fd(connection.transport.poll_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
    ];
    let timeout = connected.then(next_look);
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => tracing::error!(%errno, "cannot poll"),
    }
}
