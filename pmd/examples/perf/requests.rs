//! Instructions per request of a block or SCSI device by callgrind, compared with those in
//! docs/performance.md.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use vvu_pmd::bdev::{Disk, Geometry, Mem, Null};
use vvu_pmd::blk;
use vvu_pmd::mock::blk::header;
use vvu_pmd::mock::{Buffer, MockGuest, MockQueue};
use vvu_pmd::queue::StorageQueue;
use vvu_pmd::scsi::{self, Address, Letter, Lun, Mailbox};
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
const WAYS: [&str; 4] = ["null read", "null write", "mem read", "null read, SCSI"];

/// The first request queue of a SCSI device.
const SCSI_QUEUE: u16 = 2;
/// Bytes before the data of a SCSI command, and of its response.
const COMMAND: usize = 51;
const RESPONSE: usize = 108;
/// Where status and response code are in that.
const SCSI_STATUS: usize = 10;

/// No request takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

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

/// A queue of a disk.
enum Served {
    Blk(Box<blk::Queue>),
    Scsi(Box<scsi::Queue>, Receiver<Letter>),
}

/// Where the queue of a SCSI device hears of its disk.
struct Post(Sender<Letter>);

impl Mailbox for Post {
    fn post(&self, letter: Letter) {
        let _ = self.0.send(letter);
    }
}

impl Served {
    /// A queue of `disk`, and its driver.
    fn new(
        way: &str,
        disk: Arc<dyn Disk>,
        guest: &mut MockGuest,
        features: u64,
    ) -> anyhow::Result<(Self, MockQueue)> {
        let mut driver = MockQueue::new(guest, ENTRIES, features, 0);
        // Drivers that ask for calls would have us in the kernel.
        driver.set_no_interrupt(true);
        let waker = Waker::new()?;
        if !way.ends_with("SCSI") {
            let face = blk::Face::new("perf", disk, blk::BlkConfig::default());
            let (vring, _, _) = driver.vring(0);
            let queue = blk::Prepared::new(vring, face, &waker)?.start();
            return Ok((Self::Blk(Box::new(queue)), driver));
        }
        let face = scsi::Face::new("perf", scsi::ScsiConfig { queues: 1 });
        let (sender, letters) = channel();
        face.connect(SCSI_QUEUE, Some(Arc::new(Post(sender))));
        let first = Address { target: 0, lun: 0 };
        face.add(first, Lun::new("perf", disk, false, None));
        let (vring, _, _) = driver.vring(SCSI_QUEUE);
        let queue = scsi::Prepared::new(vring, face, &waker)?.start();
        Ok((Self::Scsi(Box::new(queue), letters), driver))
    }

    fn poll(&mut self) -> bool {
        match self {
            Self::Blk(queue) => queue.poll(),
            Self::Scsi(queue, letters) => {
                letters.try_iter().for_each(|letter| queue.deliver(letter));
                queue.poll()
            }
        }
    }

    fn measured_poll(&mut self) -> bool {
        match self {
            Self::Blk(queue) => measured_poll_queue(&mut **queue),
            Self::Scsi(queue, _) => measured_poll_queue(&mut **queue),
        }
    }
}

/// A queue of a disk, and its driver.
struct Bench {
    queue: Served,
    driver: MockQueue,
    guest: MockGuest,
    /// Where requests are, and where their indirect tables are.
    places: Vec<(u64, u64)>,
    write: bool,
    scsi: bool,
    indirect: bool,
}

impl Bench {
    fn new(way: &str, features: u64, depth: usize) -> anyhow::Result<Self> {
        let disk: Arc<dyn Disk> = match way.starts_with("null") {
            true => Arc::new(Null::new("null", DISK, Geometry::default())),
            false => Arc::new(Mem::new("mem", DISK, Geometry::default())?),
        };
        let features = features | ring::VERSION_1;
        let mut guest = MockGuest::new(0x10_0000, &[2 << 20]);
        let (queue, driver) = Served::new(way, disk, &mut guest, features)?;
        let place = |_| (guest.alloc(PLACE, 64), guest.alloc(64, 64));
        Ok(Self {
            queue,
            places: (0..depth).map(place).collect(),
            driver,
            guest,
            write: way.ends_with("write"),
            scsi: way.ends_with("SCSI"),
            indirect: features & ring::INDIRECT_DESC != 0,
        })
    }

    /// The request at `place`, and what it is made of.
    fn request(&self, place: u64, sector: u64) -> [Buffer; 3] {
        let part = |skip: usize, len: usize, writable| Buffer {
            addr: place + skip as u64,
            len: len as u32,
            writable,
        };
        if self.scsi {
            let mut command = [0; COMMAND];
            command[..4].copy_from_slice(&[1, 0, 0x40, 0]);
            let cdb = &mut command[19..];
            cdb[0] = 0x28;
            cdb[2..6].copy_from_slice(&(sector as u32).to_be_bytes());
            cdb[8] = (DATA / 512) as u8;
            self.guest.write(place, &command);
            return [
                part(0, COMMAND, false),
                part(64, RESPONSE, true),
                part(64 + RESPONSE, DATA, true),
            ];
        }
        self.guest
            .write(place, &header(u32::from(self.write), sector));
        [
            part(0, 16, false),
            part(64, DATA, !self.write),
            part(64 + DATA, 1, true),
        ]
    }

    /// Asks for as much as there are places for.
    fn ask(&mut self, round: usize) -> anyhow::Result<()> {
        for number in 0..self.places.len() {
            let (place, table) = self.places[number];
            let sector = (round * 67 + number * 8) as u64 % 1024 * 8;
            let chain = self.request(place, sector);
            let added = match self.indirect {
                true => self.driver.add_indirect(&chain, table, 0),
                false => self.driver.add(&chain),
            };
            added.context("the ring is full")?;
        }
        self.driver.publish();
        Ok(())
    }

    /// Whether the request at `place` was done.
    fn is_good(&self, place: u64) -> bool {
        let (at, len) = match self.scsi {
            true => (64 + SCSI_STATUS, 2),
            false => (64 + DATA, 1),
        };
        let status = self.guest.read(place + at as u64, len);
        status.iter().all(|byte| *byte == 0)
    }

    /// Asks, and polls until all are answered: SCSI disks are opened, and tell of themselves first.
    fn warm_up(&mut self, round: usize) -> anyhow::Result<()> {
        self.ask(round)?;
        let start = Instant::now();
        for _ in 0..self.places.len() {
            while self.driver.used().is_none() {
                self.queue.poll();
                ensure!(start.elapsed() < PATIENCE, "a request was not answered");
            }
        }
        Ok(())
    }
}

/// Runs a cell. Returns the requests that were counted.
fn run_cell(way: &str, features: u64, depth: usize) -> anyhow::Result<usize> {
    let mut bench = Bench::new(way, features, depth)?;
    for round in 0..WARM_UP {
        bench.warm_up(round)?;
    }
    for round in WARM_UP..WARM_UP + ROUNDS {
        bench.ask(round)?;
        bench.queue.measured_poll();
        for &(place, _) in &bench.places {
            ensure!(bench.driver.used().is_some(), "a request was not answered");
            ensure!(bench.is_good(place), "a request failed");
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
