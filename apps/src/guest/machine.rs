//! A guest as its jobs see it: memory and a network card behind a connection that may break.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vvu::protocol::Features;
use vvu::socket::Endpoint;
use vvu_pmd::net::feature;

use super::args::{MAX_FRAME, Options, Socket};
use super::error::{Fault, GuestError, io};
use super::link::{Link, NetSpace, Wanted};
use super::memory::Memory;
use super::queues::{Format, Queue, Receiver, Sender};
use super::wrap::{self, Request};
use crate::port::Mac;
use crate::signals::Shutdown;

/// For this long nothing is worth going to sleep for.
const SPIN: Duration = Duration::from_micros(10);
/// For this long others may run, but we look again at once.
const YIELD: Duration = Duration::from_micros(50);
/// A frame of an Ethernet without an MTU of its own, without its checksum.
const USUAL_FRAME: usize = 1514;
const ETHERNET: usize = 14;

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Woken {
    /// There may be something to do.
    Ready,
    /// It was time.
    Late,
    /// A signal says to stop.
    Stopped,
    /// The back-end went away and is back. What was under way may be lost, or sent twice.
    Reconnected,
}

/// Frames and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

impl Flow {
    fn add(&mut self, packets: u64, bytes: u64) {
        self.packets += packets;
        self.bytes += bytes;
    }
}

/// What a bed tells a hang-up by; everything else only wakes.
const HANG_UP: u64 = 1;

/// A pair of rings.
struct Pair {
    receiver: Receiver,
    sender: Sender,
}

/// All rings, in the order of their numbers.
fn queues(pairs: &[Pair]) -> impl Iterator<Item = &Queue> {
    pairs
        .iter()
        .flat_map(|pair| [&pair.receiver.queue, &pair.sender.queue])
}

fn queues_mut(pairs: &mut [Pair]) -> impl Iterator<Item = &mut Queue> {
    pairs
        .iter_mut()
        .flat_map(|pair| [&mut pair.receiver.queue, &mut pair.sender.queue])
}

/// A place to sleep at, where a hang-up, a signal and the calls of `queues` wake.
fn bed<'a>(
    link: &Link,
    shutdown: &Shutdown,
    queues: impl Iterator<Item = &'a Queue>,
) -> std::io::Result<Epoll> {
    let bed = Epoll::new()?;
    let watch = |fd: &dyn AsRawFd, data| {
        let event = EpollEvent::new(EventSet::IN, data);
        bed.ctl(ControlOperation::Add, fd.as_raw_fd(), event)
    };
    watch(&link.fd(), HANG_UP)?;
    watch(&shutdown.fd(), 0)?;
    for queue in queues {
        watch(&queue.call, 0)?;
        watch(&queue.err, 0)?;
    }
    Ok(bed)
}

/// See the [module](self).
pub(super) struct Machine<'a> {
    options: &'a Options,
    shutdown: &'a Shutdown,
    socket: &'a Socket,
    endpoint: &'a mut Endpoint,
    link: Option<Link>,
    bed: Epoll,
    wanted: Wanted,
    format: Format,
    memory: Memory,
    pairs: Vec<Pair>,
    /// The pair that sends at the moment.
    current: usize,
    mac: [u8; 6],
    max_frame: usize,
    connections: u64,
    sent: Flow,
    received: Flow,
}

