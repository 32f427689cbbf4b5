//! The channels of one request queue to the disks of its device, opened when they are first used.

use std::sync::Arc;

use vvu::notify::Kick;

use super::domain::{Address, Domain, Seat};
use super::face::{Face, Letter, Mailbox, Note};
use super::target::Lane;
use crate::bdev::{Channel, Done, Request};
use crate::wake::{Quiet, Waker, Watch};

/// A way to one unit's disk.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) seat: Arc<Seat>,
    pub(super) lane: Lane,
    channel: State,
    /// What goes to the channel at the end of the burst.
    requests: Vec<Request>,
    /// Tasks that it is needed for.
    pub(super) tasks: u32,
}

#[derive(Debug)]
enum State {
    Opening,
    Open(Box<dyn Channel>, #[allow(dead_code)] Vec<Watch>),
    /// It could not be opened.
    Failed,
}

/// All ways, by the numbers of their seats.
#[derive(Debug)]
pub(super) struct Ways {
    waker: Arc<Waker>,
    list: Vec<Option<Box<Way>>>,
    /// Those with requests to be submitted.
    touched: Vec<u32>,
    /// Those with requests in flight.
    active: Vec<u32>,
}

impl Way {
    /// Whether requests can be sent: `None` if that is not known yet.
    #[inline]
    pub(super) fn is_open(&self) -> Option<bool> {
        match self.channel {
            State::Open(..) => Some(true),
            State::Opening => None,
            State::Failed => Some(false),
        }
    }

    /// Sends `request` at the end of the burst. True if it is the first one.
    #[inline]
    pub(super) fn push(&mut self, request: Request) -> bool {
        self.requests.push(request);
        self.requests.len() == 1
    }

    /// A task needs it no more.
    #[inline]
    pub(super) fn leave(&mut self) {
        self.tasks = self.tasks.saturating_sub(1);
    }
}

impl Ways {
    pub(super) fn new(waker: &Arc<Waker>) -> Self {
        Self {
            waker: Arc::clone(waker),
            list: Vec::new(),
            touched: Vec::new(),
            active: Vec::new(),
        }
    }

    /// The way to the unit in seat `number`.
    #[inline]
    pub(super) fn get(&mut self, number: u32) -> Option<&mut Way> {
        self.list.get_mut(number as usize)?.as_deref_mut()
    }

    /// One more task needs the way to the unit in `seat`, if there is one.
    #[inline]
    pub(super) fn rejoin(&mut self, seat: &Arc<Seat>) -> Option<&mut Way> {
        let way = self.get(seat.number)?;
        if !Arc::ptr_eq(&way.seat, seat) {
            return None;
        }
        way.tasks += 1;
        Some(way)
    }

    /// One more task needs the way to the unit in `seat`, which is opened if need be, for
    /// this queue. `None` if another one is still in its place: try again later.
    #[cold]
    pub(super) fn join(&mut self, seat: &Arc<Seat>, face: &Face, queue: u16) -> Option<&mut Way> {
        let place = self.list.get(seat.number as usize);
        let is_there = match place.and_then(Option::as_ref) {
            Some(way) => Arc::ptr_eq(&way.seat, seat) || way.tasks > 0,
            None => false,
        };
        if !is_there {
            self.open(seat, face.board().mailbox(queue));
        }
        self.rejoin(seat)
    }

    /// Opens a channel, on a thread of its own: that may take long.
    #[cold]
    fn open(&mut self, seat: &Arc<Seat>, mailbox: Option<Arc<dyn Mailbox>>) {
        let number = seat.number as usize;
        if self.list.len() <= number {
            self.list.resize_with(number + 1, || None);
        }
        let mut way = Box::new(Way {
            seat: Arc::clone(seat),
            lane: seat.nexus.unit().gate().lane(),
            channel: State::Opening,
            requests: Vec::new(),
            tasks: 0,
        });
        let theirs = Arc::clone(seat);
        let open = move || {
            let channel = theirs.disk().channel();
            if let Err(error) = &channel {
                tracing::error!(%error, "a disk has no channel for a queue");
            }
            if let Some(mailbox) = mailbox {
                mailbox.post(Letter(Note::Opened {
                    seat: theirs,
                    channel: channel.ok(),
                }));
            }
        };
        let thread = std::thread::Builder::new().name("channel".to_owned());
        if let Err(error) = thread.spawn(open) {
            tracing::error!(%error, "no thread to open a channel");
            way.channel = State::Failed;
        }
        if let Some(place) = self.list.get_mut(number) {
            close(place.replace(way));
        }
    }

