//! One connection to a server, from the first attempt to its end.
//!
//! It is looked at ([`Link::look`]) as often as somebody likes, and never waits: a step is made if
//! there is something to make it of. While it is down it tries again in growing intervals.

use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Config;
use super::error::NbdError;
use super::input::Input;
use super::negotiation::{Export, Negotiation, Step};
use super::stream::{Addresses, Stream};
use super::wire;

/// First pause before another attempt to connect...
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// ...and the longest: each attempt without success is followed by one twice as long.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Room for what comes: as much as is read at once.
const INPUT: usize = 256 << 10;

/// How far a connection is.
#[derive(Debug)]
enum State {
    /// There is none; the next attempt is at this time.
    Down(Instant),
    /// The handshake goes on, until this time at most.
    Shaking {
        stream: Stream,
        negotiation: Box<Negotiation>,
        until: Instant,
    },
    Up(Stream),
}

/// What a look at a link brought.
#[derive(Debug)]
pub(super) enum Look {
    /// Nothing to be told.
    Same,
    /// The connection is there, and this is what it is to.
    Up(Export),
    /// The connection, or an attempt at one, failed.
    Lost(NbdError),
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Link {
    config: Config,
    addresses: Addresses,
    state: State,
    pause: Duration,
    /// Tells of bytes from whatever socket there is now.
    epoll: OwnedFd,
    pub(super) input: Input,
    /// What is to be sent, and how much of it was.
    pub(super) out: Vec<u8>,
    sent: usize,
}

impl Link {
    /// One that begins to connect at the first look.
    pub(super) fn new(config: &Config, addresses: &Addresses) -> Result<Self, NbdError> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(NbdError::io("no epoll"))?;
        Ok(Self {
            config: config.clone(),
            addresses: addresses.clone(),
            state: State::Down(Instant::now()),
            pause: FIRST_PAUSE,
            epoll,
            input: Input::new(INPUT),
            out: Vec::new(),
            sent: 0,
        })
    }

    /// One on a socket that is there.
    #[cfg(feature = "test-utils")]
    pub(super) fn at(
        config: &Config,
        addresses: &Addresses,
        socket: OwnedFd,
    ) -> Result<Self, NbdError> {
        let mut link = Self::new(config, addresses)?;
        link.start(Stream::new(socket), Instant::now())?;
        Ok(link)
    }

    /// What becomes readable when a look is worth it, apart from [`Link::next`].
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Forgets what [`Link::fd`] told; it tells of what comes from now on.
    pub(super) fn settle(&self) {
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 4];
        let none = rustix::event::Timespec::default();
        // There is one socket at most, whatever this says.
        let _ = epoll::wait(&self.epoll, &mut events[..], Some(&none));
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// When to look even if nothing comes.
    pub(super) fn next(&self) -> Option<Instant> {
        match &self.state {
            State::Down(again) => Some(*again),
            State::Shaking { until, .. } => Some(*until),
            State::Up(_) => None,
        }
    }

    /// Makes the steps that can be made on the way to a connection.
    pub(super) fn look(&mut self, now: Instant) -> Look {
        if let State::Down(again) = self.state {
            if again > now {
                return Look::Same;
            }
            if let Err(error) = self.begin(now) {
                return self.lose(error, now);
            }
        }
        match self.shake(now) {
            Ok(None) => Look::Same,
            Ok(Some(export)) => Look::Up(export),
            Err(error) => self.lose(error, now),
        }
    }

    fn begin(&mut self, now: Instant) -> Result<(), NbdError> {
        let stream = self.addresses.connect()?;
        self.start(stream, now)
    }

    fn start(&mut self, stream: Stream, now: Instant) -> Result<(), NbdError> {
        let edge = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        epoll::add(&self.epoll, stream.fd(), EventData::new_u64(0), edge)
            .map_err(NbdError::io("cannot watch the socket"))?;
        self.forget_bytes();
        let negotiation = Negotiation::new(&self.config.export, self.config.is_tls());
        self.state = State::Shaking {
            stream,
            negotiation: Box::new(negotiation),
            until: now + self.config.timeout,
        };
        Ok(())
    }

    fn shake(&mut self, now: Instant) -> Result<Option<Export>, NbdError> {
        loop {
            self.send()?;
            let State::Shaking {
                stream,
                negotiation,
                until,
            } = &mut self.state
            else {
                return Ok(None);
            };
            if now >= *until {
                return Err(NbdError::Silent(self.config.timeout.as_secs()));
            }
            let room = self.input.room();
            if !room.is_empty() {
                let Some(n) = stream.read(room)? else {
                    return Ok(None);
                };
                self.input.came(n);
            }
            match negotiation.step(&mut self.input, &mut self.out)? {
                Step::More => {}
                #[cfg(feature = "tls")]
                Step::StartTls => {
                    if let Some(tls) = &self.config.tls {
                        // What was asked for already goes encrypted.
                        stream.start_tls(tls)?;
                    }
                }
                #[cfg(not(feature = "tls"))]
                Step::StartTls => {}
                Step::Done(export) => {
                    self.pause = FIRST_PAUSE;
                    let down = State::Down(now);
                    if let State::Shaking { stream, .. } = std::mem::replace(&mut self.state, down)
                    {
                        self.state = State::Up(stream);
                    }
                    return Ok(Some(export));
                }
            }
        }
    }

    /// Sends what is to be sent, as much as goes.
    pub(super) fn send(&mut self) -> Result<(), NbdError> {
        let (State::Up(stream) | State::Shaking { stream, .. }) = &mut self.state else {
            return Ok(());
        };
        #[cfg(feature = "tls")]
        stream.push()?;
        while let Some(rest) = self.out.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match stream.write(rest)? {
                Some(n) => self.sent += n,
                None => {
                    // What was sent is forgotten now and then, so that it does not pile up.
                    if self.sent >= INPUT {
                        self.out.drain(..self.sent);
                        self.sent = 0;
                    }
                    return Ok(());
                }
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    /// How many bytes wait to be sent.
    pub(super) fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Receives what came; false if nothing did.
    pub(super) fn receive(&mut self) -> Result<bool, NbdError> {
        let State::Up(stream) = &mut self.state else {
            return Ok(false);
        };
        let Some(n) = stream.read(self.input.room())? else {
            return Ok(false);
        };
        self.input.came(n);
        Ok(true)
    }

    /// Ends the connection because of `error`; another one is tried after a pause.
    pub(super) fn lose(&mut self, error: NbdError, now: Instant) -> Look {
        // Closing the socket takes it out of the epoll, because nobody else has it.
        self.state = State::Down(now + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.forget_bytes();
        Look::Lost(error)
    }

    fn forget_bytes(&mut self) {
        self.input.clear();
        self.out.clear();
        self.sent = 0;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Polite, if nothing is half-sent.
        if self.is_up() && self.unsent() == 0 {
            self.out.extend(wire::goodbye());
            let _ = self.send();
        }
    }
}
