//! The device model behind a vfio-user socket, with a client at the other end.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use anyhow::Result;
use tempfile::TempDir;
use vvu::model::{FrontEnd, Model, Server};
use vvu::pci::PciFunction;
use vvu::session::StopSignal;
use vvu::vfio_user::VfioUserFunction;

use super::model::{mask, shape};
use super::{Machine, Setup, Target};

/// The model, served.
#[derive(Debug)]
pub(crate) struct VfioUserTarget;

impl Target for VfioUserTarget {
    fn name(&self) -> &'static str {
        "vfio-user"
    }

    fn ready(&self) -> Result<()> {
        Ok(())
    }

    fn machine(&self, setup: &Setup) -> Result<Box<dyn Machine>> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("front-end.sock");
        let clients = folder.path().join("clients.sock");
        let model = Model::new(shape(setup), FrontEnd::Listen(socket.clone()))?;
        let server = Server::listen(&clients, model.clone())?;
        let stop = StopSignal::new()?;
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            server.run(stopped.as_fd());
        });
        Ok(Box::new(Served {
            model,
            stop,
            thread: Some(thread),
            socket,
            clients,
            _folder: folder,
        }))
    }
}

struct Served {
    model: Model,
    stop: StopSignal,
    thread: Option<JoinHandle<()>>,
    socket: PathBuf,
    clients: PathBuf,
    _folder: TempDir,
}

impl Machine for Served {
    fn function(&mut self) -> Box<dyn PciFunction> {
        Box::new(VfioUserFunction::connect(&self.clients).expect("a server"))
    }

    fn socket(&self) -> &Path {
        &self.socket
    }

    fn process(&self) -> u32 {
        std::process::id()
    }

    fn mask(&mut self, vector: u16, signal: Option<&OwnedFd>) {
        mask(&self.model, vector, signal);
    }

    fn check(&mut self) -> Result<()> {
        Ok(())
    }

    fn report(&self) -> String {
        format!("{:?}", self.model.status())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.raise();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(
                ended.is_ok() || std::thread::panicking(),
                "the server panicked"
            );
        }
    }
}
