//! What each way to poll costs and gives: round trips, and CPU time.

use std::time::{Duration, Instant};

use vvu_pmd::worker::Polling;

use crate::front_end::FrontEnd;
use crate::scaling::spread;
use crate::transports::{Way, leave_a_cpu};

const MODES: [(Polling, &str); 3] = [
    (Polling::Always, "always"),
    (Polling::Adaptive, "adaptive"),
    (Polling::Interrupt, "interrupt"),
];

/// Pauses between round trips: none, shorter than a worker polls in vain, and longer.
const PAUSES: [(Duration, u32); 3] = [
    (Duration::ZERO, 2000),
    (Duration::from_micros(20), 1000),
    (Duration::from_millis(5), 100),
];

/// CPU time of this process (proc(5)). Not by clock_gettime of rustix: with that linked in, it
/// looks for the kernel's vDSO, which is not there under callgrind.
fn cpu_time() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name in parentheses may have anything in it.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let times = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = times.filter_map(|n| n.parse::<u64>().ok()).sum();
    let second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs_f64(ticks as f64 / second as f64))
}

pub(crate) fn run() -> anyhow::Result<()> {
    let cpu = leave_a_cpu()?;
    let folder = std::env::temp_dir().join(format!("vvu-polling-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let done = MODES.into_iter().try_for_each(|(polling, name)| {
        let way = Way::unix(&folder, cpu, polling)?;
        let mut guest = FrontEnd::new(64, false)?;
        guest.connect(&way.socket)?;
        print!("| `{name}` |");
        for (pause, count) in PAUSES {
            let times = guest.ping(count, pause)?;
            let [median, least, _] = spread(times.into_iter());
            print!(" {:.1} ({:.1}) |", median / 1000.0, least / 1000.0);
        }
        std::thread::sleep(Duration::from_millis(100));
        let (start, before) = (Instant::now(), cpu_time()?);
        std::thread::sleep(Duration::from_secs(2));
        let share = (cpu_time()? - before).as_secs_f64() / start.elapsed().as_secs_f64();
        println!(" {:.1} % |", 100.0 * share);
        drop(guest);
        way.end();
        Ok(())
    });
    let _ = std::fs::remove_dir_all(&folder);
    done
}
