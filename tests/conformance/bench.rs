//! A device under test between the driver and the front-end that a case plays.

use std::time::Instant;

use crate::driver::{BACKEND_UP, BOTH_UP, CONFIG, Driver};
use crate::front_end::FrontEnd;
use crate::target::{Machine, Setup, Target};
use crate::{PATIENCE, pause};

/// What a case has.
pub(crate) struct Bench {
    /// The driver. It goes first.
    pub(crate) driver: Driver,
    /// The device.
    pub(crate) machine: Box<dyn Machine>,
}

impl Bench {
    /// A device that nobody has touched.
    pub(crate) fn new(target: &dyn Target, setup: &Setup) -> Self {
        let mut machine = match target.machine(setup) {
            Ok(machine) => machine,
            Err(error) => panic!("no device: {error:#}"),
        };
        let driver = Driver::new(machine.function(), setup.rings);
        Self { driver, machine }
    }

    /// A device that has been brought up, without device feature bits.
    pub(crate) fn started(target: &dyn Target) -> Self {
        let mut bench = Self::new(target, &Setup::default());
        bench.driver.start(0, 16, 8192);
        bench
    }

    /// A front-end connects.
    pub(crate) fn connect(&self) -> FrontEnd {
        FrontEnd::connect(self.machine.socket())
    }

    /// A front-end connects and is let in.
    #[track_caller]
    pub(crate) fn connect_up(&mut self) -> FrontEnd {
        let front_end = self.connect();
        self.driver.set_status(BACKEND_UP);
        self.driver.wait_status(BOTH_UP);
        self.driver.wait_interrupt(CONFIG);
        front_end
    }

    /// The front-end leaves.
    #[track_caller]
    pub(crate) fn close(&mut self, front_end: FrontEnd) {
        drop(front_end);
        self.driver.wait_status(0);
        self.driver.wait_interrupt(CONFIG);
        self.driver.drain();
    }

    /// The device has thrown the front-end out, and the driver hears of nothing else.
    #[track_caller]
    pub(crate) fn is_dropped(&mut self, mut front_end: FrontEnd) {
        self.driver.wait_status(0);
        self.driver.wait_interrupt(CONFIG);
        front_end.is_hung_up();
        if let Some(message) = self.driver.poll_rx() {
            panic!("delivered all the same: {message:?}");
        }
        self.driver.drain();
    }

    /// Turns MSI-X off, or on again.
    pub(crate) fn turn_vectors(&mut self, on: bool) {
        self.machine.turn_vectors(on, self.driver.vectors());
    }

    /// Descriptors that the device's process has open.
    pub(crate) fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.machine.process());
        std::fs::read_dir(folder).unwrap().count()
    }

    /// How many bytes of memory files of this name the device's process has mapped.
    pub(crate) fn mapped(&self, name: &str) -> u64 {
        let maps = format!("/proc/{}/maps", self.machine.process());
        let maps = std::fs::read_to_string(maps).unwrap();
        let name = format!("/memfd:{name} ");
        let lines = maps.lines().filter(|line| line.contains(&name));
        let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
        lines
            .map(|line| {
                let range = line.split(' ').next().unwrap();
                let (start, end) = range.split_once('-').unwrap();
                number(end) - number(start)
            })
            .sum()
    }

    #[track_caller]
    pub(crate) fn wait_descriptors(&self, expected: usize) {
        let start = Instant::now();
        while self.descriptors() != expected {
            let now = self.descriptors();
            assert!(
                start.elapsed() < PATIENCE,
                "{now} descriptors instead of {expected}"
            );
            self.driver.status();
            pause();
        }
    }

    #[track_caller]
    pub(crate) fn wait_mapped(&mut self, name: &str, expected: u64) {
        let start = Instant::now();
        while self.mapped(name) != expected {
            let now = self.mapped(name);
            assert!(
                start.elapsed() < PATIENCE,
                "{now:#x} bytes are mapped instead of {expected:#x}"
            );
            self.machine.settle();
            pause();
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let alive = self.machine.check();
        if std::thread::panicking() {
            println!("\n     the device says: {}", self.machine.report());
        } else if let Err(error) = alive {
            panic!("{error:#}; the device said: {}", self.machine.report());
        }
    }
}
