#![allow(clippy::unwrap_used)]
use vvu::memory::Mapping;

use super::*;
use crate::port::head::HEAD;
use crate::port::offload::Offload;

/// What is delivered of a frame with these bytes after `edit`.
fn edited(bytes: &[u8], edit: Edit) -> (Head, Vec<u8>) {
    let mapping = Mapping::anonymous(bytes.len()).unwrap();
    mapping.slice().copy_from(bytes);
    let mut heads = Heads::default();
    let burst = Burst::of_one(&mut heads, mapping.slice());
    let head = burst.heads()[0].edited(edit);
    let mut all = head.bytes().to_vec();
    for piece in burst.body(&head) {
        let mut part = vec![0; piece.len()];
        piece.copy_to(&mut part);
        all.extend(part);
    }
    assert_eq!(all.len(), head.frame_len());
    (head, all)
}

#[test]
fn edits_change_what_they_say_and_nothing_else() {
    // Shorter than a head, as long, and longer.
    for len in [14, 18, 60, HEAD - 4, HEAD - 1, HEAD, HEAD + 1, 1514] {
        let frame: Vec<u8> = (0..len).map(|n| n as u8).collect();
        let [to, from, rest] = [&frame[..6], &frame[6..12], &frame[12..]];
        assert_eq!(edited(&frame, Edit::Keep).1, frame);
        assert_eq!(edited(&frame, Edit::Swap).1, [from, to, rest].concat());
        let (head, tagged) = edited(&frame, Edit::Tag(0xabc));
        assert_eq!(
            tagged,
            [to, from, &[0x81, 0, 0xa, 0xbc], rest].concat(),
            "{len}"
        );
        assert_eq!(head.edited(Edit::Untag).bytes(), {
            let copied = len.min(HEAD);
            &frame[..copied]
        });
        let priority = [to, from, &[0x81, 0, 0xe5, 1], rest].concat();
        assert_eq!(edited(&priority, Edit::Untag).1, frame, "{len}");
        let other = [to, from, &[0x81, 0, 0xe0, 9], rest].concat();
        assert_eq!(edited(&priority, Edit::Retag(9)).1, other, "{len}");
    }
}

#[test]
fn requests_move_with_what_they_are_about() {
    let large = |start, headers| [1, 1, headers, 0, 200, 0, start, 0, 16, 0];
    let mut frame = vec![0; 1000];
    frame[12..18].copy_from_slice(&[0x81, 0, 0, 5, 8, 0]);
    frame[18] = 0x45;
    frame[27] = 6;
    frame[38 + 12] = 0x50;
    let asked = Offload::parse(&large(38, 58), &frame[..HEAD], frame.len()).unwrap();
    assert_eq!(asked.moved(false, 4).emit(), large(34, 54));
    assert_eq!(asked.moved(true, 4).emit(), large(42, 62));
    assert_eq!(Offload::NONE.moved(true, 4), Offload::NONE);
    // The sum begins inside the tag: nothing is left of it.
    let odd = [1, 0, 0, 0, 0, 0, 16, 0, 2, 0];
    let asked = Offload::parse(&odd, &frame[..HEAD], frame.len()).unwrap();
    assert_eq!(asked.moved(false, 4), Offload::NONE);
}
