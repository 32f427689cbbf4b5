//! The device in QEMU, without a processor: the test itself is what runs in the machine.

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use serde_json::json;
use tempfile::TempDir;
use vvu::memory::Area;
use vvu::pci::PciFunction;
use vvu_tests::runner::Missing;
use vvu_tests::{Process, Qemu, Qmp};

use super::function::{Function, MEMORY, MSIX_ENABLE, SLOT, machine_memory};
use super::qtest::Qtest;
use super::{Machine, Setup, Target};

/// How long QEMU may take to start, or to answer.
const PATIENCE: Duration = Duration::from_secs(30);

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
