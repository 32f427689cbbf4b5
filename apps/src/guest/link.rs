//! One connection to a back-end: the vhost-user messages of a VMM.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{RecvTimeoutError, Sender as Alarm, channel};
use std::time::Duration;

use rustix::net::RecvFlags;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Error as VhostUserError, Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};
use vvu::protocol::{Features, HEADER_LEN, Message, Request, VringState};

use super::error::{GuestError, io};
use super::memory::Memory;
use super::queues::Queue;

/// What a guest accepts if it is offered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) features: u64,
    /// None of them is accepted if this is not offered.
    pub(super) needed: u64,
    pub(super) protocol_features: bool,
    /// Let the back-end keep what it has not answered in memory that outlives it.
    pub(super) inflight: bool,
    pub(super) rings: Rings,
}

/// How many rings there shall be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rings {
    /// All of them.
    pub(super) all: u64,
    /// As GET_QUEUE_NUM counts them: a network card's in pairs.
    pub(super) asked: u64,
    /// What a back-end has that cannot be asked.
    pub(super) usual: u64,
    /// Those of them that nobody asks for.
    pub(super) others: u64,
    /// What is counted, and the option that asks for so many.
    pub(super) what: &'static str,
}

impl Rings {
    /// Pairs of a network card.
    pub(super) fn pairs(pairs: u8) -> Self {
        Self {
            all: 2 * u64::from(pairs),
            asked: pairs.into(),
            usual: 1,
            others: 0,
            what: "pairs",
        }
    }
}

/// Memory of a back-end in which it notes what it has not answered, kept for its successor
/// (GET_INFLIGHT_FD).
pub(super) struct Tracked {
    layout: VhostUserInflight,
    file: File,
}

/// A connection whose features are negotiated.
pub(super) struct Link {
    frontend: Frontend,
    /// The same socket, for what the `vhost` crate has no word for.
    stream: UnixStream,
    timeout: Duration,
    /// Without vhost-user's own bit.
    pub(super) features: u64,
    /// Whether rings must be enabled.
    enables: bool,
    protocol: VhostUserProtocolFeatures,
}

/// Hangs up if it is not dropped in time: the `vhost` crate waits for answers for ever.
struct Watchdog {
    _alarm: Alarm<()>,
}

impl Watchdog {
    fn new(stream: &UnixStream, timeout: Duration) -> std::io::Result<Self> {
        let stream = stream.try_clone()?;
        let (alarm, dropped) = channel();
        std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || {
                if dropped.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout) {
                    let _ = stream.shutdown(Shutdown::Both);
                }
            })?;
        Ok(Self { _alarm: alarm })
    }
}

/// What is needed and not offered, and how to do without it.
fn missing(bits: u64) -> &'static str {
    if bits & Features::VERSION_1.bits() != 0 {
        "VERSION_1 (or --no-version-1)"
    } else if bits & Features::RING_PACKED.bits() != 0 {
        "RING_PACKED (or no --packed)"
    } else {
        "IN_ORDER (or no --in-order)"
    }
}

impl Link {
    /// Negotiates over a connected socket.
    pub(super) fn open(
        socket: OwnedFd,
        wanted: Wanted,
        timeout: Duration,
    ) -> Result<Self, GuestError> {
        let stream = UnixStream::from(socket);
        stream
            .set_nonblocking(false)
            .map_err(io("use the socket"))?;
        let other = stream.try_clone().map_err(io("use the socket"))?;
        let mut link = Self {
            frontend: Frontend::from_stream(other, wanted.rings.all),
            stream,
            timeout,
            features: 0,
            enables: false,
            protocol: VhostUserProtocolFeatures::empty(),
        };
        let _watchdog = link.watchdog()?;
        link.negotiate(wanted)?;
        Ok(link)
    }

    fn watchdog(&self) -> Result<Watchdog, GuestError> {
        Watchdog::new(&self.stream, self.timeout).map_err(io("start a thread"))
    }

