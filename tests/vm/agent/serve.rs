//! Answers the host's requests, each in a thread of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vvu_tests::wire::{self, CHUNK, Event, Request};

/// The host's side of the line, shared by everything that answers.
#[derive(Clone)]
struct Host(Arc<Mutex<File>>);

impl Host {
    fn tell(&self, id: u32, event: &Event) -> io::Result<()> {
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wire::send(&mut *line, id, event)
    }

    /// Passes everything on that can be read, as events of one kind.
    fn pump(&self, id: u32, mut source: impl Read, kind: fn(Vec<u8>) -> Event) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        loop {
            match source.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(length) => self.tell(id, &kind(chunk[..length].to_vec()))?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Serves until the line fails.
pub(crate) fn serve(line: File) -> Result<()> {
    let mut requests = BufReader::new(line.try_clone()?);
    let mut writer = line.try_clone()?;
    wire::begin(&mut writer)?;
    let host = Host(Arc::new(Mutex::new(line)));
    host.tell(0, &Event::Hello)?;
    loop {
        let (id, request) = wire::receive(&mut requests)?;
        let host = host.clone();
        thread::spawn(move || {
            let last = answer(&host, id, request)
                .unwrap_or_else(|error| Event::Failed(format!("{error:#}")));
            // A line that fails ends the reading side too; nobody is left to tell.
            let _ = host.tell(id, &last);
        });
    }
}

fn answer(host: &Host, id: u32, request: Request) -> Result<Event> {
    match request {
        Request::Spawn { argv } => spawn(host, id, &argv),
        Request::Run(task) => {
            let task = serde_json::to_string(&task)?;
            spawn(host, id, &["/init".into(), "task".into(), task])
        }
        Request::Signal { pid, signal } => {
            kill(
                Pid::from_raw(i32::try_from(pid)?),
                Signal::try_from(signal)?,
            )
            .with_context(|| format!("signal to {pid}"))?;
            Ok(Event::Done)
        }
        Request::Write {
            path,
            data,
            append,
            mode,
        } => {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .append(append)
                .truncate(!append)
                .mode(mode)
                .open(&path)
                .with_context(|| format!("opening {path}"))?;
            file.write_all(&data)
                .with_context(|| format!("writing {path}"))?;
            Ok(Event::Done)
        }
        Request::Read { path } => {
            let file = File::open(&path).with_context(|| format!("opening {path}"))?;
            host.pump(id, file, Event::Stdout)
                .with_context(|| format!("reading {path}"))?;
            Ok(Event::Done)
        }
    }
}

fn spawn(host: &Host, id: u32, argv: &[String]) -> Result<Event> {
    let (program, arguments) = argv.split_first().context("nothing to run")?;
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", "/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("running {program}"))?;
    host.tell(id, &Event::Started { pid: child.id() })?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        let pumps = [
            stdout.map(|pipe| scope.spawn(move || host.pump(id, pipe, Event::Stdout))),
            stderr.map(|pipe| scope.spawn(move || host.pump(id, pipe, Event::Stderr))),
        ];
        // A pump that fails has lost the line, and with it everybody who could care.
        pumps
            .into_iter()
            .flatten()
            .for_each(|pump| drop(pump.join()));
    });
    let status = child.wait()?;
    Ok(Event::Exited {
        code: status.code(),
        signal: status.signal(),
    })
}
