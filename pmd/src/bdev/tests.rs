#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use super::fake::{Fake, bare, content, one, read, wait, write};
use super::*;

const BLOCK: [u8; 512] = [7; 512];

#[test]
fn bytes_go_to_any_place_in_data() {
    let target = fake::data(&[1; 100]);
    let scatter = target.as_ref().unwrap();
    bytes::write_at(scatter, 10, &[2; 20]);
    bytes::zero_at(scatter, 15, 5);
    bytes::write_at(scatter, 95, &[3; 20]);
    bytes::write_at(scatter, 100, &[4; 20]);
    bytes::zero_at(scatter, u64::MAX, 5);
    let mut wanted = vec![1; 100];
    wanted[10..30].fill(2);
    wanted[15..20].fill(0);
    wanted[95..].fill(3);
    assert_eq!(content(&target), wanted);
    let mut part = [9; 10];
    bytes::read_at(scatter, 93, &mut part);
    assert_eq!(part, [1, 1, 3, 3, 3, 3, 3, 9, 9, 9]);
}

#[test]
fn a_read_only_disk_is_read_and_nothing_else() {
    let fake = Fake::new(8192);
    let disk = ReadOnly::before(fake.clone());
    let abilities = disk.abilities();
    assert!(abilities.read_only && abilities.discard.is_none());
    assert!(abilities.write_zeroes.is_none());
    let mut channel = disk.channel().unwrap();
    channel.submit(&mut vec![
        read(0, 0, 512),
        write(1, 0, &BLOCK),
        bare(2, Op::Flush, 0, 0),
        bare(3, Op::Discard, 0, 512),
        bare(4, Op::WriteZeroes { unmap: true }, 0, 512),
    ]);
    assert_eq!(channel.in_flight(), 5);
    assert_eq!(channel.arm(), Quiet::Busy);
    let results: Vec<_> = wait(&mut *channel, 5)
        .into_iter()
        .map(|done| done.result)
        .collect();
    let refused = Err(IoError::ReadOnly);
    assert_eq!(results, [Ok(()), refused, Ok(()), refused, refused]);
    assert_eq!(fake.log().len(), 2);
}

fn rates(requests: Option<u64>, bytes: Option<u64>, burst: u64) -> Rates {
    Rates {
        requests,
        bytes,
        burst: Duration::from_millis(burst),
    }
}

#[test]
fn a_throttle_lets_no_more_through_than_it_may() {
    // Each asks for half a second's worth beyond the burst.
    for (rates, requests) in [
        (rates(Some(100), None, 0), 51),
        (rates(Some(100), None, 200), 71),
        (rates(None, Some(100 * 512), 0), 51),
        (rates(Some(100), Some(1000 * 512), 0), 51),
        (rates(Some(1000), Some(100 * 512), 0), 51),
    ] {
        let disk = Throttle::before(Fake::new(8192), rates);
        // So that a burst's worth is there.
        std::thread::sleep(rates.burst);
        let mut channel = disk.channel().unwrap();
        let start = Instant::now();
        channel.submit(&mut (0..requests).map(|n| write(n, 0, &BLOCK)).collect());
        assert_eq!(channel.in_flight(), requests as usize);
        let done = wait(&mut *channel, requests as usize);
        let took = start.elapsed();
        assert!(done.iter().all(|done| done.result.is_ok()));
        assert!(took >= Duration::from_millis(499), "{rates:?}: {took:?}");
        assert_eq!(channel.in_flight(), 0);
    }
}

