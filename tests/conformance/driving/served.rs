//! Everything that serves a front-end, on a modelled device, and a guest's network card that is
//! served by it: what it sends comes back.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use vm_memory::Bytes;
use vvu::device::Device;
use vvu::memory::{Area, Mapping};
use vvu::model::Shape;
use vvu::pci::DmaMemory;
use vvu::protocol::{MemRegion, Request, VringAddr, VringFd, VringState};
use vvu::session::Session;
use vvu::transport::vvu::VvuTransport;
use vvu_pmd::stats::PortSnapshot;
use vvu_pmd::{NetConfig, PortKind, Workers};

use super::driven::{Modelled, options};
use super::watched::{Change, Watched};
use crate::front_end::{FrontEnd, PLAIN, eventfd, memory, region, request};
use crate::ring::{self, Notify, Ring};
use crate::{PATIENCE, pause};

/// Protocol features that matter here: MQ, REPLY_ACK.
const PROTOCOL: u64 = 1 | 1 << 3;
/// VERSION_1, and the bit that protocol features hang on.
const FEATURES: u64 = 1 << 32 | 1 << 30;

/// Where the guest's memory is, for the guest and for its VMM, and its length.
pub(crate) const MEMORY: u64 = 0x10_0000;
pub(crate) const MEMORY_LEN: u64 = 4 << 20;

/// virtio-net's header.
const HEADER: usize = 12;

/// A back-end with one card and an echo behind it. The session goes first.
pub(crate) struct Served {
    pub(crate) session: Session,
    workers: Workers,
    pub(crate) modelled: Modelled,
}

impl Served {
    pub(crate) fn new(shape: &Shape) -> Self {
        Self::changed(shape, Change::default())
    }

    pub(crate) fn changed(shape: &Shape, change: Change) -> Self {
        let modelled = Modelled::new(shape);
        let (_, watched) = Watched::new(modelled.model.function(), change);
        let device = Device::open(Box::new(watched), options()).unwrap();
        let workers = Workers::start(&[0]).unwrap();
        let card = NetConfig {
            mac: [2, 0, 0, 0, 0, 1],
            ..NetConfig::default()
        };
        let (_, card) = workers
            .add_port("card", PortKind::Vhost(card), None)
            .unwrap();
        let echo = PortKind::Echo { swap: true };
        workers.add_port("echo", echo, None).unwrap();
        let transport = VvuTransport::new(device);
        let session = Session::spawn(Box::new(transport), Box::new(card.unwrap())).unwrap();
        Self {
            session,
            workers,
            modelled,
        }
    }

    pub(crate) fn card(&self) -> PortSnapshot {
        self.workers.stats().port("card").unwrap().clone()
    }

    /// How often its worker went to sleep.
    pub(crate) fn sleeps(&self) -> u64 {
        let workers = self.workers.stats().workers;
        workers.iter().map(|worker| worker.sleeps).sum()
    }

    /// Whether it serves nobody and has nothing left of who was served.
    pub(crate) fn is_idle(&self) -> bool {
        let report = self.session.status().report();
        !report.connected && report.running_rings == 0
    }
}

/// Waits until something is as it should be.
#[track_caller]
pub(crate) fn until(what: &str, good: impl Fn() -> bool) {
    let start = Instant::now();
    while !good() {
        assert!(start.elapsed() < PATIENCE, "it never happened: {what}");
        pause();
    }
}

/// A guest's network card, as its VMM and its driver see it.
pub(crate) struct Guest {
    pub(crate) front_end: FrontEnd,
    /// Its memory.
    pub(crate) file: OwnedFd,
    /// The receive ring and the transmit ring.
    pub(crate) rings: [Ring; 2],
    pub(crate) kicks: [OwnedFd; 2],
    pub(crate) calls: [OwnedFd; 2],
}

/// The guest's memory, mapped.
pub(crate) fn mapped(file: &OwnedFd) -> Area {
    Mapping::of_file(file.as_fd(), 0, MEMORY_LEN)
        .unwrap()
        .into()
}

fn guest_memory(file: &OwnedFd) -> DmaMemory {
    DmaMemory {
        bytes: mapped(file),
        iova: MEMORY,
    }
}

fn event(fd: &OwnedFd) -> Notify {
    Notify::Event(fd.try_clone().unwrap())
}

impl Guest {
    /// A front-end that has agreed on features, and nothing else.
    pub(crate) fn connect(served: &Served) -> Self {
        let mut front_end = served.modelled.connect();
        front_end.number(request::SET_PROTOCOL_FEATURES, PLAIN, PROTOCOL, &[]);
        front_end.ok(&Request::SetFeatures(FEATURES), &[]);
        let file = memory("vvu-guest", MEMORY_LEN, 0);
        let kicks = [eventfd(), eventfd()];
        let memory = guest_memory(&file);
        Self {
            front_end,
            rings: [0, 1].map(|ring| Ring::new(ring, &memory, event(&kicks[usize::from(ring)]))),
            file,
            kicks,
            calls: [eventfd(), eventfd()],
        }
    }

