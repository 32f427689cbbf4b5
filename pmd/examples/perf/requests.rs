//! Instructions per request of a block device by callgrind, compared with those in
//! docs/performance.md.

use std::sync::Arc;

use anyhow::{Context, ensure};
use vvu_pmd::bdev::{Disk, Geometry, Mem, Null};
use vvu_pmd::blk::{BlkConfig, Face, Prepared, Queue};
use vvu_pmd::mock::blk::header;
use vvu_pmd::mock::{Buffer, MockGuest, MockQueue};
use vvu_pmd::queue::StorageQueue;
use vvu_pmd::vring::feature as ring;
use vvu_pmd::wake::Waker;

use crate::callgrind::{self, cell_done, measured_poll_queue};
use crate::table::{Cells, Keep, Shape};

/// What may be asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    keep: Keep,
    /// Run the cells, under callgrind
    #[arg(long, hide = true)]
    inner: bool,
}

/// Requests that a driver has ready for each round.
const DEPTHS: [usize; 3] = [1, 16, 64];

/// Rounds before counting, and rounds counted.
const WARM_UP: usize = 16;
const ROUNDS: usize = 64;

/// Entries of the ring.
const ENTRIES: u16 = 256;
/// Bytes of a request's data...
const DATA: usize = 4096;
/// ...and what is between two: all of it, header and status.
const PLACE: usize = DATA + 5 * 64;
/// Bytes of a disk.
const DISK: u64 = 16 << 20;

const DRIVERS: [(&str, u64); 4] = [
    ("split", 0),
    ("split, as Linux", ring::EVENT_IDX | ring::INDIRECT_DESC),
    ("packed", ring::RING_PACKED),
    (
        "packed, as Linux",
        ring::RING_PACKED | ring::EVENT_IDX | ring::INDIRECT_DESC,
    ),
];

/// What is asked for, and of what.
const WAYS: [&str; 3] = ["null read", "null write", "mem read"];

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.inner {
        return run_cells();
    }
    let counts = callgrind::count(&["requests", "--inner"])?;
    let mut counts = counts.chunks_exact(DEPTHS.len());
    let mut cells = Cells::new();
    let mut rows = Vec::new();
    for (driver, _) in DRIVERS {
        for way in WAYS {
            let row = counts.next().context("a cell is missing")?;
            cells.insert((driver.into(), way.into()), row.to_vec());
            rows.push((driver, way));
        }
    }
    let shape = Shape {
        command: "requests",
        rows,
        columns: &["1 at a time", "16", "64"],
        of: "request",
    };
    shape.finish(&cells, &args.keep)
}

fn run_cells() -> anyhow::Result<()> {
    for (_, features) in DRIVERS {
        for way in WAYS {
            for depth in DEPTHS {
                cell_done(run_cell(way, features, depth)?);
            }
        }
    }
    Ok(())
}

/// A queue of a disk, and its driver.
struct Bench {
    queue: Queue,
    driver: MockQueue,
    guest: MockGuest,
    /// Where requests are, and where their indirect tables are.
    places: Vec<(u64, u64)>,
    write: bool,
    indirect: bool,
}

impl Bench {
    fn new(way: &str, features: u64, depth: usize) -> anyhow::Result<Self> {
        let disk: Arc<dyn Disk> = match way.starts_with("null") {
            true => Arc::new(Null::new("null", DISK, Geometry::default())),
            false => Arc::new(Mem::new("mem", DISK, Geometry::default())?),
        };
        let face = Face::new("perf", disk, BlkConfig::default());
        let features = features | ring::VERSION_1;
        let mut guest = MockGuest::new(0x10_0000, &[2 << 20]);
        let mut driver = MockQueue::new(&mut guest, ENTRIES, features, 0);
        let (vring, _, _) = driver.vring(0);
        let queue = Prepared::new(vring, face, &Waker::new()?)?.start();
        // Drivers that ask for calls would have us in the kernel.
        driver.set_no_interrupt(true);
        let place = |_| (guest.alloc(PLACE, 64), guest.alloc(64, 64));
        Ok(Self {
            queue,
            places: (0..depth).map(place).collect(),
            driver,
            guest,
            write: way.ends_with("write"),
            indirect: features & ring::INDIRECT_DESC != 0,
        })
    }

    /// Asks for as much as there are places for.
    fn ask(&mut self, round: usize) -> anyhow::Result<()> {
        for (number, &(place, table)) in self.places.iter().enumerate() {
            let sector = (round * 67 + number * 8) as u64 % 1024 * 8;
            self.guest
                .write(place, &header(u32::from(self.write), sector));
            let part = |skip: usize, len: usize, writable| Buffer {
                addr: place + skip as u64,
                len: len as u32,
                writable,
            };
            let chain = [
                part(0, 16, false),
                part(64, DATA, !self.write),
                part(64 + DATA, 1, true),
            ];
            let added = match self.indirect {
                true => self.driver.add_indirect(&chain, table, 0),
                false => self.driver.add(&chain),
            };
            added.context("the ring is full")?;
        }
        self.driver.publish();
        Ok(())
    }
}

/// Runs a cell. Returns the requests that were counted.
fn run_cell(way: &str, features: u64, depth: usize) -> anyhow::Result<usize> {
    let mut bench = Bench::new(way, features, depth)?;
    for round in 0..WARM_UP + ROUNDS {
        bench.ask(round)?;
        match round < WARM_UP {
            true => bench.queue.poll(),
            false => measured_poll_queue(&mut bench.queue),
        };
        for &(place, _) in &bench.places {
            ensure!(bench.driver.used().is_some(), "a request was not answered");
            let status = bench.guest.read(place + 64 + DATA as u64, 1);
            ensure!(status == [0], "a request failed: {status:?}");
        }
    }
    Ok(ROUNDS * depth)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_cell_serves_what_is_asked_for() {
        for (_, features) in DRIVERS {
            for way in WAYS {
                assert_eq!(run_cell(way, features, 16).unwrap(), 16 * ROUNDS);
            }
        }
    }
}
