//! The device model, in this process.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::Result;
use tempfile::TempDir;
use vvu::model::{FrontEnd, Model, Shape};
use vvu::pci::PciFunction;

use super::{Machine, Setup, Target};

/// The model itself.
#[derive(Debug)]
pub(crate) struct ModelTarget;

impl Target for ModelTarget {
    fn name(&self) -> &'static str {
        "model"
    }

    fn ready(&self) -> Result<()> {
        Ok(())
    }

    fn machine(&self, setup: &Setup) -> Result<Box<dyn Machine>> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("front-end.sock");
        let model = Model::new(shape(setup), FrontEnd::Listen(socket.clone()))?;
        Ok(Box::new(ModelMachine {
            model,
            socket,
            _folder: folder,
        }))
    }
}

/// This project's device.
pub(super) fn shape(setup: &Setup) -> Shape {
    Shape {
        id: setup.id,
        rings: setup.rings.into(),
        vectors: 3 + setup.rings,
        window: setup.window,
        uuid: setup.uuid.unwrap_or_default(),
        layout: setup.layout,
        ..Shape::ours()
    }
}

/// Who delivers the interrupts has the table: a vector that is masked there has nobody to tell in
/// the model.
pub(super) fn mask(model: &Model, vector: u16, signal: Option<&OwnedFd>) {
    let signal = signal.map(|signal| signal.try_clone().expect("a descriptor"));
    model.set_vector(vector, signal);
}

struct ModelMachine {
    model: Model,
    socket: PathBuf,
    _folder: TempDir,
}

impl Machine for ModelMachine {
    fn function(&mut self) -> Box<dyn PciFunction> {
        self.model.function()
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
