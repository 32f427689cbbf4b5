//! What becomes of commands under way: from what a disk says to the next step, or to the answer.

use std::sync::Arc;
use std::time::Instant;

use vvu::memory::{Area, Mapping, Scatter, copy};

use super::begin::sense_bytes;
use super::face::{Letter, Note};
use super::queue::Work;
use super::stats::OTHER;
use super::target::{Action, Alone, Answer, Desk, Next, Reservations, Transfer};
use super::tasks::{Extra, Moves, Task, Waits};
use super::ways::Ways;
use super::wire::{self, Code, Kept, RESPONSE};
use crate::bdev::{Data, IoError, Op, Request};
use crate::stats::latency::Ages;
use crate::vring::{Format, RingOf};

impl Work {
    /// Sends a request of task `number`, or has it wait until it can be sent.
    pub(super) fn send(&mut self, number: u16, request: Request) {
        let Some(task) = self.tasks.get(number) else {
            return;
        };
        let Some(way) = self.ways.get(task.seat) else {
            return;
        };
        let alone = task.extra.as_ref().is_some_and(|x| x.alone.is_some());
        match way.is_open() {
            Some(true) if !task.write || alone => {}
            Some(true) if way.lane.enter() => task.inside = true,
            Some(false) => return self.fail(number, request),
            _ => return self.hold(number, Waits::Send(request)),
        }
        task.in_flight = true;
        if way.push(request) {
            self.ways.touch(task.seat);
        }
    }

    /// There is no channel, and there will be none.
    #[cold]
    fn fail(&mut self, number: u16, request: Request) {
        self.done(number, Err(IoError::Gone), request.data);
    }

    /// Task `number` waits, and is looked at in each round.
    #[cold]
    fn hold(&mut self, number: u16, waits: Waits) {
        if let Some(task) = self.tasks.get(number) {
            task.extra().waits = waits;
            self.held.push_back(number);
        }
    }

    /// Looks at the tasks that wait. Returns how many could go on.
    #[cold]
    pub(super) fn try_held(&mut self) -> usize {
        let mut count = 0;
        for _ in 0..self.held.len() {
            let Some(number) = self.held.pop_front() else {
                break;
            };
            let Some(task) = self.tasks.get(number) else {
                continue;
            };
            let waiting = self.held.len();
            match std::mem::take(&mut task.extra().waits) {
                Waits::Send(request) => self.send(number, request),
                Waits::Alone if self.close_gate(number) => self.run(number, Ok(())),
                Waits::Alone => {}
                Waits::Barrier(barrier) if barrier.is_clear() => self.run(number, Ok(())),
                Waits::Barrier(barrier) => self.hold(number, Waits::Barrier(barrier)),
                Waits::Saved | Waits::Nothing => {}
            }
            count += usize::from(self.held.len() == waiting);
        }
        count
    }

    /// What the store says of a task that had to be saved.
    pub(super) fn saved(&mut self, number: u16, serial: u64, good: bool) {
        if self.tasks.serial(number) != Some(serial) {
            return;
        }
        if let Some(task) = self.tasks.get(number) {
            task.extra().waits = Waits::Nothing;
            self.run(number, if good { Ok(()) } else { Err(IoError::Io(0)) });
        }
    }

    /// Takes what the disks have done. Returns how many chains were given back for that.
    #[inline(never)]
    pub(super) fn reap<F: Format>(&mut self, ring: &mut RingOf<F>) -> usize {
        let mut done = std::mem::take(&mut self.done);
        self.ways.reap(&mut done);
        if !done.is_empty() {
            self.ages = Ages::until(Instant::now());
        }
        let mut count = 0;
        for one in done.drain(..) {
            let Ok(number) = u16::try_from(one.token) else {
                continue;
            };
            let Self {
                tasks, ways, ages, ..
            } = self;
            match (one.result, one.data, tasks.plain(number)) {
                (Ok(()), Some(list), Some(task)) => {
                    moved(task, &list, ways);
                    let nanos = ages.nanos(task.at);
                    self.stats.moved(task.write, task.len, nanos);
                    ring.give_back_kept(&task.chain, task.chain.write_len());
                    count += 1;
                    tasks.end(number);
                    tasks.put_list(list);
                }
                (result, data, _) => self.done(number, result, data),
            }
        }
        self.done = done;
        count
    }

    /// The disk has answered a request of task `number`.
    #[cold]
    fn done(&mut self, number: u16, result: Result<(), IoError>, data: Data) {
        let Some(task) = self.tasks.get(number) else {
            return;
        };
        task.in_flight = false;
        if std::mem::take(&mut task.inside)
            && let Some(way) = self.ways.get(task.seat)
        {
            way.lane.leave();
        }
        self.went(number, result, data);
    }

