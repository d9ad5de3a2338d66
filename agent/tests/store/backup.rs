//! A backup is the rows of one checkpoint, or it is refused.

use std::ops::ControlFlow;

use blixard::store::{BackupError, BackupHead, read_backup, write_backup};
use blixard_core::types::{Level, Timestamp};

use super::*;

fn head() -> BackupHead {
    let position = Position { index: 50, term: 1 };
    BackupHead { level: Level(1), position, taken_at: Timestamp(7), by: "alpha".parse().unwrap() }
}

/// A store with more rows than fit in one chunk, and its backup, piece by piece.
fn backed_up() -> (Rows, Vec<Vec<u8>>) {
    let place = Place::new();
    let mut store = place.create();
    let rows: Vec<Change> = (0..200_u8).map(|key| put(Table::ALL[usize::from(key) % 12], key, 5000)).collect();
    store.commit(&rows, &at(50), committed(50)).unwrap();
    let reader = store.reader().unwrap().unwrap();
    let mut pieces = Vec::new();
    let put = |piece| {
        pieces.push(piece);
        ControlFlow::Continue(())
    };
    write_backup(&reader, &head(), put).unwrap();
    (store.load().unwrap().rows, pieces)
}

fn read(bytes: &[u8]) -> Result<Rows, BackupError> {
    let mut rows = Rows::default();
    let read = read_backup(bytes, |about| assert_eq!(*about, head()), |row| rows.extend([row]))?;
    assert_eq!(read, head());
    Ok(rows)
}

#[test]
fn what_was_backed_up_comes_back() {
    let (rows, pieces) = backed_up();
    assert!(pieces.len() > 4, "it has several chunks");
    assert_eq!(read(&pieces.concat()).unwrap(), rows);
}

#[test]
fn a_backup_that_was_cut_short_is_refused_wherever_it_ends() {
    let (_, pieces) = backed_up();
    let whole = pieces.concat();
    let mut ends: Vec<usize> = (0..200).chain(whole.len() - 200..whole.len()).collect();
    let mut end = 0;
    for piece in &pieces[..pieces.len() - 1] {
        end += piece.len();
        ends.extend([end - 1, end, end + 1, end + 9]);
    }
    for end in ends {
        let refused = read(&whole[..end]).unwrap_err();
        assert!(matches!(refused, BackupError::CutShort | BackupError::Foreign), "{end}: {refused}");
    }
}

#[test]
fn a_backup_of_which_a_byte_a_piece_or_the_end_is_another_is_refused() {
    let (_, pieces) = backed_up();
    let whole = pieces.concat();
    for at in (0..400).chain((400..whole.len()).step_by(977)).chain(whole.len() - 50..whole.len()) {
        let mut garbled = whole.clone();
        garbled[at] ^= 0x40;
        assert!(read(&garbled).is_err(), "byte {at}");
    }
    let of = |order: &[usize]| order.iter().flat_map(|piece| pieces[*piece].clone()).collect::<Vec<u8>>();
    let last = pieces.len() - 1;
    let mut order: Vec<usize> = (0..=last).collect();
    order.swap(1, 2);
    let swapped = read(&of(&order)).unwrap_err();
    assert!(
        matches!(swapped, BackupError::Damaged { .. }),
        "every piece is whole, and they are in another order: {swapped}"
    );
    order.remove(2);
    assert!(matches!(read(&of(&order)), Err(BackupError::Damaged { .. })), "one is missing");
    assert!(matches!(read(&[&whole[..], b"x"].concat()), Err(BackupError::Damaged { .. })));
}

#[test]
fn a_backup_of_a_newer_agent_and_any_other_file_are_told_apart() {
    let (_, pieces) = backed_up();
    let mut newer = pieces.concat();
    newer[15] = 2;
    let refused = read(&newer).unwrap_err();
    assert!(matches!(refused, BackupError::OtherFormat { version: 2 }), "{refused}");
    for other in [&b"redb\x1a\x0a\xa9\x0d\x0a"[..], b"", b"blixard snapshot\n"] {
        assert!(matches!(read(other), Err(BackupError::Foreign)));
    }
}