#[test]
fn who_comes_first_to_a_throttle_goes_first_on_whatever_channel() {
    let fake = Fake::new(1 << 20);
    let disk = Throttle::before(fake.clone(), rates(Some(50), None, 0));
    let mut channels = [disk.channel().unwrap(), disk.channel().unwrap()];
    for n in 0..10u64 {
        channels[n as usize % 2].submit(&mut vec![read(n, n * 512, 512)]);
    }
    let start = Instant::now();
    let mut done = Vec::new();
    // While the first is asked all the time, the other one loses nothing by being asked late.
    while done.len() < 5 {
        assert!(start.elapsed() < fake::PATIENCE);
        channels[0].reap(&mut done);
        std::thread::yield_now();
    }
    channels[1].reap(&mut done);
    assert!(done.len() >= 9, "{done:?}");
    wait(&mut *channels[1], 10 - done.len());
    let of_first = fake.log().into_iter().filter(|(_, at, _)| at % 1024 == 0);
    let order: Vec<_> = of_first.map(|(_, at, _)| at / 512).collect();
    assert_eq!(order, [0, 2, 4, 6, 8]);
}

#[test]
fn nonsense_costs_nothing_at_a_throttle() {
    let disk = Throttle::before(Fake::new(8192), rates(Some(1), Some(1), 0));
    let mut channel = disk.channel().unwrap();
    let nonsense = (0..100).map(|n| bare(n, Op::Discard, u64::MAX - n, n));
    channel.submit(&mut nonsense.collect());
    for done in wait(&mut *channel, 100) {
        assert_eq!(done.result, Err(IoError::Range));
    }
    // The first is free; the second would wait for a year.
    channel.submit(&mut vec![read(0, 0, 8192), read(1, 0, 512)]);
    assert_eq!(wait(&mut *channel, 1)[0].token, 0);
    assert_eq!((channel.in_flight(), channel.arm()), (1, Quiet::Kicked));
    channel.hurry();
    assert_eq!(wait(&mut *channel, 1)[0].token, 1);
}

#[test]
fn a_delay_makes_late_and_mixes_up() {
    let fake = Fake::new(1 << 20);
    let (least, most) = (Duration::from_millis(20), Duration::from_millis(40));
    let disk = Delay::before(fake.clone(), least, most);
    let mut channel = disk.channel().unwrap();
    let start = Instant::now();
    channel.submit(&mut (0..50).map(|n| read(n, n * 512, 512)).collect());
    let mut none = Vec::new();
    channel.reap(&mut none);
    assert!(none.is_empty() || start.elapsed() >= least);
    wait(&mut *channel, 50 - none.len());
    assert!(start.elapsed() >= least);
    let order: Vec<_> = fake.log().into_iter().map(|(_, at, _)| at).collect();
    assert!(!order.is_sorted(), "none overtook another");
}

#[test]
fn what_shall_fail_fails_and_nothing_else() {
    let fails = |plan: &str| -> Vec<u64> {
        let disk = Faulty::before(Fake::new(8192), plan.parse().unwrap());
        let mut channel = disk.channel().unwrap();
        let both = |n: u64| [write(2 * n, 0, &BLOCK), read(2 * n + 1, 0, 512)];
        channel.submit(&mut (0..5).flat_map(both).collect());
        let failed = wait(&mut *channel, 10).into_iter();
        let failed = failed.filter(|done| done.result.is_err());
        failed.map(|done| done.token).collect()
    };
    assert_eq!(fails("any:nth:3:EIO"), [2]);
    assert_eq!(fails("write:nth:3:EIO"), [4]);
    assert_eq!(fails("read:every:2:ENOSPC"), [3, 7]);
    assert_eq!(fails("any:from:8:ENODEV"), [7, 8, 9]);
    assert!(fails("flush:every:1:EIO").is_empty());
}

#[test]
fn plans_of_failure_that_make_no_sense() {
    for text in [
        "",
        "read",
        "read:nth",
        "read:nth:0:EIO",
        "read:nth:1:EFOO",
        "erase:nth:1:EIO",
        "read:some:1:EIO",
        "read:nth:1:EIO:",
    ] {
        let error = text.parse::<Plan>().unwrap_err();
        assert!(error.contains("write:every:100:EIO"), "{error}");
    }
}

