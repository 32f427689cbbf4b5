//! `vvu blk` killed under load, and started again: its front-end goes on as if nothing had been, and
//! every block has what was written to it last.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vvu::notify::Kick;
use vvu::virtio::RingAreas;
use vvu_pmd::mock::{Buffer, MockGuest, MockQueue, Random};
use vvu_pmd::vring::feature;

/// Nothing here takes that long; a loaded machine may.
const PATIENCE: Duration = Duration::from_secs(60);

const BIT30: u64 = 1 << 30;
const QUEUES: u16 = 2;
const SIZE: u16 = 64;
/// Blocks of the disk, and their bytes.
const BLOCKS: usize = 256;
const BLOCK: usize = 4096;
/// Where the guest's memory begins, and where in it requests are: header, data, status.
const START: u64 = 0x10_0000;
const REQUESTS: u64 = START + 0x10_0000;
const PLACE: u64 = 0x2000;
/// Requests in flight on a queue.
const DEPTH: usize = 24;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vvu-killed-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `vvu blk`, killed when it goes.
struct Served(Child);

impl Served {
    fn new(socket: &Path, disk: &str) -> Self {
        let port = format!("unix:{},queues={QUEUES}", socket.display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_vvu"));
        command.args(["blk", "--port", &port, "--disk", disk]);
        Self(
            command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // SIGKILL.
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A request in flight.
struct Flying {
    place: usize,
    block: usize,
    /// What the block has when it is done; for a read, what it must have.
    value: u32,
    write: bool,
}

/// A front-end with its guest, which outlive all back-ends.
struct Machine {
    guest: MockGuest,
    features: u64,
    queues: Vec<MockQueue>,
    /// Kick, call and error signal.
    fds: Vec<[EventFd; 3]>,
    areas: Vec<RingAreas>,
    flying: Vec<HashMap<u16, Flying>>,
    free: Vec<usize>,
    /// Blocks that nobody has in flight, and what each has.
    idle: Vec<usize>,
    values: Vec<u32>,
    next: u32,
    inflight: Option<(VhostUserInflight, File)>,
    done: usize,
}

impl Machine {
    fn new(features: u64) -> Self {
        let len = (REQUESTS - START) as usize + 2 * DEPTH * PLACE as usize;
        let mut guest = MockGuest::new(START, &[len]);
        let (mut queues, mut fds, mut areas) = (Vec::new(), Vec::new(), Vec::new());
        for index in 0..QUEUES {
            let mut queue = MockQueue::new(&mut guest, SIZE, features, 0);
            let (vring, _, _) = queue.vring_with(index, Kick::Polled);
            areas.push(vring.areas);
            fds.push([(); 3].map(|()| EventFd::new(EFD_NONBLOCK).unwrap()));
            queues.push(queue);
        }
        Self {
            guest,
            features,
            queues,
            fds,
            areas,
            flying: (0..QUEUES).map(|_| HashMap::new()).collect(),
            free: (0..2 * DEPTH).collect(),
            idle: (0..BLOCKS).collect(),
            values: vec![0; BLOCKS],
            next: 1,
            inflight: None,
            done: 0,
        }
    }

    fn is_packed(&self) -> bool {
        self.features & feature::RING_PACKED != 0
    }

    /// Says to a new back-end what a VMM says that has lost its last one.
    fn attach(&mut self, socket: &Path) -> Frontend {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut front_end = Frontend::from_stream(stream, QUEUES.into());
        front_end.set_owner().unwrap();
        let offered = front_end.get_features().unwrap();
        assert_eq!(offered & self.features, self.features);
        let protocol = front_end.get_protocol_features().unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD));
        front_end.set_protocol_features(protocol).unwrap();
        front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        front_end.set_features(self.features | BIT30).unwrap();
        let wanted = VhostUserInflight {
            num_queues: QUEUES,
            queue_size: SIZE,
            ..VhostUserInflight::default()
        };
        let (buffer, file) = self
            .inflight
            .get_or_insert_with(|| front_end.get_inflight_fd(&wanted).unwrap());
        front_end.set_inflight_fd(buffer, file.as_raw_fd()).unwrap();
        let table = self.guest.table();
        let region = &table.regions()[0];
        let user = |area: &vvu::memory::Area| {
            region.user_addr + (area.address() - region.bytes.address()) as u64
        };
        front_end
            .set_mem_table(&[VhostUserMemoryRegionInfo {
                guest_phys_addr: region.guest_addr,
                memory_size: region.bytes.len() as u64,
                userspace_addr: region.user_addr,
                mmap_offset: 0,
                mmap_handle: self.guest.files()[0].as_raw_fd(),
            }])
            .unwrap();
        for index in 0..usize::from(QUEUES) {
            front_end.set_vring_num(index, SIZE).unwrap();
            let base = match self.is_packed() {
                // What QEMU says, who cannot know better.
                true => 0x8000,
                false => self.queues[index].used_index(),
            };
            front_end.set_vring_base(index, base).unwrap();
            let areas = &self.areas[index];
            let addresses = VringConfigData {
                queue_max_size: SIZE,
                queue_size: SIZE,
                flags: 0,
                desc_table_addr: user(&areas.desc),
                avail_ring_addr: user(&areas.driver),
                used_ring_addr: user(&areas.device),
                log_addr: None,
            };
            front_end.set_vring_addr(index, &addresses).unwrap();
            let [kick, call, err] = &self.fds[index];
            front_end.set_vring_err(index, err).unwrap();
            front_end.set_vring_call(index, call).unwrap();
            front_end.set_vring_kick(index, kick).unwrap();
            front_end.set_vring_enable(index, true).unwrap();
        }
        front_end
    }

    /// A read or write of a block that nobody else has in flight.
    fn request(&mut self, queue: usize, random: &mut Random) {
        let (Some(place), false) = (self.free.pop(), self.idle.is_empty()) else {
            return;
        };
        let block = self.idle.swap_remove(random.range(0, self.idle.len() - 1));
        let write = random.range(0, 2) > 0;
        let at = REQUESTS + PLACE * place as u64;
        let sector = (block * BLOCK / 512) as u64;
        let header = [u64::from(write), sector].map(u64::to_le_bytes);
        self.guest.write(at, header.as_flattened());
        let value = if write { self.next } else { self.values[block] };
        let data = if write { value } else { !0 };
        self.guest
            .write(at + 0x1000, &data.to_le_bytes().repeat(BLOCK / 4));
        self.guest.write(at + 16, &[0xee]);
        let buffer = |offset, len, writable| Buffer {
            addr: at + offset,
            len,
            writable,
        };
        let data = match random.range(0, 1) {
            0 => vec![buffer(0x1000, BLOCK as u32, !write)],
            _ => vec![
                buffer(0x1000, 512, !write),
                buffer(0x1200, BLOCK as u32 - 512, !write),
            ],
        };
        let mut chain = vec![buffer(0, 16, false)];
        chain.extend(data);
        chain.push(buffer(16, 1, true));
        let table = at + 0x100;
        let id = match random.range(0, 1) {
            0 => self.queues[queue].add(&chain),
            _ => self.queues[queue].add_indirect(&chain, table, 0),
        };
        let Some(id) = id else {
            self.free.push(place);
            self.idle.push(block);
            return;
        };
        self.next += u32::from(write);
        let flying = Flying {
            place,
            block,
            value,
            write,
        };
        assert!(self.flying[queue].insert(id, flying).is_none());
    }

    /// Takes back what is done and checks it. The mock driver knows what is in flight.
    fn collect(&mut self) {
        for queue in 0..self.queues.len() {
            while let Some((id, _)) = self.queues[queue].used() {
                let done = self.flying[queue].remove(&id).unwrap();
                let at = REQUESTS + PLACE * done.place as u64;
                assert_eq!(self.guest.read(at + 16, 1), [0], "status");
                let wanted = done.value.to_le_bytes().repeat(BLOCK / 4);
                let found = self.guest.read(at + 0x1000, BLOCK);
                assert!(
                    found == wanted,
                    "block {} is not {}",
                    done.block,
                    done.value
                );
                if done.write {
                    self.values[done.block] = done.value;
                }
                self.free.push(done.place);
                self.idle.push(done.block);
                self.done += 1;
            }
        }
    }

    /// Keeps both queues busy until so many more requests are done.
    fn load(&mut self, random: &mut Random, requests: usize) {
        let (wanted, deadline) = (self.done + requests, Instant::now() + PATIENCE);
        while self.done < wanted {
            self.fill(random);
            self.collect();
            assert!(
                Instant::now() < deadline,
                "stalled: {} in flight",
                self.in_flight()
            );
            std::thread::yield_now();
        }
    }

    /// Puts as much as there is place for into both queues.
    fn fill(&mut self, random: &mut Random) {
        for queue in 0..self.queues.len() {
            while self.flying[queue].len() < DEPTH && !self.free.is_empty() {
                let before = self.flying[queue].len();
                self.request(queue, random);
                if self.flying[queue].len() == before {
                    break;
                }
            }
            if self.queues[queue].publish() {
                self.kick(queue);
            }
        }
    }

    fn kick(&self, queue: usize) {
        self.fds[queue][0].write(1).unwrap();
    }

    fn in_flight(&self) -> usize {
        self.flying.iter().map(HashMap::len).sum()
    }

    /// Waits until everything is back.
    fn finish(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.in_flight() > 0 {
            self.collect();
            assert!(Instant::now() < deadline, "lost: {}", self.in_flight());
            std::thread::yield_now();
        }
    }
}

fn killed(name: &str, features: u64) {
    let scratch = Scratch::new(name);
    let socket = scratch.0.join("sock");
    let image = scratch.0.join("image");
    let disk = format!("file:{},size={}K", image.display(), BLOCKS * BLOCK / 1024);
    let random = &mut Random::new(11);
    let mut machine = Machine::new(features);
    let (mut rounds, mut caught) = (0, 0);
    // On a busy machine all may be done before the signal comes.
    while rounds < 12 || caught == 0 {
        assert!(rounds < 200, "it was never killed at work");
        rounds += 1;
        let served = Served::new(&socket, &disk);
        let front_end = machine.attach(&socket);
        // What came in the meantime is served, kicked or not.
        (0..usize::from(QUEUES)).for_each(|queue| machine.kick(queue));
        let requests = 100 + random.range(0, 400);
        machine.load(random, requests);
        machine.fill(random);
        drop(served);
        drop(front_end);
        // What it gave back before it died is back.
        machine.collect();
        caught += machine.in_flight();
    }
    let _served = Served::new(&socket, &disk);
    let front_end = machine.attach(&socket);
    machine.finish();
    // Stopped by the book, and started again without a word about the past.
    for index in 0..usize::from(QUEUES) {
        front_end.get_vring_base(index).unwrap();
    }
    drop(front_end);
    let bytes = std::fs::read(&image).unwrap();
    for (block, value) in machine.values.iter().enumerate() {
        let found = &bytes[block * BLOCK..(block + 1) * BLOCK];
        assert!(
            found == value.to_le_bytes().repeat(BLOCK / 4),
            "block {block}"
        );
    }
}

#[test]
fn nothing_is_lost_with_split_rings() {
    killed(
        "split",
        feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX,
    );
}

#[test]
fn nothing_is_lost_with_packed_rings() {
    let ring = feature::RING_PACKED | feature::EVENT_IDX;
    killed("packed", feature::VERSION_1 | feature::INDIRECT_DESC | ring);
}
