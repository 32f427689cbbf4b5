//! A control queue that a front-end passes on: over vhost-user, with rust-vmm's front-end, which
//! others wrote.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use common::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vvu::session::Session;
use vvu::transport::unix::UnixTransport;
use vvu_pmd::net::feature;
use vvu_pmd::stats::RingState;
use vvu_pmd::vring::feature as ring;
use vvu_pmd::{NetConfig, PortKind, Workers};

const USER: u64 = 0x7f00_0000_0000;
const LEN: u64 = 0x10_0000;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const PAIRS: u16 = 2;
/// The last of 2 * PAIRS + 1 queues.
const CONTROL: usize = 2 * PAIRS as usize;

/// A control queue of 16 entries at the beginning of a guest's memory.
struct Queue {
    memory: OwnedFd,
    kick: EventFd,
    call: EventFd,
    next: u16,
}

impl Queue {
    fn write(&self, at: u64, bytes: &[u8]) {
        assert_eq!(pwrite(&self.memory, bytes, at).unwrap(), bytes.len());
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        assert_eq!(pread(&self.memory, &mut bytes, at).unwrap(), N);
        bytes
    }

    /// Says a command and waits for the answer.
    fn say(&mut self, command: &[u8]) -> u8 {
        let desc = |addr: u64, len: usize, flags: u16| {
            let mut bytes = addr.to_le_bytes().to_vec();
            bytes.extend((len as u32).to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(1u16.to_le_bytes());
            bytes
        };
        // One to read, one to write.
        self.write(0, &desc(0x4000, command.len(), 1));
        self.write(16, &desc(0x5000, 1, 2));
        self.write(0x4000, command);
        self.write(0x5000, &[0xaa]);
        let slot = u64::from(self.next % 16);
        self.write(0x1004 + 2 * slot, &0u16.to_le_bytes());
        self.next += 1;
        self.write(0x1002, &self.next.to_le_bytes());
        self.kick.write(1).unwrap();
        wait(|| u16::from_le_bytes(self.read(0x2002)) == self.next);
        wait(|| self.call.read().is_ok());
        self.read::<1>(0x5000)[0]
    }
}

fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

#[test]
fn a_control_queue_starts_and_answers() {
    let name = format!("vvu-control-{}.sock", std::process::id());
    let path = std::env::temp_dir().join(name);
    let workers = Workers::start(&[0]).unwrap();
    let config = NetConfig {
        mac: A,
        pairs: PAIRS,
        control: true,
        ..NetConfig::default()
    };
    let device = workers.add_port("a", PortKind::Vhost(config), None);
    let device = device.unwrap().1.unwrap();
    let transport = UnixTransport::listen(&path).unwrap();
    let session = Session::spawn(Box::new(transport), Box::new(device)).unwrap();

    let stream = UnixStream::connect(&path).unwrap();
    let mut front_end = Frontend::from_stream(stream, u64::from(2 * PAIRS + 1));
    front_end.set_owner().unwrap();
    let offered = front_end.get_features().unwrap();
    let features = PROTOCOL_FEATURES
        | ring::VERSION_1
        | feature::CONTROL
        | feature::RSS
        | feature::MQ
        | feature::MAC
        | feature::STATUS;
    assert_eq!(offered & features, features);
    let protocol = front_end.get_protocol_features().unwrap();
    front_end.set_protocol_features(protocol).unwrap();
    front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    front_end.set_features(features).unwrap();
    assert_eq!(front_end.get_queue_num().unwrap(), u64::from(2 * PAIRS + 1));

    let memory = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memory, LEN).unwrap();
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: LEN,
        userspace_addr: USER,
        mmap_offset: 0,
        mmap_handle: memory.as_raw_fd(),
    };
    front_end.set_mem_table(&[region]).unwrap();
    let mut queue = Queue {
        memory,
        kick: eventfd(),
        call: eventfd(),
        next: 0,
    };
    let place = VringConfigData {
        queue_max_size: 16,
        queue_size: 16,
        flags: 0,
        desc_table_addr: USER,
        avail_ring_addr: USER + 0x1000,
        used_ring_addr: USER + 0x2000,
        log_addr: None,
    };
    front_end.set_vring_num(CONTROL, 16).unwrap();
    front_end.set_vring_addr(CONTROL, &place).unwrap();
    front_end.set_vring_base(CONTROL, 0).unwrap();
    front_end.set_vring_call(CONTROL, &queue.call).unwrap();
    front_end.set_vring_kick(CONTROL, &queue.kick).unwrap();
    front_end.set_vring_enable(CONTROL, true).unwrap();
    let state = || workers.stats().port("a").unwrap().rings[CONTROL];
    wait(|| state() == RingState::Running);

    let flags = VhostUserConfigFlags::empty();
    let mut space = |at, len| front_end.get_config(at, len, flags, &vec![0; len as usize]);
    assert_eq!(space(0, 6).unwrap().1, A);
    // The worker sleeps by now, or will soon: a kick wakes it.
    assert_eq!(queue.say(&[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    assert_eq!(space(0, 6).unwrap().1, [2, 0, 0, 0, 0, 9]);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(queue.say(&[4, 0, PAIRS as u8, 0]), 0);
    assert_eq!(queue.say(&[4, 0, PAIRS as u8 + 1, 0]), 1);
    assert_eq!(queue.say(&[]), 1);
    // Speed, duplex, key, table and hash types.
    let (_, config) = space(12, 12).unwrap();
    assert_eq!(config, [0x10, 0x27, 0, 0, 1, 40, 128, 0, 0x3f, 0, 0, 0]);
    assert_eq!(workers.stats().port("a").unwrap().refused, 2);
    // The queue moves with the memory.
    front_end.set_mem_table(&[region]).unwrap();
    assert_eq!(queue.say(&[4, 0, 1, 0]), 0);

    // The next front-end finds the card as it was made.
    assert_eq!(front_end.get_vring_base(CONTROL).unwrap(), 5);
    assert_eq!(state(), RingState::Stopped);
    drop(front_end);
    let status = session.status();
    wait(|| !status.report().connected);
    let stream = UnixStream::connect(&path).unwrap();
    let mut front_end = Frontend::from_stream(stream, 1);
    front_end.set_owner().unwrap();
    front_end.get_features().unwrap();
    let protocol = front_end.get_protocol_features().unwrap();
    front_end.set_protocol_features(protocol).unwrap();
    assert_eq!(front_end.get_config(0, 6, flags, &[0; 6]).unwrap().1, A);
    drop(front_end);
    session.stop();
    let _ = std::fs::remove_file(&path);
}
