//! `verify`: random frames both ways, and where each of them went.
//!
//! Two verifiers find each other with Hello, send Data within a window that the other one's
//! receive ring has room for, so that nobody may drop anything, and tell each other what arrived.
//! A verifier whose own Hello comes back accounts for its own frames.

mod ledger;
mod source;
mod verifier;

use std::time::{Duration, Instant};

use super::{BURST, Outcome, wait};
use crate::guest::GuestError;
use crate::guest::args::{MIN_FRAME, Verify};
use crate::guest::frames::Kind;
use crate::guest::machine::Machine;
use crate::guest::report::{Account, Clock, Details};
use crate::guest::wrap;
use source::Source;
use verifier::{Partner, Verifier};

/// How often we call before we are heard, and ask when nothing moves.
const CALLING: Duration = Duration::from_millis(20);
const ASKING: Duration = Duration::from_millis(200);
/// How long we answer after all is said: our last word may not have arrived.
const LINGER: Duration = Duration::from_millis(100);
/// How long we go on after a signal, so that the other side learns that all was sent.
const STOPPING: Duration = Duration::from_secs(1);

/// Sends and accounts.
pub(in crate::guest) fn verify(
    machine: &mut Machine<'_>,
    clock: &mut Clock,
    options: &Verify,
) -> Result<Outcome, GuestError> {
    let mut this = Verifier::new(machine);
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    let mut failure = None;
    if meet(&mut this, machine, clock)? {
        failure = exchange(&mut this, machine, clock, options, seed)?;
    } else if !machine.stopped() {
        failure = Some(
            "nobody is there: neither another verify nor a back-end that sends frames back".into(),
        );
    }
    let account = this.account(seed);
    if failure.is_none() {
        failure = judge(&account).map(|wrong| match this.mistake {
            None => wrong,
            Some(mistake) => format!("{wrong}; a packet had {mistake}"),
        });
    }
    Ok(Outcome {
        details: Details::Verify(account),
        failure,
    })
}

fn judge(account: &Account) -> Option<String> {
    let wrong: Vec<_> = [
        (account.lost, "lost"),
        (account.duplicated, "duplicated"),
        (account.reordered, "reordered"),
        (account.corrupt, "corrupt"),
        (account.missed_by_other_side, "wrong at the other side"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect();
    (!wrong.is_empty()).then(|| format!("of {} frames: {}", account.received, wrong.join(", ")))
}

/// Calls until a partner is found; whether one was.
fn meet(
    this: &mut Verifier,
    machine: &mut Machine<'_>,
    clock: &mut Clock,
) -> Result<bool, GuestError> {
    let end = Instant::now() + machine.timeout();
    let mut next = Instant::now();
    while this.partner == Partner::Unknown {
        let now = Instant::now();
        if now >= end {
            return Ok(false);
        }
        if now >= next {
            this.say(machine, Kind::Hello, this.greeting.to_value())?;
            machine.flush();
            next = now + CALLING;
        }
        if !this.attend(machine)? && !this.rest(machine, clock, next)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Sends until it is time, then until all is accounted for. Returns what went wrong, if that was
/// the end of it.
fn exchange(
    this: &mut Verifier,
    machine: &mut Machine<'_>,
    clock: &mut Clock,
    options: &Verify,
    seed: u64,
) -> Result<Option<String>, GuestError> {
    let theirs = match this.partner {
        Partner::Other { greeting, .. } => greeting,
        _ => this.greeting,
    };
    let ours = this.greeting.max_frame.min(theirs.max_frame);
    let max = usize::from(
        options
            .max_size
            .map_or(ours, |max| ours.min(max))
            .max(MIN_FRAME),
    );
    let longest = match machine.features() & wrap::feature::CSUM {
        0 => max,
        _ => wrap::MOST,
    };
    let window = theirs.window(longest).min(this.greeting.window(longest));
    let mut source = Source::new(seed, max, theirs.buffer_len.max(64).into());
    let count = options.count.unwrap_or(u64::MAX);
    let end = Instant::now() + Duration::from_secs(options.seconds);

    let mut position = this.position();
    let (mut moved, mut asked) = (Instant::now(), Instant::now());
    let mut all_sent = false;
    let mut heard: Option<Instant> = None;
    loop {
        let mut busy = this.attend(machine)?;
        let now = Instant::now();
        if !all_sent && (now >= end || this.next >= count || machine.stopped()) {
            all_sent = true;
            this.ask(machine, all_sent)?;
            asked = now;
        }
        if !all_sent {
            let until = count.min(this.acked + window);
            busy |= this.send_data(machine, &mut source, until)?;
        }
        if this.position() != position {
            position = this.position();
            moved = now;
        }
        let patience = match machine.stopped() {
            true => machine.timeout().min(STOPPING),
            false => machine.timeout(),
        };
        if all_sent && this.is_heard() && this.partner_done {
            let since = *heard.get_or_insert(now);
            if this.partner == Partner::Ourselves || now - since >= LINGER {
                return Ok(None);
            }
        } else if now - moved >= patience {
            return Ok((!machine.stopped()).then(|| silence(this, patience)));
        }
        if now - moved.max(asked) >= ASKING {
            this.ask(machine, all_sent)?;
            asked = now;
        }
        if !busy && !this.rest(machine, clock, now + ASKING.min(LINGER))? {
            // A signal says to stop, and that is being done.
            std::thread::sleep(Duration::from_millis(1));
        } else if busy {
            clock.tick(machine.sent(), machine.received());
        }
    }
}

fn silence(this: &Verifier, patience: Duration) -> String {
    let missing = match (this.is_heard(), this.partner_done) {
        (false, _) => format!("{} frames are not acknowledged", this.next - this.acked),
        (true, _) => "it has not said that it is done".to_owned(),
    };
    format!("nothing got on for {patience:?}: the other side is silent, {missing}")
}
