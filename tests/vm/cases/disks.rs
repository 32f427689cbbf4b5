//! Disks of a real guest: what was written stays, whoever is killed.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vvu_tests::{DISK, Disks, Guest, Lab, bootable_disk};

use crate::offloads::feature::RING_PACKED;
use crate::runner::Stage;

/// Requests are under way after this.
const LOAD: Duration = Duration::from_millis(1500);

/// For this long nobody serves the disks.
const AWAY: Duration = Duration::from_millis(700);

/// Bytes of a disk that has grown.
const GROWN: u64 = DISK + (64 << 20);

/// Longest start of a program, or of a machine as far as its firmware.
const BOOT: Duration = Duration::from_secs(60);

/// Files and file systems on a virtio-blk disk: all that is read is what was written.
pub(crate) fn disk_files(stage: &mut Stage) -> Result<()> {
    files(stage.disks()?, "vda")
}

/// Files on a SCSI disk.
pub(crate) fn scsi_files(stage: &mut Stage) -> Result<()> {
    let disks = stage.disks()?;
    files(disks, &disks.unit(0, 0)?)
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

/// The disk grows while it is in use, and the guest's kernel knows.
pub(crate) fn disk_grows(stage: &mut Stage) -> Result<()> {
    let disks = stage.disks()?;
    let file = disks.lab.file("vda");
    let grown = fs::File::options()
        .write(true)
        .open(&file)
        .and_then(|file| file.set_len(GROWN));
    grown.with_context(|| format!("cannot make {} longer", file.display()))?;
    grows(disks)
}

/// What is there is used, too.
fn grows(disks: &Disks) -> Result<()> {
    let deadline = Instant::now() + BOOT;
    loop {
        // Who reads this asks the kernel, which asks nobody.
        let sectors = disks.guest.run(&["cat", "/sys/block/vda/size"])?.stdout;
        if sectors.trim().parse() == Ok(GROWN / 512) {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "the guest still has {} sectors\n{}",
            sectors.trim(),
            disks.printed()
        );
        thread::sleep(Duration::from_millis(50));
    }
    let new = format!("--offset={DISK}");
    let writing = ["--rw=randwrite", &new, "--size=8M", "--bs=16k"];
    disks.finish_fio(&disks.start_fio("/dev/vda", &writing)?)?;
    disks.no_errors()
}

/// The guest loses its power under load: what it was told to be there is there.
pub(crate) fn disk_power_cut(stage: &mut Stage) -> Result<()> {
    power_cut(stage.disks()?, blk)
}

/// The same of a SCSI disk.
pub(crate) fn scsi_power_cut(stage: &mut Stage) -> Result<()> {
    power_cut(stage.disks()?, unit)
}

/// What the guest calls its virtio-blk disk.
fn blk(_: &Disks) -> Result<String> {
    Ok("vda".into())
}

/// What it calls its first SCSI disk, this time.
fn unit(disks: &Disks) -> Result<String> {
    disks.unit(0, 0)
}

fn power_cut(disks: &mut Disks, name: fn(&Disks) -> Result<String>) -> Result<()> {
    disks.make_and_mount(&name(disks)?)?;
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
    let disk = &name(disks)?;
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
    let unit = disks.unit(0, 0)?;
    // Killed at rest. From then on requests take long enough, on any machine, that some are always
    // under way, and that they overtake each other.
    disks.delay_requests("2000-20000");
    disks.restart_servers(AWAY)?;
    let mut loads = Vec::new();
    for disk in ["vda", &unit] {
        let load = [
            "--rw=randwrite",
            "--size=32M",
            "--bsrange=4k-16k",
            "--fsync=100",
        ];
        loads.push(disks.start_fio(&format!("/dev/{disk}"), &load)?);
    }
    for _ in 0..2 {
        thread::sleep(LOAD);
        ensure!(
            loads.iter().all(|load| !load.has_ended()),
            "there is no load"
        );
        disks.restart_servers(AWAY)?;
    }
    for load in &loads {
        disks.finish_fio(load)?;
    }
    for server in &disks.servers {
        ensure!(
            server.taken_again() > 0,
            "nothing was in flight when it was killed: {}",
            server.printed()
        );
    }
    disks.no_errors()
}

/// SeaBIOS boots from disks of both kinds, with drivers of its own, and reads all of them.
pub(crate) fn disk_firmware(stage: &mut Stage) -> Result<()> {
    let lab = stage.lab_with_disks()?;
    let (disk, expected) = bootable_disk(&lab.file(""), 128)?;
    let file = lab.file("boot");
    fs::write(&file, disk).with_context(|| format!("writing {}", file.display()))?;
    for (kind, option, place) in [("blk", "--disk", ""), ("scsi", "--lun", "0:0=")] {
        let socket = lab.socket(kind);
        let words = [
            kind.to_owned(),
            format!("--port=unix:{}", socket.display()),
            format!("{option}={place}file:{}", file.display()),
        ];
        let mut server = lab.vvu_with(kind, &words)?;
        server.wait_for_text("ready", BOOT)?;
        let guest = lab.store(&format!("firmware-{kind}")).from_disk();
        let guest = match kind {
            "blk" => guest.blk(&socket),
            _ => guest.scsi(&socket),
        };
        let guest = guest.boot()?;
        says(&guest, &lab, &expected)
            .with_context(|| format!("vvu {kind} says: {}", server.output()))?;
    }
    Ok(())
}

/// Waits until a boot sector has said so.
fn says(guest: &Guest, lab: &Lab, expected: &str) -> Result<()> {
    let console = lab.logs().join(format!("{}-console.log", guest.name()));
    let deadline = Instant::now() + BOOT;
    loop {
        let said = fs::read_to_string(&console).unwrap_or_default();
        if said.contains(expected) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline && !said.contains("cannot") && !said.contains(" end"),
            "the boot sector should have said {expected:?}, not {said:?}; {}",
            guest.qemu_output()
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// The same disk, through an appliance.
pub(crate) fn vvu_disk_files(stage: &mut Stage) -> Result<()> {
    files(stage.disks_via()?, "vda")
}

/// The disk in the appliance grows, which the guest hears by way of the function.
pub(crate) fn vvu_disk_grows(stage: &mut Stage) -> Result<()> {
    let disks = stage.disks_via()?;
    let appliance = disks.appliance.as_ref().context("no appliance")?;
    let size = GROWN.to_string();
    appliance.run(&["busybox", "truncate", "-s", &size, "/vda"])?;
    grows(disks)
}

/// The guest loses its power, through an appliance.
pub(crate) fn vvu_disk_power_cut(stage: &mut Stage) -> Result<()> {
    power_cut(stage.disks_via()?, blk)
}

/// The same of a SCSI disk.
pub(crate) fn vvu_scsi_power_cut(stage: &mut Stage) -> Result<()> {
    power_cut(stage.disks_via()?, unit)
}

/// Files on a SCSI disk, through an appliance.
pub(crate) fn vvu_scsi_files(stage: &mut Stage) -> Result<()> {
    let disks = stage.disks_via()?;
    files(disks, &disks.unit(0, 0)?)
}

/// The programs in the appliance die, and find their places in packed rings again.
pub(crate) fn vvu_disk_vvu_killed(stage: &mut Stage) -> Result<()> {
    let disks = stage.disks_via()?;
    for device in ["virtio0", "virtio1"] {
        let features = disks
            .guest
            .features_of(&format!("/sys/bus/virtio/devices/{device}"))?;
        ensure!(
            features & RING_PACKED != 0,
            "{device} has no packed rings: features {features:#x}"
        );
    }
    vvu_killed(disks)
}

/// How programs of sg3-utils end (sg3_utils(8), exit status).
const DONE: i32 = 0;
const UNIT_ATTENTION: i32 = 6;
const MISCOMPARE: i32 = 14;
const RESERVATION_CONFLICT: i32 = 24;

/// Runs a program of sg3-utils on a disk, which must end like that. What the disk has to tell
/// first is heard.
fn sg(disks: &Disks, words: &str, disk: &str, end: i32) -> Result<String> {
    let device = format!("/dev/{disk}");
    let argv: Vec<&str> = words.split(' ').chain([device.as_str()]).collect();
    let mut heard = 0;
    loop {
        let output = disks.guest.start(&argv)?.wait(BOOT)?;
        if output.code == Some(UNIT_ATTENTION) && heard < 3 {
            heard += 1;
            continue;
        }
        ensure!(
            output.code == Some(end),
            "{words} {disk} ended with {:?}, not {end}: {}{}",
            output.code,
            output.stdout,
            output.stderr
        );
        return Ok(output.stdout);
    }
}

/// What programs for people ask of SCSI disks, and what they do to them.
pub(crate) fn scsi_tools(stage: &mut Stage) -> Result<()> {
    let disks = stage.disks()?;
    let disk = disks.unit(0, 0)?;
    let last = format!("Last LBA={}", DISK / 512 - 1);
    for (words, answer) in [
        ("sg_turs", ""),
        ("sg_inq", "Vendor identification: VVU"),
        ("sg_vpd --page=sv", "Block limits"),
        ("sg_vpd --page=sn", "Unit serial number: 0:0:"),
        ("sg_vpd --page=di", "NAA"),
        ("sg_vpd --page=bl", "Maximum compare and write length"),
        ("sg_vpd --page=lbpv", "Unmap command supported (LBPU): 1"),
        ("sg_readcap --16", &last),
        ("sg_modes --page=8", "Caching"),
        ("sg_opcodes", "Compare and write"),
        ("sg_rtpg", "target port group"),
        ("sg_get_lba_status --lba=0", "mapped"),
        ("sg_luns", "Lun list length = 16"),
        ("sg_sync", ""),
        ("sg_start --stop", ""),
        ("sg_start --start", ""),
    ] {
        let said = sg(disks, words, &disk, DONE)?;
        ensure!(
            said.contains(answer),
            "{words} does not say {answer:?}, but: {said}"
        );
    }
    blocks(disks, &disk)?;
    let other = disks.unit(1, 0)?;
    reservations(disks, &disk, &other)?;
    disks.no_errors()
}

/// Commands on blocks, which compare what others have left.
fn blocks(disks: &Disks, disk: &str) -> Result<()> {
    let fill = |name: &str, from: &str| {
        let (from, to) = (format!("if={from}"), format!("of=/tmp/{name}"));
        disks.guest.run(&["dd", &from, &to, "bs=512", "count=1"])
    };
    fill("random", "/dev/urandom")?;
    fill("zero", "/dev/zero")?;
    let equals = |name: &str, count: u32, end: i32| {
        let words = format!(
            "sg_verify --quiet --ebytchk=3 --ndo=512 --in=/tmp/{name} --lba=100 --count={count}"
        );
        sg(disks, &words, disk, end)
    };
    let swap = |end: i32| {
        let words = "sg_compare_and_write --quiet --in=/tmp/random --inw=/tmp/zero --lba=103";
        sg(disks, words, disk, end)
    };
    let write = "sg_write_same --16 --in=/tmp/random --xferlen=512 --lba=100 --num=8";
    sg(disks, write, disk, DONE)?;
    equals("random", 8, DONE)?;
    swap(DONE)?;
    swap(MISCOMPARE)?;
    equals("random", 3, DONE)?;
    equals("random", 4, MISCOMPARE)?;
    // What is read from unmapped blocks is left open.
    sg(disks, "sg_unmap --lba=101 --num=16 --force", disk, DONE)?;
    equals("random", 1, DONE).map(drop)
}

/// Two adapters share a unit, and reserve it from each other, whoever serves it.
fn reservations(disks: &mut Disks, first: &str, second: &str) -> Result<()> {
    const WRITE: &str = "sg_write_same --10 --ff --xferlen=512 --lba=0";
    let out = |words: &str| format!("sg_persist --no-inquiry --out {words}");
    sg(disks, &out("--register --param-sark=abc"), first, DONE)?;
    sg(disks, WRITE, second, DONE)?;
    // For those that are registered only.
    let reserve = out("--reserve --param-rk=abc --prout-type=5");
    sg(disks, &reserve, first, DONE)?;
    sg(disks, WRITE, second, RESERVATION_CONFLICT)?;
    sg(disks, "sg_verify", second, DONE)?;
    disks.restart_servers(AWAY)?;
    sg(disks, WRITE, second, RESERVATION_CONFLICT)?;
    sg(disks, WRITE, first, DONE)?;
    sg(disks, &out("--register --param-sark=def"), second, DONE)?;
    let preempt = out("--preempt --param-rk=def --param-sark=abc --prout-type=5");
    sg(disks, &preempt, second, DONE)?;
    sg(disks, WRITE, first, RESERVATION_CONFLICT)?;
    sg(disks, WRITE, second, DONE)?;
    let keys = sg(
        disks,
        "sg_persist --no-inquiry --in --read-keys",
        first,
        DONE,
    )?;
    ensure!(
        keys.contains("0xdef") && !keys.contains("0xabc"),
        "the second one's key only, not: {keys}"
    );
    sg(disks, &out("--clear --param-rk=def"), second, DONE)?;
    sg(disks, WRITE, first, DONE).map(drop)
}
