//! What `vvu` says in an appliance where something is not as it should be: one line that says
//! what to do, an exit code that is not zero, and nothing changed.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vvu_tests::Guest;

use crate::runner::Stage;

/// How long `vvu` may take to refuse.
const PATIENCE: Duration = Duration::from_secs(20);

/// Somebody without privileges.
const NOBODY: &str = "nobody:x:65534:65534::/:/bin/sh\n";

/// Runs a command that must fail with one line that contains all of `parts`.
fn refused(guest: &Guest, argv: &[&str], parts: &[&str]) -> Result<()> {
    let output = guest.start(argv)?.wait(PATIENCE)?;
    let said = output.stderr.trim_end();
    ensure!(
        output.code.is_some_and(|code| code != 0),
        "{argv:?} ended with {:?}: {said}",
        output.code
    );
    ensure!(
        said.lines().count() == 1,
        "{argv:?} says more than a line: {said}"
    );
    for part in parts {
        ensure!(
            said.contains(part),
            "{argv:?} does not say {part:?}: {said}"
        );
    }
    Ok(())
}

/// The driver that has a function, as `vvu list` shows it.
fn driver(guest: &Guest, bdf: &str) -> Result<String> {
    let list = guest.run(&["vvu", "list"])?.stdout;
    let line = list
        .lines()
        .find(|line| line.starts_with(bdf))
        .unwrap_or_default();
    Ok(line
        .split_whitespace()
        .nth(2)
        .unwrap_or_default()
        .to_owned())
}

/// Functions that are not there, not VVU, not bound, not permitted, in use, or gone.
pub(crate) fn refusals(stage: &mut Stage) -> Result<()> {
    let lab = stage.own_lab()?;
    let guest = lab.appliance().boot()?;
    guest.ready()?;
    let bdf = guest.functions().next().unwrap_or_default().to_owned();
    let port = format!("vvu:{bdf}");
    let net = ["vvu", "--quiet", "net", "--port", &port];

    refused(
        &guest,
        &["vvu", "bind", "00:1e.7"],
        &["00:1e.7", "no PCI function"],
    )?;
    // The LPC bridge of the machine.
    refused(
        &guest,
        &["vvu", "bind", "00:1f.0"],
        &["00:1f.0", "not a virtio-vhost-user function"],
    )?;
    refused(
        &guest,
        &net,
        &[&bdf, "vfio-pci", &format!("vvu bind {bdf}")],
    )?;
    let before = driver(&guest, &bdf)?;
    guest.run(&["vvu", "bind", "--dry-run", &bdf])?;
    ensure!(
        driver(&guest, &bdf)? == before,
        "a dry run bound the function"
    );

    guest.run(&["vvu", "bind", &bdf])?;
    ensure!(
        driver(&guest, &bdf)? == "vfio-pci",
        "bind left the driver {}",
        driver(&guest, &bdf)?
    );
    let info = guest.run(&["vvu", "info", &bdf])?.stdout;
    for line in ["doorbells", "memory window", "uuid", "IOMMU group"] {
        ensure!(info.contains(line), "vvu info does not show {line}: {info}");
    }

    let group = guest.run(&["ls", "/dev/vfio"])?.stdout;
    let group = group
        .split_whitespace()
        .find(|name| *name != "vfio")
        .unwrap_or_default();
    let node = format!("/dev/vfio/{group}");
    guest.run(&["mkdir", "-p", "/etc"])?;
    guest.write("/etc/passwd", NOBODY.as_bytes(), 0o644)?;
    let plain = format!("vvu --quiet net --port {port}");
    let as_nobody = |command: &str| ["busybox", "su", "nobody", "-c", command].map(str::to_owned);
    let refused_as_nobody = |command: &str, parts: &[&str]| {
        let argv = as_nobody(command);
        refused(&guest, &argv.each_ref().map(String::as_str), parts)
    };
    refused_as_nobody(&plain, &[&node, "permi"])?;
    guest.run(&["busybox", "chmod", "666", &node, "/dev/vfio/vfio"])?;
    refused_as_nobody(
        &format!("ulimit -l 16; {plain}"),
        &["RLIMIT_MEMLOCK", "ulimit -l"],
    )?;

    let first = guest.start(&["vvu", "net", "--port", &port])?;
    first.wait_for_text("ready", PATIENCE)?;
    refused(&guest, &net, &[&bdf, "in use"])?;
    first.stop()?;

    guest.run(&["busybox", "mv", &node, "/dev/vfio/away"])?;
    refused(&guest, &net, &[&node])?;
    guest.run(&["busybox", "mv", "/dev/vfio/away", &node])?;

    // Without hugepages it says so and goes on.
    guest.write("/proc/sys/vm/nr_hugepages", b"0", 0o644)?;
    let without = guest.start(&["vvu", "net", "--port", &port])?;
    without.wait_for_text("ordinary pages", PATIENCE)?;
    without.wait_for_text("ready", PATIENCE)?;
    without.stop()?;

    guest.run(&["vvu", "unbind", &bdf])?;
    ensure!(
        driver(&guest, &bdf)? == before,
        "unbind left the driver {}",
        driver(&guest, &bdf)?
    );
    Ok(())
}

/// Without an IOMMU nothing is bound, and the message says how to get one.
pub(crate) fn no_iommu(stage: &mut Stage) -> Result<()> {
    let lab = stage.own_lab()?;
    let guest = lab.appliance().without_iommu().boot()?;
    guest.ready()?;
    let bdf = guest.functions().next().unwrap_or_default().to_owned();
    let before = driver(&guest, &bdf)?;
    refused(
        &guest,
        &["vvu", "bind", &bdf],
        &["IOMMU group", "intel_iommu=on"],
    )?;
    ensure!(
        driver(&guest, &bdf)? == before,
        "half bound: driver {}",
        driver(&guest, &bdf)?
    );
    Ok(())
}

/// A neighbour that is larger than the window is refused, and the message names the property.
pub(crate) fn window_too_small(stage: &mut Stage) -> Result<()> {
    let lab = stage.own_lab()?;
    let appliance = lab
        .appliance()
        .functions(1)
        .properties("bar-size=2M")
        .boot()?;
    appliance.ready()?;
    let vvu = vvu_tests::start_vvu(&appliance)?;
    let neighbour = lab.neighbour("large").via(&appliance, 0).boot()?;
    let deadline = Instant::now() + PATIENCE;
    while !appliance.qemu_output().contains("bar-size") {
        ensure!(
            Instant::now() < deadline,
            "the appliance's QEMU does not name the property: {}; vvu says: {}",
            appliance.qemu_output(),
            vvu.printed()
        );
        thread::sleep(Duration::from_millis(100));
    }
    drop(neighbour);
    ensure!(!vvu.has_ended(), "vvu has ended: {}", vvu.printed());
    Ok(())
}
