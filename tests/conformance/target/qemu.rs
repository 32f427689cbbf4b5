//! The device in QEMU, without a processor: the test itself is what runs in the machine.

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use serde_json::json;
use tempfile::TempDir;
use vm_memory::{Bytes, VolatileMemory};
use vvu::memory::{Area, Mapping};
use vvu::mmio::Window;
use vvu::pci::{
    COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY, ConfigSpace, DmaMemory, PciError, PciFunction,
};
use vvu_tests::runner::Missing;
use vvu_tests::{Process, Qemu, Qmp};

use super::qtest::{Bar, Qtest};
use super::{Machine, Setup, Target};

/// How long QEMU may take to start, or to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The machine's memory.
const MEMORY: u64 = 64 << 20;
/// Where in it interrupts arrive, one word for each vector; nothing is at the legacy addresses.
const INTERRUPTS: u64 = 1 << 20;
/// From here on it is for DMA.
const DMA: u64 = 16 << 20;

/// Slot of the function on the first bus.
const SLOT: u8 = 4;

/// Where BARs go: those up to 256 MiB below 4 GiB, larger ones high up.
const LOW: u64 = 0xc000_0000;
const HIGH: u64 = 0x40_0000_0000;
const LARGE: u64 = 256 << 20;

/// Capability ids.
const CAP_EXPRESS: u8 = 0x10;
const CAP_MSIX: u8 = 0x11;
/// MSI-X message control: the function sends MSI-X.
const MSIX_ENABLE: u8 = 0x80;
/// PCI Express device capabilities (bit 28) and device control (bit 15): function level reset.
const FLR_CAPABLE: u8 = 0x10;
const FLR: u8 = 0x80;

/// What an interrupt stores; never zero.
const INTERRUPT: u32 = 0xa500;

/// The patched QEMU.
#[derive(Debug)]
pub(crate) struct QemuTarget;

impl Target for QemuTarget {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn ready(&self) -> Result<()> {
        let qemu = qemu()?;
        match qemu.has_function() {
            Ok(true) => Ok(()),
            _ => bail!(Missing(format!(
                "{} has no virtio-vhost-user-pci; unset VVU_QEMU to build one that has",
                qemu.program.display()
            ))),
        }
    }

    fn machine(&self, setup: &Setup) -> Result<Box<dyn Machine>> {
        Ok(Box::new(QemuMachine::start(setup)?))
    }
}

/// The program, or why there is none.
fn qemu() -> Result<Qemu> {
    Qemu::get().map_err(|error| Missing(format!("no patched QEMU: {error:#}")).into())
}

/// Starts a QEMU with `devices` whose virtqueues are served at `socket`, and leaves it where its
/// guest would begin.
pub(crate) fn front_end(socket: &Path, devices: &str, folder: &Path) -> Result<Process> {
    let arguments = format!(
        "-S -accel qtest -display none -nodefaults -m 64 \
         -object memory-backend-memfd,id=mem,size=64M,share=on -machine q35,memory-backend=mem \
         -chardev socket,id=v,path={} {devices}",
        socket.display()
    );
    let arguments: Vec<_> = arguments.split_whitespace().map(str::to_owned).collect();
    let log = folder.join("front-end.log");
    Process::start("the front-end", &qemu()?.program, &arguments, &log)
}

struct QemuMachine {
    qtest: Arc<Qtest>,
    monitor: Qmp,
    memory: OwnedFd,
    /// MSI-X: where the control byte is in configuration space, and the table in memory.
    control: u16,
    table: u64,
    process: Process,
    sockets: u32,
    socket: PathBuf,
    folder: TempDir,
}

