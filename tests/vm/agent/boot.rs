//! From the kernel's first process to a guest that can be used.

use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::kmod::init_module;
use nix::mount::{MsFlags, mount};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

const LINE: &str = "/dev/ttyS1";

/// Mounts, loads modules, sets the network up as the kernel's command line says, opens the line to the host.
pub(crate) fn bring_up() -> Result<File> {
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
    ] {
        let no_data: Option<&str> = None;
        mount(Some(kind), target, Some(kind), MsFlags::empty(), no_data)
            .with_context(|| format!("mounting {target}"))?;
    }
    fs::create_dir_all("/dev/hugepages")?;
    let no_data: Option<&str> = None;
    mount(
        Some("hugetlbfs"),
        "/dev/hugepages",
        Some("hugetlbfs"),
        MsFlags::empty(),
        no_data,
    )
    .context("mounting /dev/hugepages")?;
    load_modules()?;
    let command_line = fs::read_to_string("/proc/cmdline")?;
    let option = |key: &str| {
        command_line
            .split_whitespace()
            .find_map(|word| word.strip_prefix(key))
    };
    ip(&["link", "set", "lo", "up"])?;
    if let Some(address) = option("agent.ip=") {
        let mtu = option("agent.mtu=").unwrap_or("1500");
        ip(&["link", "set", "eth0", "mtu", mtu, "up"])?;
        ip(&["addr", "add", address, "dev", "eth0"])?;
    }
    open_line()
}

/// Loads `/modules/*` in the order of their names.
fn load_modules() -> Result<()> {
    let mut files = fs::read_dir("/modules")?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<PathBuf>>>()?;
    files.sort();
    for file in files {
        init_module(&fs::read(&file)?, c"")
            .with_context(|| format!("loading {}", file.display()))?;
    }
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<()> {
    let status = Command::new("/bin/ip")
        .args(arguments)
        .status()
        .context("running ip")?;
    ensure!(status.success(), "ip {} failed", arguments.join(" "));
    Ok(())
}

fn open_line() -> Result<File> {
    let line = OpenOptions::new()
        .read(true)
        .write(true)
        .open(LINE)
        .with_context(|| format!("opening {LINE}"))?;
    let mut settings = tcgetattr(&line)?;
    cfmakeraw(&mut settings);
    tcsetattr(&line, SetArg::TCSANOW, &settings)?;
    Ok(line)
}
