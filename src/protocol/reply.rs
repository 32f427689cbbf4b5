//! What goes back to a front-end.

use super::payload::{Number, Payload};
use super::{ConfigSpace, FLAG_REPLY, Inflight, Message, VERSION, VringState};

/// The payload of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A number; as the answer to NEED_REPLY, 0 is success.
    U64(u64),
    /// A ring and its base.
    Vring(VringState),
    /// A piece of the configuration space.
    Config(ConfigSpace),
    /// A buffer for requests in flight, which comes with the reply.
    Inflight(Inflight),
    /// Nothing: GET_CONFIG failed.
    Empty,
}

impl Reply {
    /// The message that answers request `number` with this.
    pub fn to_message(&self, number: u32) -> Message {
        let payload = match self {
            Self::U64(number) => Number(*number).emit(),
            Self::Vring(state) => state.emit(),
            Self::Config(config) => config.emit(),
            Self::Inflight(inflight) => inflight.emit(),
            Self::Empty => Vec::new(),
        };
        Message {
            request: number,
            flags: VERSION | FLAG_REPLY,
            payload,
        }
    }

    /// What a reply's payload says, judged by the request that it answers; `None` if it has a
    /// form that is not known here.
    pub fn parse(message: &Message) -> Option<Self> {
        let payload = message.payload.as_slice();
        if payload.is_empty() {
            return Some(Self::Empty);
        }
        match message.request {
            11 | 45 => VringState::parse(payload).map(Self::Vring),
            31 => Inflight::parse(payload).map(Self::Inflight),
            24 => ConfigSpace::parse(payload).ok().map(Self::Config),
            _ => Number::parse(payload).map(|number| Self::U64(number.0)),
        }
    }
}
