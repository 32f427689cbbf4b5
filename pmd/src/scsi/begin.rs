//! New commands: taken from the ring, understood, begun.

use std::sync::Arc;
use std::time::Instant;

use vvu::memory::{Scatter, copy};

use super::domain::{Address, Domain, Seat, Target};
use super::queue::{BURST, Work};
use super::target::{Call, DataOut, Job, Luns, Missing, Sense, Status, Step, Transfer, WellKnown};
use super::tasks::{Extra, Task};
use super::wire::{self, Code, Head, Header, Lister, REQUEST, RESPONSE};
use crate::bdev::{Op, Request};
use crate::stats::latency::Ages;
use crate::vring::{Chain, Format, Keep, RingOf, Taken};

/// A command as it came, with the sizes of its parts in bytes.
struct Arrived<'a> {
    taken: &'a Taken,
    chain: &'a Chain,
    header: Header,
    /// What comes before the data.
    request: u32,
    response: u32,
    /// Data from the driver, and room for data to it.
    data_out: u32,
    data_in: u32,
}

impl<'a> Arrived<'a> {
    fn cdb(&self) -> &[u8] {
        let len = (self.request - REQUEST) as usize;
        let cdb = &self.header.cdb;
        cdb.get(..len).unwrap_or(cdb)
    }

    /// Room for data of the only kind that it has.
    fn room(&self) -> u32 {
        self.data_in.max(self.data_out)
    }

    /// Writes a response and data behind it, and returns how many bytes that are.
    fn respond(&self, status: u8, code: Code, sense: &[u8], data: &[u8]) -> u32 {
        let writable = || self.taken.writable(self.chain);
        let len = sense.len().min((self.response - RESPONSE) as usize);
        let sense = sense.get(..len).unwrap_or_default();
        let moved = data.len().min(self.data_in as usize) as u32;
        let residual = self.room() - moved;
        let head = wire::response(len as u32, residual, status, code);
        wire::write(writable(), 0, &head);
        wire::write(writable(), RESPONSE, sense);
        wire::write(writable(), self.response, data);
        self.response + moved
    }

    /// What is kept of the memory of a command: its response, and the data of `transfer`.
    fn keep(&self, transfer: Transfer) -> Keep {
        // No longer than its buffers: the target has seen to that.
        let len = transfer.len as u32;
        let data = |start: u32| start..start.saturating_add(len);
        let mut keep = Keep {
            tail: 0..self.response,
            ..Keep::default()
        };
        if transfer.write {
            keep.read = data(self.request);
        } else {
            keep.write = data(self.response);
        }
        keep
    }
}

/// The data that it brings, while its chain is taken.
impl DataOut for Arrived<'_> {
    fn read_at(&self, at: u64, into: &mut [u8]) -> bool {
        let skip = at.saturating_add(self.request.into());
        wire::read(self.taken.readable(self.chain), skip, into) == into.len()
    }
}

/// The lengths that the driver chose.
#[derive(Clone, Copy)]
struct Lengths {
    cdb: u32,
    sense: u32,
}

impl Work {
    /// One round. Returns how many chains were taken and given back.
    #[inline]
    pub(super) fn round<F: Format>(&mut self, ring: &mut RingOf<F>, take: bool) -> usize {
        let mut count = 0;
        self.keep_up();
        if !self.held.is_empty() {
            count += self.try_held();
        }
        if take {
            count += self.take(ring);
        }
        self.ways.submit();
        if !self.ways.is_quiet() {
            count += self.reap(ring);
            self.ways.submit();
        }
        for (chain, len) in self.over.drain(..) {
            ring.give_back_kept(&chain, len);
            count += 1;
        }
        count
    }

    /// Looks whether the domain has changed.
    #[inline]
    fn keep_up(&mut self) {
        if self.version != self.face.version() {
            self.refresh();
        }
    }

    /// The domain has changed.
    #[cold]
    fn refresh(&mut self) {
        // The version first: a change in between is seen the next time.
        self.version = self.face.version();
        self.domain = self.face.domain();
        if self.ways.prune(&self.domain) {
            // Looks again.
            self.version = self.version.wrapping_sub(1);
        }
    }

    /// Takes up to a burst of chains and begins what they ask for. Returns how many there were.
    #[inline(never)]
    fn take<F: Format>(&mut self, ring: &mut RingOf<F>) -> usize {
        let most = self.tasks.room().min(BURST);
        let count = if most == 0 { 0 } else { ring.take_burst(most) };
        if count > 0 {
            // Whatever the driver knew when it made the chains available is known here, too.
            self.keep_up();
            self.begin_all(ring.taken());
            ring.keep_all();
        }
        if !self.orders.is_empty() && count < most {
            // All that came before the orders was taken by now.
            self.orders.clear();
        }
        count
    }

