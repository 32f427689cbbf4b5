//! `read`, `write`, `flush` and `discard`: one kind of request, and how long each takes.

use std::ops::Range;
use std::time::{Duration, Instant};

use vm_memory::Bytes;
use vvu::memory::Area;

use super::args::{Discard, Flush, Transfer};
use super::content;
use super::disk::Disk;
use super::queue::Cut;
use super::request::{Kind, Request};
use crate::guest::error::{Fault, GuestError};
use crate::guest::histogram::Histogram;
use crate::guest::jobs::Outcome;
use crate::guest::report::{Clock, Details, DiskLoad, Latency};
use crate::guest::tether::Woken;

/// Which requests, one after the other.
struct Plan {
    kind: Kind,
    area: Range<u64>,
    size: u64,
    depth: usize,
    /// Places at random until this time; in order without.
    until: Option<Instant>,
    /// Requests in all, if they have no place.
    count: Option<u64>,
    seed: Option<u64>,
    block: u64,
}

impl Plan {
    /// The next request, after `done` others.
    fn next(&self, done: u64, rng: &mut fastrand::Rng) -> Option<Request> {
        let all = self.area.end - self.area.start;
        let offset = match (self.count, self.until) {
            (Some(count), _) => {
                return (done < count).then_some(Request {
                    kind: self.kind,
                    offset: 0,
                    len: 0,
                });
            }
            (None, Some(until)) if Instant::now() >= until => return None,
            (None, Some(_)) => rng.u64(..all / self.size) * self.size,
            (None, None) => done * self.size,
        };
        (offset < all).then(|| Request {
            kind: self.kind,
            offset: self.area.start + offset,
            len: self.size.min(all - offset),
        })
    }

    /// What is written.
    fn fill(&self, request: &Request, data: &Area) {
        if let (Kind::Write, Some(seed)) = (self.kind, self.seed) {
            let bytes = self.expected(seed, request);
            let done = data.slice().write_slice(&bytes, 0);
            debug_assert!(done.is_ok(), "a place has room for any request");
        }
    }

    fn expected(&self, seed: u64, request: &Request) -> Vec<u8> {
        let mut bytes = vec![0; request.len as usize];
        let first = request.offset / self.block;
        for (number, block) in (first..).zip(bytes.chunks_mut(self.block as usize)) {
            content::fill(seed, number, 0, block);
        }
        bytes
    }

    /// What is wrong with what was read.
    fn check(&self, request: &Request, data: &Area) -> Option<String> {
        let (Kind::Read, Some(seed)) = (self.kind, self.seed) else {
            return None;
        };
        let mut bytes = vec![0; request.len as usize];
        data.slice().copy_to(bytes.as_mut_slice());
        let expected = self.expected(seed, request);
        let size = self.block as usize;
        let first = request.offset / self.block;
        let mut pairs = (first..).zip(bytes.chunks(size).zip(expected.chunks(size)));
        let (number, (found, expected)) = pairs.find(|(_, (a, b))| a != b)?;
        let found = content::Found::of(seed, found, expected);
        Some(format!("block {number} holds {found}"))
    }
}

pub(super) fn transfer(
    disk: &mut Disk<'_>,
    clock: &mut Clock,
    area: Range<u64>,
    (kind, options): (Kind, &Transfer),
) -> Result<Outcome, GuestError> {
    let shape = disk.shape();
    let size = options.size - options.size % shape.block;
    let plan = Plan {
        kind,
        size: size
            .min(area.end - area.start)
            .clamp(shape.block, shape.transfer),
        depth: options.depth.into(),
        until: (!options.whole).then(|| Instant::now() + Duration::from_secs(options.seconds)),
        count: None,
        seed: options.seed,
        block: shape.block,
        area,
    };
    run(disk, clock, &plan)
}

pub(super) fn flush(
    disk: &mut Disk<'_>,
    clock: &mut Clock,
    options: &Flush,
) -> Result<Outcome, GuestError> {
    let plan = Plan {
        kind: Kind::Flush,
        area: 0..0,
        size: 1,
        depth: 1,
        until: None,
        count: Some(options.count),
        seed: None,
        block: disk.shape().block,
    };
    run(disk, clock, &plan)
}

pub(super) fn discard(
    disk: &mut Disk<'_>,
    clock: &mut Clock,
    area: Range<u64>,
    options: &Discard,
) -> Result<Outcome, GuestError> {
    /// More than this at once would tell nothing about time.
    const MOST: u64 = 16 << 20;
    let shape = disk.shape();
    let (kind, most, what) = match options.zeroes {
        true => (Kind::WriteZeroes, shape.zeroes, "zero blocks"),
        false => (Kind::Discard, shape.discard, "discard"),
    };
    if most == 0 {
        return Err(GuestError::Unable(what));
    }
    let plan = Plan {
        kind,
        size: most.min(MOST),
        depth: 4,
        until: None,
        count: None,
        seed: None,
        block: shape.block,
        area,
    };
    run(disk, clock, &plan)
}

fn run(disk: &mut Disk<'_>, clock: &mut Clock, plan: &Plan) -> Result<Outcome, GuestError> {
    let mut rng = fastrand::Rng::new();
    let mut times = Histogram::new();
    let (mut sent, mut bytes, mut failed, mut first) = (0, 0, 0, None);
    let mut next = plan.next(sent, &mut rng);
    let start = Instant::now();
    let mut moved = start;
    while (next.is_some() || disk.in_flight() > 0) && !disk.stopped() {
        while let Some(request) = next
            && disk.in_flight() < plan.depth
        {
            let fill = |data: &Area| plan.fill(&request, data);
            let cut = Cut {
                extra: 0,
                indirect: true,
            };
            if !disk.add(request, sent, cut, &mut rng, fill) {
                break;
            }
            sent += 1;
            next = plan.next(sent, &mut rng);
        }
        disk.flush();
        let count = disk.reap(|(request, _, since, outcome, data)| {
            times.add(since.elapsed());
            let wrong = match outcome {
                Ok(()) => plan
                    .check(&request, data)
                    .map(|why| format!("{request}: {why}")),
                Err(refusal) => Some(format!("{request}: {refusal}")),
            };
            match wrong {
                None => bytes += request.len,
                Some(why) => {
                    failed += 1;
                    first.get_or_insert(why);
                }
            }
        })?;
        let now = Instant::now();
        if count > 0 {
            moved = now;
        }
        let deadline = moved + disk.timeout();
        let tick = clock.tick(disk.written, disk.read);
        if count == 0
            && disk.wait(tick.map_or(deadline, |tick| tick.min(deadline)))? == Woken::Late
            && Instant::now() >= deadline
        {
            return Err(Fault::Silent(disk.timeout().as_secs()).into());
        }
    }
    let load = DiskLoad {
        requests: times.total(),
        bytes,
        load_seconds: start.elapsed().as_secs_f64(),
        failed,
        latency: Latency::of(&times, 0, 0),
    };
    let failure = first.map(|why| {
        format!(
            "{failed} of {} requests failed; the first: {why}",
            times.total()
        )
    });
    Ok(Outcome {
        details: Details::Disk(load),
        failure,
    })
}
