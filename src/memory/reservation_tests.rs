//! What is shown, what stays, what goes; and files that shrink.
#![allow(clippy::unwrap_used)]

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::Bytes;

use super::*;

fn file(fill: u8, pages: u64) -> OwnedFd {
    let file = memfd_create("vvu-reservation", MemfdFlags::CLOEXEC).unwrap();
    let len = pages * page_size() as u64;
    ftruncate(&file, len).unwrap();
    rustix::io::pwrite(&file, &vec![fill; len as usize], 0).unwrap();
    file
}

/// Pages `at..at + pages` of the reservation show those of `file` from `from` on.
fn piece(file: &OwnedFd, at: u64, from: u64, pages: u64) -> Piece {
    let page = page_size() as u64;
    Piece {
        offset: at * page,
        file: file.try_clone().unwrap(),
        file_offset: from * page,
        len: pages * page,
    }
}

/// The first byte of each page.
fn seen(area: &Area) -> Vec<u8> {
    let at = (0..area.len()).step_by(page_size());
    at.map(|at| area.slice().read_obj(at).unwrap()).collect()
}

fn reservation(pages: u64) -> (Reservation, Area) {
    let reservation = Reservation::new(pages * page_size() as u64).unwrap();
    let area = reservation.area(0, reservation.len()).unwrap();
    (reservation, area)
}

#[test]
fn an_area_sees_whatever_is_shown() {
    let (reservation, area) = reservation(8);
    let page = page_size() as u64;
    assert_eq!(seen(&area), [0; 8]);
    let (one, two) = (file(1, 4), file(2, 4));
    reservation
        .show(&[piece(&one, 1, 0, 2), piece(&two, 5, 1, 3)])
        .unwrap();
    assert_eq!(seen(&area), [0, 1, 1, 0, 0, 2, 2, 2]);
    assert!(reservation.is_shown(page, 2 * page));
    assert!(!reservation.is_shown(page, 2 * page + 1));
    // Both ways.
    area.slice().write_obj(9u8, page as usize).unwrap();
    let mut byte = [0];
    rustix::io::pread(&one, &mut byte, 0).unwrap();
    assert_eq!(byte, [9]);
    // The second moves over the first; what nothing covers is zero again.
    reservation.show(&[piece(&two, 2, 0, 4)]).unwrap();
    assert_eq!(seen(&area), [0, 0, 2, 2, 2, 2, 0, 0]);
    drop(reservation);
    assert_eq!(seen(&area), [0, 0, 2, 2, 2, 2, 0, 0], "an area holds it");
}

#[test]
fn what_cannot_be_shown_changes_nothing() {
    let (reservation, area) = reservation(8);
    let (one, two) = (file(1, 2), file(2, 2));
    reservation.show(&[piece(&one, 0, 0, 2)]).unwrap();
    let before = seen(&area);
    let read_only = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
    let odd = Piece {
        offset: 12,
        ..piece(&two, 0, 0, 1)
    };
    for wrong in [
        vec![piece(&two, 7, 0, 2)],
        vec![piece(&two, u64::MAX / (page_size() as u64), 0, 2)],
        vec![piece(&two, 0, 1, 2)],
        vec![piece(&two, 0, 0, 0)],
        vec![odd],
        vec![piece(&two, 2, 0, 2), piece(&two, 3, 0, 2)],
        vec![piece(&two, 2, 0, 2), piece(&read_only.into(), 4, 0, 1)],
    ] {
        reservation.show(&wrong).unwrap_err();
        assert_eq!(seen(&area), before, "{wrong:?}");
    }
    reservation.show(&[]).unwrap();
    assert_eq!(seen(&area), [0; 8]);
}

#[test]
fn a_file_that_shrinks_reads_as_zeroes_until_it_is_replaced() {
    let (reservation, area) = reservation(8);
    let (one, two) = (file(1, 4), file(2, 4));
    reservation
        .show(&[piece(&one, 0, 0, 4), piece(&two, 4, 0, 4)])
        .unwrap();
    ftruncate(&one, page_size() as u64).unwrap();
    assert_eq!(seen(&area), [1, 0, 0, 0, 2, 2, 2, 2]);
    reservation.show(&[piece(&two, 0, 0, 4)]).unwrap();
    assert_eq!(seen(&area), [2, 2, 2, 2, 0, 0, 0, 0]);
    ftruncate(&two, 0).unwrap();
    assert_eq!(seen(&area), [0; 8]);
}

#[test]
fn tables_change_under_a_reader_a_thousand_times() {
    let (reservation, area) = reservation(8);
    let files = [file(1, 8), file(2, 8)];
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                assert!(seen(&area).iter().all(|byte| *byte <= 2));
            }
        });
        for round in 0..1000 {
            let file = files.get(round % 2).unwrap();
            let at = round as u64 % 5;
            reservation.show(&[piece(file, at, at, 4)]).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        reader.join().unwrap();
    });
    reservation.show(&[]).unwrap();
    assert_eq!(seen(&area), [0; 8]);
}
