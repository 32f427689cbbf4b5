//! A front-end that does what the input says, on a real session over AF_UNIX, with rings that run
//! and are served.
//!
//! The session runs on this thread. Its transport is the real one in a wrapper that lets the
//! front-end take its next step when there is nothing to receive.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use vvu::memory::{Area, Region};
use vvu::notify::{Call, Kick};
use vvu::protocol::{FLAG_REPLY, Message, VERSION};
use vvu::session::{Status, StopSignal, run as run_session};
use vvu::transport::unix::UnixTransport;
use vvu::transport::{Event, RegionRequest, Transport, TransportError};
use vvu_pmd::net::Switch;

use crate::Input;
use crate::device::{Card, lock};
use crate::front_end::{FrontEnd, event};

/// Where the parts of ring 0 are in it if the front-end means well, and how far the next ring is.
pub const PARTS: [u64; 3] = [0, 0x400, 0x600];
/// See [`PARTS`].
pub const RING: u64 = 0x1000;
/// Entries of such a ring.
pub const SIZE: u16 = 64;

/// What happens next; the numbers are those of the input.
pub mod op {
    /// A message: u8 request, u8 flags, u8 file descriptors, a part as its payload.
    pub const MESSAGE: u8 = 0;
    /// Bytes, whatever they mean: a part.
    pub const BYTES: u8 = 1;
    /// The front-end writes its memory: u16 offset, a part.
    pub const WRITE: u8 = 2;
    /// It makes a chain of a ring at [`super::PARTS`] available: u8 ring, u16 head.
    pub const OFFER: u8 = 3;
    /// It writes a descriptor of such a ring: u8 ring, u8 index, u64 address, u32 length, u16
    /// flags, u16 next.
    pub const DESCRIPTOR: u8 = 4;
    /// The rings are polled: u8 how often.
    pub const POLL: u8 = 5;
    /// The worker would sleep.
    pub const SLEEP: u8 = 6;
    /// The memory's file gets another length: u16.
    pub const TRUNCATE: u8 = 7;
    /// The front-end hangs up, and connects again.
    pub const RECONNECT: u8 = 8;
    /// Number of operations.
    pub const COUNT: u8 = 9;
}

/// The front-end, and the transport that it is behind.
struct Scripted {
    inner: UnixTransport,
    front_end: FrontEnd,
    input: Input,
    switch: Arc<Mutex<Switch>>,
    stop: StopSignal,
}

impl Scripted {
    /// The next step. False if there is none.
    fn step(&mut self) -> bool {
        let Self {
            front_end, input, ..
        } = self;
        front_end.hear(|reply| assert_eq!(reply.flags, VERSION | FLAG_REPLY));
        if input.is_empty() {
            return false;
        }
        if !front_end.is_connected() {
            return front_end.connect();
        }
        match input.u8() % op::COUNT {
            op::MESSAGE => front_end.message(input),
            op::BYTES => front_end.bytes(&input.part()),
            op::WRITE => {
                let offset = input.u16().into();
                front_end.write(&input.part(), offset);
            }
            op::OFFER => self.offer(),
            op::DESCRIPTOR => {
                let ring = RING * u64::from(input.u8() % 4);
                let at = ring + 16 * u64::from(input.u8());
                front_end.write(&input.bytes(16), at);
            }
            op::POLL => {
                for _ in 0..input.u8() {
                    lock(&self.switch).poll(0);
                }
            }
            op::SLEEP => {
                let mut switch = lock(&self.switch);
                switch.enable_kicks();
                switch.disable_kicks();
            }
            op::TRUNCATE => front_end.truncate(input.u16().into()),
            _ => front_end.hang_up(),
        }
        true
    }

    fn offer(&mut self) {
        let Self {
            front_end, input, ..
        } = self;
        let [_, avail, _] = PARTS;
        let ring = avail + RING * u64::from(input.u8() % 4);
        let head = input.u16();
        let index = front_end.u16(ring + 2);
        let slot = ring + 4 + 2 * u64::from(index % SIZE);
        front_end.write(&head.to_le_bytes(), slot);
        front_end.write(&index.wrapping_add(1).to_le_bytes(), ring + 2);
    }
}

impl Transport for Scripted {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.inner.poll_fd()
    }

    fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.inner.next() {
                return Some(event);
            }
            if !self.step() {
                self.stop.raise();
                return None;
            }
        }
    }

    fn send(&mut self, message: &Message) -> Result<(), TransportError> {
        self.inner.send(message)
    }

    fn protocol_features(&self) -> u64 {
        self.inner.protocol_features()
    }

    fn max_rings(&self) -> u16 {
        self.inner.max_rings()
    }

    fn map_memory(
        &mut self,
        regions: &[RegionRequest],
        attached: Vec<OwnedFd>,
        whole: bool,
    ) -> Result<Vec<Region>, TransportError> {
        self.inner.map_memory(regions, attached, whole)
    }

    fn map_inflight(
        &mut self,
        mmap_offset: u64,
        size: u64,
        attached: Vec<OwnedFd>,
    ) -> Result<Area, TransportError> {
        self.inner.map_inflight(mmap_offset, size, attached)
    }

    fn send_inflight(&mut self, message: &Message, size: u64) -> Result<(), TransportError> {
        self.inner.send_inflight(message, size)
    }

    fn kick(&mut self, ring: u16, nofd: bool, fds: Vec<OwnedFd>) -> Result<Kick, TransportError> {
        self.inner.kick(ring, nofd, fds)
    }

    fn call(&mut self, ring: u16, nofd: bool, fds: Vec<OwnedFd>) -> Result<Call, TransportError> {
        self.inner.call(ring, nofd, fds)
    }

    fn err(&mut self, ring: u16, nofd: bool, fds: Vec<OwnedFd>) -> Result<Call, TransportError> {
        self.inner.err(ring, nofd, fds)
    }

    fn disconnect(&mut self) {
        self.inner.disconnect();
        self.front_end.hang_up();
    }

    fn shutdown(&mut self) {
        self.inner.shutdown();
    }
}

/// Serves the front-end until it has nothing more to say.
pub fn run(data: &[u8]) {
    let Some(first) = event() else {
        return;
    };
    // The lowest free descriptor: if it grows, some were left open.
    let before = first.as_raw_fd();
    drop(first);
    let _ = serve(data);
    let after = event().map_or(before, |fd| fd.as_raw_fd());
    assert_eq!(after, before, "descriptors were left open");
}

fn serve(data: &[u8]) -> Option<()> {
    let mut input = Input::new(data);
    let pairs = u16::from(input.u8() % 2) + 1;
    let front_end = FrontEnd::new()?;
    let inner = UnixTransport::listen(&front_end.path()).ok()?;
    let stop = StopSignal::new().ok()?;
    let card = Card::new(pairs)?;
    let status = Arc::new(Status::default());
    let scripted = Scripted {
        inner,
        front_end,
        input,
        switch: card.switch(),
        stop: stop.clone(),
    };
    run_session(
        Box::new(scripted),
        Box::new(card),
        &stop,
        Arc::clone(&status),
    );
    let report = status.report();
    assert!(!report.connected && report.running_rings == 0, "{report:?}");
    Some(())
}
