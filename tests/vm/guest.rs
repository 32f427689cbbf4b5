//! One virtual machine under test.

use std::cell::{Cell, RefCell};
use std::net::Ipv4Addr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::channel::Channel;
use crate::job::{COMMAND, Job, Output};
use crate::lab::Room;
use crate::process::Process;
use crate::qemu::Arguments;
use crate::qmp::Qmp;
use crate::wire::{CHUNK, Request, Task};

/// Longest boot, with other guests booting beside it on slow processors.
const BOOT: Duration = Duration::from_secs(60);

/// What a guest is made of; enough to start it again.
#[derive(Debug, Clone)]
pub(crate) struct Blueprint {
    pub name: String,
    pub arguments: Arguments,
    pub agent_socket: PathBuf,
    pub monitor_socket: PathBuf,
    pub address: Option<Ipv4Addr>,
    pub mac: [u8; 6],
    pub functions: Vec<Function>,
}

/// A virtio-vhost-user function of an appliance.
#[derive(Debug, Clone)]
pub(crate) struct Function {
    pub bdf: String,
    pub socket: PathBuf,
}

/// A QEMU process and the agent in its guest. Dropping it kills the process.
///
/// Booting goes on in the background: whatever needs the agent waits for it, with a deadline.
pub struct Guest {
    room: Rc<Room>,
    blueprint: Blueprint,
    machine: Machine,
    /// Boots that the agent must have announced before it is asked for anything.
    boots: Cell<u32>,
}

struct Machine {
    process: RefCell<Process>,
    channel: Arc<Channel>,
    monitor: RefCell<Qmp>,
}

impl Guest {
    /// Starts the machine.
    pub(crate) fn boot(room: Rc<Room>, blueprint: Blueprint) -> Result<Guest> {
        let machine = Machine::start(&room, &blueprint)?;
        Ok(Guest {
            room,
            blueprint,
            machine,
            boots: Cell::new(1),
        })
    }

    /// Its name in the lab.
    pub fn name(&self) -> &str {
        &self.blueprint.name
    }

    /// Its address in the neighbours' network. An appliance has none.
    pub fn address(&self) -> Result<Ipv4Addr> {
        self.blueprint
            .address
            .with_context(|| format!("{} has no address", self.name()))
    }

    /// The hardware address of its interface.
    pub fn mac(&self) -> [u8; 6] {
        self.blueprint.mac
    }

    /// PCI addresses of its virtio-vhost-user functions.
    pub fn functions(&self) -> impl Iterator<Item = &str> {
        self.blueprint
            .functions
            .iter()
            .map(|function| function.bdf.as_str())
    }

    pub(crate) fn function_socket(&self, number: usize) -> &Path {
        &self.blueprint.functions[number].socket
    }

    /// Waits until the agent answers.
    pub fn ready(&self) -> Result<()> {
        self.ready_within(BOOT)
    }

    /// Waits until the agent answers, or fails at the end of the time.
    pub fn ready_within(&self, patience: Duration) -> Result<()> {
        let up = self
            .machine
            .channel
            .wait_boots(self.boots.get(), Instant::now() + patience);
        if self.machine.channel.is_closed() {
            let ended = self.machine.process.borrow_mut().ended()?;
            bail!(
                "QEMU of {} has ended with {ended:?}: {}",
                self.name(),
                self.qemu_output()
            );
        }
        ensure!(up, "{} has not booted within {patience:?}", self.name());
        ensure!(
            self.machine.channel.boots() == self.boots.get(),
            "{} has rebooted by itself",
            self.name()
        );
        Ok(())
    }

    /// Runs a program to its end and fails unless it succeeds.
    pub fn run(&self, argv: &[&str]) -> Result<Output> {
        let output = self.start(argv)?.wait(COMMAND)?;
        let said = output.stderr.trim();
        ensure!(
            output.code == Some(0),
            "{}: {} ended with {:?}: {said}",
            self.name(),
            argv.join(" "),
            output.code
        );
        Ok(output)
    }

    /// Starts a program that runs beside others.
    pub fn start(&self, argv: &[&str]) -> Result<Job> {
        let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
        let name = argv
            .first()
            .map(|program| program.rsplit('/').next().unwrap_or(program).to_owned());
        self.request(name.unwrap_or_default(), &Request::Spawn { argv })
    }

    /// Starts a task of the agent.
    pub fn start_task(&self, task: Task) -> Result<Job> {
        self.request("task".into(), &Request::Run(task))
    }

    /// Starts a task of the agent that keeps to one processor.
    pub fn start_task_on(&self, processor: u32, task: &Task) -> Result<Job> {
        let mask = format!("{:x}", 1 << processor);
        self.start(&[
            "taskset",
            &mask,
            "/init",
            "task",
            &serde_json::to_string(task)?,
        ])
    }

    /// Runs a task of the agent to its end and returns its report.
    pub fn task<T: DeserializeOwned>(&self, task: Task, patience: Duration) -> Result<T> {
        self.start_task(task)?.report(patience)
    }

