//! Running workers between the driver of a block device and disks of all kinds.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vvu::virtio::{DeviceError, RingChange, VirtioDevice};
use vvu_pmd::bdev::file::{File, FileConfig};
use vvu_pmd::bdev::{Delay, Disk, Faulty, Geometry, Mem, Null, Plan};
use vvu_pmd::blk::{BlkConfig, Face, feature};
use vvu_pmd::mock::Random;
use vvu_pmd::mock::blk::{MockBlk, header, range};
use vvu_pmd::stats::RingState;
use vvu_pmd::vring::feature as ring;
use vvu_pmd::worker::Polling;
use vvu_pmd::{BlkDevice, BlkWorkers};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const SECURE_ERASE: u32 = 14;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// Size of most disks here.
const SIZE: u64 = 4 << 20;
const SECTORS: u64 = SIZE / 512;

const SPLIT: u64 = !ring::RING_PACKED;
const PACKED: u64 = !0;
const ALL: [Polling; 3] = [Polling::Always, Polling::Adaptive, Polling::Interrupt];

fn mem() -> Arc<dyn Disk> {
    Arc::new(Mem::new("mem:4M", SIZE, Geometry::default()).unwrap())
}

/// A device, its face and its worker.
fn device(disk: Arc<dyn Disk>, config: BlkConfig, polling: Polling) -> (BlkDevice, Arc<Face>) {
    let workers = BlkWorkers::new(&[0], polling).unwrap();
    let face = Face::new("test", disk, config);
    (BlkDevice::new(Arc::clone(&face), workers), face)
}

fn start(disk: Arc<dyn Disk>) -> (BlkDevice, Arc<Face>, MockBlk) {
    let (mut device, face) = device(disk, BlkConfig::default(), Polling::default());
    let driver = MockBlk::start(&mut device, MockBlk::memory(1), SPLIT, 1, 64, false);
    (device, face, driver)
}

