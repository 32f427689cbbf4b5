//! Why a command was refused, as its initiator is told (SPC-5, 4.4).

/// Longest sense data that are made: descriptor format with both descriptors.
pub const MAX_SENSE: usize = 28;

/// Sense keys (SPC-5, 4.4.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Key {
    /// Nothing to say.
    NoSense = 0x0,
    /// Cannot be accessed.
    NotReady = 0x2,
    /// The medium failed.
    MediumError = 0x3,
    /// Something else failed.
    HardwareError = 0x4,
    /// The command makes no sense.
    IllegalRequest = 0x5,
    /// Something changed since the last command.
    UnitAttention = 0x6,
    /// May not be written.
    DataProtect = 0x7,
    /// Given up; may be tried again.
    AbortedCommand = 0xb,
    /// What was compared is not equal.
    Miscompare = 0xe,
}

/// The place of what is wrong, in bytes and bits (SPC-5, 4.4.2.4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// In the CDB, not in the parameter list.
    pub in_cdb: bool,
    /// Offset of the byte.
    pub byte: u16,
    /// The field's highest bit, unless it is whole bytes.
    pub bit: Option<u8>,
}

/// Sense data before they have a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense {
    /// The sense key.
    pub key: Key,
    /// Additional sense code and its qualifier, `0xASCQ`.
    pub code: u16,
    /// INFORMATION: a block address or the offset of a difference.
    pub info: Option<u64>,
    /// What is wrong.
    pub place: Option<Place>,
}

impl Sense {
    /// NO ADDITIONAL SENSE INFORMATION.
    pub const NONE: Self = Self::new(Key::NoSense, 0);
    /// LOGICAL UNIT NOT READY, INITIALIZING COMMAND REQUIRED.
    pub const STOPPED: Self = Self::new(Key::NotReady, 0x0402);
    /// LOGICAL UNIT NOT READY, MANUAL INTERVENTION REQUIRED.
    pub const GONE: Self = Self::new(Key::NotReady, 0x0403);
    /// LOGICAL UNIT COMMUNICATION TIME-OUT.
    pub const TIMEOUT: Self = Self::new(Key::HardwareError, 0x0801);
    /// WRITE ERROR.
    pub const WRITE_ERROR: Self = Self::new(Key::MediumError, 0x0c00);
    /// UNRECOVERED READ ERROR.
    pub const READ_ERROR: Self = Self::new(Key::MediumError, 0x1100);
    /// PARAMETER LIST LENGTH ERROR.
    pub const LIST_LENGTH: Self = Self::new(Key::IllegalRequest, 0x1a00);
    /// MISCOMPARE DURING VERIFY OPERATION.
    pub const MISCOMPARE: Self = Self::new(Key::Miscompare, 0x1d00);
    /// INVALID COMMAND OPERATION CODE.
    pub const OPCODE: Self = Self::new(Key::IllegalRequest, 0x2000).at(0);
    /// LOGICAL BLOCK ADDRESS OUT OF RANGE.
    pub const RANGE: Self = Self::new(Key::IllegalRequest, 0x2100);
    /// LOGICAL UNIT NOT SUPPORTED.
    pub const NO_UNIT: Self = Self::new(Key::IllegalRequest, 0x2500);
    /// INVALID RELEASE OF PERSISTENT RESERVATION.
    pub const RELEASE: Self = Self::new(Key::IllegalRequest, 0x2604);
    /// WRITE PROTECTED.
    pub const READ_ONLY: Self = Self::new(Key::DataProtect, 0x2700);
    /// LOGICAL UNIT SOFTWARE WRITE PROTECTED.
    pub const SOFTWARE_READ_ONLY: Self = Self::new(Key::DataProtect, 0x2702);
    /// SPACE ALLOCATION FAILED WRITE PROTECT.
    pub const NO_SPACE: Self = Self::new(Key::DataProtect, 0x2707);
    /// SAVING PARAMETERS NOT SUPPORTED.
    pub const NO_SAVING: Self = Self::new(Key::IllegalRequest, 0x3900);
    /// INTERNAL TARGET FAILURE.
    pub const INTERNAL: Self = Self::new(Key::HardwareError, 0x4400);
    /// INSUFFICIENT REGISTRATION RESOURCES.
    pub const REGISTRATIONS: Self = Self::new(Key::IllegalRequest, 0x5504);

    /// This key and code.
    pub const fn new(key: Key, code: u16) -> Self {
        Self {
            key,
            code,
            info: None,
            place: None,
        }
    }

    /// INVALID FIELD IN CDB: the field that begins at `byte`.
    pub const fn cdb(byte: u16) -> Self {
        Self::new(Key::IllegalRequest, 0x2400).at(byte)
    }

