//! The virtual machine monitor: where it is, what it can do, the command lines of our guests.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use crate::accel::Accelerator;
use crate::binaries::repository;

/// The release that `qemu-patches/build` is asked for.
const RELEASE: &str = "10.2";

/// Where Debian keeps SeaBIOS and QEMU's own option ROMs.
const FIRMWARE: [&str; 2] = ["/usr/share/seabios", "/usr/share/qemu"];

/// A QEMU: one with the virtio-vhost-user device, or one that nobody patched.
#[derive(Debug, Clone)]
pub struct Qemu {
    /// The program.
    pub program: PathBuf,
    version: (u32, u32),
}

impl Qemu {
    /// The program that `VVU_QEMU` names, else the one that `qemu-patches/build` makes.
    pub fn get() -> Result<Qemu> {
        static QEMU: OnceLock<Qemu> = OnceLock::new();
        Self::once(&QEMU, "VVU_QEMU", &[RELEASE])
    }

    /// The program that `VVU_STOCK_QEMU` names, else the same release without our patches.
    pub fn stock() -> Result<Qemu> {
        static QEMU: OnceLock<Qemu> = OnceLock::new();
        Self::once(&QEMU, "VVU_STOCK_QEMU", &["--stock", RELEASE])
    }

    fn once(cell: &OnceLock<Qemu>, variable: &str, arguments: &[&str]) -> Result<Qemu> {
        if let Some(qemu) = cell.get() {
            return Ok(qemu.clone());
        }
        let program = match env::var_os(variable) {
            Some(program) => program.into(),
            None => build(arguments).with_context(|| format!("{variable} may name a QEMU"))?,
        };
        let version = version(&program)?;
        Ok(cell.get_or_init(|| Qemu { program, version }).clone())
    }

    /// Whether it has the virtio-vhost-user function.
    pub fn has_function(&self) -> Result<bool> {
        self.has_device("virtio-vhost-user-pci")
    }

    /// Whether it takes functions that other processes serve.
    pub fn has_vfio_user(&self) -> Result<bool> {
        self.has_device("vfio-user-pci")
    }

    fn has_device(&self, name: &str) -> Result<bool> {
        let output = Command::new(&self.program)
            .args(["-device", "help"])
            .output()?;
        let name = format!("name \"{name}\"");
        Ok(String::from_utf8_lossy(&output.stdout).contains(&name))
    }

    /// The option of a client socket that tries again every tenth of a second, or in old releases every second.
    pub fn reconnect(&self) -> &'static str {
        if self.version >= (9, 2) {
            "reconnect-ms=100"
        } else {
            "reconnect=1"
        }
    }
}

/// Runs the build script, which prints the program's path last; its progress goes to standard error.
fn build(arguments: &[&str]) -> Result<PathBuf> {
    let script = repository().join("qemu-patches/build");
    let output = Command::new(&script)
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("running {}", script.display()))?;
    ensure!(
        output.status.success(),
        "{} {} failed",
        script.display(),
        arguments.join(" ")
    );
    let stdout = String::from_utf8(output.stdout)?;
    let path = stdout
        .lines()
        .last()
        .with_context(|| format!("{} printed no path", script.display()))?;
    Ok(path.trim().into())
}

/// `QEMU emulator version 10.2.1 (...)` -> (10, 2).
fn version(program: &Path) -> Result<(u32, u32)> {
    let output = Command::new(program).arg("--version").output();
    let output = output.with_context(|| format!("running {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = text.split_whitespace().nth(3).unwrap_or_default();
    let mut parts = number.split('.').map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => anyhow::bail!("{} does not say its version: {text}", program.display()),
    }
}

/// The arguments of one QEMU process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Arguments(Vec<String>);

impl Arguments {
    /// What every guest has: no default devices, a console in a file, and sockets for agent and monitor.
    pub(crate) fn new(
        name: &str,
        accelerator: Accelerator,
        console: &Path,
        agent: &Path,
        monitor: &Path,
    ) -> Arguments {
        let mut arguments = Arguments::default();
        arguments.option("-name", name);
        arguments.option("-accel", accelerator.argument());
        // Five-level page tables make every address translation of TCG longer, and it copies
        // string instructions byte by byte where the guest believes them to be fast.
        arguments.option("-cpu", "max,la57=off,erms=off,fsrm=off");
        for switch in ["-nodefaults", "-no-user-config"] {
            arguments.0.push(switch.into());
        }
        arguments.option("-display", "none");
        for directory in FIRMWARE {
            arguments.option("-L", directory);
        }
        arguments.option(
            "-chardev",
            format!("file,id=console,path={}", console.display()),
        );
        arguments.option(
            "-chardev",
            format!("socket,id=agent,path={}", agent.display()),
        );
        arguments.option(
            "-chardev",
            format!("socket,id=monitor,path={}", monitor.display()),
        );
        arguments.option("-device", "isa-serial,chardev=console,index=0");
        arguments.option("-device", "isa-serial,chardev=agent,index=1");
        arguments.option("-mon", "chardev=monitor,mode=control");
        arguments
    }

    /// Adds `-name value`.
    pub(crate) fn option(&mut self, name: &str, value: impl Into<String>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }

    /// Adds the kernel, its first root file system and the command line.
    pub(crate) fn boot(&mut self, kernel: &Path, image: &Path, extra: &str) {
        self.option("-kernel", kernel.display().to_string());
        self.option("-initrd", image.display().to_string());
        self.option(
            "-append",
            format!("console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable {extra}"),
        );
    }

    /// The finished list.
    pub(crate) fn list(&self) -> &[String] {
        &self.0
    }
}
