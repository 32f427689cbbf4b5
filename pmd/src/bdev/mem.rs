//! A disk in memory, in hugepages if there are enough. Gone when the program ends.
//!
//! Requests are done while they are submitted: a copy takes less time than anything that would
//! make it asynchronous. Channels of several workers may copy at the same time; what two requests
//! to one block do then is as undefined as on any disk.

use std::sync::Arc;

use vvu::memory::{Area, Mapping, MemoryError, copy};

use super::at_once::{AtOnce, Run};
use super::{Abilities, Channel, Disk, DiskError, Geometry, IoError, Limits, Op, Request, Size};

/// Zeroes to copy from.
static ZEROES: [u8; 4096] = [0; 4096];

/// See the top of this file.
#[derive(Debug)]
pub struct Mem {
    name: String,
    store: Arc<Store>,
    geometry: Geometry,
    huge: bool,
}

#[derive(Debug)]
struct Store {
    bytes: Area,
    size: Size,
    block: u32,
}

impl Mem {
    /// One of `bytes` bytes, all zero.
    pub fn new(name: &str, bytes: u64, geometry: Geometry) -> Result<Self, DiskError> {
        let open = |source: MemoryError| DiskError::Open {
            disk: name.to_owned(),
            what: "cannot have the memory",
            source: std::io::Error::other(source),
        };
        let len = usize::try_from(bytes).map_err(|_| DiskError::Unfit {
            disk: name.to_owned(),
            reason: format!("{bytes} bytes are more than there are addresses"),
        })?;
        let (mapping, huge) = match Mapping::huge(len) {
            Ok(mapping) => (mapping, true),
            Err(_) => (Mapping::anonymous(len).map_err(open)?, false),
        };
        Ok(Self {
            name: name.to_owned(),
            store: Arc::new(Store {
                bytes: mapping.into(),
                size: Size::new(bytes),
                block: geometry.logical_block,
            }),
            geometry,
            huge,
        })
    }

    /// Whether the memory is of hugepages.
    pub fn is_huge(&self) -> bool {
        self.huge
    }
}

impl Disk for Mem {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> &Size {
        &self.store.size
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn abilities(&self) -> Abilities {
        Abilities::all(Limits {
            // What a worker zeroes between two looks at everything else.
            max_bytes: 4 << 20,
            granularity: self.geometry.logical_block,
        })
    }

    fn channel(&self) -> Result<Box<dyn Channel>, DiskError> {
        Ok(Box::new(AtOnce::new(Arc::clone(&self.store))))
    }
}

impl Run for Arc<Store> {
    fn run(&self, request: &Request) -> Result<(), IoError> {
        request.check(self.size.get(), self.block)?;
        let slice = self.bytes.slice();
        let range = |offset: u64, len: u64| {
            let (offset, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
            slice.subslice(offset, len).ok()
        };
        let place = range(request.offset, request.len).ok_or(IoError::Range)?;
        let pieces = request.data.iter().flat_map(|data| data.pieces());
        let mut at = 0;
        match request.op {
            Op::Read => {
                for piece in pieces {
                    let Ok(part) = place.subslice(at, piece.len()) else {
                        return Err(IoError::Range);
                    };
                    at += copy::across(part, piece);
                }
            }
            Op::Write => {
                for piece in pieces {
                    at += copy::across_at(piece, place, at);
                }
            }
            Op::WriteZeroes { .. } => {
                while at < place.len() {
                    at += copy::write_at(&ZEROES, place, at);
                }
            }
            // Where the content is not needed any more it may stay.
            Op::Flush | Op::Discard => {}
        }
        Ok(())
    }
}
