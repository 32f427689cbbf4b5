//! The usual line-up of disks: a guest that has them, and what serves them.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::guest::Guest;
use crate::job::Job;
use crate::lab::Lab;
use crate::process::Process;

/// What a server says when its disks can be used, and how soon.
const READY: &str = "ready";
const START: Duration = Duration::from_secs(10);

/// Longest time in which a file system is made, checked or filled.
const LONG: Duration = Duration::from_secs(120);

/// Bytes of each disk.
pub const DISK: u64 = 128 << 20;

/// Where a program that serves disks runs.
enum Running {
    OnHost(Process),
    InGuest(Job),
}

/// A program that serves disks, which can be started again.
pub struct Server {
    name: &'static str,
    arguments: Vec<String>,
    running: Option<Running>,
    /// What it printed in earlier lives.
    said: String,
}

impl Server {
    /// `vvu blk` at a port, with a disk in a file.
    fn blk(port: &str, file: &Path) -> Self {
        let disk = format!("file:{},size={DISK}", file.display());
        Self::new("blk", &["--port", port, "--disk", &disk])
    }

    /// `vvu scsi` at these ports, all of which have two logical units, in files. Another file keeps
    /// the first one's reservations.
    fn scsi(ports: &[String], files: [&Path; 2], state: &Path) -> Self {
        let [first, second] = files.map(|file| format!("file:{},size={DISK}", file.display()));
        let units = [
            format!("0:0={first},state={}", state.display()),
            format!("0:1={second}"),
        ];
        let mut arguments = Vec::new();
        for port in ports {
            arguments.extend(["--port", port]);
        }
        for unit in &units {
            arguments.extend(["--lun", unit]);
        }
        Self::new("scsi", &arguments)
    }

    fn new(name: &'static str, arguments: &[&str]) -> Self {
        let words = [name].into_iter().chain(arguments.iter().copied());
        Self {
            name,
            arguments: words.map(str::to_owned).collect(),
            running: None,
            said: String::new(),
        }
    }

    /// Starts it on the host, or in an appliance.
    fn start(&mut self, lab: &Lab, appliance: Option<&Guest>) -> Result<()> {
        let running = match appliance {
            None => {
                let mut process = lab.vvu_with(self.name, &self.arguments)?;
                process.wait_for_text(READY, START)?;
                Running::OnHost(process)
            }
            Some(appliance) => {
                let mut words = vec!["vvu", "-v"];
                words.extend(self.arguments.iter().map(String::as_str));
                let job = appliance.start(&words)?;
                job.wait_for_text(READY, START)?;
                Running::InGuest(job)
            }
        };
        self.running = Some(running);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.said = self.printed();
        match self.running.take().context("it does not run")? {
            Running::OnHost(mut process) => process.kill(),
            Running::InGuest(job) => job.kill(),
        }
    }

    /// Everything it has printed, in all of its lives.
    pub fn printed(&self) -> String {
        let now = match &self.running {
            None => String::new(),
            Some(Running::OnHost(process)) => process.output(),
            Some(Running::InGuest(job)) => job.printed(),
        };
        format!("{}{now}", self.said)
    }

    /// Requests that it found in flight when it was started, in all of its lives.
    pub fn taken_again(&self) -> u64 {
        let said = self.printed();
        let counts = said
            .lines()
            .filter(|line| line.contains("taken again"))
            .filter_map(|line| line.rsplit_once("requests=")?.1.parse::<u64>().ok());
        counts.sum()
    }
}

/// A guest with a virtio-blk disk, `vda`, and SCSI disks ([`Disks::unit`]).
pub struct Disks {
    /// The guest.
    pub guest: Guest,
    /// What serves its disks: `vvu blk` and `vvu scsi`.
    pub servers: Vec<Server>,
    /// Where they run, if not on the host.
    pub appliance: Option<Guest>,
    /// Where they live.
    pub lab: Lab,
}

impl Disks {
    /// Served by programs on the host. Two SCSI adapters have the same units.
    pub fn on_host(lab: Lab) -> Result<Disks> {
        let sockets = ["blk", "scsi0", "scsi1"].map(|name| lab.socket(name));
        let ports = sockets
            .each_ref()
            .map(|socket| format!("unix:{}", socket.display()));
        let file = |name| lab.file(name);
        let (vda, units) = (file("vda"), ["unit0", "unit1"].map(file));
        let units = units.each_ref().map(PathBuf::as_path);
        let mut servers = vec![
            Server::blk(&ports[0], &vda),
            Server::scsi(&ports[1..], units, &file("reservations")),
        ];
        for server in &mut servers {
            server.start(&lab, None)?;
        }
        let [blk, scsi @ ..] = &sockets;
        let store = lab.store("store").blk(blk).queues(2);
        let store = scsi.iter().fold(store, |store, socket| store.scsi(socket));
        let guest = store.boot()?;
        Disks::settle(lab, None, guest, servers)
    }