#[test]
fn a_power_cut_takes_what_was_not_flushed_and_nothing_else() {
    let fake = Fake::slow(1 << 20, 1);
    let disk = Volatile::new(fake.clone(), 1 << 20);
    let power = disk.power();
    let mut channels = [disk.channel().unwrap(), disk.channel().unwrap()];
    let block = |n: u8| vec![n; 512];
    let at = |n: u64| fake.bytes()[n as usize * 512..][..512].to_vec();
    for n in 1..=4 {
        let channel = &mut channels[n as usize % 2];
        assert_eq!(
            one(&mut **channel, write(n, n * 512, &block(1))).result,
            Ok(())
        );
    }
    assert_eq!(fake.log(), [], "nothing reaches the disk before a flush");
    // What was written is read, from either channel, beside what is on the disk.
    let done = one(&mut *channels[0], read(0, 0, 6 * 512));
    let wanted = [block(0), vec![1; 4 * 512], block(0)].concat();
    assert_eq!(content(&done.data), wanted);
    // A write that must be safe takes no other one along.
    let safe = Request {
        fua: true,
        ..write(0, 2 * 512, &block(2))
    };
    assert_eq!(one(&mut *channels[0], safe).result, Ok(()));
    assert_eq!((at(1), at(2), at(3)), (block(0), block(2), block(0)));
    // Two flushes at once, of which one waits for the other.
    for channel in &mut channels {
        channel.submit(&mut vec![bare(0, Op::Flush, 0, 0)]);
    }
    one(&mut *channels[1], write(0, 4 * 512, &block(3)));
    for channel in &mut channels {
        let start = Instant::now();
        let mut done = Vec::new();
        while channel.in_flight() > 0 {
            assert!(start.elapsed() < fake::PATIENCE);
            channel.reap(&mut done);
        }
    }
    assert_eq!((at(1), at(2), at(3)), (block(1), block(2), block(1)));
    one(&mut *channels[0], write(0, 5 * 512, &block(3)));
    power.cut();
    for request in [
        read(0, 0, 512),
        write(0, 0, &block(9)),
        bare(0, Op::Flush, 0, 0),
    ] {
        assert_eq!(one(&mut *channels[0], request).result, Err(IoError::Gone));
    }
    power.restore();
    let done = one(&mut *channels[0], read(0, 512, 5 * 512));
    let wanted = [block(1), block(2), block(1), at(4), block(0)].concat();
    assert_eq!(content(&done.data), wanted);
}

#[test]
fn what_is_written_again_while_it_is_flushed_stays_newer() {
    let fake = Fake::slow(1 << 20, 1);
    let disk = Volatile::new(fake.clone(), 1 << 20);
    let mut channel = disk.channel().unwrap();
    one(&mut *channel, write(0, 0, &[1; 512]));
    channel.submit(&mut vec![
        bare(0, Op::Flush, 0, 0),
        write(1, 0, &[2; 512]),
        read(2, 0, 512),
        bare(3, Op::Flush, 0, 0),
        bare(4, Op::WriteZeroes { unmap: false }, 512, 512),
    ]);
    let done = wait(&mut *channel, 5);
    assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
    assert_eq!(content(&done[2].data), [2; 512]);
    assert_eq!(fake.bytes()[..512], [2; 512]);
    assert_eq!(channel.in_flight(), 0);
}

#[test]
fn a_flush_that_fails_loses_nothing_and_a_full_cache_is_written() {
    let fake = Fake::new(1 << 20);
    let faulty = Faulty::before(fake.clone(), "write:nth:1:EIO".parse().unwrap());
    let disk = Volatile::new(faulty, 4096);
    let mut channel = disk.channel().unwrap();
    one(&mut *channel, write(0, 0, &[1; 512]));
    let flush = || bare(0, Op::Flush, 0, 0);
    assert_eq!(one(&mut *channel, flush()).result, Err(IoError::Io(5)));
    let done = one(&mut *channel, read(0, 0, 512));
    assert_eq!(content(&done.data), [1; 512]);
    assert_eq!(one(&mut *channel, flush()).result, Ok(()));
    assert_eq!(fake.bytes()[..512], [1; 512]);
    assert_eq!(one(&mut *channel, write(0, 0, &[2; 8192])).result, Ok(()));
    assert_eq!(fake.bytes()[..8192], [2; 8192]);
}
