//! The control queues of one worker's ports: served between bursts, one command a round each.

use super::control::{Control, OK};
use crate::port::{ControlQueue, Rings, TxPort};
use crate::wake::Quiet;

/// A card's control queue, and what its driver wants.
#[derive(Debug)]
pub struct ControlPort {
    queue: ControlQueue,
    control: Control,
}

impl ControlPort {
    /// A queue whose commands `control` judges.
    pub fn new(queue: ControlQueue, control: Control) -> Self {
        Self { queue, control }
    }

    /// What the driver wants.
    pub fn control(&mut self) -> &mut Control {
        &mut self.control
    }

    /// The queue's ring, if it is started.
    pub fn rings(&mut self) -> &mut Rings {
        &mut self.queue.rings
    }

    /// Has `tx` do from now on what the driver wants.
    pub fn apply(&self, tx: &mut TxPort) {
        if let TxPort::Vhost(tx) = tx.inner() {
            tx.obey(self.control.policy(), self.control.accepts());
        }
    }
}

/// Those of one worker, by number of their port.
#[derive(Debug, Default)]
pub(super) struct Controls(Vec<(u16, ControlPort)>);

impl Controls {
    pub(super) fn add(&mut self, number: u16, port: ControlPort) {
        self.0.push((number, port));
    }

    pub(super) fn remove(&mut self, number: u16) {
        self.0.retain(|(other, _)| *other != number);
    }

    pub(super) fn get(&mut self, number: u16) -> Option<&mut ControlPort> {
        let port = self.0.iter_mut().find(|(other, _)| *other == number);
        port.map(|(_, port)| port)
    }

    /// Obeys the next command of each; has `changed` apply it. Returns whether there was one.
    #[inline]
    pub(super) fn poll(&mut self, mut changed: impl FnMut(u16, &ControlPort)) -> bool {
        let mut worked = false;
        for (number, port) in &mut self.0 {
            let mut obeyed = false;
            let control = &mut port.control;
            worked |= port.queue.serve(|command| {
                let answer = control.answer(command);
                obeyed = answer == OK;
                answer
            });
            if obeyed {
                changed(*number, port);
            }
        }
        worked
    }

    pub(super) fn enable_kicks(&mut self) -> Quiet {
        let quiet = self.0.iter_mut().map(|(_, port)| port.queue.enable_kicks());
        quiet.fold(Quiet::Kicked, Quiet::and)
    }

    pub(super) fn disable_kicks(&mut self) {
        for (_, port) in &mut self.0 {
            port.queue.disable_kicks();
        }
    }
}
