//! What `vvu` costs while nobody has anything to do for it: 64 front-ends of a switch, 8 of disks,
//! connected and idle.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process};
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Nothing here takes that long; a loaded machine may.
const PATIENCE: Duration = Duration::from_secs(60);

const FRONT_ENDS: usize = 64;

/// Disks, each with a front-end of its own.
const DISKS: usize = 8;

/// What an idle `vvu` may have of one CPU.
const MOST: f64 = 0.02;

const VERSION_1: u64 = 1 << 32;
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// A guest's memory: two rings, then a frame and a buffer for one.
const LEN: u64 = 0x10_0000;
const USER: u64 = 0x7f00_0000_0000;
const RING: u64 = 0x4000;
const ENTRIES: u16 = 256;
const FRAME: u64 = 0x1_0000;
const BUFFER: u64 = 0x2_0000;

/// A driver that has two rings and uses them by hand.
struct Guest {
    frontend: Frontend,
    memory: File,
    kicks: [EventFd; 2],
    _calls: [EventFd; 2],
}

impl Guest {
    fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut frontend = Frontend::from_stream(stream, 2);
        let eventfd = || EventFd::new(EFD_NONBLOCK).unwrap();
        let memory = memfd_create("idle-guest", MemfdFlags::CLOEXEC).unwrap();
        let memory = File::from(memory);
        memory.set_len(LEN).unwrap();
        frontend.set_owner().unwrap();
        frontend.get_features().unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let features = VERSION_1 | PROTOCOL_FEATURES;
        frontend.set_features(features).unwrap();
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: LEN,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: memory.as_raw_fd(),
        };
        frontend.set_mem_table(&[region]).unwrap();
        let (kicks, calls) = ([eventfd(), eventfd()], [eventfd(), eventfd()]);
        for (index, (kick, call)) in kicks.iter().zip(&calls).enumerate() {
            let at = USER + RING * index as u64;
            let config = VringConfigData {
                queue_max_size: ENTRIES,
                queue_size: ENTRIES,
                flags: 0,
                desc_table_addr: at,
                avail_ring_addr: at + 0x1000,
                used_ring_addr: at + 0x2000,
                log_addr: None,
            };
            frontend.set_vring_num(index, ENTRIES).unwrap();
            frontend.set_vring_addr(index, &config).unwrap();
            frontend.set_vring_base(index, 0).unwrap();
            frontend.set_vring_call(index, call).unwrap();
            frontend.set_vring_kick(index, kick).unwrap();
            frontend.set_vring_enable(index, true).unwrap();
        }
        Self {
            frontend,
            memory,
            kicks,
            _calls: calls,
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, at).unwrap();
    }

    /// Offers the first chain of a ring, and kicks.
    fn offer(&self, ring: u64, addr: u64, len: u32, flags: u16) {
        let mut desc = [0; 16];
        desc[..8].copy_from_slice(&addr.to_le_bytes());
        desc[8..12].copy_from_slice(&len.to_le_bytes());
        desc[12..14].copy_from_slice(&flags.to_le_bytes());
        self.write(RING * ring, &desc);
        self.write(RING * ring + 0x1002, &1u16.to_le_bytes());
        self.kicks[ring as usize].write(1).unwrap();
    }

    fn used(&self, ring: u64) -> bool {
        let mut index = [0; 2];
        let at = RING * ring + 0x2002;
        self.memory.read_exact_at(&mut index, at).unwrap();
        u16::from_le_bytes(index) == 1
    }

    /// Offers a buffer for a frame.
    fn listen(&self) {
        self.offer(0, BUFFER, 2048, 2);
    }

    /// Sends a broadcast.
    fn shout(&self) {
        let mut frame = [0; 12 + 60];
        frame[12..18].fill(0xff);
        frame[18..24].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        self.write(FRAME, &frame);
        self.offer(1, FRAME, frame.len() as u32, 0);
    }
}

/// A running `vvu`, and its sockets.
struct Server {
    child: Child,
    folder: PathBuf,
}

fn vvu() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vvu"));
    command
        .arg("-q")
        .stdin(Stdio::null())
        .env_remove("RUST_LOG");
    command
}