impl<'a> Machine<'a> {
    /// Gets a connection from `endpoint`, which is that of `socket`, negotiates and starts.
    pub(super) fn start(
        socket: &'a Socket,
        endpoint: &'a mut Endpoint,
        options: &'a Options,
        shutdown: &'a Shutdown,
    ) -> Result<Self, GuestError> {
        let timeout = Duration::from_secs(options.timeout);
        let deadline = Instant::now() + timeout;
        let wanted = wanted(options);
        let connected = connected(endpoint, socket, options, shutdown, deadline)?;
        let mut link = Link::open(connected, wanted, timeout)?;
        let space = link.space()?;
        let format = Format(link.features);
        let (mac, max_frame) = card(space, format, options);
        // With offloads, frames are as long as packets can be.
        let longest = match options.offloads {
            true => wrap::LONGEST,
            false => max_frame,
        };
        let buffer_len = options.rx_buffer.unwrap_or(match format.mergeable() {
            true => 2048,
            false => ((longest + format.header()) as u32).max(2048),
        });
        let size = options.queue_size;
        let pair = Receiver::bytes(size, buffer_len) + Sender::bytes(size, longest);
        // What does not fit a region exactly, is lost there.
        let waste = u64::from(options.regions) * (pair / 8 + 16384);
        let needed = u64::from(options.pairs) * pair + waste;
        let mut memory = match &options.memory_file {
            Some(path) => Memory::in_file(path, options.regions)?,
            None => {
                let len = options.memory.unwrap_or(needed.max(1 << 24));
                Memory::new(len, options.regions, true)?
            }
        };
        let mut pairs = Vec::new();
        for _ in 0..options.pairs {
            pairs.push(Pair {
                receiver: Receiver::new(&mut memory, size, buffer_len, format)?,
                sender: Sender::new(&mut memory, size, longest, format)?,
            });
        }
        link.start(&memory, queues_mut(&mut pairs))?;
        let bed = bed(&link, shutdown, queues(&pairs));
        tracing::info!(
            "connected: features {:#x}, {} regions, rings of {size}",
            format.0,
            memory.regions()
        );
        Ok(Self {
            options,
            shutdown,
            socket,
            endpoint,
            link: Some(link),
            bed: bed.map_err(io("wait for events"))?,
            wanted,
            format,
            memory,
            pairs,
            current: 0,
            mac,
            max_frame,
            connections: 1,
            sent: Flow::default(),
            received: Flow::default(),
        })
    }

    /// The address to send from.
    pub(super) fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The longest frame that can be sent.
    pub(super) fn max_frame(&self) -> usize {
        self.max_frame
    }

    /// How many receive buffers each pair has, and how long each is.
    pub(super) fn receive_buffers(&self) -> (u16, u32) {
        let first = self.pairs.first();
        first.map_or((0, 0), |pair| pair.receiver.buffers())
    }

    /// The pair that sends at the moment.
    fn sender(&mut self) -> &mut Sender {
        let current = self.current % self.pairs.len().max(1);
        &mut self.pairs[current].sender
    }

    /// Lets the next pair send, if what was sent before has been taken: so its order stays.
    pub(super) fn turn(&mut self) -> Result<(), GuestError> {
        if self.pairs.len() > 1 {
            self.reclaim()?;
            if self.in_flight() == 0 {
                self.current = (self.current + 1) % self.pairs.len();
            }
        }
        Ok(())
    }

    /// The virtio features in use.
    pub(super) fn features(&self) -> u64 {
        self.format.0
    }

    /// How often a connection was made.
    pub(super) fn connections(&self) -> u64 {
        self.connections
    }

    /// What was given to the back-end.
    pub(super) fn sent(&self) -> Flow {
        self.sent
    }

    /// What came from the back-end.
    pub(super) fn received(&self) -> Flow {
        self.received
    }

    /// Frames that the back-end has not taken yet.
    pub(super) fn in_flight(&self) -> u16 {
        let each = self.pairs.iter().map(|pair| pair.sender.in_flight());
        each.fold(0, u16::saturating_add)
    }

    /// How long the back-end may take.
    pub(super) fn timeout(&self) -> Duration {
        Duration::from_secs(self.options.timeout)
    }

    /// Whether a signal says to stop.
    pub(super) fn stopped(&self) -> bool {
        self.shutdown.raised()
    }

    /// Shows up to `budget` frames that arrived on each ring, at least the first `snap` bytes of each, and its
    /// length. Returns how many there were.
    pub(super) fn poll(
        &mut self,
        budget: usize,
        snap: usize,
        mut each: impl FnMut(&[u8], usize, &Request),
    ) -> Result<usize, GuestError> {
        let (mut bytes, mut count) = (0, 0);
        for pair in &mut self.pairs {
            count += pair.receiver.poll(budget, snap, |frame, len, request| {
                bytes += len as u64;
                each(frame, len, request);
            })?;
        }
        self.received.add(count as u64, bytes);
        Ok(count)
    }

    /// Whether there is room for another frame, in as many pieces as may be.
    pub(super) fn has_room(&mut self) -> Result<bool, GuestError> {
        Ok(self.sender().has_room()?)
    }

    /// Adds a frame, cut into pieces (see [`Sender::add`]); `false` if there is no room. It goes
    /// with the next [`Machine::flush`].
    pub(super) fn add(&mut self, frame: &[u8], cuts: &[usize]) -> Result<bool, GuestError> {
        self.add_with(&wrap::NONE, frame, cuts)
    }

