//! One verifier: what it knows of both ways, and what it says.

use std::time::Instant;

use super::ledger::Ledger;
use super::source::Source;
use super::{BURST, wait};
use crate::guest::GuestError;
use crate::guest::args::{MAX_FRAME, MIN_FRAME};
use crate::guest::frames::{self, ANYBODY, Header, Kind, Seen};
use crate::guest::machine::Machine;
use crate::guest::report::{Account, Clock};
use crate::guest::tether::Woken;
use crate::guest::wrap::{Found, NONE, Request, SEGMENT, Unwrapper};

/// Receive buffers that are left for everything but data.
const SPARE: usize = 4;

/// What a verifier says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Greeting {
    /// Whether it wants to hear the same of us.
    wanted: bool,
    /// Receive buffers, their length, and the longest frame.
    buffers: u16,
    pub(super) buffer_len: u16,
    pub(super) max_frame: u16,
}

impl Greeting {
    pub(super) fn to_value(self) -> u64 {
        let [a, b] = self.buffers.to_le_bytes();
        let [c, d] = self.buffer_len.to_le_bytes();
        let [e, f] = self.max_frame.to_le_bytes();
        u64::from_le_bytes([self.wanted.into(), 0, a, b, c, d, e, f])
    }

    fn from_value(value: u64) -> Self {
        let [wanted, _, a, b, c, d, e, f] = value.to_le_bytes();
        Self {
            wanted: wanted != 0,
            buffers: u16::from_le_bytes([a, b]),
            buffer_len: u16::from_le_bytes([c, d]),
            max_frame: u16::from_le_bytes([e, f]),
        }
    }

    /// How many frames of `len` bytes may be on their way, with as many answers to those that it
    /// sends itself.
    ///
    /// Those that are longer than any Ethernet's come in segments, or not.
    pub(super) fn window(&self, len: usize) -> u64 {
        let most = match len > usize::from(MAX_FRAME) {
            true => self.buffer_len.min(*SEGMENT.start()),
            false => self.buffer_len,
        };
        let each = (len + 12).div_ceil(usize::from(most.max(1))) + 1;
        let room = usize::from(self.buffers).saturating_sub(SPARE);
        (room / each).max(1) as u64
    }
}

/// Who is at the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Partner {
    Unknown,
    /// We are: the back-end sends our frames back.
    Ourselves,
    Other {
        origin: u64,
        mac: [u8; 6],
        greeting: Greeting,
    },
}

/// One verifier's view of both ways.
pub(super) struct Verifier {
    origin: u64,
    mac: [u8; 6],
    epoch: u16,
    pub(super) greeting: Greeting,
    pub(super) partner: Partner,
    ledger: Ledger,
    /// The number of the next frame, and all before which the partner knows.
    pub(super) next: u64,
    pub(super) acked: u64,
    bytes_sent: u64,
    corrupt: u64,
    foreign: u64,
    /// On their way to the partner when a connection broke.
    interrupted: u64,
    /// What to say, once.
    say_hello: bool,
    say_ack: bool,
    say_verdict: bool,
    /// Whether we still want to hear the partner's Hello.
    want_hello: bool,
    pub(super) partner_done: bool,
    verdict: Option<u64>,
    frame: Vec<u8>,
    unwrapper: Unwrapper,
    /// Packets of ours that arrived as they were sent, longer than any Ethernet's.
    long: u64,
    /// What was first wrong with a packet.
    pub(super) mistake: Option<&'static str>,
}

impl Verifier {
    pub(super) fn new(machine: &Machine<'_>) -> Self {
        let (buffers, buffer_len) = machine.receive_buffers();
        Self {
            origin: fastrand::u64(..),
            mac: machine.mac(),
            epoch: 0,
            greeting: Greeting {
                wanted: true,
                buffers,
                buffer_len: u16::try_from(buffer_len).unwrap_or(u16::MAX),
                max_frame: machine.max_frame() as u16,
            },
            partner: Partner::Unknown,
            ledger: Ledger::default(),
            next: 0,
            acked: 0,
            bytes_sent: 0,
            corrupt: 0,
            foreign: 0,
            interrupted: 0,
            say_hello: false,
            say_ack: false,
            say_verdict: false,
            want_hello: true,
            partner_done: false,
            verdict: None,
            frame: Vec::new(),
            unwrapper: Unwrapper::default(),
            long: 0,
            mistake: None,
        }
    }