    /// Contents of a file.
    pub fn read(&self, path: &str) -> Result<String> {
        let output = self
            .request("read".into(), &Request::Read { path: path.into() })?
            .wait(COMMAND)?;
        Ok(output.stdout)
    }

    /// Writes a file; short ones with a single `write`, as files of the kernel want it.
    pub fn write(&self, path: &str, data: &[u8], mode: u32) -> Result<()> {
        let mut chunks = data.chunks(CHUNK);
        let first = chunks.next().unwrap_or_default();
        for (number, chunk) in std::iter::once(first).chain(chunks).enumerate() {
            let request = Request::Write {
                path: path.into(),
                data: chunk.into(),
                append: number > 0,
                mode,
            };
            self.request("write".into(), &request)?.wait(COMMAND)?;
        }
        Ok(())
    }

    /// Presses the reset button. The guest boots again.
    pub fn reset(&self) -> Result<()> {
        self.boots.set(self.boots.get() + 1);
        self.execute("system_reset", json!({})).map(drop)
    }

    /// Lets the guest's kernel reboot.
    pub fn reboot(&self) -> Result<()> {
        self.ready()?;
        self.boots.set(self.boots.get() + 1);
        let argv = ["/bin/reboot", "-f"].map(str::to_owned).to_vec();
        self.machine
            .channel
            .request(&Request::Spawn { argv }, None)?;
        Ok(())
    }

    /// Ends QEMU with SIGKILL and starts it again with the same arguments.
    pub fn kill_and_boot(&mut self) -> Result<()> {
        self.machine.process.get_mut().kill()?;
        self.machine = Machine::start(&self.room, &self.blueprint)?;
        self.boots.set(1);
        Ok(())
    }

    /// Plugs memory in; the guest takes it into use by itself.
    pub fn hot_add_memory(&self, mib: u64) -> Result<()> {
        let backend = json!({ "qom-type": "memory-backend-memfd", "id": "more", "size": mib << 20, "share": true });
        self.execute("object-add", backend)?;
        self.execute(
            "device_add",
            json!({ "driver": "pc-dimm", "id": "dimm", "memdev": "more" }),
        )?;
        Ok(())
    }

    /// Carries out a monitor command.
    pub fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        let mut monitor = self.machine.monitor.borrow_mut();
        monitor
            .execute(command, arguments)
            .with_context(|| format!("the monitor of {}", self.name()))
    }

    /// The command line of its QEMU, for people to read and to try.
    pub fn command_line(&self) -> String {
        let mut line = self.room.qemu().program.display().to_string();
        for word in self.blueprint.arguments.list() {
            let separator = if word.starts_with('-') {
                " \\\n    "
            } else {
                " "
            };
            let quote = if word.contains(' ') { "'" } else { "" };
            line += &format!("{separator}{quote}{word}{quote}");
        }
        line
    }

    /// What QEMU itself has printed.
    pub fn qemu_output(&self) -> String {
        self.machine.process.borrow().output().trim().to_owned()
    }

    fn request(&self, name: String, request: &Request) -> Result<Job> {
        self.ready()?;
        let log = self.room.log(&format!("{}-{name}", self.name()))?;
        let id = self.machine.channel.request(request, Some(log))?;
        Ok(Job::new(
            format!("{name} in {}", self.name()),
            self.machine.channel.clone(),
            id,
        ))
    }
}

impl Machine {
    /// QEMU connects to sockets that already listen, so there is nothing to retry.
    fn start(room: &Room, blueprint: &Blueprint) -> Result<Machine> {
        let agent = listen(&blueprint.agent_socket)?;
        let monitor = listen(&blueprint.monitor_socket)?;
        let log = room.log_path(&format!("{}-qemu", blueprint.name));
        let mut process = Process::start(
            &blueprint.name,
            &room.qemu().program,
            blueprint.arguments.list(),
            &log,
        )?;
        let channel = Channel::new(accept(&agent, &mut process)?)?;
        let log = room.log(&format!("{}-monitor", blueprint.name))?;
        let monitor = Qmp::new(accept(&monitor, &mut process)?, log)?;
        Ok(Machine {
            process: RefCell::new(process),
            channel,
            monitor: RefCell::new(monitor),
        })
    }
}

fn listen(socket: &Path) -> Result<UnixListener> {
    if socket.exists() {
        std::fs::remove_file(socket)?;
    }
    let listener =
        UnixListener::bind(socket).with_context(|| format!("listening at {}", socket.display()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn accept(listener: &UnixListener, process: &mut Process) -> Result<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Ok((connection, _)) = listener.accept() {
            connection.set_nonblocking(false)?;
            return Ok(connection);
        }
        if let Some(status) = process.ended()? {
            bail!("QEMU ended with {status}: {}", process.output().trim());
        }
        ensure!(
            Instant::now() < deadline,
            "QEMU did not open its sockets: {}",
            process.output().trim()
        );
        thread::sleep(Duration::from_millis(5));
    }
}
