//! QEMU's qtest protocol: lines of text that stand for what a processor does.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use vvu::mmio::RegisterAccess;

/// Port of the address of a configuration access, and of its data.
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// The line to QEMU, which is asked one thing at a time.
#[derive(Debug)]
pub(super) struct Qtest {
    stream: Mutex<BufReader<UnixStream>>,
}

impl Qtest {
    /// Takes over a connection that QEMU has just opened.
    pub(super) fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self {
            stream: Mutex::new(BufReader::new(stream)),
        })
    }

    /// Says one line and returns what follows the OK.
    fn ask(&self, line: &str) -> std::io::Result<String> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream.get_mut().write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_line(&mut answer)?;
        match answer.strip_prefix("OK") {
            Some(value) => Ok(value.trim().to_owned()),
            None => Err(std::io::Error::other(format!("{line}: {answer:?}"))),
        }
    }

    fn number(&self, line: &str) -> u64 {
        let answer = self.ask(line).expect("QEMU answers");
        let digits = answer.strip_prefix("0x").unwrap_or(&answer);
        u64::from_str_radix(digits, 16).expect("a hexadecimal number")
    }

    /// Whether somebody answers.
    pub(super) fn is_alive(&self) -> std::io::Result<()> {
        self.ask("readb 0x0").map(drop)
    }

    /// Loads from memory, once.
    pub(super) fn load(&self, address: u64, data: &mut [u8]) {
        let value = match data.len() {
            1 => self.number(&format!("readb {address:#x}")),
            2 => self.number(&format!("readw {address:#x}")),
            4 => self.number(&format!("readl {address:#x}")),
            8 => self.number(&format!("readq {address:#x}")),
            other => panic!("no load has {other} bytes"),
        };
        let len = data.len();
        data.copy_from_slice(&value.to_le_bytes()[..len]);
    }

    /// Stores to memory, once.
    pub(super) fn store(&self, address: u64, data: &[u8]) {
        let width = match data.len() {
            1 => 'b',
            2 => 'w',
            4 => 'l',
            8 => 'q',
            other => panic!("no store has {other} bytes"),
        };
        let value = number(data);
        self.ask(&format!("write{width} {address:#x} {value:#x}"))
            .expect("QEMU answers");
    }

    fn select_config(&self, slot: u8, offset: u16) -> u16 {
        let address = 0x8000_0000 | u32::from(slot) << 11 | u32::from(offset & 0xfc);
        self.ask(&format!("outl {CONFIG_ADDRESS:#x} {address:#x}"))
            .expect("QEMU answers");
        CONFIG_DATA + (offset & 3)
    }

    /// Reads a byte of the configuration space of the function in a slot of the first bus.
    pub(super) fn config_byte(&self, slot: u8, offset: u16) -> u8 {
        let port = self.select_config(slot, offset);
        self.number(&format!("inb {port:#x}")) as u8
    }

    /// Writes 1, 2 or 4 bytes of it.
    pub(super) fn set_config(&self, slot: u8, offset: u16, data: &[u8]) {
        let port = self.select_config(slot, offset);
        let width = match data.len() {
            1 => 'b',
            2 => 'w',
            4 => 'l',
            other => panic!("no configuration access has {other} bytes"),
        };
        let mut line = String::new();
        let _ = write!(line, "out{width} {port:#x} {:#x}", number(data));
        self.ask(&line).expect("QEMU answers");
    }
}

fn number(data: &[u8]) -> u64 {
    data.iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// A BAR, at the address where it was put.
#[derive(Debug)]
pub(super) struct Bar {
    pub(super) qtest: std::sync::Arc<Qtest>,
    pub(super) address: u64,
}

impl RegisterAccess for Bar {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.qtest.load(self.address + offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.qtest.store(self.address + offset, data);
    }
}
