//! Disks of a real guest: what was written stays, whoever is killed.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vvu_tests::{Disks, bootable_disk};

use crate::runner::Stage;

/// Requests are under way after this.
const LOAD: Duration = Duration::from_millis(1500);

/// For this long nobody serves the disks.
const AWAY: Duration = Duration::from_millis(700);

/// Files and file systems on a virtio-blk disk: all that is read is what was written.
pub(crate) fn disk_files(stage: &mut Stage) -> Result<()> {
    files(stage.disks()?, "vda")
}

fn files(disks: &Disks, disk: &str) -> Result<()> {
    disks.make_and_mount(disk)?;
    // Writes with flushes between them, then all is read; then blocks of the same file are
    // discarded, and others written.
    let writing = [
        "--rw=randwrite",
        "--size=8M",
        "--bsrange=4k-64k",
        "--fsync=64",
        "--fallocate=none",
    ];
    disks.finish_fio(&disks.start_fio("/mnt/a", &writing)?)?;
    let mixed = [
        "--rw=randrw",
        "--size=8M",
        "--bs=4k",
        "--verify_backlog=256",
    ];
    let mixed = disks.start_fio("/mnt/b", &mixed)?;
    disks.guest.run(&["rm", "/mnt/a"])?;
    disks.finish_fio(&mixed)?;
    disks.unmount_and_check(disk)?;
    trims(disks, disk)?;
    disks.no_errors()
}

/// Discards and writes at random, on the disk itself.
fn trims(disks: &Disks, disk: &str) -> Result<()> {
    let device = format!("/dev/{disk}");
    let trims = [
        "--rw=randtrimwrite",
        "--offset=64M",
        "--size=8M",
        "--bs=16k",
    ];
    disks.finish_fio(&disks.start_fio(&device, &trims)?)
}

/// The guest loses its power under load: what it was told to be there is there.
pub(crate) fn disk_power_cut(stage: &mut Stage) -> Result<()> {
    power_cut(stage.disks()?, "vda")
}

fn power_cut(disks: &mut Disks, disk: &str) -> Result<()> {
    disks.make_and_mount(disk)?;
    // Not read there: it is when the power is back.
    let safe = ["--rw=randwrite", "--size=8M", "--bs=8k", "--end_fsync=1"];
    disks.finish_fio(&disks.start_fio("/mnt/safe", &[&safe[..], &["--do_verify=0"]].concat())?)?;
    disks.guest.run(&["sync"])?;
    let lost = disks.start_fio(
        "/mnt/lost",
        &["--rw=randwrite", "--size=96M", "--bs=4k", "--fsync=16"],
    )?;
    thread::sleep(LOAD);
    ensure!(!lost.has_ended(), "there is no load");
    disks.guest.kill_and_boot()?;
    disks.guest.ready()?;
    // The journal is played back.
    disks.mount(disk)?;
    disks.finish_fio(&disks.start_fio("/mnt/safe", &[&safe[..], &["--verify_only"]].concat())?)?;
    disks.unmount_and_check(disk)?;
    disks.no_errors()
}

/// What serves the disks dies under load and is started again: the guest waits, and goes on.
pub(crate) fn disk_vvu_killed(stage: &mut Stage) -> Result<()> {
    vvu_killed(stage.disks()?)
}

fn vvu_killed(disks: &mut Disks) -> Result<()> {
    let loads = ["vda", "sda"].map(|disk| {
        let load = [
            "--rw=randwrite",
            "--size=48M",
            "--bsrange=4k-32k",
            "--fsync=100",
        ];
        disks.start_fio(&format!("/dev/{disk}"), &load)
    });
    for _ in 0..2 {
        thread::sleep(LOAD);
        for load in &loads {
            let ended = load.as_ref().is_ok_and(|load| load.has_ended());
            ensure!(!ended, "there is no load");
        }
        disks.restart_servers(AWAY)?;
    }
    for load in loads {
        disks.finish_fio(&load?)?;
    }
    disks.no_errors()
}

