//! Functions that a process on the host serves over vfio-user, for VMMs that nobody patched.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

use crate::binaries;
use crate::lab::{Lab, NEIGHBOUR_MEMORY};
use crate::process::Process;

/// Files here are not written to a disk.
const SHARED: &str = "/dev/shm";

/// What `vvu device` says when its sockets are there, and how soon.
const READY: &str = "ready";
const START: Duration = Duration::from_secs(10);

/// How its last words begin.
const SUMMARY: &str = "vfio-user: ";

/// `vvu device` on the host, and the memory of the neighbour that it is for.
pub struct ServedFunction {
    /// The process.
    pub process: Process,
    vfio_user: PathBuf,
    socket: PathBuf,
    memory: PathBuf,
    /// Holds the file, if that is not with everything else.
    _shared: Option<TempDir>,
}

impl ServedFunction {
    /// Starts it for the neighbour of this name.
    pub fn start(lab: &Lab, name: &str) -> Result<ServedFunction> {
        let room = lab.room();
        let (vfio_user, socket) = (
            room.path(&format!("{name}.vfio")),
            room.path(&format!("{name}.vhost")),
        );
        let shared = has_room().then(|| tempfile::Builder::new().prefix("vvu-").tempdir_in(SHARED));
        let shared = shared.transpose()?;
        let file = format!("{name}.memory");
        let memory = match &shared {
            Some(directory) => directory.path().join(file),
            None => room.path(&file),
        };
        File::create(&memory)
            .and_then(|file| file.set_len(NEIGHBOUR_MEMORY))
            .with_context(|| format!("creating {}", memory.display()))?;
        let mut arguments = vec!["-v".to_owned(), "device".to_owned()];
        for (option, path) in [
            ("--vfio-user", &vfio_user),
            ("--vhost-user", &socket),
            ("--peer-memory", &memory),
        ] {
            arguments.extend([option.to_owned(), path.display().to_string()]);
        }
        let log = room.log_path(&format!("device-{name}"));
        let mut process = Process::start("vvu device", &binaries::vvu()?, &arguments, &log)?;
        process.wait_for_text(READY, START)?;
        Ok(ServedFunction {
            process,
            vfio_user,
            socket,
            memory,
            _shared: shared,
        })
    }

    /// Stops the process, and returns what it says of what it has done.
    pub fn summary(&mut self) -> Result<String> {
        self.process.stop(START)?;
        let output = self.process.output();
        let summary = output.lines().find(|line| line.starts_with(SUMMARY));
        let summary = summary.with_context(|| format!("no summary: {output}"))?;
        Ok(summary.to_owned())
    }

    /// The socket for who gets the function.
    pub fn vfio_user(&self) -> &Path {
        &self.vfio_user
    }

    /// The socket for the neighbour.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn memory(&self) -> &Path {
        &self.memory
    }
}

/// Whether the memory of a few neighbours fits.
fn has_room() -> bool {
    statvfs(SHARED).is_ok_and(|shared| {
        shared.blocks_available() * shared.fragment_size() > 4 * NEIGHBOUR_MEMORY
    })
}
