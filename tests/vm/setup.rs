//! What the machine must have to run a lab.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::tools;

/// A file that is needed, and the Debian package that has it. Programs are looked up in `PATH`.
const NEEDS: &[(&str, &str)] = &[
    ("setpriv", "util-linux"),
    ("/usr/share/seabios/bios-256k.bin", "seabios"),
    ("/usr/share/qemu/kvmvapic.bin", "qemu-system-data"),
];

/// What fetches the guests' kernel, unless there is one already.
const KERNEL_NEEDS: &[(&str, &str)] =
    &[("apt-get", "apt"), ("dpkg-deb", "dpkg"), ("xz", "xz-utils")];

/// The same for labs with disks.
pub fn ensure_ready_for_disks() -> Result<()> {
    ensure_ready()?;
    install(&tools::missing, "of the guests with disks")
}

/// Packages of what is missing.
pub fn missing() -> Vec<&'static str> {
    let fetched = if env::var_os("VVU_TEST_KERNEL").is_none() {
        KERNEL_NEEDS
    } else {
        &[]
    };
    NEEDS
        .iter()
        .chain(fetched)
        .filter(|(file, _)| !is_there(file))
        .map(|(_, package)| *package)
        .collect()
}

/// Installs what is missing where that is possible, else says what to install.
pub fn ensure_ready() -> Result<()> {
    install(&missing, "of any guest")
}

fn install(missing: &dyn Fn() -> Vec<&'static str>, what: &str) -> Result<()> {
    let packages = missing();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !nix::unistd::geteuid().is_root() || !is_there("apt-get") {
        bail!(
            "these Debian packages {what} are missing: {list}; install them with: apt-get install --no-install-recommends {list}"
        );
    }
    apt_get(&["update", "-qq"])?;
    apt_get(
        &[
            &["install", "-qq", "-y", "--no-install-recommends"],
            packages.as_slice(),
        ]
        .concat(),
    )?;
    ensure!(
        missing().is_empty(),
        "{list} are installed, yet {} is still missing",
        missing().join(" ")
    );
    Ok(())
}

fn is_there(file: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    Path::new(file).is_absolute() && Path::new(file).exists()
        || env::split_paths(&path).any(|directory| directory.join(file).exists())
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status();
    let status = status.context("running apt-get")?;
    ensure!(status.success(), "apt-get {} failed", arguments.join(" "));
    Ok(())
}