    fn negotiate(&mut self, wanted: Wanted) -> Result<(), GuestError> {
        let failed = |what| move |error| GuestError::message(what, error);
        let frontend = &mut self.frontend;
        let offered = frontend.get_features().map_err(failed("GET_FEATURES"))?;
        let bit30 = Features::PROTOCOL_FEATURES.bits();
        if wanted.needed & !offered != 0 {
            return Err(GuestError::Features {
                offered,
                missing: missing(wanted.needed & !offered),
            });
        }
        self.features = wanted.features & offered;
        self.enables = wanted.protocol_features && offered & bit30 != 0;
        if self.enables {
            let offered = frontend.get_protocol_features();
            let offered = offered.map_err(failed("GET_PROTOCOL_FEATURES"))?;
            let mut accepted = VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::MQ;
            accepted.set(VhostUserProtocolFeatures::INFLIGHT_SHMFD, wanted.inflight);
            self.protocol = offered & accepted;
            let set = frontend.set_protocol_features(self.protocol);
            set.map_err(failed("SET_PROTOCOL_FEATURES"))?;
            if self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
                frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            }
        }
        frontend.set_owner().map_err(failed("SET_OWNER"))?;
        let vhost_user = if self.enables { bit30 } else { 0 };
        let set = frontend.set_features(self.features | vhost_user);
        set.map_err(failed("SET_FEATURES"))?;
        let Rings {
            asked,
            usual,
            others,
            what,
            ..
        } = wanted.rings;
        if asked > usual {
            let most = match self.protocol.contains(VhostUserProtocolFeatures::MQ) {
                true => self.exchange("GET_QUEUE_NUM", &Request::GetQueueNum, true)?,
                false => usual,
            };
            if most < asked {
                return Err(GuestError::Rings {
                    what,
                    wanted: asked - others,
                    most: most.saturating_sub(others),
                });
            }
        }
        if wanted.inflight && !self.tracks() {
            return Err(GuestError::Features {
                offered,
                missing: "INFLIGHT_SHMFD (or no --inflight)",
            });
        }
        Ok(())
    }

    /// Sends what the `vhost` crate cannot say; the answer's number, or 0 if none is due.
    fn exchange(
        &mut self,
        what: &'static str,
        request: &Request,
        answered: bool,
    ) -> Result<u64, GuestError> {
        let refused = |why: String| GuestError::Handshake { what, why };
        let failed = |error: std::io::Error| refused(error.to_string());
        let ack = !answered && self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK);
        let bytes = request.to_message(ack).to_bytes();
        self.stream.write_all(&bytes).map_err(failed)?;
        if !answered && !ack {
            return Ok(0);
        }
        let mut header = [0; HEADER_LEN];
        let mut number = [0; 8];
        self.stream.read_exact(&mut header).map_err(failed)?;
        let (_, _, len) = Message::parse_header(&header);
        if len as usize != number.len() {
            return Err(refused(format!("its answer has {len} bytes")));
        }
        self.stream.read_exact(&mut number).map_err(failed)?;
        match u64::from_le_bytes(number) {
            number if answered => Ok(number),
            0 => Ok(0),
            _ => Err(refused("it failed there".into())),
        }
    }

    /// Whether the back-end keeps what it has not answered.
    fn tracks(&self) -> bool {
        let bit = VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        self.protocol.contains(bit)
    }

    /// The first `len` bytes of the device's configuration space, if the back-end shows it.
    pub(super) fn config(&mut self, len: u32) -> Result<Option<Vec<u8>>, GuestError> {
        if !self.protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            return Ok(None);
        }
        let _watchdog = self.watchdog()?;
        let nothing = vec![0; len as usize];
        let flags = VhostUserConfigFlags::empty();
        match self.frontend.get_config(0, len, flags, &nothing) {
            Ok((_, space)) => Ok(Some(space)),
            // It has a shorter one, or none after all.
            Err(vhost::Error::VhostUserProtocol(VhostUserError::BackendInternalError)) => Ok(None),
            Err(error) => Err(GuestError::message("GET_CONFIG", error)),
        }
    }

    /// Gives the back-end the notes of its predecessor, or gets memory for its own.
    fn track(
        &mut self,
        tracked: &mut Option<Tracked>,
        queues: &[&mut Queue],
    ) -> Result<(), GuestError> {
        let failed = |what| move |error| GuestError::message(what, error);
        let tracked = match tracked {
            Some(tracked) => tracked,
            None => {
                let size = queues.first().map_or(0, |queue| queue.ring.size());
                let asked = VhostUserInflight::new(0, 0, queues.len() as u16, size);
                let got = self.frontend.get_inflight_fd(&asked);
                let (layout, file) = got.map_err(failed("GET_INFLIGHT_FD"))?;
                tracked.insert(Tracked { layout, file })
            }
        };
        let fd = tracked.file.as_raw_fd();
        let set = self.frontend.set_inflight_fd(&tracked.layout, fd);
        set.map_err(failed("SET_INFLIGHT_FD"))
    }

    /// Hands over memory and rings, which go on where they are, and starts them.
    pub(super) fn start<'a>(
        &mut self,
        memory: &Memory,
        tracked: &mut Option<Tracked>,
        queues: impl Iterator<Item = &'a mut Queue>,
    ) -> Result<(), GuestError> {
        let mut queues: Vec<_> = queues.collect();
        let _watchdog = self.watchdog()?;
        let tracks = self.tracks();
        if tracks {
            self.track(tracked, &queues)?;
        } else {
            for queue in &mut queues {
                let offered = queue.ring.offer_again();
                offered.map_err(|error| queue.fault(error))?;
            }
        }
        let failed = |what| move |error| GuestError::message(what, error);
        let set = self.frontend.set_mem_table(&memory.table());
        set.map_err(failed("SET_MEM_TABLE"))?;
        for (index, queue) in (0..).zip(&mut queues) {
            let base = match tracks {
                true => queue.ring.stands_at(),
                false => queue.ring.resume(),
            };
            let base = base.map_err(|error| queue.fault(error))?;
            let ring = &queue.ring;
            let at = ring.addresses();
            let user = |addr| memory.user(addr).ok_or(GuestError::NoMemory);
            let place = VringConfigData {
                queue_max_size: ring.size(),
                queue_size: ring.size(),
                flags: 0,
                desc_table_addr: user(at.desc)?,
                used_ring_addr: user(at.device)?,
                avail_ring_addr: user(at.driver)?,
                log_addr: None,
            };
            let frontend = &mut self.frontend;
            let set = frontend.set_vring_num(index, ring.size());
            set.map_err(failed("SET_VRING_NUM"))?;
            match u16::try_from(base) {
                Ok(base) => frontend
                    .set_vring_base(index, base)
                    .map_err(failed("SET_VRING_BASE"))?,
                // The crate has no word for the upper half, where a packed ring's used place is.
                Err(_) => {
                    let state = VringState {
                        index: index as u32,
                        num: base,
                    };
                    let request = Request::SetVringBase(state);
                    self.exchange("SET_VRING_BASE", &request, false)?;
                }
            }
            let frontend = &mut self.frontend;
            let set = frontend.set_vring_addr(index, &place);
            set.map_err(failed("SET_VRING_ADDR"))?;
            let set = frontend.set_vring_err(index, &queue.err);
            set.map_err(failed("SET_VRING_ERR"))?;
            let set = frontend.set_vring_call(index, &queue.call);
            set.map_err(failed("SET_VRING_CALL"))?;
            let set = frontend.set_vring_kick(index, &queue.kick);
            set.map_err(failed("SET_VRING_KICK"))?;
        }
        for (index, queue) in (0..).zip(queues) {
            if self.enables {
                let set = self.frontend.set_vring_enable(index, true);
                set.map_err(failed("SET_VRING_ENABLE"))?;
            }
            // There may be something in the ring that a predecessor was kicked for.
            queue.ring.disable_calls();
            queue.notify();
        }
        Ok(())
    }

    /// Stops the rings, as at the end of a VM: from then on the back-end uses none of the memory.
    pub(super) fn stop<'a>(
        mut self,
        queues: impl Iterator<Item = &'a Queue>,
    ) -> Result<(), GuestError> {
        let _watchdog = self.watchdog()?;
        for (index, queue) in (0..).zip(queues) {
            if self.enables {
                let set = self.frontend.set_vring_enable(index, false);
                set.map_err(|error| GuestError::message("SET_VRING_ENABLE", error))?;
            }
            let found = self.frontend.get_vring_base(index);
            let found = found.map_err(|error| GuestError::message("GET_VRING_BASE", error))?;
            queue.check_base(found)?;
        }
        Ok(())
    }

    /// The socket once more, for those who have more to say than is decent.
    pub(super) fn stream(&self) -> Result<UnixStream, GuestError> {
        self.stream.try_clone().map_err(io("use the socket"))
    }

    /// What becomes readable when the back-end hangs up.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Whether the back-end hung up. It has nothing to say without being asked; should it speak,
    /// the connection is no good any more.
    pub(super) fn is_over(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        !matches!(
            rustix::net::recv(&self.stream, &mut [0u8; 1][..], flags),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR)
        )
    }
}
