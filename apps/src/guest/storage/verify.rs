//! `verify`: everything at random, and each block that is read is what was written last.

use std::ops::Range;
use std::time::{Duration, Instant};

use vm_memory::Bytes;
use vvu::memory::Area;

use super::args::VerifyDisk;
use super::disk::Disk;
use super::ledger::Ledger;
use super::queue::Cut;
use super::request::{Kind, Request};
use crate::guest::error::{Fault, GuestError};
use crate::guest::jobs::Outcome;
use crate::guest::report::{Clock, Details, DiskAccount};
use crate::guest::tether::Woken;

/// How often a place is looked for that nobody is at.
const TRIES: usize = 8;

struct Verifier {
    ledger: Ledger,
    rng: fastrand::Rng,
    account: DiskAccount,
    block: u64,
    start: u64,
    /// Most blocks of a request that reads or writes.
    most: usize,
    first_wrong: Option<String>,
    moved: Instant,
}

pub(super) fn verify(
    disk: &mut Disk<'_>,
    clock: &mut Clock,
    area: Range<u64>,
    options: &VerifyDisk,
) -> Result<Outcome, GuestError> {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
    let shape = disk.shape();
    let blocks = (area.end - area.start) / shape.block;
    let most = options.max_size.min(shape.transfer) / shape.block;
    let mut verifier = Verifier {
        ledger: Ledger::new(seed, shape.block as usize, blocks as usize),
        rng: fastrand::Rng::with_seed(seed),
        account: DiskAccount {
            seed,
            ..DiskAccount::default()
        },
        block: shape.block,
        start: area.start,
        most: most.clamp(1, blocks) as usize,
        first_wrong: None,
        moved: Instant::now(),
    };
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let depth = usize::from(options.depth);
    let mut left = options.count.unwrap_or(u64::MAX);
    while left > 0 && Instant::now() < end && !disk.stopped() {
        while left > 0 && disk.in_flight() < depth && verifier.add(disk) {
            left -= 1;
        }
        verifier.turn(disk, clock)?;
    }
    verifier.drain(disk, clock)?;
    if !disk.stopped() {
        verifier.read_all(disk, clock, depth)?;
    }
    let Verifier {
        account,
        first_wrong,
        ..
    } = verifier;
    let failure = first_wrong.map(|why| {
        let (corrupt, failed) = (account.corrupt, account.failed);
        format!("{corrupt} blocks are wrong, {failed} requests failed; the first: {why}")
    });
    Ok(Outcome {
        details: Details::VerifyDisk(account),
        failure,
    })
}

impl Verifier {
    /// Adds a request of any kind; `false` if there is no room, or no place that is free.
    fn add(&mut self, disk: &mut Disk<'_>) -> bool {
        let shape = disk.shape();
        let kind = match self.rng.u8(..100) {
            0..5 if shape.flush => Kind::Flush,
            5..8 if shape.discard > 0 && !shape.read_only => Kind::Discard,
            8..11 if shape.zeroes > 0 && !shape.read_only => Kind::WriteZeroes,
            11..55 if !shape.read_only => Kind::Write,
            _ => Kind::Read,
        };
        let limit = match kind {
            Kind::Flush => return self.send(disk, kind, 0, 0),
            Kind::Discard => shape.discard / self.block,
            Kind::WriteZeroes => shape.zeroes / self.block,
            Kind::Read | Kind::Write => u64::MAX,
        };
        let most = self.most.min(usize::try_from(limit).unwrap_or(usize::MAX));
        for _ in 0..TRIES {
            // Small ones and whole pages are what disks are asked for most.
            let count = match self.rng.u8(..3) {
                0 => 1,
                1 => (4096 / self.block).max(1) as usize,
                _ => self.rng.usize(1..=most.max(1)),
            };
            let count = count.min(most.max(1)).min(self.ledger.blocks());
            let first = self.rng.usize(..=self.ledger.blocks() - count);
            if self.ledger.enter(first, count, kind != Kind::Read) {
                if self.send(disk, kind, first, count) {
                    return true;
                }
                self.ledger.unread(first, count);
                return false;
            }
        }
        false
    }