/// Waits for a process to connect.
fn accept(listener: &UnixListener, process: &mut Process) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => return Ok(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(status) = process.ended()? {
            bail!("QEMU ended with {status}: {}", process.output());
        }
        if Instant::now() > deadline {
            bail!("QEMU did not connect: {}", process.output());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl QemuMachine {
    fn start(setup: &Setup) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("front-end.sock");
        let memory = memfd_create("vvu-machine", MemfdFlags::CLOEXEC)?;
        ftruncate(&memory, MEMORY)?;
        let listen = |name: &str| {
            let path = folder.path().join(name);
            Ok::<_, std::io::Error>((UnixListener::bind(&path)?, path))
        };
        let (qtest, qtest_path) = listen("qtest.sock")?;
        let (monitor, monitor_path) = listen("monitor.sock")?;
        let mut device = format!(
            "virtio-vhost-user-pci,id=vvu,chardev=c,addr={SLOT:x}.0,x-virtio-id={},max-queues={},bar-size={},layout={}",
            setup.id - 0x1040,
            setup.rings,
            setup.window,
            if setup.layout { "on" } else { "off" },
        );
        if let Some(uuid) = setup.uuid {
            let digits: Vec<String> = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
            let parts = [0..4, 4..6, 6..8, 8..10, 10..16].map(|part| digits[part].concat());
            device += &format!(",uuid={}", parts.join("-"));
        }
        let memory_path = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
        let mut processor = "-accel qtest".to_owned();
        if let Some(firmware) = &setup.firmware {
            let path = folder.path().join("firmware");
            std::fs::write(&path, firmware)?;
            processor = format!("-accel tcg -cpu qemu64 -bios {}", path.display());
        }
        let arguments = [
            "-display none -nodefaults -no-user-config -qtest-log none".to_owned(),
            processor,
            format!("-qtest unix:{}", qtest_path.display()),
            format!("-chardev socket,id=monitor,path={}", monitor_path.display()),
            "-mon chardev=monitor,mode=control".to_owned(),
            format!("-m {}M -machine q35,memory-backend=mem", MEMORY >> 20),
            format!(
                "-object memory-backend-file,id=mem,size={MEMORY},share=on,mem-path={memory_path}"
            ),
            format!(
                "-chardev socket,id=c,path={},server=on,wait=off",
                socket.display()
            ),
            format!("-device {device}"),
        ];
        let arguments = arguments.join(" ");
        let arguments: Vec<_> = arguments.split_whitespace().map(str::to_owned).collect();
        let log = folder.path().join("qemu.log");
        let mut process = Process::start("QEMU", &qemu()?.program, &arguments, &log)?;
        let qtest = Qtest::new(accept(&qtest, &mut process)?)?;
        let monitor = accept(&monitor, &mut process)?;
        monitor.set_nonblocking(false)?;
        let log = std::fs::File::create(folder.path().join("monitor.log"))?;
        Ok(Self {
            qtest: Arc::new(qtest),
            monitor: Qmp::new(monitor, log)?,
            memory,
            control: 0,
            table: 0,
            process,
            sockets: 0,
            socket,
            folder,
        })
    }

    fn replace(&mut self, path: &Path) -> Result<()> {
        let address = json!({ "type": "unix", "data": { "path": path } });
        let socket = json!({ "addr": address, "server": true, "wait": false });
        let backend = json!({ "type": "socket", "data": socket });
        self.monitor
            .execute("chardev-change", json!({ "id": "c", "backend": backend }))
            .map(drop)
    }
}

impl Machine for QemuMachine {
    fn function(&mut self) -> Box<dyn PciFunction> {
        let function = Function::new(&self.qtest, &self.memory).expect("memory of the machine");
        (self.control, self.table) = function.vector_table();
        Box::new(function)
    }

    fn socket(&self) -> &Path {
        &self.socket
    }

    fn replace_socket(&mut self) -> bool {
        self.sockets += 1;
        let name = format!("front-end-{}.sock", self.sockets);
        let path = self.folder.path().join(name);
        self.replace(&path).expect("another socket");
        self.socket = path;
        true
    }

    fn mask(&mut self, vector: u16, signal: Option<&OwnedFd>) {
        let entry = self.table + 16 * u64::from(vector);
        let masked = u32::from(signal.is_none());
        self.qtest.store(entry + 12, &masked.to_le_bytes());
    }

    fn turn_vectors(&mut self, on: bool, _signals: &[OwnedFd]) {
        self.qtest
            .set_config(SLOT, self.control, &[if on { MSIX_ENABLE } else { 0 }]);
    }

    fn memory(&self) -> Option<Area> {
        Some(machine_memory(&self.memory).expect("memory of the machine"))
    }

    fn process(&self) -> u32 {
        self.process.pid()
    }

    fn settle(&mut self) {
        // A processor that never pauses would keep what it may be using.
        for command in ["stop", "cont"] {
            self.monitor.execute(command, json!({})).expect(command);
        }
    }

    fn check(&mut self) -> Result<()> {
        self.qtest.is_alive()?;
        self.monitor.execute("query-status", json!({})).map(drop)
    }

    fn report(&self) -> String {
        self.process.output().trim().to_owned()
    }
}

fn machine_memory(file: &OwnedFd) -> Result<Area> {
    Ok(Mapping::of_file(file.as_fd(), 0, MEMORY)?.into())
}

/// The function as the machine's processor would see it.
struct Function {
    qtest: Arc<Qtest>,
    memory: Area,
    used: u64,
    /// Address and size of each BAR.
    bars: [(u64, u64); 6],
    vectors: u16,
    interrupts: Option<Interrupts>,
}

impl Function {
    fn new(qtest: &Arc<Qtest>, memory: &OwnedFd) -> Result<Self> {
        let mut function = Self {
            qtest: Arc::clone(qtest),
            memory: machine_memory(memory)?,
            used: DMA,
            bars: [(0, 0); 6],
            vectors: 0,
            interrupts: None,
        };
        function.measure();
        function.place();
        function.vectors = ConfigSpace::read(&function).msix_vectors();
        Ok(function)
    }

    fn dword(&self, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        self.read_config(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Finds out how large the BARs are, and chooses addresses.
    fn measure(&mut self) {
        let (mut low, mut high) = (LOW, HIGH);
        let mut bar = 0;
        while bar < 6 {
            let register = 0x10 + 4 * bar as u16;
            self.write_config(register, &u32::MAX.to_le_bytes());
            let mask = self.dword(register);
            let wide = mask & 0b110 == 0b100;
            let mut writable = u64::from(mask & !0xf) | 0xffff_ffff << 32;
            if wide {
                self.write_config(register + 4, &u32::MAX.to_le_bytes());
                let upper = u64::from(self.dword(register + 4)) << 32;
                writable = upper | u64::from(mask & !0xf);
            }
            let size = writable.wrapping_neg();
            if mask != 0 {
                let next = if size > LARGE { &mut high } else { &mut low };
                let address = next.next_multiple_of(size);
                *next = address + size;
                self.bars[bar] = (address, size);
            }
            bar += if wide { 2 } else { 1 };
        }
    }

    /// Puts the BARs where they belong, and lets the function answer.
    fn place(&self) {
        for (bar, (address, size)) in self.bars.into_iter().enumerate() {
            let register = 0x10 + 4 * bar as u16;
            if size > 0 {
                let wide = self.dword(register) & 0b110 == 0b100;
                self.write_config(register, &(address as u32).to_le_bytes());
                if wide {
                    let upper = (address >> 32) as u32;
                    self.write_config(register + 4, &upper.to_le_bytes());
                }
            }
        }
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER;
        self.write_config(COMMAND, &command.to_le_bytes());
    }

    fn capability(&self, id: u8) -> Option<u16> {
        let space = ConfigSpace::read(self);
        let found = space.capabilities().find(|capability| capability.id == id);
        found.map(|capability| capability.offset.into())
    }

    /// Where MSI-X is turned on, and where its table is.
    fn vector_table(&self) -> (u16, u64) {
        let at = self.capability(CAP_MSIX).expect("MSI-X");
        let table = self.dword(at + 4);
        let bar = self.bars[(table & 7) as usize].0;
        (at + 3, bar + u64::from(table & !7))
    }

    /// Lets each vector store its word, and the function send MSI-X.
    fn program_vectors(&self) {
        let (control, table) = self.vector_table();
        for vector in 0..u64::from(self.vectors) {
            let entry = table + 16 * vector;
            let address = INTERRUPTS + 4 * vector;
            let message = [address as u32, 0, INTERRUPT + vector as u32, 0];
            for (word, at) in message.into_iter().zip((entry..).step_by(4)) {
                self.qtest.store(at, &word.to_le_bytes());
            }
        }
        self.write_config(control, &[MSIX_ENABLE]);
    }

    fn check_range(&self, bar: u8, offset: u64, len: u64) -> Result<u64, PciError> {
        let (address, size) = self.bars.get(usize::from(bar)).copied().unwrap_or_default();
        match offset.checked_add(len) {
            Some(end) if len > 0 && end <= size => Ok(address),
            _ => Err(PciError::NoSuchBar {
                bar,
                offset,
                len,
                size,
            }),
        }
    }
}

fn failed(what: &str, source: impl Into<std::io::Error>) -> PciError {
    PciError::Io {
        what: what.to_owned(),
        source: source.into(),
    }
}

impl PciFunction for Function {
    fn name(&self) -> &str {
        "qemu"
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = match at {
                0..256 => self.qtest.config_byte(SLOT, at),
                _ => u8::MAX,
            };
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        self.qtest.set_config(SLOT, offset, data);
    }

    fn bar_size(&self, bar: u8) -> u64 {
        self.bars.get(usize::from(bar)).map_or(0, |(_, size)| *size)
    }

    fn registers(&self, bar: u8, offset: u64, len: u64) -> Result<Window, PciError> {
        let address = self.check_range(bar, offset, len)?;
        let access = Bar {
            qtest: Arc::clone(&self.qtest),
            address,
        };
        Ok(Window::trapped(Arc::new(access), offset, len))
    }

    fn map_bar(&self, bar: u8, _offset: u64, _len: u64) -> Result<Area, PciError> {
        let why = std::io::Error::from(ErrorKind::Unsupported);
        Err(failed(&format!("cannot map BAR {bar} through qtest"), why))
    }

    fn alloc_dma(&mut self, len: usize) -> Result<DmaMemory, PciError> {
        let iova = self.used;
        let bytes = usize::try_from(iova)
            .ok()
            .and_then(|at| self.memory.sub(at, len))
            .ok_or_else(|| failed("no memory is left", ErrorKind::OutOfMemory))?;
        self.used = (iova + len as u64).next_multiple_of(4096);
        let zeroed = bytes.slice().write_slice(&vec![0; len], 0);
        zeroed.map_err(|error| failed("clearing memory", std::io::Error::other(error)))?;
        Ok(DmaMemory { bytes, iova })
    }

    fn vectors(&self) -> u16 {
        self.vectors
    }

    fn enable_vectors(&mut self, count: u16) -> Result<Vec<OwnedFd>, PciError> {
        if count == 0 || count > self.vectors {
            return Err(PciError::Vectors {
                asked: count,
                available: self.vectors,
            });
        }
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fds: Vec<OwnedFd> = (0..count)
            .map(|_| eventfd(0, flags))
            .collect::<Result<_, _>>()
            .map_err(|error| failed("event descriptors", error))?;
        let signals = fds.iter().map(OwnedFd::try_clone);
        let signals = signals
            .collect::<Result<_, _>>()
            .map_err(|error| failed("event descriptors", error))?;
        self.interrupts = Some(Interrupts::start(self.memory.clone(), signals));
        self.program_vectors();
        Ok(fds)
    }

    fn reset(&mut self) -> Result<(), PciError> {
        if let Some(express) = self.capability(CAP_EXPRESS) {
            let mut capable = [0];
            self.read_config(express + 7, &mut capable);
            if capable[0] & FLR_CAPABLE != 0 {
                self.write_config(express + 9, &[FLR]);
                // What the system would put back.
                self.place();
                if self.interrupts.is_some() {
                    self.program_vectors();
                }
            }
        }
        Ok(())
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        self.interrupts = None;
    }
}

/// Turns what the function stores as interrupts into signals.
struct Interrupts {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Interrupts {
    fn start(memory: Area, signals: Vec<OwnedFd>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for (vector, signal) in signals.iter().enumerate() {
                        let at = INTERRUPTS as usize + 4 * vector;
                        let slice = memory.slice();
                        let word = slice.get_atomic_ref::<AtomicU32>(at).expect("memory");
                        if word.swap(0, Ordering::SeqCst) != 0 {
                            let _ = rustix::io::write(signal, &1u64.to_ne_bytes());
                        }
                    }
                    std::thread::sleep(Duration::from_micros(100));
                }
            })
        };
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
