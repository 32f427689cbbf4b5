//! A disk that is not there: reads return whatever the memory held, writes go nowhere. To see
//! what everything else costs.

use std::sync::Arc;

use super::at_once::{AtOnce, Run};
use super::{Abilities, Channel, Disk, DiskError, Geometry, IoError, Limits, Request, Size};

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
        Abilities::all(Limits {
            max_bytes: 1 << 30,
            granularity: self.geometry.logical_block,
        })
    }

    fn channel(&self) -> Result<Box<dyn Channel>, DiskError> {
        Ok(Box::new(AtOnce::new(Nothing {
            size: Arc::clone(&self.size),
            block: self.geometry.logical_block,
        })))
    }
}

/// What a channel must know to refuse what no disk of this kind can do.
#[derive(Debug)]
struct Nothing {
    size: Arc<Size>,
    block: u32,
}

impl Run for Nothing {
    fn run(&self, request: &Request) -> Result<(), IoError> {
        request.check(self.size.get(), self.block)
    }
}