    /// Begins what all chains ask for.
    #[inline]
    fn begin_all(&mut self, taken: &Taken) {
        let lengths = Lengths {
            cdb: self.face.sizes.cdb(),
            sense: self.face.sizes.sense(),
        };
        self.ages = Ages::until(Instant::now());
        let domain = Arc::clone(&self.domain);
        for chain in taken.chains() {
            let written = match self.arrive(taken, chain, lengths) {
                Some(arrived) => {
                    let address = Address::parse(arrived.header.lun);
                    let target = address.and_then(|at| domain.target(at.target));
                    match address.zip(target) {
                        Some((address, target)) => self.begin(&arrived, address, target),
                        None => Some(self.elsewhere(&arrived, &domain)),
                    }
                }
                None => Some(0),
            };
            if let Some(len) = written {
                self.over.push((*chain, len));
            }
        }
    }

    /// Looks at a chain. `None` if nobody could answer it.
    #[inline]
    fn arrive<'a>(
        &self,
        taken: &'a Taken,
        chain: &'a Chain,
        lengths: Lengths,
    ) -> Option<Arrived<'a>> {
        let (request, response) = (REQUEST + lengths.cdb, RESPONSE + lengths.sense);
        let sizes = (
            chain.read_len().checked_sub(request),
            chain.write_len().checked_sub(response),
        );
        let (Some(data_out), Some(data_in)) = sizes else {
            self.stats.malformed.add(1);
            return None;
        };
        let first = taken.readable(chain).next();
        let whole = first.filter(|_| request as usize >= size_of::<Head>());
        let head = whole.and_then(copy::read_array);
        Some(Arrived {
            taken,
            chain,
            header: Header::parse(&head.unwrap_or_else(|| in_parts(taken, chain, request))),
            request,
            response,
            data_out,
            data_in,
        })
    }

    /// Begins a command. Returns how many bytes were written if it has ended already.
    #[inline(always)]
    fn begin(&mut self, arrived: &Arrived<'_>, address: Address, target: &Target) -> Option<u32> {
        if !self.orders.is_empty()
            && let Some(code) = self.ordered(address, arrived.header.tag)
        {
            return Some(self.misdirected(arrived, code));
        }
        if arrived.data_in > 0 && arrived.data_out > 0 {
            return Some(self.misdirected(arrived, Code::Failure));
        }
        let call = Call {
            cdb: arrived.cdb(),
            data_in: arrived.data_in.into(),
            data_out: arrived.data_out.into(),
            out: arrived,
            luns: &target.luns,
        };
        let Some(seat) = target.seat(address.lun) else {
            return Some(self.missing(arrived, &call));
        };
        match seat.nexus.execute(&call) {
            Step::Move(transfer) => self.transfer(arrived, seat, transfer),
            Step::Job(job) => self.job(arrived, seat, job),
            step => Some(self.at_once(arrived, step, Some(seat))),
        }
    }

    /// Answers what is for no unit of a target.
    #[cold]
    fn missing(&self, arrived: &Arrived<'_>, call: &Call<'_>) -> u32 {
        self.at_once(arrived, Missing.execute(call), None)
    }

    /// Answers what is for no target's unit: for the well known one, or for nobody.
    #[cold]
    fn elsewhere(&self, arrived: &Arrived<'_>, domain: &Domain) -> u32 {
        let unit = match Lister::parse(arrived.header.lun) {
            Some(Lister::Device) => {
                let units = domain.seats().map(|seat| seat.address.bytes());
                Some(WellKnown::of_all(units))
            }
            Some(Lister::Target(number)) => {
                let target = domain.target(number);
                target.map(|target| WellKnown::of_target(&target.luns, u16::from(number) + 1))
            }
            None => None,
        };
        let Some(unit) = unit else {
            return self.misdirected(arrived, Code::BadTarget);
        };
        if arrived.data_in > 0 && arrived.data_out > 0 {
            return self.misdirected(arrived, Code::Failure);
        }
        let step = unit.execute(&Call {
            cdb: arrived.cdb(),
            data_in: arrived.data_in.into(),
            data_out: arrived.data_out.into(),
            out: arrived,
            luns: &Luns::default(),
        });
        self.at_once(arrived, step, None)
    }

    /// Answers what never came to a unit, or not in time.
    #[cold]
    fn misdirected(&self, arrived: &Arrived<'_>, code: Code) -> u32 {
        match code {
            Code::Aborted | Code::Reset => self.stats.aborted.add(1),
            _ => self.stats.misdirected.add(1),
        }
        arrived.respond(0, code, &[], &[])
    }

    /// Answers what has ended already.
    #[inline(never)]
    fn at_once(&self, arrived: &Arrived<'_>, step: Step, seat: Option<&Arc<Seat>>) -> u32 {
        let Step::Done(answer) = step else {
            return self.misdirected(arrived, Code::Overrun);
        };
        self.stats.answered(&answer);
        let sense = answer.sense.map(|sense| sense_bytes(seat, &sense));
        let sense = sense.unwrap_or_default();
        arrived.respond(answer.status as u8, Code::Ok, &sense, &answer.data)
    }

    /// The unit's place is still taken by one that was there before: it will not be for long.
    #[cold]
    fn busy(&self, arrived: &Arrived<'_>) -> u32 {
        self.stats.refused.add(1);
        arrived.respond(Status::Busy as u8, Code::Ok, &[], &[])
    }

    /// Begins a command that only moves its data.
    #[inline]
    fn transfer(
        &mut self,
        arrived: &Arrived<'_>,
        seat: &Arc<Seat>,
        transfer: Transfer,
    ) -> Option<u32> {
        let way = match self.ways.rejoin(seat) {
            Some(way) => way,
            None => match self.ways.join(seat, &self.face, self.index) {
                Some(way) => way,
                None => return Some(self.busy(arrived)),
            },
        };
        // There is one for each chain: no more were taken.
        let mut list = self.tasks.list()?;
        let keep = arrived.keep(transfer);
        arrived.taken.keep(arrived.chain, keep, &mut list);
        let Transfer {
            write,
            offset,
            len,
            fua,
        } = transfer;
        let sent = way.is_open() == Some(true) && (!write || way.lane.enter());
        let number = self.tasks.put(Task {
            chain: *arrived.chain,
            at: self.ages.now(),
            tag: arrived.header.tag,
            seat: seat.number,
            room: arrived.room(),
            len: len as u32,
            write,
            inside: sent && write,
            in_flight: sent,
            ends: None,
            extra: None,
        })?;
        let op = if write { Op::Write } else { Op::Read };
        let request = Request {
            token: number.into(),
            op,
            offset,
            len,
            data: Some(list),
            fua,
        };
        if sent {
            if way.push(request) {
                self.ways.touch(seat.number);
            }
        } else {
            self.send(number, request);
        }
        None
    }

    /// Begins a command that takes several steps.
    #[cold]
    fn job(&mut self, arrived: &Arrived<'_>, seat: &Arc<Seat>, job: Job) -> Option<u32> {
        if self.ways.join(seat, &self.face, self.index).is_none() {
            return Some(self.busy(arrived));
        }
        let mut sent = self.tasks.list()?;
        let keep = Keep {
            read: arrived.request..arrived.chain.read_len(),
            write: 0..0,
            tail: 0..arrived.response,
        };
        arrived.taken.keep(arrived.chain, keep, &mut sent);
        let own = job.transfer().map(|transfer| {
            let mut own = Box::new(Scatter::of_table(Arc::default()));
            let keep = arrived.keep(transfer);
            let keep = Keep { tail: 0..0, ..keep };
            arrived.taken.keep(arrived.chain, keep, &mut own);
            own
        });
        let number = self.tasks.put(Task {
            chain: *arrived.chain,
            at: self.ages.now(),
            tag: arrived.header.tag,
            seat: seat.number,
            room: arrived.room(),
            len: 0,
            write: false,
            inside: false,
            in_flight: false,
            ends: None,
            extra: Some(Box::new(Extra {
                job: Some(job),
                sent: Some(sent),
                own,
                ..Extra::default()
            })),
        })?;
        self.run(number, Ok(()));
        None
    }
}

/// The first bytes of a request of so many bytes before its data, wherever they are.
#[cold]
fn in_parts(taken: &Taken, chain: &Chain, request: u32) -> Head {
    let mut head = [0; size_of::<Head>()];
    let len = head.len().min(request as usize);
    let there = head.get_mut(..len).unwrap_or_default();
    wire::read(taken.readable(chain), 0, there);
    head
}

/// Sense data as the unit makes them; those of no unit in fixed format.
pub(super) fn sense_bytes(seat: Option<&Arc<Seat>>, sense: &Sense) -> Vec<u8> {
    match seat {
        Some(seat) => seat.nexus.unit().sense_bytes(sense),
        None => sense.bytes(false),
    }
}
