//! A lab: a scratch directory, the guests and host programs that were started in it, their logs.

use std::cell::{Cell, OnceCell};
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result};
use serde_json::json;
use tempfile::TempDir;

use crate::accel::{self, Accelerator};
use crate::binaries;
use crate::guest::{Blueprint, Function, Guest};
use crate::image::{self, Role};
use crate::kernel::Kernel;
use crate::process::Process;
use crate::qemu::{Arguments, Qemu};
use crate::served::ServedFunction;
use crate::store::Store;

/// Slot on the root bus of an appliance's first virtio-vhost-user function.
const FIRST_SLOT: usize = 0x10;

/// Memory of a neighbour, in bytes.
pub(crate) const NEIGHBOUR_MEMORY: u64 = 256 << 20;

/// The device number of a network card, and the length of its configuration space up to
/// `supported_hash_types` (VIRTIO 1.2, 5 and 5.1.4).
const VIRTIO_ID_NET: u16 = 1;
const NET_CONFIG: usize = 24;

/// Everything that was started in it ends with it.
pub struct Lab {
    room: Rc<Room>,
    neighbours: Cell<u8>,
}

/// What guests share: it lives as long as any of them.
pub(crate) struct Room {
    directory: TempDir,
    logs: PathBuf,
    qemu: Qemu,
    pub(crate) kernel: Kernel,
    vvu: Option<PathBuf>,
    appliance_image: OnceCell<PathBuf>,
    neighbour_image: OnceCell<PathBuf>,
    store_image: OnceCell<PathBuf>,
}

impl Room {
    pub(crate) fn qemu(&self) -> &Qemu {
        &self.qemu
    }

    pub(crate) fn log_path(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Opens a log for appending; each writer has a handle of its own.
    pub(crate) fn log(&self, name: &str) -> Result<File> {
        let path = self.log_path(name);
        File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn image(&self, role: Role) -> Result<&Path> {
        let (cell, name) = match role {
            Role::Appliance => (&self.appliance_image, "appliance.img"),
            Role::Neighbour => (&self.neighbour_image, "neighbour.img"),
            Role::Store => (&self.store_image, "store.img"),
        };
        if cell.get().is_none() {
            let path = self.path(name);
            image::write(role, &self.kernel, self.vvu.as_deref(), &path)?;
            return Ok(cell.get_or_init(|| path));
        }
        cell.get()
            .map(PathBuf::as_path)
            .context("an image that was just made")
    }
}

impl Lab {
    /// An empty lab whose logs go to `target/vm-logs/<name>`. The first one may download a kernel and build QEMU.
    pub fn new(name: &str) -> Result<Lab> {
        Lab::with(name, Qemu::get()?, Kernel::get()?, None)
    }

    /// The same, with this `vvu` in its appliances: a static program.
    pub fn with_vvu(name: &str, vvu: &Path) -> Result<Lab> {
        Lab::with(name, Qemu::get()?, Kernel::get()?, Some(vvu.to_owned()))
    }

    /// The same with a kernel that knows every offload.
    pub fn newer(name: &str) -> Result<Lab> {
        Lab::with(name, Qemu::get()?, Kernel::newer()?, None)
    }

    /// The same with a QEMU that nobody patched.
    pub fn stock(name: &str) -> Result<Lab> {
        Lab::with(name, Qemu::stock()?, Kernel::get()?, None)
    }

    fn with(name: &str, qemu: Qemu, kernel: Kernel, vvu: Option<PathBuf>) -> Result<Lab> {
        // A short path: the address of a UNIX socket has 108 bytes.
        let directory = tempfile::Builder::new()
            .prefix("vvu-")
            .tempdir()
            .context("creating a scratch directory")?;
        let logs = binaries::target().join("vm-logs").join(name);
        if logs.exists() {
            fs::remove_dir_all(&logs).with_context(|| format!("clearing {}", logs.display()))?;
        }
        fs::create_dir_all(&logs).with_context(|| format!("creating {}", logs.display()))?;
        let room = Room {
            directory,
            logs,
            qemu,
            kernel,
            vvu,
            appliance_image: OnceCell::new(),
            neighbour_image: OnceCell::new(),
            store_image: OnceCell::new(),
        };
        Ok(Lab {
            room: Rc::new(room),
            neighbours: Cell::new(0),
        })
    }

    /// What runs the guests of this machine.
    pub fn accelerator(&self) -> Accelerator {
        accel::choose(self)
    }

    /// Whether the QEMU in use has the virtio-vhost-user function.
    pub fn can_have_appliance(&self) -> Result<bool> {
        self.room.qemu.has_function()
    }

    /// Whether the QEMU in use takes functions from other processes.
    pub fn can_have_served_functions(&self) -> Result<bool> {
        self.room.qemu.has_vfio_user()
    }

    /// A virtual machine that runs `vvu` on virtio-vhost-user functions.
    pub fn appliance(&self) -> Appliance<'_> {
        Appliance {
            lab: self,
            functions: 1,
            served: Vec::new(),
            iommu: true,
            properties: String::new(),
        }
    }

    /// A virtual machine with a virtio-net interface.
    pub fn neighbour(&self, name: &str) -> Neighbour<'_> {
        Neighbour {
            lab: self,
            name: name.to_owned(),
            socket: self.room.path(&format!("{name}.sock")),
            memory: None,
            listens: false,
            queue_pairs: 1,
            mtu: 1500,
            card: Card::Usual(String::new()),
        }
    }

