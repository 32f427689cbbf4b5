//! How commands end that somebody else wants to have ended (SAM-6, 7).

use std::sync::atomic::Ordering;

use super::domain::Address;
use super::face::Order;
use super::queue::Work;
use super::target::Answer;
use super::tasks::Waits;
use super::wire::Code;

impl Order {
    /// Whether it is about this task; that there is one is noted.
    fn is_about(&self, address: Address, tag: u64) -> bool {
        let about = self.address == address && self.tag.is_none_or(|own| own == tag);
        if about && let Some(found) = &self.found {
            found.store(true, Ordering::Release);
        }
        about
    }

    /// Whether tasks end, or are only looked for.
    fn ends(&self) -> bool {
        self.code != Code::Succeeded
    }
}

impl Work {
    /// Obeys `order`, now for tasks that are under way, and until the ring was seen empty for those
    /// that came before it and are still there.
    pub(super) fn order(&mut self, order: Order, takes: bool) {
        for number in self.all_at(order.address) {
            let Some(task) = self.tasks.get(number) else {
                continue;
            };
            if !order.is_about(order.address, task.tag) || !order.ends() {
                continue;
            }
            task.ends.get_or_insert(order.code);
            let in_flight = task.in_flight;
            let extra = task.extra();
            extra.barriers.push(order.barrier.clone());
            if !in_flight && !matches!(extra.waits, Waits::Saved) {
                self.end(number, &Answer::GOOD);
            }
        }
        if takes && order.waiting {
            self.orders.push(order);
        }
    }

    /// Tasks of the unit at `address`, also of one that was there before.
    fn all_at(&mut self, address: Address) -> Vec<u16> {
        let seats = self.ways.at(address);
        let tasks = seats.iter().flat_map(|seat| self.tasks.of_seat(*seat));
        tasks.collect()
    }

    /// How a command that has just come must end, by an order that came after it.
    #[cold]
    pub(super) fn ordered(&self, address: Address, tag: u64) -> Option<Code> {
        let about = |order: &&Order| order.is_about(address, tag) && order.ends();
        self.orders.iter().find(about).map(|order| order.code)
    }
}