    /// The same with something left to do.
    pub(super) fn add_with(
        &mut self,
        request: &Request,
        frame: &[u8],
        cuts: &[usize],
    ) -> Result<bool, GuestError> {
        let added = self.sender().add(request, frame, cuts)?;
        if added {
            self.sent.add(1, frame.len() as u64);
        }
        Ok(added)
    }

    /// Sends what was added.
    pub(super) fn flush(&mut self) {
        self.sender().queue.flush();
    }

    /// Sends up to `limit` frames like `frame`; see [`Sender::blast`].
    pub(super) fn blast(&mut self, frame: &[u8], limit: u64) -> Result<u64, GuestError> {
        let each = limit.div_ceil(self.pairs.len().max(1) as u64);
        let mut count = 0;
        for pair in &mut self.pairs {
            count += pair.sender.blast(frame, each.min(limit - count))?;
        }
        self.sent.add(count, count * frame.len() as u64);
        Ok(count)
    }

    /// Waits until all frames sent were taken. An error if for too long none is.
    pub(super) fn drain(&mut self) -> Result<(), GuestError> {
        let mut deadline = Instant::now() + self.timeout();
        while self.in_flight() > 0 && !self.stopped() {
            if self.reclaim()? > 0 {
                deadline = Instant::now() + self.timeout();
            } else if self.wait(deadline, true)? == Woken::Late {
                return Err(Fault::Stuck(self.options.timeout).into());
            }
        }
        Ok(())
    }

    /// Takes back what the back-end is done with; how many frames that were.
    fn reclaim(&mut self) -> Result<usize, GuestError> {
        let mut count = 0;
        for pair in &mut self.pairs {
            count += pair.sender.reclaim()?;
        }
        Ok(count)
    }

    /// Waits until a frame arrives, or, with `room`, until one was taken. Returns early now and
    /// then.
    pub(super) fn wait(&mut self, deadline: Instant, room: bool) -> Result<Woken, GuestError> {
        let start = Instant::now();
        loop {
            if self.is_ready(room) {
                return Ok(Woken::Ready);
            }
            if self.stopped() {
                return Ok(Woken::Stopped);
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(Woken::Late);
            }
            match now - start {
                spent if spent < SPIN => std::hint::spin_loop(),
                spent if spent < YIELD => std::thread::yield_now(),
                _ => break,
            }
        }
        for pair in &mut self.pairs {
            if pair.receiver.queue.ring.enable_calls()
                || room && pair.sender.queue.ring.enable_calls()
            {
                return Ok(Woken::Ready);
            }
        }
        let gone = self.sleep(deadline.saturating_duration_since(Instant::now()))?;
        for queue in queues_mut(&mut self.pairs) {
            queue.ring.disable_calls();
        }
        if gone && !self.is_ready(room) {
            self.reconnect()?;
            return Ok(Woken::Reconnected);
        }
        Ok(Woken::Ready)
    }

    fn is_ready(&self, room: bool) -> bool {
        self.pairs.iter().any(|pair| {
            pair.receiver.queue.ring.has_used() || room && pair.sender.queue.ring.has_used()
        })
    }

    /// Sleeps until a call, a signal or a hang-up, at most for `time`; whether it was the last.
    fn sleep(&self, time: Duration) -> Result<bool, GuestError> {
        let Some(link) = &self.link else {
            return Ok(true);
        };
        let millis = time.as_micros().div_ceil(1000).min(1 << 30) as i32;
        let mut events = [EpollEvent::default(); 8];
        // An interrupted wait is a short one.
        let count = self.bed.wait(millis, &mut events).unwrap_or(0);
        let hung_up = |event: &EpollEvent| event.data() == HANG_UP;
        let over = events.iter().take(count).any(hung_up) && link.is_over();
        for queue in queues(&self.pairs) {
            let _ = queue.call.read();
            if queue.err.read().is_ok() && !over {
                return Err(Fault::Signalled(queue.name).into());
            }
        }
        Ok(over)
    }

