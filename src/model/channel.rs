//! Requests of the driver's to the front-end, where that listens to them, and the answers.
//!
//! The front-end hands over a socket (SET_BACKEND_REQ_FD) and may do there what it likes: it loses
//! the channel, never more. Nothing is read there but an answer that is due: the front-end has the
//! same socket, and whoever reads one keeps others waiting, for as long as its memory likes.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};

use super::device::{BUDGET, Locked};
use super::messages::{self, Refusal};
use super::{CHANNEL, Shared};
use crate::protocol::{FLAG_REPLY, Message, VERSION, VERSION_MASK};
use crate::socket::{Gone, Incoming, Received, SendError, Wire, check_stream};

/// Where a front-end hears requests of the driver's.
#[derive(Debug)]
pub(super) struct Channel {
    wire: Wire,
    /// Requests that want an answer, and have none yet.
    asked: u32,
    /// An answer that waits for a buffer of the driver's. Nothing is read meanwhile.
    answer: Option<Message>,
    watched: bool,
}

impl Channel {
    /// Watches it while an answer is due and can be taken, and only then.
    fn watch(&mut self, shared: &Shared) -> rustix::io::Result<()> {
        let wanted = self.asked > 0 && self.answer.is_none();
        if wanted == self.watched {
            return Ok(());
        }
        let data = EventData::new_u64(CHANNEL);
        match wanted {
            true => epoll::add(&shared.epoll, self.wire.fd(), data, EventFlags::IN)?,
            // The front-end has the same socket: closing ours would not take it out.
            false => epoll::delete(&shared.epoll, self.wire.fd())?,
        }
        self.watched = wanted;
        Ok(())
    }
}

impl Locked<'_> {
    /// The front-end listens there from now on, and nowhere else.
    pub(super) fn keep_channel(
        &mut self,
        message: &Message,
        mut fds: Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        messages::parse(message)?;
        let found = fds.len();
        let (Some(socket), 1) = (fds.pop(), found) else {
            return Err(Refusal::Fds { found, expected: 1 });
        };
        check_stream(socket.as_fd()).map_err(Refusal::NotSocket)?;
        self.drop_channel();
        self.state.channel = Some(Channel {
            wire: Wire::new(socket),
            asked: 0,
            answer: None,
            watched: false,
        });
        Ok(())
    }

    /// Closes the channel, if there is one.
    pub(super) fn drop_channel(&mut self) {
        if let Some(channel) = self.state.channel.take()
            && channel.watched
        {
            let _ = epoll::delete(&self.shared.epoll, channel.wire.fd());
        }
    }

    /// Closes it because of something that must be known.
    fn lose_channel(&mut self, what: &str) {
        self.drop_channel();
        self.state.counters.channels_lost += 1;
        tracing::warn!(what, "the driver's requests reach nobody any more");
        self.complain(format!("the channel for the driver's requests: {what}"));
    }

    /// Sends a request of the driver's, if anybody listens. A front-end that does not read what is
    /// there already has had its chance.
    pub(super) fn request(&mut self, bytes: &[u8], asks: bool) {
        let Some(channel) = &mut self.state.channel else {
            self.state.counters.discarded += 1;
            return;
        };
        match channel.wire.send_some(bytes, None) {
            Ok(sent) if sent == bytes.len() => {
                channel.asked = channel.asked.saturating_add(asks.into());
                self.state.counters.sent += 1;
                return self.watch_channel();
            }
            Ok(_) => self.lose_channel("the front-end does not read it"),
            Err(SendError::Closed) => self.drop_channel(),
            Err(SendError::Failed(what)) => self.lose_channel(&what),
        }
        self.state.counters.discarded += 1;
    }

    fn watch_channel(&mut self) {
        let channel = self.state.channel.as_mut();
        if let Some(Err(errno)) = channel.map(|channel| channel.watch(self.shared)) {
            self.lose_channel(&format!("it cannot be watched: {errno}"));
        }
    }

    /// The front-end answers, or is gone.
    pub(super) fn channel_ready(&mut self) {
        for _ in 0..BUDGET {
            let channel = self.state.channel.as_mut();
            let Some(channel) = channel.filter(|channel| channel.watched) else {
                return;
            };
            match channel.wire.receive() {
                Ok(Received::Message(incoming)) => self.answered(incoming),
                Ok(Received::Nothing) => return,
                Err(Gone::Closed) => self.drop_channel(),
                Err(Gone::Violation(what) | Gone::Failed(what)) => self.lose_channel(&what),
            }
        }
    }

    /// An answer to a request of the driver's, or so it should be.
    fn answered(&mut self, incoming: Incoming) {
        let Incoming { message, attached } = incoming;
        let Some(channel) = &mut self.state.channel else {
            return;
        };
        let flags = message.flags & (VERSION_MASK | FLAG_REPLY);
        if flags != VERSION | FLAG_REPLY || !attached.is_empty() {
            let what = format!(
                "what should be an answer is message {} with flags {:#x} and {} file descriptors",
                message.request,
                message.flags,
                attached.len()
            );
            return self.lose_channel(&what);
        }
        channel.asked = channel.asked.saturating_sub(1);
        channel.answer = Some(message);
        self.deliver_answer();
        self.watch_channel();
    }

    /// Gives an answer that waits to the driver, if there is a buffer for it.
    pub(super) fn deliver_answer(&mut self) {
        let channel = self.state.channel.as_ref();
        let Some(answer) = channel.and_then(|channel| channel.answer.as_ref()) else {
            return;
        };
        if !self.state.is_running() || self.shared.faults.holds_rx() {
            return;
        }
        let put = self.put(&answer.to_bytes());
        let delivered = match put {
            Ok(delivered) => delivered,
            Err(error) => return self.broken(0, &error),
        };
        let state = &mut *self.state;
        // The driver's queue may have turned out to be broken, which ended it.
        let Some(channel) = &mut state.channel else {
            return;
        };
        if delivered {
            channel.answer = None;
            state.counters.delivered += 1;
            self.watch_channel();
        }
    }
}
