//! The session driven by rust-vmm's `vhost` front-end, which was written by others.

use std::os::fd::{AsRawFd, OwnedFd};

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::Bytes;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::bench::{Bench, memory};
use super::fake::VERSION_1;
use crate::notify::Kick;

const PROTOCOL_FEATURES: u64 = 1 << 30;
const USER: u64 = 0x7f00_0000_0000;
const LEN: u64 = 0x10_0000;

fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

fn region(file: &OwnedFd, guest: u64, user: u64, offset: u64) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: guest,
        memory_size: LEN,
        userspace_addr: user,
        mmap_offset: offset,
        mmap_handle: file.as_raw_fd(),
    }
}

fn ring_at(user: u64) -> VringConfigData {
    VringConfigData {
        queue_max_size: 256,
        queue_size: 256,
        flags: 0,
        desc_table_addr: user,
        avail_ring_addr: user + 0x1000,
        used_ring_addr: user + 0x2000,
        log_addr: None,
    }
}

/// A front-end as far as negotiated, with an answer to every request.
fn negotiated(bench: &Bench) -> Frontend {
    let mut frontend = Frontend::from_stream(bench.stream(), 4);
    frontend.set_owner().unwrap();
    let offered = frontend.get_features().unwrap();
    assert_ne!(offered & PROTOCOL_FEATURES, 0);
    // The dirty log and the IOTLB are not served, whatever the device says.
    assert_eq!(offered & (1 << 26 | 1 << 33), 0);
    let protocol = frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend
        .set_features(VERSION_1 | PROTOCOL_FEATURES)
        .unwrap();
    frontend
}

#[test]
fn from_nothing_to_a_started_ring_and_back() {
    let bench = Bench::new(4);
    let mut frontend = negotiated(&bench);
    assert_eq!(frontend.get_queue_num().unwrap(), 4);
    let file = memory(LEN);
    frontend
        .set_mem_table(&[region(&file, 0, USER, 0)])
        .unwrap();
    let (kick, call, err) = (eventfd(), eventfd(), eventfd());
    frontend.set_vring_num(1, 256).unwrap();
    frontend.set_vring_addr(1, &ring_at(USER + 0x4000)).unwrap();
    frontend.set_vring_base(1, 17).unwrap();
    frontend.set_vring_call(1, &call).unwrap();
    frontend.set_vring_err(1, &err).unwrap();
    assert!(bench.device.seen().rings.is_empty());
    frontend.set_vring_kick(1, &kick).unwrap();
    {
        let seen = bench.device.seen();
        let ring = &seen.rings[&1];
        assert_eq!((ring.size, ring.base, ring.enabled), (256, 17, false));
        assert_eq!(ring.features, VERSION_1);
        assert_eq!(ring.areas.desc.len(), 16 * 256);
        assert_eq!(ring.areas.driver.len(), 6 + 2 * 256);
        assert_eq!(ring.areas.device.len(), 6 + 8 * 256);
        // What the front-end writes is what the device reads.
        rustix::io::pwrite(&file, b"used", 0x6000).unwrap();
        let mut used = [0; 4];
        ring.areas.device.slice().read_slice(&mut used, 0).unwrap();
        assert_eq!(&used, b"used");
        // Kick, call and err reach the right side.
        kick.write(3).unwrap();
        assert!(matches!(ring.kick, Kick::Event(_)));
        ring.kick.clear();
        assert!(kick.read().is_err());
        ring.call.ring();
        assert_eq!(call.read().unwrap(), 1);
        ring.err.ring();
        assert_eq!(err.read().unwrap(), 1);
    }
    frontend.set_vring_enable(1, true).unwrap();
    assert!(bench.device.seen().rings[&1].enabled);
    frontend.set_vring_enable(1, false).unwrap();
    assert!(!bench.device.seen().rings[&1].enabled);
    assert_eq!(bench.report().running_rings, 1);
    assert_eq!(frontend.get_vring_base(1).unwrap(), 18);
    assert!(bench.device.seen().rings.is_empty());
    assert_eq!(bench.report().running_rings, 0);
    assert_eq!(bench.report().nacks, 0);

    drop(frontend);
    bench.until("disconnected", |status| !status.connected);
    assert_eq!(bench.device.seen().resets, 1);
    bench.stop();
}

