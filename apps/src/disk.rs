//! `--disk`: one small language for everything that can be a disk.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use vvu_pmd::bdev::file::{File, FileConfig};
use vvu_pmd::bdev::{Disk, DiskError, Geometry, Mem, Null};

use crate::port::Options;

/// What is behind a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// Nothing: reads return anything, writes go nowhere.
    Null { size: u64 },
    /// Memory of this process.
    Mem { size: u64 },
    /// A file or a block device.
    File(FileConfig),
}

/// One `--disk`, parsed, with its own text as its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskSpec {
    pub(crate) name: String,
    kind: Kind,
    /// Bytes of a logical block; the disk's own if there is none.
    block: Option<u32>,
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
        let block = options.take("block", block)?;
        let kind = match scheme {
            "file" => Kind::File(file(target, block, &mut options)?),
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
        let mut geometry = Geometry::default();
        if let Some(block) = self.block {
            geometry.logical_block = block;
        }
        Ok(match &self.kind {
            Kind::Null { size } => Arc::new(Null::new(&self.name, *size, geometry)),
            Kind::Mem { size } => Arc::new(Mem::new(&self.name, *size, geometry)?),
            Kind::File(config) => Arc::new(File::open(config.clone())?),
        })
    }
}

/// A file, and how it is used.
fn file(target: &str, block: Option<u32>, options: &mut Options<'_>) -> Result<FileConfig, String> {
    if target.is_empty() {
        return Err("file: needs a path, as in file:/srv/disk.img".into());
    }
    let cache = |value: &str| match value {
        "back" => Ok(true),
        "through" => Ok(false),
        _ => Err(format!("{value:?} is neither back nor through")),
    };
    let new = FileConfig::new(Path::new(target));
    Ok(FileConfig {
        direct: options.switch("direct")?.unwrap_or(new.direct),
        sqpoll: options.switch("sqpoll")?.unwrap_or(new.sqpoll),
        read_only: options.switch("readonly")?.unwrap_or(new.read_only),
        write_back: options.take("cache", cache)?.unwrap_or(new.write_back),
        discard: options.switch("discard")?.unwrap_or(new.discard),
        create: options.take("size", bytes)?,
        block,
        ..new
    })
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_kind_of_disk() {
        let parse = |text: &str| text.parse::<DiskSpec>().unwrap();
        let disk = parse("mem:64M,block=4096");
        assert_eq!((&*disk.name, disk.block), ("mem:64M", Some(4096)));
        assert_eq!(disk.kind, Kind::Mem { size: 64 << 20 });
        assert_eq!(parse("null:1T").kind, Kind::Null { size: 1 << 40 });
        let file = FileConfig {
            direct: true,
            sqpoll: true,
            write_back: false,
            discard: false,
            create: Some(10 << 30),
            ..FileConfig::new(Path::new("/srv/a=b.img"))
        };
        let text = "file:/srv/a=b.img,direct=on,sqpoll,cache=through,discard=off,size=10G";
        assert_eq!(parse(text).kind, Kind::File(file));
        assert_eq!(parse(text).name, "file:/srv/a=b.img");
    }

    #[test]
    fn nonsense_is_explained() {
        for (text, reason) in [
            ("disk.img", "write file:PATH"),
            ("nfs:/a", "not a kind of disk"),
            ("file:", "needs a path"),
            ("file:/a,direct=yes", "on or off"),
            ("file:/a,cache=none", "neither back nor through"),
            ("file:/a,mtu=3", "a file: disk has no option \"mtu\""),
            ("mem:", "not a size"),
            ("mem:0", "not a multiple"),
            ("mem:1000", "not a multiple"),
            ("mem:99999999T", "not a size"),
            ("mem:1G,direct", "has no option"),
            ("null:1G,block=513", "none of 512"),
        ] {
            let error = text.parse::<DiskSpec>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