    /// A step of a job is done, or a command has failed, or must end.
    #[cold]
    fn went(&mut self, number: u16, result: Result<(), IoError>, data: Data) {
        let Some(task) = self.tasks.get(number) else {
            return;
        };
        let write = task.write;
        let extra = task.extra();
        if extra.job.is_none() {
            extra.sent = data;
            return self.end(number, &Answer::of(result, write));
        }
        match std::mem::take(&mut extra.moves) {
            Moves::Nothing => {}
            Moves::Own => extra.own = data,
            Moves::BufferOut => extra.bounce = data,
            Moves::BufferIn => {
                extra.buffer.clear();
                for piece in data.iter().flat_map(|list| list.pieces()) {
                    let at = extra.buffer.len();
                    extra.buffer.resize(at + piece.len(), 0);
                    copy::read(piece, extra.buffer.get_mut(at..).unwrap_or_default());
                }
                extra.bounce = data;
            }
        }
        self.run(number, result);
    }

    /// Asks the job of task `number` what comes next, as often as that can be done at once.
    pub(super) fn run(&mut self, number: u16, mut last: Result<(), IoError>) {
        let draining = self.draining;
        loop {
            let Some(task) = self.tasks.get(number) else {
                return;
            };
            let ends = task.ends.is_some();
            let extra = task.extra();
            let nothing = Scatter::of_table(Arc::default());
            let sent = extra.sent.as_deref().unwrap_or(&nothing);
            let Some(job) = &mut extra.job else {
                return;
            };
            let mut desk = Desk {
                out: &Kept(sent),
                buffer: &mut extra.buffer,
            };
            let action = match job.next(last, &mut desk) {
                Next::Done(answer) => return self.end(number, &answer),
                Next::Do(action) => action,
            };
            // What has begun to be saved is brought to its end.
            if ends && !matches!(action, Action::Save(_)) {
                return self.end(number, &Answer::GOOD);
            }
            let long = matches!(
                action,
                Action::Read { .. }
                    | Action::Write { .. }
                    | Action::Zero { .. }
                    | Action::Discard { .. }
            );
            if draining && long {
                // The driver may try again from the beginning.
                return self.end(number, &Answer::BUSY);
            }
            match self.act(number, action) {
                Some(result) => last = result,
                None => return,
            }
        }
    }

    /// Does what a job asks for. Returns how that went if it is done already.
    fn act(&mut self, number: u16, action: Action) -> Option<Result<(), IoError>> {
        let task = self.tasks.get(number)?;
        let extra = task.extra();
        let request = |op, offset, len, data, fua| Request {
            token: number.into(),
            op,
            offset,
            len,
            data,
            fua,
        };
        let (moves, request) = match action {
            Action::Move(transfer) => {
                let Transfer {
                    write,
                    offset,
                    len,
                    fua,
                } = transfer;
                let op = if write { Op::Write } else { Op::Read };
                (Moves::Own, request(op, offset, len, extra.own.take(), fua))
            }
            Action::Read { offset, len } => match bounce(extra, len) {
                Some(list) => {
                    let request = request(Op::Read, offset, len, Some(list), false);
                    (Moves::BufferIn, request)
                }
                None => return Some(Err(NO_MEMORY)),
            },
            Action::Write { offset, fua } => {
                let len = extra.buffer.len() as u64;
                match bounce(extra, len) {
                    Some(list) => {
                        wire::write(list.pieces(), 0, &extra.buffer);
                        let request = request(Op::Write, offset, len, Some(list), fua);
                        (Moves::BufferOut, request)
                    }
                    None => return Some(Err(NO_MEMORY)),
                }
            }
            Action::Flush => (Moves::Nothing, request(Op::Flush, 0, 0, None, false)),
            Action::Discard { offset, len } => {
                let request = request(Op::Discard, offset, len, None, false);
                (Moves::Nothing, request)
            }
            Action::Zero {
                offset,
                len,
                unmap,
                fua,
            } => {
                let op = Op::WriteZeroes { unmap };
                (Moves::Nothing, request(op, offset, len, None, fua))
            }
            Action::Alone => {
                return self.close_gate(number).then_some(Ok(()));
            }
            Action::Save(all) => return self.save(number, &all),
            Action::Await(barrier) if barrier.is_clear() => return Some(Ok(())),
            Action::Await(barrier) => {
                self.hold(number, Waits::Barrier(barrier));
                return None;
            }
        };
        extra.moves = moves;
        if moves == Moves::Own {
            task.len = request.len as u32;
        }
        task.write = !matches!(request.op, Op::Read | Op::Flush);
        self.send(number, request);
        None
    }