impl Server {
    /// `vvu` with `words`, and so many ports, each with `more`.
    fn start(name: &str, words: &[&str], ports: usize, more: impl Fn(usize) -> String) -> Self {
        let folder = std::env::temp_dir().join(format!("vvu-idle-{name}-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let mut command = vvu();
        command.args(words).current_dir(&folder);
        for number in 0..ports {
            let path = folder.join(number.to_string());
            command.args(["--port", &format!("unix:{}", path.display())]);
            command.args(more(number).split_whitespace());
        }
        let child = command.spawn().unwrap();
        let server = Self { child, folder };
        until("it does not listen", || server.path(ports - 1).exists());
        server
    }

    /// Its share of a CPU for some seconds, without what it costs to wake up: each connection is
    /// looked after once a second, and on a busy host of virtual machines waking up by itself
    /// costs more than all the rest, and beside others more than alone.
    fn share(&self, connections: usize) -> f64 {
        let (start, before) = (Instant::now(), self.cpu_time());
        std::thread::sleep(Duration::from_secs(4));
        let share = (self.cpu_time() - before).as_secs_f64() / start.elapsed().as_secs_f64();
        share - 2.0 * connections as f64 * cost_of_waking()
    }

    fn path(&self, number: usize) -> PathBuf {
        self.folder.join(number.to_string())
    }

    /// Bytes of its own that are resident: not those of its front-ends, which it maps.
    fn memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.unwrap().trim().trim_end_matches(" kB");
        1024 * kib.parse::<u64>().unwrap()
    }

    /// CPU time that it has had, of the user and the kernel (proc(5)).
    fn cpu_time(&self) -> Duration {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(path).unwrap();
        // The name in parentheses may have anything in it.
        let fields = stat.rsplit(')').next().unwrap().split_whitespace();
        let ticks: u64 = fields
            .skip(11)
            .take(2)
            .map(|n| n.parse::<u64>().unwrap())
            .sum();
        Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Seconds of CPU time that it takes to sleep for a moment and wake up, of which 20 us are nobody's
/// fault but ours.
fn cost_of_waking() -> f64 {
    const NAPS: u32 = 32;
    let spent = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let before = spent();
    (0..NAPS).for_each(|_| std::thread::sleep(Duration::from_millis(4)));
    let after = spent();
    let nanos = (after.tv_sec - before.tv_sec) * 1_000_000_000 + (after.tv_nsec - before.tv_nsec);
    (nanos as f64 / f64::from(NAPS) / 1e9 - 20e-6).max(0.0)
}

/// What a port and its connection may take, of one pair of queues in use.
const MOST_MEMORY: u64 = 1 << 20;

fn idle(poll: &str) {
    let net = Server::start(poll, &["net", "--poll", poll], FRONT_ENDS, |_| {
        String::new()
    });
    let alone = net.memory();
    let guests: Vec<_> = (0..FRONT_ENDS)
        .map(|n| Guest::connect(&net.path(n)))
        .collect();
    // Whatever connecting costs is over.
    std::thread::sleep(Duration::from_millis(200));
    let share = net.share(FRONT_ENDS);
    let each = net.memory().saturating_sub(alone) / FRONT_ENDS as u64;
    println!("{alone} bytes without front-ends, {each} more for each");
    assert!(each < MOST_MEMORY, "{each} bytes for each front-end");
    println!(
        "{FRONT_ENDS} idle front-ends, --poll {poll}: {:.2} % of a CPU",
        100.0 * share
    );
    assert!(share < MOST, "--poll {poll}: {share} of a CPU");
    // And all are served still.
    for guest in &guests[1..] {
        guest.listen();
    }
    guests[0].shout();
    for guest in &guests[1..] {
        until("a frame does not arrive", || guest.used(0));
    }
    until("a frame is not given back", || guests[0].used(1));
    // What was set up by the front-ends lasted until here.
    drop(guests.into_iter().map(|guest| guest.frontend));
}

#[test]
fn adaptive_polling_sleeps() {
    idle("adaptive");
}

#[test]
fn interrupts_sleep() {
    idle("interrupt");
}

#[test]
fn disks_sleep() {
    let disk = |number: usize| match number % 2 {
        0 => "--disk mem:4M".to_owned(),
        _ => format!("--disk file:disk{number},size=4M,direct"),
    };
    let server = Server::start("disks", &["blk"], DISKS, disk);
    let mut guests: Vec<Child> = (0..DISKS)
        .map(|number| {
            let mut command = vvu();
            command
                .arg("guest")
                .arg("--socket")
                .arg(server.path(number));
            let load = command.args(["blk", "--queues", "4", "read", "--seconds", "300"]);
            load.stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let signal = |signal| {
        for guest in &guests {
            kill_process(Pid::from_child(guest), signal).unwrap();
        }
    };
    let busy = |why: &str| {
        let before = server.cpu_time();
        let enough = before + Duration::from_millis(500);
        until(why, || server.cpu_time() > enough);
    };
    busy("nobody reads");
    // Front-ends that are there, and do nothing.
    signal(Signal::STOP);
    std::thread::sleep(Duration::from_millis(500));
    let share = server.share(DISKS);
    println!("{DISKS} idle disks: {:.2} % of a CPU", 100.0 * share);
    assert!(share < MOST, "{share} of a CPU");
    signal(Signal::CONT);
    busy("nobody reads any more");
    for guest in &mut guests {
        assert!(guest.try_wait().unwrap().is_none(), "a guest gave up");
        guest.kill().unwrap();
        guest.wait().unwrap();
    }
}