    /// Takes note of a frame that arrived, which may be, or be a part of, a packet around one of
    /// ours.
    fn arrived(&mut self, frame: &[u8], request: &Request) {
        match self.unwrapper.take(frame, request) {
            Found::Bare => self.see(frame),
            Found::Part => {}
            Found::Whole(ours) => {
                let [_, gso, ..] = *request;
                self.long += u64::from(gso != 0);
                self.see(&ours);
            }
            Found::Wrong(what) => {
                self.corrupt += 1;
                self.mistake.get_or_insert(what);
            }
        }
    }

    /// Takes note of a frame of anybody's.
    fn see(&mut self, frame: &[u8]) {
        let Some(seen) = frames::parse(frame) else {
            self.foreign += 1;
            return;
        };
        if !frames::is_whole(frame, &seen) {
            self.corrupt += 1;
            return;
        }
        let from = seen.header.origin;
        match self.partner {
            Partner::Unknown if seen.header.kind == Kind::Hello => self.meet(&seen),
            Partner::Ourselves if from == self.origin => self.own(&seen),
            Partner::Other { origin, .. } if from == origin => self.theirs(&seen),
            _ => self.foreign += 1,
        }
    }

    fn meet(&mut self, seen: &Seen) {
        if seen.header.origin == self.origin {
            self.partner = Partner::Ourselves;
            self.want_hello = false;
            self.ledger.resync(self.epoch, 0);
        } else {
            self.hello(seen);
        }
    }

    fn hello(&mut self, seen: &Seen) {
        let greeting = Greeting::from_value(seen.header.value);
        self.partner = Partner::Other {
            origin: seen.header.origin,
            mac: seen.header.source,
            greeting,
        };
        self.want_hello = false;
        let news = self.ledger.resync(seen.header.epoch, seen.header.sequence);
        if news && greeting.wanted {
            // Its connection broke: what was on its way to it may be lost.
            self.begin_epoch();
        }
        self.say_hello |= greeting.wanted;
    }

    /// One of our own frames came back.
    fn own(&mut self, seen: &Seen) {
        let Header {
            epoch, sequence, ..
        } = seen.header;
        match seen.header.kind {
            Kind::Data => self.ledger.arrived(epoch, sequence, seen.len),
            Kind::Sync | Kind::Done if epoch == self.epoch => {
                self.ledger.upto(sequence);
                self.partner_done |= seen.header.kind == Kind::Done;
            }
            _ => {}
        }
        self.acked = self.ledger.expected().min(self.next);
    }

    /// A frame of the other verifier.
    fn theirs(&mut self, seen: &Seen) {
        let header = seen.header;
        match header.kind {
            Kind::Hello => self.hello(seen),
            Kind::Data if header.destination != self.mac => self.foreign += 1,
            Kind::Data => {
                self.ledger.arrived(header.epoch, header.sequence, seen.len);
                self.say_ack = true;
            }
            Kind::Ack if header.value <= self.next => self.acked = self.acked.max(header.value),
            Kind::Sync => {
                self.ledger.upto(header.sequence);
                self.say_ack = true;
            }
            Kind::Done => {
                self.ledger.upto(header.sequence);
                self.partner_done = true;
                self.say_verdict = true;
            }
            Kind::Verdict => self.verdict = Some(header.value),
            _ => {}
        }
    }

    /// What was on its way may be lost or come twice.
    fn begin_epoch(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        self.interrupted += self.next - self.acked;
        self.acked = self.next;
    }

    /// Our connection broke and is back.
    fn reconnected(&mut self) {
        self.begin_epoch();
        if self.partner == Partner::Ourselves {
            self.ledger.resync(self.epoch, self.next);
        } else {
            self.ledger.broke();
            self.want_hello = true;
        }
    }

    /// What is wrong with the frames that came to us.
    fn problems(&self) -> u64 {
        self.ledger.lost() + self.ledger.duplicated + self.ledger.reordered + self.corrupt
    }

    fn header(&self, kind: Kind, value: u64) -> Header {
        let destination = match self.partner {
            Partner::Other { mac, .. } => mac,
            _ => ANYBODY,
        };
        Header {
            destination,
            source: self.mac,
            kind,
            epoch: self.epoch,
            origin: self.origin,
            sequence: self.next,
            value,
        }
    }

    /// Says one thing, if there is room; whether it was said.
    pub(super) fn say(
        &mut self,
        machine: &mut Machine<'_>,
        kind: Kind,
        value: u64,
    ) -> Result<bool, GuestError> {
        self.frame.clear();
        self.frame.resize(MIN_FRAME.into(), 0);
        let header = self.header(kind, value);
        frames::finish(&mut self.frame, &header);
        machine.add(&self.frame, &[])
    }