/// A file that is gone when the test is over.
struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Self {
        let name = format!("vvu-blk-{name}-{}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn disk(&self, direct: bool) -> Option<Arc<dyn Disk>> {
        let config = FileConfig {
            create: Some(SIZE),
            direct,
            ..FileConfig::new(&self.0)
        };
        match File::open(config) {
            Ok(file) => Some(Arc::new(file)),
            Err(error) => {
                eprintln!("SKIPPED: {error}");
                None
            }
        }
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Lengths of pieces that `total` bytes are cut into: few, or single bytes among them.
fn cuts(total: usize, random: &mut Random) -> Vec<usize> {
    let mut lens = Vec::new();
    let mut left = total;
    while left > 0 {
        let len = match random.range(0, 3) {
            _ if lens.len() == 7 => left,
            0 => left,
            1 => random.range(1, 20).min(left),
            _ => random.range(1, left),
        };
        lens.push(len);
        left -= len;
    }
    lens
}

/// Random requests, cut anywhere, many at a time: every byte that is read is the last one written.
fn random_requests(disk: Arc<dyn Disk>, features: u64, polling: Polling, queues: u16, seed: u64) {
    let config = BlkConfig {
        queues,
        ..BlkConfig::default()
    };
    let (mut device, face) = device(disk, config, polling);
    let memory = MockBlk::memory(queues.into());
    let mut driver = MockBlk::start(&mut device, memory, features, queues, 128, seed % 5 == 4);
    let random = &mut Random::new(seed);
    let mut model = vec![0; SIZE as usize];
    // By queue and id: kind, first sector, sectors.
    let mut flying: HashMap<(usize, u16), (u32, u64, u64)> = HashMap::new();
    let mut done = 0;
    let begin = Instant::now();
    while done < 1000 {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "only {done} were done"
        );
        let queue = random.range(0, usize::from(queues) - 1);
        for _ in 0..random.range(0, 6) {
            let count = random.range(1, 64) as u64;
            let sector = random.number() % (SECTORS - count);
            let overlaps =
                |&(_, other, len): &(u32, u64, u64)| sector < other + len && other < sector + count;
            // The order of what overlaps is nobody's promise.
            if flying.values().any(overlaps) {
                continue;
            }
            let len = count as usize * 512;
            let place = sector as usize * 512..sector as usize * 512 + len;
            let kind = [IN, IN, OUT, OUT, OUT, WRITE_ZEROES][random.range(0, 5)];
            let mut out = header(kind, sector).to_vec();
            let (mut room, mut change) = (1, None);
            match kind {
                IN => room += len,
                OUT => {
                    let value = random.number() as usize;
                    let data: Vec<u8> = (0..len).map(|n| (n + value) as u8).collect();
                    out.extend(&data);
                    change = Some(data);
                }
                _ => {
                    let (unmap, half) = (random.range(0, 1) as u32, count as u32 / 2);
                    out.extend(range(sector, half, unmap));
                    let rest = count as u32 - half;
                    out.extend(range(sector + u64::from(half), rest, 1 - unmap));
                    change = Some(vec![0; len]);
                }
            }
            let mut rest = &out[..];
            let mut pieces = Vec::new();
            for len in cuts(out.len(), random) {
                let (piece, after) = rest.split_at(len);
                pieces.push(piece);
                rest = after;
            }
            let indirect = random.range(0, 1) == 0;
            let id = driver.chain(queue, &pieces, &cuts(room, random), indirect);
            if let Some(id) = id {
                flying.insert((queue, id), (kind, sector, count));
                if let Some(change) = change {
                    model[place].copy_from_slice(&change);
                }
            }
        }
        driver.submit(queue);
        for queue in 0..usize::from(queues) {
            while let Some(answer) = driver.answer(queue) {
                let (kind, sector, count) = flying.remove(&(queue, answer.id)).unwrap();
                assert_eq!(answer.status(), OK, "kind {kind} at {sector}");
                assert_eq!(answer.len as usize, answer.bytes.len());
                if kind == IN {
                    let at = sector as usize * 512;
                    assert!(answer.data() == &model[at..at + count as usize * 512]);
                }
                done += 1;
            }
        }
    }
    let snapshot = face.snapshot();
    assert!(snapshot.all.done_all() >= done);
    let wrong = snapshot.all.wrong().any(|(_, count)| count > 0);
    assert!(!wrong, "{snapshot}");
    device.reset();
}

#[test]
fn every_byte_is_kept_in_memory() {
    for (seed, polling) in (0..).zip(ALL) {
        random_requests(mem(), SPLIT, polling, 1, seed);
        random_requests(mem(), PACKED, polling, 2, seed + 3);
    }
    random_requests(mem(), SPLIT & !ring::EVENT_IDX, Polling::Adaptive, 64, 9);
}

#[test]
fn every_byte_is_kept_in_a_file() {
    for (seed, direct) in [(0, false), (1, true), (2, true), (3, true), (4, false)] {
        let temp = Temp::new(&format!("bytes{seed}"));
        if let Some(disk) = temp.disk(direct) {
            let features = if seed % 2 == 0 { SPLIT } else { PACKED };
            random_requests(
                disk,
                features,
                ALL[seed as usize % 3],
                1 + seed as u16,
                seed,
            );
        }
    }
}

#[test]
fn every_kind_of_request() {
    let (_device, face, mut driver) = start(mem());
    let data = [0x5a; 4096];
    assert_eq!(driver.ask(0, OUT, 8, &data, 0).status(), OK);
    assert_eq!(driver.ask(0, FLUSH, 0, &[], 0).status(), OK);
    let read = driver.ask(0, IN, 8, &[], 4096);
    assert_eq!((read.status(), read.data()), (OK, &data[..]));
    assert_eq!(driver.ask(0, DISCARD, 0, &range(8, 1, 0), 0).status(), OK);
    let both = [range(8, 1, 0), range(10, 2, 1)].concat();
    assert_eq!(driver.ask(0, WRITE_ZEROES, 0, &both, 0).status(), OK);
    let read = driver.ask(0, IN, 8, &[], 2048);
    assert_eq!(read.data()[..512], [0; 512]);
    assert_eq!(read.data()[512..1024], [0x5a; 512]);
    assert_eq!(read.data()[1024..], [0; 1024]);
    // Nothing is done at once, as long as it is somewhere.
    assert_eq!(driver.ask(0, IN, SECTORS, &[], 0).status(), OK);
    assert_eq!(driver.ask(0, OUT, 3, &[], 0).status(), OK);
    for kind in [SECURE_ERASE, 2, 3, 5, 7, 9, 10, 15, 0x8000_0000, u32::MAX] {
        assert_eq!(driver.ask(0, kind, 0, &[], 0).status(), UNSUPP, "{kind}");
    }
    let all = face.snapshot().all;
    assert_eq!(all.done, [3, 2, 1, 1, 1, 0]);
    assert_eq!((all.read, all.written, all.refused), (6144, 4096, 10));
    assert_eq!(all.took.each_ref().map(|took| took.total()), [3, 2, 3]);
}

#[test]
fn the_id_is_cut_to_what_there_is_room_for() {
    let config = BlkConfig {
        serial: "a serial number that is too long".into(),
        ..BlkConfig::default()
    };
    let (mut device, _) = device(mem(), config, Polling::default());
    let mut driver = MockBlk::start(&mut device, MockBlk::memory(1), SPLIT, 1, 64, false);
    let full = b"a serial number that";
    for room in [20, 19, 3, 0] {
        let answer = driver.ask(0, GET_ID, 0, &[], room);
        assert_eq!((answer.status(), answer.data()), (OK, &full[..room]));
    }
    let answer = driver.ask(0, GET_ID, 0, &[], 30);
    assert_eq!(&answer.data()[..20], full);
    assert_eq!(answer.data()[20..], [0xee; 10]);
}

/// What of the disk the device may not touch, at the edges of all numbers.
#[test]
fn nothing_outside_the_disk() {
    let (_device, face, mut driver) = start(mem());
    let far = 1 << 55;
    for sector in [
        SECTORS,
        SECTORS - 1,
        far - 1,
        far,
        far + 1,
        u64::MAX,
        1 << 63,
        u64::MAX - 1,
    ] {
        let answer = driver.ask(0, IN, sector, &[], 1024);
        assert_eq!(answer.status(), IOERR, "{sector:#x}");
        assert!(answer.data().iter().all(|&byte| byte == 0xee));
        assert_eq!(driver.ask(0, OUT, sector, &[1; 1024], 0).status(), IOERR);
        for kind in [DISCARD, WRITE_ZEROES] {
            for sectors in [2, u32::MAX] {
                let bad = range(sector, sectors, 0);
                assert_eq!(driver.ask(0, kind, 0, &bad, 0).status(), IOERR);
                // A good range does not make up for it.
                let both = [range(0, 1, 0), bad].concat();
                assert_eq!(driver.ask(0, kind, 0, &both, 0).status(), IOERR);
            }
        }
    }
    // The last sector is there.
    assert_eq!(driver.ask(0, IN, SECTORS - 1, &[], 512).status(), OK);
    assert_eq!(driver.ask(0, OUT, SECTORS - 1, &[1; 512], 0).status(), OK);
    for len in [1, 511, 513, 1023] {
        assert_eq!(driver.ask(0, IN, 0, &[], len).status(), IOERR, "{len}");
        assert_eq!(driver.ask(0, OUT, 0, &vec![1; len], 0).status(), IOERR);
        assert_eq!(driver.ask(0, DISCARD, 0, &vec![0; len], 0).status(), IOERR);
    }
    assert!(face.snapshot().all.refused > 0);
}

#[test]
fn blocks_of_4096_bytes_are_whole() {
    let geometry = Geometry {
        logical_block: 4096,
        ..Geometry::default()
    };
    let disk = Arc::new(Mem::new("mem", SIZE, geometry).unwrap());
    let (device, _, mut driver) = start(disk);
    let mut size = [0; 4];
    device.read_config(20, &mut size).unwrap();
    assert_eq!(u32::from_le_bytes(size), 4096);
    for (sector, len, status) in [
        (0, 4096, OK),
        (8, 8192, OK),
        (1, 4096, IOERR),
        (0, 512, IOERR),
    ] {
        assert_eq!(driver.ask(0, IN, sector, &[], len).status(), status);
        assert_eq!(
            driver.ask(0, OUT, sector, &vec![0; len], 0).status(),
            status
        );
    }
}

/// Chains that no driver makes: each is answered if there is a place to answer in, and the ring
/// goes on.
#[test]
fn chains_that_make_no_sense() {
    let (_device, face, mut driver) = start(mem());
    let (read, write) = (header(IN, 0), header(OUT, 0));
    let flush = header(FLUSH, 0);
    let discard = header(DISCARD, 0);
    let many = [range(0, 1, 0); 17].concat();
    let flagged = range(0, 1, 1);
    let reserved = range(0, 1, 2);
    let zero = header(WRITE_ZEROES, 0);
    type Case<'a> = (&'a [&'a [u8]], &'a [usize], Option<u8>);
    let cases: &[Case<'_>] = &[
        // No header, or not all of it.
        (&[], &[1], None),
        (&[&read[..15]], &[512, 1], None),
        (&[&read[..1], &read[1..15]], &[1], None),
        (&[&[]], &[1], None),
        // No status byte.
        (&[&read], &[], None),
        (&[&read], &[0, 0], None),
        (&[&write, &[0; 512]], &[], None),
        // Data on the wrong side.
        (&[&read, &[0; 512]], &[512, 1], Some(IOERR)),
        (&[&read, &[0; 1]], &[1], Some(IOERR)),
        (&[&write, &[0; 512]], &[512, 1], Some(IOERR)),
        (&[&write], &[512, 1], Some(IOERR)),
        (&[&discard, &range(0, 1, 0)], &[1, 1], Some(IOERR)),
        // Ranges.
        (&[&discard], &[1], Some(IOERR)),
        (&[&discard, &[0; 15]], &[1], Some(IOERR)),
        (&[&discard, &many], &[1], Some(IOERR)),
        (&[&discard, &flagged], &[1], Some(UNSUPP)),
        (&[&zero, &reserved], &[1], Some(UNSUPP)),
        (&[&zero, &range(0, 1, u32::MAX)], &[1], Some(UNSUPP)),
        // What a flush has besides means nothing.
        (&[&flush, &[0; 100]], &[100, 1], Some(OK)),
        // Empty pieces are none.
        (&[&[], &read, &[]], &[0, 512, 0, 1, 0], Some(OK)),
    ];
    let mut malformed = 0;
    for (number, (readable, writable, status)) in cases.iter().enumerate() {
        let id = driver.chain(0, readable, writable, number % 2 == 0);
        driver.submit(0);
        let answer = driver.wait(0);
        assert_eq!(Some(answer.id), id);
        match status {
            Some(status) => {
                assert_eq!(answer.status(), *status, "case {number}");
                assert_eq!(answer.len as usize, answer.bytes.len(), "case {number}");
            }
            None => {
                malformed += 1;
                assert_eq!(answer.len, 0, "case {number}");
                assert!(answer.bytes.iter().all(|&byte| byte == 0xee));
            }
        }
    }
    let snapshot = face.snapshot();
    assert_eq!(snapshot.all.malformed, malformed);
    assert_eq!(snapshot.queues[0].0, RingState::Running);
    assert_eq!(driver.ask(0, FLUSH, 0, &[], 0).status(), OK);
}

#[test]
fn a_ring_that_is_broken_is_stopped_and_the_others_go_on() {
    let config = BlkConfig {
        queues: 2,
        ..BlkConfig::default()
    };
    let (mut device, face) = device(mem(), config, Polling::default());
    let mut driver = MockBlk::start(&mut device, MockBlk::memory(2), SPLIT, 2, 64, false);
    driver.queue(0).write_desc(0, 0xdead_0000_0000, 16, 0, 0);
    driver.queue(0).push_head(0);
    driver.queue(0).publish_index(1);
    driver.queue(0).kick_now();
    let begin = Instant::now();
    while face.snapshot().queues[0].0 != RingState::Broken {
        assert!(begin.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(driver.ask(1, FLUSH, 0, &[], 0).status(), OK);
    let wrong: Vec<_> = face
        .snapshot()
        .all
        .wrong()
        .filter(|(_, n)| *n > 0)
        .collect();
    assert_eq!(wrong, [("unmapped", 1)]);
    assert_eq!(driver.signals(0).1, 1, "the front-end was told");
    device.stop_ring(0).unwrap();
    assert_eq!(face.snapshot().queues[0].0, RingState::Stopped);
}

#[test]
fn the_configuration_space_says_what_the_disk_is() {
    let config = BlkConfig {
        queues: 3,
        ..BlkConfig::default()
    };
    let (mut device, face) = device(mem(), config, Polling::default());
    let wanted = feature::FLUSH
        | feature::CONFIG_WCE
        | feature::DISCARD
        | feature::WRITE_ZEROES
        | feature::MQ
        | feature::SIZE_MAX
        | feature::SEG_MAX
        | feature::BLK_SIZE
        | feature::TOPOLOGY;
    assert_eq!(device.features() & 0xff_ffff, wanted);
    assert_eq!(device.features() & ring::IN_ORDER, 0);
    let field = |device: &BlkDevice, offset, len| {
        let mut bytes = [0; 8];
        device.read_config(offset, &mut bytes[..len]).unwrap();
        u64::from_le_bytes(bytes)
    };
    assert_eq!(field(&device, 0, 8), SECTORS);
    assert_eq!(field(&device, 20, 4), 512);
    assert_eq!(field(&device, 24, 1), 3, "eight blocks in a physical one");
    assert_eq!(field(&device, 34, 2), 3);
    assert!(field(&device, 36, 4) > 0 && field(&device, 48, 4) > 0);
    assert_eq!(field(&device, 56, 1), 1);
    assert!(device.read_config(95, &mut [0]).is_ok());
    for (offset, len) in [(96, 1), (95, 2), (u32::MAX, 1), (0, 97)] {
        let error = device.read_config(offset, &mut vec![0; len]);
        assert!(matches!(error, Err(DeviceError::Config { .. })));
    }
    // The only thing that a driver may write.
    assert_eq!(field(&device, 32, 1), 1);
    device.write_config(32, &[0]).unwrap();
    assert_eq!((field(&device, 32, 1), face.is_write_back()), (0, false));
    for (offset, data) in [
        (32, &[2][..]),
        (32, &[1, 0]),
        (31, &[0]),
        (0, &[0; 8]),
        (33, &[1]),
    ] {
        assert!(device.write_config(offset, data).is_err(), "{offset}");
    }
    device.reset();
    assert_eq!(field(&device, 32, 1), 1, "as it is configured");
    // And when the disk grows.
    face.disk().size().set(SIZE / 2);
    assert_eq!(field(&device, 0, 8), SECTORS / 2);
}

#[test]
fn what_may_only_be_read_is_not_written() {
    let config = BlkConfig {
        read_only: true,
        ..BlkConfig::default()
    };
    let (mut device, face) = device(mem(), config, Polling::default());
    assert_eq!(device.features() & feature::RO, feature::RO);
    let writing = feature::FLUSH | feature::CONFIG_WCE | feature::DISCARD | feature::WRITE_ZEROES;
    assert_eq!(device.features() & writing, 0);
    assert!(device.write_config(32, &[0]).is_err());
    let mut driver = MockBlk::start(&mut device, MockBlk::memory(1), SPLIT, 1, 64, false);
    assert_eq!(driver.ask(0, IN, 0, &[], 512).status(), OK);
    assert_eq!(driver.ask(0, OUT, 0, &[1; 512], 0).status(), IOERR);
    // Not negotiated.
    for kind in [FLUSH, DISCARD, WRITE_ZEROES] {
        assert_eq!(driver.ask(0, kind, 0, &range(0, 1, 0), 0).status(), UNSUPP);
    }
    assert_eq!(face.snapshot().all.written, 0);
    assert_eq!(driver.ask(0, IN, 0, &[], 512).data(), [0; 512]);
}

#[test]
fn what_the_disk_says_is_what_the_driver_hears() {
    for (error, status) in [("EIO", IOERR), ("ENOSPC", IOERR), ("EOPNOTSUPP", UNSUPP)] {
        let plan: Result<Plan, _> = format!("write:every:2:{error}").parse();
        let Ok(plan) = plan else {
            panic!("{plan:?}");
        };
        let (_device, face, mut driver) = start(Faulty::before(mem(), plan));
        for number in 1..=6 {
            let expected = if number % 2 == 0 { status } else { OK };
            assert_eq!(driver.ask(0, OUT, 0, &[1; 512], 0).status(), expected);
            assert_eq!(driver.ask(0, IN, 0, &[], 512).status(), OK);
        }
        let wrong: u64 = face.snapshot().all.wrong().map(|(_, n)| n).sum();
        assert_eq!(wrong, 3);
    }
}

/// What was in flight when a ring was stopped is done, and the ring goes on behind it.
#[test]
fn a_stopped_ring_has_given_everything_back() {
    for features in [SPLIT, PACKED] {
        let wait = Duration::from_secs(3600);
        let (mut device, face) = device(
            Delay::before(mem(), wait, wait),
            BlkConfig::default(),
            Polling::default(),
        );
        let mut driver = MockBlk::start(&mut device, MockBlk::memory(1), features, 1, 64, false);
        let ask = |driver: &mut MockBlk, sector| {
            let write = header(OUT, sector);
            driver
                .chain(0, &[&write, &[sector as u8; 512]], &[1], false)
                .unwrap();
        };
        (0..10).for_each(|sector| ask(&mut driver, sector));
        driver.submit(0);
        let begin = Instant::now();
        while face.snapshot().all.done_all() == 0 && begin.elapsed() < Duration::from_millis(50) {
            std::thread::yield_now();
        }
        assert!(driver.answer(0).is_none(), "it takes an hour");
        // A ring that is not enabled takes nothing more; what is in flight goes on.
        device.change_ring(0, RingChange::Enabled(false)).unwrap();
        let base = device.stop_ring(0).unwrap();
        assert_eq!(base & 0x7fff, if features == SPLIT { 10 } else { 30 });
        for _ in 0..10 {
            assert_eq!(driver.answer(0).map(|answer| answer.status()), Some(OK));
        }
        assert!(driver.answer(0).is_none() && driver.flying(0) == 0);
        assert!(matches!(
            device.stop_ring(0),
            Err(DeviceError::RingState { .. })
        ));
    }
}

#[test]
fn memory_moves_while_requests_are_in_flight() {
    let wait = Duration::from_millis(2);
    let disk = Delay::before(mem(), wait, 4 * wait);
    let (mut device, _) = device(disk, BlkConfig::default(), Polling::default());
    let guest = MockBlk::memory(1);
    let mut driver = MockBlk::start(&mut device, guest.clone(), SPLIT, 1, 64, false);
    for round in 0..20u8 {
        let write = header(OUT, round.into());
        driver
            .chain(0, &[&write, &[round; 512]], &[1], false)
            .unwrap();
        driver.submit(0);
        let moved = guest.moved();
        let areas = driver.queue(0).move_to(&moved);
        device.set_memory(moved.table(), vec![(0, areas)]).unwrap();
        assert_eq!(driver.wait(0).status(), OK);
        assert_eq!(
            driver.ask(0, IN, round.into(), &[], 512).data(),
            [round; 512]
        );
    }
    let error = device.set_memory(guest.table(), Vec::new());
    assert!(matches!(error, Err(DeviceError::RingState { .. })));
}

#[test]
fn a_worker_sleeps_while_the_disk_works() {
    let wait = Duration::from_millis(300);
    for polling in [Polling::Adaptive, Polling::Interrupt] {
        let disk = Delay::before(mem(), wait, wait);
        let workers = BlkWorkers::new(&[0], polling).unwrap();
        let face = Face::new("test", disk, BlkConfig::default());
        let mut device = BlkDevice::new(face, Arc::clone(&workers));
        let mut driver = MockBlk::start(&mut device, MockBlk::memory(1), SPLIT, 1, 64, false);
        for _ in 0..3 {
            let before = workers.stats()[0].rounds;
            let begin = Instant::now();
            assert_eq!(driver.ask(0, IN, 0, &[], 512).status(), OK);
            assert!(begin.elapsed() >= wait);
            let rounds = workers.stats()[0].rounds - before;
            // Polling all the time would make some millions.
            assert!(rounds < 200_000, "{rounds} rounds for one request");
        }
        assert!(workers.stats()[0].sleeps > 0);
    }
}

#[test]
fn idle_queues_rest_and_hear_their_kick() {
    let workers = BlkWorkers::new(&[0], Polling::Adaptive).unwrap();
    let disk = Arc::new(Null::new("null", SIZE, Geometry::default()));
    let config = BlkConfig {
        queues: 64,
        ..BlkConfig::default()
    };
    let face = Face::new("test", disk, config);
    let mut device = BlkDevice::new(face, Arc::clone(&workers));
    let mut driver = MockBlk::start(&mut device, MockBlk::memory(64), SPLIT, 64, 16, false);
    let begin = Instant::now();
    // One that is busy keeps the worker awake; the others rest.
    while workers.stats()[0].resting < 63 {
        assert_eq!(driver.ask(0, IN, 0, &[], 512).status(), OK);
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "they do not rest"
        );
    }
    for queue in 0..64 {
        assert_eq!(driver.ask(queue, IN, 0, &[], 512).status(), OK);
    }
    device.reset();
}

#[test]
fn queues_that_are_not_there() {
    let (mut device, _, mut driver) = start(mem());
    assert_eq!(device.queues(), 1);
    let (vring, _, _) = driver.queue(0).vring(1);
    assert!(matches!(
        device.start_ring(vring),
        Err(DeviceError::NoQueue { .. })
    ));
    let (vring, _, _) = driver.queue(0).vring(0);
    assert!(matches!(
        device.start_ring(vring),
        Err(DeviceError::RingState { .. })
    ));
    assert!(device.stop_ring(1).is_err());
    let more = device.features() | 1 << 60;
    assert!(matches!(
        device.set_features(more),
        Err(DeviceError::Features { .. })
    ));
}

/// A whole connection, with a front-end that others wrote.
#[test]
fn a_front_end_hears_that_its_disk_has_grown() {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use vhost::vhost_user::{
        Frontend, VhostUserFrontend, VhostUserProtocolFeatures, message::VhostUserConfigFlags,
    };
    use vhost::{VhostBackend, vhost_user::message::VhostUserVirtioFeatures};
    use vvu::session::Session;
    use vvu::transport::unix::UnixTransport;

    let path = Temp::new("grown.sock");
    let temp = Temp::new("grown");
    let disk = temp.disk(false).unwrap();
    let (device, _) = device(Arc::clone(&disk), BlkConfig::default(), Polling::default());
    let transport = UnixTransport::listen(&path.0).unwrap();
    let session = Session::spawn(Box::new(transport), Box::new(device)).unwrap();

    let mut front_end = Frontend::connect(&path.0, 1).unwrap();
    let features = front_end.get_features().unwrap();
    front_end.set_owner().unwrap();
    front_end.set_features(features & !(1 << 26)).unwrap();
    assert!(features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0);
    let offered = front_end.get_protocol_features().unwrap();
    let wanted = VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::REPLY_ACK;
    assert!(offered.contains(wanted), "{offered:?}");
    front_end.set_protocol_features(wanted).unwrap();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    front_end.set_backend_request_fd(&theirs).unwrap();
    drop(theirs);
    let mut capacity = || {
        let flags = VhostUserConfigFlags::empty();
        let (_, bytes) = front_end.get_config(0, 8, flags, &[0; 8]).unwrap();
        u64::from_le_bytes(bytes.try_into().unwrap())
    };
    assert_eq!(capacity(), SECTORS);

    let file = std::fs::File::options().write(true).open(&temp.0).unwrap();
    file.set_len(2 * SIZE).unwrap();
    disk.refresh().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut message = [0; 12];
    ours.read_exact(&mut message).unwrap();
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(capacity(), 2 * SECTORS);
    drop(session);
}
