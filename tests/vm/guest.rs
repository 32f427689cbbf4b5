//! One virtual machine under test.

use std::cell::Cell;
use std::fs::File;
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

use crate::channel::{Channel, End};
use crate::lab::Room;
use crate::process::Process;
use crate::qemu::Arguments;
use crate::qmp::Qmp;
use crate::wire::{CHUNK, Request, Task};

/// Longest boot, with other guests booting beside it on slow processors.
const BOOT: Duration = Duration::from_secs(60);

/// Longest command, unless the caller knows better.
const COMMAND: Duration = Duration::from_secs(30);

/// What a guest is made of; enough to start it again.
#[derive(Debug, Clone)]
pub struct Blueprint {
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
pub struct Function {
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
    process: Process,
    channel: Arc<Channel>,
    monitor: UnixStream,
}

/// What a finished program left behind.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Exit code, absent when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Guest {
    /// Starts the machine.
    pub(crate) fn start(room: Rc<Room>, blueprint: Blueprint) -> Result<Guest> {
        let machine = Machine::start(&room, &blueprint)?;
        Ok(Guest { room, blueprint, machine, boots: Cell::new(1) })
    }

    /// Its name in the lab.
    pub fn name(&self) -> &str {
        &self.blueprint.name
    }

    /// Its address in the neighbours' network. An appliance has none.
    pub fn address(&self) -> Result<Ipv4Addr> {
        self.blueprint.address.with_context(|| format!("{} has no address", self.name()))
    }

    /// The hardware address of its interface.
    pub fn mac(&self) -> [u8; 6] {
        self.blueprint.mac
    }

    /// PCI address of its virtio-vhost-user function with that number.
    pub fn function(&self, number: usize) -> String {
        self.blueprint.functions[number].bdf.clone()
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
        let up = self.machine.channel.wait_boots(self.boots.get(), Instant::now() + patience);
        ensure!(!self.machine.channel.is_closed(), "QEMU of {} has ended: {}", self.name(), self.qemu_output());
        ensure!(up, "{} has not booted within {patience:?}", self.name());
        ensure!(self.machine.channel.boots() == self.boots.get(), "{} has rebooted by itself", self.name());
        Ok(())
    }

    /// Runs a program to its end and fails unless it succeeds.
    pub fn run(&self, argv: &[&str]) -> Result<Output> {
        let output = self.start_job(argv)?.wait(COMMAND)?;
        let said = output.stderr.trim();
        ensure!(output.code == Some(0), "{}: {} ended with {:?}: {said}", self.name(), argv.join(" "), output.code);
        Ok(output)
    }

    /// Starts a program that runs beside others.
    pub fn start_job(&self, argv: &[&str]) -> Result<Job> {
        let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
        let name = argv.first().map(|program| program.rsplit('/').next().unwrap_or(program).to_owned());
        self.request(name.unwrap_or_default(), &Request::Spawn { argv })
    }

    /// Starts a task of the agent.
    pub fn start_task(&self, task: Task) -> Result<Job> {
        self.request("task".into(), &Request::Run(task))
    }

    /// Runs a task of the agent to its end and returns its report.
    pub fn task<T: DeserializeOwned>(&self, task: Task, patience: Duration) -> Result<T> {
        self.start_task(task)?.report(patience)
    }

    /// Contents of a file.
    pub fn read(&self, path: &str) -> Result<String> {
        let output = self.request("read".into(), &Request::Read { path: path.into() })?.wait(COMMAND)?;
        Ok(output.stdout)
    }

    /// Writes a file; short ones with a single `write`, as files of the kernel want it.
    pub fn write(&self, path: &str, data: &[u8], mode: u32) -> Result<()> {
        let mut chunks = data.chunks(CHUNK);
        let first = chunks.next().unwrap_or_default();
        for (number, chunk) in std::iter::once(first).chain(chunks).enumerate() {
            let request = Request::Write { path: path.into(), data: chunk.into(), append: number > 0, mode };
            self.request("write".into(), &request)?.wait(COMMAND)?;
        }
        Ok(())
    }

    /// Presses the reset button. The guest boots again.
    pub fn reset(&self) -> Result<()> {
        self.boots.set(self.boots.get() + 1);
        self.monitor()?.execute("system_reset", json!({}))?;
        Ok(())
    }

    /// Lets the guest's kernel reboot.
    pub fn reboot(&self) -> Result<()> {
        self.ready()?;
        self.boots.set(self.boots.get() + 1);
        let argv = ["/bin/reboot", "-f"].map(str::to_owned).to_vec();
        self.machine.channel.request(&Request::Spawn { argv }, None)?;
        Ok(())
    }

    /// Ends QEMU with SIGKILL and starts it again with the same arguments.
    pub fn kill_and_boot(&mut self) -> Result<()> {
        self.machine.process.kill()?;
        self.machine = Machine::start(&self.room, &self.blueprint)?;
        self.boots.set(1);
        Ok(())
    }

    /// Plugs memory in; the guest takes it into use by itself.
    pub fn hot_add_memory(&self, mib: u64) -> Result<()> {
        let mut monitor = self.monitor()?;
        let size = mib << 20;
        monitor.execute(
            "object-add",
            json!({ "qom-type": "memory-backend-memfd", "id": "more", "size": size, "share": true }),
        )?;
        monitor.execute("device_add", json!({ "driver": "pc-dimm", "id": "dimm", "memdev": "more" }))?;
        Ok(())
    }

