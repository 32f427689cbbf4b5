//! Virtual machines with disks that others serve.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::guest::Guest;
use crate::image::Role;
use crate::lab::Lab;

/// Memory in MiB: little, so that files do not stay in it.
const MEMORY: u32 = 256;

/// How a VMM makes disks of a back-end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A virtio-blk disk.
    Blk,
    /// A virtio-scsi adapter.
    Scsi,
}

/// A virtual machine with disks, to be booted.
pub struct Store<'a> {
    lab: &'a Lab,
    name: String,
    devices: Vec<(Kind, PathBuf)>,
    queues: u16,
    properties: String,
    firmware: bool,
}

impl<'a> Store<'a> {
    pub(crate) fn new(lab: &'a Lab, name: &str) -> Self {
        Self {
            lab,
            name: name.to_owned(),
            devices: Vec::new(),
            queues: 1,
            properties: String::new(),
            firmware: false,
        }
    }

    /// With a virtio-blk disk that a program on the host serves.
    pub fn blk(mut self, socket: &Path) -> Self {
        self.devices.push((Kind::Blk, socket.to_owned()));
        self
    }

    /// With a virtio-blk disk that is served through a function of an appliance.
    pub fn blk_via(self, appliance: &Guest, function: usize) -> Self {
        let socket = appliance.function_socket(function).to_owned();
        self.blk(&socket)
    }

    /// With a virtio-scsi adapter that a program on the host serves.
    pub fn scsi(mut self, socket: &Path) -> Self {
        self.devices.push((Kind::Scsi, socket.to_owned()));
        self
    }

    /// With a virtio-scsi adapter that is served through a function of an appliance.
    pub fn scsi_via(self, appliance: &Guest, function: usize) -> Self {
        let socket = appliance.function_socket(function).to_owned();
        self.scsi(&socket)
    }

    /// Request queues of each, and processors.
    pub fn queues(mut self, queues: u16) -> Self {
        self.queues = queues;
        self
    }

    /// Further properties of its devices, such as `packed=on`.
    pub fn properties(mut self, properties: &str) -> Self {
        self.properties = format!(",{properties}");
        self
    }

    /// Let the firmware boot what is on the first disk, instead of the usual kernel.
    pub fn from_disk(mut self) -> Self {
        self.firmware = true;
        self
    }

    /// Starts it. Its QEMU waits for the back-ends before the guest runs.
    pub fn boot(self) -> Result<Guest> {
        let Store { lab, name, .. } = &self;
        let mut arguments = lab.arguments(name, lab.accelerator());
        arguments.option(
            "-object",
            format!("memory-backend-memfd,id=memory,size={MEMORY}M,share=on"),
        );
        arguments.option("-machine", "q35,memory-backend=memory");
        arguments.option("-m", format!("{MEMORY}M"));
        arguments.option("-smp", self.queues.to_string());
        let mode = lab.room().qemu().reconnect();
        for (number, (kind, socket)) in self.devices.iter().enumerate() {
            arguments.option(
                "-chardev",
                format!("socket,id=disk{number},path={},{mode}", socket.display()),
            );
            let (driver, queues) = match kind {
                Kind::Blk => ("vhost-user-blk-pci", "num-queues"),
                Kind::Scsi => ("vhost-user-scsi-pci", "num_queues"),
            };
            let boot = if self.firmware && number == 0 {
                ",bootindex=0"
            } else {
                ""
            };
            arguments.option(
                "-device",
                format!(
                    "{driver},id=disk{number},chardev=disk{number},{queues}={}{}{boot}",
                    self.queues, self.properties
                ),
            );
        }
        if !self.firmware {
            let room = lab.room();
            arguments.boot(&room.kernel.vmlinuz, room.image(Role::Store)?, "");
        }
        lab.boot(name, arguments, |_| {})
    }
}