    /// Served by programs in an appliance, through a function each, with packed rings.
    pub fn through_appliance(lab: Lab) -> Result<Disks> {
        let appliance = lab.appliance().functions(2).boot()?;
        let guest = lab
            .store("store")
            .blk_via(&appliance, 0)
            .scsi_via(&appliance, 1)
            .properties("packed=on")
            .boot()?;
        let ports: Vec<String> = appliance
            .functions()
            .map(|bdf| format!("vvu:{bdf}"))
            .collect();
        for bdf in appliance.functions() {
            appliance.run(&["vvu", "bind", bdf])?;
        }
        let units = ["/unit0", "/unit1"].map(Path::new);
        let mut servers = vec![
            Server::blk(&ports[0], "/vda".as_ref()),
            Server::scsi(&ports[1..], units, "/reservations".as_ref()),
        ];
        for server in &mut servers {
            server.start(&lab, Some(&appliance))?;
        }
        Disks::settle(lab, Some(appliance), guest, servers)
    }

    fn settle(
        lab: Lab,
        appliance: Option<Guest>,
        guest: Guest,
        servers: Vec<Server>,
    ) -> Result<Disks> {
        let disks = Disks {
            guest,
            servers,
            appliance,
            lab,
        };
        disks.guest.ready().with_context(|| disks.printed())?;
        Ok(disks)
    }

    /// The name of a SCSI disk: the LUN of an adapter, both counted from 0. The kernel looks for them
    /// in the background, and calls them as it likes.
    pub fn unit(&self, adapter: u32, lun: u32) -> Result<String> {
        let place = format!("/sys/class/scsi_device/{adapter}:0:0:{lun}/device/block");
        let deadline = Instant::now() + LONG;
        loop {
            let listed = self.guest.start(&["ls", &place])?.wait(LONG)?;
            if let Some(name) = listed.stdout.split_whitespace().next() {
                return Ok(name.to_owned());
            }
            ensure!(
                Instant::now() < deadline,
                "the guest has no {place}\n{}",
                self.printed()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// From the next start on, each request takes its time: so many microseconds, or any number
    /// between two.
    pub fn delay_requests(&mut self, delay: &str) {
        let words = self
            .servers
            .iter_mut()
            .flat_map(|server| &mut server.arguments);
        for disk in words.filter(|word| word.contains("file:")) {
            *disk += &format!(",delay={delay}");
        }
    }

    /// Ends the programs that serve with SIGKILL, and after a while starts them again.
    pub fn restart_servers(&mut self, pause: Duration) -> Result<()> {
        for server in &mut self.servers {
            server.kill()?;
        }
        thread::sleep(pause);
        for server in &mut self.servers {
            server.start(&self.lab, self.appliance.as_ref())?;
        }
        Ok(())
    }

    /// Everything that the servers say.
    pub fn printed(&self) -> String {
        let each = self.servers.iter();
        let each = each.map(|server| format!("vvu {} says: {}", server.name, server.printed()));
        each.collect::<Vec<_>>().join("\n")
    }

    /// Makes a file system on a disk and mounts it at `/mnt`.
    pub fn make_and_mount(&self, disk: &str) -> Result<()> {
        let device = format!("/dev/{disk}");
        let made = self
            .guest
            .start(&["mke2fs", "-q", "-t", "ext4", "-F", &device])?;
        succeeds(made, "mke2fs")?;
        self.mount(disk)
    }

    /// Mounts a disk at `/mnt`; what is deleted there is discarded on the disk.
    pub fn mount(&self, disk: &str) -> Result<()> {
        let device = format!("/dev/{disk}");
        let argv = ["mount", "-t", "ext4", "-o", "discard", &device, "/mnt"];
        self.guest.run(&argv).map(drop)
    }

    /// Unmounts it, and checks the whole file system, which must be without a fault.
    pub fn unmount_and_check(&self, disk: &str) -> Result<()> {
        self.guest.run(&["umount", "/mnt"])?;
        let device = format!("/dev/{disk}");
        succeeds(
            self.guest.start(&["e2fsck", "-f", "-n", &device])?,
            "e2fsck",
        )
    }

    /// Starts fio, which keeps 16 requests under way and ends with an error if one fails or
    /// anything that it reads is wrong.
    pub fn start_fio(&self, file: &str, more: &[&str]) -> Result<Job> {
        let target = format!("--filename={file}");
        let usual = [
            "fio",
            "--name=job",
            &target,
            "--ioengine=libaio",
            "--iodepth=16",
            "--direct=1",
            "--thread",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--randseed=7",
            "--minimal",
        ];
        self.guest.start(&[&usual, more].concat())
    }

    /// Waits for fio's end.
    pub fn finish_fio(&self, job: &Job) -> Result<()> {
        let output = job.wait(LONG);
        let output = output.map_err(|error| anyhow!("{error:#}\n{}", self.printed()))?;
        ensure!(
            output.code == Some(0),
            "fio ended with {:?}: {} {}\n{}",
            output.code,
            output.stderr,
            output.stdout,
            self.printed()
        );
        Ok(())
    }

    /// Nothing in the guest's log speaks of an error of a disk.
    pub fn no_errors(&self) -> Result<()> {
        let log = self.guest.run(&["dmesg"])?.stdout;
        let bad = log.lines().find(|line| {
            ["I/O error", "EXT4-fs error", "timed out", "resetting"]
                .iter()
                .any(|text| line.contains(text))
        });
        ensure!(bad.is_none(), "the guest's kernel says: {bad:?}");
        Ok(())
    }
}

/// Waits for a program that must succeed, for longer than usual.
fn succeeds(job: Job, what: &str) -> Result<()> {
    let output = job.wait(LONG)?;
    ensure!(
        output.code == Some(0),
        "{what} ended with {:?}: {}{}",
        output.code,
        output.stdout,
        output.stderr
    );
    Ok(())
}
