//! What the programs that serve disks have in common: how they run, and what they print.

use std::fmt::Display;
use std::time::{Duration, Instant};

use vvu::session::Session;

use crate::signals::Shutdown;
use crate::wiring;

/// How often what is outside is looked at: sizes of disks, lists of units.
const LOOK: Duration = Duration::from_secs(1);

/// Serves until a signal says to stop: looks outside every second, and prints every `interval`
/// seconds and at the end, if at all.
pub(crate) fn serve(
    shutdown: &Shutdown,
    interval: Option<u64>,
    sessions: Vec<Session>,
    mut look: impl FnMut(),
    print: impl Fn(),
) {
    let start = Instant::now();
    let mut printed = 0;
    while !shutdown.wait(Some(LOOK)) {
        look();
        let now = start.elapsed().as_secs();
        if let Some(interval) = interval
            && now / interval > printed
        {
            printed = now / interval;
            println!("after {now} s");
            print();
        }
    }
    tracing::info!("stopping");
    wiring::stop(sessions);
    if interval.is_some() {
        println!("at the end");
        print();
    }
}

/// Prints a table for each device, and a line for each worker.
pub(crate) fn print(devices: impl Iterator<Item = impl Display>, workers: &[impl Display]) {
    devices.for_each(|device| println!("{device}"));
    for (number, worker) in workers.iter().enumerate() {
        println!("worker {number} {worker}");
    }
    println!();
}