/// SeaBIOS boots from a disk, with a driver of its own, and reads all of it.
pub(crate) fn disk_firmware(stage: &mut Stage) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let lab = stage.lab_with_disks()?;
    let (disk, expected) = bootable_disk(&lab.file(""), 128)?;
    let (file, socket) = (lab.file("boot"), lab.socket("boot"));
    fs::write(&file, disk).with_context(|| format!("writing {}", file.display()))?;
    let words = [
        "blk".to_owned(),
        format!("--port=unix:{}", socket.display()),
        format!("--disk=file:{}", file.display()),
    ];
    let mut server = lab.vvu_with("blk", &words)?;
    server.wait_for_text("ready", Duration::from_secs(10))?;
    let guest = lab.store("firmware").blk(&socket).from_disk().boot()?;
    let console = lab.logs().join("firmware-console.log");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = fs::read_to_string(&console).unwrap_or_default();
        if said.contains(&expected) {
            break;
        }
        ensure!(
            Instant::now() < deadline && !said.contains("cannot") && !said.contains(" end"),
            "the boot sector should have said {expected:?}, not {said:?}; {}",
            guest.qemu_output()
        );
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The same disk, through an appliance.
pub(crate) fn vvu_disk_files(stage: &mut Stage) -> Result<()> {
    files(stage.disks_via()?, "vda")
}

/// The guest loses its power, through an appliance.
pub(crate) fn vvu_disk_power_cut(stage: &mut Stage) -> Result<()> {
    power_cut(stage.disks_via()?, "vda")
}

/// The program in the appliance dies.
pub(crate) fn vvu_disk_vvu_killed(stage: &mut Stage) -> Result<()> {
    vvu_killed(stage.disks_via()?)
}

/// Files on a SCSI disk.
pub(crate) fn scsi_files(stage: &mut Stage) -> Result<()> {
    files(stage.disks()?, "sda")
}

/// Files on a SCSI disk, through an appliance.
pub(crate) fn vvu_scsi_files(stage: &mut Stage) -> Result<()> {
    files(stage.disks_via()?, "sda")
}

/// What programs for people ask of SCSI disks.
pub(crate) fn scsi_tools(stage: &mut Stage) -> Result<()> {
    let disks = stage.disks()?;
    let guest = &disks.guest;
    for argv in [
        &["sg_turs", "/dev/sda"][..],
        &["sg_inq", "/dev/sda"],
        &["sg_vpd", "--page=di", "/dev/sda"],
        &["sg_vpd", "--page=bl", "/dev/sda"],
        &["sg_vpd", "--page=lbpv", "/dev/sda"],
        &["sg_readcap", "--16", "/dev/sda"],
        &["sg_modes", "--page=8", "/dev/sda"],
        &["sg_opcodes", "/dev/sda"],
        &["sg_sync", "/dev/sda"],
        &["sg_verify", "--lba=0", "--count=64", "/dev/sda"],
        &[
            "sg_write_same",
            "--16",
            "--lba=0",
            "--num=128",
            "--in=/dev/zero",
            "--xferlen=512",
            "/dev/sda",
        ],
        &["sg_unmap", "--lba=128", "--num=128", "--force", "/dev/sda"],
        &["sg_get_lba_status", "--lba=0", "/dev/sda"],
        &["sg_persist", "--in", "--report-capabilities", "/dev/sda"],
        &[
            "sg_persist",
            "--out",
            "--register",
            "--param-sark=abc",
            "/dev/sda",
        ],
        &[
            "sg_persist",
            "--out",
            "--reserve",
            "--param-rk=abc",
            "--prout-type=1",
            "/dev/sda",
        ],
        &[
            "sg_persist",
            "--out",
            "--release",
            "--param-rk=abc",
            "--prout-type=1",
            "/dev/sda",
        ],
        &[
            "sg_persist",
            "--out",
            "--register",
            "--param-rk=abc",
            "--param-sark=0",
            "/dev/sda",
        ],
    ] {
        guest.run(argv)?;
    }
    let units = guest.run(&["sg_luns", "/dev/sda"])?.stdout;
    ensure!(
        units.contains("Lun list length = 16"),
        "two units, not {units}"
    );
    disks.no_errors()
}
