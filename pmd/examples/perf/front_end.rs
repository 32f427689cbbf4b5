//! A front-end over AF_UNIX that is faster than any back-end: its chains never change, so that a
//! round of its driver is two loads and two stores, however many frames came.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::Bytes;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vvu_pmd::mock::MockGuest;
use vvu_pmd::vring::feature as ring;

use crate::rig::{BUFFER, ENTRIES, mac};

const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Without num_buffers merged: VERSION_1's header.
const HEADER: usize = 12;

/// A frame that is not back by then is lost, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A split ring (VIRTIO 1.2, 2.7), and where its driver is.
struct Ring {
    desc: u64,
    avail: u64,
    used: u64,
    /// Chains that the device has used.
    done: u16,
    /// Chains that the device may use.
    offered: u16,
    kick: EventFd,
    call: EventFd,
}

/// See the [module](self).
pub(crate) struct FrontEnd {
    memory: MockGuest,
    /// To the guest and from it.
    rings: [Ring; 2],
    connection: Option<Frontend>,
}

impl FrontEnd {
    /// A guest that sends frames of `size` bytes. With `calls`, it wants to be told of what comes.
    pub(crate) fn new(size: usize, calls: bool) -> anyhow::Result<Self> {
        let mut memory = MockGuest::new(0, &[4 << 20]);
        let rings = [
            Ring::new(&mut memory, calls)?,
            Ring::new(&mut memory, calls)?,
        ];
        for number in 0..ENTRIES {
            let buffers = [memory.alloc(BUFFER, 64), memory.alloc(BUFFER, 64)];
            memory.write(buffers[1] + HEADER as u64, &mac(1, 0));
            memory.write(buffers[1] + HEADER as u64 + 6, &mac(0, 0));
            rings[0].fill(&memory, number, buffers[0], BUFFER, 2);
            rings[1].fill(&memory, number, buffers[1], HEADER + size, 0);
        }
        Ok(Self {
            memory,
            rings,
            connection: None,
        })
    }

    /// Leaves the back-end that it has, and goes on with the one at `path`, in the same memory.
    pub(crate) fn connect(&mut self, path: &Path) -> anyhow::Result<()> {
        // Before anybody else may write to the rings.
        self.leave()?;
        for ring in &mut self.rings {
            ring.restart(&self.memory);
        }
        self.connection = Some(negotiate(path, &self.memory, &self.rings)?);
        Ok(())
    }

    /// Stops the rings, and leaves.
    fn leave(&mut self) -> anyhow::Result<()> {
        if let Some(connection) = self.connection.take() {
            for index in 0..self.rings.len() {
                connection.get_vring_base(index)?;
            }
        }
        Ok(())
    }

    /// All chains go round for so long. Returns frames per second.
    pub(crate) fn blast(&mut self, time: Duration) -> anyhow::Result<f64> {
        self.start(ENTRIES);
        let (mut frames, start) = (0u64, Instant::now());
        while start.elapsed() < time {
            for _ in 0..64 {
                for (number, ring) in self.rings.iter_mut().enumerate() {
                    let done = ring.step(&self.memory, ENTRIES);
                    frames += if number == 0 { u64::from(done) } else { 0 };
                }
            }
        }
        ensure!(frames > 0, "no frame came back");
        Ok(frames as f64 / start.elapsed().as_secs_f64())
    }

    /// One frame goes round at a time, so often, after a pause. Returns nanoseconds for each.
    pub(crate) fn ping(&mut self, count: u32, pause: Duration) -> anyhow::Result<Vec<f64>> {
        // Whatever a blast has left: all that was sent is used, and some time later is back.
        let start = Instant::now();
        while self.rings[1].used_index(&self.memory) != self.rings[1].offered {
            ensure!(start.elapsed() < PATIENCE, "a frame is not taken");
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(5));
        for ring in &mut self.rings {
            ring.done = ring.used_index(&self.memory);
        }
        let mut times = Vec::new();
        for _ in 0..count {
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
            let start = Instant::now();
            self.start(1);
            while self.rings[0].used_index(&self.memory) == self.rings[0].done {
                ensure!(start.elapsed() < PATIENCE, "a frame is lost");
                std::hint::spin_loop();
            }
            times.push(start.elapsed().as_nanos() as f64);
            for ring in &mut self.rings {
                ring.done = ring.done.wrapping_add(1);
            }
        }
        Ok(times)
    }

    /// Offers so many chains of each ring.
    fn start(&mut self, chains: u16) {
        for ring in &mut self.rings {
            ring.offer(&self.memory, chains);
        }
    }
}