    /// Carries out a monitor command.
    pub fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        self.monitor()?.execute(command, arguments)
    }

    /// What QEMU itself has printed.
    pub fn qemu_output(&self) -> String {
        self.machine.process.output().trim().to_owned()
    }

    fn monitor(&self) -> Result<Qmp> {
        let log = self.room.log(&format!("{}-monitor", self.name()))?;
        Qmp::attach(self.machine.monitor.try_clone()?, log).with_context(|| format!("the monitor of {}", self.name()))
    }

    fn request(&self, name: String, request: &Request) -> Result<Job> {
        self.ready()?;
        let log = self.room.log(&format!("{}-{name}", self.name()))?;
        let id = self.machine.channel.request(request, Some(log))?;
        Ok(Job { name: format!("{name} in {}", self.name()), channel: self.machine.channel.clone(), id })
    }
}

impl Machine {
    /// QEMU connects to sockets that already listen, so there is nothing to retry.
    fn start(room: &Room, blueprint: &Blueprint) -> Result<Machine> {
        let agent = listen(&blueprint.agent_socket)?;
        let monitor = listen(&blueprint.monitor_socket)?;
        let log = room.log_path(&format!("{}-qemu", blueprint.name));
        let mut process = Process::start(&blueprint.name, &room.qemu().program, blueprint.arguments.list(), &log)?;
        let channel = Channel::new(accept(&agent, &mut process)?)?;
        let monitor = accept(&monitor, &mut process)?;
        Ok(Machine { process, channel, monitor })
    }
}

fn listen(socket: &Path) -> Result<UnixListener> {
    if socket.exists() {
        std::fs::remove_file(socket)?;
    }
    let listener = UnixListener::bind(socket).with_context(|| format!("listening at {}", socket.display()))?;
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
        ensure!(Instant::now() < deadline, "QEMU did not open its sockets: {}", process.output().trim());
        thread::sleep(Duration::from_millis(5));
    }
}

/// A program that runs in a guest.
pub struct Job {
    name: String,
    channel: Arc<Channel>,
    id: u32,
}

impl Job {
    /// Its process id in the guest.
    pub fn pid(&self) -> Result<u32> {
        let known = self.channel.wait(self.id, Instant::now() + COMMAND, |call| match &call.end {
            Some(End::Failed(why)) => Some(Err(why.clone())),
            _ => call.pid.map(Ok),
        });
        match known {
            Some(Ok(pid)) => Ok(pid),
            Some(Err(why)) => bail!("{}: {why}", self.name),
            None => bail!("{} did not start", self.name),
        }
    }

    /// Whether it has ended, in whatever way.
    pub fn has_ended(&self) -> bool {
        self.channel.wait(self.id, Instant::now(), |call| call.end.clone()).is_some()
    }

    /// Everything it has printed so far, standard error first.
    pub fn printed(&self) -> String {
        let all = self.channel.wait(self.id, Instant::now(), |call| {
            let bytes = [call.stderr.as_slice(), call.stdout.as_slice()].concat();
            Some(String::from_utf8_lossy(&bytes).into_owned())
        });
        all.unwrap_or_default()
    }

    /// Waits until it has printed a text.
    pub fn wait_for_text(&self, text: &str, patience: Duration) -> Result<()> {
        let contains = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(text);
        let found = self.channel.wait(self.id, Instant::now() + patience, |call| {
            let found = contains(&call.stderr) || contains(&call.stdout);
            (found || call.end.is_some()).then_some(found)
        });
        ensure!(found == Some(true), "{} did not print {text:?} within {patience:?}: {}", self.name, self.printed());
        Ok(())
    }

    /// Waits for its end.
    pub fn wait(&self, patience: Duration) -> Result<Output> {
        let ended = self.channel.wait(self.id, Instant::now() + patience, |call| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            Some((call.end.clone()?, text(&call.stdout), text(&call.stderr)))
        });
        match ended {
            Some((End::Exited { code, .. }, stdout, stderr)) => Ok(Output { code, stdout, stderr }),
            Some((End::Done, stdout, stderr)) => Ok(Output { code: Some(0), stdout, stderr }),
            Some((End::Failed(why), ..)) => bail!("{}: {why}", self.name),
            Some((End::Lost, ..)) => bail!("{} was lost: the guest was reset or ended", self.name),
            None => bail!("{} did not end within {patience:?}; it printed: {}", self.name, self.printed()),
        }
    }

    /// Waits for its end and reads its report.
    pub fn report<T: DeserializeOwned>(&self, patience: Duration) -> Result<T> {
        let output = self.wait(patience)?;
        ensure!(output.code == Some(0), "{} failed: {}", self.name, output.stderr.trim());
        serde_json::from_str(&output.stdout).with_context(|| format!("{} reported {}", self.name, output.stdout))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let id = self.channel.request(&Request::Signal { pid: self.pid()?, signal }, None)?;
        Job { name: format!("signal {signal} to {}", self.name), channel: self.channel.clone(), id }.wait(COMMAND)?;
        Ok(())
    }

    /// Ends it with SIGKILL.
    pub fn kill(&self) -> Result<()> {
        self.signal(nix::libc::SIGKILL)?;
        self.wait(COMMAND).map(drop)
    }

    /// Asks it to end with SIGTERM and waits for that.
    pub fn stop(&self) -> Result<Output> {
        self.signal(nix::libc::SIGTERM)?;
        self.wait(COMMAND)
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Appends to a log; each writer has its own handle.
pub(crate) fn open_log(path: &Path) -> Result<File> {
    File::options().create(true).append(true).open(path).with_context(|| format!("opening {}", path.display()))
}
