//! `--disk`: one small language for everything that can be a disk.

use std::str::FromStr;
use std::sync::Arc;

use vvu_pmd::bdev::{Disk, DiskError, Geometry, Mem, Null};

use crate::port::Options;

/// What is behind a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// Nothing: reads return anything, writes go nowhere.
    Null { size: u64 },
    /// Memory of this process.
    Mem { size: u64 },
}

/// One `--disk`, parsed, with its own text as its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskSpec {
    pub(crate) name: String,
    kind: Kind,
    /// Bytes of a logical block.
    block: u32,
}

impl FromStr for DiskSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once(':').ok_or_else(|| {
            format!("{text:?} has no kind; write file:PATH, mem:SIZE or null:SIZE")
        })?;
        let mut parts = rest.split(',');
        let target = parts.next().unwrap_or_default();
        let mut options = Options::new(parts)?;
        let kind = match scheme {
            "null" => Kind::Null {
                size: bytes(target)?,
            },
            "mem" => Kind::Mem {
                size: bytes(target)?,
            },
            _ => {
                return Err(format!(
                    "{scheme:?} is not a kind of disk; there are file, mem and null"
                ));
            }
        };
        let block = options.take("block", block)?.unwrap_or(512);
        options.finish(&format!("{scheme}: disk"))?;
        Ok(Self {
            name: format!("{scheme}:{target}"),
            kind,
            block,
        })
    }
}

impl DiskSpec {
    /// Opens it.
    pub(crate) fn open(&self) -> Result<Arc<dyn Disk>, DiskError> {
        let geometry = Geometry {
            logical_block: self.block,
            physical_block: self.block.max(4096),
            ..Geometry::default()
        };
        Ok(match self.kind {
            Kind::Null { size } => Arc::new(Null::new(&self.name, size, geometry)),
            Kind::Mem { size } => Arc::new(Mem::new(&self.name, size, geometry)?),
        })
    }
}

/// Size of a block.
fn block(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(block @ (512 | 1024 | 2048 | 4096)) => Ok(block),
        _ => Err(format!("{text:?} is none of 512, 1024, 2048 and 4096")),
    }
}

/// A number of bytes, as people write it: 64M, 10G.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size such as 64M or 10G");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let shift = match text.get(digits.len()..).unwrap_or_default() {
        "" => 0,
        "k" | "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(bad()),
    };
    let bytes = number.checked_mul(1 << shift).ok_or_else(bad)?;
    if bytes == 0 || !bytes.is_multiple_of(4096) {
        return Err(format!("{text:?} is not a multiple of 4096 bytes"));
    }
    Ok(bytes)
}