    /// A path for a socket between a neighbour and a program on the host.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.room.path(&format!("{name}.sock"))
    }

    /// Runs `vvu net` on the host.
    pub fn vvu(&self, ports: &[String]) -> Result<Process> {
        let mut arguments = vec!["net".to_owned()];
        for port in ports {
            arguments.extend(["--port".to_owned(), port.clone()]);
        }
        self.vvu_with("vvu", &arguments)
    }

    /// Runs `vvu` on the host as it is told; its log has this name.
    pub fn vvu_with(&self, name: &str, arguments: &[String]) -> Result<Process> {
        let arguments = [&["-v".to_owned()], arguments].concat();
        let log = self.room.log_path(&format!("{name}-host"));
        Process::start(name, &binaries::vvu()?, &arguments, &log)
    }

    /// A path for a file of this lab's.
    pub fn file(&self, name: &str) -> PathBuf {
        self.room.path(name)
    }

    /// A virtual machine with disks.
    pub fn store(&self, name: &str) -> Store<'_> {
        Store::new(self, name)
    }

    /// Where consoles, monitors and programs are logged.
    pub fn logs(&self) -> &Path {
        &self.room.logs
    }

    /// A guest without any device, to see whether it boots.
    pub(crate) fn probe(&self, accelerator: Accelerator) -> Result<Guest> {
        let name = "probe";
        let mut arguments = self.arguments(name, accelerator);
        arguments.option("-machine", "q35");
        arguments.option("-m", "256M");
        arguments.boot(
            &self.room.kernel.vmlinuz,
            self.room.image(Role::Neighbour)?,
            "",
        );
        self.boot(name, arguments, |_| {})
    }

    pub(crate) fn room(&self) -> &Room {
        &self.room
    }

    pub(crate) fn arguments(&self, name: &str, accelerator: Accelerator) -> Arguments {
        let path = |kind: &str| self.room.path(&format!("{name}.{kind}"));
        let console = self.room.log_path(&format!("{name}-console"));
        Arguments::new(
            name,
            accelerator,
            &console,
            &path("agent"),
            &path("monitor"),
        )
    }

    pub(crate) fn boot(
        &self,
        name: &str,
        arguments: Arguments,
        complete: impl FnOnce(&mut Blueprint),
    ) -> Result<Guest> {
        let mut blueprint = Blueprint {
            name: name.to_owned(),
            arguments,
            agent_socket: self.room.path(&format!("{name}.agent")),
            monitor_socket: self.room.path(&format!("{name}.monitor")),
            address: None,
            mac: [0; 6],
            functions: Vec::new(),
        };
        complete(&mut blueprint);
        Guest::boot(self.room.clone(), blueprint)
    }
}

