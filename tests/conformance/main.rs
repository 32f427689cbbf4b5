//! The numbered checklist of `docs/device.md`, statement by statement, on every device and in
//! every dialect there is.
//!
//! `cargo test -p vvu-tests --test conformance [-- FILTER...]`. A line is a case and where it
//! runs: `c17_capabilities/qemu`. A statement's number is in the name of its cases; the table in
//! `docs/device.md` says what each shows, and a house test compares the two.
//!
//! | file | what lives there |
//! |---|---|
//! | `target` | where devices come from: QEMU under qtest, the model, the model over vfio-user |
//! | `driver`, `ring` | the driver that a case plays, register by register |
//! | `front_end` | the front-end that a case plays, byte by byte |
//! | `bench` | a device between the two |
//! | `device` | what a device must do: on QEMU and on the model |
//! | `driving` | what a driver must do: ours, on the model in every dialect |

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

/// A table of cases: files and what is in them.
macro_rules! cases {
    ($($file:ident: $($name:ident)*;)*) => {
        &[$($((stringify!($name), $file::$name)),*),*]
    };
}
use cases;

mod bench;
mod device;
mod driver;
mod driving;
mod front_end;
mod ring;
mod target;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Result, anyhow};
use vvu_tests::runner::{self, Case, Missing};

use target::Target;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long to wait for what must not happen.
const QUIET: Duration = Duration::from_millis(30);

/// Between two looks at something.
fn pause() {
    std::thread::sleep(Duration::from_micros(200));
}

/// Ends a case that cannot run here.
fn missing(what: impl ToString) -> ! {
    std::panic::panic_any(Missing(what.to_string()))
}

/// Where the last panic was, which its payload does not say.
static PLACE: Mutex<String> = Mutex::new(String::new());

/// What the case was about to try.
static STEP: Mutex<String> = Mutex::new(String::new());

/// Says what comes next, for the case that it fails.
fn step(what: impl ToString) {
    *STEP.lock().unwrap() = what.to_string();
}

/// What a panic says.
fn outcome(payload: Box<dyn Any + Send>) -> anyhow::Error {
    let payload = match payload.downcast::<Missing>() {
        Ok(missing) => return (*missing).into(),
        Err(payload) => payload,
    };
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied());
    let (step, place) = (STEP.lock().unwrap(), PLACE.lock().unwrap());
    let step = Some(step).filter(|step| !step.is_empty());
    let step = step.map(|step| format!("{step}: "));
    let text = text.unwrap_or("a panic");
    anyhow!("{}{text} ({place})", step.unwrap_or_default())
}

/// Nothing is shared by cases.
struct Stage;

impl runner::Stage for Stage {
    fn begin(&mut self, _case: &str) -> Result<()> {
        Ok(())
    }

    fn clear(&mut self, _skipped: bool) {}
}

/// One line: a case at a place.
fn line(name: &str, place: &str, case: impl Fn() -> Result<()> + 'static) -> Case<Stage> {
    let case = move |_: &mut Stage| {
        step("");
        catch_unwind(AssertUnwindSafe(&case)).unwrap_or_else(|payload| Err(outcome(payload)))
    };
    (format!("{name}/{place}"), Box::new(case))
}

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string);
        *PLACE.lock().unwrap() = place.unwrap_or_default();
    }));
    let targets: [Rc<dyn Target>; 3] = [
        Rc::new(target::QemuTarget),
        Rc::new(target::ModelTarget),
        Rc::new(target::VfioUserTarget),
    ];
    let mut cases = Vec::new();
    let machines = &targets[..1];
    let everywhere = device::CASES.iter().map(|case| (case, targets.as_slice()));
    let in_machines = device::MACHINE_CASES.iter().map(|case| (case, machines));
    for ((name, case), places) in everywhere.chain(in_machines) {
        for target in places {
            let target = Rc::clone(target);
            cases.push(line(name, target.name(), move || {
                target.ready()?;
                case(target.as_ref());
                Ok(())
            }));
        }
    }
    for (name, case) in driving::CASES {
        for (dialect, shape) in driving::DIALECTS {
            cases.push(line(name, dialect, move || {
                case(&shape());
                Ok(())
            }));
        }
    }
    cases.sort_by(|(one, _), (other, _)| one.cmp(other));
    runner::run(&mut Stage, cases)
}
