//! The buffer that outlives us: which requests were taken and not given back.
//!
//! A front-end keeps it for its back-end (vhost-user, "Inflight I/O tracking"): one region for each
//! queue, one behind the other, each padded to [`ALIGN`] bytes. What is in a region is the data
//! plane's business; here is how long it is, which front-end, session and data plane agree on.
//!
//! | format | header | for each descriptor |
//! |---|---|---|
//! | split | 16 bytes | 16 bytes |
//! | packed | 32 bytes | 32 bytes |

/// Regions begin at multiples of this many bytes: those of two queues share no cache line.
pub const ALIGN: usize = 64;

/// Length of a split ring's header, and of each of its entries, in bytes.
pub const SPLIT: usize = 16;

/// Length of a packed ring's header, and of each of its entries, in bytes.
pub const PACKED: usize = 32;

/// Length of the region of a queue with `size` descriptors, in bytes, without what follows it.
pub fn needed(size: u16, packed: bool) -> usize {
    let unit = if packed { PACKED } else { SPLIT };
    unit + unit * usize::from(size)
}

/// Distance of two queues' regions in a buffer for queues of `size` descriptors, in bytes.
pub fn stride(size: u16, packed: bool) -> usize {
    needed(size, packed).next_multiple_of(ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_as_long_as_the_text_has_them() {
        assert_eq!(needed(128, false), 16 + 128 * 16);
        assert_eq!(needed(1, true), 64);
        assert_eq!(stride(128, false), 2112);
        assert_eq!(stride(3, false), 64);
        assert_eq!(stride(4, false), 128);
        assert_eq!(stride(32768, true), 32 + (1 << 20) + 32);
    }
}
