//! The control queue of a guest's network card (VIRTIO 1.2, 5.1.6.5): commands out, answers in.
//! Seldom used: one command a round.

use super::rings::Rings;
use crate::wake::Quiet;

/// Longest command: room for tables of some 2700 addresses.
const MAX_COMMAND: usize = 16384;

/// A control queue: a single ring.
#[derive(Debug)]
pub struct ControlQueue {
    /// The ring, once it is started.
    pub rings: Rings,
    command: Box<[u8]>,
}

impl ControlQueue {
    /// Without a ring yet.
    pub fn new(rings: Rings) -> Self {
        Self {
            rings,
            command: vec![0; MAX_COMMAND].into(),
        }
    }

    /// Takes the next command, if there is one, and writes the byte by which `answer` answers it.
    /// Of one that is too long, `answer` sees nothing. One without room for an answer is given
    /// back unread. Returns whether there was one.
    pub fn serve(&mut self, answer: impl FnOnce(&[u8]) -> u8) -> bool {
        let Rings {
            all, stats, name, ..
        } = &mut self.rings;
        let Some(vhost) = all.iter_mut().find(|vhost| vhost.enabled && !vhost.broken) else {
            return false;
        };
        let ring = &mut vhost.ring;
        let taken = ring.take_burst(1) > 0;
        if let Some(chain) = ring.chains().first() {
            let mut filled = 0;
            for piece in ring.readable(chain) {
                let rest = self.command.get_mut(filled..).unwrap_or(&mut []);
                filled += piece.copy_to(rest);
            }
            let whole = filled == chain.read_len() as usize;
            let command = self.command.get(..filled).filter(|_| whole);
            let answered = ring.writable(chain).next().map(|room| {
                let answer = answer(command.unwrap_or(&[]));
                room.copy_from(&[answer]);
                answer
            });
            // VIRTIO_NET_OK is 0.
            stats.refused.add(u64::from(answered != Some(0)));
            ring.give_back(u32::from(answered.is_some()));
            ring.finish();
        }
        vhost.check(name, stats);
        taken
    }

    /// Asks for kicks, because the worker is about to sleep.
    pub fn enable_kicks(&mut self) -> Quiet {
        let rings = self.rings.all.iter_mut().filter(|ring| !ring.broken);
        rings.fold(Quiet::Kicked, |quiet, vhost| {
            quiet.and(if vhost.ring.enable_kicks() && vhost.enabled {
                Quiet::Busy
            } else if vhost.watch.is_polled() {
                Quiet::Polled
            } else {
                Quiet::Kicked
            })
        })
    }

    /// Asks for no kicks, because the worker polls.
    pub fn disable_kicks(&mut self) {
        for vhost in self.rings.all.iter_mut().filter(|ring| !ring.broken) {
            vhost.ring.disable_kicks();
        }
    }
}