    /// Looks at what arrived and says what that asks for. Returns whether anything arrived.
    pub(super) fn attend(&mut self, machine: &mut Machine<'_>) -> Result<bool, GuestError> {
        let count = machine.poll(BURST, usize::MAX, |frame, _, request| {
            self.arrived(frame, request);
        })?;
        if self.say_hello {
            let greeting = Greeting {
                wanted: false,
                ..self.greeting
            };
            self.say_hello = !self.say(machine, Kind::Hello, greeting.to_value())?;
        }
        if self.say_ack {
            self.say_ack = !self.say(machine, Kind::Ack, self.ledger.expected())?;
        }
        if self.say_verdict {
            self.say_verdict = !self.say(machine, Kind::Verdict, self.problems())?;
        }
        machine.flush();
        Ok(count > 0)
    }

    /// Waits a moment. `false` if a signal says to stop.
    pub(super) fn rest(
        &mut self,
        machine: &mut Machine<'_>,
        clock: &mut Clock,
        until: Instant,
    ) -> Result<bool, GuestError> {
        // Frames that were taken are no reason to wake, unless there is no room without them.
        let room = !machine.has_room()?;
        match wait(machine, clock, until, room)? {
            Woken::Stopped => return Ok(false),
            Woken::Reconnected => self.reconnected(),
            Woken::Ready | Woken::Late => {}
        }
        Ok(true)
    }

    pub(super) fn account(&self, seed: u64) -> Account {
        // Those that would have come back are in the ledger already.
        let ours = match self.partner {
            Partner::Ourselves => 0,
            _ => self.interrupted,
        };
        Account {
            sent: self.next,
            data_bytes_sent: self.bytes_sent,
            received: self.ledger.received,
            data_bytes_received: self.ledger.bytes,
            lost: self.ledger.lost(),
            duplicated: self.ledger.duplicated,
            reordered: self.ledger.reordered,
            corrupt: self.corrupt,
            long: self.long,
            interrupted: ours + self.ledger.interrupted,
            foreign: self.foreign,
            missed_by_other_side: self.verdict.unwrap_or(0),
            loops: self.partner == Partner::Ourselves,
            seed,
        }
    }
}

/// What only changes when something gets on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    acked: u64,
    expected: u64,
    epoch: u16,
    partner_done: bool,
    verdict: Option<u64>,
}

impl Verifier {
    pub(super) fn position(&self) -> Position {
        Position {
            acked: self.acked,
            expected: self.ledger.expected(),
            epoch: self.epoch,
            partner_done: self.partner_done,
            verdict: self.verdict,
        }
    }

    /// Whether our side is known to have been heard to its end.
    pub(super) fn is_heard(&self) -> bool {
        match self.partner {
            Partner::Ourselves => self.partner_done,
            _ => self.verdict.is_some(),
        }
    }

    /// Sends data as far as the window and the ring allow; whether any was sent.
    pub(super) fn send_data(
        &mut self,
        machine: &mut Machine<'_>,
        source: &mut Source,
        until: u64,
    ) -> Result<bool, GuestError> {
        machine.turn()?;
        let mut count = 0;
        while count < BURST && self.next < until && machine.has_room()? {
            let wrapping = source.wrapping(machine.features());
            let cuts = source.fill(&mut self.frame, wrapping);
            let header = self.header(Kind::Data, 0);
            frames::finish(&mut self.frame, &header);
            let added = match wrapping {
                None => machine.add_with(&NONE, &self.frame, &cuts)?,
                Some(wrapping) => {
                    let (packet, request) = wrapping.wrap(&self.frame, self.next);
                    machine.add_with(&request, &packet, &cuts)?
                }
            };
            if !added {
                break;
            }
            self.next += 1;
            self.bytes_sent += self.frame.len() as u64;
            count += 1;
        }
        machine.flush();
        Ok(count > 0)
    }

    /// Says once more what was not answered.
    pub(super) fn ask(
        &mut self,
        machine: &mut Machine<'_>,
        all_sent: bool,
    ) -> Result<(), GuestError> {
        if self.want_hello {
            self.say(machine, Kind::Hello, self.greeting.to_value())?;
        }
        if all_sent && !self.is_heard() {
            self.say(machine, Kind::Done, 0)?;
        } else if self.next > self.acked {
            self.say(machine, Kind::Sync, 0)?;
        }
        machine.flush();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greetings_survive_a_round_trip() {
        let greeting = Greeting {
            wanted: true,
            buffers: 256,
            buffer_len: 2048,
            max_frame: 9014,
        };
        assert_eq!(Greeting::from_value(greeting.to_value()), greeting);
        // One buffer for a frame and one for an answer, or five and one.
        assert_eq!(greeting.window(1514), 126);
        assert_eq!(greeting.window(9014), 42);
        let nonsense = Greeting::from_value(0);
        assert_eq!(nonsense.window(9014), 1);
    }
}