    fn send(&mut self, disk: &mut Disk<'_>, kind: Kind, first: usize, count: usize) -> bool {
        let request = Request {
            kind,
            offset: self.start + first as u64 * self.block,
            len: count as u64 * self.block,
        };
        let cut = Cut {
            extra: match self.rng.u8(..4) {
                0 => self.rng.usize(..12),
                _ => 0,
            },
            indirect: self.rng.bool(),
        };
        let (token, bytes) = match kind {
            Kind::Write => self.ledger.write(first, count),
            _ => (0, Vec::new()),
        };
        disk.add(request, token, cut, &mut self.rng, |data| {
            match kind {
                Kind::Write => drop(data.slice().write_slice(&bytes, 0)),
                // What is not written over shows.
                Kind::Read => drop(
                    data.slice()
                        .write_slice(&vec![0xa5; request.len as usize], 0),
                ),
                _ => {}
            }
        })
    }

    /// Sends, takes what came back, and waits if nothing did.
    fn turn(&mut self, disk: &mut Disk<'_>, clock: &mut Clock) -> Result<(), GuestError> {
        disk.flush();
        let count = disk.reap(|(request, token, _, outcome, data)| {
            self.see(
                &request,
                token,
                outcome.err().map(|why| why.to_string()),
                data,
            );
        })?;
        let tick = clock.tick(disk.written, disk.read);
        let now = Instant::now();
        if count > 0 {
            self.moved = now;
            return Ok(());
        }
        let deadline = self.moved + disk.timeout();
        let until = tick.map_or(deadline, |tick| tick.min(deadline));
        if disk.in_flight() == 0 {
            self.moved = now;
        } else if disk.wait(until)? == Woken::Late && Instant::now() >= deadline {
            return Err(Fault::Silent(disk.timeout().as_secs()).into());
        }
        Ok(())
    }

    fn see(&mut self, request: &Request, token: u64, refused: Option<String>, data: &Area) {
        let first = ((request.offset - self.start) / self.block) as usize;
        let count = (request.len / self.block) as usize;
        if let Some(why) = refused {
            self.account.failed += 1;
            self.first_wrong
                .get_or_insert_with(|| format!("{request}: {why}"));
            match request.kind {
                Kind::Read => self.ledger.unread(first, count),
                Kind::Flush => {}
                _ => self.ledger.forgotten(first, count),
            }
            return;
        }
        match request.kind {
            Kind::Read => {
                self.account.reads += 1;
                self.account.bytes_read += request.len;
                let mut bytes = vec![0; request.len as usize];
                data.slice().copy_to(bytes.as_mut_slice());
                let (wrong, why) = self.ledger.read(first, &bytes);
                self.account.corrupt += wrong;
                if let Some(why) = why {
                    self.first_wrong.get_or_insert(why);
                }
            }
            Kind::Write => {
                self.account.writes += 1;
                self.account.bytes_written += request.len;
                self.ledger.written(first, count, token);
            }
            Kind::Flush => self.account.flushes += 1,
            Kind::Discard => {
                self.account.discards += 1;
                self.ledger.forgotten(first, count);
            }
            Kind::WriteZeroes => {
                self.account.zeroings += 1;
                self.ledger.zeroed(first, count);
            }
        }
    }

    fn drain(&mut self, disk: &mut Disk<'_>, clock: &mut Clock) -> Result<(), GuestError> {
        while disk.in_flight() > 0 && !disk.stopped() {
            self.turn(disk, clock)?;
        }
        Ok(())
    }

    /// Reads every block.
    fn read_all(
        &mut self,
        disk: &mut Disk<'_>,
        clock: &mut Clock,
        depth: usize,
    ) -> Result<(), GuestError> {
        let mut first = 0;
        while first < self.ledger.blocks() && !disk.stopped() {
            let count = self.most.min(self.ledger.blocks() - first);
            // Readers meet each other only.
            if disk.in_flight() < depth && self.ledger.enter(first, count, false) {
                if self.send(disk, Kind::Read, first, count) {
                    first += count;
                    continue;
                }
                self.ledger.unread(first, count);
            }
            self.turn(disk, clock)?;
        }
        self.drain(disk, clock)
    }
}