#[test]
fn every_other_message_that_it_can_send() {
    let bench = Bench::new(4);
    let mut frontend = negotiated(&bench);
    let flags = VhostUserConfigFlags::empty();
    let (_, config) = frontend.get_config(2, 4, flags, &[0; 4]).unwrap();
    assert_eq!(config, [2, 3, 4, 5]);
    frontend.set_config(0, flags, &[9, 8]).unwrap();
    assert_eq!(bench.device.seen().config[..3], [9, 8, 2]);
    assert!(frontend.set_config(23, flags, &[1, 2]).is_err());

    assert_eq!(frontend.get_max_mem_slots().unwrap(), 509);
    let file = memory(2 * LEN);
    let (low, high) = (
        region(&file, 0, USER, 0),
        region(&file, LEN, USER + LEN, LEN),
    );
    frontend.add_mem_region(&low).unwrap();
    frontend.add_mem_region(&high).unwrap();
    assert!(frontend.add_mem_region(&high).is_err(), "it is there");
    assert_eq!(
        bench.device.seen().memory.as_ref().unwrap().regions().len(),
        2
    );
    frontend.remove_mem_region(&low).unwrap();
    assert!(frontend.remove_mem_region(&low).is_err(), "it is gone");

    frontend.reset_device().unwrap();
    assert_eq!(bench.device.seen().resets, 1);
    frontend.reset_owner().unwrap();
    assert!(frontend.set_features(1 << 50).is_err());
    assert!(frontend.set_vring_num(0, 0).is_err());
    assert!(frontend.set_vring_num(0, 40000).is_err());
    // Refusals were answered; the connection stands.
    assert_eq!(frontend.get_features().unwrap() & VERSION_1, VERSION_1);
    assert_eq!(bench.report().nacks, 6);
    assert_eq!(bench.report().violations, 0);
    bench.stop();
}

#[test]
fn what_is_not_offered_is_not_acknowledged() {
    let bench = Bench::new(2);
    let mut frontend = negotiated(&bench);
    let offered = frontend.get_protocol_features().unwrap();
    let expected = VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::RARP
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::MTU
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::STATUS;
    assert_eq!(offered, expected);
    assert!(
        frontend
            .set_protocol_features(VhostUserProtocolFeatures::all())
            .is_err()
    );
    bench.stop();
}

#[test]
fn without_protocol_features_rings_are_enabled_at_their_start() {
    let bench = Bench::new(2);
    let frontend = Frontend::from_stream(bench.stream(), 2);
    frontend.set_owner().unwrap();
    frontend.get_features().unwrap();
    frontend.set_features(VERSION_1).unwrap();
    let file = memory(LEN);
    frontend
        .set_mem_table(&[region(&file, 0, USER, 0)])
        .unwrap();
    frontend.set_vring_num(0, 256).unwrap();
    frontend.set_vring_base(0, 0).unwrap();
    frontend.set_vring_addr(0, &ring_at(USER)).unwrap();
    frontend.set_vring_kick(0, &eventfd()).unwrap();
    frontend.set_vring_call(0, &eventfd()).unwrap();
    bench.until("the ring runs", |status| status.running_rings == 1);
    assert!(bench.device.seen().rings[&0].enabled);
    assert_eq!(frontend.get_vring_base(0).unwrap(), 1);
    bench.stop();
}

#[test]
fn buffers_for_requests_in_flight_come_and_go() {
    let bench = Bench::new(4);
    let mut frontend = negotiated(&bench);
    let wanted = VhostUserInflight {
        num_queues: 4,
        queue_size: 256,
        ..VhostUserInflight::default()
    };
    let (given, file) = frontend.get_inflight_fd(&wanted).unwrap();
    assert_eq!((given.num_queues, given.queue_size), (4, 256));
    assert_eq!((given.mmap_size, given.mmap_offset), (5 << 12, 0));
    assert_eq!(file.metadata().unwrap().len(), 5 << 12);
    frontend.set_inflight_fd(&given, file.as_raw_fd()).unwrap();
    let memory = memory(LEN);
    let table = [region(&memory, 0, USER, 0)];
    frontend.set_mem_table(&table).unwrap();
    frontend.set_vring_num(3, 256).unwrap();
    frontend.set_vring_addr(3, &ring_at(USER)).unwrap();
    frontend.set_vring_base(3, 0).unwrap();
    frontend.set_vring_kick(3, &eventfd()).unwrap();
    let seen = bench.device.seen();
    let region = seen.rings[&3].inflight.as_ref().unwrap();
    assert_eq!(region.len(), 16 + 16 * 256);
    region.slice().write_obj(7u8, 9).unwrap();
    let mut bytes = [0; 1];
    std::os::unix::fs::FileExt::read_at(&file, &mut bytes, 3 * 4160 + 9).unwrap();
    assert_eq!(bytes, [7], "the front-end keeps what we write");
}