    /// The channel that was asked for, or none.
    pub(super) fn opened(&mut self, seat: &Arc<Seat>, channel: Option<Box<dyn Channel>>) {
        let place = self.list.get_mut(seat.number as usize);
        let Some(way) = place.and_then(Option::as_mut) else {
            return;
        };
        // It may be one that was asked for before another unit came to this place.
        if !matches!(way.channel, State::Opening) || !Arc::ptr_eq(&way.seat, seat) {
            return;
        }
        let Some(channel) = channel else {
            way.channel = State::Failed;
            return;
        };
        let watched: std::io::Result<Vec<_>> = channel
            .fds()
            .iter()
            .map(|fd| self.waker.watch(Kick::Event(fd.try_clone_to_owned()?)))
            .collect();
        way.channel = match watched {
            Ok(watched) => State::Open(channel, watched),
            Err(error) => {
                tracing::error!(%error, "a disk's channel cannot be watched");
                State::Failed
            }
        };
    }

    /// Numbers of the seats with ways to units at `address`.
    pub(super) fn at(&self, address: Address) -> Vec<u32> {
        let ways = self.list.iter().flatten();
        let there = ways.filter(|way| way.seat.address == address);
        there.map(|way| way.seat.number).collect()
    }

    /// The way to the unit in seat `number` has requests now.
    #[inline]
    pub(super) fn touch(&mut self, number: u32) {
        self.touched.push(number);
    }

    /// Submits what was pushed, if anything was.
    #[inline]
    pub(super) fn submit(&mut self) {
        if !self.touched.is_empty() {
            self.submit_all();
        }
    }

    fn submit_all(&mut self) {
        let Self {
            list,
            touched,
            active,
            ..
        } = self;
        for number in touched.drain(..) {
            let way = list.get_mut(number as usize).and_then(Option::as_mut);
            if let Some(way) = way
                && let State::Open(channel, _) = &mut way.channel
            {
                channel.submit(&mut way.requests);
                if !active.contains(&number) {
                    active.push(number);
                }
            }
        }
    }

    /// Adds what is done to `done`.
    #[inline]
    pub(super) fn reap(&mut self, done: &mut Vec<Done>) {
        let list = &mut self.list;
        self.active.retain(|&number| {
            let way = list.get_mut(number as usize).and_then(Option::as_mut);
            match way.map(|way| &mut way.channel) {
                Some(State::Open(channel, _)) => {
                    channel.reap(done);
                    channel.in_flight() > 0
                }
                _ => false,
            }
        });
    }

    /// Somebody waits for the end of everything.
    pub(super) fn hurry(&mut self) {
        for way in self.list.iter_mut().flatten() {
            if let State::Open(channel, _) = &mut way.channel {
                channel.hurry();
            }
        }
    }

    /// Whether nothing is in flight.
    #[inline]
    pub(super) fn is_quiet(&self) -> bool {
        self.active.is_empty()
    }

    /// The worker is about to sleep.
    pub(super) fn arm(&mut self) -> Quiet {
        let mut quiet = Quiet::Kicked;
        for number in &self.active {
            let way = self.list.get_mut(*number as usize);
            if let Some(Some(way)) = way
                && let State::Open(channel, _) = &mut way.channel
            {
                quiet = quiet.and(channel.arm());
            }
        }
        quiet
    }

    /// Forgets the ways to units that are not there any more and that no task needs. True if there
    /// are some that tasks still need.
    #[cold]
    pub(super) fn prune(&mut self, domain: &Domain) -> bool {
        let mut needed = false;
        for place in &mut self.list {
            match place {
                Some(way) if domain.has(&way.seat) => {}
                Some(way) if way.tasks > 0 => needed = true,
                _ => close(place.take()),
            }
        }
        needed
    }
}

/// Closes the channel of a way that no task needs. That may take long.
fn close(way: Option<Box<Way>>) {
    if let Some(way) = way {
        let thread = std::thread::Builder::new().name("channel".to_owned());
        // Without a thread it is closed here.
        let _ = thread.spawn(move || drop(way));
    }
}
