//! Devices that do something wrong, each fault by its name: what the driver, its transport and a
//! session make of it. Whatever it was, the next front-end is served when it is over.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::bench::{alone, until};
use super::fake::FakeDevice;
use super::hostile::{count, handshake};
use super::script::Script;
use crate::device::{Device, Options};
use crate::model::Shape;
use crate::model::faults::{FAULTS, Fault};
use crate::model::test_rig::Rig;
use crate::protocol::Request;
use crate::session::Session;
use crate::transport::vvu::VvuTransport;

/// What becomes of a driver and the front-end behind the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The device is not taken; the reason has these words.
    Refused(&'static str),
    /// The connection ends; the session's reason has these words.
    Ends(&'static str),
    /// The connection ends as if the front-end had left.
    Closes,
    /// A message is refused with a reason that has these words.
    Nacks(&'static str),
    /// Everything as it should be.
    Serves,
    /// The front-end hears nothing, for as long as the fault lasts.
    Silent,
    /// Everything as it should be, or the front-end hears nothing: nobody was told to look.
    Slow,
    /// The front-end is not served: it hears nothing, or is dropped.
    Unserved,
    /// It cannot be told from a device that says so, and anything may follow from it.
    Whatever,
}

use Outcome::{Closes, Ends, Nacks, Refused, Serves, Silent, Slow, Unserved, Whatever};

const GONE: &str = "does not answer any more";
const LONG: &str = "claims to have written";
const NOT_HELD: &str = "which it does not hold";
const INDEX: &str = "used index went from";

/// With the fault from the beginning, and with a fault that begins when a front-end is there.
fn outcomes(fault: Fault) -> [Outcome; 2] {
    match fault {
        Fault::NoCapability(_) | Fault::Loop => [Refused("is missing"), Serves],
        Fault::NoBar => [Refused("device configuration (virtio type 4)"), Serves],
        Fault::BeyondBar => [Refused("BAR 2"), Serves],
        Fault::ShortStructure => [Refused("0x38 are needed"), Serves],
        Fault::SamePlace => [Whatever, Serves],
        Fault::ShortWindow => [Nacks("window"), Serves],
        Fault::NoFeature(32) => [Refused("VERSION_1"), Serves],
        Fault::NoFeature(_) => [Refused("ACCESS_PLATFORM"), Serves],
        Fault::FeaturesRefused => [Refused("does not accept the features"), Serves],
        Fault::StuckReset => [Refused("did not finish"), Serves],
        Fault::Gone => [Refused("vendor id ffff"), Ends(GONE)],
        Fault::GoneAfter(_) => [Refused(""), Ends(GONE)],
        Fault::Rings(0) => [Refused("max_vhost_queues is 0"), Serves],
        Fault::Queues(_) => [Refused("has 7 queues"), Serves],
        Fault::QueueSize(_) => [Refused("its size is 0"), Serves],
        Fault::StatusLost => [
            Refused("does not accept the features"),
            Ends("asks for a reset"),
        ],
        Fault::NeedsReset => [Silent, Ends("asks for a reset")],
        Fault::LinkGarbage => [Unserved, Closes],
        Fault::Ghost => [Whatever, Serves],
        Fault::Flapping => [Unserved, Closes],
        Fault::GenerationMoves => [Closes, Closes],
        Fault::RxLength(0) | Fault::HangUp(_) => [Closes, Closes],
        Fault::RxLength(_) => [Ends(LONG), Ends(LONG)],
        Fault::RxId(_) | Fault::TxId(_) => [Ends(NOT_HELD), Ends(NOT_HELD)],
        Fault::RxAdvance(_) | Fault::TxAdvance(_) => [Ends(INDEX), Ends(INDEX)],
        Fault::RxTwice => [Whatever, Whatever],
        Fault::RxStale => [Ends("has version 0"), Ends("has version 0")],
        Fault::RxLate | Fault::RxHeld | Fault::TxHeld => [Silent, Silent],
        Fault::Mute => [Slow, Slow],
        Fault::Rings(_)
        | Fault::VectorsRefused
        | Fault::RingsMove
        | Fault::UuidMoves
        | Fault::ConfigMoves
        | Fault::TxLength(_)
        | Fault::TxEarly
        | Fault::Storm => [Serves, Serves],
    }
}

/// How long a front-end waits for what shall not come.
const SHORT: Duration = Duration::from_millis(60);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a front-end got to hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    All,
    Refusal,
    End,
    Nothing,
}

/// A front-end.
fn call(rig: &Rig, patience: Duration) -> Script {
    let stream = UnixStream::connect(&rig.path).unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    stream.set_write_timeout(Some(patience)).unwrap();
    Script { stream }
}

/// A whole set-up.
fn speak(script: &mut Script) -> Heard {
    for (request, fd) in handshake() {
        let fds: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
        let acked = !matches!(request, Request::SetProtocolFeatures(_));
        let message = request.to_message(acked);
        script.raw(&message.to_bytes(), &fds);
        if !acked {
            continue;
        }
        match script.hear() {
            Ok(reply) if reply.request != message.request => return Heard::Refusal,
            // Other answers than acknowledgements are no refusals.
            Ok(reply) if !matches!(reply.request, 1 | 11) && reply.payload != [0; 8] => {
                return Heard::Refusal;
            }
            Ok(_) => {}
            Err(error) => {
                return match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => Heard::Nothing,
                    _ => Heard::End,
                };
            }
        }
    }
    Heard::All
}

