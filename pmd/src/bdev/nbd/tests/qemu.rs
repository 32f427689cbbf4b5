//! Against a server that others wrote: qemu-nbd.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::{Config, Nbd, Server};
use super::{Folder, at};
use crate::bdev::fake::{PATIENCE, bare, content, one, read, wait, write};
use crate::bdev::{Channel, Disk, Op, Request};

/// The server, for as long as this lives.
struct Qemu {
    child: Child,
    folder: Folder,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether there is one; says so if not.
fn is_there() -> bool {
    let there = Command::new("qemu-nbd")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok();
    if !there {
        eprintln!("SKIPPED: no qemu-nbd here (Debian package qemu-utils)");
        assert!(std::env::var_os("CI").is_none(), "nothing is skipped here");
    }
    there
}

const SIZE: u64 = 8 << 20;

impl Qemu {
    /// Serves a file of [`SIZE`] bytes, with these arguments, at a socket.
    fn start(arguments: &[&str]) -> Self {
        let folder = Folder::new();
        let image = folder.0.join("image");
        std::fs::File::create(&image)
            .unwrap()
            .set_len(SIZE)
            .unwrap();
        let child = run(&folder.0, arguments);
        Self { child, folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.0.join("nbd")
    }

    fn image(&self) -> Vec<u8> {
        std::fs::read(self.folder.0.join("image")).unwrap()
    }
}

fn run(folder: &Path, arguments: &[&str]) -> Child {
    let mut command = Command::new("qemu-nbd");
    command
        .args(["--persistent", "--format=raw", "--discard=unmap"])
        .args(arguments)
        .arg(folder.join("image"));
    if !arguments
        .iter()
        .any(|argument| argument.starts_with("--port"))
    {
        command.arg("--socket").arg(folder.join("nbd"));
    }
    command.spawn().unwrap()
}

/// The disk, as soon as the server is there.
fn open(config: &Config) -> Arc<dyn Disk> {
    let start = Instant::now();
    loop {
        match Nbd::open("nbd:qemu", config.clone()) {
            Ok(disk) => return disk,
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
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
    let done = one(channel, write(0, 2 << 20, &pattern));
    assert_eq!(done.result, Ok(()));
    let zeroes = |unmap| Op::WriteZeroes { unmap };
    channel.submit(&mut vec![
        bare(0, Op::Flush, 0, 0),
        bare(1, zeroes(true), 2 << 20, 65536),
        bare(2, zeroes(false), (2 << 20) + 65536, 65536),
        Request {
            fua: true,
            ..write(3, 4 << 20, &[9; 512])
        },
        bare(4, Op::Discard, 6 << 20, 1 << 20),
    ]);
    assert!(wait(channel, 5).iter().all(|done| done.result.is_ok()));
    let all = one(channel, read(0, 0, SIZE as usize));
    assert_eq!(all.result, Ok(()));
    let mut wanted = vec![0; SIZE as usize];
    wanted[..1 << 20].copy_from_slice(&pattern);
    wanted[2 << 20..3 << 20].copy_from_slice(&pattern);
    wanted[2 << 20..][..131_072].fill(0);
    wanted[4 << 20..][..512].fill(9);
    assert!(content(&all.data) == wanted);
}

#[test]
fn everything_that_a_disk_is_asked() {
    if !is_there() {
        return;
    }
    let qemu = Qemu::start(&["--shared=4"]);
    let disk = open(&at(&qemu.socket()));
    assert_eq!(disk.size().get(), SIZE);
    let abilities = disk.abilities();
    assert!(abilities.write_back && !abilities.read_only);
    assert!(abilities.discard.is_some() && abilities.write_zeroes.is_some());
    let mut channel = disk.channel().unwrap();
    exercise(&mut *channel);
    let mut second = disk.channel().unwrap();
    assert_eq!(
        content(&one(&mut *second, read(0, 4 << 20, 512)).data),
        [9; 512]
    );
    assert_eq!(qemu.image()[4 << 20..][..512], [9; 512]);
}

#[test]
fn over_tcp_by_name_and_export() {
    if !is_there() {
        return;
    }
    // None that the kernel gives to others.
    let port = 20_000 + (std::process::id() % 10_000) as u16;
    let (bind, number) = ("--bind=127.0.0.1", format!("--port={port}"));
    let _qemu = Qemu::start(&["--shared=4", "--export-name=disk", bind, &number]);
    let server = Server::Tcp {
        host: "localhost".into(),
        port,
    };
    let disk = open(&Config::new(server.clone(), "disk"));
    exercise(&mut *disk.channel().unwrap());
    let error = Nbd::open("nbd:x", Config::new(server, "disc")).unwrap_err();
    assert!(error.to_string().contains("export=NAME"), "{error}");
}

#[test]
fn a_read_only_export() {
    if !is_there() {
        return;
    }
    let qemu = Qemu::start(&["--read-only"]);
    let disk = open(&at(&qemu.socket()));
    assert!(disk.abilities().read_only && disk.abilities().discard.is_none());
    let mut channel = disk.channel().unwrap();
    assert!(one(&mut *channel, write(0, 0, &[1; 512])).result.is_err());
    assert!(one(&mut *channel, read(0, 0, 512)).result.is_ok());
}

#[test]
fn a_server_that_is_killed_and_started_again_is_not_missed() {
    if !is_there() {
        return;
    }
    let mut qemu = Qemu::start(&["--shared=4"]);
    let disk = open(&at(&qemu.socket()));
    let mut channel = disk.channel().unwrap();
    let mut rounds = 0u64;
    for life in 0..3u8 {
        let mut waiting = Vec::new();
        for n in 0..64 {
            rounds += 1;
            waiting.push(write(rounds, n * 4096, &[life + 1; 4096]));
        }
        channel.submit(&mut waiting);
        qemu.child.kill().unwrap();
        qemu.child.wait().unwrap();
        qemu.child = run(&qemu.folder.0, &["--shared=4"]);
        let done = wait(&mut *channel, 64);
        assert!(done.iter().all(|done| done.result.is_ok()));
        channel.submit(&mut (0..64).map(|n| read(n, n * 4096, 4096)).collect());
        for done in wait(&mut *channel, 64) {
            assert!(content(&done.data) == [life + 1; 4096]);
        }
    }
}

#[cfg(feature = "tls")]
mod tls {
    use super::super::super::TlsConfig;
    use super::*;

    fn openssl(folder: &Path, arguments: &[&str]) {
        let output = Command::new("openssl")
            .current_dir(folder)
            .args(arguments)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Certificates of an authority, a server called localhost, and a client.
    fn certificates(folder: &Path) {
        std::fs::write(folder.join("names"), "subjectAltName=DNS:localhost\n").unwrap();
        let key = [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ];
        let ca = ["req", "-x509", "-subj", "/CN=test", "-days", "2"];
        let files = ["-keyout", "ca-key.pem", "-out", "ca-cert.pem"];
        openssl(folder, &[&ca[..], &key[..], &files[..]].concat());
        for who in ["server", "client"] {
            let (private, request) = (format!("{who}-key.pem"), format!("{who}.csr"));
            let subject = format!("/CN={who}");
            let ask = [
                "req", "-subj", &subject, "-keyout", &private, "-out", &request,
            ];
            openssl(folder, &[&ask[..], &key[..]].concat());
            let certificate = format!("{who}-cert.pem");
            openssl(
                folder,
                &[
                    "x509",
                    "-req",
                    "-in",
                    &request,
                    "-out",
                    &certificate,
                    "-CA",
                    "ca-cert.pem",
                    "-CAkey",
                    "ca-key.pem",
                    "-CAcreateserial",
                    "-days",
                    "2",
                    "-extfile",
                    "names",
                ],
            );
        }
    }

    #[test]
    fn encrypted_by_certificates_of_both() {
        if !is_there() {
            return;
        }
        if Command::new("openssl").arg("version").output().is_err() {
            eprintln!("SKIPPED: no openssl here");
            assert!(std::env::var_os("CI").is_none(), "nothing is skipped here");
            return;
        }
        let folder = Folder::new();
        certificates(&folder.0);
        let object = format!(
            "--object=tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir={}",
            folder.0.display()
        );
        let qemu = Qemu::start(&["--shared=4", &object, "--tls-creds=tls"]);
        let with = |name| Config {
            tls: Some(Arc::new(
                TlsConfig::from_directory(&folder.0, name).unwrap(),
            )),
            ..at(&qemu.socket())
        };
        let disk = open(&with("localhost"));
        exercise(&mut *disk.channel().unwrap());
        let said = |config| Nbd::open("nbd:x", config).unwrap_err().to_string();
        let other = said(with("other.example.org"));
        assert!(other.contains("TLS: "), "{other}");
        let plain = said(at(&qemu.socket()));
        assert!(plain.contains("give the option tls"), "{plain}");
        // Somebody whom the server does not know.
        std::fs::remove_file(folder.0.join("client-cert.pem")).unwrap();
        said(with("localhost"));
    }
}
