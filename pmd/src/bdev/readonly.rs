//! A disk that is not written, whatever is behind it.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::{Abilities, Channel, Disk, DiskError, Done, Geometry, IoError, Op, Request, Size};
use crate::wake::Quiet;

/// See the top of this file.
#[derive(Debug)]
pub struct ReadOnly(Arc<dyn Disk>);

impl ReadOnly {
    /// `disk`, only to be read.
    pub fn before(disk: Arc<dyn Disk>) -> Arc<dyn Disk> {
        Arc::new(Self(disk))
    }
}

impl Disk for ReadOnly {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn size(&self) -> &Size {
        self.0.size()
    }

    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            read_only: true,
            discard: None,
            write_zeroes: None,
            ..self.0.abilities()
        }
    }

    fn channel(&self) -> Result<Box<dyn Channel>, DiskError> {
        Ok(Box::new(ReadOnlyChannel {
            inner: self.0.channel()?,
            refused: Vec::new(),
        }))
    }

    fn refresh(&self) -> Result<(), DiskError> {
        self.0.refresh()
    }
}

#[derive(Debug)]
struct ReadOnlyChannel {
    inner: Box<dyn Channel>,
    refused: Vec<Done>,
}

impl Channel for ReadOnlyChannel {
    fn submit(&mut self, requests: &mut Vec<Request>) {
        let harmless = |request: &mut Request| matches!(request.op, Op::Read | Op::Flush);
        let refused = requests.extract_if(.., |request| !harmless(request));
        self.refused
            .extend(refused.map(|request| request.done(Err(IoError::ReadOnly))));
        self.inner.submit(requests);
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        done.append(&mut self.refused);
        self.inner.reap(done);
    }

    fn in_flight(&self) -> usize {
        self.refused.len() + self.inner.in_flight()
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.inner.fds()
    }

    fn arm(&mut self) -> Quiet {
        let inner = self.inner.arm();
        match self.refused.is_empty() {
            true => inner,
            false => Quiet::Busy,
        }
    }

    fn hurry(&mut self) {
        self.inner.hurry();
    }
}
