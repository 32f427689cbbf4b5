//! Against a cluster of one: a monitor and a store in memory, of Debian's packages.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::bdev::fake::{PATIENCE, bare, content, one, read, wait, write};

/// A cluster, for as long as this lives.
struct Cluster {
    folder: PathBuf,
    daemons: Vec<Child>,
}

const SIZE: u64 = 16 << 20;

impl Cluster {
    /// One with a pool and an image, both called "rbd"; `None`, said aloud, if there is no Ceph.
    fn start() -> Option<Self> {
        let there = |program: &str| {
            let found = Command::new(program)
                .arg("--version")
                .stdout(Stdio::null())
                .status();
            found.is_ok()
        };
        if !["ceph-mon", "ceph-osd", "ceph", "rbd"]
            .into_iter()
            .all(there)
        {
            eprintln!("SKIPPED: no Ceph here (Debian packages ceph-mon, ceph-osd, ceph-common)");
            assert!(std::env::var_os("CI").is_none(), "nothing is skipped here");
            return None;
        }
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let folder = std::env::temp_dir().join(format!("vvu-rbd-{process}-{number}"));
        for part in ["mon", "osd"] {
            std::fs::create_dir_all(folder.join(part)).unwrap();
        }
        let mut cluster = Self {
            folder,
            daemons: Vec::new(),
        };
        let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
        // None that the kernel gives to others.
        let port = 10_000 + (process * 2 + number) % 10_000;
        let monitor = format!("v2:127.0.0.1:{port}");
        cluster.configure(id.trim(), &monitor);
        let map = cluster.path("monmap");
        let address = format!("[{monitor}]");
        cluster.run(
            "monmaptool",
            &[
                "--create",
                "--fsid",
                id.trim(),
                "--addv",
                "a",
                &address,
                &map,
            ],
        );
        cluster.run("ceph-mon", &["--mkfs", "-i", "a", "--monmap", &map]);
        cluster.spawn("ceph-mon", &["-i", "a", "-f"]);
        cluster.run("ceph", &["--connect-timeout=60", "osd", "create"]);
        cluster.run("ceph-osd", &["-i", "0", "--mkfs"]);
        cluster.spawn("ceph-osd", &["-i", "0", "-f"]);
        cluster.run(
            "ceph",
            &["osd", "crush", "add", "osd.0", "1.0", "root=default"],
        );
        cluster.run("ceph", &["osd", "pool", "create", "rbd", "8", "8"]);
        cluster.run(
            "rbd",
            &[
                "create",
                "--size=16",
                "--image-feature=layering,exclusive-lock",
                "rbd/rbd",
            ],
        );
        Some(cluster)
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    fn configure(&self, id: &str, monitor: &str) {
        let folder = self.folder.display();
        let text = format!(
            "[global]\n\
             fsid = {id}\n\
             mon host = {monitor}\n\
             auth cluster required = none\n\
             auth service required = none\n\
             auth client required = none\n\
             osd pool default size = 1\n\
             osd pool default min size = 1\n\
             mon allow pool size one = true\n\
             mon data avail crit = 0\n\
             ms bind ipv6 = false\n\
             osd crush chooseleaf type = 0\n\
             osd objectstore = memstore\n\
             osd class load list = *\n\
             osd class default list = *\n\
             osd data = {folder}/osd\n\
             mon data = {folder}/mon\n\
             mon cluster log file = {folder}/cluster.log\n\
             run dir = {folder}\n\
             log file = {folder}/$name.log\n\
             admin socket = {folder}/$name.$pid.asok\n\
             pid file = {folder}/$name.pid\n"
        );
        std::fs::write(self.folder.join("ceph.conf"), text).unwrap();
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .env("CEPH_CONF", self.folder.join("ceph.conf"))
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let output = self.command(program, arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn spawn(&mut self, program: &str, arguments: &[&str]) {
        let quiet = || Stdio::null();
        let mut command = self.command(program, arguments);
        let child = command.stdout(quiet()).stderr(quiet()).spawn().unwrap();
        self.daemons.push(child);
    }

    fn config(&self) -> RbdConfig {
        RbdConfig {
            config: Some(self.folder.join("ceph.conf")),
            ..RbdConfig::new("rbd", "rbd")
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for daemon in self.daemons.iter_mut().rev() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Everything that a disk is asked, with what must come of it.
fn exercise(channel: &mut dyn Channel) {
    let pattern: Vec<u8> = (0..1 << 20)
        .map(|n: u32| (n / 512 * 31 + n) as u8)
        .collect();
    let part = |n: u64| &pattern[n as usize * 4096..][..4096];
    channel.submit(&mut (0..256).map(|n| write(n, n * 4096, part(n))).collect());
    assert!(wait(channel, 256).iter().all(|done| done.result.is_ok()));
    channel.submit(&mut (0..256).map(|n| read(n, n * 4096, 4096)).collect());
    for done in wait(channel, 256) {
        assert_eq!(done.result, Ok(()));
        assert!(content(&done.data) == part(done.token));
    }
    // Over the border of two objects.
    let border = (4 << 20) - 4096;
    assert_eq!(one(channel, write(0, border, &pattern)).result, Ok(()));
    let zeroes = |unmap| Op::WriteZeroes { unmap };
    channel.submit(&mut vec![
        bare(0, Op::Flush, 0, 0),
        bare(1, zeroes(true), border, 65536),
        bare(2, zeroes(false), border + 65536, 65536),
        Request {
            fua: true,
            ..write(3, 8 << 20, &[9; 512])
        },
        bare(4, Op::Discard, 12 << 20, 4 << 20),
    ]);
    let done = wait(channel, 5);
    assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
    let all = one(channel, read(0, 0, SIZE as usize));
    assert_eq!(all.result, Ok(()));
    let mut wanted = vec![0; SIZE as usize];
    wanted[..1 << 20].copy_from_slice(&pattern);
    wanted[border as usize..][..1 << 20].copy_from_slice(&pattern);
    wanted[border as usize..][..131_072].fill(0);
    wanted[8 << 20..][..512].fill(9);
    assert!(content(&all.data) == wanted);
}

#[test]
fn an_image_in_a_cluster() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let disk = Rbd::open("rbd:rbd/rbd", cluster.config()).unwrap();
    assert_eq!(disk.size().get(), SIZE);
    assert_eq!(disk.geometry().optimal_io, 4 << 20);
    let mut channels = [disk.channel().unwrap(), disk.channel().unwrap()];
    exercise(&mut *channels[0]);
    let done = one(&mut *channels[1], read(0, 8 << 20, 512));
    assert_eq!(content(&done.data), [9; 512]);

    // What makes no sense is refused here.
    for (request, error) in [
        (read(0, SIZE, 512), IoError::Range),
        (read(0, 1, 512), IoError::Range),
        (bare(0, Op::Discard, 512, u64::MAX - 1), IoError::Range),
    ] {
        assert_eq!(one(&mut *channels[0], request).result, Err(error));
    }

    // A snapshot stays as it was, and is not written.
    cluster.run("rbd", &["snap", "create", "rbd/rbd@then"]);
    assert_eq!(
        one(&mut *channels[0], write(0, 0, &[1; 512])).result,
        Ok(())
    );
    assert_eq!(
        one(&mut *channels[0], bare(0, Op::Flush, 0, 0)).result,
        Ok(())
    );
    let then = RbdConfig {
        snapshot: Some("then".into()),
        ..cluster.config()
    };
    let then = Rbd::open("rbd:rbd/rbd@then", then).unwrap();
    assert!(then.abilities().read_only);
    let mut channel = then.channel().unwrap();
    assert_ne!(content(&one(&mut *channel, read(0, 0, 512)).data), [1; 512]);
    let refused = one(&mut *channel, write(0, 0, &[1; 512])).result;
    assert_eq!(refused, Err(IoError::ReadOnly));
    drop((channel, then));

    // It grows while it is used.
    cluster.run("rbd", &["resize", "--size=20", "rbd/rbd"]);
    let start = Instant::now();
    while disk.size().get() != 20 << 20 {
        disk.refresh().unwrap();
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(
        one(&mut *channels[0], write(0, SIZE, &[5; 512])).result,
        Ok(())
    );

    // A channel that goes leaves what is in flight to the library.
    channels[1].submit(&mut (0..64).map(|n| write(n, n * 4096, &[3; 4096])).collect());
    let [first, second] = channels;
    drop(second);
    drop(first);
    drop(disk);

    let missing = RbdConfig {
        image: "missing".into(),
        ..cluster.config()
    };
    let error = Rbd::open("rbd:rbd/missing", missing)
        .unwrap_err()
        .to_string();
    assert!(error.contains("cannot open the image"), "{error}");
}

#[test]
fn a_cluster_that_goes_away_costs_errors_and_nobodys_time() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    let config = RbdConfig {
        timeout: Duration::from_secs(2),
        ..cluster.config()
    };
    let disk = Rbd::open("rbd:rbd/rbd", config).unwrap();
    let mut channel = disk.channel().unwrap();
    assert_eq!(one(&mut *channel, write(0, 0, &[1; 512])).result, Ok(()));
    assert_eq!(one(&mut *channel, bare(0, Op::Flush, 0, 0)).result, Ok(()));
    let mut store = cluster.daemons.pop().unwrap();
    store.kill().unwrap();
    store.wait().unwrap();
    let start = Instant::now();
    channel.submit(&mut vec![read(0, 0, 512)]);
    assert!(start.elapsed() < Duration::from_secs(1), "it waited");
    let done = wait(&mut *channel, 1);
    assert_eq!(done[0].result, Err(IoError::Timeout));
    // Closing an image that nobody answers for would take its time, too.
    std::mem::forget((channel, disk));
}