    /// The back-end hung up: waits for it to come back, if that is wanted.
    fn reconnect(&mut self) -> Result<(), GuestError> {
        self.link = None;
        if !self.options.reconnect {
            return Err(GuestError::Gone);
        }
        tracing::info!("the back-end is gone; waiting for it");
        let deadline = Instant::now() + self.timeout();
        let mut useful = true;
        loop {
            self.endpoint.rearm(useful);
            let (endpoint, socket) = (&mut *self.endpoint, self.socket);
            let connected = connected(endpoint, socket, self.options, self.shutdown, deadline)?;
            match self.resume(connected) {
                Ok(link) => {
                    self.link = Some(link);
                    self.connections += 1;
                    tracing::info!("connected again");
                    return Ok(());
                }
                // It may have died once more.
                Err(GuestError::Handshake { what, why }) => {
                    tracing::info!("{what}: {why}");
                    useful = false;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn resume(&mut self, connected: OwnedFd) -> Result<Link, GuestError> {
        let before = self.format.0;
        // Only what is in use: rings and headers are as they are.
        let wanted = Wanted {
            features: before,
            ..self.wanted
        };
        let mut link = Link::open(connected, wanted, self.timeout())?;
        let now = link.features;
        if now != before {
            return Err(GuestError::Changed { before, now });
        }
        link.start(&self.memory, queues_mut(&mut self.pairs))?;
        self.bed = bed(&link, self.shutdown, queues(&self.pairs)).map_err(io("wait for events"))?;
        Ok(link)
    }

    /// Stops the rings and hangs up.
    pub(super) fn stop(self) -> Result<(), GuestError> {
        match self.link {
            None => Ok(()),
            Some(link) => link.stop(queues(&self.pairs)),
        }
    }
}

pub(super) fn endpoint(socket: &Socket) -> Result<Endpoint, GuestError> {
    Ok(match socket.server {
        true => Endpoint::listen(&socket.path)?,
        false => Endpoint::connect(&socket.path)?,
    })
}

/// Waits for a connected socket.
pub(super) fn connected(
    endpoint: &mut Endpoint,
    socket: &Socket,
    options: &Options,
    shutdown: &Shutdown,
    deadline: Instant,
) -> Result<OwnedFd, GuestError> {
    while !shutdown.raised() {
        if let Some(connected) = endpoint.attempt() {
            return Ok(connected);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(nobody(socket, options));
        }
        let mut fds = [
            PollFd::from_borrowed_fd(endpoint.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(shutdown.fd(), PollFlags::IN),
        ];
        let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
    }
    Err(GuestError::Interrupted)
}

fn nobody(socket: &Socket, options: &Options) -> GuestError {
    let why = match std::os::unix::net::UnixStream::connect(&socket.path) {
        Err(error) if !socket.server => format!(": {error}"),
        _ => String::new(),
    };
    GuestError::NoBackEnd {
        how: if socket.server {
            "called"
        } else {
            "answers at"
        },
        path: socket.path.clone(),
        seconds: options.timeout,
        why,
    }
}

/// The features to accept.
pub(super) fn wanted(options: &Options) -> Wanted {
    let version_1 = Features::VERSION_1.bits();
    let offloads = if options.offloads {
        wrap::feature::ALL
    } else {
        0
    };
    let mut features = feature::MAC | feature::MTU | offloads;
    for (bit, refused) in [
        (version_1, options.no_version_1),
        (Features::EVENT_IDX.bits(), options.no_event_idx),
        (Features::INDIRECT_DESC.bits(), options.no_indirect),
        (feature::MRG_RXBUF, options.no_mrg_rxbuf),
    ] {
        features |= if refused { 0 } else { bit };
    }
    let mut needed = if options.no_version_1 { 0 } else { version_1 };
    for (bit, asked) in [
        (Features::RING_PACKED.bits(), options.packed),
        (Features::IN_ORDER.bits(), options.in_order),
    ] {
        needed |= if asked { bit } else { 0 };
    }
    Wanted {
        features: features | needed,
        needed,
        pairs: options.pairs,
        protocol_features: !options.no_protocol_features,
    }
}

/// The card's address and its longest frame.
fn card(space: Option<NetSpace>, format: Format, options: &Options) -> ([u8; 6], usize) {
    let with = |bit| space.filter(|_| format.0 & bit != 0);
    let mac = match options.mac {
        Some(Mac(mac)) => mac,
        None => with(feature::MAC).map_or_else(random_mac, |space| space.mac),
    };
    let frame = with(feature::MTU).map_or(USUAL_FRAME, |space| usize::from(space.mtu) + ETHERNET);
    (
        mac,
        frame.clamp(super::args::MIN_FRAME.into(), MAX_FRAME.into()),
    )
}

/// An address of our own: locally administered.
fn random_mac() -> [u8; 6] {
    let [a, b, c, d, e, ..] = fastrand::u64(..).to_le_bytes();
    [0x02, a, b, c, d, e]
}
