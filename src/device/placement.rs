//! Where the regions of a front-end's memory lie in the memory window. Pure.
//!
//! There is no run-time discovery of the rule: it follows from the device (see [`Rule`]). For a
//! message that lists regions i with `mmap_offset` and `memory_size`, and a window that starts
//! at 0:
//!
//! | rule | region i begins at |
//! |---|---|
//! | [`Rule::Whole`] | sum of (offset + size) of the regions before it, plus its own offset |
//! | [`Rule::Packed`] | sum of the sizes of the regions before it |
//! | [`Rule::Told`] | its offset, which the device rewrote to say so |

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// How a device places regions in its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Every file is mapped from its beginning, one after the other: the prototypes of 2019 and
    /// 2022 ("rule Q").
    Whole,
    /// Only the listed bytes are mapped, one after the other: crosvm's device ("rule CD").
    Packed,
    /// The message says where: devices with the LAYOUT extension ("rule E").
    Told,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whole => "whole",
            Self::Packed => "packed",
            Self::Told => "told",
        })
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "whole" => Ok(Self::Whole),
            "packed" => Ok(Self::Packed),
            "told" => Ok(Self::Told),
            _ => Err(format!(
                "{text:?} is no placement rule; there are whole (prototypes), packed (crosvm) and \
                 told (devices with the layout extension)"
            )),
        }
    }
}

/// The two numbers of a region that its placement depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// `memory_size` of the message.
    pub size: u64,
    /// `mmap_offset` of the message.
    pub mmap_offset: u64,
}

/// Regions that cannot be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PlaceError {
    /// A sum does not fit into 64 bits.
    #[error("offset {mmap_offset:#x} and size {size:#x} of a memory region overflow")]
    Overflow {
        /// The region's size.
        size: u64,
        /// The region's offset.
        mmap_offset: u64,
    },
    /// A region ends behind the window.
    #[error(
        "memory up to {end:#x} does not fit the window of {window:#x} bytes; give the device a \
         larger memory window (bar-size) or the front-end less memory"
    )]
    Window {
        /// Where the region begins in the window.
        start: u64,
        /// Where it would end.
        end: u64,
        /// Length of the window.
        window: u64,
    },
}

/// Offsets into the window of the first byte of each region, in the order of the message.
pub fn place(rule: Rule, regions: &[Extent], window: u64) -> Result<Vec<u64>, PlaceError> {
    let mut used = 0u64;
    regions
        .iter()
        .map(|region| {
            let Extent { size, mmap_offset } = *region;
            let overflow = PlaceError::Overflow { size, mmap_offset };
            let (start, end) = match rule {
                Rule::Whole => (used.checked_add(mmap_offset), mmap_offset.checked_add(size)),
                Rule::Packed => (Some(used), Some(size)),
                Rule::Told => (Some(mmap_offset), Some(0)),
            };
            let start = start.ok_or(overflow)?;
            used = end.and_then(|end| used.checked_add(end)).ok_or(overflow)?;
            let end = start.checked_add(size).ok_or(overflow)?;
            if end > window {
                return Err(PlaceError::Window { start, end, window });
            }
            Ok(start)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GIB: u64 = 1 << 30;

    /// One 4 GiB memory file, split by a hole at 2 GiB and the one below 1 MiB.
    const PC: [Extent; 3] = [
        Extent {
            size: 0xa_0000,
            mmap_offset: 0,
        },
        Extent {
            size: 0x7ff4_0000,
            mmap_offset: 0xc_0000,
        },
        Extent {
            size: 0x8000_0000,
            mmap_offset: 0x8000_0000,
        },
    ];

    #[test]
    fn the_three_rules_differ_as_they_must() {
        for (rule, starts, needed) in [
            (Rule::Whole, [0, 0x16_0000, 0x1_000a_0000], 0x1_800a_0000u64),
            (Rule::Packed, [0, 0xa_0000, 0x7ffe_0000], 0xfffe_0000),
            (Rule::Told, [0, 0xc_0000, 0x8000_0000], 4 * GIB),
        ] {
            assert_eq!(place(rule, &PC, needed).unwrap(), starts, "{rule}");
            assert_eq!(
                place(rule, &PC, needed - 1),
                Err(PlaceError::Window {
                    start: starts[2],
                    end: needed,
                    window: needed - 1
                }),
                "{rule}"
            );
        }
    }

    #[test]
    fn one_region_at_offset_0_is_the_same_for_all() {
        let region = [Extent {
            size: GIB,
            mmap_offset: 0,
        }];
        for rule in [Rule::Whole, Rule::Packed, Rule::Told] {
            assert_eq!(place(rule, &region, GIB), Ok(vec![0]));
        }
    }

    #[test]
    fn sums_that_overflow_are_refused() {
        let extent = |size, mmap_offset| Extent { size, mmap_offset };
        for rule in [Rule::Whole, Rule::Packed, Rule::Told] {
            assert!(place(rule, &[extent(u64::MAX, 1), extent(1, 0)], u64::MAX).is_err());
            assert!(place(rule, &[extent(8, 0), extent(u64::MAX, u64::MAX)], u64::MAX).is_err());
        }
        // The window may be as large as there are numbers.
        assert_eq!(
            place(Rule::Told, &[extent(1, u64::MAX - 1)], u64::MAX),
            Ok(vec![u64::MAX - 1])
        );
    }

    #[test]
    fn rules_have_names() {
        for rule in [Rule::Whole, Rule::Packed, Rule::Told] {
            assert_eq!(rule.to_string().parse(), Ok(rule));
        }
        assert!("Q".parse::<Rule>().is_err());
    }
}