    /// Closes the gate for task `number` and waits until all others are out. True if they are.
    fn close_gate(&mut self, number: u16) -> bool {
        let Some(task) = self.tasks.get(number) else {
            return false;
        };
        let seat = task.seat;
        let extra = task.extra();
        if extra.alone.is_none() {
            let way = self.ways.get(seat);
            extra.alone = way.and_then(|way| way.seat.nexus.unit().gate().close());
        }
        let alone = extra.alone.as_ref().is_some_and(Alone::is_alone);
        if !alone {
            self.hold(number, Waits::Alone);
        }
        alone
    }

    /// Has reservations written down. Task `number` goes on when a letter says so.
    fn save(&mut self, number: u16, all: &Reservations) -> Option<Result<(), IoError>> {
        let serial = self.tasks.serial(number)?;
        let mailbox = self.face.board().mailbox(self.index);
        let task = self.tasks.get(number)?;
        let way = self.ways.get(task.seat)?;
        let (Some(mailbox), Some(store)) = (mailbox, way.seat.store()) else {
            return Some(Err(IoError::Gone));
        };
        task.extra().waits = Waits::Saved;
        store.save(all, move |result| {
            mailbox.post(Letter(Note::Saved {
                task: number,
                serial,
                good: result.is_ok(),
            }));
        });
        None
    }

    /// Answers task `number`, and gives its chain back.
    #[cold]
    pub(super) fn end(&mut self, number: u16, answer: &Answer) {
        let Some(mut task) = self.tasks.take(number) else {
            return;
        };
        let extra = *task.extra.take().unwrap_or_default();
        self.held.retain(|held| *held != number);
        let seat = self.ways.get(task.seat).map(|way| {
            way.leave();
            Arc::clone(&way.seat)
        });
        let sense = answer.sense.map(|sense| sense_bytes(seat.as_ref(), &sense));
        let sense = sense.unwrap_or_default();
        let moved = match (&extra.job, *answer == Answer::GOOD) {
            (_, false) => 0,
            (Some(job), true) if job.transfer().is_none() => task.room,
            _ => task.len,
        };
        let residual = task.room.saturating_sub(moved);
        if let Some(list) = extra.sent.or(match extra.waits {
            // It never got as far as the disk.
            Waits::Send(request) => request.data,
            _ => None,
        }) {
            let place: usize = list.tail().map(|piece| piece.len()).sum();
            let len = sense.len().min(place.saturating_sub(RESPONSE as usize));
            let head = match task.ends {
                Some(code) => wire::response(0, task.room, 0, code),
                None => wire::response(len as u32, residual, answer.status as u8, Code::Ok),
            };
            wire::write(list.tail(), 0, &head);
            wire::write(list.tail(), RESPONSE, sense.get(..len).unwrap_or_default());
            self.tasks.put_list(list);
        }
        let nanos = self.ages.nanos(task.at);
        match (task.ends, &extra.job, moved > 0) {
            (Some(_), ..) => self.stats.aborted.add(1),
            (None, None, true) => self.stats.moved(task.write, task.len, nanos),
            (None, ..) => {
                self.stats.answered(answer);
                self.stats.took(OTHER, nanos);
            }
        }
        self.over.push((task.chain, task.chain.write_len()));
    }
}

/// Answers a command that only moved its data, and did so, as nearly all do.
#[inline]
fn moved(task: &Task, list: &Scatter, ways: &mut Ways) {
    if let Some(way) = ways.get(task.seat) {
        if task.inside {
            way.lane.leave();
        }
        way.leave();
    }
    let head = wire::response(0, task.room - task.len, 0, Code::Ok);
    let first = list.tail().next();
    if !first.is_some_and(|place| copy::write_array(head, place)) {
        wire::write(list.tail(), 0, &head);
    }
}

/// What there is no memory for.
const NO_MEMORY: IoError = IoError::Io(libc::ENOMEM);

/// Memory of ours for `len` bytes, the same as last time if that was as long.
fn bounce(extra: &mut Extra, len: u64) -> Data {
    let last = extra.bounce.take().filter(|list| list.len() == len);
    last.or_else(|| {
        let area = Mapping::anonymous(usize::try_from(len).ok()?).ok()?;
        Some(Box::new(Scatter::of_area(Area::from(area))))
    })
}
