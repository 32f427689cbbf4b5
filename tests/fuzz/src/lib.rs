//! What the fuzz targets do with their bytes, one room for each target.
//!
//! Every room has `run`, which may do anything but panic, hang or leak, whatever it is given. What
//! must hold besides is asserted there. Inputs are scripts in bytes, read with [`Input`]; real
//! ones to begin with are written by `examples/seeds.rs`.
//!
//! One thread, no clock: the same bytes do the same thing each time. Where the code under test has
//! threads of its own, what runs on them is called here directly.

pub mod blk;
pub mod capabilities;
pub mod config_space;
mod device;
pub mod front_end;
mod function;
pub mod message;
pub mod model;
pub mod nbd;
pub mod offload;
pub mod ring;
pub mod scsi;
pub mod session;
pub mod vfio_user;

/// The fuzzer's bytes, taken from the front. What is missing at the end reads as zero.
#[derive(Debug)]
pub struct Input {
    data: Vec<u8>,
    at: usize,
}

impl Input {
    /// All of them.
    pub fn new(data: &[u8]) -> Self {
        Self {
            data: data.to_vec(),
            at: 0,
        }
    }

    /// Whether all was taken.
    pub fn is_empty(&self) -> bool {
        self.at == self.data.len()
    }

    fn take(&mut self, len: usize) -> &[u8] {
        let start = self.at;
        self.at += len.min(self.data.len() - start);
        &self.data[start..self.at]
    }

    fn number<const N: usize>(&mut self) -> [u8; N] {
        let mut number = [0; N];
        for (to, from) in number.iter_mut().zip(self.take(N)) {
            *to = *from;
        }
        number
    }

    /// One byte.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.number())
    }

    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.number())
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.number())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.number())
    }

    /// The next `len` bytes, or as many as there are.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        self.take(len).to_vec()
    }

    /// A part with its length, one byte, before it.
    pub fn part(&mut self) -> Vec<u8> {
        let len = self.u8();
        self.bytes(usize::from(len))
    }
}
