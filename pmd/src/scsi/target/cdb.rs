//! A command descriptor block: up to 16 bytes, read as big-endian fields.

/// Longest CDB of any command that is known, in bytes.
pub const MAX: usize = 16;

/// A place in CDBs, of at most 8 bytes, made ready to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    /// Bits behind it.
    behind: u8,
    mask: u64,
}

impl Field {
    /// The `bytes` bytes at offset `at`.
    pub(super) const fn new(at: u8, bytes: u8) -> Self {
        Self {
            behind: 128 - 8 * (at + bytes),
            mask: u64::MAX >> (64 - 8 * bytes),
        }
    }
}

/// A CDB, its first byte at the top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cdb(pub(super) u128);

impl Cdb {
    /// The first bytes of `bytes`; what is missing is zero.
    #[inline]
    pub(super) fn new(bytes: &[u8]) -> Self {
        let whole = bytes.first_chunk().copied().unwrap_or_else(|| {
            let mut whole = [0; MAX];
            for (to, from) in whole.iter_mut().zip(bytes) {
                *to = *from;
            }
            whole
        });
        Self(u128::from_be_bytes(whole))
    }

    /// What is there, as a number.
    #[inline]
    pub(super) fn at(self, field: Field) -> u64 {
        (self.0 >> field.behind) as u64 & field.mask
    }

    /// The `bytes` bytes (at most 8) at offset `at`.
    #[inline]
    pub(super) fn field(self, at: u8, bytes: u8) -> u64 {
        self.at(Field::new(at, bytes))
    }

    #[inline]
    pub(super) fn byte(self, at: u8) -> u8 {
        self.field(at, 1) as u8
    }

    #[inline]
    pub(super) fn bit(self, at: u8, bit: u8) -> bool {
        self.byte(at) >> bit & 1 != 0
    }

    #[inline]
    pub(super) fn be16(self, at: u8) -> u16 {
        self.field(at, 2) as u16
    }

    #[inline]
    pub(super) fn be32(self, at: u8) -> u32 {
        self.field(at, 4) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_they_are_named() {
        let bytes: Vec<u8> = (0x10..0x30).collect();
        let cdb = Cdb::new(&bytes);
        assert_eq!(cdb.byte(0), 0x10);
        assert_eq!(cdb.byte(15), 0x1f);
        assert_eq!(cdb.be16(7), 0x1718);
        assert_eq!(cdb.be32(10), 0x1a1b_1c1d);
        assert_eq!(cdb.field(2, 8), 0x1213_1415_1617_1819);
        assert_eq!(cdb.field(1, 3), 0x11_1213);
        assert!(cdb.bit(1, 4) && !cdb.bit(1, 1));
        assert_eq!(Cdb::new(&[1]).field(0, 8), 1 << 56);
    }
}