/// An appliance to be booted.
pub struct Appliance<'a> {
    lab: &'a Lab,
    functions: usize,
    /// Functions that other processes serve: their sockets, to the appliance and to neighbours.
    served: Vec<(PathBuf, PathBuf)>,
    iommu: bool,
    properties: String,
}

impl Appliance<'_> {
    /// How many virtio-vhost-user functions it has.
    pub fn functions(mut self, functions: usize) -> Self {
        self.functions = functions;
        self
    }

    /// With these functions instead of functions of its own.
    pub fn served(mut self, functions: &[ServedFunction]) -> Self {
        let sockets = |one: &ServedFunction| (one.vfio_user().into(), one.socket().into());
        self.served = functions.iter().map(sockets).collect();
        self.functions = 0;
        self
    }

    /// Without the IOMMU that it should have.
    pub fn without_iommu(mut self) -> Self {
        self.iommu = false;
        self
    }

    /// Further properties of its functions, such as `bar-size=2M`.
    pub fn properties(mut self, properties: &str) -> Self {
        self.properties = format!(",{properties}");
        self
    }

    /// Starts it.
    pub fn boot(self) -> Result<Guest> {
        let name = "appliance";
        let room = &self.lab.room;
        let mut arguments = self.lab.arguments(name, self.lab.accelerator());
        let mut machine = "q35,kernel-irqchip=split".to_owned();
        if !self.served.is_empty() {
            // Whoever serves a function maps the memory that its DMA goes to.
            arguments.option(
                "-object",
                "memory-backend-memfd,id=memory,size=512M,share=on",
            );
            machine += ",memory-backend=memory";
        }
        arguments.option("-machine", machine);
        if self.iommu {
            arguments.option("-device", "intel-iommu,intremap=on,caching-mode=on");
        }
        arguments.option("-m", "512M");
        arguments.option("-smp", "2");
        let own = (0..self.functions).map(|number| {
            let function = Function {
                bdf: bdf(number),
                socket: room.path(&format!("function{number}.sock")),
            };
            self.add_own(&mut arguments, number, &function.socket);
            function
        });
        let mut functions: Vec<Function> = own.collect();
        for (vfio_user, socket) in &self.served {
            let number = functions.len();
            functions.push(Function {
                bdf: bdf(number),
                socket: socket.clone(),
            });
            let device = json!({
                "driver": "vfio-user-pci",
                "id": format!("function{number}"),
                "addr": format!("{:x}", FIRST_SLOT + number),
                "socket": { "type": "unix", "path": vfio_user },
            });
            arguments.option("-device", device.to_string());
        }
        let image = room.image(Role::Appliance)?;
        arguments.boot(&room.kernel.vmlinuz, image, "intel_iommu=on hugepages=32");
        self.lab
            .boot(name, arguments, |blueprint| blueprint.functions = functions)
    }

    /// A function of the appliance's VMM.
    fn add_own(&self, arguments: &mut Arguments, number: usize, socket: &Path) {
        let socket = socket.display();
        arguments.option(
            "-chardev",
            format!("socket,id=vvu{number},path={socket},server=on,wait=off"),
        );
        let slot = FIRST_SLOT + number;
        arguments.option(
            "-device",
            format!(
                "virtio-vhost-user-pci,id=function{number},chardev=vvu{number},iommu_platform=on,addr={slot:#x}{}",
                self.properties
            ),
        );
    }
}

/// Address of an appliance's function.
fn bdf(number: usize) -> String {
    format!("0000:00:{:02x}.0", FIRST_SLOT + number)
}

/// A neighbour to be booted.
pub struct Neighbour<'a> {
    lab: &'a Lab,
    name: String,
    socket: PathBuf,
    memory: Option<PathBuf>,
    listens: bool,
    queue_pairs: u16,
    mtu: u16,
    card: Card,
}

/// How a VMM makes a network card of a back-end.
enum Card {
    /// By its own virtio-net, with these further properties: some features and the control queue
    /// are its own.
    Usual(String),
    /// By a device that passes everything on, whatever it is.
    Bare,
}

