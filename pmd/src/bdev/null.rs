//! A disk that is not there: reads return whatever the memory held, writes go nowhere. To see
//! what everything else costs.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::{Abilities, Channel, Disk, DiskError, Done, Geometry, Limits, Request, Size};
use crate::wake::Quiet;

/// See the top of this file.
#[derive(Debug)]
pub struct Null {
    name: String,
    size: Arc<Size>,
    geometry: Geometry,
}

impl Null {
    /// One of `bytes` bytes.
    pub fn new(name: &str, bytes: u64, geometry: Geometry) -> Self {
        Self {
            name: name.to_owned(),
            size: Arc::new(Size::new(bytes)),
            geometry,
        }
    }
}

impl Disk for Null {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> &Size {
        &self.size
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn abilities(&self) -> Abilities {
        let limits = Some(Limits {
            max_bytes: 1 << 30,
            granularity: self.geometry.logical_block,
        });
        Abilities {
            read_only: false,
            write_back: true,
            discard: limits,
            write_zeroes: limits,
            needs_pinnable: false,
        }
    }

    fn channel(&self) -> Result<Box<dyn Channel>, DiskError> {
        Ok(Box::new(NullChannel {
            size: Arc::clone(&self.size),
            block: self.geometry.logical_block,
            done: Vec::new(),
        }))
    }
}

#[derive(Debug)]
struct NullChannel {
    size: Arc<Size>,
    block: u32,
    done: Vec<Done>,
}

impl Channel for NullChannel {
    fn submit(&mut self, requests: &mut Vec<Request>) {
        let (size, block) = (self.size.get(), self.block);
        let done = requests.drain(..).map(|request| {
            let result = request.check(size, block);
            request.done(result)
        });
        self.done.extend(done);
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        done.append(&mut self.done);
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn arm(&mut self) -> Quiet {
        match self.done.is_empty() {
            true => Quiet::Kicked,
            false => Quiet::Busy,
        }
    }
}
