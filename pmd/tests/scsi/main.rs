//! Running workers between drivers of SCSI devices and disks in memory.
#![allow(clippy::unwrap_used)]

mod hostile;
mod management;
mod sharing;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vvu::virtio::VirtioDevice;
use vvu_pmd::bdev::{Disk, Geometry, Mem};
use vvu_pmd::mock::blk::MockBlk;
use vvu_pmd::scsi::{Address, Face, Lun, ScsiConfig, Store};
use vvu_pmd::vring::feature as ring;
use vvu_pmd::worker::Polling;
use vvu_pmd::{ScsiDevice, ScsiWorkers};

const SPLIT: u64 = !ring::RING_PACKED;
const PACKED: u64 = !0;

/// Size of most disks here.
const SIZE: u64 = 4 << 20;

/// Queues: control, events, and the first one for requests.
const CONTROL: usize = 0;
const EVENTS: usize = 1;
const REQUESTS: usize = 2;

/// Length of a response: its head, and room for sense data.
const RESPONSE: usize = 108;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

fn mem() -> Arc<dyn Disk> {
    Arc::new(Mem::new("mem:4M", SIZE, Geometry::default()).unwrap())
}

fn at(target: u8, lun: u16) -> Address {
    Address { target, lun }
}

fn lun_bytes(at: Address) -> [u8; 8] {
    let [high, low] = at.lun.to_be_bytes();
    [1, at.target, high | 0x40, low, 0, 0, 0, 0]
}

/// What comes before a command's data.
fn header(at: Address, tag: u64, cdb: &[u8]) -> Vec<u8> {
    let mut header = lun_bytes(at).to_vec();
    header.extend(tag.to_le_bytes());
    header.extend([0; 3]);
    header.extend(cdb);
    header.resize(51, 0);
    header
}

/// What a command was answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Response {
    residual: u32,
    status: u8,
    code: u8,
    sense: Vec<u8>,
    data: Vec<u8>,
}

impl Response {
    fn new(bytes: &[u8]) -> Self {
        let le32 = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let sense = le32(0) as usize;
        Self {
            residual: le32(4),
            status: bytes[10],
            code: bytes[11],
            sense: bytes[12..12 + sense].to_vec(),
            data: bytes[RESPONSE..].to_vec(),
        }
    }

    /// Sense key and code.
    fn sense(&self) -> (u8, u16) {
        let code = u16::from_be_bytes([self.sense[12], self.sense[13]]);
        (self.sense[2] & 0xf, code)
    }
}

/// A device, its driver, and what belongs to them.
struct Bench {
    device: ScsiDevice,
    face: Arc<Face>,
    driver: MockBlk,
}

impl Bench {
    fn with(name: &str, workers: &Arc<ScsiWorkers>, features: u64, queues: u16) -> Self {
        let face = Face::new(name, ScsiConfig { queues });
        let mut device = ScsiDevice::new(Arc::clone(&face), Arc::clone(workers));
        let all = face.queues();
        let memory = MockBlk::memory(all.into());
        let driver = MockBlk::start(&mut device, memory, features, all, 64, false);
        Self {
            device,
            face,
            driver,
        }
    }

    /// With a disk in memory at target 0, LUN 0, whose driver has heard of the power on.
    fn new(features: u64) -> Self {
        let workers = ScsiWorkers::new(&[0], Polling::default()).unwrap();
        let mut bench = Self::with("test", &workers, features, 1);
        bench
            .face
            .add(at(0, 0), Lun::new("disk", mem(), false, None));
        bench.settle(at(0, 0));
        bench
    }

    /// The driver hears of everything that there is to be told of a unit.
    fn settle(&mut self, at: Address) {
        let start = Instant::now();
        loop {
            let ready = self.run(at, &[0; 6], &[], 0);
            assert_eq!(ready.code, 0);
            if ready.status == 0 {
                break;
            }
            assert!(start.elapsed() < PATIENCE);
        }
    }

    /// Begins a command without waiting for it.
    fn begin(
        &mut self,
        queue: usize,
        at: Address,
        tag: u64,
        cdb: &[u8],
        out: &[u8],
        room: usize,
    ) -> u16 {
        let header = header(at, tag, cdb);
        let id = self
            .driver
            .chain(queue, &[&header, out], &[RESPONSE, room], false);
        self.driver.submit(queue);
        id.unwrap()
    }

    /// A command, and what it was answered with.
    fn run(&mut self, at: Address, cdb: &[u8], out: &[u8], room: usize) -> Response {
        let id = self.begin(REQUESTS, at, 1, cdb, out, room);
        let answer = self.driver.wait(REQUESTS);
        assert_eq!(answer.id, id);
        Response::new(&answer.bytes)
    }