    /// INVALID FIELD IN CDB: the field whose highest bit is `bit` of `byte`.
    pub const fn cdb_bit(byte: u16, bit: u8) -> Self {
        let mut sense = Self::cdb(byte);
        sense.place = Some(Place {
            in_cdb: true,
            byte,
            bit: Some(bit),
        });
        sense
    }

    /// INVALID FIELD IN PARAMETER LIST: the field that begins at `byte`.
    pub const fn list(byte: u16) -> Self {
        let mut sense = Self::new(Key::IllegalRequest, 0x2600);
        sense.place = Some(Place {
            in_cdb: false,
            byte,
            bit: None,
        });
        sense
    }

    /// The same, about the block or byte `info`.
    pub const fn with_info(mut self, info: u64) -> Self {
        self.info = Some(info);
        self
    }

    const fn at(mut self, byte: u16) -> Self {
        self.place = Some(Place {
            in_cdb: true,
            byte,
            bit: None,
        });
        self
    }

    /// The three bytes of SENSE KEY SPECIFIC.
    fn specific(&self) -> Option<[u8; 3]> {
        let place = self.place?;
        let [high, low] = place.byte.to_be_bytes();
        let bit = place.bit.map_or(0, |bit| 0x08 | bit & 7);
        let in_cdb = if place.in_cdb { 0x40 } else { 0 };
        Some([0x80 | in_cdb | bit, high, low])
    }

    /// The bytes of it, in descriptor format (0x72) or fixed format (0x70), for a command that it
    /// is the end of.
    pub fn bytes(&self, descriptors: bool) -> Vec<u8> {
        if descriptors {
            self.descriptor_format()
        } else {
            self.fixed_format()
        }
    }

    fn fixed_format(&self) -> Vec<u8> {
        // What does not fit 32 bits is not valid.
        let info = self.info.and_then(|info| u32::try_from(info).ok());
        let mut bytes = Vec::with_capacity(18);
        bytes.push(0x70 | if info.is_some() { 0x80 } else { 0 });
        bytes.extend([0, self.key as u8]);
        bytes.extend(info.unwrap_or(0).to_be_bytes());
        // Ten more bytes; nothing specific to commands.
        bytes.extend([10, 0, 0, 0, 0]);
        bytes.extend(self.code.to_be_bytes());
        bytes.push(0);
        bytes.extend(self.specific().unwrap_or_default());
        bytes
    }

    fn descriptor_format(&self) -> Vec<u8> {
        let [asc, ascq] = self.code.to_be_bytes();
        let mut bytes = Vec::with_capacity(MAX_SENSE);
        bytes.extend([0x72, self.key as u8, asc, ascq, 0, 0, 0, 0]);
        if let Some(info) = self.info {
            bytes.extend([0, 0x0a, 0x80, 0]);
            bytes.extend(info.to_be_bytes());
        }
        if let Some([a, b, c]) = self.specific() {
            bytes.extend([2, 6, 0, 0, a, b, c, 0]);
        }
        let rest = (bytes.len() - 8) as u8;
        if let Some(length) = bytes.get_mut(7) {
            *length = rest;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn fixed_format_has_the_codes_where_they_belong() {
        let bytes = Sense::cdb_bit(1, 4).bytes(false);
        assert_eq!(bytes.len(), 18);
        assert_eq!((bytes[0], bytes[2], bytes[7]), (0x70, 5, 10));
        assert_eq!(bytes[12..14], [0x24, 0]);
        assert_eq!(bytes[15..18], [0xcc, 0, 1]);
        let bytes = Sense::MISCOMPARE.with_info(0x1234).bytes(false);
        assert_eq!(bytes[0], 0xf0);
        assert_eq!(bytes[3..7], [0, 0, 0x12, 0x34]);
        let bytes = Sense::RANGE.with_info(1 << 32).bytes(false);
        assert_eq!(bytes[0], 0x70, "does not fit");
    }

    #[test]
    fn descriptor_format_has_a_descriptor_for_what_there_is() {
        assert_eq!(Sense::READ_ONLY.bytes(true), [0x72, 7, 0x27, 0, 0, 0, 0, 0]);
        let bytes = Sense::list(9).with_info(1 << 40).bytes(true);
        assert_eq!(bytes.len(), MAX_SENSE);
        assert_eq!(bytes[7], 20);
        assert_eq!(bytes[8..12], [0, 0x0a, 0x80, 0]);
        assert_eq!(bytes[12..20], (1u64 << 40).to_be_bytes());
        assert_eq!(bytes[20..28], [2, 6, 0, 0, 0x80, 0, 9, 0]);
    }
}
