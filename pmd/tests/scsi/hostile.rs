//! Drivers that say anything.

use vvu_pmd::mock::Random;

use super::*;

/// Lengths of pieces that `total` bytes are cut into.
fn cuts(total: usize, random: &mut Random) -> Vec<usize> {
    let mut lens = Vec::new();
    let mut left = total;
    while left > 0 && lens.len() < 12 {
        let most = if random.range(0, 2) == 0 { 3 } else { left };
        let len = random.range(1, most.min(left));
        lens.push(len);
        left -= len;
    }
    lens.extend((left > 0).then_some(left));
    lens
}

#[test]
fn commands_may_be_cut_anywhere() {
    for features in [SPLIT, PACKED] {
        let mut bench = Bench::new(features);
        let mut random = Random::new(5);
        let mut disk = vec![0; 64 * 512];
        for round in 0..1500u32 {
            let (lba, count) = (random.range(0, 60), random.range(1, 4));
            let range = lba * 512..(lba + count) * 512;
            let is_write = random.range(0, 1) == 0;
            let code = if is_write { 0x2a } else { 0x28 };
            let cdb = rw10(code, lba as u32, count as u16);
            let mut sent = header(at(0, 0), round.into(), &cdb);
            let mut room = RESPONSE;
            if is_write {
                let data = vec![round as u8 | 1; count * 512];
                disk[range.clone()].copy_from_slice(&data);
                sent.extend(data);
            } else {
                room += count * 512;
            }
            let mut pieces = Vec::new();
            let mut rest = &sent[..];
            for len in cuts(sent.len(), &mut random) {
                let (piece, behind) = rest.split_at(len);
                pieces.push(piece);
                rest = behind;
            }
            let writable = cuts(room, &mut random);
            let indirect = random.range(0, 1) == 0;
            let id = bench.driver.chain(REQUESTS, &pieces, &writable, indirect);
            bench.driver.submit(REQUESTS);
            let answer = bench.driver.wait(REQUESTS);
            assert_eq!(Some(answer.id), id);
            let response = Response::new(&answer.bytes);
            assert_eq!(
                (response.status, response.code, response.residual),
                (0, 0, 0)
            );
            if !is_write {
                assert_eq!(response.data, disk[range], "round {round}");
            }
        }
    }
}

#[test]
fn chains_that_are_too_short_are_given_back_unanswered() {
    let mut bench = Bench::new(SPLIT);
    let whole = header(at(0, 0), 1, &[0; 6]);
    let mut count = 0;
    for (len, room) in [
        (0, RESPONSE),
        (50, RESPONSE),
        (51, 107),
        (51, 0),
        (1, 1),
        (0, 1),
    ] {
        bench
            .driver
            .chain(REQUESTS, &[&whole[..len]], &[room], false)
            .unwrap();
        bench.driver.submit(REQUESTS);
        let answer = bench.driver.wait(REQUESTS);
        assert_eq!((answer.len, answer.bytes), (0, vec![0xee; room]));
        count += 1;
        assert_eq!(bench.face.snapshot().queues[0].wrong("malformed"), count);
    }
    assert_eq!(bench.run(at(0, 0), &[0; 6], &[], 0).status, 0);
}

#[test]
fn random_commands_are_all_answered() {
    for features in [SPLIT, PACKED] {
        let mut bench = Bench::new(features);
        bench
            .face
            .add(at(0, 1), Lun::new("second", mem(), true, None));
        let mut random = Random::new(99);
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..4000u64 {
            let code = [
                0x00, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x1a, 0x1b, 0x25, 0x28, 0x2a, 0x2e, 0x2f, 0x35,
                0x41, 0x42, 0x4d, 0x55, 0x5a, 0x5e, 0x5f, 0x88, 0x89, 0x8a, 0x8e, 0x8f, 0x91, 0x93,
                0x9e, 0xa0, 0xa3, 0xa8, 0xaa, 0xae, 0xaf, 0xff,
            ][random.range(0, 35)];
            let mut cdb = vec![0; 32];
            cdb[0] = code;
            for byte in &mut cdb[1..] {
                if random.range(0, 5) == 0 {
                    *byte = random.range(0, 40) as u8;
                }
            }
            let mut lun = lun_bytes(at(0, random.range(0, 2) as u16));
            if random.range(0, 30) == 0 {
                lun[random.range(0, 7)] = random.range(0, 255) as u8;
            }
            let mut sent = header(at(0, 0), round, &cdb);
            sent[..8].copy_from_slice(&lun);
            sent.extend(vec![
                random.range(0, 1) as u8;
                [0, 24, 512, 4096][random.range(0, 3)]
            ]);
            let room = RESPONSE + [0, 36, 512, 8192][random.range(0, 3)];
            if bench
                .driver
                .chain(REQUESTS, &[&sent], &[room], false)
                .is_none()
            {
                bench.driver.submit(REQUESTS);
                let response = Response::new(&bench.driver.wait(REQUESTS).bytes);
                seen.insert((response.code, response.status));
            }
            if random.range(0, 3) == 0 {
                bench.driver.submit(REQUESTS);
            }
            while let Some(answer) = bench.driver.answer(REQUESTS) {
                let response = Response::new(&answer.bytes);
                seen.insert((response.code, response.status));
            }
        }
        bench.driver.submit(REQUESTS);
        while bench.driver.flying(REQUESTS) > 0 {
            bench.driver.wait(REQUESTS);
        }
        for expected in [(0, 0), (0, 2), (1, 0), (3, 0), (9, 0)] {
            assert!(
                seen.contains(&expected),
                "{expected:?} never came: {seen:?}"
            );
        }
    }
}
