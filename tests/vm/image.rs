//! First root file systems: the agent as `/init`, busybox, kernel modules, and in an appliance `vvu`.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, Result};

use crate::binaries;
use crate::cpio::Archive;
use crate::kernel::{self, Kernel};
use crate::tools;

/// Shell commands that people expect; all are busybox.
const APPLETS: &[&str] = &[
    "sh", "ls", "cat", "ip", "ps", "dmesg", "free", "grep", "head", "tail", "kill", "mkdir",
    "mount", "ping", "sleep", "taskset", "top", "hexdump", "reboot", "umount", "sync", "dd", "cmp",
    "md5sum", "rm", "blockdev", "df",
];

/// What a guest is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs `vvu` on virtio-vhost-user functions. No virtio driver is loaded: it would claim them.
    Appliance,
    /// Has an ordinary virtio-net interface.
    Neighbour,
    /// Has disks, and programs that use them.
    Store,
}

impl Role {
    fn modules(self) -> &'static [&'static str] {
        match self {
            Role::Appliance => &["vfio_iommu_type1", "vfio_pci"],
            Role::Neighbour => &["virtio_pci", "virtio_net", "pktgen"],
            Role::Store => &["virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ext4"],
        }
    }
}

/// Writes the image of a role, an appliance's with this `vvu`, if it is not the usual one.
pub(crate) fn write(role: Role, kernel: &Kernel, vvu: Option<&Path>, path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let mut image = Archive::new(BufWriter::new(file));
    for directory in ["bin", "dev", "modules", "proc", "sys", "tmp"] {
        image.directory(directory)?;
    }
    if role == Role::Store {
        for directory in ["lib", "lib64", "mnt"] {
            image.directory(directory)?;
        }
        let scratch = tempfile::tempdir()?;
        for (path, bytes) in tools::collect(scratch.path())? {
            image.file(&path, 0o755, &bytes)?;
        }
    }
    let program =
        |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    image.file("init", 0o755, &program(&binaries::agent()?)?)?;
    image.file("bin/busybox", 0o755, &program(&kernel::busybox()?)?)?;
    for applet in APPLETS {
        image.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    for (position, module) in kernel.modules(role.modules())?.iter().enumerate() {
        image.file(
            &format!("modules/{position:02}-{}.ko", module.name),
            0o644,
            &module.image,
        )?;
    }
    if role == Role::Appliance {
        let vvu = vvu.map_or_else(binaries::vvu, |vvu| Ok(vvu.to_owned()))?;
        image.file("bin/vvu", 0o755, &program(&vvu)?)?;
    }
    image.finish()?;
    Ok(())
}