impl Neighbour<'_> {
    /// Served through a function of an appliance.
    pub fn via(mut self, appliance: &Guest, function: usize) -> Self {
        self.socket = appliance.function_socket(function).to_owned();
        self
    }

    /// With its memory in the file that a function serves.
    pub fn memory_of(mut self, function: &ServedFunction) -> Self {
        self.memory = Some(function.memory().to_owned());
        self
    }

    /// Served by a program on the host that listens at a socket.
    pub fn unix(mut self, socket: &Path) -> Self {
        self.socket = socket.to_owned();
        self
    }

    /// Served by a program on the host that connects to a socket.
    pub fn unix_listening(mut self, socket: &Path) -> Self {
        self.listens = true;
        self.unix(socket)
    }

    /// Queue pairs of its interface, and processors.
    pub fn queue_pairs(mut self, pairs: u16) -> Self {
        self.queue_pairs = pairs;
        self
    }

    /// Largest packet of its interface.
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = mtu;
        self
    }

    /// Further properties of its interface, such as `packed=on`.
    pub fn properties(mut self, properties: &str) -> Self {
        self.card = Card::Usual(format!(",{properties}"));
        self
    }

    /// With a card whose VMM knows nothing of networks: all features and all queues, the control
    /// queue too, are the back-end's, and so is the hardware address. The back-end must listen.
    pub fn bare(mut self) -> Self {
        self.card = Card::Bare;
        self
    }

    /// Starts it. Its QEMU waits for the back-end before the guest runs.
    pub fn boot(self) -> Result<Guest> {
        let Neighbour {
            lab,
            name,
            socket,
            memory,
            listens,
            queue_pairs,
            mtu,
            card,
        } = self;
        let number = lab.neighbours.get() + 1;
        lab.neighbours.set(number);
        let address = Ipv4Addr::new(10, 77, 0, number);
        let mac = [0x52, 0x54, 0x00, 0x77, 0x00, number];
        let mac_text = mac.map(|byte| format!("{byte:02x}")).join(":");
        let mode = match card {
            _ if listens => "server=on,wait=off",
            Card::Usual(_) => lab.room.qemu.reconnect(),
            // This one wants its connection at once, or gives up.
            Card::Bare => "server=off",
        };
        let mut arguments = lab.arguments(&name, lab.accelerator());
        let backend = match memory {
            Some(file) => format!("memory-backend-file,mem-path={}", file.display()),
            None => "memory-backend-memfd".to_owned(),
        };
        let mib = NEIGHBOUR_MEMORY >> 20;
        arguments.option(
            "-object",
            format!("{backend},id=memory,size={mib}M,share=on"),
        );
        arguments.option("-machine", "q35,memory-backend=memory");
        arguments.option("-m", format!("{mib}M,slots=2,maxmem=2G"));
        // A processor for each pair; one alone spares TCG the atomic operations.
        arguments.option("-smp", queue_pairs.to_string());
        arguments.option(
            "-chardev",
            format!("socket,id=net,path={},{mode}", socket.display()),
        );
        match card {
            Card::Usual(properties) => {
                arguments.option(
                    "-netdev",
                    format!("vhost-user,id=net,chardev=net,queues={queue_pairs}"),
                );
                let vectors = 2 * queue_pairs + 2;
                let multiqueue = if queue_pairs > 1 { "on" } else { "off" };
                arguments.option(
                    "-device",
                    format!("virtio-net-pci,netdev=net,mac={mac_text},mq={multiqueue},vectors={vectors},romfile={properties}"),
                );
            }
            Card::Bare => {
                let queues = 2 * queue_pairs + 1;
                arguments.option(
                    "-device",
                    format!("vhost-user-test-device-pci,chardev=net,virtio-id={VIRTIO_ID_NET},num_vqs={queues},vq_size=256,config_size={NET_CONFIG}"),
                );
            }
        }
        let options = format!("memhp_default_state=online agent.ip={address}/24 agent.mtu={mtu}");
        arguments.boot(
            &lab.room.kernel.vmlinuz,
            lab.room.image(Role::Neighbour)?,
            &options,
        );
        lab.boot(&name, arguments, |blueprint| {
            blueprint.address = Some(address);
            blueprint.mac = mac;
        })
    }
}
