//! The driver under test on a modelled device, without what is above it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use vvu::device::{Device, DeviceError, LinkEvent, Loss, Options};
use vvu::model::{self, Model, Shape};
use vvu::pci::{ConfigSpace, Structures};

use super::watched::{Change, Watch, Watched};
use crate::PATIENCE;
use crate::front_end::FrontEnd;

/// A modelled device and where its front-ends connect.
pub(crate) struct Modelled {
    pub(crate) model: Model,
    pub(crate) socket: PathBuf,
    _folder: TempDir,
}

impl Modelled {
    pub(crate) fn new(shape: &Shape) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("front-end.sock");
        let front_end = model::FrontEnd::Listen(socket.clone());
        Self {
            model: Model::new(shape.clone(), front_end).unwrap(),
            socket,
            _folder: folder,
        }
    }

    pub(crate) fn connect(&self) -> FrontEnd {
        FrontEnd::connect(&self.socket)
    }

    /// Its configuration space.
    pub(crate) fn space(&self) -> ConfigSpace {
        ConfigSpace::read(self.model.function().as_ref())
    }

    /// Where its structures are.
    pub(crate) fn found(&self) -> Structures {
        Structures::find(&self.space()).unwrap()
    }
}

/// How a device is opened here.
pub(crate) fn options() -> Options {
    Options {
        timeout: Duration::from_secs(10),
        ..Options::default()
    }
}

/// The driver and its device. The driver goes first.
pub(crate) struct Driven {
    pub(crate) device: Device,
    pub(crate) watch: Watch,
    pub(crate) modelled: Modelled,
}

impl Driven {
    /// A device of this shape, brought up.
    pub(crate) fn new(shape: &Shape) -> Self {
        Self::changed(shape, Change::default()).unwrap()
    }

    /// One that is changed on its way.
    pub(crate) fn changed(shape: &Shape, change: Change) -> Result<Self, DeviceError> {
        Self::open(shape, change, options())
    }

    /// One that is driven with other options.
    pub(crate) fn open(
        shape: &Shape,
        change: Change,
        options: Options,
    ) -> Result<Self, DeviceError> {
        let modelled = Modelled::new(shape);
        let (watch, watched) = Watched::new(modelled.model.function(), change);
        Ok(Self {
            device: Device::open(Box::new(watched), options)?,
            watch,
            modelled,
        })
    }

    /// What happens next, if anything does within `patience`.
    pub(crate) fn next_within(&mut self, patience: Duration) -> Option<LinkEvent> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(event) = self.device.next_event() {
                return Some(event);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let timeout = Timespec::try_from(left).unwrap();
            let fd = self.device.poll_fd();
            // Nothing is found that was not announced.
            if poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap() == 0 {
                return None;
            }
        }
    }

    /// What happens next.
    #[track_caller]
    pub(crate) fn next(&mut self) -> LinkEvent {
        self.next_within(PATIENCE).expect("something happens")
    }

    #[track_caller]
    pub(crate) fn is_connected(&mut self) {
        let event = self.next();
        assert!(matches!(event, LinkEvent::Connected), "{event:?}");
    }

    #[track_caller]
    pub(crate) fn is_closed(&mut self) {
        let event = self.next();
        assert!(
            matches!(event, LinkEvent::Disconnected(Loss::Closed)),
            "{event:?}"
        );
    }

    /// The next event is this message.
    #[track_caller]
    pub(crate) fn hears(&mut self, bytes: &[u8]) {
        match self.next() {
            LinkEvent::Message(message) => assert_eq!(message, bytes),
            event => panic!("{event:?}"),
        }
    }
}
