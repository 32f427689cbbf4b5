//! Which rings are looked at in each round, and which have to say that they have something.
//!
//! A ring that had nothing for a while rests: its driver is asked for kicks, and no round looks at
//! it, however many of them there are. A kick brings it back. Before the worker sleeps, all other
//! rings are asked for kicks too, and any wake brings them back. A ring whose kick cannot be
//! waited for is looked at each time that the worker asks who may rest.

use super::rings::{Rings, Vhost};
use super::vhost::VhostRx;
use crate::wake::{Kicks, Mode, Quiet};

impl Vhost {
    /// Asks for kicks. False if there is something already.
    fn arm(&mut self, mode: Mode) -> bool {
        self.ring.publish();
        let quiet = !self.ring.enable_kicks();
        if quiet {
            self.rest.mode = mode;
        }
        quiet
    }

    /// Is looked at in each round from now on.
    fn disarm(&mut self) {
        self.ring.disable_kicks();
        self.rest.poll();
    }

    /// Rests if it is time, or is woken if it cannot say that it has something.
    fn rest(&mut self) {
        let look = match self.rest.mode {
            Mode::Polled => self.rest.is_due(),
            Mode::Resting => self.watch.is_polled(),
            Mode::Armed => false,
        };
        if look && !self.arm(Mode::Resting) {
            self.disarm();
        }
    }
}

impl Rings {
    /// Which rings each round looks at.
    pub(super) fn refresh_polled(&mut self) {
        let rings = self.all.iter().zip(0..);
        let polled = rings.filter(|(ring, _)| !ring.broken && ring.rest.mode == Mode::Polled);
        self.polled.clear();
        self.polled.extend(polled.map(|(_, place)| place));
    }

    /// How many rings rest.
    pub(super) fn resting(&self) -> usize {
        let resting = |ring: &&Vhost| !ring.broken && ring.rest.mode == Mode::Resting;
        self.all.iter().filter(resting).count()
    }

    fn unbroken(&mut self) -> impl Iterator<Item = &mut Vhost> {
        self.all.iter_mut().filter(|ring| !ring.broken)
    }
}

impl VhostRx {
    /// Lets rings rest that had nothing since the last few calls.
    pub(super) fn rest(&mut self) {
        self.rings.unbroken().for_each(Vhost::rest);
        self.rings.refresh_polled();
    }

    /// Asks for kicks, because the worker is about to sleep.
    pub(super) fn enable_kicks(&mut self) -> Quiet {
        let mut quiet = Quiet::Kicked;
        for ring in self.rings.unbroken() {
            let polled = ring.watch.is_polled();
            // Those that rest have been asked.
            if ring.rest.mode != Mode::Resting || polled {
                quiet = quiet.and(match ring.arm(Mode::Armed) {
                    false => Quiet::Busy,
                    true if polled => Quiet::Polled,
                    true => Quiet::Kicked,
                });
            }
        }
        self.rings.refresh_polled();
        quiet
    }

    /// Looks at rings again that were kicked, and after a sleep at all that do not rest.
    pub(super) fn kicked(&mut self, kicks: &Kicks) {
        for ring in self.rings.unbroken() {
            match ring.rest.mode {
                Mode::Polled => {}
                Mode::Resting if !kicks.has(&ring.watch) => {}
                // How long it has had nothing is not forgotten over a sleep.
                Mode::Armed => {
                    ring.ring.disable_kicks();
                    ring.rest.mode = Mode::Polled;
                }
                Mode::Resting => ring.disarm(),
            }
        }
        self.rings.refresh_polled();
    }

    /// Looks at all rings again, and asks for no kicks.
    pub(super) fn disable_kicks(&mut self) {
        self.rings.unbroken().for_each(Vhost::disarm);
        self.rings.refresh_polled();
    }
}