fn open(rig: &Rig) -> Result<Session, String> {
    let options = Options {
        timeout: Duration::from_millis(100),
        ..Options::default()
    };
    let device = Device::open(rig.model.function(), options).map_err(|error| error.to_string())?;
    let transport = VvuTransport::new(device);
    Ok(Session::spawn(Box::new(transport), Box::new(FakeDevice::new(2))).unwrap())
}

/// Whether what a front-end heard, and what the session says, is what must come of it.
fn judge(name: &str, wanted: Outcome, session: &Session, heard: Heard) {
    let told = |text: &str| {
        until(name, || {
            let error = session.status().report().last_error;
            error.is_some_and(|error| error.contains(text))
        });
    };
    let seen = || format!("{name}: {heard:?}, {:?}", session.status().report());
    match wanted {
        Refused(_) => panic!("{name}: it was taken"),
        Serves => assert_eq!(heard, Heard::All, "{}", seen()),
        Closes => assert_eq!(heard, Heard::End, "{}", seen()),
        Silent => assert_eq!(heard, Heard::Nothing, "{}", seen()),
        Slow => assert!(matches!(heard, Heard::All | Heard::Nothing), "{}", seen()),
        Unserved => assert!(matches!(heard, Heard::End | Heard::Nothing), "{}", seen()),
        Ends(text) => {
            told(text);
            // A message without an answer may be what broke it.
            assert!(matches!(heard, Heard::End | Heard::Nothing), "{}", seen());
        }
        Nacks(text) => {
            assert_eq!(heard, Heard::Refusal, "{}", seen());
            told(text);
        }
        Whatever => {}
    }
}

/// One life of a driver with a fault in it.
fn round(rig: &Rig, name: &str, fault: Fault, late: bool) {
    let wanted = outcomes(fault)[usize::from(late)];
    let patience = match wanted {
        Silent | Slow | Unserved | Whatever => SHORT,
        // The driver cannot tell the device any more that it gave up.
        _ if matches!(fault, Fault::Gone | Fault::GoneAfter(_)) => SHORT,
        _ => PATIENCE,
    };
    if !late {
        rig.model.fault(Some(fault));
    }
    let session = match (open(rig), wanted) {
        (Ok(session), _) => {
            let mut script = call(rig, patience);
            if late {
                script.stream.set_read_timeout(Some(PATIENCE)).unwrap();
                script.raw(&Request::GetFeatures.to_message(false).to_bytes(), &[]);
                assert_eq!(script.hear().unwrap().request, 1, "{name}");
                script.stream.set_read_timeout(Some(patience)).unwrap();
                rig.model.fault(Some(fault));
            }
            judge(name, wanted, &session, speak(&mut script));
            session
        }
        (Err(error), Refused(text)) => {
            assert!(error.contains(text), "{name}: {error}");
            rig.model.fault(None);
            open(rig).unwrap()
        }
        (Err(_), Whatever) => {
            rig.model.fault(None);
            open(rig).unwrap()
        }
        (Err(error), _) => panic!("{name}: {error}"),
    };
    rig.model.fault(None);
    let session = match fault {
        // What it took for true when it was opened stays true for it.
        Fault::SamePlace | Fault::ShortWindow => {
            session.stop();
            open(rig).unwrap()
        }
        _ => session,
    };
    // A connection of before may still be coming to its end.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let heard = speak(&mut call(rig, PATIENCE));
        if heard == Heard::All {
            break;
        }
        let report = session.status().report();
        assert!(
            heard == Heard::End && Instant::now() < deadline,
            "{name}, late {late}, then an honest one: {heard:?}, {report:?}, {:?}",
            rig.model.status()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    session.stop();
    assert_eq!(rig.model.status().device_status, 0, "{name}: left quiet");
}

/// So many rounds with each fault, a few faults at a time.
fn rounds(number: usize) {
    let left = Mutex::new(FAULTS.iter());
    let work = || {
        loop {
            let Some((name, fault)) = left.lock().unwrap().next() else {
                return;
            };
            let start = Instant::now();
            let rig = Rig::kind(Shape {
                window: 64 << 20,
                ..Shape::ours()
            });
            for nth in 0..number {
                round(&rig, name, *fault, nth % 2 == 1);
            }
            println!("{name}: {number} rounds in {:?}", start.elapsed());
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(work);
        }
    });
}

#[test]
fn whatever_a_device_does_it_ends_in_order() {
    alone("session::tests::faults::every_fault");
}

#[test]
#[ignore = "run by whatever_a_device_does_it_ends_in_order, in a process of its own"]
fn every_fault() {
    // Kilobytes of memory that is there.
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages = statm.split(' ').nth(1).unwrap();
        pages.parse::<u64>().unwrap() * 4
    };
    let threads = count("task");
    let settled = |what| until(what, || count("task") == threads);
    rounds(2);
    settled("threads end");
    let fds = count("fd");
    let (maps, memory) = (count("map_files"), resident());
    rounds(20);
    settled("threads end again");
    assert_eq!(count("fd"), fds);
    // The allocator may have mapped memory of its own.
    assert!(count("map_files") <= maps + 32, "{maps}");
    assert!(resident() < memory + (64 << 10), "{memory} {}", resident());
}