    /// A task management function, begun.
    fn begin_management(&mut self, function: u32, at: Address, tag: u64) {
        let mut bytes = vec![0; 4];
        bytes.extend(function.to_le_bytes());
        bytes.extend(lun_bytes(at));
        bytes.extend(tag.to_le_bytes());
        self.driver.chain(CONTROL, &[&bytes], &[1], false).unwrap();
        self.driver.submit(CONTROL);
    }

    /// A task management function, and its response.
    fn manage(&mut self, function: u32, at: Address, tag: u64) -> u8 {
        self.begin_management(function, at, tag);
        self.driver.wait(CONTROL).bytes[0]
    }

    /// Waits for an event: its number, where, and the reason.
    fn event(&mut self) -> (u32, Vec<u8>, u32) {
        let bytes = self.driver.wait(EVENTS).bytes;
        let le32 = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        (le32(0), bytes[4..12].to_vec(), le32(12))
    }

    fn give_event_buffers(&mut self, count: usize) {
        for _ in 0..count {
            self.driver.chain(EVENTS, &[], &[16], false).unwrap();
        }
        self.driver.submit(EVENTS);
    }
}

fn rw10(code: u8, lba: u32, count: u16) -> Vec<u8> {
    let mut cdb = vec![code, 0];
    cdb.extend(lba.to_be_bytes());
    cdb.push(0);
    cdb.extend(count.to_be_bytes());
    cdb.push(0);
    cdb
}

fn write(lba: u32, count: u16) -> Vec<u8> {
    rw10(0x2a, lba, count)
}

fn read(lba: u32, count: u16) -> Vec<u8> {
    rw10(0x28, lba, count)
}