    /// One whose rings run.
    pub(crate) fn started(served: &Served) -> Self {
        let mut guest = Self::connect(served);
        guest.set_memory();
        guest.start(0);
        guest.start(1);
        guest
    }

    /// The one region of its memory.
    pub(crate) fn region() -> MemRegion {
        region(MEMORY, MEMORY_LEN, 0)
    }

    #[track_caller]
    pub(crate) fn set_memory(&mut self) {
        let table = Request::SetMemTable(vec![Self::region()]);
        self.front_end.ok(&table, &[&self.file]);
    }

    /// All of its memory.
    pub(crate) fn contents(file: &OwnedFd) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY_LEN as usize];
        mapped(file).slice().read_slice(&mut bytes, 0).unwrap();
        bytes
    }

    /// Its rings as they would go on in another file, which is made a copy of its memory.
    pub(crate) fn copied(&self, file: &OwnedFd) -> [Ring; 2] {
        let memory = guest_memory(file);
        let bytes = Self::contents(&self.file);
        memory.bytes.slice().write_slice(&bytes, 0).unwrap();
        [0, 1].map(|ring| self.rings[ring].moved(&memory, event(&self.kicks[ring])))
    }

    fn state(index: u16, num: u32) -> VringState {
        VringState {
            index: index.into(),
            num,
        }
    }

    /// Sets a ring up to the point where only its kick is missing.
    #[track_caller]
    pub(crate) fn prepare(&mut self, index: u16) {
        let [desc, avail, used] = self.rings[usize::from(index)].addresses();
        let addresses = VringAddr {
            index: index.into(),
            flags: 0,
            desc,
            avail,
            used,
            log: 0,
        };
        let fd = VringFd {
            index: index as u8,
            nofd: false,
        };
        let call = &self.calls[usize::from(index)];
        let size = Self::state(index, ring::SIZE.into());
        self.front_end.ok(&Request::SetVringNum(size), &[]);
        let base = Request::SetVringBase(Self::state(index, 0));
        self.front_end.ok(&base, &[]);
        self.front_end.ok(&Request::SetVringAddr(addresses), &[]);
        self.front_end.ok(&Request::SetVringCall(fd), &[call]);
        let enable = Request::SetVringEnable(Self::state(index, 1));
        self.front_end.ok(&enable, &[]);
    }

    /// Gives a ring its kick, with which it starts.
    #[track_caller]
    pub(crate) fn arm(&mut self, index: u16) {
        let fd = VringFd {
            index: index as u8,
            nofd: false,
        };
        let kick = &self.kicks[usize::from(index)];
        self.front_end.ok(&Request::SetVringKick(fd), &[kick]);
    }

    #[track_caller]
    pub(crate) fn start(&mut self, index: u16) {
        self.prepare(index);
        self.arm(index);
    }

    /// Offers a buffer to receive into.
    pub(crate) fn post_rx(&mut self) {
        self.rings[0].offer(&[2048], true, &[]);
    }

    /// Offers a frame with this number, as its driver does; nobody is told.
    pub(crate) fn post_tx(&mut self, number: u32) {
        Self::offer_frame(&mut self.rings[1], number);
    }

    /// Offers a frame in this ring.
    pub(crate) fn offer_frame(ring: &mut Ring, number: u32) {
        let mut frame = [0; HEADER + 60];
        frame[HEADER..][..6].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
        frame[HEADER + 6..][..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        frame[HEADER + 12..][..2].copy_from_slice(&[0x88, 0xb5]);
        frame[HEADER + 14..][..4].copy_from_slice(&number.to_le_bytes());
        ring.offer(&[frame.len() as u32], false, &frame);
    }

    /// Sends a frame and waits for it to come back.
    #[track_caller]
    pub(crate) fn exchange(&mut self, number: u32) {
        self.post_rx();
        self.rings[0].notify();
        self.post_tx(number);
        self.rings[1].notify();
        self.expect(number);
    }

    /// Waits for a frame to come back.
    #[track_caller]
    pub(crate) fn expect(&mut self, number: u32) {
        let (id, len) = self.wait_used(0);
        let frame = self.rings[0].bytes(id, len);
        assert_eq!(frame.len(), HEADER + 60);
        assert_eq!(frame[HEADER + 14..][..4], number.to_le_bytes());
        self.wait_used(1);
    }

    #[track_caller]
    fn wait_used(&mut self, index: usize) -> (u16, u32) {
        let start = Instant::now();
        loop {
            if let Some(used) = self.rings[index].used() {
                return used;
            }
            assert!(start.elapsed() < PATIENCE, "ring {index} is not served");
            pause();
        }
    }

    /// Overwrites all that its rings are made of.
    pub(crate) fn spoil(&self, byte: u8) {
        let memory = mapped(&self.file);
        let garbage = vec![byte; 0x3000];
        for ring in 0..2 {
            let at = ring * ring::BYTES;
            memory.slice().write_slice(&garbage, at).unwrap();
        }
    }
}