impl Ring {
    fn new(memory: &mut MockGuest, calls: bool) -> anyhow::Result<Self> {
        let entries = usize::from(ENTRIES);
        let eventfd = || EventFd::new(EFD_NONBLOCK).context("no eventfd");
        let this = Self {
            desc: memory.alloc(16 * entries, 4096),
            avail: memory.alloc(6 + 2 * entries, 4096),
            used: memory.alloc(6 + 8 * entries, 4096),
            done: 0,
            offered: 0,
            kick: eventfd()?,
            call: eventfd()?,
        };
        // VIRTQ_AVAIL_F_NO_INTERRUPT.
        memory.write(this.avail, &u16::from(!calls).to_le_bytes());
        Ok(this)
    }

    /// As if nothing had ever been offered or used.
    fn restart(&mut self, memory: &MockGuest) {
        (self.done, self.offered) = (0, 0);
        memory.write(self.avail + 2, &[0; 2]);
        memory.write(self.used, &[0; 4]);
    }

    /// Chain `number` is this buffer, for ever.
    fn fill(&self, memory: &MockGuest, number: u16, addr: u64, len: usize, flags: u16) {
        let mut desc = [0; 16];
        desc[..8].copy_from_slice(&addr.to_le_bytes());
        desc[8..12].copy_from_slice(&(len as u32).to_le_bytes());
        desc[12..14].copy_from_slice(&flags.to_le_bytes());
        memory.write(self.desc + 16 * u64::from(number), &desc);
        let slot = self.avail + 4 + 2 * u64::from(number);
        memory.write(slot, &number.to_le_bytes());
    }

    fn load(memory: &MockGuest, addr: u64) -> u16 {
        let table = memory.table();
        let place = table.guest(addr, 2);
        place.map_or(0, |place| place.load(0, Ordering::Acquire).unwrap_or(0))
    }

    fn used_index(&self, memory: &MockGuest) -> u16 {
        Self::load(memory, self.used + 2)
    }

    /// The device may use so many chains more than it has used.
    fn offer(&mut self, memory: &MockGuest, chains: u16) {
        self.offered = self.done.wrapping_add(chains);
        let table = memory.table();
        if let Some(place) = table.guest(self.avail + 2, 2) {
            let _ = place.store(self.offered, 0, Ordering::Release);
        }
        // Pairs with the device's fence between asking for kicks and looking again.
        std::sync::atomic::fence(Ordering::SeqCst);
        if Self::load(memory, self.used) & 1 == 0 {
            let _ = self.kick.write(1);
        }
    }

    /// Offers again what the device has used since the last time.
    fn step(&mut self, memory: &MockGuest, chains: u16) -> u16 {
        let used = self.used_index(memory);
        let new = used.wrapping_sub(self.done);
        if new > 0 {
            self.done = used;
            self.offer(memory, chains);
        }
        new
    }
}

fn negotiate(path: &Path, memory: &MockGuest, rings: &[Ring; 2]) -> anyhow::Result<Frontend> {
    let mut frontend = Frontend::connect(path, 2).context("no back-end")?;
    frontend.set_owner()?;
    frontend.get_features()?;
    let protocol = frontend.get_protocol_features()?;
    frontend.set_protocol_features(protocol)?;
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_features(ring::VERSION_1 | PROTOCOL_FEATURES)?;
    let table = memory.table();
    let (Some(region), Some(file)) = (table.regions().first(), memory.files().first()) else {
        anyhow::bail!("a guest without memory");
    };
    frontend.set_mem_table(&[VhostUserMemoryRegionInfo {
        guest_phys_addr: region.guest_addr,
        memory_size: region.bytes.len() as u64,
        userspace_addr: region.user_addr,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    }])?;
    for (index, ring) in rings.iter().enumerate() {
        let config = VringConfigData {
            queue_max_size: ENTRIES,
            queue_size: ENTRIES,
            flags: 0,
            desc_table_addr: region.user_addr + ring.desc,
            avail_ring_addr: region.user_addr + ring.avail,
            used_ring_addr: region.user_addr + ring.used,
            log_addr: None,
        };
        frontend.set_vring_num(index, ENTRIES)?;
        frontend.set_vring_addr(index, &config)?;
        frontend.set_vring_base(index, 0)?;
        frontend.set_vring_call(index, &ring.call)?;
        frontend.set_vring_kick(index, &ring.kick)?;
        frontend.set_vring_enable(index, true)?;
    }
    Ok(frontend)
}