/// A file that is gone when the test is over.
struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Self {
        let name = format!("vvu-scsi-{name}-{}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn what_is_written_is_read_in_every_format() {
    for features in [SPLIT, PACKED] {
        let mut bench = Bench::new(features);
        for round in 0..200u32 {
            let data = vec![round as u8; 4096];
            let response = bench.run(at(0, 0), &write(round * 8, 8), &data, 0);
            assert_eq!(
                (response.status, response.code, response.residual),
                (0, 0, 0)
            );
        }
        for round in 0..200u32 {
            let response = bench.run(at(0, 0), &read(round * 8, 8), &[], 5000);
            assert_eq!(
                (response.status, response.code, response.residual),
                (0, 0, 904)
            );
            assert!(
                response.data[..4096]
                    .iter()
                    .all(|&byte| byte == round as u8)
            );
            assert!(
                response.data[4096..].iter().all(|&byte| byte == 0xee),
                "no more"
            );
        }
        assert_eq!(bench.face.snapshot().queues[0].done[..2], [200, 200]);
    }
}

#[test]
fn every_kind_of_end_has_its_response() {
    let mut bench = Bench::new(SPLIT);
    let unit = at(0, 0);
    let inquiry = bench.run(unit, &[0x12, 0, 0, 0, 36, 0], &[], 100);
    assert_eq!((inquiry.status, inquiry.residual), (0, 64));
    assert_eq!(inquiry.data[8..11], *b"VVU");
    let refused = bench.run(unit, &[0xff; 10], &[], 512);
    assert_eq!(
        (refused.status, refused.residual, refused.sense()),
        (2, 512, (5, 0x2000))
    );
    let outside = bench.run(unit, &read(8191, 2), &[], 1024);
    assert_eq!((outside.status, outside.sense()), (2, (5, 0x2100)));
    // Units and targets that there are not.
    let missing = bench.run(at(0, 5), &[0; 6], &[], 0);
    assert_eq!((missing.status, missing.sense()), (2, (5, 0x2500)));
    assert_eq!(bench.run(at(9, 0), &[0; 6], &[], 0).code, 3);
    // Buffers that are too short, or of both kinds.
    assert_eq!(bench.run(unit, &read(0, 2), &[], 1023).code, 1);
    assert_eq!(bench.run(unit, &write(0, 2), &[0; 512], 0).code, 1);
    assert_eq!(bench.run(unit, &write(0, 1), &[0; 512], 1).code, 9);
    // Jobs: one that goes well, one that does not.
    let block = [7; 512];
    let same = bench.run(unit, &rw10(0x41, 0, 100), &block, 0);
    assert_eq!((same.status, same.residual), (0, 0));
    let verify = |byte| [0x2f, byte, 0, 0, 0, 0, 0, 0, 1, 0];
    assert_eq!(bench.run(unit, &verify(2), &block, 0).status, 0);
    let differs = bench.run(unit, &verify(2), &[8; 512], 0);
    assert_eq!((differs.status, differs.sense()), (2, (0xe, 0x1d00)));
    assert_eq!(bench.run(unit, &rw10(0x35, 0, 0), &[], 0).status, 0);
    let fua = bench.run(unit, &[0x28, 8, 0, 0, 0, 0, 0, 0, 1, 0], &[], 600);
    assert_eq!((fua.status, fua.residual), (0, 88));
    assert_eq!(fua.data[..512], block);
    let checked = bench.run(unit, &[0x2e, 2, 0, 0, 0, 9, 0, 0, 1, 0], &[3; 512], 0);
    assert_eq!((checked.status, checked.residual), (0, 0));
    assert_eq!(bench.run(unit, &read(9, 1), &[], 512).data, [3; 512]);
}

#[test]
fn lengths_of_cdbs_and_sense_data_are_the_drivers_choice() {
    let mut bench = Bench::new(SPLIT);
    let mut space = [0; 36];
    bench.device.read_config(0, &mut space).unwrap();
    assert_eq!((space[0], space[20], space[24]), (1, 96, 32));
    bench.device.write_config(20, &18u32.to_le_bytes()).unwrap();
    bench.device.write_config(24, &16u32.to_le_bytes()).unwrap();
    bench
        .device
        .write_config(24, &0u32.to_le_bytes())
        .unwrap_err();
    bench
        .device
        .write_config(0, &9u32.to_le_bytes())
        .unwrap_err();
    let mut short = header(at(0, 0), 2, &[0x28, 0, 0, 0, 0, 0]);
    let mut header = header(at(0, 0), 1, &[0xff; 16]);
    header.truncate(35);
    bench
        .driver
        .chain(REQUESTS, &[&header], &[30], false)
        .unwrap();
    bench.driver.submit(REQUESTS);
    let answer = bench.driver.wait(REQUESTS);
    assert_eq!(
        (answer.bytes[0], answer.bytes[10], answer.bytes[12]),
        (18, 2, 0x70)
    );
    // What follows a CDB is data, whatever a longer command would have there: it is cut short.
    bench.device.write_config(24, &6u32.to_le_bytes()).unwrap();
    short.extend([0xff; 10]);
    bench
        .driver
        .chain(REQUESTS, &[&short], &[30], false)
        .unwrap();
    bench.driver.submit(REQUESTS);
    let answer = bench.driver.wait(REQUESTS);
    assert_eq!((answer.bytes[10], answer.bytes[11]), (2, 0));
    // A reset brings the first ones back.
    bench.device.reset();
    bench.device.read_config(0, &mut space).unwrap();
    assert_eq!((space[20], space[24]), (96, 32));
}

#[test]
fn units_come_and_go_and_change_and_drivers_hear_of_it() {
    let mut bench = Bench::new(SPLIT);
    bench.give_event_buffers(1);
    let first = bench.event();
    assert_eq!(
        first,
        (1, lun_bytes(at(0, 0)).to_vec(), 1),
        "the first one came"
    );
    let disk = mem();
    bench.face.add(
        at(3, 300),
        Lun::new("other", Arc::clone(&disk), false, None),
    );
    // There is no buffer yet; the event waits for one.
    bench.give_event_buffers(3);
    assert_eq!(bench.event(), (1, lun_bytes(at(3, 300)).to_vec(), 1));
    bench.settle(at(3, 300));
    assert_eq!(bench.run(at(3, 300), &write(0, 1), &[1; 512], 0).status, 0);
    disk.size().set(SIZE / 2);
    assert_eq!(bench.event(), (3, lun_bytes(at(3, 300)).to_vec(), 0x092a));
    let told = bench.run(at(3, 300), &[0; 6], &[], 0);
    assert_eq!(told.sense(), (6, 0x2a09));
    assert_eq!(
        bench.run(at(3, 300), &read(4096, 1), &[], 512).sense(),
        (5, 0x2100)
    );
    assert!(bench.face.remove(at(3, 300)) && !bench.face.remove(at(3, 300)));
    assert_eq!(bench.event(), (1, lun_bytes(at(3, 300)).to_vec(), 2));
    assert_eq!(bench.run(at(3, 300), &[0; 6], &[], 0).code, 3);
    // Another one in its place, again and again.
    for round in 0..20u8 {
        bench
            .face
            .add(at(3, 300), Lun::new("new", mem(), false, None));
        bench.settle(at(3, 300));
        let written = bench.run(at(3, 300), &write(5, 1), &[round; 512], 0);
        assert_eq!(written.status, 0, "{round}: {written:?}");
        assert_eq!(
            bench.run(at(3, 300), &read(4, 2), &[], 1024).data[512..],
            [round; 512]
        );
        bench.face.remove(at(3, 300));
    }
}

#[test]
fn events_that_nobody_has_room_for_are_counted_as_missed() {
    let mut bench = Bench::new(SPLIT);
    for _ in 0..300 {
        bench
            .face
            .add(at(1, 1), Lun::new("new", mem(), false, None));
        bench.face.remove(at(1, 1));
    }
    let mut missed = 0;
    for _ in 0..20 {
        bench.give_event_buffers(10);
        for _ in 0..10 {
            missed += usize::from(bench.event().0 >> 31 != 0);
        }
    }
    assert!(missed > 0);
}

#[test]
fn many_units_on_many_targets() {
    let workers = ScsiWorkers::new(&[0], Polling::default()).unwrap();
    let mut bench = Bench::with("test", &workers, SPLIT, 1);
    let places = [
        at(0, 0),
        at(0, 1),
        at(0, 16383),
        at(255, 0),
        at(255, 256),
        at(17, 3),
    ];
    for (place, number) in places.iter().zip(1u8..) {
        let lun = Lun::new(&format!("disk-{number}"), mem(), false, None);
        bench.face.add(*place, lun);
    }
    for (place, number) in places.iter().zip(1u8..) {
        bench.settle(*place);
        assert_eq!(bench.run(*place, &write(0, 1), &[number; 512], 0).status, 0);
    }
    for (place, number) in places.iter().zip(1u8..) {
        assert_eq!(bench.run(*place, &read(0, 1), &[], 512).data, [number; 512]);
        let page = bench.run(*place, &[0x12, 1, 0x80, 0, 255, 0], &[], 255);
        assert_eq!(page.data[4..10], *format!("disk-{number}").as_bytes());
    }
    let list = bench.run(at(0, 7), &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[], 256);
    assert_eq!(list.data[3], 24);

    // The well known unit of each target lists those of the target, that of the device all.
    let mut lists = |lun: [u8; 8], which: u8| {
        let mut header = header(at(0, 0), 1, &[0xa0, 0, which, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        header[..8].copy_from_slice(&lun);
        let chain = [&header[..], &[]];
        let driver = &mut bench.driver;
        driver
            .chain(REQUESTS, &chain, &[RESPONSE, 256], false)
            .unwrap();
        driver.submit(REQUESTS);
        let answer = Response::new(&driver.wait(REQUESTS).bytes);
        if answer.code != 0 {
            return Err(answer.code);
        }
        let len = u32::from_be_bytes(answer.data[..4].try_into().unwrap()) as usize;
        assert_eq!(answer.residual as usize, 256 - 8 - len);
        Ok(answer.data[8..8 + len].as_chunks::<8>().0.to_vec())
    };
    let mut of_255 = vec![[0; 8], [0x41, 0, 0, 0, 0, 0, 0, 0]];
    assert_eq!(lists([1, 255, 0xc1, 1, 0, 0, 0, 0], 0), Ok(of_255.clone()));
    let well_known = [0xc1, 1, 0, 0, 0, 0, 0, 0];
    of_255.push(well_known);
    assert_eq!(lists([1, 255, 0xc1, 1, 0, 0, 0, 0], 2), Ok(of_255));
    let mut all = places.map(lun_bytes).to_vec();
    all.sort_unstable();
    assert_eq!(lists(well_known, 0), Ok(all.clone()));
    assert_eq!(lists(well_known, 1), Ok(vec![well_known]));
    // Where they lead is where the units are.
    for lun in all {
        assert!(lists(lun, 0).is_ok());
    }
    for nowhere in [[1, 9, 0xc1, 1, 0, 0, 0, 0], [0xc1, 2, 0, 0, 0, 0, 0, 0]] {
        assert_eq!(lists(nowhere, 0), Err(3), "{nowhere:x?}");
    }
}

#[test]
fn rings_are_stopped_moved_and_started_again() {
    let mut bench = Bench::new(SPLIT);
    for round in 0..20u8 {
        assert_eq!(
            bench.run(at(0, 0), &write(0, 1), &[round; 512], 0).status,
            0
        );
        let base = bench.device.stop_ring(2).unwrap();
        let queue = bench.driver.queue(REQUESTS);
        let (mut vring, ..) = queue.vring(2);
        vring.base = base;
        bench.device.start_ring(vring).unwrap();
        assert_eq!(
            bench.run(at(0, 0), &read(0, 1), &[], 512).data,
            [round; 512]
        );
    }
    bench.device.reset();
}
